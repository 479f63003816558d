//! The subcommands: one file each, writing their data to what they are given.

pub mod config;

//! One Postgres database per signup, always on the latest migration.

pub mod commands;
pub mod config;
pub mod error;
pub mod migrations;
pub mod pg;
pub mod tasks;
pub mod tenant;

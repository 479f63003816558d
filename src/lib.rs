//! One Postgres database per signup, always on the latest migration.

pub mod commands;
pub mod config;
pub mod error;
pub mod isolation;
pub mod migrations;
pub mod pg;
pub mod plan;
pub mod provision;
pub mod registry;
pub mod retry;
pub mod sweep;
pub mod tasks;
pub mod tenant;

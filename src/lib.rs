//! One Postgres database per signup, always on the latest migration.

pub mod bell;
mod brakes;
pub mod cli;
pub mod commands;
pub mod conditions;
pub mod config;
pub mod controller;
pub mod error;
pub mod heartbeat;
pub mod http;
pub mod intake;
pub mod isolation;
pub mod lanes;
pub mod migrations;
pub mod notices;
pub mod pg;
pub mod plan;
pub mod provision;
pub mod registry;
pub mod retry;
pub mod shutdown;
pub mod sweep;
pub mod sweeper;
pub mod systemd;
pub mod tasks;
pub mod telemetry;
pub mod tenant;

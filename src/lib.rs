//! tenantd: one Postgres database per signup, always on the latest migration.
//!
//! An application inserts a row into its `users` table. A trigger writes the fact into a registry and, when a daemon sleeps, rings. The
//! daemon makes the database `tenant_<uuid>` (or as [`naming`] says), applies the tenant migrations and marks it ready. Signups never wait for any of it, and
//! never fail because of it. A sweep finds what was missed and brings every tenant to the newest migration.
//!
//! # The way through
//!
//! ```text
//! INSERT users ─trigger─▶ tenantd.signup ─doorbell─▶ daemon: take in, claim ─▶ observe ─▶ plan ─▶ apply ─▶ record: ready
//!                                                    ▲                                                        │
//!                      poll tick · sweep · retry due ┘                       NOTIFY tenantd_ready ◀────────────┘
//! ```
//!
//! The trigger writes a narrow row without an index, which is what costs a crowd of signups least. Every look of a daemon, and every sweep, first
//! takes in what stands there: each becomes a row of `tenantd.tenant` (requested). The view `tenantd.tenants` shows both.
//!
//! Where `signup.when` is set, only a row that fulfils it is a signup, by its insert or by the update that makes it true ([`registry::when`]).
//!
//! Level-triggered: whatever wakes the daemon only says "look". The registry row is the truth. Signup, retry, sweep and `--sweep-once`
//! are several ways in and one way through: [`provision::reconcile`], the only way a tenant ever changes.
//!
//! Its last step for a new tenant, the hand-over, is one function of the registry, `tenantd.hand_over`: it marks, names and opens a database that was made
//! under a random name, and records the tenant ready, all or nothing. A fresh signup for which a spare is at hand needs no other step, so
//! [`provision::fresh`] calls it for many at once; with `signup.handover = "commit"` the trigger does the same within the signup's transaction.
//!
//! # States
//!
//! `state` is what the application may rely on, `work` what the daemon has still to do:
//!
//! ```text
//! state  requested ─▶ ready ─▶ deleting ─▶ deleted ─▶ requested (the key signed up again)
//!
//! work   held ─backfill─▶ due ─▶ idle          idle ─▶ due: behind, unverified, changed behind our back
//!                          │ ▲
//!                          ▼ │ after a delay that grows
//!                        failing ─out of tries, or no use trying─▶ parked ─a person, a sweep by hand, another set─▶ due
//! ```
//!
//! A tenant is being worked on while `leased_until` lies in the future. `attempt` grows with each claim and fences every later write.
//!
//! # Words
//!
//! | word | meaning |
//! |---|---|
//! | main database | the application's own; signups happen here, the registry lives here |
//! | signup table | the application's table that a signup inserts into |
//! | registry | schema `tenantd` in the main database |
//! | tenant, key | a row of the registry and its database, or its schema; what the application calls it |
//! | isolation | what a tenant has of its own: a database, or a schema in one that tenants share |
//! | place | where a tenant is, as the registry sees it: a database of the server, a schema here, or one elsewhere |
//! | take in | to make a tenant of a signup that the trigger wrote down |
//! | doorbell | how the trigger wakes a daemon that sleeps |
//! | claim, lease, attempt | a tenant taken for a limited time; every write after it names the attempt |
//! | migration set | the ordered migrations that a daemon carries; its SHA-256 is its id |
//! | template | a database holding exactly one migration set, cloned to make tenants |
//! | spare | a clone under a random name, made ahead of time or on demand, until it is handed over |
//! | keeper | the daemon that builds templates and makes spares, one at a time for all |
//! | sweep | choose every tenant that is missing, due, behind or unverified, and reconcile each |
//! | parked | out of tries: a person should look |
//! | marker | the comment on a database or schema that says whose it is; without it nothing is touched |
//!
//! # Rows
//!
//! A file imports from its own row or one with a smaller number; a test reads the source tree and fails when a row is broken.
//!
//! ```text
//! 0 words     tenant, naming, error, fail_points pure: no tokio, no postgres
//! 1 rules     config, retry, plan, migrations    pure; files are read only in migrations/source, config and backup
//! 2 postgres  tasks, pg                          tokio_postgres is named only in rows 2 and 3
//! 3 records   registry                           all SQL on the main database
//! 4 work      isolation, provision, spares, sweep, backup, life
//! 5 service   controller, intake, keeper, bell, lanes, brakes, sweeper, notices, conditions, heartbeat, shutdown, systemd, telemetry, http
//! 6 surface   cli, commands, lib.rs, main.rs
//! ```
//!
//! # Read in this order
//!
//! [`tenant`], [`naming`] and [`error`] (the words), [`plan`] (what may happen to a tenant), [`provision`] (how it happens), [`isolation::database`],
//! [`isolation::schema`] and [`registry::hand_over`] (the steps), [`registry::elsewhere`] (schemas in another database), [`registry::claim`] (the fence), [`intake`] and [`registry::doorbell`] (when),
//! [`spares`] and [`keeper`] (what is made ahead of time), [`sweep`], [`pg::migrate`] (the executor), [`controller`] (the whole).

pub mod backup;
pub mod bell;
mod brakes;
pub mod cli;
pub mod commands;
pub mod conditions;
pub mod config;
pub mod controller;
pub mod error;
pub mod fail_points;
pub mod heartbeat;
pub mod http;
pub mod intake;
pub mod isolation;
pub mod keeper;
pub mod lanes;
pub mod life;
pub mod migrations;
pub mod naming;
pub mod notices;
pub mod pg;
pub mod plan;
pub mod provision;
pub mod registry;
pub mod retry;
pub mod shutdown;
pub mod spares;
pub mod sweep;
pub mod sweeper;
pub mod systemd;
pub mod tasks;
pub mod telemetry;
pub mod tenant;

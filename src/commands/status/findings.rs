//! What of a fleet needs a person, and what is good to know: the rules behind the exit code of `status`.

use std::time::Duration;

use super::Status;
use crate::commands::main_schema::Reached;
use crate::commands::output::{counted, counted_are, duration, line};
use crate::pg::quote;
use crate::registry::triggers::Trigger;

/// A daemon that is there takes a due tenant within a poll. After this time without anybody at work it does not.
const OVERDUE: Duration = Duration::from_mins(5);

/// From here on signups no longer ring, and a queue that fills up refuses their commits in the end.
const QUEUE_LOUD: f64 = 0.5;

/// The state of a thing, and what to do about it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Remark {
    /// A word for programs; it never changes.
    pub(super) word: &'static str,
    /// What is, in a sentence; the lines after the first name each thing it is about.
    pub(super) text: String,
    /// What to do.
    pub(super) advice: String,
}

fn remark(word: &'static str, text: impl Into<String>, advice: impl Into<String>) -> Remark {
    Remark { word, text: text.into(), advice: advice.into() }
}

impl Status<'_> {
    /// What needs a person. Empty: all is well.
    pub(super) fn needs_person(&self) -> Vec<Remark> {
        let mut found = Vec::new();
        self.find_in_work(&mut found);
        self.find_in_set(&mut found);
        self.find_in_signup(&mut found);
        self.find_in_bell(&mut found);
        found
    }

    fn find_in_work(&self, found: &mut Vec<Remark>) {
        let (parked, waiting, room) = (self.with_work("parked"), self.waiting(), self.room);
        let (max, per_hour) = (self.config.tenant.max, self.config.tenant.max_per_hour);
        if parked > 0 {
            found.push(remark(
                "parked",
                format!("{} parked: out of tries, or nothing that tenantd may mend.", counted_are(parked, "tenant")),
                "Mend what each error says, then run `tenantd --sweep-once`, which tries them at once.",
            ));
        }
        let full = room.tenants >= i64::from(max);
        let braked = per_hour > 0 && room.last_hour >= i64::from(per_hour) && waiting > 0;
        if full {
            found.push(remark(
                "tenant_max",
                format!("{} there and tenant.max is {max}: new ones wait.", counted_are(room.tenants, "tenant")),
                "Raise tenant.max if the server has room for more, then reload the daemon.",
            ));
        } else if braked {
            found.push(remark(
                "tenant_max_per_hour",
                format!(
                    "{} made within the hour, and tenant.max_per_hour is {per_hour}: new ones wait.",
                    counted(room.last_hour, "tenant")
                ),
                "They go on by themselves within the hour; are the signups genuine? Then raise tenant.max_per_hour.",
            ));
        }
        // Somebody at work without a daemon: a sweep by hand, or by the timer.
        if self.fleet.daemons.is_empty() && waiting > 0 && self.fleet.leased == 0 {
            found.push(remark(
                "no_daemon",
                format!("No daemon is connected, and {} for one.", waits(waiting)),
                "Start it (`systemctl start tenantd`), or run `tenantd --sweep-once`.",
            ));
        }
        let idle = self.fleet.leased == 0 && !self.fleet.daemons.is_empty() && !full && !braked;
        if let Some(overdue) = self.fleet.overdue.filter(|overdue| idle && *overdue > OVERDUE) {
            found.push(remark(
                "overdue",
                format!("A daemon is connected, but nobody took up what is due since {}.", duration(overdue)),
                "Read the daemon's log (`journalctl -u tenantd`): it says what it waits for.",
            ));
        }
    }

    fn find_in_set(&self, found: &mut Vec<Remark>) {
        if let Some(rollout) = self.fleet.rollout.as_ref().filter(|rollout| rollout.paused) {
            let why = rollout.why.as_ref().map(|why| format!(": {why}")).unwrap_or_default();
            let version = rollout.version;
            let (whose, hint) = if rollout.migration_set == self.set.id() {
                ("", "Mend the migration or the tenants; `tenantd rollout resume` goes on, `tenantd rollout abort` gives it up.".to_owned())
            } else {
                (
                    ", whose migrations are not those that this tenantd carries,",
                    format!(
                        "Where nobody carries them any more, `tenantd rollout abort --version {version}` gives it up."
                    ),
                )
            };
            found.push(remark(
                "rollout_paused",
                format!("The rollout to version {version}{whose} is paused{why}."),
                hint,
            ));
        }
        let listed = |head: String, reasons: &[String]| format!("{head}\n{}", reasons.join("\n"));
        if !self.relations.refused.is_empty() {
            found.push(remark(
                "migrations_refused",
                listed(
                    "The migration set is refused, so no tenant is touched with it:".to_owned(),
                    &self.relations.refused,
                ),
                "Do what is said of each file, then reload the daemon.",
            ));
        }
        if !self.relations.diverged.is_empty() {
            found.push(remark(
                "migrations_diverged",
                listed(
                    "The migration set contradicts what was applied; the tenants concerned stay as they are:"
                        .to_owned(),
                    &self.relations.diverged,
                ),
                "Put the files back as they were applied, and make each change a new migration.",
            ));
        }
        if let Some(failure) = &self.template_failure {
            found.push(remark(
                "template",
                listed(
                    "The template of a migration set could not be built; new tenants are made of the last good one, or wait:".to_owned(),
                    std::slice::from_ref(failure),
                ),
                "Mend what it says, then reload the daemon; a template that can be built is built by itself.",
            ));
        }
        if let Some(Err(error)) = &self.main_schema {
            found.push(remark(
                "main_schema",
                format!("The application's own schema cannot be migrated: {}.", error.chain().trim_end_matches('.')),
                error.advice().unwrap_or("`tenantd migrate main --dry-run` says what stands in the way."),
            ));
        }
        if self.newer > 0 {
            let have = if self.newer == 1 { "has" } else { "have" };
            found.push(remark(
                "migrations_newer",
                format!(
                    "{} {have} migrations that this tenantd does not carry; it leaves them alone.",
                    counted(self.newer, "tenant")
                ),
                "Run the tenantd, or name the folder, that carries them.",
            ));
        }
    }

    fn find_in_signup(&self, found: &mut Vec<Remark>) {
        let signup = match &self.signup {
            Ok(signup) => signup,
            Err(error) => {
                let advice = error.advice().unwrap_or("Correct signup.table or signup.id_column.");
                return found.push(remark(
                    "signup_table",
                    format!("Signups are not noticed: {}.", error.chain()),
                    advice,
                ));
            }
        };
        let (signups, updates, departures) = (
            (
                "tenantd_signup",
                "so only sweeps find its signups",
                ["trigger_missing", "trigger_wrong", "trigger_disabled"],
            ),
            (
                "tenantd_signup_update",
                "so only sweeps find those of whom an update makes signups",
                ["update_trigger_missing", "update_trigger_wrong", "update_trigger_disabled"],
            ),
            (
                "tenantd_departure",
                "so nobody follows its deleted users",
                ["departure_trigger_missing", "departure_trigger_wrong", "departure_trigger_disabled"],
            ),
        );
        let each = signup.triggers.iter().map(|one| (signups, one));
        let each = each.chain(signup.updates.iter().map(|one| (updates, one)));
        for ((name, so, words), (on, trigger)) in each.chain(signup.departures.iter().map(|one| (departures, one))) {
            let enable = format!("As the table's owner: alter table {on} enable trigger {name}");
            let setup = "`tenantd setup` puts it right.".to_owned();
            let (word, how, advice) = match trigger {
                Trigger::Right => continue,
                Trigger::Missing => (words[0], "is missing", setup),
                Trigger::Wrong => (words[1], "is not the one it should be", setup),
                Trigger::Disabled => (words[2], "is switched off", enable),
            };
            found.push(remark(word, format!("The trigger {name} on {on} {how}, {so}."), advice));
        }
        if signup.table.rows_hidden {
            found.push(remark(
                "users_hidden",
                format!(
                    "Row level security hides users of {} from tenantd, so no sweep finds one that the trigger missed.",
                    signup.table.name
                ),
                format!("As an administrator: alter role {} bypassrls", quote::identifier(self.config.main.user())),
            ));
        }
    }

    fn find_in_bell(&self, found: &mut Vec<Remark>) {
        if let Some(holder) = self.fleet.bell.as_ref().filter(|holder| !holder.daemon) {
            let advice = match holder.pid {
                0 => "End it: select gid, owner from pg_prepared_xacts names the prepared transactions.".to_owned(),
                pid => format!("Let it end by itself, or as an administrator: select pg_terminate_backend({pid})"),
            };
            found.push(remark(
                "doorbell_taken",
                format!(
                    "Role {} ({}, pid {}) holds the doorbell's lock and is no daemon: every signup has to ring, which slows a crowd of them.",
                    quote::identifier(&holder.role),
                    holder.application_name,
                    holder.pid
                ),
                advice,
            ));
        }
        if self.fleet.notification_queue >= QUEUE_LOUD {
            found.push(remark(
                "notification_queue",
                format!(
                    "The server's queue of notifications is {:.0} % full: some session listens and does not read.",
                    self.fleet.notification_queue * 100.0
                ),
                "End the oldest that is idle in a transaction: select pid, usename, xact_start from pg_stat_activity \
                 where state like 'idle in%' order by xact_start",
            ));
        }
    }

    fn note_deleting(&self, notes: &mut Vec<Remark>) {
        let deleting = self.with("deleting", "held");
        if deleting > 0 {
            notes.push(remark(
                "deleting",
                format!("{} dropped, and in the time of grace.", counted_are(deleting, "tenant")),
                "A sweep drops each for good when that is over; `tenantd restore KEY` takes one back until then.",
            ));
        }
        if self.fleet.again > 0 {
            notes.push(remark(
                "signed_up_again",
                format!(
                    "{} signed up again while the tenant was being deleted.",
                    counted(self.fleet.again, "key")
                ),
                "They get new ones when the time of grace is over; `tenantd restore KEY` gives one its old tenant back now.",
            ));
        }
    }

    /// What is good to know and needs nobody now.
    pub(super) fn good_to_know(&self) -> Vec<Remark> {
        let mut notes = Vec::new();
        let (failing, strays, room) = (self.with_work("failing"), self.fleet.strays, self.room);
        let held = self.with("requested", "held");
        let kept = self.with("ready", "held");
        let max = i64::from(self.config.tenant.max);
        if held > 0 {
            notes.push(remark(
                "held",
                format!(
                    "{} held without a {}, from before tenantd.",
                    counted_are(held, "user"),
                    self.config.tenant.isolation
                ),
                "`tenantd setup --backfill` makes them due.",
            ));
        }
        self.note_deleting(&mut notes);
        if let Some(Ok(Reached { pending, .. })) = &self.main_schema
            && !pending.is_empty()
        {
            let lacking = counted(i64::try_from(pending.len()).unwrap_or(i64::MAX), "migration");
            notes.push(remark(
                "main_schema_behind",
                format!("The application's own schema lacks {lacking}."),
                "`tenantd migrate main` applies what it lacks.",
            ));
        }
        if kept > 0 {
            notes.push(remark(
                "kept",
                format!(
                    "{} held: sweeps leave {} alone.",
                    counted_are(kept, "tenant"),
                    if kept == 1 { "it" } else { "them" }
                ),
                "`tenantd release` lets a tenant go on.",
            ));
        }
        if failing > 0 {
            notes.push(remark(
                "failing",
                format!("{} failing.", counted_are(failing, "tenant")),
                "They are tried again by themselves.",
            ));
        }
        if strays > 0 {
            notes.push(remark(
                "strays",
                format!(
                    "{} left by work that was cut off.",
                    counted(strays, &format!("half-made {}", self.config.tenant.isolation))
                ),
                "The next sweep drops what is left.",
            ));
        }
        if room.tenants < max && room.tenants * 10 >= max * 8 {
            notes.push(remark(
                "tenant_max_near",
                format!("{} there and tenant.max is {max}.", counted_are(room.tenants, "tenant")),
                "Raise it in time, if the server has room for more.",
            ));
        }
        if self.fleet.daemons.is_empty() && self.waiting() == 0 {
            notes.push(remark(
                "no_daemon_needed",
                "No daemon is connected, and nobody waits.",
                "A signup would wait for the next start or sweep.",
            ));
        }
        notes
    }
}

fn waits(tenants: i64) -> String {
    format!("{} {}", counted(tenants, "tenant"), if tenants == 1 { "waits" } else { "wait" })
}

impl Remark {
    /// Its sentence and its list, without what could command a terminal.
    pub(super) fn lines(&self) -> Vec<String> {
        self.text.lines().map(line).collect()
    }
}

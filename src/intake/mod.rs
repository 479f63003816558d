//! The loop that takes due tenants and has them reconciled: when to look, when to sleep, when to arm the doorbell.
//!
//! Level-triggered: a ring, a tick, a retry that came due say only "look". How it sleeps:
//!
//! ```text
//!           nothing found, lock not had, for 20 ms
//!   Awake ─────────────────────────────────────────▶ Queued
//!    ▲ │ polls every 2 ms                              │
//!    │ └─────────── lock had at once ────▶ Armed ◀─────┘ lock granted: look once more
//!    └─── more than one, or all it could ────┘
//! ```
//!
//! A queued request makes every new signup ring already; only one that is older than the request can stay silent, so a queued daemon
//! looks four times a second until the lock is granted. Without a bell (Blind) it looks every tenth of a second. While nothing may be
//! taken, since the brakes are on, no template serves or the migration set is refused (Held), it gives the lock back, so that nobody rings in vain.
//!
//! No wake-up is lost: while awake it polls; once armed or queued it looks again before it sleeps; a ring that comes at any other time
//! is kept until the next sleep; and while lanes are what is missing, the end of each is waited for. A bell that failed in any way is given up
//! whole, its lock with it, and another is made.

mod looked;

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use self::looked::Looked;
use crate::brakes::Brakes;
use crate::conditions::{Conditions, MAIN_DATABASE};
use crate::error::{Error, Kind, Result};
use crate::heartbeat::Beat;
use crate::lanes::Lanes;
use crate::provision::{Context, fresh};
use crate::registry::claim::Most;
use crate::registry::doorbell::{Doorbell, Waited};
use crate::retry::WAIT;
use crate::telemetry::{Metrics, tell_once};
use crate::tenant::State;

const AWAKE_POLL: Duration = Duration::from_millis(2);
const AWAKE_FOR: Duration = Duration::from_millis(20);
/// While every lane works, a signup may still find a spare.
const FULL_POLL: Duration = Duration::from_millis(20);
const QUEUED_POLL: Duration = Duration::from_millis(250);
const BLIND_POLL: Duration = Duration::from_millis(100);
/// As often as the brakes' count may be read again.
const HELD_POLL: Duration = Duration::from_secs(1);
/// The loop turns at least this often, so that the watchdog sees it alive.
const TURN: Duration = Duration::from_secs(5);

/// A wait for the bell's lock. It must be carried to its end: a lock that was granted unseen would stay.
type Wait = Pin<Box<dyn Future<Output = Result<Waited>> + Send>>;

/// How the loop sleeps; see the drawing above.
enum Mode {
    Blind,
    Awake {
        found: Instant,
    },
    /// `busy`: more than one tenant was found meanwhile.
    Queued {
        wait: Wait,
        poll: Duration,
        busy: bool,
    },
    Armed,
    /// Nothing may be taken, so nobody shall ring.
    Held,
}

/// Takes due tenants for as long as the daemon runs.
pub struct Intake {
    context: watch::Receiver<Arc<Context>>,
    offered: watch::Receiver<Option<Arc<Doorbell>>>,
    /// The bell that `mode` is about.
    bell: Option<Arc<Doorbell>>,
    lanes: Lanes,
    brakes: Brakes,
    conditions: Conditions,
    metrics: Metrics,
    beat: Beat,
    stop: CancellationToken,
    mode: Mode,
    /// Failures of the server in a row that were waited for already.
    waited_for: u32,
    /// When the registry was last looked at.
    looked: Instant,
}

impl Intake {
    /// An intake that claims for `lanes` and sleeps by the doorbell that is `offered`, when one is.
    #[must_use]
    pub fn new(
        context: watch::Receiver<Arc<Context>>,
        offered: watch::Receiver<Option<Arc<Doorbell>>>,
        lanes: Lanes,
        conditions: Conditions,
        metrics: Metrics,
        beat: Beat,
        stop: CancellationToken,
    ) -> Self {
        let brakes = Brakes::new(conditions.clone(), metrics.clone());
        Intake {
            context,
            offered,
            bell: None,
            lanes,
            brakes,
            conditions,
            metrics,
            beat,
            stop,
            mode: Mode::Blind,
            waited_for: 0,
            looked: Instant::now(),
        }
    }

    /// Looks and sleeps until stopped. Failures of the main database are told once and waited for.
    pub async fn run(mut self) {
        let mut unreachable: u32 = 0;
        while !self.stop.is_cancelled() {
            self.beat.turned().await;
            self.take_new_bell();
            self.wait_for_server().await;
            match self.look().await {
                Ok(looked) => {
                    if unreachable > 0 {
                        tracing::info!("the registry answers again");
                        self.conditions.clear(MAIN_DATABASE);
                    }
                    unreachable = 0;
                    if self.change_mode(looked).await {
                        self.sleep(looked).await;
                    }
                }
                Err(error) => {
                    unreachable += 1;
                    // A daemon that ends closes its connections under whoever still uses them.
                    if unreachable == 1 && !self.stop.is_cancelled() {
                        tell_once(
                            &error,
                            "the registry cannot be read; signups go on, and their tenants come when it can",
                        );
                    }
                    self.conditions.set(MAIN_DATABASE, error.chain());
                    // Signups are on another host by now, or will be; a bell on this one would never ring.
                    if error.kind() == Kind::ReadOnly {
                        self.context.borrow().registry.leave_host();
                        self.give_bell_up(&error);
                    }
                    self.pause(WAIT.delay(unreachable)).await;
                }
            }
        }
        if matches!(self.mode, Mode::Armed)
            && let Some(bell) = self.bell
            && let Err(error) = bell.disarm().await
        {
            tracing::debug!(error = error.chain(), "the doorbell's lock ends with its connection");
        }
    }

    fn take_new_bell(&mut self) {
        if self.offered.has_changed().unwrap_or(false) {
            self.bell.clone_from(&self.offered.borrow_and_update());
            self.mode = if self.bell.is_some() { Mode::Awake { found: Instant::now() } } else { Mode::Blind };
        }
        self.metrics.bell_armed(matches!(self.mode, Mode::Armed));
    }

    /// While the server fails every tenant, the daemon waits as a whole, longer each time, and then tries a single tenant.
    async fn wait_for_server(&mut self) {
        let failures = self.lanes.server_failures();
        if failures > self.waited_for {
            self.pause(WAIT.delay(failures)).await;
        }
        self.waited_for = failures;
    }

    /// One look at the registry: claims what is due, as much as there are spares at hand and free lanes, and has it done.
    async fn look(&mut self) -> Result<Looked> {
        let context = self.context.borrow_and_update().clone();
        self.looked = Instant::now();
        if !context.relations.refused.is_empty() {
            return Ok(Looked::Held);
        }
        context.registry.release_owed().await?;
        let most = self.most(&context).await?;
        if most.lanes == 0 && most.by_spares == 0 {
            return Ok(Looked::Full);
        }
        let claims = context.registry.claim_due(most, context.config.work.lease).await?;
        self.metrics.looked();
        let claimed = claims.len();
        if claimed == 0 {
            self.brakes.settle(&context).await?;
            return Ok(match most {
                Most { lanes: 0, .. } => Looked::Full,
                Most { room: 0, .. } | Most { making: 0, .. } => Looked::Held,
                _ => Looked::Nothing,
            });
        }
        let signups = claims.iter().filter(|claim| claim.state == State::Requested).count();
        context.supply.signed_up(signups);
        let left = if most.by_spares > 0 {
            let (ended, left) = fresh::hand_over(&context, claims).await;
            for ended in &ended {
                self.lanes.ended(ended);
            }
            left
        } else {
            claims
        };
        self.lanes.start_all(&context, left).await;
        Ok(Looked::after(claimed, most, self.lanes.free()))
    }

    /// How many tenants may be taken now. While the server fails, one at a time is tried, on the long way.
    async fn most(&mut self, context: &Context) -> Result<Most> {
        let lanes = self.lanes.free();
        let room = self.brakes.room(context).await?;
        let making = if context.supply.is_served() { lanes } else { 0 };
        let by_spares = if room.near || self.lanes.server_failures() > 0 { 0 } else { fresh::AT_ONCE };
        Ok(Most { room: usize::try_from(room.tenants).unwrap_or(0), making, by_spares, lanes })
    }

    /// Moves to the mode that `looked` calls for. False: look once more before sleeping.
    async fn change_mode(&mut self, looked: Looked) -> bool {
        match self.try_change_mode(looked).await {
            Ok(sleep) => sleep,
            Err(error) => {
                self.give_bell_up(&error);
                true
            }
        }
    }

    async fn try_change_mode(&mut self, looked: Looked) -> Result<bool> {
        let Some(bell) = self.bell.clone() else { return Ok(true) };
        match (&mut self.mode, looked) {
            (Mode::Armed, Looked::Full | Looked::Several) => self.disarm().await?,
            (Mode::Queued { busy, .. }, Looked::Held | Looked::Full | Looked::Several) => *busy = true,
            (_, Looked::Held) => {
                self.disarm().await?;
                self.mode = Mode::Held;
            }
            (Mode::Held, _) => self.mode = Mode::Awake { found: Instant::now() },
            (Mode::Awake { found }, Looked::Nothing) => {
                let quiet = found.elapsed() > AWAKE_FOR;
                if bell.try_arm().await? {
                    self.mode = Mode::Armed;
                } else if quiet {
                    self.mode = self.queue(bell).await?;
                }
                // Armed or queued, it looks once more before it sleeps.
                return Ok(matches!(self.mode, Mode::Awake { .. }));
            }
            (Mode::Awake { found }, _) => *found = Instant::now(),
            _ => {}
        }
        Ok(true)
    }

    /// Lets signups run without ringing: either they are found without it, or nothing can be done for them now.
    async fn disarm(&mut self) -> Result<()> {
        if let (Mode::Armed, Some(bell)) = (&self.mode, &self.bell) {
            bell.disarm().await?;
            self.mode = Mode::Awake { found: Instant::now() };
        }
        Ok(())
    }

    /// Whether it holds the lock or waits for it, nobody knows any more: with the bell's connections all of it goes.
    fn give_bell_up(&mut self, error: &Error) {
        tracing::debug!(error = error.chain(), "the doorbell broke; polling until there is another");
        if let Some(bell) = self.bell.take() {
            bell.give_up();
        }
        self.mode = Mode::Blind;
    }

    /// Queues for the lock. Behind another that holds it every signup rings, so there is nothing to look for meanwhile.
    async fn queue(&mut self, bell: Arc<Doorbell>) -> Result<Mode> {
        let context = self.context.borrow().clone();
        let poll = context.config.signup.poll;
        if bell.is_held().await? {
            return Ok(Mode::Queued { wait: Box::pin(async move { bell.wait_behind().await }), poll, busy: false });
        }
        let mut wait: Wait = Box::pin(async move { bell.wait_to_arm().await });
        let held = tokio::select! {
            // The request goes out before the question: from then on every signup rings.
            biased;
            waited = &mut wait => return Ok(match waited? {
                Waited::Armed => Mode::Armed,
                Waited::StillTaken => Mode::Awake { found: Instant::now() },
            }),
            holder = context.registry.bell_holder() => holder.is_ok_and(|holder| holder.is_some()),
        };
        Ok(Mode::Queued { wait, poll: if held { poll } else { QUEUED_POLL.min(poll) }, busy: false })
    }

    /// Sleeps as the mode says, until there is a reason to look.
    async fn sleep(&mut self, looked: Looked) {
        let full = looked == Looked::Full;
        let poll = match &self.mode {
            Mode::Blind => BLIND_POLL.min(self.context.borrow().config.signup.poll),
            Mode::Awake { .. } if full => FULL_POLL,
            Mode::Awake { .. } => AWAKE_POLL,
            Mode::Queued { .. } if looked == Looked::Several => AWAKE_POLL,
            Mode::Queued { poll, .. } => *poll,
            Mode::Armed => self.context.borrow().config.signup.poll,
            Mode::Held => HELD_POLL.min(self.context.borrow().config.signup.poll),
        };
        let until = tokio::time::Instant::now() + poll;
        let supply = self.context.borrow().supply.clone();
        while tokio::time::Instant::now() < until && !self.stop.is_cancelled() {
            self.beat.turned().await;
            let turn = until.min(tokio::time::Instant::now() + TURN);
            tokio::select! {
                () = tokio::time::sleep_until(turn) => continue,
                () = self.stop.cancelled() => {}
                // Where no bell is to come there is nobody to offer one.
                Ok(()) = self.offered.changed() => self.offered.mark_changed(),
                () = self.lanes.freed(), if full => {}
                () = supply.made() => {}
                () = rung(self.bell.as_deref()) => self.answer().await,
                waited = granted(&mut self.mode) => self.end_wait(waited).await,
            }
            return;
        }
    }

    /// Anybody may ring as often as they like; that makes us look no more often than a busy daemon does.
    async fn answer(&mut self) {
        self.metrics.rung();
        tokio::time::sleep_until((self.looked + AWAKE_POLL).into()).await;
    }

    /// The lock was granted, or its slice of waiting is over. After a slice in which signups came in numbers they shall not ring any more.
    async fn end_wait(&mut self, waited: Result<Waited>) {
        let burst = matches!(self.mode, Mode::Queued { busy: true, .. });
        let mode = match (waited, self.bell.clone()) {
            (Ok(Waited::Armed), _) => Ok(Mode::Armed),
            (Ok(Waited::StillTaken), Some(bell)) if !burst => self.queue(bell).await,
            (Ok(Waited::StillTaken), _) => Ok(Mode::Awake { found: Instant::now() }),
            (Err(error), _) => Err(error),
        };
        match mode {
            Ok(mode) => self.mode = mode,
            Err(error) => self.give_bell_up(&error),
        }
    }

    /// Waits for what fails to work again. Until then a ring would only cost the signup that rings.
    async fn pause(&mut self, length: Duration) {
        if let Err(error) = self.disarm().await {
            self.give_bell_up(&error);
        }
        let until = tokio::time::Instant::now() + length;
        while tokio::time::Instant::now() < until && !self.stop.is_cancelled() {
            self.beat.turned().await;
            tokio::select! {
                () = tokio::time::sleep_until(until.min(tokio::time::Instant::now() + TURN)) => {}
                () = self.stop.cancelled() => {}
            }
        }
    }
}

async fn rung(bell: Option<&Doorbell>) {
    match bell {
        Some(bell) => bell.rung().await,
        None => std::future::pending().await,
    }
}

async fn granted(mode: &mut Mode) -> Result<Waited> {
    match mode {
        Mode::Queued { wait, .. } => wait.await,
        _ => std::future::pending().await,
    }
}

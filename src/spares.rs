//! How many spares are wanted, and what the keeper does next. Pure: what is known goes in, one action comes out.

use std::time::{Duration, Instant};

use crate::config;
use crate::registry::spares::{Spare, Standing};
use crate::registry::templates::Template;

/// Half of what is known of the rate of signups is forgotten in this time.
const HALF_LIFE: Duration = Duration::from_mins(1);

/// The shortest time over which a rate is taken.
const SHORTEST: Duration = Duration::from_secs(1);

/// Spares are made at most this part of the time, above the least that are always wanted: each costs every commit of the server a little.
pub const SHARE: u32 = 5;

/// An older spare is replaced: its transaction ids age with its template's, and nothing but a rare vacuum would come to it.
const OLD: Duration = Duration::from_hours(24);

/// A template of a set that is neither ours nor behind it goes after this: another tenantd may carry its set, and would build it anew.
const OUT_OF_USE: Duration = Duration::from_hours(24);

/// What templates and spares should be, as this tenantd carries it.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// The id of the migration set.
    pub migration_set: String,
    /// The fingerprint of owner, grants and extensions.
    pub shape: String,
    /// Ids of sets that are newer.
    pub newer: Vec<String>,
    /// Ids of sets that are behind.
    pub behind: Vec<String>,
    /// `[spares]`
    pub settings: config::Spares,
}

impl Wanted {
    /// The template for this very set, if it serves.
    #[must_use]
    pub fn current<'a>(&self, templates: &'a [Template]) -> Option<&'a Template> {
        templates.iter().find(|template| template.serves() && self.is_for(template))
    }

    /// Whether nothing has to be built: there is a template of our set, or of a newer one.
    #[must_use]
    pub fn is_built(&self, templates: &[Template]) -> bool {
        let newer = |template: &Template| template.serves() && self.newer.contains(&template.migration_set);
        self.current(templates).is_some() || templates.iter().any(newer)
    }

    /// The template that clones are made of now: that of a newer set, ours, or the last good one. A set whose canaries have not passed yet, or
    /// that was given up, comes last.
    #[must_use]
    pub fn serving<'a>(&self, templates: &'a [Template]) -> Option<&'a Template> {
        let serving = templates.iter().filter(|template| template.serves());
        let of = |open: bool| {
            let mut serving = serving.clone().filter(move |template| template.open == open);
            let newer = serving.clone().find(|template| self.newer.contains(&template.migration_set));
            newer.or_else(|| serving.clone().find(|template| self.is_for(template))).or_else(|| serving.next())
        };
        of(true).or_else(|| of(false))
    }

    /// The template that is under construction for this set.
    #[must_use]
    pub fn unfinished<'a>(&self, templates: &'a [Template]) -> Option<&'a Template> {
        templates.iter().find(|template| self.is_for(template) && !template.retired && template.completed.is_none())
    }

    /// A template that nobody needs any more: retired, not as it was left, or of a set behind ours.
    #[must_use]
    pub fn unneeded<'a>(&self, templates: &'a [Template]) -> Option<&'a Template> {
        // One whose making was begun anew under another name holds nothing that could serve.
        let abandoned = |template: &&Template| template.retired && template.completed.is_none();
        // Until the canaries of ours have passed, the last good one serves.
        let Some(ours) = self.current(templates).filter(|ours| ours.open) else {
            return templates.iter().find(abandoned);
        };
        let out_of_use = |template: &Template| {
            let old = template.age > OUT_OF_USE && !self.newer.contains(&template.migration_set);
            let broken = template.completed.is_some() && !template.whole;
            template.retired || broken || old || self.behind.contains(&template.migration_set)
        };
        templates.iter().find(|template| template.name != ours.name && template.spares == 0 && out_of_use(template))
    }

    fn is_for(&self, template: &Template) -> bool {
        template.migration_set == self.migration_set && template.shape == self.shape
    }
}

/// What the keeper knows when it decides.
#[derive(Debug, Clone)]
pub struct Stock {
    /// Every template, the one completed last first.
    pub templates: Vec<Template>,
    /// The spares for anyone, the oldest first.
    pub spares: Vec<Spare>,
}

/// What the keeper does next.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// Build the template of the newest set, from this one that was begun, or anew.
    Build(Option<Template>),
    /// Make a spare of this template. `urgent`: so few are left that it cannot wait for a quiet moment.
    Make {
        /// The template.
        template: Template,
        /// Whether it cannot wait.
        urgent: bool,
    },
    /// Drop this spare.
    Discard(String),
    /// Drop this template.
    Drop(Template),
}

/// The action that is called for; `None`: all is as it should be. `target`: how many spares are wanted.
#[must_use]
pub fn next(wanted: &Wanted, stock: &Stock, target: usize) -> Option<Action> {
    let Stock { templates, spares } = stock;
    // A newer tenantd is here: templates and spares are its affair, once new tenants get its set.
    if templates
        .iter()
        .any(|template| template.serves() && template.open && wanted.newer.contains(&template.migration_set))
    {
        return None;
    }
    if wanted.current(templates).is_none() {
        let unfinished = wanted.unfinished(templates);
        if unfinished.is_none_or(|template| template.due_in.is_zero()) {
            return Some(Action::Build(unfinished.cloned()));
        }
    }
    let discard = |spare: &Spare| Action::Discard(spare.name.clone());
    let serving = wanted.serving(templates);
    let is_fresh = |spare: &&Spare| serving.is_some_and(|serving| serving.name == spare.template);
    let at_hand = spares.iter().filter(|spare| spare.standing == Standing::AtHand);
    let ready = at_hand.clone().filter(is_fresh).count();
    let busy = spares.iter().filter(|spare| spare.standing == Standing::Busy).filter(is_fresh).count();
    let least = usize::try_from(wanted.settings.min).unwrap_or(usize::MAX);
    let urgent = ready.saturating_mul(2) < least;
    let make =
        serving.filter(|_| ready + busy < target).map(|serving| Action::Make { template: serving.clone(), urgent });
    // What is dropped waits for a quiet moment, and what is urgent must not wait with it.
    if make.is_some() && urgent {
        return make;
    }
    if let Some(broken) = spares.iter().find(|spare| spare.standing == Standing::Broken) {
        return Some(discard(broken));
    }
    if make.is_some() {
        return make;
    }
    if let Some(stale) = at_hand.clone().find(|spare| !is_fresh(spare)) {
        return Some(discard(stale));
    }
    let most = usize::try_from(wanted.settings.max).unwrap_or(usize::MAX);
    if let Some(oldest) = at_hand.clone().next().filter(|oldest| ready > most || oldest.age > OLD) {
        return Some(discard(oldest));
    }
    wanted.unneeded(templates).cloned().map(Action::Drop)
}

/// How fast signups come, as far as spares are concerned: the fastest of late, half forgotten each minute.
#[derive(Debug, Clone, Copy)]
pub struct Demand {
    /// Signups a second.
    rate: f64,
    at: Instant,
    signups: u64,
}

impl Demand {
    /// None so far; `signups` have been counted until `now`.
    #[must_use]
    pub fn new(now: Instant, signups: u64) -> Self {
        Demand { rate: 0.0, at: now, signups }
    }

    /// Takes note that `signups` have been counted in all until `now`.
    #[expect(clippy::cast_precision_loss, reason = "so many signups do not come between two looks")]
    pub fn note(&mut self, now: Instant, signups: u64) {
        let elapsed = now.saturating_duration_since(self.at);
        let kept = 0.5_f64.powf(elapsed.as_secs_f64() / HALF_LIFE.as_secs_f64());
        let rate = signups.saturating_sub(self.signups) as f64 / elapsed.max(SHORTEST).as_secs_f64();
        *self = Demand { rate: rate.max(self.rate * kept), at: now, signups };
    }

    /// How many spares are wanted where making one takes `clone`: as many as signups come while one is made at its slow pace.
    #[must_use]
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "not negative, and bounded by max")]
    pub fn target(&self, settings: config::Spares, clone: Duration) -> usize {
        let wanted = (self.rate * clone.as_secs_f64() * f64::from(SHARE)).ceil();
        wanted.clamp(f64::from(settings.min), f64::from(settings.max)) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted() -> Wanted {
        Wanted {
            migration_set: "ours".to_owned(),
            shape: "shape".to_owned(),
            newer: vec!["newer".to_owned()],
            behind: vec!["behind".to_owned()],
            settings: config::Spares { min: 2, max: 4 },
        }
    }

    /// A template in service; its name is its set's.
    fn template(set: &str) -> Template {
        Template {
            name: set.to_owned(),
            migration_set: set.to_owned(),
            shape: "shape".to_owned(),
            bytes: 7_000_000,
            completed: Some(Duration::from_mins(1)),
            age: Duration::from_mins(2),
            open: true,
            retired: false,
            whole: true,
            there: true,
            begun: true,
            spares: 0,
            failures: 0,
            due_in: Duration::ZERO,
            error: None,
        }
    }

    fn spare(name: &str, template: &str, standing: Standing) -> Spare {
        Spare { name: name.to_owned(), template: template.to_owned(), standing, age: Duration::from_mins(1) }
    }

    fn at_hand(template: &str, names: &[&str]) -> Vec<Spare> {
        names.iter().map(|name| spare(name, template, Standing::AtHand)).collect()
    }

    fn told(templates: &[Template], spares: &[Spare], target: usize) -> String {
        match next(&wanted(), &Stock { templates: templates.to_vec(), spares: spares.to_vec() }, target) {
            None => "nothing".to_owned(),
            Some(Action::Build(begun)) => format!("build {}", begun.map_or("anew".to_owned(), |one| one.name)),
            Some(Action::Make { template, urgent }) => {
                format!("make of {}{}", template.name, if urgent { " now" } else { "" })
            }
            Some(Action::Discard(name)) => format!("discard {name}"),
            Some(Action::Drop(template)) => format!("drop {}", template.name),
        }
    }

    #[test]
    fn the_template_comes_first() {
        let begun = Template { completed: None, whole: false, name: "begun".to_owned(), ..template("ours") };
        let failed = Template { due_in: Duration::from_secs(3), ..begun.clone() };
        assert_eq!(told(&[], &[], 2), "build anew");
        assert_eq!(told(std::slice::from_ref(&begun), &[], 2), "build begun");
        assert_eq!(told(std::slice::from_ref(&failed), &[], 2), "nothing", "later");
        assert_eq!(told(&[template("behind"), begun], &at_hand("behind", &["a", "b"]), 2), "build begun");
        let good = [template("behind"), failed];
        assert_eq!(told(&good, &at_hand("behind", &["a"]), 2), "make of behind", "the last good one serves on");
        assert_eq!(told(&good, &at_hand("behind", &["a", "b"]), 2), "nothing");
        let other = Template { shape: "other".to_owned(), ..template("ours") };
        assert_eq!(told(&[other], &[], 2), "build anew", "other owner, grants or extensions");
    }

    #[test]
    fn what_is_not_as_it_was_left_is_replaced() {
        let broken = Template { whole: false, ..template("ours") };
        assert_eq!(told(std::slice::from_ref(&broken), &[], 2), "build anew");
        let fresh = Template { name: "fresh".to_owned(), ..template("ours") };
        assert_eq!(told(&[fresh.clone(), broken], &at_hand("fresh", &["a", "b"]), 2), "drop ours");
        let retired = Template { retired: true, ..template("ours") };
        assert_eq!(told(std::slice::from_ref(&retired), &[], 2), "build anew");
        let needed = Template { spares: 1, ..retired };
        assert_eq!(told(&[fresh, needed], &at_hand("fresh", &["a", "b"]), 2), "nothing", "it has a clone yet");
        let spares = [at_hand("ours", &["a"]), vec![spare("x", "ours", Standing::Broken)]].concat();
        assert_eq!(told(&[template("ours")], &spares, 2), "discard x");
        let urgent = [spare("x", "ours", Standing::Broken)];
        assert_eq!(told(&[template("ours")], &urgent, 2), "make of ours now", "a crowd leaves no moment to drop it in");
        let abandoned = Template { completed: None, retired: true, name: "abandoned".to_owned(), ..template("ours") };
        let failed = Template { completed: None, due_in: Duration::from_secs(3), ..template("ours") };
        assert_eq!(told(&[failed, abandoned], &[], 2), "drop abandoned", "before another serves");
        let overtaken = Template { completed: None, ..template("behind") };
        let ready = at_hand("ours", &["a", "b"]);
        assert_eq!(told(&[template("ours"), overtaken], &ready, 2), "drop behind", "nobody completes it any more");
        let foreign = Template { completed: None, ..template("another's") };
        assert_eq!(told(&[template("ours"), foreign.clone()], &ready, 2), "nothing", "another may carry its set");
        let forgotten = Template { age: Duration::from_hours(25), ..foreign };
        assert_eq!(told(&[template("ours"), forgotten], &ready, 2), "drop another's");
    }

    #[test]
    fn spares_follow_the_target() {
        let ours = [template("ours")];
        assert_eq!(told(&ours, &[], 2), "make of ours now");
        assert_eq!(told(&ours, &at_hand("ours", &["a"]), 2), "make of ours", "half of the least are there");
        assert_eq!(told(&ours, &at_hand("ours", &["a", "b"]), 2), "nothing");
        assert_eq!(told(&ours, &at_hand("ours", &["a", "b"]), 3), "make of ours");
        let busy = [at_hand("ours", &["a"]), vec![spare("x", "ours", Standing::Busy)]].concat();
        assert_eq!(told(&ours, &busy, 2), "nothing", "it comes back");
        assert_eq!(told(&ours, &at_hand("ours", &["a", "b", "c", "d"]), 2), "nothing", "no work for its own sake");
        assert_eq!(told(&ours, &at_hand("ours", &["a", "b", "c", "d", "e"]), 2), "discard a");
        let old = Spare { age: Duration::from_hours(25), ..spare("old", "ours", Standing::AtHand) };
        assert_eq!(told(&ours, &[vec![old], at_hand("ours", &["a"])].concat(), 2), "discard old");
    }

    #[test]
    fn another_set_replaces_spares_and_template_one_by_one() {
        let both = [template("ours"), template("behind")];
        let stale = at_hand("behind", &["x", "y"]);
        assert_eq!(told(&both, &stale, 2), "make of ours now");
        assert_eq!(told(&both, &[stale.clone(), at_hand("ours", &["a", "b"])].concat(), 2), "discard x");
        assert_eq!(told(&both, &at_hand("ours", &["a", "b"]), 2), "drop behind");
        let diverged = [template("ours"), template("diverged")];
        assert_eq!(told(&diverged, &at_hand("ours", &["a", "b"]), 2), "nothing", "another may carry it");
        let long_ago = Template { age: Duration::from_hours(25), ..template("diverged") };
        assert_eq!(told(&[template("ours"), long_ago], &at_hand("ours", &["a", "b"]), 2), "drop diverged");
    }

    #[test]
    fn a_set_whose_canaries_have_not_passed_waits() {
        let closed = Template { open: false, ..template("ours") };
        let both = [closed.clone(), template("behind")];
        assert_eq!(wanted().serving(&both).unwrap().name, "behind", "the last good one");
        assert_eq!(told(&both, &at_hand("behind", &["a"]), 2), "make of behind");
        assert_eq!(told(&both, &at_hand("behind", &["a", "b"]), 2), "nothing", "and is kept");
        assert!(wanted().is_built(&both));
        assert_eq!(wanted().serving(&[closed]).unwrap().name, "ours", "better than none");
    }

    #[test]
    fn what_a_newer_tenantd_keeps_is_left_to_it() {
        let templates = [template("newer"), template("behind")];
        assert_eq!(told(&templates, &[], 2), "nothing");
        assert_eq!(wanted().serving(&templates).unwrap().name, "newer");
        assert_eq!(wanted().serving(&[template("behind"), template("ours")]).unwrap().name, "ours");
        let closed = [Template { open: false, ..template("newer") }, template("ours")];
        assert_eq!(
            told(&closed, &at_hand("ours", &["a"]), 2),
            "make of ours",
            "its canaries have not passed, or never will"
        );
    }

    #[test]
    fn the_target_follows_the_rate_and_forgets_it() {
        let (start, second) = (Instant::now(), Duration::from_secs(1));
        let settings = config::Spares { min: 2, max: 32 };
        let clone = Duration::from_millis(50);
        let mut demand = Demand::new(start, 100);
        assert_eq!(demand.target(settings, clone), 2, "the least");
        demand.note(start + second, 140);
        assert_eq!(demand.target(settings, clone), 10, "40 a second, and one is made in a quarter second");
        demand.note(start + 61 * second, 140);
        assert_eq!(demand.target(settings, clone), 5, "half is forgotten in a minute");
        demand.note(start + 62 * second, 1140);
        assert_eq!(demand.target(settings, clone), 32, "the most");
        demand.note(start + 3600 * second, 1140);
        assert_eq!(demand.target(settings, clone), 2);
    }

    #[test]
    fn a_burst_within_a_moment_is_taken_over_a_second() {
        let start = Instant::now();
        let mut demand = Demand::new(start, 0);
        demand.note(start + Duration::from_millis(1), 20);
        assert_eq!(demand.target(config::Spares { min: 0, max: 1000 }, Duration::from_secs(1)), 100);
    }
}

//! `[rollout]`: how a new migration set goes through the fleet.

use std::fmt;
use std::str::FromStr;

/// `[rollout]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rollout {
    /// So many tenants, of different size, get a new set before all others.
    pub canary: usize,
    /// How far each wave goes, counted over all tenants that were behind at the beginning; the last one to all of them.
    pub waves: Vec<Share>,
    /// More than so many tenants, and more than three, that fail alike in one run pause it.
    pub max_failures: Share,
}

/// A number of tenants, or a part of all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Share {
    /// So many.
    Number(usize),
    /// So many in a hundred.
    Percent(u8),
}

impl Share {
    /// Of `all`, rounded up.
    #[must_use]
    pub fn of(self, all: usize) -> usize {
        match self {
            Share::Number(number) => number.min(all),
            Share::Percent(percent) => (all * usize::from(percent)).div_ceil(100),
        }
    }
}

impl FromStr for Share {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let share = match text.strip_suffix('%') {
            Some(percent) => percent.parse().ok().filter(|percent| *percent <= 100).map(Share::Percent),
            None => text.parse().ok().map(Share::Number),
        };
        share.ok_or_else(|| {
            format!("{text:?} is neither a number of tenants, as in \"20\", nor a part of all, as in \"10%\"")
        })
    }
}

impl fmt::Display for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Share::Number(number) => write!(f, "{number}"),
            Share::Percent(percent) => write!(f, "{percent}%"),
        }
    }
}

/// The settings as they are meant; or the key that is wrong, and why.
pub(super) fn rollout(canary: u32, waves: &[String], max_failures: &str) -> Result<Rollout, (&'static str, String)> {
    let of_waves = |reason| ("rollout.waves", reason);
    let waves: Vec<Share> = waves.iter().map(|wave| wave.parse().map_err(of_waves)).collect::<Result<_, _>>()?;
    if waves.last() != Some(&Share::Percent(100)) {
        return Err(of_waves("the last wave is \"100%\": a rollout ends with all tenants".to_owned()));
    }
    let max_failures = max_failures.parse().map_err(|reason| ("rollout.max_failures", reason))?;
    Ok(Rollout { canary: usize::try_from(canary).unwrap_or(usize::MAX), waves, max_failures })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_rounded_up_and_are_never_more_than_all() {
        assert_eq!("10%".parse::<Share>().unwrap().of(25), 3);
        assert_eq!("100%".parse::<Share>().unwrap().of(25), 25);
        assert_eq!("0%".parse::<Share>().unwrap().of(25), 0);
        assert_eq!("40".parse::<Share>().unwrap().of(25), 25);
        for text in ["", "101%", "-1", "ten", "1.5%", "%"] {
            assert!(text.parse::<Share>().unwrap_err().contains("neither"), "{text}");
        }
    }

    #[test]
    fn a_rollout_goes_to_all_in_the_end() {
        let waves = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
        assert_eq!(rollout(3, &waves(&["10%", "100%"]), "2%").unwrap().waves.len(), 2);
        assert_eq!(rollout(3, &waves(&["10%"]), "2%").unwrap_err().0, "rollout.waves");
        assert_eq!(rollout(3, &waves(&[]), "2%").unwrap_err().0, "rollout.waves");
        assert_eq!(rollout(3, &waves(&["x", "100%"]), "2%").unwrap_err().0, "rollout.waves");
        assert_eq!(rollout(3, &waves(&["100%"]), "some").unwrap_err().0, "rollout.max_failures");
    }
}

//! What a line of the design's measures comes to: ours, the yardstick, what is to be reached.

use crate::figures::{Figure, Samples};

/// What samples count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unit {
    /// Of time.
    Milliseconds,
    /// Tenants or signups.
    PerSecond,
    /// Of memory, 10^6 bytes.
    Megabytes,
}

/// What is to be reached.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Reach {
    /// Our own value.
    AtMost(f64),
    /// Ours by the yardstick's.
    TimesAtMost(f64),
    /// Ours by the yardstick's.
    TimesAtLeast(f64),
}

/// One row of the table.
#[derive(Debug, Clone)]
pub(crate) struct Measure {
    /// The line of the design's table, from 1 on.
    pub(crate) line: u8,
    /// What was measured, with the statistic.
    pub(crate) what: String,
    /// What the samples count.
    pub(crate) unit: Unit,
    /// Which of the samples counts: 50 is the median.
    pub(crate) percent: usize,
    /// tenantd's.
    pub(crate) ours: Samples,
    /// What it is held against, by name.
    pub(crate) yardstick: Option<(String, Samples)>,
    /// `None`: printed for comparison only.
    pub(crate) reach: Option<Reach>,
}

impl Measure {
    /// The median of `ours`, nothing beside it.
    pub(crate) fn new(line: u8, what: impl Into<String>, unit: Unit, ours: &Samples) -> Self {
        let (what, ours) = (what.into(), ours.clone());
        Measure { line, what, unit, percent: 50, ours, yardstick: None, reach: None }
    }

    /// With another statistic than the median.
    pub(crate) fn at(mut self, percent: usize) -> Self {
        self.percent = percent;
        self
    }

    /// With a yardstick.
    pub(crate) fn beside(mut self, name: impl Into<String>, samples: &Samples) -> Self {
        self.yardstick = Some((name.into(), samples.clone()));
        self
    }

    /// With what is to be reached.
    pub(crate) fn reach(mut self, reach: Reach) -> Self {
        self.reach = Some(reach);
        self
    }

    /// Our value.
    pub(crate) fn value(&self) -> Figure {
        self.ours.quantile(self.percent)
    }

    /// The yardstick's value.
    pub(crate) fn yardstick_value(&self) -> Option<Figure> {
        self.yardstick.as_ref().map(|(_, samples)| samples.quantile(self.percent))
    }

    /// Ours by the yardstick's.
    pub(crate) fn ratio(&self) -> Option<Figure> {
        self.yardstick.as_ref().map(|(_, samples)| self.ours.ratio(samples, self.percent))
    }

    /// Whether it is reached; `None` where nothing is to be.
    pub(crate) fn reached(&self) -> Option<bool> {
        let ratio = || self.ratio().map_or(f64::NAN, |ratio| ratio.value);
        self.reach.map(|reach| match reach {
            Reach::AtMost(most) => self.value().value <= most,
            Reach::TimesAtMost(most) => ratio() <= most,
            Reach::TimesAtLeast(least) => ratio() >= least,
        })
    }
}

/// How something grows with the number of tenants.
#[derive(Debug, Clone)]
pub(crate) struct Curve {
    /// What grows, in milliseconds.
    pub(crate) name: String,
    /// Tenants on the server, and what it cost then.
    pub(crate) points: Vec<(usize, Figure)>,
}

/// A part of the floor.
#[derive(Debug, Clone)]
pub(crate) struct Part {
    /// What is done.
    pub(crate) name: String,
    /// In milliseconds.
    pub(crate) took: Figure,
}

/// All that was measured.
#[derive(Debug, Default)]
pub(crate) struct Results {
    /// Rows of the table.
    pub(crate) measures: Vec<Measure>,
    /// How cost grows.
    pub(crate) curves: Vec<Curve>,
    /// What the floor is made of.
    pub(crate) parts: Vec<Part>,
    /// Lines that could not be measured, and why.
    pub(crate) missing: Vec<(String, String)>,
}

impl Results {
    /// Takes in what a group of lines measured.
    pub(crate) fn extend(&mut self, other: Results) {
        self.measures.extend(other.measures);
        self.measures.sort_by_key(|measure| measure.line);
        self.curves.extend(other.curves);
        self.parts.extend(other.parts);
        self.missing.extend(other.missing);
    }
}

impl From<Vec<Measure>> for Results {
    fn from(measures: Vec<Measure>) -> Self {
        Results { measures, ..Results::default() }
    }
}

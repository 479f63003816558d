//! Samples, round by round, and the figures that are read off them.

/// What was measured, each round by itself: rounds of subject and yardstick alternate, so that a machine that gets slower is slower for both.
#[derive(Debug, Clone, Default)]
pub(crate) struct Samples(Vec<Vec<f64>>);

/// A value with the spread of the rounds around it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Figure {
    /// Over all samples.
    pub(crate) value: f64,
    /// The round with the lowest.
    pub(crate) low: f64,
    /// The round with the highest.
    pub(crate) high: f64,
}

impl Samples {
    /// One more round.
    pub(crate) fn round(&mut self, samples: Vec<f64>) {
        assert!(!samples.is_empty(), "a round without a sample");
        self.0.push(samples);
    }

    /// One more round of a single sample.
    pub(crate) fn add(&mut self, sample: f64) {
        self.round(vec![sample]);
    }

    /// How many samples there are.
    pub(crate) fn count(&self) -> usize {
        self.0.iter().map(Vec::len).sum()
    }

    /// The smallest that `percent` of all samples are no greater than: 50 is the median.
    pub(crate) fn quantile(&self, percent: usize) -> Figure {
        let rounds = self.0.iter().map(|round| quantile(round, percent));
        Figure::within(quantile(&self.0.concat(), percent), rounds)
    }

    /// The median, and the middle half of all samples around it.
    pub(crate) fn middle(&self) -> Figure {
        let all = self.0.concat();
        Figure { value: quantile(&all, 50), low: quantile(&all, 25), high: quantile(&all, 75) }
    }

    /// The same of `self` by that of `other`, round by round for the spread.
    pub(crate) fn ratio(&self, other: &Samples, percent: usize) -> Figure {
        let rounds = self.0.iter().zip(&other.0);
        let rounds = rounds.map(|(ours, theirs)| quantile(ours, percent) / quantile(theirs, percent));
        Figure::within(self.quantile(percent).value / other.quantile(percent).value, rounds)
    }
}

impl Figure {
    fn within(value: f64, rounds: impl Iterator<Item = f64>) -> Self {
        let (low, high) = rounds.fold((value, value), |(low, high), round| (low.min(round), high.max(round)));
        Figure { value, low, high }
    }
}

fn quantile(samples: &[f64], percent: usize) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    if percent == 50 && sorted.len().is_multiple_of(2) {
        let upper = sorted.len() / 2;
        return f64::midpoint(sorted[upper - 1], sorted[upper]);
    }
    sorted[(sorted.len() * percent).div_ceil(100).max(1) - 1]
}

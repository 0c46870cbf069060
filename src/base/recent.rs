//! The last so many values of something that is measured now and then, and how they spread.

use std::collections::VecDeque;

/// Recent values, oldest first.
#[derive(Clone, Debug, Default)]
pub struct Recent {
    values: VecDeque<f64>,
}

// === impl Recent ===

impl Recent {
    /// Adds a value; of more than `most` the oldest goes.
    pub fn push(&mut self, value: f64, most: usize) {
        self.values.push_back(value);
        while self.values.len() > most {
            self.values.pop_front();
        }
    }

    /// Whether nothing was measured yet.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    /// Their mean; `None` if there is none.
    #[must_use]
    pub fn mean(&self) -> Option<f64> {
        if self.values.is_empty() { None } else { Some(self.values.iter().sum::<f64>() / self.values.len() as f64) }
    }

    /// The value below which `part` of all lie, between the nearest two; `None` if there is none.
    #[must_use]
    pub fn quantile(&self, part: f64) -> Option<f64> {
        let mut sorted: Vec<f64> = self.values.iter().copied().collect();
        sorted.sort_by(f64::total_cmp);
        let at = part.clamp(0.0, 1.0) * sorted.len().checked_sub(1)? as f64;
        let (below, above) = (sorted[at.floor() as usize], sorted[at.ceil() as usize]);
        Some(below + (above - below) * at.fract())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_lie_between_the_nearest_two() {
        let mut recent = Recent::default();
        assert_eq!((recent.quantile(0.5), recent.mean()), (None, None));
        for value in [9.0, 1.0, 2.0, 3.0, 4.0] {
            recent.push(value, 4);
        }
        assert_eq!((recent.quantile(0.5), recent.mean()), (Some(2.5), Some(2.5)));
        assert_eq!((recent.quantile(0.0), recent.quantile(1.0)), (Some(1.0), Some(4.0)));
        assert!((recent.quantile(0.9).unwrap() - 3.7).abs() < 1e-9);
    }
}

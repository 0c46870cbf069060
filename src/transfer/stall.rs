//! When a connection is given up though it is open: nothing, or next to nothing, has come for too long. Only time spent
//! waiting for the network counts. A full disk queue or a bandwidth cap stops reading too, and dropping the connection would
//! make both worse.

use std::time::Duration;

/// Watches one connection.
#[derive(Clone, Debug)]
pub(super) struct Patience {
    longest: Duration,
    least: u64,
    waited: Duration,
    got: u64,
}

// === impl Patience ===

impl Patience {
    /// At least `least` bytes in each `longest` of waiting.
    pub(super) fn new(longest: Duration, least: u64) -> Self {
        Self { longest, least, waited: Duration::ZERO, got: 0 }
    }

    /// How long to wait for the next bytes at most.
    pub(super) fn left(&self) -> Duration {
        self.longest.saturating_sub(self.waited)
    }

    /// Bytes came after a wait. Returns whether the connection is still worth having.
    pub(super) fn got(&mut self, bytes: u64, waited: Duration) -> bool {
        self.got += bytes;
        self.waited += waited;
        if self.got >= self.least {
            (self.got, self.waited) = (0, Duration::ZERO);
        }
        self.waited < self.longest
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_drip_is_noticed() {
        let mut patience = Patience::new(10 * SECOND, 10_240);
        let lasted = (0..).take_while(|_| patience.got(1, SECOND)).count();
        assert_eq!(lasted, 9);
    }

    #[test]
    fn slow_and_steady_is_kept() {
        let mut patience = Patience::new(10 * SECOND, 10_240);
        assert!((0..100).all(|_| patience.got(1100, SECOND)));
        assert!(patience.left() > Duration::ZERO);
    }

    #[test]
    fn only_waiting_counts() {
        let mut patience = Patience::new(10 * SECOND, 10_240);
        assert!((0..1000).all(|_| patience.got(1, Duration::ZERO)));
        assert_eq!(patience.left(), 10 * SECOND);
    }
}

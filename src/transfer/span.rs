//! The groups of one request, shared by the connection that receives them and the schedule that may take the last ones away.

use std::sync::{Mutex, PoisonError};

/// Groups are claimed one by one before their first byte is kept; what is not claimed can be given to another connection.
#[derive(Debug)]
pub(super) struct Span {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    next: u64,
    end: u64,
}

// === impl Span ===

impl Span {
    pub(super) fn new(start: u64, end: u64) -> Self {
        Self { state: Mutex::new(State { next: start, end }) }
    }

    /// The next group, now the caller's; `None` at the end.
    pub(super) fn claim(&self) -> Option<u64> {
        let mut state = self.lock();
        if state.next >= state.end {
            return None;
        }
        state.next += 1;
        Some(state.next - 1)
    }

    /// Ends before group `to`, or after what is claimed. Returns the new end.
    pub(super) fn lower(&self, to: u64) -> u64 {
        let mut state = self.lock();
        state.end = state.end.min(to.max(state.next));
        state.end
    }

    pub(super) fn end(&self) -> u64 {
        self.lock().end
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_claimed_stays() {
        let span = Span::new(2, 10);
        assert_eq!((span.claim(), span.claim()), (Some(2), Some(3)));
        assert_eq!(span.lower(3), 4);
        assert_eq!((span.claim(), span.end()), (None, 4));
        assert_eq!(span.lower(9), 4);
    }
}

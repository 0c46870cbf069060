//! When a job did what: stages with a beginning and an end, relative to the request.

use std::time::Instant;

use super::wire::StageView;

/// One stage.
#[derive(Clone, Copy, Debug)]
struct Span {
    stage: &'static str,
    from: Instant,
    to: Option<Instant>,
}

/// The stages of one model, or of a job, in the order in which they began.
#[derive(Clone, Debug, Default)]
pub(super) struct Timeline {
    spans: Vec<Span>,
}

/// Stages that are kept: a job that starts over now and then has few, one that does so for ever must not grow for ever.
const MOST: usize = 64;

// === impl Timeline ===

impl Timeline {
    /// A stage begins; one of the same name that has not ended goes on.
    pub(super) fn begin(&mut self, stage: &'static str, at: Instant) {
        if self.spans.len() < MOST && !self.spans.iter().any(|span| span.stage == stage && span.to.is_none()) {
            self.spans.push(Span { stage, from: at, to: None });
        }
    }

    /// A stage ends. Returns how long it took in seconds, if it had begun.
    pub(super) fn end(&mut self, stage: &'static str, at: Instant) -> Option<f64> {
        let span = self.spans.iter_mut().find(|span| span.stage == stage && span.to.is_none())?;
        span.to = Some(at);
        Some(at.saturating_duration_since(span.from).as_secs_f64())
    }

    /// A stage that is over already.
    pub(super) fn record(&mut self, stage: &'static str, from: Instant, to: Instant) {
        if self.spans.len() < MOST {
            self.spans.push(Span { stage, from, to: Some(to) });
        }
    }

    /// Whatever has not ended ends.
    pub(super) fn close(&mut self, at: Instant) {
        self.spans.iter_mut().filter(|span| span.to.is_none()).for_each(|span| span.to = Some(at));
    }

    /// As it is answered, seconds counted from `zero`.
    pub(super) fn view(&self, zero: Instant, member: Option<usize>) -> Vec<StageView> {
        let seconds = |at: Instant| at.saturating_duration_since(zero).as_secs_f64();
        let view = |span: &Span| StageView {
            stage: span.stage.to_owned(),
            member,
            start: seconds(span.from),
            seconds: span.to.map(|to| to.saturating_duration_since(span.from).as_secs_f64()),
        };
        self.spans.iter().map(view).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn stages_are_told_from_the_request_on() {
        let zero = Instant::now();
        let at = |seconds| zero + Duration::from_secs(seconds);
        let mut timeline = Timeline::default();
        timeline.begin("resolve", at(1));
        timeline.begin("resolve", at(2));
        assert_eq!(timeline.end("resolve", at(3)), Some(2.0));
        assert_eq!(timeline.end("warm", at(3)), None);
        timeline.record("first_byte", at(3), at(4));
        timeline.begin("warm", at(5));
        let view = timeline.view(zero, Some(0));
        let seen: Vec<_> = view.iter().map(|stage| (stage.stage.as_str(), stage.start, stage.seconds)).collect();
        assert_eq!(seen, [("resolve", 1.0, Some(2.0)), ("first_byte", 3.0, Some(1.0)), ("warm", 5.0, None)]);
        timeline.close(at(6));
        assert_eq!(timeline.view(zero, None)[2].seconds, Some(1.0));
        (0..1000).for_each(|_| timeline.record("verify", at(1), at(2)));
        assert_eq!(timeline.spans.len(), MOST);
    }
}

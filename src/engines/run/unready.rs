//! A command that was not seen to be ready: it failed by itself, was told to end, or is taken for hanging. Nothing of it is kept. What it
//! had used of its bundle until then the files show all the same, and `cold` would be untrue of a start that was given one.

use std::process::ExitStatus;

use super::Start;
use super::child::Child;
use super::output::Listener;
use super::prepare::Prepared;
use super::prove::{compare, tell};
use super::scan::scan;
use super::verdict::Counts;
use crate::engines::fingerprint::Fingerprint;

impl Start<'_> {
    /// From not being ready to the end. `ended`: it has ended; otherwise nobody waits any longer for it to be ready.
    pub(super) async fn unready(
        &mut self,
        prepared: &mut Prepared,
        mut child: Child,
        ended: Option<ExitStatus>,
        listener: Listener,
    ) -> ExitStatus {
        if ended.is_none() {
            let late = "the command was never seen to be ready, so that nothing is proved and nothing kept";
            prepared.report.reason = late.to_owned();
        }
        prepared.report.capture = "not kept: the command was not seen to be ready".to_owned();
        let how = prepared.report.reason.clone();
        self.note_use(prepared, &how, &listener);
        if let Some(status) = ended {
            self.tell_of(prepared).await;
            return status;
        }
        self.write(&mut prepared.report);
        self.tell_of(prepared).await;
        let status = child.until_end(self.signals).await;
        self.note_use(prepared, &how, &listener);
        status
    }

    /// Puts what the files say into the report, after how it went.
    fn note_use(&self, prepared: &mut Prepared, how: &str, listener: &Listener) {
        prepared.report.log = listener.heard();
        let Ok(fingerprint) = &self.request.fingerprint else { return };
        let with_bundle = prepared.kinds.iter().any(|kind| kind.restored.is_some());
        if let Some((outcome, used)) = so_far(prepared, fingerprint).filter(|_| with_bundle) {
            prepared.report.outcome = outcome;
            prepared.report.reason = format!("{how}; until then {used}");
        }
    }

    async fn tell_of(&self, prepared: &mut Prepared) {
        if let Ok(library) = &self.request.library {
            tell(library.as_ref(), prepared).await;
        }
    }
}

fn so_far(prepared: &mut Prepared, fingerprint: &Fingerprint) -> Option<(super::Verdict, String)> {
    prepared.view.as_ref()?;
    let after = scan(&prepared.watched(fingerprint));
    compare(prepared, &after, Counts::judge_unready);
    Some(prepared.report.files.judge_unready())
}

//! Reading a capture on the side of the captured process: which files, and then their bytes, each searched for secrets before any of
//! them leaves.

use std::future::Future;
use std::io::Read;
use std::time::Duration;

use super::EngineError;
use super::gather::{Files, Gathered, check_unchanged, gather};
use super::library::{Capture, Captured, Draft, DraftFile};
use super::secrets::{Secrets, called};
use crate::base::ErrorKind;
use crate::model::Evidence;
use crate::model::engine::EngineKey;

/// A capture that has been listed.
#[derive(Debug)]
pub struct Sending {
    gathered: Gathered,
    files: Files,
    secrets: Secrets,
}

/// Tries of a capture while somebody still writes.
const TRIES: u32 = 3;
/// Tries of one that the node has no room for: 1, 2, 4, ... seconds apart, a minute in all.
const BUSY_TRIES: u32 = 6;
/// Between two of them.
const SETTLING: Duration = Duration::from_secs(1);
/// Bytes read at once.
const CHUNK: usize = 256 << 10;

/// Captures, again while what is captured still changes, or the node is busy.
///
/// # Errors
/// Those of the capture; `Changed` if it has not settled in the end, `Busy` if the node takes no more.
pub async fn until_settled<F>(capture: impl Fn() -> F) -> Result<Captured, EngineError>
where
    F: Future<Output = Result<Captured, EngineError>>,
{
    let (mut changed, mut busy) = (1, 0);
    loop {
        match capture().await {
            Err(EngineError::Changed { .. }) if changed < TRIES => {
                changed += 1;
                tokio::time::sleep(SETTLING).await;
            }
            // The node takes so many at once; it is soon through with them.
            Err(error) if error.kind() == ErrorKind::Busy && busy < BUSY_TRIES => {
                tokio::time::sleep(SETTLING * 2_u32.pow(busy)).await;
                busy += 1;
            }
            outcome => return outcome,
        }
    }
}

// === impl Sending ===

impl Sending {
    /// Lists the roots. Blocking.
    ///
    /// # Errors
    /// As for [`gather`]; `Refused` if the key has a secret in it.
    pub fn prepare(capture: &Capture) -> Result<(Self, Draft), EngineError> {
        let secrets = Secrets::new(&capture.secrets)?;
        check_key(&capture.key, &secrets)?;
        let gathered = gather(&capture.roots)?;
        let files = gathered.files.iter().map(|file| DraftFile {
            path: file.path.clone(),
            size: file.facts.size,
            mode: file.facts.mode,
            mtime_ns: file.facts.mtime_ns,
        });
        let draft = Draft {
            key: capture.key.clone(),
            files: files.collect(),
            base: capture.base,
            evidence: discreet(capture.evidence.clone(), &secrets).within_limits(),
            refresh: capture.refresh,
            in_place: capture.in_place,
        };
        let sending = Self { gathered, files: Files::of(&capture.roots)?, secrets };
        Ok((sending, draft))
    }

    /// What is not taken, by path.
    #[must_use]
    pub fn left_out(&self) -> &[String] {
        &self.gathered.left_out
    }

    /// Looks for secrets before anything is sent. Reads every file, which the sending then finds in memory. Blocking.
    ///
    /// # Errors
    /// `Refused` naming the file and the variable; `Changed`, I/O.
    pub fn search(&mut self) -> Result<(), EngineError> {
        if self.secrets.is_empty() {
            return Ok(());
        }
        self.read(&mut |_| Ok(()))
    }

    /// Reads all bytes in order, searching them again: a file may have been written to since. Blocking.
    ///
    /// # Errors
    /// As for [`Sending::search`], and those of `push`.
    pub fn read(&mut self, push: &mut dyn FnMut(&[u8]) -> Result<(), EngineError>) -> Result<(), EngineError> {
        let mut buffer = vec![0; CHUNK];
        for file in &self.gathered.files {
            let (mut open, path) = self.files.open(file)?;
            let mut search = self.secrets.search();
            let mut left = file.facts.size;
            while left > 0 {
                let piece = usize::try_from(left).unwrap_or(usize::MAX).min(CHUNK);
                let bytes = &mut buffer[..piece];
                open.read_exact(bytes).map_err(|error| match error.kind() {
                    std::io::ErrorKind::UnexpectedEof => EngineError::Changed { path: path.clone() },
                    _ => EngineError::io("read", &path, error),
                })?;
                if let Some(name) = search.see(bytes) {
                    let why = format!(
                        "has the value of {} in it: a bundle would carry it to other nodes; start the engine without it, or \
                         remove the file",
                        called(name)
                    );
                    return Err(EngineError::refused(path.display().to_string(), why));
                }
                push(bytes)?;
                left -= piece as u64;
            }
            check_unchanged(&open, file, &path)?;
        }
        Ok(())
    }
}

/// A key travels with its bundle, so that it is held to the same as the files.
fn check_key(key: &EngineKey, secrets: &Secrets) -> Result<(), EngineError> {
    for (name, field) in key.fields() {
        let texts = [Some(name), field.value.as_ref(), Some(&field.from)];
        if let Some(found) = texts.into_iter().flatten().find_map(|text| secrets.in_text(text)) {
            let family = name.split('.').next().unwrap_or_default();
            let why = format!("has the value of {} in it: a bundle would carry it to other nodes", called(found));
            return Err(EngineError::refused(format!("a field `{family}.` of the key"), why));
        }
    }
    Ok(())
}

/// Evidence is for people, and nothing depends on it: what has a secret in it is left out, and says so.
fn discreet(mut evidence: Evidence, secrets: &Secrets) -> Evidence {
    let instead = |text: &str| secrets.in_text(text).map(|name| format!("(a line with the value of {})", called(name)));
    for line in evidence.log.iter_mut().chain(&mut evidence.engine) {
        if let Some(instead) = instead(line) {
            *line = instead;
        }
    }
    evidence.stages.retain(|name, _| secrets.in_text(name).is_none());
    evidence
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::model::Secret;
    use crate::model::engine::{BundleKind, Field};

    fn capture(value: &str, line: &str) -> Capture {
        let fields = BTreeMap::from([("argv.--x".to_owned(), Field::hard(value, "argv"))]);
        Capture {
            key: EngineKey::new(BundleKind::Graph, "vllm", 0, fields).unwrap(),
            roots: Vec::new(),
            base: None,
            evidence: Evidence {
                log: vec![line.to_owned(), "plain".to_owned()],
                stages: BTreeMap::from([(line.to_owned(), 1)]),
                ..Evidence::default()
            },
            secrets: vec![("--api-key".to_owned(), Secret::new("hunter2hunter2".to_owned()))],
            refresh: false,
            in_place: false,
        }
    }

    #[test]
    fn a_draft_is_searched_as_files_are() {
        let error = Sending::prepare(&capture("a hunter2hunter2", "")).unwrap_err().to_string();
        assert!(error.contains("`--api-key`") && error.contains("argv") && !error.contains("hunter2"), "{error}");
        // Cut at a limit, a secret would not be found whole.
        let line = format!("{}hunter2hunter2", "x".repeat(490));
        let (_, draft) = Sending::prepare(&capture("a", &line)).unwrap();
        let text = format!("{draft:?}");
        assert!(
            !text.contains("hunter2")
                && text.contains("a line with the value of `--api-key`")
                && text.contains("plain"),
            "{text}"
        );
    }
}

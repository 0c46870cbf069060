//! How bundles have fared: attempts that were begun, suspicion, quarantine. One small file a bundle and scope below
//! `engines/` of the store, written durably before the engine starts, so that a kill from outside leaves its trace.
//!
//! A scope's word holds for that scope. For everybody a bundle is quarantined once two scopes say so, or an operator: otherwise
//! one tenant whose container is killed for want of memory would take the warm start from all others.

use std::fs;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use super::library::{AttemptEnd, AttemptId, Standing};
use super::shelf::read_limited;
use super::{EngineError, now};
use crate::base::BootId;
use crate::model::{BundleId, Tenant};
use crate::sys::durable::{make_directories, temporary_name, write_atomic};

/// The file.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Record {
    version: u32,
    bundle: BundleId,
    standing: Standing,
    /// An operator's word: it holds for everybody.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    for_all: bool,
    /// It was let off once, and has not proved itself since.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    doubted: bool,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    attempts: Vec<Attempt>,
}

/// One attempt that has not ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Attempt {
    id: AttemptId,
    begun_at: u64,
    boot: BootId,
}

/// The records of a store.
#[derive(Debug)]
pub(super) struct Guard {
    directory: PathBuf,
    temporaries: PathBuf,
    boot: BootId,
    /// One change at a time.
    changing: Mutex<()>,
}

/// Attempts that are remembered of one bundle and scope; the oldest go. A node starts some tens of replicas.
const ATTEMPTS_MOST: usize = 64;
/// Longest reason.
const REASON_MOST: usize = 1000;
/// Largest record: its attempts and a reason.
const RECORD_LIMIT: usize = 64 << 10;
/// Scopes whose word it takes for everybody.
const AGREEING: usize = 2;

// === impl Guard ===

impl Guard {
    pub(super) fn new(directory: PathBuf, temporaries: PathBuf, boot: BootId) -> Self {
        Self { directory, temporaries, boot, changing: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, ()> {
        self.changing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read(&self, scope: &Tenant, bundle: &BundleId) -> Result<Record, EngineError> {
        let fresh = || Record {
            version: 1,
            bundle: *bundle,
            standing: Standing::Clean,
            for_all: false,
            doubted: false,
            attempts: Vec::new(),
        };
        let path = self.directory.join(scope.as_str()).join(format!("{bundle}.json"));
        let Some(text) = read_limited(&path, RECORD_LIMIT)? else { return Ok(fresh()) };
        match serde_json::from_slice::<Record>(&text) {
            Ok(record) if record.version == 1 && record.bundle == *bundle => Ok(record),
            // A word against the bundle may have stood there.
            _ => Ok(Record {
                standing: Standing::Suspect { reason: format!("{} cannot be read", path.display()), at: now() },
                ..fresh()
            }),
        }
    }

    fn write(&self, scope: &Tenant, record: &Record) -> Result<(), EngineError> {
        let directory = self.directory.join(scope.as_str());
        let name = format!("{}.json", record.bundle);
        let path = directory.join(&name);
        if record.standing == Standing::Clean && record.attempts.is_empty() && !record.doubted {
            return match fs::remove_file(&path) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    Err(EngineError::io("remove", &path, error))
                }
                _ => Ok(()),
            };
        }
        let text = serde_json::to_vec(record).unwrap_or_default();
        make_directories(&directory)
            .and_then(|()| write_atomic(&self.temporaries, &directory, &name, &text))
            .map_err(|error| EngineError::io("write", &path, error))
    }

    fn change(&self, scope: &Tenant, bundle: &BundleId, change: impl FnOnce(&mut Record)) -> Result<(), EngineError> {
        let _one = self.lock();
        let mut record = self.read(scope, bundle)?;
        change(&mut record);
        self.write(scope, &record)
    }

    /// Notes that a start begins.
    pub(super) fn begin(&self, scope: &Tenant, bundle: &BundleId) -> Result<AttemptId, EngineError> {
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        let id = AttemptId(format!("{}-{}", temporary_name(), since.as_nanos()));
        let attempt = Attempt { id: id.clone(), begun_at: now(), boot: self.boot.clone() };
        self.change(scope, bundle, |record| {
            // A start that began before the machine did has ended with it.
            record.attempts.retain(|attempt| attempt.boot == self.boot);
            record.attempts.push(attempt);
            let excess = record.attempts.len().saturating_sub(ATTEMPTS_MOST);
            record.attempts.drain(..excess);
        })?;
        Ok(id)
    }

    /// Notes how it ended.
    pub(super) fn end(
        &self,
        scope: &Tenant,
        bundle: &BundleId,
        attempt: &AttemptId,
        end: AttemptEnd,
        operator: bool,
    ) -> Result<(), EngineError> {
        let at = now();
        let cut = |reason: String| reason.chars().take(REASON_MOST).collect();
        self.change(scope, bundle, |record| {
            record.attempts.retain(|other| other.id != *attempt);
            let quarantined = matches!(record.standing, Standing::Quarantined { .. });
            match end {
                // What was proved bad by a start with and one without it is not made good by a third. What came up with it, or fails
                // without it as well, says the same of the starts before it.
                AttemptEnd::Ready | AttemptEnd::Cleared if !quarantined => {
                    record.standing = Standing::Clean;
                    record.doubted &= end == AttemptEnd::Cleared;
                    record.attempts.clear();
                }
                AttemptEnd::Doubt { .. } if !quarantined && !record.doubted => {
                    (record.standing, record.doubted) = (Standing::Clean, true);
                    record.attempts.clear();
                }
                AttemptEnd::Doubt { reason } if !quarantined => {
                    record.standing = Standing::Quarantined { reason: cut(reason), at };
                }
                AttemptEnd::Suspect { reason } if !quarantined => {
                    record.standing = Standing::Suspect { reason: cut(reason), at };
                }
                AttemptEnd::Quarantine { reason } => {
                    record.standing = Standing::Quarantined { reason: cut(reason), at };
                    record.for_all |= operator;
                }
                _ => {}
            }
        })
    }

    /// Whether an attempt is noted: its end may be, also when the bundle is gone.
    pub(super) fn knows(&self, scope: &Tenant, bundle: &BundleId, attempt: &AttemptId) -> Result<bool, EngineError> {
        Ok(self.read(scope, bundle)?.attempts.iter().any(|known| known.id == *attempt))
    }

    /// Whether a bundle has been let off once.
    pub(super) fn is_doubted(&self, scope: &Tenant, bundle: &BundleId) -> Result<bool, EngineError> {
        Ok(self.read(scope, bundle)?.doubted)
    }

    /// How a bundle stands for a scope, and when its unfinished attempts of this boot began.
    pub(super) fn standing(&self, scope: &Tenant, bundle: &BundleId) -> Result<(Standing, Vec<u64>), EngineError> {
        let own = self.read(scope, bundle)?;
        let begun = own.attempts.iter().filter(|attempt| attempt.boot == self.boot).map(|attempt| attempt.begun_at);
        let unfinished = begun.collect();
        if matches!(own.standing, Standing::Quarantined { .. }) {
            return Ok((own.standing, unfinished));
        }
        let others: Vec<Record> = self.others(bundle)?;
        let against: Vec<&Record> =
            others.iter().filter(|record| matches!(record.standing, Standing::Quarantined { .. })).collect();
        let holds = against.len() >= AGREEING || against.iter().any(|record| record.for_all);
        let standing = against.first().filter(|_| holds).map_or(own.standing, |record| record.standing.clone());
        Ok((standing, unfinished))
    }

    /// Takes back what is said against a bundle: what `scope` says, and with `all` what everybody does. Attempts that were broken off
    /// speak against it too. Says whose word was taken back.
    pub(super) fn release(&self, scope: &Tenant, bundle: &BundleId, all: bool) -> Result<Vec<Tenant>, EngineError> {
        let scopes = if all { self.scopes()? } else { vec![scope.clone()] };
        let mut released = Vec::new();
        for scope in scopes {
            let before = self.read(&scope, bundle)?;
            if before.standing == Standing::Clean && before.attempts.is_empty() && !before.doubted {
                continue;
            }
            self.change(&scope, bundle, |record| {
                (record.standing, record.for_all, record.doubted) = (Standing::Clean, false, false);
                record.attempts.clear();
            })?;
            released.push(scope);
        }
        Ok(released)
    }

    fn others(&self, bundle: &BundleId) -> Result<Vec<Record>, EngineError> {
        // One that is nobody's in particular may be the same user as another.
        self.scopes()?.iter().filter(|scope| scope.is_somebody()).map(|scope| self.read(scope, bundle)).collect()
    }

    /// Scopes that have said anything.
    fn scopes(&self) -> Result<Vec<Tenant>, EngineError> {
        let entries = match fs::read_dir(&self.directory) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(|error| EngineError::io("list", &self.directory, error))?,
        };
        let scope =
            |entry: std::io::Result<fs::DirEntry>| Tenant::try_from(entry.ok()?.file_name().into_string().ok()?).ok();
        Ok(entries.filter_map(scope).collect())
    }

    /// Removes all records of a bundle that is gone.
    pub(super) fn forget(&self, bundle: &BundleId) {
        let _one = self.lock();
        for scope in fs::read_dir(&self.directory).into_iter().flatten().flatten() {
            // Left over, it says something of a bundle that nobody has.
            let _ = fs::remove_file(scope.path().join(format!("{bundle}.json")));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::Hash;

    fn guard(root: &std::path::Path, boot: &str) -> Guard {
        Guard::new(root.join("engines"), root.to_owned(), BootId::from(boot))
    }

    fn scopes() -> [Tenant; 3] {
        [Tenant::of_uid(1), Tenant::of_uid(2), Tenant::of_uid(3)]
    }

    fn quarantine() -> AttemptEnd {
        AttemptEnd::Quarantine { reason: "it died".to_owned() }
    }

    fn is_bad(guard: &Guard, scope: &Tenant, bundle: &BundleId) -> bool {
        matches!(guard.standing(scope, bundle).unwrap().0, Standing::Quarantined { .. })
    }

    #[test]
    fn an_attempt_is_there_until_it_ends_and_survives_the_process() {
        let root = tempfile::tempdir().unwrap();
        let bundle = BundleId::from(Hash::of(b"bundle"));
        let [one, other, _] = scopes();
        let attempt = guard(root.path(), "a").begin(&one, &bundle).unwrap();
        let guard_again = guard(root.path(), "a");
        assert_eq!(guard_again.standing(&one, &bundle).unwrap().1.len(), 1);
        assert_eq!(guard_again.standing(&other, &bundle).unwrap().1.len(), 0, "another's attempt");
        assert_eq!(guard(root.path(), "b").standing(&one, &bundle).unwrap().1.len(), 0, "another boot");
        guard_again.end(&one, &bundle, &attempt, AttemptEnd::Ready, false).unwrap();
        assert_eq!(guard_again.standing(&one, &bundle).unwrap(), (Standing::Clean, Vec::new()));
        let left = fs::read_dir(root.path().join("engines/uid-1")).unwrap().count();
        assert_eq!(left, 0, "nothing is kept of what is clean");
    }

    #[test]
    fn what_nobody_has_seen_is_let_off_once() {
        let root = tempfile::tempdir().unwrap();
        let (guard, bundle) = (guard(root.path(), "a"), BundleId::from(Hash::of(b"bundle")));
        let [one, ..] = scopes();
        let begin = || guard.begin(&one, &bundle).unwrap();
        let end = |attempt: &AttemptId, end| guard.end(&one, &bundle, attempt, end, false).unwrap();
        let doubt = || AttemptEnd::Doubt { reason: "it was broken off".to_owned() };
        let (first, _killed) = (begin(), begin());
        end(&first, AttemptEnd::Unknown);
        assert_eq!(
            guard.standing(&one, &bundle).unwrap().1.len(),
            1,
            "what is not known of one says nothing of another"
        );
        end(&begin(), doubt());
        assert_eq!(guard.standing(&one, &bundle).unwrap(), (Standing::Clean, Vec::new()));
        assert!(guard.is_doubted(&one, &bundle).unwrap());
        // It proves itself, and has its chance again.
        let (_killed, third) = (begin(), begin());
        end(&third, AttemptEnd::Ready);
        assert_eq!(guard.standing(&one, &bundle).unwrap(), (Standing::Clean, Vec::new()));
        assert!(!guard.is_doubted(&one, &bundle).unwrap());
        end(&begin(), doubt());
        end(&begin(), doubt());
        assert!(is_bad(&guard, &one, &bundle));
    }

    #[test]
    fn one_scope_speaks_for_itself_and_two_for_all() {
        let root = tempfile::tempdir().unwrap();
        let (guard, bundle) = (guard(root.path(), "a"), BundleId::from(Hash::of(b"bundle")));
        let [one, other, third] = scopes();
        let end = |scope: &Tenant, end| {
            let attempt = guard.begin(scope, &bundle).unwrap();
            guard.end(scope, &bundle, &attempt, end, false).unwrap();
        };
        end(&one, AttemptEnd::Suspect { reason: "it died".to_owned() });
        assert!(matches!(guard.standing(&one, &bundle).unwrap().0, Standing::Suspect { .. }));
        end(&one, AttemptEnd::Cleared);
        assert_eq!(guard.standing(&one, &bundle).unwrap().0, Standing::Clean);
        end(&one, quarantine());
        end(&one, AttemptEnd::Ready);
        assert!(is_bad(&guard, &one, &bundle) && !is_bad(&guard, &third, &bundle));
        end(&other, quarantine());
        assert!(is_bad(&guard, &third, &bundle));
    }

    #[test]
    fn what_is_released_is_clean_for_who_may_say_so() {
        let root = tempfile::tempdir().unwrap();
        let (guard, bundle) = (guard(root.path(), "a"), BundleId::from(Hash::of(b"bundle")));
        let [one, other, third] = scopes();
        for scope in [&one, &other] {
            let attempt = guard.begin(scope, &bundle).unwrap();
            guard.end(scope, &bundle, &attempt, quarantine(), false).unwrap();
        }
        assert_eq!(guard.release(&one, &bundle, false).unwrap(), std::slice::from_ref(&one));
        assert!(!is_bad(&guard, &one, &bundle) && is_bad(&guard, &other, &bundle) && !is_bad(&guard, &third, &bundle));
        guard.begin(&third, &bundle).unwrap();
        let mut all = guard.release(&one, &bundle, true).unwrap();
        all.sort();
        assert_eq!(all, [other, third.clone()]);
        assert_eq!(guard.standing(&third, &bundle).unwrap(), (Standing::Clean, Vec::new()));
        assert!(guard.release(&one, &bundle, true).unwrap().is_empty());
    }

    #[test]
    fn an_operators_word_holds_for_all_and_a_spoilt_record_is_no_acquittal() {
        let root = tempfile::tempdir().unwrap();
        let (guard, bundle) = (guard(root.path(), "a"), BundleId::from(Hash::of(b"bundle")));
        let [one, other, _] = scopes();
        let attempt = guard.begin(&one, &bundle).unwrap();
        guard.end(&one, &bundle, &attempt, quarantine(), true).unwrap();
        assert!(is_bad(&guard, &other, &bundle));
        fs::write(root.path().join(format!("engines/uid-1/{bundle}.json")), "{").unwrap();
        assert!(matches!(guard.standing(&one, &bundle).unwrap().0, Standing::Suspect { .. }));
    }
}

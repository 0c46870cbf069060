//! What a start has made of what was restored for it. "Installed" is not "used": an engine that hashes one variable more than
//! expected makes its own set of files beside ours, at full price, and nothing in its exit or its speed on a fast machine tells. So
//! the files are compared, and the engine's reading of them; its log is a second witness.

use serde::{Deserialize, Serialize};

use super::scan::Snapshot;
use crate::model::ManifestEntry;

/// What became of what was restored, however the command ended: a start with a bundle is never `cold`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// It was used, and nothing new was made.
    Hit,
    /// It was used, and something new was made.
    Partial,
    /// It was restored, and the engine made its own, asked for none, or ended before it could.
    Inert,
    /// Nothing was restored.
    Cold,
    /// It broke the engine, which then came up without it.
    Quarantined,
}

/// Files counted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// Restored.
    pub restored: u64,
    /// Of these, read; absent where the file system does not tell.
    pub read: Option<u64>,
    /// Of these, written anew.
    pub changed: u64,
    /// Of these, taken away.
    pub removed: u64,
    /// Not restored, and there.
    pub new: u64,
    /// Some of the new ones, for people.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub examples: Vec<String>,
}

/// Most examples.
const EXAMPLES: usize = 5;

/// Of a set that is not used a few files may still be read: an index, a marker. One in so many is no use of it.
const FEW: u64 = 50;

// === impl Verdict ===

impl Verdict {
    /// The word in JSON.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Hit => "hit",
            Self::Partial => "partial",
            Self::Inert => "inert",
            Self::Cold => "cold",
            Self::Quarantined => "quarantined",
        }
    }
}

// === impl Counts ===

impl Counts {
    /// Compares what was restored, as the bundle says, with what is there. `before`: what was there beside it.
    pub(super) fn of(entries: &[ManifestEntry], before: &Snapshot, after: &Snapshot, shows_reads: bool) -> Self {
        let mut counts = Self { read: shows_reads.then_some(0), ..Self::default() };
        let restored: std::collections::BTreeMap<&str, &ManifestEntry> =
            entries.iter().map(|entry| (entry.path.as_str(), entry)).collect();
        for (path, entry) in &restored {
            // What is passing by its name is in no bundle of ours; another's may have it, and it proves nothing.
            if !before.contains_key(*path) {
                continue;
            }
            counts.restored += 1;
            match after.get(*path) {
                None => counts.removed += 1,
                Some(seen) => {
                    let same = seen.size == entry.size && entry.mtime_ns.map(i128::from) == Some(seen.mtime_ns);
                    counts.changed += u64::from(!same);
                    if let Some(read) = &mut counts.read {
                        *read += u64::from(same && seen.read);
                    }
                }
            }
        }
        for (path, seen) in after {
            if !restored.contains_key(path.as_str()) && before.get(path).is_none_or(|was| was.mtime_ns != seen.mtime_ns)
            {
                counts.new += 1;
                if counts.examples.len() < EXAMPLES {
                    counts.examples.push(path.clone());
                }
            }
        }
        counts
    }

    /// What that means, and why.
    #[must_use]
    pub fn judge(&self) -> (Verdict, String) {
        let Self { restored, read, changed, new, .. } = *self;
        let made = match (new, changed) {
            (0, 0) => "nothing new was made".to_owned(),
            (new, 0) => format!("{new} new files were made"),
            (0, changed) => format!("{changed} files were written anew"),
            (new, changed) => format!("{new} new files were made and {changed} written anew"),
        };
        if restored == 0 {
            return (Verdict::Cold, format!("nothing was restored; {made}"));
        }
        let unread = read.is_some_and(|read| read * FEW <= restored && (read == 0 || new + changed > read));
        if unread {
            let read = read.unwrap_or_default();
            return (Verdict::Inert, format!("of {restored} files restored the engine read {read}; {made}"));
        }
        // Where reading does not show: who uses a set makes no other of its size.
        if read.is_none() && changed == 0 && new >= restored.div_ceil(2) {
            return (Verdict::Inert, format!("{restored} files were restored, and the engine made {new} beside them"));
        }
        if new + changed == 0 {
            let used = read.map_or_else(String::new, |read| format!(", of which the engine read {read}"));
            return (Verdict::Hit, format!("{restored} files were restored{used}; {made}"));
        }
        (Verdict::Partial, format!("{restored} files were restored; {made}"))
    }

    /// The same of a start that was not seen to be ready. There, that nothing new was made is no sign of use: it may not have come
    /// so far.
    #[must_use]
    pub fn judge_unready(&self) -> (Verdict, String) {
        let Self { restored, read, changed, new, .. } = *self;
        if restored == 0 || new + changed > 0 || read.is_some_and(|read| read > 0) {
            return self.judge();
        }
        let read = match read {
            Some(_) => "of which the engine had read none",
            None => "of which none is known to have been read: reading does not show here",
        };
        (Verdict::Inert, format!("{restored} files were restored, {read}; nothing new was made"))
    }
}

#[cfg(test)]
mod tests {
    use super::super::scan::Seen;
    use super::*;
    use crate::digest::Hash;
    use crate::model::FilePath;

    fn entry(path: &str) -> ManifestEntry {
        let mut entry = ManifestEntry::new(FilePath::new(path).unwrap(), 10, Hash::of(b"x"));
        entry.mtime_ns = Some(1000);
        entry
    }

    fn seen(mtime_ns: i128, read: bool) -> Seen {
        Seen { size: 10, mtime_ns, read }
    }

    fn judge(restored: u32, after: impl Fn(&mut Snapshot), shows: bool) -> Verdict {
        let entries: Vec<ManifestEntry> = (0..restored).map(|at| entry(&format!("r/{at}"))).collect();
        let before: Snapshot = entries.iter().map(|entry| (entry.path.to_string(), seen(1000, false))).collect();
        let mut now = before.clone();
        after(&mut now);
        Counts::of(&entries, &before, &now, shows).judge().0
    }

    fn read_all(now: &mut Snapshot) {
        now.values_mut().for_each(|seen| seen.read = true);
    }

    fn make(now: &mut Snapshot, count: u32) {
        now.extend((0..count).map(|at| (format!("r/new/{at}"), seen(5000, true))));
    }

    #[test]
    fn files_decide() {
        assert_eq!(judge(100, read_all, true), Verdict::Hit);
        assert_eq!(judge(100, |_| {}, false), Verdict::Hit, "where reads do not show, nothing new is a hit");
        assert_eq!(judge(100, |_| {}, true), Verdict::Inert, "nobody asked for it");
        assert_eq!(judge(0, |now| make(now, 3), true), Verdict::Cold);
        let partial = |now: &mut Snapshot| {
            read_all(now);
            make(now, 3);
        };
        assert_eq!(judge(100, partial, true), Verdict::Partial);
        assert_eq!(judge(100, partial, false), Verdict::Partial);
        let beside = |now: &mut Snapshot| make(now, 100);
        assert_eq!(judge(100, beside, true), Verdict::Inert);
        assert_eq!(judge(100, beside, false), Verdict::Inert);
        let glance = |now: &mut Snapshot| {
            now.values_mut().take(2).for_each(|seen| seen.read = true);
            make(now, 100);
        };
        assert_eq!(judge(100, glance, true), Verdict::Inert, "an index was looked at");
        let rewritten = |now: &mut Snapshot| {
            read_all(now);
            *now.get_mut("r/0").unwrap() = seen(5000, true);
        };
        assert_eq!(judge(4, rewritten, true), Verdict::Partial);
        let resized = |now: &mut Snapshot| {
            read_all(now);
            now.get_mut("r/0").unwrap().size = 11;
        };
        assert_eq!(judge(4, resized, true), Verdict::Partial);
    }

    #[test]
    fn who_does_not_come_so_far_has_used_nothing() {
        let counts = |read, new| Counts { restored: 10, read, new, ..Counts::default() };
        for (read, new, verdict) in [
            (Some(0), 0, Verdict::Inert),
            (None, 0, Verdict::Inert),
            (Some(3), 0, Verdict::Hit),
            (Some(10), 1, Verdict::Partial),
            (None, 1, Verdict::Partial),
            (Some(0), 10, Verdict::Inert),
        ] {
            assert_eq!(counts(read, new).judge_unready().0, verdict, "{read:?} {new}");
        }
        assert_eq!(Counts::default().judge_unready().0, Verdict::Cold);
    }

    #[test]
    fn what_was_there_before_is_not_new() {
        let before: Snapshot = [("r/old".to_owned(), seen(1, false)), ("r/touched".to_owned(), seen(1, false))].into();
        let after: Snapshot = [("r/old".to_owned(), seen(1, true)), ("r/touched".to_owned(), seen(2, false))].into();
        let counts = Counts::of(&[], &before, &after, true);
        assert_eq!((counts.new, counts.examples), (1, vec!["r/touched".to_owned()]));
    }
}

//! The jobs that a restart must find again: one small file each, below `jobs/` in the store, written when a job turns out to
//! need its origin and removed when it ends. A credential is never in it; that there was one is, so that the job is told from
//! one that can simply go on.
//!
//! Turned down: one log of all jobs, which has to be rewritten and can be torn in the middle; and writing every call down: most
//! are for what is here already and end at once.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::wire::{Priority, Tier};
use crate::digest::Hash;
use crate::model::Tenant;
use crate::sys::durable::write_atomic;

/// Largest file: 64 references of at most 4 KiB.
const FILE_LIMIT: u64 = 512 * 1024;

/// Version of the fields below.
const VERSION: u32 = 1;

/// A job as it is written down.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Written {
    pub(super) version: u32,
    pub(super) id: String,
    /// Who asked.
    pub(super) scope: Tenant,
    /// Whether they could read the daemon's files themselves.
    pub(super) our_rights: bool,
    pub(super) references: Vec<String>,
    /// Engine keys.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) engine: Vec<Hash>,
    pub(super) tier: Tier,
    pub(super) priority: Priority,
    pub(super) lease_seconds: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) pin: Option<String>,
    /// Whether they look after the node.
    pub(super) operator: bool,
    /// Whether it came with a credential, which only the caller has.
    pub(super) credential: bool,
}

/// Where they are.
#[derive(Clone, Debug)]
pub(super) struct Journal {
    directory: PathBuf,
    temporaries: PathBuf,
}

// === impl Written ===

impl Written {
    pub(super) fn new(id: &str, scope: &Tenant, our_rights: bool, references: Vec<String>, tier: Tier) -> Self {
        Self {
            version: VERSION,
            id: id.to_owned(),
            scope: scope.clone(),
            our_rights,
            references,
            engine: Vec::new(),
            tier,
            priority: Priority::Prefetch,
            lease_seconds: 0,
            pin: None,
            operator: false,
            credential: false,
        }
    }
}

// === impl Journal ===

impl Journal {
    pub(super) fn new(directory: PathBuf, temporaries: PathBuf) -> Self {
        Self { directory, temporaries }
    }

    /// Writes a job down, durably. Blocking.
    pub(super) fn write(&self, job: &Written) -> std::io::Result<()> {
        let text = serde_json::to_vec(job).unwrap_or_default();
        write_atomic(&self.temporaries, &self.directory, &name(&job.id), &text)
    }

    /// Forgets a job; one that is not there is forgotten already.
    pub(super) fn remove(&self, id: &str) {
        let path = self.directory.join(name(id));
        if let Err(error) = std::fs::remove_file(&path)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!(path = %path.display(), %error, "an ended job is still written down; a restart runs it again");
        }
    }

    /// The jobs that an earlier process left, oldest first, at most `most`. What cannot be read is no job of ours.
    pub(super) fn read(&self, most: usize) -> Vec<Written> {
        let entries = std::fs::read_dir(&self.directory).into_iter().flatten().filter_map(Result::ok);
        let mut paths: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
        // Ids begin with the time.
        paths.sort();
        let mut found = Vec::new();
        for path in paths {
            match read_one(&path) {
                Some(job) if found.len() < most => found.push(job),
                Some(_) => {}
                None => tracing::warn!(path = %path.display(), "this is not a job of this version; left alone"),
            }
        }
        found
    }
}

fn name(id: &str) -> String {
    format!("{id}.json")
}

fn read_one(path: &Path) -> Option<Written> {
    let fits = std::fs::symlink_metadata(path).ok().filter(|found| found.is_file() && found.len() <= FILE_LIMIT);
    fits?;
    let job: Written = serde_json::from_slice(&std::fs::read(path).ok()?).ok()?;
    let right = job.version == VERSION && path.file_name().is_some_and(|found| *found == *name(&job.id));
    right.then_some(job)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_and_what_is_strange_is_left() {
        let root = tempfile::tempdir().unwrap();
        let (directory, temporaries) = (root.path().join("jobs"), root.path().join("tmp"));
        std::fs::create_dir(&directory).unwrap();
        std::fs::create_dir(&temporaries).unwrap();
        let journal = Journal::new(directory.clone(), temporaries);
        let one = Written::new("job-1", &Tenant::of_uid(7), false, vec!["hf://org/m".to_owned()], Tier::Disk);
        let two = Written {
            credential: true,
            ..Written::new("job-2", &Tenant::of_uid(7), true, vec!["s3://bucket/m".to_owned()], Tier::Memory)
        };
        journal.write(&two).unwrap();
        journal.write(&one).unwrap();
        std::fs::write(directory.join("job-0.json"), "{").unwrap();
        std::fs::write(directory.join("other.json"), serde_json::to_vec(&one).unwrap()).unwrap();
        assert_eq!(journal.read(10), [one, two.clone()]);
        assert_eq!(journal.read(1).len(), 1);
        journal.remove("job-1");
        journal.remove("job-1");
        assert_eq!(journal.read(10), [two]);
    }
}

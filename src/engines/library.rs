//! The library: what whoever starts an engine asks of the bundles, wherever they are kept. One trait, so that a start with a daemon,
//! a start on a local root and a test are the same code.

use std::io::Read;
use std::path::Path;
use std::time::Duration;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use super::in_place::InPlace;
use super::{CaptureRoot, EngineError, Restored};
use crate::digest::Hash;
use crate::model::engine::{BundleKind, EngineKey};
use crate::model::{Bundle, BundleId, Evidence, FilePath, Secret, Signature, Signer, Tenant};
use crate::store::Pin;

/// A bundle, as far as a decision about it needs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct BundleRef {
    /// Its name.
    #[schema(value_type = String)]
    pub id: BundleId,
    /// The digest of its engine key.
    #[schema(value_type = String)]
    pub key: Hash,
    /// Whom it may serve.
    pub kind: BundleKind,
    /// The engine's profile.
    pub profile: String,
    /// Whose it is: a scope's own, or `node` for what a trusted signer vouches for.
    #[schema(value_type = String)]
    pub scope: Tenant,
    /// Who vouches for it. Absent: it was captured here, under the caller's own identity.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub signer: Option<Signer>,
    /// The signer's name in this node's configuration.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signed_by: Option<String>,
    /// When it was captured, seconds since the epoch, by the clock of the node that did.
    pub captured_at: u64,
    /// Files.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// What was seen when it was captured.
    pub evidence: Evidence,
    /// How it has fared here.
    pub standing: Standing,
    /// Attempts that were begun during this boot and never ended, seconds since the epoch, oldest first. Those of starts that are
    /// still under way are among them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unfinished: Vec<u64>,
    /// What keeps it from being evicted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pins: Vec<Pin>,
    /// It has been let off once: see [`AttemptEnd::Doubt`].
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub doubted: bool,
    /// Every file is a blob of its own: it is used in place, read-only, and not copied.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub in_place: bool,
}

/// How a bundle has fared.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(tag = "state", rename_all = "lowercase")]
pub enum Standing {
    /// Nothing is known against it.
    #[default]
    Clean,
    /// A start with it failed; whether it was the bundle is not known.
    Suspect {
        /// What happened.
        reason: String,
        /// When, seconds since the epoch.
        at: u64,
    },
    /// A start with it failed and one without it did not.
    Quarantined {
        /// What happened.
        reason: String,
        /// When, seconds since the epoch.
        at: u64,
    },
}

/// Why a bundle of the right key is not restored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema, thiserror::Error)]
#[serde(tag = "code", rename_all = "snake_case")]
pub enum Refusal {
    /// Nobody vouches for it.
    #[error(
        "it is not signed: only what was captured on this node under the same identity is restored without a signature"
    )]
    Unsigned,
    /// Somebody vouches for it whom this node does not know.
    #[error("it is signed by {signer}, whom this node does not trust: add the signer to engines.signers if you do")]
    UnknownSigner {
        /// Who.
        signer: String,
    },
    /// Its signer is trusted no longer.
    #[error("it is signed by {signer}, who has been revoked: capture it again with another key")]
    RevokedSigner {
        /// Who.
        signer: String,
    },
    /// It itself is trusted no longer.
    #[error("it has been revoked: capture it again")]
    Revoked,
    /// The signature does not fit.
    #[error("{detail}")]
    BadSignature {
        /// How.
        detail: String,
    },
    /// A start with it failed and one without it did not.
    #[error("it is quarantined: {reason}")]
    Quarantined {
        /// What happened.
        reason: String,
    },
    /// It is not what its name says.
    #[error("it is corrupt: {detail}")]
    Corrupt {
        /// How.
        detail: String,
    },
    /// It is filed under this key and made for another.
    #[error(
        "it was made for the engine key {key} and is filed under another: whoever writes to the shared origin is mistaken or lies"
    )]
    OtherKey {
        /// Its own key.
        key: String,
    },
    /// It is being fetched from the shared origin, and was not here in time.
    #[error("it is still being fetched from the shared origin: the next start finds it on the node")]
    NotInTime,
    /// Larger than this node takes.
    #[error("it has {bytes} bytes, engines.bundle_bytes_max is {limit}")]
    TooLarge {
        /// Its size.
        bytes: u64,
        /// What is allowed.
        limit: u64,
    },
    /// The shared origin, or the node's disk.
    #[error("{detail}")]
    Unavailable {
        /// What happened.
        detail: String,
    },
    /// The key has hard fields that nobody could find out.
    #[error("nothing is restored without knowing {}: an unknown fact may be the one that differs", fields.join(", "))]
    Unusable {
        /// Which.
        fields: Vec<String>,
    },
}

/// A bundle that is not restored.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Refused {
    /// Which, where that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bundle: Option<BundleRef>,
    /// Its name, where that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub id: Option<BundleId>,
    /// Why.
    pub why: Refusal,
}

/// A bundle of another key.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Near {
    /// Its key, all fields in clear.
    #[schema(value_type = Object)]
    pub key: EngineKey,
    /// The bundle.
    pub bundle: BundleRef,
}

/// The answer to a lookup.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Lookup {
    /// What may be restored now.
    pub exact: Option<BundleRef>,
    /// What has the key and may not, newest first.
    pub refused: Vec<Refused>,
    /// Bundles of this node with other keys of the same kind, nearest first, at most eight.
    pub nearest: Vec<Near>,
}

/// What is to be captured.
#[derive(Debug)]
pub struct Capture {
    /// What it is good for.
    pub key: EngineKey,
    /// Where its files are.
    pub roots: Vec<CaptureRoot>,
    /// What had been restored there.
    pub base: Option<BundleId>,
    /// What was seen.
    pub evidence: Evidence,
    /// Values that must not be in it, each with the name of its variable or its option.
    pub secrets: Vec<(String, Secret)>,
    /// Replace what is there.
    pub refresh: bool,
    /// Make every file a blob of its own, so that it is used where it lies and not copied.
    pub in_place: bool,
}

/// A file of a capture, before its bytes are known.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DraftFile {
    /// Root, and path below it.
    #[schema(value_type = String)]
    pub path: FilePath,
    /// Size in bytes.
    pub size: u64,
    /// Permission bits.
    pub mode: u32,
    /// Modification time, nanoseconds since the epoch.
    pub mtime_ns: u64,
}

/// A capture, before its bytes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Draft {
    /// What it is good for.
    #[schema(value_type = Object)]
    pub key: EngineKey,
    /// Its files, sorted by path.
    pub files: Vec<DraftFile>,
    /// What had been restored.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub base: Option<BundleId>,
    /// What was seen.
    #[serde(default)]
    pub evidence: Evidence,
    /// Replace what is there.
    #[serde(default)]
    pub refresh: bool,
    /// Make every file a blob of its own, so that it is used where it lies and not copied; with more than 512 files they are packed
    /// all the same.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub in_place: bool,
}

/// What became of a capture.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(tag = "outcome", rename_all = "lowercase")]
pub enum Captured {
    /// It is a bundle now.
    Created {
        /// This one.
        bundle: BundleRef,
        /// Files taken over from the bundle that was there, of entries that the capture does not have.
        taken_over: u64,
        /// Files that both had, with different bytes: the captured ones were kept.
        conflicts: u64,
    },
    /// There is one with the same files.
    Unchanged {
        /// That one.
        bundle: BundleRef,
    },
    /// Somebody else was first; this one was dropped.
    Existed {
        /// Theirs.
        bundle: BundleRef,
    },
    /// There was no file to capture.
    Nothing,
}

/// One attempt to start an engine with a bundle.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(transparent)]
pub struct AttemptId(pub String);

/// How an attempt ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(tag = "end", rename_all = "lowercase")]
pub enum AttemptEnd {
    /// The engine became ready: nothing is left against the bundle.
    Ready,
    /// It did not, and whether the bundle is to blame is not known yet.
    Suspect {
        /// What happened.
        reason: String,
    },
    /// It was not the bundle.
    Cleared,
    /// Nobody has seen how it went: it says nothing.
    Unknown,
    /// A start without it came up, after starts with it of which nobody has seen the end. Once it is let off; the second time it is
    /// quarantined.
    Doubt {
        /// What happened.
        reason: String,
    },
    /// It was the bundle.
    Quarantine {
        /// What happened.
        reason: String,
    },
}

/// How a start went, for metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// The bundle was used, and nothing new was made.
    Hit,
    /// It was used, and something new was made.
    Partial,
    /// It was restored, and the engine made its own.
    Inert,
    /// Nothing was restored.
    Cold,
    /// There was one, and it was refused.
    Refused,
}

/// One start, told to the node.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RunReport {
    /// Of which kind of bundle.
    pub kind: BundleKind,
    /// How it went.
    pub outcome: Outcome,
    /// Bytes restored.
    #[serde(default)]
    pub bytes: u64,
    /// Milliseconds less than the recorded cold start.
    #[serde(default)]
    pub saved_ms: u64,
}

/// Everything about one bundle.
#[derive(Clone, Debug)]
pub struct BundleView {
    /// In short.
    pub bundle: BundleRef,
    /// Its document.
    pub document: Bundle,
    /// Who vouches for it.
    pub signature: Option<Signature>,
    /// Why it would not be restored for the caller. `None`: it would.
    pub refusal: Option<Refusal>,
}

/// Bundles, wherever they are kept.
#[async_trait]
pub trait Library: Send + Sync + std::fmt::Debug {
    /// Finds what may be restored for a key: on this node, then at the shared origin, for at most `deadline` in all. What is at the
    /// shared origin is on the node when this returns, or is refused as [`Refusal::NotInTime`].
    ///
    /// # Errors
    /// The library itself; a bundle that cannot be used is no error.
    async fn lookup(&self, key: &EngineKey, deadline: Duration) -> Result<Lookup, EngineError>;

    /// Restores to `into`, which must not exist, verified whole before it does: signature and policy again, and every file.
    ///
    /// # Errors
    /// `Denied` for what may no longer be restored, `Corrupt`, `NoSpace`, I/O.
    async fn restore(&self, bundle: &BundleRef, into: &Path) -> Result<Restored, EngineError>;

    /// Shows a bundle that is used in place where the store has it, every file verified.
    ///
    /// # Errors
    /// As for [`Library::restore`]; `Refused` for a bundle that has a pack, or a store that cannot be read from here.
    async fn in_place(&self, bundle: &BundleRef) -> Result<InPlace, EngineError> {
        Err(EngineError::refused(format!("bundle {}", bundle.id), "this library shows none in place"))
    }

    /// Captures what is below the roots.
    ///
    /// # Errors
    /// `Refused` for what no bundle may have, `Changed` if somebody writes, `NoSpace`, I/O.
    async fn capture(&self, capture: Capture) -> Result<Captured, EngineError>;

    /// Notes, durably, that a start with a bundle begins.
    ///
    /// # Errors
    /// `NotFound`, I/O.
    async fn begin_attempt(&self, bundle: &BundleId) -> Result<AttemptId, EngineError>;

    /// Notes how it ended.
    ///
    /// # Errors
    /// `NotFound`, I/O.
    async fn end_attempt(&self, bundle: &BundleId, attempt: &AttemptId, end: AttemptEnd) -> Result<(), EngineError>;

    /// Releases a bundle from quarantine and suspicion: the caller's own word, and an operator everybody's.
    ///
    /// # Errors
    /// `NotFound`, `Denied`, I/O.
    async fn release(&self, bundle: &BundleId, reason: &str) -> Result<BundleRef, EngineError> {
        let _ = reason;
        Err(EngineError::refused(format!("bundle {bundle}"), "this library releases none"))
    }

    /// Pins a bundle; with seconds it is a lease, which ends by itself.
    ///
    /// # Errors
    /// `NotFound`, `Denied`, those of the store.
    async fn pin(
        &self,
        bundle: &BundleId,
        name: &str,
        reason: &str,
        lease: Option<u64>,
    ) -> Result<BundleRef, EngineError> {
        let _ = (name, reason, lease);
        Err(EngineError::refused(format!("bundle {bundle}"), "this library pins none"))
    }

    /// Takes a pin away.
    ///
    /// # Errors
    /// `NotFound`, `Denied`, those of the store.
    async fn unpin(&self, bundle: &BundleId, name: &str) -> Result<BundleRef, EngineError> {
        let _ = name;
        Err(EngineError::refused(format!("bundle {bundle}"), "this library pins none"))
    }

    /// All bundles of this node that the caller may know, with their keys, newest first.
    ///
    /// # Errors
    /// I/O.
    async fn list(&self) -> Result<Vec<Near>, EngineError>;

    /// One bundle.
    ///
    /// # Errors
    /// `NotFound`, `Corrupt`.
    async fn show(&self, bundle: &BundleId) -> Result<BundleView, EngineError>;

    /// The bytes of a bundle's pack, for an archive. To be read by a thread that may block.
    ///
    /// # Errors
    /// As for [`Library::restore`].
    async fn pack(&self, bundle: &BundleId) -> Result<Box<dyn Read + Send>, EngineError> {
        Err(EngineError::refused(format!("bundle {bundle}"), "this library gives no archives"))
    }

    /// Takes an archive in: what a trusted signer vouches for.
    ///
    /// # Errors
    /// `Denied`, `Corrupt`, `NoSpace`, I/O.
    async fn import(&self, archive: Box<dyn Read + Send>) -> Result<BundleRef, EngineError> {
        drop(archive);
        Err(EngineError::refused("archive", "this library takes none"))
    }

    /// Tells the node how a start went.
    ///
    /// # Errors
    /// The way to it.
    async fn report(&self, report: &RunReport) -> Result<(), EngineError>;
}

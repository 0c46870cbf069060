//! The JSON of the native API: what is asked and answered, for the doors and for every client of them.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

pub use super::compiled::{EngineState, EngineView};
use crate::base::ErrorKind;
use crate::digest::Hash;
use crate::model::{Credential, ModelId, ModelRecord};
use crate::store::{Model, Pin, Usage};
pub use crate::transfer::Priority;

/// Carries a credential as JSON, as `credential` of a prewarm request does: on every route that reads.
pub const CREDENTIAL_HEADER: &str = "preheat-credential";

/// A credential, as it is written: one of its fields.
#[derive(ToSchema)]
#[schema(as = Credential)]
#[expect(dead_code, reason = "it says to readers of the API what the type with the secrets in it cannot")]
pub(crate) enum CredentialSchema {
    /// A bearer token: for a hub, a web server, Google Cloud Storage or Azure.
    #[schema(rename = "bearer")]
    Bearer(String),
    /// Keys of S3 and what speaks like it.
    #[schema(rename = "aws")]
    Aws {
        /// Names the key.
        access_key_id: String,
        /// Signs.
        secret_access_key: String,
        /// Of temporary keys.
        session_token: Option<String>,
    },
    /// A key of an Azure storage account.
    #[schema(rename = "azure_key")]
    AzureKey(String),
    /// A shared access signature of Azure.
    #[schema(rename = "azure_sas")]
    AzureSas(String),
    /// The JSON text of a Google service account's key.
    #[schema(rename = "google_service_account")]
    GoogleServiceAccount(String),
}

/// How ready a model is wanted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Tier {
    /// On the node, verified, tree published.
    #[default]
    Disk,
    /// Also resident in the page cache.
    Memory,
}

/// `POST /v1/prewarm`
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PrewarmRequest {
    /// What to have ready. This or `references`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reference: String,
    /// A set to have ready together: a base, its adapters, a draft model, a tokenizer. At most 64.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub references: Vec<String>,
    /// How ready.
    #[serde(default)]
    pub tier: Tier,
    /// Who waits; `prefetch` if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority: Option<Priority>,
    /// When it has to be ready, in seconds from now. Missing it does not cancel.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline_seconds: Option<f64>,
    /// How long it may not be evicted once ready: as long as image pull and container start may take. Absent: as configured,
    /// which is not at all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lease_seconds: Option<u64>,
    /// Pin each model of it under this name once it is ready, until somebody removes the pin.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pin: Option<String>,
    /// Answer only when it is ready or has failed, or after 10 minutes.
    #[serde(default)]
    pub wait: bool,
    /// Engine keys (64 hex digits each, at most 16) whose bundles are to be on the node as well. One that is nowhere to be had fails
    /// nothing: see `engines` of the job.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(value_type = Vec<String>)]
    pub engine: Vec<Hash>,
    /// What to show the origin, where not everybody may read it. Kept in memory, as long as the job runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<CredentialSchema>)]
    pub credential: Option<Credential>,
}

/// Where a job stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum JobState {
    /// Waits for a place.
    #[default]
    Queued,
    /// Resolves, transfers, warms.
    Running,
    /// The tree is in place (and, for `memory`, resident).
    Ready,
    /// See `error`.
    Failed,
    /// Called off.
    Cancelled,
    /// The daemon restarted and the credential went with it: ask again with one.
    #[serde(rename = "needs_credentials")]
    NeedsCredentials,
}

/// Seconds still to go.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct EtaSeconds {
    /// As likely sooner as later.
    pub p50: f64,
    /// Nine times in ten sooner.
    pub p90: f64,
}

/// What an estimate goes by. The later, the weaker.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Basis {
    /// Everything in it was measured on this node, within the hour.
    Measured,
    /// Something in it was measured elsewhere or long ago, or is assumed.
    Prior,
    /// Nothing is known.
    #[default]
    None,
}

/// A rate that an estimate goes by.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct RateView {
    /// `origin`, `disk` or `memory`.
    pub of: String,
    /// Scheme and host of an origin.
    pub server: Option<String>,
    /// Where it comes from.
    pub basis: Basis,
    /// As often more as less.
    pub bytes_per_second_p50: Option<f64>,
    /// Less in one of ten cases.
    pub bytes_per_second_p10: Option<f64>,
    /// Seconds since it was measured; `null` if it was not.
    pub age_seconds: Option<f64>,
}

/// Bytes that a tier lacks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct MissingBytes {
    /// On the node.
    pub disk: u64,
    /// In the page cache.
    pub memory: u64,
}

/// Whether a deadline will hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Nine times in ten.
    Met,
    /// More likely than not, and not surely.
    AtRisk,
    /// More likely not.
    Missed,
    /// Nothing is known.
    Unknown,
}

/// `POST /v1/estimate`
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct EstimateRequest {
    /// What. This or `references`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reference: String,
    /// A set, as for prewarm.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub references: Vec<String>,
    /// How ready.
    #[serde(default)]
    pub tier: Tier,
    /// Who would wait; `prefetch` if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority: Option<Priority>,
    /// When it would have to be ready, in seconds from now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline_seconds: Option<f64>,
    /// Engine keys, as for prewarm: what is missing of their bundles counts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(value_type = Vec<String>)]
    pub engine: Vec<Hash>,
    /// What to show the origin.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<CredentialSchema>)]
    pub credential: Option<Credential>,
}

/// How long something would take, and what says so.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Estimate {
    /// Sum of file sizes.
    pub bytes_total: u64,
    /// What is not here, by tier.
    pub bytes_missing: MissingBytes,
    /// From now until the asked tier is reached, others that go first included; `null` if nothing is known.
    pub seconds: Option<EtaSeconds>,
    /// Of these, waiting for others.
    pub queue_seconds: Option<EtaSeconds>,
    /// What it goes by.
    pub basis: Basis,
    /// The rates that it goes by.
    pub rates: Vec<RateView>,
    /// Whether the deadline would hold; `null` without one.
    pub deadline: Option<Verdict>,
    /// What the references stand for now, in their order.
    pub revisions: Vec<Option<String>>,
}

/// A server-sent event of a job, field by field.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct JobEvent {
    /// `job`
    pub event: String,
    /// A job as JSON text.
    #[schema(content_media_type = "application/json")]
    pub data: String,
}

/// A stage of a job.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct StageView {
    /// `queue`, `resolve`, `first_byte`, `transfer`, `verify`, `publish`, `seal`, `warm`
    pub stage: String,
    /// Which of the job's models, counted from 0; `null`: the job itself.
    pub member: Option<usize>,
    /// Seconds from the request to its beginning.
    pub start: f64,
    /// How long it took, or has taken; `null` while it goes on.
    pub seconds: Option<f64>,
}

/// One model of a job.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct MemberView {
    /// What was asked.
    pub reference: String,
    /// What it is doing.
    pub stage: String,
    /// Bytes of all selected files; 0 until known.
    pub bytes_total: u64,
    /// Bytes present and verified.
    pub bytes_done: u64,
    /// Body bytes received from the origin for it.
    pub origin_bytes: u64,
    /// Number of files.
    pub files: u64,
    /// The tree, once it is in place.
    #[schema(value_type = Option<String>)]
    pub path: Option<PathBuf>,
    /// That tree's identity.
    pub tree: Option<TreeIdentity>,
    /// Digest of the manifest, once known.
    #[schema(value_type = Option<String>)]
    pub manifest: Option<Hash>,
    /// What the reference resolved to.
    pub revision: Option<String>,
    /// Whether a power cut would leave it.
    pub durable: bool,
    /// For the tier `memory`: bytes in the page cache. Of a job that is asked for by its id as of now (a second ago at most); in
    /// lists and streams as of the last look. `null` before it was measured, and where that fails.
    pub resident_bytes: Option<u64>,
}

/// The directory behind a path, as the daemon sees it: a client in another mount namespace compares.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TreeIdentity {
    /// `st_dev`
    pub device: u64,
    /// `st_ino`
    pub inode: u64,
}

/// A job as it is answered.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct JobView {
    /// Its name.
    pub id: String,
    /// Where it stands.
    pub state: JobState,
    /// What was asked.
    pub reference: String,
    /// How ready it was asked.
    pub tier: Tier,
    /// Who waits.
    pub priority: Priority,
    /// `queued`, `resolve`, `transfer`, `warm`, `done`
    pub stage: String,
    /// Bytes of all selected files; 0 until known.
    pub bytes_total: u64,
    /// Bytes present and verified, those that were here before included.
    pub bytes_done: u64,
    /// Body bytes received from the origin for this job.
    pub origin_bytes: u64,
    /// Over the last seconds.
    pub bytes_per_second: u64,
    /// `null` while nothing is measured.
    pub eta_seconds: Option<EtaSeconds>,
    /// Whether the deadline will be, or was, met; `null` without one or without a measure.
    pub deadline_met: Option<bool>,
    /// The tree, once it is in place.
    #[schema(value_type = Option<String>)]
    pub path: Option<PathBuf>,
    /// That tree's identity.
    pub tree: Option<TreeIdentity>,
    /// Digest of the manifest, once known.
    #[schema(value_type = Option<String>)]
    pub manifest: Option<Hash>,
    /// What the reference resolved to.
    pub revision: Option<String>,
    /// Number of files.
    pub files: u64,
    /// Whether a power cut would leave it.
    pub durable: bool,
    /// For the tier `memory`: bytes in the page cache. Of a job that is asked for by its id as of now (a second ago at most); in
    /// lists and streams as of the last look. `null` before it was measured, and where that fails.
    pub resident_bytes: Option<u64>,
    /// Bundles of compiled engines that were asked for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub engines: Vec<EngineView>,
    /// Seconds from request to the end, or until now.
    pub seconds: f64,
    /// For people.
    pub warnings: Vec<String>,
    /// Why it failed.
    pub error: Option<Problem>,
    /// The models of it, in the order in which they were asked for. Of one alone `path`, `manifest` and the like are those above;
    /// of several those of the first.
    pub members: Vec<MemberView>,
    /// What was estimated when it was known how much there is to do.
    pub estimate: Option<Estimate>,
    /// What it has done, and when.
    pub timeline: Vec<StageView>,
}

/// An error of the API (RFC 9457, `application/problem+json`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Problem {
    /// `about:blank`: the kind says which.
    #[serde(rename = "type", default)]
    pub kind_url: String,
    /// The status in words.
    #[serde(default)]
    pub title: String,
    /// HTTP status.
    #[serde(default)]
    pub status: u16,
    /// What is wrong, and what to do.
    #[serde(default)]
    pub detail: String,
    /// The machine's word for it.
    #[serde(default)]
    pub kind: Option<ErrorKind>,
}

/// A published model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ModelView {
    /// Its name.
    #[schema(value_type = String)]
    pub id: ModelId,
    /// Whose it is: `default` and `node` are read by everybody who may ask, any other is a tenant's own.
    pub scope: String,
    /// The reference as it was typed.
    pub reference: String,
    /// What it resolved to.
    pub revision: String,
    /// Its tree.
    #[schema(value_type = String)]
    pub path: PathBuf,
    /// Digest of its manifest.
    #[schema(value_type = String)]
    pub manifest: Hash,
    /// Sum of file sizes.
    pub bytes: u64,
    /// Number of files.
    pub files: u64,
    /// Whether a power cut would leave it.
    pub durable: bool,
    /// Seconds since the epoch.
    pub published_at: u64,
    /// Seconds since the epoch.
    pub last_used: u64,
    /// How the weakest-checked file was checked against its origin's own word.
    pub origin_verified: String,
    /// Pins and leases on it.
    pub pins: Vec<Pin>,
}

/// `POST /v1/gc`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct GcRequest {
    /// Everything that is not pinned, leased or in use.
    #[serde(default)]
    pub all: bool,
}

/// What was removed.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct GcReport {
    /// Models removed.
    #[schema(value_type = Vec<String>)]
    pub models: Vec<ModelId>,
    /// Blobs removed.
    pub blobs: u64,
    /// Bytes given back.
    pub bytes: u64,
    /// Models that stayed, and why.
    pub kept: Vec<KeptView>,
}

/// A model that stayed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct KeptView {
    /// Which.
    #[schema(value_type = String)]
    pub model: ModelId,
    /// `pinned`, `leased`, `in use` and the like.
    pub why: String,
}

/// `GET /v1/node`
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct NodeView {
    /// Version of the daemon.
    pub version: String,
    /// Whether it takes new work.
    pub ready: bool,
    /// Host name.
    pub hostname: String,
    /// Kernel release.
    pub kernel: String,
    /// CPUs that it may use.
    pub cpus: usize,
    /// Bytes of memory: the machine's, or the cgroup's limit if that is smaller.
    pub memory_bytes: u64,
    /// Model names of NVIDIA GPUs.
    pub gpus: Vec<String>,
    /// The store's directory.
    #[schema(value_type = String)]
    pub root: PathBuf,
    /// What the store holds.
    pub usage: Usage,
    /// Who reads and writes its files.
    #[serde(default)]
    pub disk: DiskView,
    /// Why the store has stopped writing, if it has.
    pub halted: Option<String>,
}

/// Who reads and writes the store's files.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct DiskView {
    /// `io_uring` or `pool`.
    pub kind: String,
    /// Why it is no ring, and what to do about it; null where it is one, or none was wanted.
    pub ring_refused: Option<String>,
}

/// `PUT /v1/models/{id}/pins/{pin}`
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PinRequest {
    /// For people.
    #[serde(default)]
    pub reason: String,
    /// A lease of so many seconds; without it a pin until it is removed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lease_seconds: Option<u64>,
    /// Keep it in the page cache as well while the pin holds, as far as there is room.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub in_memory: bool,
}

// === impl JobState ===

impl JobState {
    /// Whether nothing more will happen.
    #[must_use]
    pub fn is_over(self) -> bool {
        !matches!(self, Self::Queued | Self::Running)
    }
}

// === impl Problem ===

impl Problem {
    /// A problem of a kind, with that kind's status.
    #[must_use]
    pub fn new(kind: ErrorKind, detail: impl Into<String>) -> Self {
        Self::with_status(kind, kind.http_status(), detail)
    }

    /// A problem with a status of its own.
    #[must_use]
    pub fn with_status(kind: ErrorKind, status: u16, detail: impl Into<String>) -> Self {
        let title = http::StatusCode::from_u16(status).ok().and_then(|status| status.canonical_reason());
        Self {
            kind_url: "about:blank".to_owned(),
            title: title.unwrap_or("Error").to_owned(),
            status,
            detail: detail.into(),
            kind: Some(kind),
        }
    }
}

// === impl ModelView ===

impl From<Model> for ModelView {
    fn from(model: Model) -> Self {
        let Model { record, path, durable, last_used, pins } = model;
        let ModelRecord { id, tenant, reference, revision, manifest, bytes, files, published_at, facts, .. } = record;
        let weakest = facts.files.iter().map(|file| file.origin_verified).max().unwrap_or_default();
        let origin_verified = serde_json::to_value(weakest).ok().and_then(|word| word.as_str().map(str::to_owned));
        Self {
            id,
            scope: tenant.to_string(),
            reference,
            revision: revision.to_string(),
            path,
            manifest,
            bytes,
            files,
            durable,
            published_at,
            last_used,
            origin_verified: origin_verified.unwrap_or_default(),
            pins,
        }
    }
}

// === impl GcReport ===

impl From<crate::store::Evicted> for GcReport {
    fn from(done: crate::store::Evicted) -> Self {
        let crate::store::Evicted { models, blobs, bytes, kept } = done;
        let kept = kept.into_iter().map(|(model, why)| KeptView { model, why }).collect();
        Self { models, blobs, bytes, kept }
    }
}

//! The daemon as a source of bytes, for a process that cannot see its store. The manifest names the BLAKE3 root of every
//! file, so what arrives is verified here as well, with the same transfer that talks to origins.

use std::ops::Range;

use async_trait::async_trait;
use futures_util::StreamExt;

use crate::base::ErrorKind;
use crate::doors::client::{Client, ClientError};
use crate::model::source::{Origin, RangeBody, RangeSource, RemoteFile, Resolution, SourceError, Validator};
use crate::model::{Manifest, OriginId, Reference, Revision, Scheme, Selection};

/// One published model of a daemon.
#[derive(Debug)]
pub(super) struct NodeSource {
    client: Client,
    manifest: Manifest,
}

// === impl NodeSource ===

impl NodeSource {
    pub(super) fn new(client: Client, manifest: Manifest) -> Self {
        Self { client, manifest }
    }

    /// A stand-in: the model was named to the daemon, here it is known by its manifest alone.
    pub(super) fn reference(&self) -> Reference {
        Reference {
            scheme: Scheme::Http,
            authority: "node".to_owned(),
            place: format!("v1/manifests/{}", self.manifest.digest()),
            revision: None,
            selection: Selection::default(),
        }
    }

    fn explain(&self, error: &ClientError) -> SourceError {
        let what = self.client.to_string();
        let detail = error.to_string();
        match error.kind() {
            ErrorKind::NotFound => SourceError::NotFound { what: detail },
            ErrorKind::Denied => SourceError::Denied { what, detail },
            _ => SourceError::Unavailable { what, detail },
        }
    }
}

#[async_trait]
impl RangeSource for NodeSource {
    async fn open(&self, file: &RemoteFile, range: Range<u64>) -> Result<RangeBody, SourceError> {
        let hash =
            file.blake3.ok_or_else(|| SourceError::Invalid { detail: format!("{} has no digest", file.path) })?;
        let start = range.start;
        let body = self.client.blob(&hash, range).await.map_err(|error| self.explain(&error))?;
        let what = self.client.to_string();
        let stream = body.map(move |piece| {
            piece.map_err(|error| SourceError::Unavailable { what: what.clone(), detail: error.to_string() })
        });
        Ok(RangeBody { start, ignores_ranges: false, stream: stream.boxed() })
    }
}

#[async_trait]
impl Origin for NodeSource {
    async fn resolve(&self, _reference: &Reference) -> Result<Resolution, SourceError> {
        let digest = self.manifest.digest();
        let files = self
            .manifest
            .files()
            .iter()
            .map(|entry| RemoteFile {
                path: entry.path.clone(),
                size: entry.size,
                locator: entry.blake3.to_string(),
                validator: Validator::Strong(entry.blake3.to_string()),
                declared: Vec::new(),
                blake3: Some(entry.blake3),
                outboard: None,
            })
            .collect();
        Ok(Resolution {
            origin: OriginId::new(format!("node+{}/{digest}", self.client)),
            revision: Some(Revision::Manifest(digest)),
            files,
            manifest: Some(self.manifest.clone()),
        })
    }
}

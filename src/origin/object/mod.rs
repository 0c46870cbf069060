//! Object stores: S3, Google Cloud Storage, Azure, and what speaks like them.
//!
//! Credentials, signatures and listings come from `object_store`. Ranges are read by the same code as those of web servers,
//! because `object_store` follows a range answer that is not the asked one, and because checksums of whole objects have to be
//! asked for in ways that it does not know; for the like reasons (conditions and checksums of uploads) it does not write
//! either. So the requests for objects are ours ([`bucket`]), and what differs between the kinds is a [`bucket::Dialect`]:
//! one folder each.

mod again;
mod azure;
mod bucket;
mod credentials;
mod environment;
mod explain;
mod gcs;
mod outgoing;
mod parts;
mod s3;
mod sink;

use std::ops::Range;
use std::sync::Arc;

use async_trait::async_trait;
use futures_util::{StreamExt, TryStreamExt, stream};
use reqwest::{Method, StatusCode};

use self::bucket::{Ask, Bucket, Dialect};
use super::Config;
use super::egress::Egress;
use super::published;
use super::range::{Asked, body_of, range_header};
use super::selected::{Listed, by_origin, choose, resolution};
use crate::model::body::pieces;
use crate::model::sink::Sink;
use crate::model::source::{Origin, RangeBody, RangeSource, RemoteFile, Resolution, SourceError, Validator};
use crate::model::{FilePath, OriginId, Reference, Rights, Scheme, Selection};

/// HEAD requests under way at once while planning.
const AT_ONCE: usize = 16;

/// One bucket, read.
#[derive(Debug)]
pub(super) struct ObjectOrigin {
    bucket: Bucket,
    files_max: usize,
}

/// The endpoint that the environment sets for the scheme, as an origin's identity has it.
pub(super) fn endpoint_in_force(scheme: Scheme) -> Option<String> {
    match scheme {
        Scheme::S3 => s3::endpoint_in_force(),
        Scheme::Gs => gcs::endpoint_in_force(),
        Scheme::Az => azure::endpoint_in_force(),
        Scheme::File | Scheme::Http | Scheme::Https | Scheme::Hf => None,
    }
}

/// The server that buckets of the scheme are at, and whether the environment names it.
pub(super) fn endpoint_of(scheme: Scheme) -> Option<(String, bool)> {
    match scheme {
        Scheme::S3 => Some(s3::endpoint_of()),
        Scheme::Gs => Some(gcs::endpoint_of()),
        Scheme::Az => azure::endpoint_of(),
        Scheme::File | Scheme::Http | Scheme::Https | Scheme::Hf => None,
    }
}

/// The place of a reference, to be written to.
pub(super) fn sink(
    reference: &Reference,
    egress: Egress,
    rights: &Rights,
    config: &Config,
) -> Result<Arc<dyn Sink>, SourceError> {
    Ok(Arc::new(sink::ObjectSink::new(open(reference, egress, rights, config)?, &reference.place)))
}

fn open(reference: &Reference, egress: Egress, rights: &Rights, config: &Config) -> Result<Bucket, SourceError> {
    let dialect: Arc<dyn Dialect> = match reference.scheme {
        Scheme::S3 => Arc::new(s3::S3::new(reference, &egress, rights)?),
        Scheme::Gs => Arc::new(gcs::Gcs::new(reference, &egress, rights)?),
        Scheme::Az => Arc::new(azure::Azure::new(reference, &egress, rights)?),
        Scheme::File | Scheme::Http | Scheme::Https | Scheme::Hf => {
            return Err(SourceError::Invalid { detail: format!("{} is not in an object store", reference.base()) });
        }
    };
    Ok(Bucket { dialect, egress, stall: config.stall_timeout.0 })
}

// === impl ObjectOrigin ===

impl ObjectOrigin {
    pub(super) fn new(
        reference: &Reference,
        egress: Egress,
        rights: &Rights,
        config: &Config,
    ) -> Result<Self, SourceError> {
        Ok(Self { bucket: open(reference, egress, rights, config)?, files_max: config.files_max })
    }

    async fn list(&self, reference: &Reference) -> Result<Vec<Listed>, SourceError> {
        let what = reference.base();
        let prefix = (!reference.place.is_empty())
            .then(|| object_store::path::Path::parse(&reference.place))
            .transpose()
            .map_err(|error| SourceError::Invalid { detail: format!("{what}: {error}") })?;
        let mut found = Vec::new();
        let mut listing = self.bucket.dialect.lister().list(prefix.as_ref());
        while let Some(object) = listing.next().await {
            let object = object.map_err(|error| self.bucket.explain(&error, &what))?;
            let key = object.location.as_ref();
            let below = key.strip_prefix(reference.place.as_str()).map(|rest| rest.trim_start_matches('/'));
            // Consoles make "directories" as empty objects whose key ends in a slash.
            let Some(below) = below.filter(|below| !below.is_empty()) else { continue };
            let path = FilePath::new(below)
                .map_err(|error| SourceError::Invalid { detail: format!("{what}: object key: {error}") })?;
            let validator = object.e_tag.map_or(Validator::None, Validator::Strong);
            found.push(Listed { path, size: object.size, locator: key.to_owned(), validator });
            if found.len() > self.files_max {
                return Err(SourceError::Invalid {
                    detail: format!("{what} has more than {} objects: name a deeper prefix", self.files_max),
                });
            }
        }
        Ok(found)
    }

    /// The one object whose key is the whole place.
    async fn single(&self, reference: &Reference) -> Result<Vec<RemoteFile>, SourceError> {
        let (what, key) = (reference.base(), &reference.place);
        let found = if key.is_empty() { None } else { self.bucket.head(key).await? };
        let Some(found) = found else {
            let hint = self.bucket.dialect.remedies().absent();
            return Err(SourceError::NotFound { what: format!("{what} (no object there or below){hint}") });
        };
        let path = FilePath::new(key.rsplit('/').next().unwrap_or_default())
            .map_err(|error| SourceError::Invalid { detail: error.to_string() })?;
        let listed = Listed { path, size: found.size, locator: key.clone(), validator: found.validator };
        let all = Selection { include: vec!["*".to_owned()], ..Selection::default() };
        let mut files = choose(&what, vec![listed], &all)?;
        for file in &mut files {
            file.declared.clone_from(&found.declared);
        }
        Ok(files)
    }
}

#[async_trait]
impl RangeSource for ObjectOrigin {
    async fn open(&self, file: &RemoteFile, range: Range<u64>) -> Result<RangeBody, SourceError> {
        if range.is_empty() {
            return Ok(RangeBody { start: range.start, ignores_ranges: false, bytes: pieces(stream::empty().boxed()) });
        }
        let (bucket, what) = (&self.bucket, self.bucket.what(&file.locator));
        let planned = by_origin(&file.validator);
        let wanted = range_header(&range);
        let ask = Ask::new(Method::GET, bucket.url(&file.locator), what.clone()).header("range", &wanted);
        let answer = bucket.send_bulk(bucket.dialect.pin(ask, &planned)).await?;
        // It was there when it was planned.
        if answer.head.status() == StatusCode::NOT_FOUND {
            return Err(SourceError::Changed { what });
        }
        if !answer.head.status().is_success() {
            return Err(bucket.refusal(answer.head, &what).await);
        }
        // A server that does not know the condition still says which version it sends.
        let same = bucket.dialect.describe(answer.head.headers()).map_or(true, |(found, _)| {
            found == planned || !matches!((&found, &planned), (Validator::Strong(_), Validator::Strong(_)))
        });
        if !same {
            return Err(SourceError::Changed { what });
        }
        let asked = Asked { what, range, size: file.size, validator: planned.clone(), stall: bucket.stall };
        body_of(answer, asked).await
    }
}

#[async_trait]
impl Origin for ObjectOrigin {
    async fn resolve(&self, reference: &Reference) -> Result<Resolution, SourceError> {
        let origin = OriginId::of(reference, endpoint_in_force(reference.scheme).as_deref());
        let listed = self.list(reference).await?;
        if listed.is_empty() {
            return Ok(resolution(origin, self.single(reference).await?));
        }
        let what = reference.base();
        if let Some(published) = published::resolve(self, &what, origin.clone(), &listed, &reference.selection).await? {
            return Ok(published);
        }
        let files = choose(&what, listed, &reference.selection)?;
        // The listing has no checksums. Asking for each also finds out early who may not read.
        let files: Vec<RemoteFile> = stream::iter(files)
            .map(|mut file| async move {
                let changed = || SourceError::Changed { what: self.bucket.what(&file.locator) };
                let found = self.bucket.head(&file.locator).await?.ok_or_else(changed)?;
                if found.size != file.size {
                    return Err(changed());
                }
                file.validator = found.validator;
                file.declared = found.declared;
                Ok::<_, SourceError>(file)
            })
            .buffered(AT_ONCE)
            .try_collect()
            .await?;
        Ok(resolution(origin, files))
    }
}

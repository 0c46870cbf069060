//! Hugging Face hubs. A branch becomes a commit at once, the commit's tree tells sizes and digests (the SHA-256 of large files,
//! the git blob name of small ones), and the bytes come from wherever the hub sends us.
//!
//! Large files are redirected to a signed URL on another host. It is a credential that expires: it is asked for once a file,
//! shared by all its parts, kept in memory only, never printed, and renewed once when it is refused. The token goes to the hub
//! alone. Following redirects inside the HTTP client was turned down: it would ask the hub again for every part, and hide which
//! of the two hosts refused.

mod api;
mod listing;
mod location;
mod prove;
mod refusal;
mod token;
mod unfinished;

use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::{StreamExt, stream};
use reqwest::header::{HeaderMap, HeaderValue, RANGE};
use reqwest::{Method, StatusCode, Url};

pub(super) use token::own_token;
pub(super) use unfinished::Unfinished;

use self::api::Api;
use self::listing::Entry;
use self::location::{Location, leads_elsewhere};
use super::Config;
use super::egress::{Answer as Told, Ask, Egress, HOPS, next, safe, too_many};
use super::pause::{Class, Pauses};
use super::range::{Asked, IDENTITY, body_of, error_text, range_header, refusal};
use super::selected::choose;
use crate::digest::Algorithm;
use crate::model::body::pieces;
use crate::model::source::{Origin, RangeBody, RangeSource, RemoteFile, Resolution, SourceError, Validator};
use crate::model::{Credential, OriginId, Reference, Revision, Rights};

/// How often a part may find that the URL which others have got has expired.
const RENEWALS: usize = 4;

/// The public hub.
const PUBLIC: &str = "https://huggingface.co";

/// One repository of a hub.
pub(super) struct HubOrigin {
    api: Api,
    egress: Egress,
    stall: Duration,
    files_max: usize,
    /// The commit at which planning found each file: by path and validator.
    commits: Mutex<HashMap<(String, String), String>>,
    /// Where the bytes of a file are: by path and commit.
    locations: Mutex<HashMap<(String, String), Slot>>,
}

/// Where a file is; locked while the hub is being asked.
type Slot = Arc<tokio::sync::Mutex<Option<Location>>>;

/// The hub in force: `HF_ENDPOINT`, else the public one.
pub(super) fn endpoint_in_force() -> String {
    let set = std::env::var("HF_ENDPOINT").ok().filter(|value| !value.is_empty());
    set.map_or_else(|| PUBLIC.to_owned(), |url| url.trim_end_matches('/').to_owned())
}

impl std::fmt::Debug for HubOrigin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Neither the token nor a signed URL may get into a log.
        f.debug_struct("HubOrigin").field("repository", &self.api.repository).finish_non_exhaustive()
    }
}

// === impl HubOrigin ===

impl HubOrigin {
    pub(super) fn new(
        reference: &Reference,
        egress: &Egress,
        rights: &Rights,
        config: &Config,
        pauses: &Pauses,
        unfinished: &Unfinished,
    ) -> Result<Self, SourceError> {
        let endpoint = endpoint_in_force();
        let parsed = Url::parse(&endpoint).ok().filter(|url| {
            matches!(url.scheme(), "http" | "https") && url.host_str().is_some() && url.query().is_none()
        });
        // It becomes part of what is on disk, in errors and in the names of origins. What is wrong with it may be a password.
        let Some(endpoint) = parsed.filter(|url| url.username().is_empty() && url.password().is_none()) else {
            let detail = "HF_ENDPOINT is not http:// or https:// with a host, without a user and a query".to_owned();
            return Err(SourceError::Invalid { detail });
        };
        let repository = format!("{}/{}", reference.authority, reference.place);
        let stall = config.stall_timeout.0;
        let token = match rights {
            Rights::Anonymous => None,
            Rights::Own => token::find()?,
            Rights::Caller(Credential::Bearer(secret)) => Some(token::Token::new(secret.reveal(), "the credential")?),
            Rights::Caller(other) => {
                let detail = format!("{}: a hub takes a bearer credential, not {}", reference.base(), other.kind());
                return Err(SourceError::Invalid { detail });
            }
        };
        let header = token.as_ref().map(token::Token::header);
        let limit = pauses.limit(&endpoint, header.as_ref().map(reqwest::header::HeaderValue::as_bytes));
        Ok(Self {
            api: Api {
                egress: egress.clone(),
                endpoint,
                repository,
                token,
                limit,
                stall,
                unfinished: unfinished.clone(),
            },
            egress: egress.clone(),
            stall,
            files_max: config.files_max,
            commits: Mutex::default(),
            locations: Mutex::default(),
        })
    }

    fn what(&self, path: &str) -> String {
        format!("hf://{}/{path}", self.api.repository)
    }

    /// The shared place for the location of a file: whoever holds its lock asks the hub, the others wait for the answer.
    fn slot(&self, path: &str, commit: &str) -> Slot {
        let mut locations = self.locations.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(locations.entry((path.to_owned(), commit.to_owned())).or_default())
    }

    /// Asks the hub for a range: its bytes, or where they are.
    async fn ask_hub(&self, path: &str, commit: &str, range: &Range<u64>) -> Result<Answer, SourceError> {
        let what = self.what(path);
        let mut url = self.api.file_url(path, commit)?;
        for left in (0..=HOPS).rev() {
            let request = self.egress.client().get(url.clone()).header(RANGE, range_header(range));
            let answer = self.api.send(request, &url, Class::Bytes, &what).await?;
            let Some(target) = next(&url, &answer.head, &what)? else {
                return if answer.head.status().is_success() {
                    Ok(Answer::Bytes(answer))
                } else {
                    Err(self.api.explain(answer.head, &what).await)
                };
            };
            if leads_elsewhere(&self.api.endpoint, &target) {
                self.egress.permit_hop(&target, &what)?;
                return Ok(Answer::Elsewhere(Location::new(target, left.saturating_sub(1))));
            }
            url = target;
        }
        Err(too_many(&what))
    }

    /// Asks the place that the hub has named. An inner error: refused, as an expired signature is, in its own words.
    async fn ask_there(&self, location: &Location, asked: &Asked) -> Result<Result<Told, String>, SourceError> {
        let mut headers = HeaderMap::from_iter([(IDENTITY.0, HeaderValue::from_static(IDENTITY.1))]);
        headers.extend(HeaderValue::from_str(&range_header(&asked.range)).map(|value| (RANGE, value)));
        let (url, hops, what, stall) = (location.url.clone(), location.hops, &*asked.what, self.stall);
        let ask = Ask { method: Method::GET, url, headers, authorization: None, hops, what, stall };
        let answer = self.egress.follow_bulk(ask).await?;
        match answer.head.status() {
            StatusCode::FORBIDDEN | StatusCode::UNAUTHORIZED | StatusCode::GONE => {
                let (status, host) = (answer.head.status(), location.url.host_str().unwrap_or_default());
                tracing::debug!(file = asked.what, host, %status, "refused");
                Ok(Err(format!("{} {status}: {}", host, error_text(answer.head, self.stall).await)))
            }
            _ => Ok(Ok(answer)),
        }
    }

    /// The bytes of a range, from the place that is known or a new one.
    async fn fetch(&self, path: &str, commit: &str, asked: &Asked) -> Result<Told, SourceError> {
        let slot = self.slot(path, commit);
        let mut last = String::new();
        for _ in 0..RENEWALS {
            let (location, own) = {
                let mut known = slot.lock().await;
                match known.clone().filter(Location::is_fresh) {
                    Some(location) => (location, false),
                    None => match self.ask_hub(path, commit, &asked.range).await? {
                        Answer::Bytes(answer) => return Ok(answer),
                        Answer::Elsewhere(location) => (known.insert(location).clone(), true),
                    },
                }
            };
            match self.ask_there(&location, asked).await? {
                Ok(answer) => return Ok(answer),
                Err(word) => last = word,
            }
            // Somebody else may have renewed it already.
            let mut known = slot.lock().await;
            if known.as_ref().is_some_and(|known| known.url == location.url) {
                *known = None;
            }
            // One that has just been given has not expired: this is a refusal, and asking on would be a stampede.
            if own {
                break;
            }
        }
        let detail = format!("its storage refuses a URL that {} has just given: {last}", safe(&self.api.endpoint));
        Err(SourceError::Denied { what: asked.what.clone(), detail })
    }
}

/// What the hub answers to a range.
enum Answer {
    Bytes(Told),
    Elsewhere(Location),
}

#[async_trait]
impl RangeSource for HubOrigin {
    async fn open(&self, file: &RemoteFile, range: Range<u64>) -> Result<RangeBody, SourceError> {
        if range.is_empty() {
            return Ok(RangeBody { start: range.start, ignores_ranges: false, bytes: pieces(stream::empty().boxed()) });
        }
        let key = (file.locator.clone(), file.validator.as_key());
        let commit = self.commits.lock().unwrap_or_else(PoisonError::into_inner).get(&key).cloned();
        let what = self.what(&file.locator);
        let commit = commit.ok_or_else(|| SourceError::Changed { what: what.clone() })?;
        let asked = Asked { what, range, size: file.size, validator: Validator::None, stall: self.stall };
        let answer = self.fetch(&file.locator, &commit, &asked).await?;
        if answer.head.status().is_success() {
            body_of(answer, asked).await
        } else {
            Err(refusal(answer.head, &asked.what, self.stall).await)
        }
    }
}

#[async_trait]
impl Origin for HubOrigin {
    async fn resolve(&self, reference: &Reference) -> Result<Resolution, SourceError> {
        let what = reference.base();
        let commit = match reference.pinned() {
            Some(Revision::Commit(commit)) => commit,
            _ => self.api.commit(reference.revision.as_deref().unwrap_or("main")).await?,
        };
        let entries = self.api.tree(&commit, self.files_max).await?;
        let mut files = choose(&what, entries.iter().map(Entry::listed).collect(), &reference.selection)?;
        let mut commits = self.commits.lock().unwrap_or_else(PoisonError::into_inner);
        for file in &mut files {
            // The tree's order is that of the paths.
            let entry = entries.binary_search_by(|entry| entry.path.as_str().cmp(&file.locator)).map(|at| &entries[at]);
            file.declared.extend(entry.ok().map(|entry| entry.digest.declared()));
            commits.insert((file.locator.clone(), file.validator.as_key()), commit.clone());
        }
        drop(commits);
        let origin = OriginId::of(reference, Some(&endpoint_in_force()));
        Ok(Resolution { origin, revision: Some(Revision::Commit(commit)), files, manifest: None })
    }

    async fn prove(&self, resolution: &Resolution) -> Result<(), SourceError> {
        prove::prove(&self.api, resolution).await
    }
}

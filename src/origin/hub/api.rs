//! The one way by which anything is asked of a hub, and what is asked of it besides bytes: which commit a branch is, and what a
//! commit has.

use std::time::{Duration, Instant};

use futures_util::StreamExt;
use reqwest::header::HeaderMap;
use reqwest::{RequestBuilder, Response, StatusCode, Url};
use serde::Deserialize;

use super::listing::{Entry, Pages, bytes_of};
use super::location::leads_elsewhere;
use super::refusal::{self, About};
use super::token::Token;
use super::unfinished::{Owner, Unfinished};
use crate::model::source::SourceError;
use crate::origin::egress::{Answer, Egress, HOPS, safe};
use crate::origin::excerpt::excerpt;
use crate::origin::pause::{Class, Limit, wait_of};
use crate::origin::range::{IDENTITY, not_json, refusal, transport};
use crate::sys::mutant::mutant;

/// Largest answer: a page of a thousand entries is some hundred KiB, a model's own document may list all its files.
const PAGE_LIMIT: usize = 32 << 20;

/// A hub's interface to one repository.
pub(super) struct Api {
    pub(super) egress: Egress,
    pub(super) endpoint: Url,
    /// `organisation/model`
    pub(super) repository: String,
    pub(super) token: Option<Token>,
    pub(super) limit: Limit,
    pub(super) stall: Duration,
    pub(super) unfinished: Unfinished,
}

#[derive(Deserialize)]
struct ModelDocument {
    sha: String,
}

// === impl Api ===

impl Api {
    /// Sends a request for a URL of the hub, with the token; other places never see it. Nothing is sent while the hub wants to
    /// be left alone.
    pub(super) async fn send(
        &self,
        request: RequestBuilder,
        url: &Url,
        class: Class,
        what: &str,
    ) -> Result<Answer, SourceError> {
        if let Some(left) = self.limit.left(class, Instant::now()) {
            return Err(SourceError::RateLimited { what: what.to_owned(), retry_after: Some(left) });
        }
        let mut request = request.header(IDENTITY.0, IDENTITY.1);
        if let Some(token) = self.token.as_ref().filter(|_| !leads_elsewhere(&self.endpoint, url)) {
            if mutant("token_logged") {
                tracing::trace!(header = %String::from_utf8_lossy(token.header().as_bytes()), "sends");
            }
            request = request.header("authorization", token.header());
        }
        let failed = |error| transport(&error, what, self.stall);
        let request = request.build().map_err(failed)?;
        let answer = match class {
            Class::Bytes => self.egress.bulk(&request, what).await?,
            _ => None,
        };
        let answer = match answer {
            Some(answer) => answer,
            None => self.egress.client().execute(request).await.map_err(failed)?.into(),
        };
        self.limit.heard(class, answer.head.status(), answer.head.headers(), Instant::now());
        Ok(answer)
    }

    /// The commit that a branch or tag stands for now.
    pub(super) async fn commit(&self, revision: &str) -> Result<String, SourceError> {
        let url = self.url(&["api", "models"], &["revision", revision])?;
        let what = format!("hf://{}@{revision}", self.repository);
        let (bytes, _) = self.get(url, &what).await?;
        let document: ModelDocument = serde_json::from_slice(&bytes).map_err(|error| not_json(&what, &error))?;
        if bytes_of::<20>(&document.sha).is_some() {
            return Ok(document.sha);
        }
        Err(SourceError::Protocol { what, detail: format!("names `{:.80}` as commit", excerpt(&document.sha)) })
    }

    /// Every file of a commit, however many pages they are on. After an error of the hub the next call goes on where this one
    /// stopped.
    pub(super) async fn tree(&self, commit: &str, most: usize) -> Result<Vec<Entry>, SourceError> {
        let what = format!("hf://{}@{commit}", self.repository);
        let owner = Owner { repository: self.url(&[], &[])?, account: self.limit.account };
        let mut pages = match self.unfinished.take(&owner, commit) {
            Some(pages) => pages,
            None => {
                let mut url = self.url(&["api", "models"], &["tree", commit])?;
                url.set_query(Some("recursive=true&expand=false"));
                Pages::new(commit, url)
            }
        };
        loop {
            let (bytes, headers) = match self.get(pages.next.clone(), &what).await {
                Ok(page) => page,
                Err(error) => {
                    self.unfinished.put(owner, pages);
                    return Err(error);
                }
            };
            if !pages.take(&self.endpoint, &what, (&bytes, &headers), most)? {
                return Ok(pages.entries);
            }
        }
    }

    /// Where the hub gives out a file.
    pub(super) fn file_url(&self, path: &str, commit: &str) -> Result<Url, SourceError> {
        let mut segments = vec!["resolve", commit];
        segments.extend(path.split('/'));
        self.url(&[], &segments)
    }

    fn url(&self, before: &[&str], after: &[&str]) -> Result<Url, SourceError> {
        let mut url = self.endpoint.clone();
        match url.path_segments_mut() {
            // Each segment is escaped whole: a branch may have a slash in its name.
            Ok(mut segments) => {
                segments.pop_if_empty().extend(before).extend(self.repository.split('/')).extend(after);
            }
            Err(()) => {
                return Err(SourceError::Invalid { detail: format!("HF_ENDPOINT `{}` has no path", self.endpoint) });
            }
        }
        Ok(url)
    }

    async fn get(&self, url: Url, what: &str) -> Result<(Vec<u8>, HeaderMap), SourceError> {
        let mut url = url;
        let mut hops = 0;
        let answer = loop {
            let answer = self.send(self.egress.client().get(url.clone()), &url, Class::Questions, what).await?.head;
            if !answer.status().is_redirection() {
                break answer;
            }
            // A repository that was renamed; nothing else is followed here.
            let target = answer.headers().get(reqwest::header::LOCATION).and_then(|value| value.to_str().ok());
            let next = target.and_then(|target| url.join(target).ok());
            hops += 1;
            let next = next.filter(|next| hops < HOPS && !leads_elsewhere(&self.endpoint, next) && renamed(&url, next));
            url = next.ok_or_else(|| SourceError::Protocol {
                what: what.to_owned(),
                detail: "is redirected to another host, to another question or in a circle".to_owned(),
            })?;
        };
        if !answer.status().is_success() {
            return Err(self.explain(answer, what).await);
        }
        let headers = answer.headers().clone();
        let (mut body, mut bytes) = (answer.bytes_stream(), Vec::new());
        while let Some(piece) = body.next().await {
            let piece = piece.map_err(|error| transport(&error, what, self.stall))?;
            if bytes.len() + piece.len() > PAGE_LIMIT {
                let detail = format!("answers with more than {PAGE_LIMIT} bytes");
                return Err(SourceError::Protocol { what: what.to_owned(), detail });
            }
            bytes.extend_from_slice(&piece);
        }
        Ok((bytes, headers))
    }

    /// What a refusal of the hub means.
    pub(super) async fn explain(&self, answer: Response, what: &str) -> SourceError {
        let header = |name: &str| answer.headers().get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let about = About {
            what: what.to_owned(),
            page: format!("{}/{}", safe(&self.endpoint).trim_end_matches('/'), self.repository),
            token: self.token.as_ref().map(|token| token.source().to_owned()),
        };
        let (code, message) = (header("x-error-code"), header("x-error-message"));
        if let Some(meaning) = refusal::meaning(answer.status(), code, message, &about) {
            return meaning;
        }
        if answer.status() == StatusCode::TOO_MANY_REQUESTS {
            return SourceError::RateLimited { what: what.to_owned(), retry_after: wait_of(answer.headers()) };
        }
        refusal(answer, what, self.stall).await
    }
}

/// The same question about a repository of another name.
fn renamed(from: &Url, to: &Url) -> bool {
    let kind = |url: &Url| url.path().contains("/api/models/");
    kind(from) == kind(to) && from.query() == to.query()
}

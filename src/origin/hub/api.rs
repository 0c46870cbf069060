//! What is asked of a hub besides bytes: which commit a branch is, and what a commit has.

use std::time::Duration;

use futures_util::StreamExt;
use reqwest::header::{HeaderMap, LINK};
use reqwest::{Client, RequestBuilder, Response, StatusCode, Url};
use serde::Deserialize;

use super::location::leads_elsewhere;
use super::token::Token;
use crate::model::FilePath;
use crate::model::source::SourceError;
use crate::origin::egress::safe;
use crate::origin::range::{IDENTITY, refusal, transport};

/// Largest answer: a page of a thousand entries is some hundred KiB, a model's own document may list all its files.
const PAGE_LIMIT: usize = 32 << 20;

/// A hub's interface to one repository.
pub(super) struct Api {
    pub(super) client: Client,
    pub(super) endpoint: Url,
    /// `organisation/model`
    pub(super) repository: String,
    pub(super) token: Option<Token>,
    pub(super) stall: Duration,
}

/// A file of a commit.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) path: FilePath,
    pub(super) size: u64,
    /// SHA-256 of the content, where the hub keeps it outside git.
    pub(super) sha256: Option<String>,
    /// Git's name of the blob: of the content, or of the pointer to it.
    pub(super) git: String,
}

#[derive(Deserialize)]
struct ModelDocument {
    sha: String,
}

#[derive(Deserialize)]
struct TreeEntry {
    #[serde(rename = "type")]
    kind: String,
    path: String,
    #[serde(default)]
    size: u64,
    #[serde(default)]
    oid: String,
    lfs: Option<Lfs>,
}

#[derive(Deserialize)]
struct Lfs {
    oid: String,
    size: u64,
}

// === impl Api ===

impl Api {
    /// The commit that a branch or tag stands for now.
    pub(super) async fn commit(&self, revision: &str) -> Result<String, SourceError> {
        let url = self.url(&["api", "models"], &["revision", revision])?;
        let what = format!("hf://{}@{revision}", self.repository);
        let (bytes, _) = self.get(url, &what).await?;
        let document: ModelDocument = parse(&bytes, &what)?;
        if is_hex(&document.sha, 40) {
            return Ok(document.sha);
        }
        Err(SourceError::Protocol { what, detail: format!("names `{:.80}` as commit", document.sha) })
    }

    /// Every file of a commit, however many pages they are on.
    pub(super) async fn tree(&self, commit: &str, most: usize) -> Result<Vec<Entry>, SourceError> {
        let what = format!("hf://{}@{commit}", self.repository);
        let mut url = self.url(&["api", "models"], &["tree", commit])?;
        url.set_query(Some("recursive=true&expand=false"));
        let mut entries = Vec::new();
        loop {
            let (bytes, headers) = self.get(url.clone(), &what).await?;
            let page: Vec<TreeEntry> = parse(&bytes, &what)?;
            let empty = page.is_empty();
            for entry in page.into_iter().filter(|entry| entry.kind == "file") {
                entries.push(entry_of(entry, &what)?);
            }
            if entries.len() > most {
                let detail =
                    format!("{what} has more than {most} files: raise origins.files_max or narrow the reference");
                return Err(SourceError::Invalid { detail });
            }
            let Some(next) = next_page(&headers) else { return Ok(entries) };
            let next = url.join(&next).ok().filter(|next| !leads_elsewhere(&self.endpoint, next) && *next != url);
            match next {
                // A page without entries that names another is a loop in the making.
                Some(next) if !empty => url = next,
                _ => {
                    let detail = "continues its list at another host, or in a circle".to_owned();
                    return Err(SourceError::Protocol { what, detail });
                }
            }
        }
    }

    /// Where the hub gives out a file.
    pub(super) fn file_url(&self, path: &str, commit: &str) -> Result<Url, SourceError> {
        let mut segments = vec!["resolve", commit];
        segments.extend(path.split('/'));
        self.url(&[], &segments)
    }

    /// Adds the token, if the URL is the hub's.
    pub(super) fn authorised(&self, request: RequestBuilder, url: &Url) -> RequestBuilder {
        match &self.token {
            Some(token) if !leads_elsewhere(&self.endpoint, url) => request.header("authorization", token.header()),
            _ => request,
        }
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
        let answer = loop {
            let request = self.authorised(self.client.get(url.clone()), &url).header(IDENTITY.0, IDENTITY.1);
            let answer = request.send().await.map_err(|error| transport(&error, what, self.stall))?;
            if !answer.status().is_redirection() {
                break answer;
            }
            // A repository that was renamed; nothing else is followed here.
            let target = answer.headers().get(reqwest::header::LOCATION).and_then(|value| value.to_str().ok());
            let next = target.and_then(|target| url.join(target).ok());
            match next.filter(|next| !leads_elsewhere(&self.endpoint, next) && *next != url && renamed(&url, next)) {
                Some(next) => url = next,
                None => return Err(self.explain(answer, what).await),
            }
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

    /// What a refusal of the hub means. It says 401 of what does not exist, so that nobody can find out what does.
    pub(super) async fn explain(&self, answer: Response, what: &str) -> SourceError {
        let header = |name: &str| answer.headers().get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
        let code = header("x-error-code").unwrap_or_default();
        let what = what.to_owned();
        let seen = if self.token.is_some() { "with this token" } else { "without a token: set HF_TOKEN" };
        match (answer.status(), code.as_str()) {
            (_, "GatedRepo") => SourceError::Denied {
                what,
                detail: format!(
                    "its terms have not been accepted {seen}; see {}/{}",
                    safe(&self.endpoint),
                    self.repository
                ),
            },
            (StatusCode::UNAUTHORIZED, _) | (_, "RepoNotFound") => SourceError::Denied {
                what,
                detail: format!("the hub has no such model, or none that is visible {seen}"),
            },
            (_, "RevisionNotFound") => SourceError::NotFound { what: format!("revision of {what}") },
            (StatusCode::TOO_MANY_REQUESTS, _) => {
                let retry_after = header("ratelimit").as_deref().and_then(until_reset);
                match retry_after {
                    Some(wait) => SourceError::RateLimited { what, retry_after: Some(wait) },
                    None => refusal(answer, &what, self.stall).await,
                }
            }
            _ => refusal(answer, &what, self.stall).await,
        }
    }
}

fn entry_of(entry: TreeEntry, what: &str) -> Result<Entry, SourceError> {
    let protocol = |detail: String| SourceError::Protocol { what: what.to_owned(), detail };
    let path = FilePath::new(&entry.path).map_err(|error| protocol(format!("lists a path that is none: {error}")))?;
    let (size, sha256) = match entry.lfs {
        Some(lfs) => (lfs.size, Some(lfs.oid.strip_prefix("sha256:").unwrap_or(&lfs.oid).to_owned())),
        None => (entry.size, None),
    };
    if !sha256.as_ref().is_none_or(|hex| is_hex(hex, 64)) || !is_hex(&entry.oid, 40) {
        return Err(protocol(format!("gives no digest of {path}")));
    }
    Ok(Entry { path, size, sha256, git: entry.oid })
}

/// The same question about a repository of another name.
fn renamed(from: &Url, to: &Url) -> bool {
    let kind = |url: &Url| url.path().contains("/api/models/");
    kind(from) == kind(to) && from.query() == to.query()
}

fn is_hex(text: &str, len: usize) -> bool {
    text.len() == len && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

fn parse<'a, T: Deserialize<'a>>(bytes: &'a [u8], what: &str) -> Result<T, SourceError> {
    serde_json::from_slice(bytes).map_err(|error| SourceError::Protocol {
        what: what.to_owned(),
        detail: format!("its answer is not what a hub answers: {error}"),
    })
}

/// The URL of `Link: <url>; rel="next"`.
fn next_page(headers: &HeaderMap) -> Option<String> {
    let links = headers.get(LINK)?.to_str().ok()?;
    let next = links.split(',').find(|link| link.contains("rel=\"next\""))?;
    Some(next.split_once('<')?.1.split_once('>')?.0.to_owned())
}

/// Seconds until the window ends, of `RateLimit: "api";r=0;t=55`, where nothing remains.
fn until_reset(field: &str) -> Option<Duration> {
    let value = |name: &str| field.split(';').find_map(|part| part.trim().strip_prefix(name)?.parse::<u64>().ok());
    (value("r=")? == 0).then_some(Duration::from_secs(value("t=")?.min(300) + 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_and_limits_are_read() {
        let mut headers = HeaderMap::new();
        assert_eq!(next_page(&headers), None);
        let link = "<https://hub/api/x?cursor=a%3D>; rel=\"next\", <https://hub/y>; rel=\"last\"";
        headers.insert(LINK, link.parse().unwrap());
        assert_eq!(next_page(&headers).as_deref(), Some("https://hub/api/x?cursor=a%3D"));
        assert_eq!(until_reset("\"api\";r=0;t=55"), Some(Duration::from_secs(56)));
        assert_eq!(until_reset("\"api\";r=3;t=55"), None);
        assert_eq!(until_reset("nonsense"), None);
    }

    #[test]
    fn entries_without_a_digest_are_refused() {
        let entry = |path: &str, oid: &str, lfs: Option<&str>| {
            let lfs = lfs.map(|oid| Lfs { oid: oid.to_owned(), size: 5 });
            entry_of(
                TreeEntry { kind: "file".to_owned(), path: path.to_owned(), size: 7, oid: oid.to_owned(), lfs },
                "x",
            )
        };
        let (git, sha256) = ("ab".repeat(20), "cd".repeat(32));
        assert_eq!(entry("a", &git, None).map(|entry| (entry.size, entry.sha256)).unwrap(), (7, None));
        assert_eq!(entry("a", &git, Some(&sha256)).unwrap().size, 5);
        for (path, oid, lfs) in [("../a", git.as_str(), None), ("a", "", None), ("a", &git, Some("beef"))] {
            assert!(entry(path, oid, lfs).is_err(), "{path} {oid}");
        }
    }
}

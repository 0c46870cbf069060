//! What a commit has, page by page. A page is believed only as far as it makes sense, and what it says is bounded.

use reqwest::Url;
use reqwest::header::{HeaderMap, LINK};
use serde::Deserialize;

use super::location::leads_elsewhere;
use crate::digest::{Algorithm, Declared};
use crate::model::FilePath;
use crate::model::source::{SourceError, Validator};
use crate::origin::range::not_json;
use crate::origin::selected::Listed;

/// Folders that a listing may have beside its files, and pages that it may have: hubs give a thousand entries a page, fewer
/// where they tell more of each. What is over is a circle or an attack.
const FOLDERS: usize = 100_000;
/// See [`FOLDERS`].
const PAGES: usize = 4_000;

/// A listing as far as it has been read. It outlives a pause that the hub asks for, which may come in the middle of a hundred
/// pages.
#[derive(Debug)]
pub(super) struct Pages {
    pub(super) commit: String,
    pub(super) entries: Vec<Entry>,
    /// Where it goes on.
    pub(super) next: Url,
    folders: usize,
    pages: usize,
}

/// A file of a commit. Its digests stay bytes: a listing may have a hundred thousand.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) path: FilePath,
    pub(super) size: u64,
    pub(super) digest: Digest,
}

/// What names the content of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Digest {
    /// SHA-256 of the content, where the hub keeps it outside git.
    Sha256([u8; 32]),
    /// Git's name of the blob.
    Git([u8; 20]),
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

// === impl Pages ===

impl Pages {
    pub(super) fn new(commit: &str, first: Url) -> Self {
        Self { commit: commit.to_owned(), entries: Vec::new(), next: first, folders: 0, pages: 0 }
    }

    /// Takes a page in. True: there is another, at `next`.
    pub(super) fn take(
        &mut self,
        hub: &Url,
        what: &str,
        (bytes, headers): (&[u8], &HeaderMap),
        most: usize,
    ) -> Result<bool, SourceError> {
        let protocol = |detail: &str| SourceError::Protocol { what: what.to_owned(), detail: detail.to_owned() };
        let page: Vec<TreeEntry> = serde_json::from_slice(bytes).map_err(|error| not_json(what, &error))?;
        let empty = page.is_empty();
        self.pages += 1;
        for entry in page {
            if entry.kind == "file" {
                self.entries.push(entry_of(&entry, what)?);
            } else {
                self.folders += 1;
            }
        }
        if self.entries.len() > most {
            let detail = format!("{what} has more than {most} files: raise origins.files_max or narrow the reference");
            return Err(SourceError::Invalid { detail });
        }
        let Some(next) = next_page(headers) else {
            self.entries.sort_by(|one, other| one.path.cmp(&other.path));
            return match self.entries.windows(2).find(|pair| pair[0].path == pair[1].path) {
                Some(pair) => Err(protocol(&format!("lists {} twice", pair[0].path))),
                None => Ok(false),
            };
        };
        let next = self.next.join(&next).ok().filter(|next| !leads_elsewhere(hub, next) && *next != self.next);
        match next {
            // A page without entries that names another is a loop in the making.
            Some(next) if !empty && self.folders <= FOLDERS && self.pages < PAGES => {
                self.next = next;
                Ok(true)
            }
            _ => Err(protocol("continues its list at another host, in a circle or without end")),
        }
    }
}

// === impl Entry ===

impl Entry {
    pub(super) fn listed(&self) -> Listed {
        let locator = self.path.to_string();
        Listed { path: self.path.clone(), size: self.size, locator, validator: self.digest.validator() }
    }
}

// === impl Digest ===

impl Digest {
    pub(super) fn declared(self) -> Declared {
        match self {
            Self::Sha256(bytes) => Declared { algorithm: Algorithm::Sha256, hex: hex(&bytes) },
            Self::Git(bytes) => Declared { algorithm: Algorithm::GitSha1, hex: hex(&bytes) },
        }
    }

    fn validator(self) -> Validator {
        Validator::Strong(match self {
            Self::Sha256(bytes) => format!("lfs:{}", hex(&bytes)),
            Self::Git(bytes) => format!("git:{}", hex(&bytes)),
        })
    }
}

fn entry_of(entry: &TreeEntry, what: &str) -> Result<Entry, SourceError> {
    let protocol = |detail: String| SourceError::Protocol { what: what.to_owned(), detail };
    let path = FilePath::new(&entry.path).map_err(|error| protocol(format!("lists a path that is none: {error}")))?;
    let (size, digest) = match &entry.lfs {
        // Beside it `oid` names the pointer, not the content.
        Some(lfs) => (lfs.size, bytes_of(lfs.oid.strip_prefix("sha256:").unwrap_or(&lfs.oid)).map(Digest::Sha256)),
        None => (entry.size, bytes_of(&entry.oid).map(Digest::Git)),
    };
    match digest {
        Some(digest) => Ok(Entry { path, size, digest }),
        None => Err(protocol(format!("gives no digest of {path}"))),
    }
}

/// Bytes of lower-case hex.
pub(super) fn bytes_of<const N: usize>(text: &str) -> Option<[u8; N]> {
    let digits = text.as_bytes();
    if digits.len() != 2 * N || !digits.iter().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
        return None;
    }
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(bytes)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The URL of `Link: <url>; rel="next"`.
fn next_page(headers: &HeaderMap) -> Option<String> {
    let links = headers.get(LINK)?.to_str().ok()?;
    let next = links.split(',').find(|link| link.contains("rel=\"next\""))?;
    Some(next.split_once('<')?.1.split_once('>')?.0.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(next: Option<&str>) -> HeaderMap {
        let link = next.map(|next| format!("<{next}>; rel=\"next\", <https://hub/y>; rel=\"last\"").parse().unwrap());
        link.map(|link| (LINK, link)).into_iter().collect()
    }

    fn pages() -> (Url, Pages) {
        let hub = Url::parse("https://hub/").unwrap();
        (hub.clone(), Pages::new("c", hub.join("api/x").unwrap()))
    }

    fn file(path: &str, oid: &str, lfs: Option<&str>) -> serde_json::Value {
        let mut entry = serde_json::json!({"type": "file", "path": path, "size": 7, "oid": oid});
        if let Some(oid) = lfs {
            entry["lfs"] = serde_json::json!({"oid": oid, "size": 5});
        }
        entry
    }

    fn take(entries: &[serde_json::Value], next: Option<&str>, most: usize) -> Result<(bool, Pages), SourceError> {
        let (hub, mut pages) = pages();
        let bytes = serde_json::to_vec(entries).unwrap();
        pages.take(&hub, "it", (&bytes, &page(next)), most).map(|more| (more, pages))
    }

    #[test]
    fn sizes_and_digests_are_of_the_content() {
        let (git, sha256) = ("ab".repeat(20), "cd".repeat(32));
        let found = take(&[file("b", &git, Some(&sha256)), file("a", &git, None)], None, 9).unwrap().1.entries;
        assert_eq!((found[0].size, found[0].digest), (7, Digest::Git([0xab; 20])));
        assert_eq!((found[1].size, found[1].digest.declared().hex), (5, sha256));
    }

    #[test]
    fn entries_that_make_no_sense_are_refused() {
        let (git, upper) = ("ab".repeat(20), "AB".repeat(20));
        for (path, oid, lfs) in
            [("../a", git.as_str(), None), ("a", "", None), ("a", &upper, None), ("a", &git, Some("beef"))]
        {
            assert!(take(&[file(path, oid, lfs)], None, 9).is_err(), "{path} {oid}");
        }
        let twice = take(&[file("a", &git, None), file("a", &git, None)], None, 9).unwrap_err();
        assert!(twice.to_string().contains("twice"), "{twice}");
        let (hub, mut pages) = pages();
        let error = pages.take(&hub, "it", (b"\"Bearer hf_token\"", &page(None)), 9).unwrap_err().to_string();
        assert!(!error.contains("hf_token"), "{error}");
    }

    #[test]
    fn lists_go_on_at_the_hub_and_end() {
        let entry = [file("a", &"ab".repeat(20), None)];
        let (more, pages) = take(&entry, Some("https://hub/api/x?cursor=a%3D"), 9).unwrap();
        assert!(more && pages.next.as_str() == "https://hub/api/x?cursor=a%3D");
        for elsewhere in ["https://evil/api/x", "https://hub:8443/api/x?c", "http://hub/api/x?c", "https://hub/api/x"] {
            assert!(take(&entry, Some(elsewhere), 9).is_err(), "{elsewhere}");
        }
        assert!(take(&[], Some("https://hub/api/x?c"), 9).is_err(), "a page without entries");
        assert!(take(&entry, None, 0).unwrap_err().to_string().contains("origins.files_max"));
    }

    #[test]
    fn lists_without_end_are_left() {
        let (hub, mut pages) = pages();
        let folder = serde_json::to_vec(&[serde_json::json!({"type": "directory", "path": "d"})]).unwrap();
        let left = (0..PAGES + 1).find(|number| {
            let next = format!("https://hub/api/x?cursor={number}");
            pages.take(&hub, "it", (&folder, &page(Some(&next))), 9).is_err()
        });
        assert_eq!(left, Some(PAGES - 1));
    }
}

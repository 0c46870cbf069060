//! References: what a person types, and what it is reduced to.
//!
//! ```text
//! reference = scheme "://" place [ "@" revision ] [ "/" subfolder ] [ "?" query ]
//! scheme    = "file" | "http" | "https" | "s3" | "gs" | "az" | "hf"
//! place     = "/" absolute-path                  for file
//!           | host [ ":" port ] "/" path         for http and https
//!           | bucket [ "/" key-prefix ]          for s3 and gs
//!           | container [ "/" prefix ]           for az; the account is in the environment
//!           | organisation "/" model             for hf
//! revision  = "listing:" 64 hex | "manifest:" 64 hex
//!           | commit | branch | tag              for hf alone
//! query     = ( "include=" glob | "exclude=" glob ) *( "&" ... )
//! ```
//!
//! Everything is percent-decoded once, after it has been cut; `+` is a plus. The revision begins at the last `@` of the path,
//! so an `@` in a name is written `%40`. The subfolder is the part of the model that is wanted: paths in the tree are relative
//! to it. There is no userinfo (a credential in a reference ends up in logs) and no other query (a presigned URL is a
//! credential too). But for hf there are no commits, so only the digests that `preheat` itself prints are revisions there. A
//! branch with a slash is written with `%2F`.
//!
//! A URL library was turned down for cutting: it normalises `..` away before anybody can refuse it, and has no place for a
//! revision in the middle of a path.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::authority::{bucket, container, google_bucket, host, repository};
use super::{FilePath, Revision};

/// How an origin is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scheme {
    /// A local directory or file.
    File,
    /// Plain HTTP.
    Http,
    /// HTTP over TLS.
    Https,
    /// An S3-compatible object store.
    S3,
    /// Google Cloud Storage.
    Gs,
    /// Azure Blob Storage.
    Az,
    /// A Hugging Face hub.
    Hf,
}

/// The identity of an origin: scheme, endpoint and place, canonical, without credentials, revision or subfolder. Examples:
/// `file:///models/a`, `https://host/models/a`, `s3+aws/bucket/prefix`, `s3+http://127.0.0.1:9000/bucket/prefix`,
/// `gs+google/bucket/prefix`, `az+https://account.blob.core.windows.net/container/prefix`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct OriginId(String);

/// Which part of a model is wanted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Selection {
    /// Only files under this directory, and paths relative to it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subfolder: Option<FilePath>,
    /// Globs to take; any at all switches the default choice off. Sorted, none twice.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub include: Vec<String>,
    /// Globs to leave out, applied last. Sorted, none twice.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub exclude: Vec<String>,
}

/// A parsed reference.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Reference {
    /// How to reach it.
    pub scheme: Scheme,
    /// Authority of http(s) (`host[:port]`), bucket of s3 and gs, container of az, organisation of hf, empty for file.
    pub authority: String,
    /// Path or key prefix, percent-decoded, without leading or trailing slash; may be empty for a bucket.
    pub place: String,
    /// Revision as typed: a branch, a commit, or the text of a [`Revision`].
    pub revision: Option<String>,
    /// What part is wanted.
    pub selection: Selection,
}

/// Why a reference could not be read; each says what to write instead.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReferenceError {
    /// No `scheme://`.
    #[error(
        "`{0}` has no scheme: write file:///dir, https://host/path, s3://bucket/prefix, gs://, az:// or hf://org/model"
    )]
    NoScheme(String),
    /// A scheme that this build does not know.
    #[error("`{0}` has an unknown scheme: use file, http, https, s3, gs, az or hf")]
    UnknownScheme(String),
    /// Anything else.
    #[error("`{reference}`: {detail}")]
    Malformed {
        /// The text, shortened, without userinfo.
        reference: String,
        /// What is wrong and what to write.
        detail: String,
    },
}

/// Longest reference.
const LENGTH_LIMIT: usize = 4096;

/// Most globs in one reference.
const GLOB_LIMIT: usize = 64;

// === impl Scheme ===

impl Scheme {
    /// As written before `://`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::File => "file",
            Self::Http => "http",
            Self::Https => "https",
            Self::S3 => "s3",
            Self::Gs => "gs",
            Self::Az => "az",
            Self::Hf => "hf",
        }
    }
}

// === impl OriginId ===

impl OriginId {
    /// The origin of a reference. `endpoint` is the one in force for its scheme: `None` is AWS and Google themselves; for az
    /// the account's and for hf the hub's is always named.
    #[must_use]
    pub fn of(reference: &Reference, endpoint: Option<&str>) -> Self {
        let Reference { scheme, authority, place, .. } = reference;
        let mut text = match scheme {
            Scheme::File => "file://".to_owned(),
            Scheme::Http | Scheme::Https => format!("{}://{authority}", scheme.as_str()),
            Scheme::S3 | Scheme::Gs | Scheme::Az | Scheme::Hf => {
                let itself = match scheme {
                    Scheme::S3 => "aws",
                    Scheme::Gs => "google",
                    _ => "",
                };
                let endpoint = endpoint.map_or(itself, |url| url.trim_end_matches('/'));
                format!("{}+{endpoint}/{authority}", scheme.as_str())
            }
        };
        if !place.is_empty() {
            text.push('/');
            text.push_str(place);
        }
        Self(text)
    }

    /// The canonical text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// An identity from its canonical text.
    #[must_use]
    pub fn new(text: String) -> Self {
        Self(text)
    }

    /// What of it is one server, as far as limits go: the scheme and the host, of AWS and Google the bucket.
    #[must_use]
    pub fn server(&self) -> &str {
        let from = self.0.find("://").map_or(0, |at| at + 3);
        let skip = usize::from(from == 0);
        self.0[from..].match_indices('/').nth(skip).map_or(self.as_str(), |(at, _)| &self.0[..from + at])
    }

    /// The last path segment, for people.
    #[must_use]
    pub fn last_segment(&self) -> &str {
        self.0.trim_end_matches('/').rsplit('/').next().unwrap_or_default()
    }
}

impl fmt::Display for OriginId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

// === impl Selection ===

impl Selection {
    /// Canonical text for keys: one line a part, in fixed order.
    #[must_use]
    pub fn canonical(&self) -> String {
        let mut text = String::new();
        if let Some(subfolder) = &self.subfolder {
            text.push_str(&format!("subfolder {subfolder}\n"));
        }
        for (word, globs) in [("include", &self.include), ("exclude", &self.exclude)] {
            for glob in globs {
                text.push_str(&format!("{word} {glob}\n"));
            }
        }
        text
    }

    /// The path inside the tree of a file of the origin: relative to the subfolder; `None` if it lies outside.
    #[must_use]
    pub fn strip(&self, path: &FilePath) -> Option<FilePath> {
        let Some(subfolder) = &self.subfolder else { return Some(path.clone()) };
        let rest = path.as_str().strip_prefix(subfolder.as_str())?.strip_prefix('/')?;
        FilePath::new(rest).ok()
    }
}

// === impl Reference ===

impl Reference {
    /// The immutable revision that the reference names, if it names one.
    #[must_use]
    pub fn pinned(&self) -> Option<Revision> {
        Revision::try_from(self.revision.clone()?).ok()
    }

    /// The same place without revision, subfolder and query, as typed: what an allow-list compares with.
    #[must_use]
    pub fn base(&self) -> String {
        let place = encode(&self.place, "/");
        let slash = if place.is_empty() && self.scheme != Scheme::File { "" } else { "/" };
        format!("{}://{}{slash}{place}", self.scheme.as_str(), self.authority)
    }
}

impl fmt::Display for Reference {
    /// The canonical form; reading it gives the same reference.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.base())?;
        if let Some(revision) = &self.revision {
            write!(f, "@{}", encode(revision, ":"))?;
        }
        if let Some(subfolder) = &self.selection.subfolder {
            // Without a revision the subfolder would read as part of the place: an empty revision keeps them apart.
            let apart = if self.revision.is_none() { "@" } else { "" };
            write!(f, "{apart}/{}", encode(subfolder.as_str(), "/"))?;
        }
        let globs = [("include", &self.selection.include), ("exclude", &self.selection.exclude)];
        let globs = globs.iter().flat_map(|(word, globs)| globs.iter().map(move |glob| (word, glob)));
        for (number, (word, glob)) in globs.enumerate() {
            let separator = if number == 0 { '?' } else { '&' };
            write!(f, "{separator}{word}={}", encode(glob, "/*"))?;
        }
        Ok(())
    }
}

impl FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        let shown = shown(text);
        let malformed =
            |detail: &str| ReferenceError::Malformed { reference: shown.clone(), detail: detail.to_owned() };
        if text.len() > LENGTH_LIMIT {
            return Err(malformed("is longer than 4,096 bytes"));
        }
        if text.chars().any(|c| c.is_control() || c == ' ' || c == '\\') {
            return Err(malformed("has a blank, a backslash or a control character: write it percent-encoded"));
        }
        let Some((scheme, rest)) = text.split_once("://") else {
            return Err(ReferenceError::NoScheme(shown));
        };
        let scheme = match scheme {
            "file" => Scheme::File,
            "http" => Scheme::Http,
            "https" => Scheme::Https,
            "s3" => Scheme::S3,
            "gs" => Scheme::Gs,
            "az" => Scheme::Az,
            "hf" => Scheme::Hf,
            _ => return Err(ReferenceError::UnknownScheme(shown)),
        };
        if rest.contains('#') {
            return Err(malformed("has a fragment (#): write %23 if it belongs to a name"));
        }
        let (rest, query) = rest.split_once('?').map_or((rest, None), |(rest, query)| (rest, Some(query)));
        let (authority, path) = rest.split_once('/').map_or((rest, ""), |(authority, path)| (authority, path));
        if authority.contains('@') {
            // `s3://bucket@rev` has its revision in what looks like the authority.
            let hint = if scheme == Scheme::Hf {
                "names no model: write hf://organisation/model"
            } else if matches!(scheme, Scheme::S3 | Scheme::Gs | Scheme::Az) {
                "write the revision after the key prefix, and no credential into a reference"
            } else {
                "names a user: credentials do not belong into a reference, set them in the environment"
            };
            return Err(malformed(hint));
        }
        let authority = match scheme {
            Scheme::File if !authority.is_empty() => {
                return Err(malformed("names a host: write file:/// and an absolute path, with three slashes"));
            }
            Scheme::File => String::new(),
            Scheme::Http | Scheme::Https => host(scheme, authority).ok_or_else(|| malformed("has no valid host"))?,
            Scheme::S3 => bucket(authority)
                .ok_or_else(|| malformed("has no valid bucket: 3 to 63 characters of a-z, 0-9, dot and dash"))?,
            Scheme::Gs => google_bucket(authority).ok_or_else(|| {
                malformed("has no valid bucket: 3 to 222 characters of a-z, 0-9, dash, underscore and dot, 63 between dots")
            })?,
            Scheme::Az => container(authority).ok_or_else(|| {
                malformed("has no valid container: 3 to 63 characters of a-z, 0-9 and single dashes; the account is set in AZURE_STORAGE_ACCOUNT_NAME")
            })?,
            Scheme::Hf => repository(authority)
                .ok_or_else(|| malformed("names no organisation: write hf://organisation/model"))?,
        };
        // The last `@` begins the revision; an empty revision only marks where the subfolder begins.
        let (place, revision, subfolder) = match path.rsplit_once('@') {
            None => (path, "", ""),
            Some((place, rest)) => {
                let (revision, subfolder) = rest.split_once('/').unwrap_or((rest, ""));
                (place, revision, subfolder)
            }
        };
        let decode =
            |part: &str| decode(part).ok_or_else(|| malformed("has a broken percent-encoding or is not UTF-8"));
        let place = decode(place.trim_end_matches('/'))?;
        if !place.is_empty() {
            clean(&place).map_err(|detail| malformed(&detail))?;
        } else if scheme == Scheme::Hf {
            return Err(malformed("names no model: write hf://organisation/model"));
        } else if matches!(scheme, Scheme::File) {
            return Err(malformed("names no directory: write file:/// and an absolute path"));
        }
        if scheme == Scheme::Hf && repository(&place).is_none() {
            return Err(malformed(
                "names no model: write hf://organisation/model, and a folder in it after @revision/",
            ));
        }
        let revision = Some(decode(revision)?).filter(|revision| !revision.is_empty());
        if scheme == Scheme::Hf {
            if let Some(revision) = &revision {
                clean(revision).map_err(|detail| malformed(&format!("revision: {detail}")))?;
            }
        } else if let Some(revision) = &revision
            && !matches!(Revision::try_from(revision.clone()), Ok(Revision::Listing(_) | Revision::Manifest(_)))
        {
            return Err(malformed(&format!(
                "`@{revision}` is not a revision of this kind of origin: use what `fetch --json` prints as `revision` \
                 (listing:... or manifest:...), or write %40 if the @ belongs to a name"
            )));
        }
        let subfolder = decode(subfolder.trim_end_matches('/'))?;
        let subfolder = match subfolder.as_str() {
            "" => None,
            text => Some(FilePath::new(text).map_err(|error| malformed(&format!("subfolder: {error}")))?),
        };
        let mut selection = Selection { subfolder, ..Selection::default() };
        for pair in query.into_iter().flat_map(|query| query.split('&')) {
            let (key, glob) = pair.split_once('=').unwrap_or((pair, ""));
            let glob = decode(glob)?;
            let globs = match key {
                "include" => &mut selection.include,
                "exclude" => &mut selection.exclude,
                _ => {
                    return Err(malformed(
                        "has a query other than include= and exclude=; a presigned URL is a credential and is not taken",
                    ));
                }
            };
            if glob.is_empty() {
                return Err(malformed(&format!("{key}= is empty")));
            }
            if glob.chars().any(char::is_control) {
                return Err(malformed(&format!("{key}= has a control character")));
            }
            globs.push(glob);
        }
        for globs in [&mut selection.include, &mut selection.exclude] {
            if globs.len() > GLOB_LIMIT {
                return Err(malformed("has more than 64 globs"));
            }
            globs.sort();
            globs.dedup();
        }
        Ok(Self { scheme, authority, place, revision, selection })
    }
}

/// The text without query and userinfo, shortened: safe to print.
fn shown(text: &str) -> String {
    let text = text.split(['?', '#']).next().unwrap_or_default();
    let text = match text.split_once("://") {
        Some((scheme, rest)) => {
            // A password with a slash in it seems to end the authority: what looks like a port is then no number.
            let seeming = rest.split('/').next().unwrap_or_default();
            let no_port = seeming
                .rsplit_once(':')
                .is_some_and(|(_, port)| !port.ends_with(']') && !port.bytes().all(|b| b.is_ascii_digit()));
            let rest = if no_port { rest.rsplit('@').next().unwrap_or_default() } else { rest };
            let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
            let authority = authority.rsplit('@').next().unwrap_or_default();
            format!("{scheme}://{authority}{path}")
        }
        None => text.to_owned(),
    };
    text.chars().take(200).collect::<String>().escape_default().to_string().replace("\\'", "'")
}

/// A decoded path without `.`, `..`, empty segments, control characters.
fn clean(path: &str) -> Result<(), String> {
    if path.chars().any(char::is_control) {
        return Err("has a control character".to_owned());
    }
    if path.split('/').any(|segment| matches!(segment, "" | "." | "..")) {
        return Err("has an empty, `.` or `..` segment".to_owned());
    }
    Ok(())
}

fn decode(text: &str) -> Option<String> {
    let bytes = text.as_bytes();
    let broken = (0..bytes.len()).any(|at| {
        bytes[at] == b'%' && !bytes.get(at + 1..at + 3).is_some_and(|hex| hex.iter().all(u8::is_ascii_hexdigit))
    });
    if broken {
        return None;
    }
    percent_encoding::percent_decode_str(text).decode_utf8().ok().map(std::borrow::Cow::into_owned)
}

/// Percent-encodes everything but letters, digits, `-._~` and `keep`.
fn encode(text: &str, keep: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for character in text.chars() {
        if character.is_ascii_alphanumeric() || "-._~".contains(character) || keep.contains(character) {
            encoded.push(character);
        } else {
            let mut utf8 = [0; 4];
            for byte in character.encode_utf8(&mut utf8).bytes() {
                encoded.push_str(&format!("%{byte:02X}"));
            }
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(text: &str) -> Reference {
        text.parse().unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    #[test]
    fn parts_are_cut_and_decoded() {
        let listing = format!("listing:{}", "ab".repeat(32));
        let reference = read(&format!("s3://models/a%40b/c%20d@{listing}/sub/dir?exclude=*.onnx&include=*.json"));
        assert_eq!(reference.authority, "models");
        assert_eq!(reference.place, "a@b/c d");
        assert_eq!(reference.pinned().map(|revision| revision.to_string()), Some(listing));
        assert_eq!(reference.selection.subfolder, FilePath::new("sub/dir").ok());
        assert_eq!(reference.selection.include, ["*.json"]);
        assert_eq!(reference.selection.exclude, ["*.onnx"]);
    }

    #[test]
    fn one_origin_has_one_identity() {
        for (text, endpoint, identity) in [
            ("file:///models/a/", None, "file:///models/a"),
            ("https://HOST:443/models/a", None, "https://host/models/a"),
            ("http://[::1]:8080/m", None, "http://[::1]:8080/m"),
            ("s3://bucket", None, "s3+aws/bucket"),
            ("s3://bucket/p/", Some("http://127.0.0.1:9000/"), "s3+http://127.0.0.1:9000/bucket/p"),
            ("gs://my_bucket.example/p", None, "gs+google/my_bucket.example/p"),
            ("gs://bucket/p", Some("http://127.0.0.1:4443"), "gs+http://127.0.0.1:4443/bucket/p"),
            (
                "az://models/p",
                Some("https://acc.blob.core.windows.net"),
                "az+https://acc.blob.core.windows.net/models/p",
            ),
        ] {
            assert_eq!(OriginId::of(&read(text), endpoint).as_str(), identity, "{text}");
        }
    }

    #[test]
    fn bad_references_say_what_to_write() {
        for (text, says) in [
            ("org/model", "has no scheme"),
            ("ftp://host/x", "unknown scheme"),
            ("file://models/a", "three slashes"),
            ("file:///", "names no directory"),
            ("file:///a/../b", "`..`"),
            ("file:///a/%2e%2e/b", "`..`"),
            ("file:///a%00b", "control character"),
            ("https://user:secret@host/m", "names a user"),
            ("https://host/m?X-Amz-Signature=secret", "presigned"),
            ("https://user:sec/secret@host/m", "has no valid host"),
            ("https://host/m#secret", "fragment"),
            ("https:///m", "host"),
            ("s3://B/x", "bucket"),
            ("s3://bucket/x@main", "not a revision"),
            ("gs://Bucket/x", "222"),
            ("gs://_bucket/x", "222"),
            ("gs://a..b/x", "222"),
            ("az://my_models/x", "single dashes"),
            ("az://my--models/x", "single dashes"),
            ("az://account.blob.core.windows.net/models", "AZURE_STORAGE_ACCOUNT_NAME"),
            ("az://models/x?sv=2024&sig=secret", "presigned"),
            ("s3://bucket/x#y", "fragment"),
            ("s3://bucket/x%zz", "percent"),
            ("s3://bucket/x?include=", "empty"),
            ("s3://bucket/x y", "blank"),
        ] {
            let error = text.parse::<Reference>().expect_err(text).to_string();
            assert!(error.contains(says), "{text}: {error}");
            assert!(!error.contains("secret"), "{text}: {error}");
        }
    }

    #[test]
    fn listings_do_not_depend_on_order() {
        let (a, b) = (FilePath::new("a").unwrap(), FilePath::new("b").unwrap());
        let one = Revision::listing([(&a, 1, "x"), (&b, 2, "y")]);
        assert_eq!(one, Revision::listing([(&b, 2, "y"), (&a, 1, "x")]));
        assert_ne!(one, Revision::listing([(&a, 1, "x"), (&b, 2, "z")]));
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in ".{0,200}") {
            let _ = text.parse::<Reference>();
        }

        #[test]
        fn the_canonical_form_reads_as_itself(
            scheme in prop::sample::select(vec!["file:///", "https://host/", "s3://bucket/", "gs://b_u.cket/", "az://models/"]),
            place in "[a-z@+% ~é*]{1,12}(/[a-z@]{1,5}){0,2}",
            revision in prop::option::of("[0-9a-f]{64}"),
            subfolder in prop::option::of("[a-z@ ]{1,6}"),
            include in prop::collection::vec("[a-z*&=?+]{1,6}", 0..3),
        ) {
            let mut text = format!("{scheme}{}", encode(&place, "/"));
            if let Some(revision) = &revision {
                text.push_str(&format!("@listing:{revision}"));
            }
            if let Some(subfolder) = &subfolder {
                text.push_str(&format!("{}/{}", if revision.is_none() { "@" } else { "" }, encode(subfolder, "")));
            }
            for (number, glob) in include.iter().enumerate() {
                text.push_str(&format!("{}include={}", if number == 0 { '?' } else { '&' }, encode(glob, "")));
            }
            let reference: Reference = text.parse().expect("a valid reference");
            prop_assert_eq!(&reference.place, &place);
            prop_assert_eq!(reference.selection.subfolder.as_ref().map(|s| s.as_str().to_owned()), subfolder);
            prop_assert_eq!(reference.to_string().parse::<Reference>().expect("its own form"), reference);
        }
    }
}

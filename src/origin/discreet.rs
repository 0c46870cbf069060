//! An origin, or a place to write to, whose errors cannot tell the secret that it is asked with.
//!
//! Every kind of origin has its own ways to words from outside: bodies of refusals, messages of parsers and of libraries, header
//! values. A server that echoes what it was sent gets its words into our errors, and from there into logs, answers and job
//! states. Instead of trusting each of those ways, all errors pass through here, where the secrets in use are replaced by
//! `(secret)`, as they are and as an echo may encode them. What no list can know is the part of [`super::excerpt`].

use std::borrow::Cow;
use std::fs::File;
use std::ops::Range;
use std::sync::Arc;
use std::task::{Context, Poll};

use async_trait::async_trait;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};

use crate::model::body::Body;
use crate::model::sink::{Content, Existing, Put, Sent, Sink, Stored};
use crate::model::source::{Origin, RangeBody, RangeSource, RemoteFile, Resolution, SourceError};
use crate::model::{FilePath, Reference, Rights, Secret};
use crate::sys::mutant::mutant;

/// See the module.
pub(super) struct Discreet<T: ?Sized> {
    inner: Arc<T>,
    secrets: Secrets,
}

/// Whose secrets; those of the process are read when an error is there to be told, for they change.
#[derive(Clone)]
struct Secrets(Arc<Rights>);

/// Variables that hold a secret of the process.
const VARIABLES: [&str; 15] = [
    "HF_TOKEN",
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_CONTAINER_AUTHORIZATION_TOKEN",
    "AZURE_STORAGE_ACCOUNT_KEY",
    "AZURE_STORAGE_ACCESS_KEY",
    "AZURE_STORAGE_MASTER_KEY",
    "AZURE_STORAGE_SAS_TOKEN",
    "AZURE_STORAGE_SAS_KEY",
    "AZURE_STORAGE_CLIENT_SECRET",
    "AZURE_CLIENT_SECRET",
    "AZURE_STORAGE_TOKEN",
    "GOOGLE_SERVICE_ACCOUNT_KEY",
    "GOOGLE_BEARER_TOKEN",
];

/// Variables that name a file with one.
const FILES: [&str; 8] = [
    "HF_TOKEN_PATH",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE",
    "AZURE_FEDERATED_TOKEN_FILE",
    "GOOGLE_APPLICATION_CREDENTIALS",
    "GOOGLE_SERVICE_ACCOUNT",
    "GOOGLE_SERVICE_ACCOUNT_PATH",
    "SERVICE_ACCOUNT",
];

/// Variables with a proxy, whose URL may carry a name and a password.
const PROXIES: [&str; 6] = ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"];

/// Shorter text is not masked: it is no secret, and would make every message unreadable.
const SHORTEST: usize = 6;

/// What stands for a secret.
const MASK: &str = "(secret)";

// === impl Discreet ===

impl<T: ?Sized> Discreet<T> {
    pub(super) fn new(inner: Arc<T>, rights: &Rights) -> Self {
        Self { inner, secrets: Secrets(Arc::new(rights.clone())) }
    }
}

impl<T: std::fmt::Debug + ?Sized> std::fmt::Debug for Discreet<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.inner.fmt(f)
    }
}

#[async_trait]
impl RangeSource for Discreet<dyn Origin> {
    async fn open(&self, file: &RemoteFile, range: Range<u64>) -> Result<RangeBody, SourceError> {
        let body = self.inner.open(file, range).await.map_err(|error| self.secrets.mask(error))?;
        let RangeBody { start, ignores_ranges, bytes } = body;
        let bytes = Box::new(DiscreetBody { inner: bytes, secrets: self.secrets.clone() });
        Ok(RangeBody { start, ignores_ranges, bytes })
    }

    fn local(&self, file: &RemoteFile) -> Result<Option<File>, SourceError> {
        self.inner.local(file).map_err(|error| self.secrets.mask(error))
    }
}

/// The same for what goes wrong in the middle of a body.
struct DiscreetBody {
    inner: Box<dyn Body>,
    secrets: Secrets,
}

impl Body for DiscreetBody {
    fn poll_read(&mut self, cx: &mut Context<'_>, into: &mut [u8]) -> Poll<Result<usize, SourceError>> {
        self.inner.poll_read(cx, into).map_err(|error| self.secrets.mask(error))
    }
}

#[async_trait]
impl Origin for Discreet<dyn Origin> {
    async fn resolve(&self, reference: &Reference) -> Result<Resolution, SourceError> {
        self.inner.resolve(reference).await.map_err(|error| self.secrets.mask(error))
    }

    async fn prove(&self, resolution: &Resolution) -> Result<(), SourceError> {
        self.inner.prove(resolution).await.map_err(|error| self.secrets.mask(error))
    }
}

#[async_trait]
impl Sink for Discreet<dyn Sink> {
    async fn head(&self, path: &FilePath) -> Result<Option<Stored>, SourceError> {
        self.inner.head(path).await.map_err(|error| self.secrets.mask(error))
    }

    fn locator(&self, path: &FilePath) -> String {
        self.inner.locator(path)
    }

    async fn put(
        &self,
        path: &FilePath,
        content: &Content,
        existing: Existing,
        sent: Sent,
    ) -> Result<Put, SourceError> {
        self.inner.put(path, content, existing, sent).await.map_err(|error| self.secrets.mask(error))
    }
}

// === impl Secrets ===

impl Secrets {
    fn mask(&self, mut error: SourceError) -> SourceError {
        if mutant("echoes_shown") {
            return error;
        }
        let secrets = match &*self.0 {
            Rights::Anonymous => proxy_secrets(),
            Rights::Caller(credential) => {
                credential.secrets().into_iter().map(Secret::reveal).map(str::to_owned).chain(proxy_secrets()).collect()
            }
            Rights::Own => own_secrets(),
        };
        let forms: Vec<String> = secrets.iter().flat_map(|secret| forms(secret)).collect();
        for text in texts(&mut error) {
            if let Cow::Owned(masked) = masked(text, &forms) {
                *text = masked;
            }
        }
        error
    }
}

fn texts(error: &mut SourceError) -> Vec<&mut String> {
    match error {
        SourceError::NotFound { what }
        | SourceError::Changed { what }
        | SourceError::RateLimited { what, .. }
        | SourceError::Stalled { what, .. } => vec![what],
        SourceError::Invalid { detail } => vec![detail],
        SourceError::Denied { what, detail }
        | SourceError::NotAllowed { what, detail }
        | SourceError::NoSpace { what, detail }
        | SourceError::Unavailable { what, detail }
        | SourceError::Protocol { what, detail } => vec![what, detail],
    }
}

fn masked<'a>(text: &'a str, forms: &[String]) -> Cow<'a, str> {
    let mut text = Cow::Borrowed(text);
    for form in forms {
        if text.contains(form.as_str()) {
            text = Cow::Owned(text.replace(form.as_str(), MASK));
        }
    }
    text
}

fn own_secrets() -> Vec<String> {
    let set = |name: &&str| std::env::var(name).ok();
    let mut secrets: Vec<String> = VARIABLES.iter().filter_map(set).collect();
    secrets.extend(FILES.iter().filter_map(set).filter_map(|path| std::fs::read_to_string(path).ok()));
    // One that cannot be read is not in use.
    secrets.extend(super::hub::own_token().ok().flatten().map(|secret| secret.reveal().to_owned()));
    secrets.extend(proxy_secrets());
    secrets
}

fn proxy_secrets() -> Vec<String> {
    let urls = PROXIES.iter().filter_map(|name| url::Url::parse(&std::env::var(name).ok()?).ok());
    urls.filter_map(|url| {
        let password = percent_encoding::percent_decode_str(url.password()?).decode_utf8_lossy().into_owned();
        Some([format!("{}:{password}", url.username()), password])
    })
    .flatten()
    .collect()
}

/// A secret as an echo may have it. Of one with several lines, such as a key in JSON, every line and every string is one.
fn forms(secret: &str) -> Vec<String> {
    let mut forms = Vec::new();
    let parts = secret.split(['\n', '"']).chain(secret.split("\\n")).chain([secret]);
    // The names of a key file's fields are no secrets, and its private key has lines much longer.
    let least = if secret.contains(['\n', '"']) { 4 * SHORTEST } else { SHORTEST };
    for part in parts.map(str::trim).filter(|part| part.len() >= least) {
        let bytes = part.as_bytes();
        forms.push(part.to_owned());
        forms.push(utf8_percent_encode(part, NON_ALPHANUMERIC).to_string());
        forms.push(utf8_percent_encode(part, super::encoding::SEGMENT).to_string());
        forms.push(part.replace('"', "\\\""));
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        forms.extend([hex.to_ascii_uppercase(), hex]);
        for shift in 0..3 {
            let text = base64(bytes, shift);
            forms.extend([text.replace('+', "-").replace('/', "_"), text]);
        }
    }
    forms.retain(|form| form.len() >= SHORTEST);
    // Longest first: a part must not cut the whole in two.
    forms.sort_by_key(|form| std::cmp::Reverse(form.len()));
    forms.dedup();
    forms
}

/// What base64 of a text with `bytes` in it, `shift` bytes after a multiple of three, certainly contains.
fn base64(bytes: &[u8], shift: usize) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let shifted: Vec<u8> = std::iter::repeat_n(0, shift).chain(bytes.iter().copied()).collect();
    // Characters that hold bits of these bytes only.
    let (first, end) = ((shift * 8).div_ceil(6), shifted.len() * 8 / 6);
    let sextet = |at: usize| {
        let (byte, bit) = (at * 6 / 8, at * 6 % 8);
        let pair = u16::from(shifted[byte]) << 8 | u16::from(shifted.get(byte + 1).copied().unwrap_or(0));
        char::from(ALPHABET[usize::from(pair >> (10 - bit) & 63)])
    };
    (first..end).map(sextet).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Credential;

    #[test]
    fn an_echo_is_masked_however_it_is_encoded() {
        let secret = "canary/with+odd=chars";
        let rights = Rights::Caller(Credential::Bearer(Secret::new(secret.to_owned())));
        let secrets = Secrets(Arc::new(rights));
        let hex = "63616e6172792f77697468";
        for echo in [
            format!("you sent Bearer {secret}!"),
            "at canary%2Fwith%2Bodd%3Dchars".to_owned(),
            format!("{hex}2b6f64643d6368617273"),
            format!("{}2B6F64643D6368617273", hex.to_ascii_uppercase()),
            // base64 of `u:` + secret, of `Bearer ` + secret, and of the secret.
            "Basic dTpjYW5hcnkvd2l0aCtvZGQ9Y2hhcnM=".to_owned(),
            "QmVhcmVyIGNhbmFyeS93aXRoK29kZD1jaGFycw".to_owned(),
            "Y2FuYXJ5L3dpdGgrb2RkPWNoYXJz".to_owned(),
        ] {
            let error = SourceError::Denied { what: echo.clone(), detail: echo.clone() };
            let text = secrets.mask(error).to_string();
            assert_eq!(text.matches(MASK).count(), 2, "{text}");
            assert!(!text.contains("canary") && !text.contains("Y2FuYXJ5") && !text.contains(hex), "{text}");
        }
        let plain = SourceError::NotFound { what: "hf://org/m".to_owned() };
        assert_eq!(secrets.mask(plain.clone()).to_string(), plain.to_string());
    }

    #[test]
    fn lines_of_a_key_file_are_secrets() {
        let key = "{\"type\": \"service_account\", \"private_key\": \"-----BEGIN KEY-----\\nMIIabcdefghijklmnopqrstuvwxyz\\n\"}";
        let secrets = Secrets(Arc::new(Rights::Caller(Credential::GoogleServiceAccount(Secret::new(key.to_owned())))));
        let echo = SourceError::Invalid { detail: "type: unexpected MIIabcdefghijklmnopqrstuvwxyz".to_owned() };
        assert_eq!(secrets.mask(echo).to_string(), "type: unexpected (secret)");
    }
}

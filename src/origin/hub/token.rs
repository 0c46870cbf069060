//! The hub's token: from `HF_TOKEN`, else from the file that the hub's own tools keep it in. It has no `Debug` text and no way
//! out but into a header. It is read anew for every fetch, so that a new one needs no restart.

use std::path::PathBuf;

use reqwest::header::HeaderValue;

use crate::model::Secret;
use crate::model::source::SourceError;

/// `Authorization` for the hub, and where it is from.
#[derive(Clone)]
pub(super) struct Token {
    value: HeaderValue,
    source: String,
}

/// Longest token: as for a caller's credential.
const LENGTH_LIMIT: usize = 16 * 1024;

// === impl Token ===

impl Token {
    pub(super) fn new(text: &str, source: &str) -> Result<Self, SourceError> {
        let invalid =
            || SourceError::Invalid { detail: format!("{source} is no token: one line of printable characters") };
        let text = text.trim();
        if text.is_empty() || text.len() > LENGTH_LIMIT {
            return Err(invalid());
        }
        let mut value = HeaderValue::from_str(&format!("Bearer {text}")).map_err(|_| invalid())?;
        value.set_sensitive(true);
        Ok(Self { value, source: source.to_owned() })
    }

    pub(super) fn header(&self) -> HeaderValue {
        self.value.clone()
    }

    /// Where it is from, for people.
    pub(super) fn source(&self) -> &str {
        &self.source
    }
}

/// The token in force, if there is one.
pub(super) fn find() -> Result<Option<Token>, SourceError> {
    in_force()?.map(|(secret, source)| Token::new(secret.reveal(), &source)).transpose()
}

/// Its text.
///
/// # Errors
/// `Invalid` for a token file that cannot be read.
pub(in crate::origin) fn own_token() -> Result<Option<Secret>, SourceError> {
    Ok(in_force()?.map(|(secret, _)| secret))
}

/// The token in force and where it is from.
fn in_force() -> Result<Option<(Secret, String)>, SourceError> {
    let set = |name: &str| std::env::var(name).ok().filter(|value| !value.trim().is_empty());
    if let Some(text) = set("HF_TOKEN") {
        return Ok(Some((Secret::new(text.trim().to_owned()), "HF_TOKEN".to_owned())));
    }
    let file = set("HF_TOKEN_PATH").map(PathBuf::from).or_else(|| {
        let home = set("HF_HOME").map(PathBuf::from);
        let home = home.or_else(|| Some(PathBuf::from(set("HOME")?).join(".cache/huggingface")));
        Some(home?.join("token"))
    });
    let Some(file) = file else { return Ok(None) };
    match std::fs::read_to_string(&file) {
        Ok(text) if text.trim().is_empty() => Ok(None),
        Ok(text) => Ok(Some((Secret::new(text.trim().to_owned()), file.display().to_string()))),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(SourceError::Invalid { detail: format!("read the hub's token {}: {error}", file.display()) }),
    }
}

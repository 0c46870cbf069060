//! What a refusal of the hub means, and what to do about it. Pure.
//!
//! The hub says 401 of what does not exist, so that nobody can find out what does; then only its code and message tell a bad
//! token from an absent repository, and where they do not, both are said.

use reqwest::StatusCode;

use crate::model::source::SourceError;
use crate::origin::excerpt::excerpt;

/// What was asked of whom.
#[derive(Clone, Debug)]
pub(super) struct About {
    /// The thing, safe to print.
    pub(super) what: String,
    /// The model's page.
    pub(super) page: String,
    /// Where the token is from; `None`: there was none.
    pub(super) token: Option<String>,
}

/// What the hub says of tokens that it does not know, any more or at all.
const BAD_TOKEN: &str = "Invalid credentials";

/// The meaning of a status with the hub's own code and message; `None`: no more than that of any server's.
pub(super) fn meaning(status: StatusCode, code: &str, message: &str, about: &About) -> Option<SourceError> {
    let About { what, page, token } = about.clone();
    let denied = |detail: String| Some(SourceError::Denied { what: what.clone(), detail });
    let own_word = excerpt(message);
    let own_word = if own_word.is_empty() { String::new() } else { format!(" ({own_word})") };
    match (status, code) {
        (_, "GatedRepo") => denied(match token {
            Some(source) => format!(
                "it is gated, and the owner of the token in {source} has not been let in: accept its terms at {page}"
            ),
            None => format!("it is gated: accept its terms at {page}, and {GIVE_TOKEN}"),
        }),
        (StatusCode::UNAUTHORIZED, _) if message.starts_with(BAD_TOKEN) || (code.is_empty() && message.is_empty()) => {
            denied(match token {
                Some(source) if message.starts_with(BAD_TOKEN) => {
                    format!(
                        "the hub does not accept the token in {source}: it is wrong, expired or revoked; put a good one there"
                    )
                }
                Some(source) => {
                    format!("the hub has no such model, or the token in {source} is wrong, expired or may not see it")
                }
                None => format!("the hub has no such model, or it is not public: then {GIVE_TOKEN}"),
            })
        }
        (StatusCode::UNAUTHORIZED, _) => denied(match token {
            Some(source) => format!("the hub has no such model, or none that the token in {source} may see"),
            None => format!("the hub has no such model, or it is not public: then {GIVE_TOKEN}"),
        }),
        (StatusCode::NOT_FOUND, "RepoNotFound") if token.is_none() => {
            Some(SourceError::NotFound { what: format!("{what}, as far as is seen without a token,") })
        }
        (_, "RepoNotFound") => denied(match token {
            // A right that was taken back looks like this too.
            Some(source) => format!("the hub has no such model, or none that the token in {source} may see"),
            None => "the hub has no such model, or none that may be seen".to_owned(),
        }),
        (StatusCode::NOT_FOUND, "RevisionNotFound") => {
            Some(SourceError::NotFound { what: format!("the revision of {what}") })
        }
        (StatusCode::NOT_FOUND, "EntryNotFound") => Some(SourceError::NotFound { what }),
        (StatusCode::FORBIDDEN, _) => denied(match token {
            Some(source) => format!(
                "the token in {source} may not read it{own_word}: a fine-grained token must name this repository or its owner"
            ),
            None => format!("the hub refuses without a token{own_word}: {GIVE_TOKEN}"),
        }),
        _ => None,
    }
}

const GIVE_TOKEN: &str = "set HF_TOKEN, or send a bearer credential with the request";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::ErrorKind;

    #[test]
    fn refusals_are_told_apart_with_what_to_do() {
        let about = |token: Option<&str>| About {
            what: "hf://org/m".to_owned(),
            page: "https://hub/org/m".to_owned(),
            token: token.map(str::to_owned),
        };
        let bad = "Invalid credentials in Authorization header";
        for (status, code, message, token, kind, words) in [
            (401, "RepoNotFound", "Repository not found", None, ErrorKind::Denied, "not public: then set HF_TOKEN"),
            (401, "RepoNotFound", "", Some("FILE"), ErrorKind::Denied, "none that the token in FILE may see"),
            (401, "", bad, Some("FILE"), ErrorKind::Denied, "does not accept the token in FILE"),
            (401, "", "", Some("FILE"), ErrorKind::Denied, "no such model, or the token in FILE is wrong"),
            (401, "", "", None, ErrorKind::Denied, "not public: then set HF_TOKEN"),
            (403, "GatedRepo", "", Some("FILE"), ErrorKind::Denied, "accept its terms at https://hub/org/m"),
            (403, "GatedRepo", "", None, ErrorKind::Denied, "accept its terms at https://hub/org/m, and set HF_TOKEN"),
            (401, "GatedRepo", "", None, ErrorKind::Denied, "it is gated"),
            (403, "", "fine-grained", Some("FILE"), ErrorKind::Denied, "may not read it (fine-grained)"),
            (403, "", "", None, ErrorKind::Denied, "without a token"),
            (404, "RepoNotFound", "", Some("FILE"), ErrorKind::Denied, "none that the token in FILE may see"),
            (404, "RepoNotFound", "", None, ErrorKind::NotFound, "seen without a token, does not exist"),
            (404, "RevisionNotFound", "", None, ErrorKind::NotFound, "the revision of hf://org/m does not exist"),
            (404, "EntryNotFound", "", None, ErrorKind::NotFound, "hf://org/m does not exist"),
        ] {
            let found = meaning(StatusCode::from_u16(status).unwrap(), code, message, &about(token)).unwrap();
            assert_eq!(found.kind(), kind, "{status} {code}");
            assert!(found.to_string().contains(words), "{status} {code} {token:?}: {found}");
        }
        assert!(meaning(StatusCode::NOT_FOUND, "", "", &about(None)).is_none());
        assert!(meaning(StatusCode::SERVICE_UNAVAILABLE, "", "", &about(None)).is_none());
    }
}

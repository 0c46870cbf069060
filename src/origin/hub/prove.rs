//! Proof that the bytes of a commit may be read. A gated model is listed for everybody and given to few, so that a listing shows
//! nothing; being sent to the bytes of one file does. Rights are of whole repositories there, so that one file is enough.

use reqwest::{Method, StatusCode};

use super::api::Api;
use super::location::leads_elsewhere;
use crate::model::Revision;
use crate::model::source::{RemoteFile, Resolution, SourceError};
use crate::origin::egress::HOPS;
use crate::origin::pause::Class;

/// Asks for one file of what was resolved, without a byte of it.
pub(super) async fn prove(api: &Api, resolution: &Resolution) -> Result<(), SourceError> {
    let Some(Revision::Commit(commit)) = &resolution.revision else {
        return Err(SourceError::Invalid { detail: "what a hub has resolved has no commit".to_owned() });
    };
    let Some(file) = witness(&resolution.files) else { return Ok(()) };
    match ask(api, Method::HEAD, file, commit).await {
        // Something between does not know the method: one byte tells the same.
        Err(Answered::Status(StatusCode::METHOD_NOT_ALLOWED | StatusCode::NOT_IMPLEMENTED)) => {
            ask(api, Method::GET, file, commit).await.map_err(Answered::into_error)
        }
        outcome => outcome.map_err(Answered::into_error),
    }
}

/// A large file, if there is one: its bytes need a signed URL, which is given to whoever may have them.
fn witness(files: &[RemoteFile]) -> Option<&RemoteFile> {
    let large =
        |file: &&RemoteFile| file.declared.iter().any(|declared| declared.algorithm == super::Algorithm::Sha256);
    files.iter().find(large).or(files.first())
}

enum Answered {
    Status(StatusCode),
    Error(SourceError),
}

async fn ask(api: &Api, method: Method, file: &RemoteFile, commit: &str) -> Result<(), Answered> {
    let what = format!("hf://{}/{}", api.repository, file.locator);
    let mut url = api.file_url(&file.locator, commit).map_err(Answered::Error)?;
    for _ in 0..HOPS {
        let mut request = api.egress.client().request(method.clone(), url.clone());
        if method == Method::GET && file.size > 0 {
            request = request.header("range", "bytes=0-0");
        }
        let answer = api.send(request, &url, Class::Bytes, &what).await.map_err(Answered::Error)?.head;
        if answer.status().is_success() {
            return Ok(());
        }
        if !answer.status().is_redirection() {
            let status = answer.status();
            let unknown = matches!(status, StatusCode::METHOD_NOT_ALLOWED | StatusCode::NOT_IMPLEMENTED);
            return Err(if unknown && method == Method::HEAD {
                Answered::Status(status)
            } else {
                Answered::Error(api.explain(answer, &what).await)
            });
        }
        let target = answer.headers().get(reqwest::header::LOCATION).and_then(|value| value.to_str().ok());
        match target.and_then(|target| url.join(target).ok()) {
            // A signed URL is given to those who may have what is behind it. It is not asked: that would move bytes.
            Some(next) if leads_elsewhere(&api.endpoint, &next) => return Ok(()),
            // Renamed, or to another path of the hub, which has yet to say whether.
            Some(next) => url = next,
            None => break,
        }
    }
    let detail = "redirects without an end or without saying where".to_owned();
    Err(Answered::Error(SourceError::Protocol { what, detail }))
}

// === impl Answered ===

impl Answered {
    fn into_error(self) -> SourceError {
        match self {
            Self::Error(error) => error,
            Self::Status(status) => {
                SourceError::Protocol { what: "the hub".to_owned(), detail: format!("answers {status} to a question") }
            }
        }
    }
}

//! What a process may show an origin of its own, as the tools of each kind of origin find it: for a command that passes it to a
//! daemon which does not have the same environment. Only what is a credential by itself is passed: workload identities and
//! profiles stay with who they were given to.

use crate::model::source::SourceError;
use crate::model::{Credential, Reference, Scheme, Secret};

/// The credential of this process for the origin of a reference, if it has one.
///
/// # Errors
/// `Invalid` for one that cannot be read.
pub fn own_credential(reference: &Reference) -> Result<Option<Credential>, SourceError> {
    let set = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let first = |names: &[&str]| names.iter().find_map(|name| set(name)).map(Secret::new);
    Ok(match reference.scheme {
        Scheme::Hf => super::hub::own_token()?.map(Credential::Bearer),
        Scheme::S3 => {
            set("AWS_ACCESS_KEY_ID").zip(set("AWS_SECRET_ACCESS_KEY")).map(|(access, secret)| Credential::Aws {
                access_key_id: Secret::new(access),
                secret_access_key: Secret::new(secret),
                session_token: set("AWS_SESSION_TOKEN").map(Secret::new),
            })
        }
        Scheme::Gs => match first(&["GOOGLE_SERVICE_ACCOUNT_KEY"]) {
            Some(key) => Some(Credential::GoogleServiceAccount(key)),
            None => match first(&["GOOGLE_BEARER_TOKEN"]) {
                Some(token) => Some(Credential::Bearer(token)),
                None => service_account_file()?.map(Credential::GoogleServiceAccount),
            },
        },
        Scheme::Az => first(&["AZURE_STORAGE_ACCOUNT_KEY", "AZURE_STORAGE_ACCESS_KEY", "AZURE_STORAGE_MASTER_KEY"])
            .map(Credential::AzureKey)
            .or_else(|| first(&["AZURE_STORAGE_SAS_KEY", "AZURE_STORAGE_SAS_TOKEN"]).map(Credential::AzureSas))
            .or_else(|| first(&["AZURE_STORAGE_TOKEN"]).map(Credential::Bearer)),
        Scheme::File | Scheme::Http | Scheme::Https => None,
    })
}

/// The key of a service account of Google's, from the file that the environment names. Other kinds of such files (of people, of
/// federated identities) are no credentials by themselves.
fn service_account_file() -> Result<Option<Secret>, SourceError> {
    const FILES: [&str; 4] =
        ["GOOGLE_SERVICE_ACCOUNT", "GOOGLE_SERVICE_ACCOUNT_PATH", "SERVICE_ACCOUNT", "GOOGLE_APPLICATION_CREDENTIALS"];
    let named = FILES.iter().find_map(|name| Some((name, std::env::var(name).ok().filter(|value| !value.is_empty())?)));
    let Some((name, path)) = named else { return Ok(None) };
    let text = std::fs::read_to_string(&path)
        .map_err(|error| SourceError::Invalid { detail: format!("read {path}, which {name} names: {error}") })?;
    let kind = serde_json::from_str::<serde_json::Value>(&text).ok();
    let kind = kind.as_ref().and_then(|json| json.get("type")?.as_str());
    Ok((kind == Some("service_account")).then(|| Secret::new(text)))
}

//! Google Cloud Storage: a bearer token, pinned by generation, CRC-32C of every object without being asked.
//!
//! Objects are read through the XML API, `GET /bucket/key?generation=N`: the parameter (and not a condition in a header) asks
//! for that generation by name, so that in a bucket with versioning a replaced object can even be read to its end, and
//! elsewhere 404 says that it is gone. The JSON API was turned down for reading: the same parameter, but an error body of its
//! own kind and `alt=media` for nothing. It is used for writing ([`upload`]), where it can do more.

mod upload;

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use object_store::ObjectStore;
use object_store::client::{HttpRequest, StaticCredentialProvider};
use object_store::gcp::{GcpCredential, GoogleCloudStorage, GoogleCloudStorageBuilder};
use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderValue};

use super::bucket::{Ask, Bucket, Dialect};
use super::credentials::{Connector, once, unreadable};
use super::environment;
use super::explain::Remedies;
use super::outgoing::Outgoing;
use crate::digest::{Algorithm, Declared};
use crate::model::sink::{Existing, Put};
use crate::model::source::{SourceError, Validator};
use crate::model::{Credential, Reference, Rights};
use crate::origin::egress::Egress;
use crate::origin::encoding::hex_of_base64;

/// Variables any of which says that this process has credentials for Google's storage. The metadata service is asked only
/// where one of the last two names it: where there is none, asking hangs.
const CREDENTIALS: [&str; 9] = [
    "GOOGLE_APPLICATION_CREDENTIALS",
    "GOOGLE_SERVICE_ACCOUNT",
    "GOOGLE_SERVICE_ACCOUNT_PATH",
    "GOOGLE_SERVICE_ACCOUNT_KEY",
    "SERVICE_ACCOUNT",
    "GOOGLE_BEARER_TOKEN",
    "GCE_METADATA_IP",
    "GCE_METADATA_ROOT",
    "GCE_METADATA_HOST",
];

/// Where the storage is, unless the environment says otherwise.
const GOOGLE: &str = "https://storage.googleapis.com";

/// How the validator of a generation begins.
const GENERATION: &str = "generation:";

/// Google Cloud Storage.
pub(super) struct Gcs {
    store: GoogleCloudStorage,
    endpoint: String,
    bucket: String,
    bucket_url: String,
    /// `false`: requests carry no token.
    signed: bool,
    remedies: Remedies,
}

/// The endpoint that the environment sets for Google's storage, if any. `STORAGE_EMULATOR_HOST` may come without a scheme.
pub(in crate::origin) fn endpoint_in_force() -> Option<String> {
    environment::first(&["GOOGLE_BASE_URL"]).or_else(|| {
        let host = environment::first(&["STORAGE_EMULATOR_HOST"])?;
        Some(if host.contains("://") { host } else { format!("http://{host}") })
    })
}

/// The server that buckets are at, and whether the environment names it.
pub(super) fn endpoint_of() -> (String, bool) {
    endpoint_in_force().map_or_else(|| (GOOGLE.to_owned(), false), |endpoint| (endpoint, true))
}

// === impl Gcs ===

impl Gcs {
    pub(super) fn new(reference: &Reference, egress: &Egress, rights: &Rights) -> Result<Self, SourceError> {
        let bucket = reference.authority.clone();
        let invalid = |detail: String| SourceError::Invalid { detail: format!("gs://{bucket}: {detail}") };
        let (endpoint, _) = endpoint_of();
        environment::check_url("GOOGLE_BASE_URL or STORAGE_EMULATOR_HOST", &endpoint).map_err(invalid)?;
        let endpoint = endpoint.trim_end_matches('/').to_owned();
        let nobody = || Arc::new(StaticCredentialProvider::new(GcpCredential { bearer: String::new() }));
        let (builder, signed) = match rights {
            Rights::Anonymous => (GoogleCloudStorageBuilder::new().with_credentials(nobody()), false),
            Rights::Own if environment::says_yes("GOOGLE_SKIP_SIGNATURE") || !has_credentials() => {
                (GoogleCloudStorageBuilder::new().with_credentials(nobody()), false)
            }
            Rights::Own => (GoogleCloudStorageBuilder::from_env(), true),
            Rights::Caller(Credential::Bearer(token)) => {
                (GoogleCloudStorageBuilder::new().with_bearer_token(token.reveal()), true)
            }
            Rights::Caller(Credential::GoogleServiceAccount(key)) => {
                (GoogleCloudStorageBuilder::new().with_service_account_key(key.reveal()), true)
            }
            Rights::Caller(other) => {
                let kind = other.kind();
                return Err(invalid(format!(
                    "takes a credential of kind google_service_account or bearer, not {kind}"
                )));
            }
        };
        let connected = |builder: GoogleCloudStorageBuilder, connector: Connector| {
            let builder = builder
                .with_bucket_name(&bucket)
                // A service account's key may name another place to send its token to.
                .with_base_url(&endpoint)
                .with_skip_signature(!signed)
                .with_retry(once())
                .with_http_connector(connector);
            builder.build().map_err(|error| invalid(unreadable(&error, rights)))
        };
        let store = if signed {
            let authority = connected(builder, Connector::to_authorities(egress))?;
            let builder = GoogleCloudStorageBuilder::new().with_credentials(Arc::clone(authority.credentials()));
            connected(builder, Connector::to_data(egress))?
        } else {
            connected(builder, Connector::to_data(egress))?
        };
        let remedies = Remedies {
            bucket: format!("gs://{bucket}"),
            denied: "set GOOGLE_APPLICATION_CREDENTIALS to a file with credentials that may use it, or \
                     GCE_METADATA_HOST=metadata.google.internal for this machine's own service account",
            elsewhere: "name the endpoint of its region in GOOGLE_BASE_URL",
            unreachable: "is GOOGLE_BASE_URL right?",
            anonymous: !signed,
        };
        Ok(Self { store, bucket_url: format!("{endpoint}/{bucket}"), endpoint, bucket, signed, remedies })
    }
}

/// Whether the environment, or the file that Google's own tools leave behind, says that there are credentials.
fn has_credentials() -> bool {
    let file = || Some(std::path::PathBuf::from(environment::first(&["HOME"])?).join(WELL_KNOWN));
    environment::first(&CREDENTIALS).is_some() || file().is_some_and(|file| file.exists())
}

/// Where `gcloud auth application-default login` puts what it has got, below the home directory.
const WELL_KNOWN: &str = ".config/gcloud/application_default_credentials.json";

#[async_trait]
impl Dialect for Gcs {
    fn lister(&self) -> &dyn ObjectStore {
        &self.store
    }

    fn bucket_url(&self) -> &str {
        &self.bucket_url
    }

    async fn sign(&self, request: &mut HttpRequest) -> object_store::Result<()> {
        if !self.signed {
            return Ok(());
        }
        let credential = self.store.credentials().get_credential().await?;
        // Emulators are given keys that stand for nobody.
        if credential.bearer.is_empty() {
            return Ok(());
        }
        if let Ok(mut value) = HeaderValue::from_str(&format!("Bearer {}", credential.bearer)) {
            value.set_sensitive(true);
            request.headers_mut().insert(AUTHORIZATION, value);
        }
        Ok(())
    }

    fn describe(&self, headers: &HeaderMap) -> Result<(Validator, Vec<Declared>), String> {
        let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        // It is decoded on its way out, ignores ranges, and its checksum is of what nobody gets.
        if text("x-goog-stored-content-encoding").is_some_and(|encoding| encoding.contains("gzip")) {
            let remedy = "it again without Content-Encoding: gzip, or rename it *.gz without the header";
            return Err(format!(
                "is stored compressed and served otherwise, which cannot be verified: upload {remedy}"
            ));
        }
        let validator = text("x-goog-generation").filter(|text| text.bytes().all(|b| b.is_ascii_digit()));
        let validator = validator.map_or(Validator::None, |text| Validator::Strong(format!("{GENERATION}{text}")));
        Ok((validator, declared(headers)))
    }

    fn pin(&self, ask: Ask, validator: &Validator) -> Ask {
        match validator {
            Validator::Strong(text) => match text.strip_prefix(GENERATION) {
                Some(generation) => ask.query(&format!("generation={generation}")),
                None => ask,
            },
            _ => ask,
        }
    }

    fn remedies(&self) -> &Remedies {
        &self.remedies
    }

    async fn upload(
        &self,
        bucket: &Bucket,
        key: &str,
        content: &Outgoing,
        existing: Existing,
    ) -> Result<Put, SourceError> {
        upload::upload(bucket, (&self.endpoint, &self.bucket), key, content, existing).await
    }
}

impl fmt::Debug for Gcs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.bucket_url)
    }
}

/// The digests in `x-goog-hash`: `crc32c=<base64>,md5=<base64>`, in one header or several. There is no MD5 of objects that
/// were composed.
fn declared(headers: &HeaderMap) -> Vec<Declared> {
    let values = headers.get_all("x-goog-hash").iter().filter_map(|value| value.to_str().ok());
    let named = |item: &str| {
        let (name, value) = item.trim().split_once('=')?;
        let algorithm = match name {
            "crc32c" => Algorithm::Crc32c,
            "md5" => Algorithm::Md5,
            _ => return None,
        };
        let hex = hex_of_base64(value).filter(|hex| hex.len() == algorithm.hex_len())?;
        Some(Declared { algorithm, hex })
    };
    values.flat_map(|value| value.split(',')).filter_map(named).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_are_read_from_one_header_or_several() {
        let read = |values: &[&str]| -> Vec<String> {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append("x-goog-hash", value.parse().unwrap());
            }
            declared(&headers).iter().map(ToString::to_string).collect()
        };
        let (crc, md5) = ("crc32c:c99465aa", "md5:5eb63bbbe01eeed093cb22bb8f5acdc3");
        assert_eq!(read(&["crc32c=yZRlqg==,md5=XrY7u+Ae7tCTyyK7j1rNww=="]), [crc, md5]);
        assert_eq!(read(&["crc32c=yZRlqg==", "md5=XrY7u+Ae7tCTyyK7j1rNww=="]), [crc, md5]);
        assert_eq!(read(&["crc32c=yZRlqg=="]), [crc]);
        assert_eq!(read(&["crc32c=XrY7u+Ae7tCTyyK7j1rNww==,sha1=AAAA,md5"]), [""; 0]);
    }
}

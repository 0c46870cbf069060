//! S3 and what speaks like it: signed as of version 4, pinned by ETag, checksums in headers that have to be asked for.

mod checksum;
mod upload;

use std::fmt;

use async_trait::async_trait;
use object_store::ObjectStore;
use object_store::aws::{AmazonS3, AmazonS3Builder, AmazonS3ConfigKey, AwsAuthorizer};
use object_store::client::HttpRequest;
use reqwest::header::HeaderMap;

use super::bucket::{Ask, Bucket, Dialect};
use super::credentials::{Connector, once, unreadable};
use super::environment;
use super::explain::Remedies;
use super::outgoing::Outgoing;
use crate::digest::Declared;
use crate::model::sink::{Existing, Put};
use crate::model::source::{SourceError, Validator};
use crate::model::{Credential, Reference, Rights};
use crate::origin::egress::Egress;
use crate::origin::range::{if_match, validator_of};

/// Variables any of which says that this process has credentials for S3. EC2's metadata service is asked only where
/// `AWS_EC2_METADATA_DISABLED` says `false`: where there is none, asking hangs.
const CREDENTIALS: [&str; 5] = [
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
];

/// S3.
pub(super) struct S3 {
    store: AmazonS3,
    bucket_url: String,
    region: String,
    /// `false`: requests are not signed.
    signed: bool,
    remedies: Remedies,
}

/// The endpoint that the environment sets for S3, if any.
pub(in crate::origin) fn endpoint_in_force() -> Option<String> {
    environment::first(&["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"])
}

/// The server that buckets are at, and whether the environment names it.
pub(super) fn endpoint_of() -> (String, bool) {
    let region = || environment::first(&["AWS_REGION", "AWS_DEFAULT_REGION"]).unwrap_or_else(|| "us-east-1".to_owned());
    match endpoint_in_force() {
        Some(endpoint) => (endpoint, true),
        None => (format!("https://s3.{}.amazonaws.com", region()), false),
    }
}

// === impl S3 ===

impl S3 {
    pub(super) fn new(reference: &Reference, egress: &Egress, rights: &Rights) -> Result<Self, SourceError> {
        let invalid =
            |detail: String| SourceError::Invalid { detail: format!("s3://{}: {detail}", reference.authority) };
        let endpoint = endpoint_in_force();
        if let Some(endpoint) = &endpoint {
            environment::check_url("AWS_ENDPOINT_URL", endpoint).map_err(invalid)?;
        }
        let mut builder = AmazonS3Builder::from_env().with_bucket_name(&reference.authority);
        if let Some(region) = environment::first(&["AWS_REGION"]) {
            builder = builder.with_region(region);
        }
        if let Some(endpoint) = &endpoint {
            builder =
                builder.with_endpoint(endpoint.trim_end_matches('/')).with_allow_http(endpoint.starts_with("http:"));
        }
        let is = |key| builder.get_config_value(key).is_some_and(|value| matches!(value.as_str(), "true" | "1"));
        let region = builder.get_config_value(&AmazonS3ConfigKey::Region).unwrap_or_else(|| "us-east-1".to_owned());
        let virtual_hosted = is(&AmazonS3ConfigKey::VirtualHostedStyleRequest);
        let asked_not_to = is(&AmazonS3ConfigKey::SkipSignature);
        let signed = match rights {
            Rights::Anonymous => false,
            Rights::Own => {
                let metadata = environment::first(&["AWS_EC2_METADATA_DISABLED"]);
                let metadata = metadata.is_some_and(|disabled| disabled.eq_ignore_ascii_case("false"));
                (environment::first(&CREDENTIALS).is_some() || metadata) && !asked_not_to
            }
            Rights::Caller(Credential::Aws { access_key_id, secret_access_key, session_token }) => {
                // Nothing of this process's own keys: not even their session token.
                builder = AmazonS3Builder::new()
                    .with_bucket_name(&reference.authority)
                    .with_region(&region)
                    .with_virtual_hosted_style_request(virtual_hosted)
                    .with_access_key_id(access_key_id.reveal())
                    .with_secret_access_key(secret_access_key.reveal());
                if let Some(endpoint) = &endpoint {
                    let endpoint = endpoint.trim_end_matches('/');
                    builder = builder.with_endpoint(endpoint).with_allow_http(endpoint.starts_with("http:"));
                }
                if let Some(token) = session_token {
                    builder = builder.with_token(token.reveal());
                }
                true
            }
            Rights::Caller(other) => {
                return Err(invalid(format!("takes a credential of kind aws, not {}", other.kind())));
            }
        };
        let bucket_url = bucket_url(endpoint.as_deref(), &region, &reference.authority, virtual_hosted);
        // Whoever gives out credentials is asked by another client than the bucket: it may be at an address where no bucket
        // is allowed to be.
        let connected = |builder: AmazonS3Builder, connector: Connector| {
            let builder = builder.with_unsigned_payload(true).with_retry(once()).with_http_connector(connector);
            builder.build().map_err(|error| invalid(unreadable(&error, rights)))
        };
        let store = if signed {
            let authority = connected(builder.clone(), Connector::to_authorities(egress))?;
            builder = builder.with_credentials(authority.credentials().clone());
            connected(builder.with_skip_signature(false), Connector::to_data(egress))?
        } else {
            connected(builder.with_skip_signature(true), Connector::to_data(egress))?
        };
        let remedies = Remedies {
            bucket: format!("s3://{}", reference.authority),
            denied: "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY to keys that may read it, \
                     or AWS_SKIP_SIGNATURE=true",
            elsewhere: "set AWS_REGION to it",
            unreachable: "are AWS_ENDPOINT_URL and AWS_REGION right?",
            anonymous: !signed,
        };
        Ok(Self { store, bucket_url, region, signed, remedies })
    }
}

#[async_trait]
impl Dialect for S3 {
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
        AwsAuthorizer::new(&credential, "s3", &self.region).with_sign_payload(false).try_authorize(request, None)
    }

    fn head_headers(&self) -> &'static [(&'static str, &'static str)] {
        &[("x-amz-checksum-mode", "ENABLED")]
    }

    fn describe(&self, headers: &HeaderMap) -> Result<(Validator, Vec<Declared>), String> {
        Ok((validator_of(headers), checksum::declared(headers)))
    }

    // Many that speak like S3 keep no checksum of what comes in parts.
    fn name_header(&self) -> Option<&'static str> {
        Some("x-amz-meta-preheat-blake3")
    }

    fn pin(&self, ask: Ask, validator: &Validator) -> Ask {
        match if_match(validator) {
            Some((name, value)) => ask.header(name, value),
            None => ask,
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
        upload::upload(bucket, key, content, existing).await
    }
}

impl fmt::Debug for S3 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.bucket_url)
    }
}

fn bucket_url(endpoint: Option<&str>, region: &str, bucket: &str, virtual_hosted: bool) -> String {
    match endpoint.map(|endpoint| endpoint.trim_end_matches('/')) {
        // With a virtual-hosted endpoint the bucket is in the endpoint's own name, as `object_store` has it.
        Some(endpoint) if virtual_hosted => endpoint.to_owned(),
        Some(endpoint) => format!("{endpoint}/{bucket}"),
        None if virtual_hosted => format!("https://{bucket}.s3.{region}.amazonaws.com"),
        None => format!("https://s3.{region}.amazonaws.com/{bucket}"),
    }
}

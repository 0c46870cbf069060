//! S3 and what speaks like it. Credentials, region, endpoint, listing and signatures come from `object_store`; ranges are read
//! by the same code as those of web servers, because `object_store` follows a range answer that is not the asked one, and
//! because a full-object checksum needs `x-amz-checksum-mode`, which it does not send.

mod checksum;

use std::ops::Range;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::{StreamExt, TryStreamExt, stream};
use object_store::ObjectStore;
use object_store::aws::{AmazonS3, AmazonS3Builder, AmazonS3ConfigKey, AwsAuthorizer};
use object_store::client::{ClientOptions, HttpClient, HttpConnector, HttpRequest, HttpRequestBody};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC};
use reqwest::{Method, Response, StatusCode};

use super::Config;
use super::egress::{Egress, forbidden_in};
use super::range::{Asked, IDENTITY, body_of, if_match, range_header, refusal, transport, validator_of};
use super::selected::{Listed, choose, resolution};
use crate::digest::Declared;
use crate::model::source::{Origin, RangeBody, RangeSource, RemoteFile, Resolution, SourceError, Validator};
use crate::model::{Credential, FilePath, OriginId, Reference, Rights, Secret};

/// What stays readable in a path segment: S3's own signatures are over exactly this encoding.
pub(super) const SEGMENT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// HEAD requests under way at once while planning.
const AT_ONCE: usize = 16;

/// One bucket.
pub(super) struct ObjectOrigin {
    store: AmazonS3,
    egress: Egress,
    bucket_url: String,
    region: String,
    /// `None`: requests are not signed.
    signed: bool,
    stall: Duration,
    files_max: usize,
}

/// Hands `object_store` our HTTP client, with our proxies, authorities and timeouts.
#[derive(Debug)]
struct OurConnector(reqwest::Client);

/// The endpoint that the environment sets for S3, if any.
pub(super) fn endpoint_in_force() -> Option<String> {
    ["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"]
        .iter()
        .find_map(|name| std::env::var(name).ok().filter(|value| !value.is_empty()))
}

// === impl ObjectOrigin ===

impl ObjectOrigin {
    pub(super) fn new(
        reference: &Reference,
        egress: Egress,
        rights: &Rights,
        config: &Config,
    ) -> Result<Self, SourceError> {
        let invalid =
            |detail: String| SourceError::Invalid { detail: format!("s3://{}: {detail}", reference.authority) };
        let set = |name: &str| std::env::var(name).is_ok_and(|value| !value.is_empty());
        let endpoint = endpoint_in_force();
        if let Some(endpoint) = &endpoint {
            let url = url::Url::parse(endpoint).map_err(|error| invalid(format!("AWS_ENDPOINT_URL: {error}")))?;
            // It becomes part of names and messages. What is wrong with it may be a password.
            let bare = url.username().is_empty() && url.password().is_none() && url.query().is_none();
            if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none() || !bare {
                let detail = "AWS_ENDPOINT_URL is not http:// or https:// with a host, without a user and a query";
                return Err(invalid(detail.to_owned()));
            }
        }
        let mut builder = AmazonS3Builder::from_env().with_bucket_name(&reference.authority);
        if std::env::var("AWS_REGION").is_ok_and(|region| !region.is_empty()) {
            builder = builder.with_region(std::env::var("AWS_REGION").unwrap_or_default());
        }
        if let Some(endpoint) = &endpoint {
            builder =
                builder.with_endpoint(endpoint.trim_end_matches('/')).with_allow_http(endpoint.starts_with("http:"));
        }
        // Without any credential configured the metadata service would be asked, which hangs where there is none.
        let has_credential = [
            "AWS_ACCESS_KEY_ID",
            "AWS_WEB_IDENTITY_TOKEN_FILE",
            "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
            "AWS_CONTAINER_CREDENTIALS_FULL_URI",
        ]
        .iter()
        .any(|name| set(name));
        let asked_not_to = builder
            .get_config_value(&AmazonS3ConfigKey::SkipSignature)
            .is_some_and(|value| matches!(value.as_str(), "true" | "1"));
        let signed = match rights {
            Rights::Anonymous => false,
            Rights::Own => has_credential && !asked_not_to,
            Rights::Caller(Credential::Aws { access_key_id, secret_access_key, session_token }) => {
                builder = builder
                    .with_access_key_id(access_key_id.reveal())
                    .with_secret_access_key(secret_access_key.reveal())
                    .with_token(session_token.as_ref().map_or("", Secret::reveal));
                true
            }
            Rights::Caller(other) => {
                return Err(invalid(format!("takes a credential of kind aws, not {}", other.kind())));
            }
        };
        builder = builder
            .with_skip_signature(!signed)
            .with_unsigned_payload(true)
            // Retries are decided in one place, above all origins.
            .with_retry(object_store::RetryConfig { max_retries: 0, ..object_store::RetryConfig::default() })
            .with_http_connector(OurConnector(egress.client().clone()));
        let region = builder.get_config_value(&AmazonS3ConfigKey::Region).unwrap_or_else(|| "us-east-1".to_owned());
        let virtual_hosted = builder
            .get_config_value(&AmazonS3ConfigKey::VirtualHostedStyleRequest)
            .is_some_and(|value| matches!(value.as_str(), "true" | "1"));
        let bucket_url = bucket_url(endpoint.as_deref(), &region, &reference.authority, virtual_hosted);
        let store = builder.build().map_err(|error| invalid(error.to_string()))?;
        let (stall, files_max) = (config.stall_timeout.0, config.files_max);
        Ok(Self { store, egress, bucket_url, region, signed, stall, files_max })
    }

    fn url(&self, key: &str) -> String {
        let mut url = self.bucket_url.clone();
        for segment in key.split('/') {
            url.push('/');
            url.extend(percent_encoding::utf8_percent_encode(segment, SEGMENT));
        }
        url
    }

    /// Sends one signed request for an object.
    async fn send(&self, method: Method, key: &str, headers: &[(&str, &str)]) -> Result<Response, SourceError> {
        let what = self.what(key);
        let invalid = |detail: String| SourceError::Invalid { detail: format!("{what}: {detail}") };
        let mut request = HttpRequest::new(HttpRequestBody::empty());
        *request.method_mut() = method.clone();
        *request.uri_mut() = self.url(key).parse().map_err(|error| invalid(format!("is not a URL: {error}")))?;
        for (name, value) in headers {
            let name =
                reqwest::header::HeaderName::from_bytes(name.as_bytes()).map_err(|error| invalid(error.to_string()))?;
            let value = reqwest::header::HeaderValue::from_str(value).map_err(|error| invalid(error.to_string()))?;
            request.headers_mut().insert(name, value);
        }
        if self.signed {
            let credential =
                self.store.credentials().get_credential().await.map_err(|error| explain(&error, &what, self.stall))?;
            AwsAuthorizer::new(&credential, "s3", &self.region)
                .with_sign_payload(false)
                .try_authorize(&mut request, None)
                .map_err(|error| invalid(format!("cannot be signed: {error}")))?;
        }
        let (parts, _) = request.into_parts();
        self.egress
            .client()
            .request(method, parts.uri.to_string())
            .headers(parts.headers)
            .header(IDENTITY.0, IDENTITY.1)
            .send()
            .await
            .map_err(|error| transport(&error, &what, self.stall))
    }

    fn what(&self, key: &str) -> String {
        // The bucket is the last part of a path-style URL and the first of a virtual-hosted one: the whole URL says it.
        format!("{}/{key}", self.bucket_url)
    }

    /// Size, validator and full-object checksums of an object; `None` if it does not exist.
    async fn head(&self, key: &str) -> Result<Option<(Listed, Vec<Declared>)>, SourceError> {
        let answer = self.send(Method::HEAD, key, &[("x-amz-checksum-mode", "ENABLED")]).await?;
        let what = self.what(key);
        if answer.status() == StatusCode::NOT_FOUND {
            return Ok(None);
        }
        if !answer.status().is_success() {
            return Err(refusal(answer, &what, self.stall).await);
        }
        let size = answer
            .headers()
            .get(reqwest::header::CONTENT_LENGTH)
            .and_then(|value| value.to_str().ok()?.parse().ok())
            .ok_or_else(|| SourceError::Protocol { what, detail: "HEAD has no Content-Length".to_owned() })?;
        let name = key.rsplit('/').next().unwrap_or_default();
        let path = FilePath::new(name).map_err(|error| SourceError::Invalid { detail: error.to_string() })?;
        let declared = checksum::declared(answer.headers());
        let validator = validator_of(answer.headers());
        Ok(Some((Listed { path, size, locator: key.to_owned(), validator }, declared)))
    }

    async fn list(&self, reference: &Reference) -> Result<Vec<Listed>, SourceError> {
        let what = format!("s3://{}/{}", reference.authority, reference.place);
        let prefix = (!reference.place.is_empty())
            .then(|| object_store::path::Path::parse(&reference.place))
            .transpose()
            .map_err(|error| SourceError::Invalid { detail: format!("{what}: {error}") })?;
        let mut found = Vec::new();
        let mut listing = self.store.list(prefix.as_ref());
        while let Some(object) = listing.next().await {
            let object = object.map_err(|error| explain(&error, &what, self.stall))?;
            let key = object.location.as_ref();
            let below = key.strip_prefix(reference.place.as_str()).map(|rest| rest.trim_start_matches('/'));
            // Consoles make "directories" as empty objects whose key ends in a slash.
            let Some(below) = below.filter(|below| !below.is_empty()) else { continue };
            let path = FilePath::new(below)
                .map_err(|error| SourceError::Invalid { detail: format!("{what}: object key: {error}") })?;
            let validator = object.e_tag.map_or(Validator::None, Validator::Strong);
            found.push(Listed { path, size: object.size, locator: key.to_owned(), validator });
            if found.len() > self.files_max {
                return Err(SourceError::Invalid {
                    detail: format!("{what} has more than {} objects: name a deeper prefix", self.files_max),
                });
            }
        }
        Ok(found)
    }
}

impl std::fmt::Debug for ObjectOrigin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ObjectOrigin").field("bucket_url", &self.bucket_url).finish_non_exhaustive()
    }
}

#[async_trait]
impl RangeSource for ObjectOrigin {
    async fn open(&self, file: &RemoteFile, range: Range<u64>) -> Result<RangeBody, SourceError> {
        if range.is_empty() {
            return Ok(RangeBody { start: range.start, ignores_ranges: false, stream: stream::empty().boxed() });
        }
        let wanted = range_header(&range);
        let mut headers = vec![("range", wanted.as_str())];
        headers.extend(if_match(&file.validator));
        let answer = self.send(Method::GET, &file.locator, &headers).await?;
        let what = self.what(&file.locator);
        let asked = Asked { what, range, size: file.size, validator: file.validator.clone(), stall: self.stall };
        body_of(answer, asked).await
    }
}

#[async_trait]
impl Origin for ObjectOrigin {
    async fn resolve(&self, reference: &Reference) -> Result<Resolution, SourceError> {
        let origin = OriginId::of(reference, endpoint_in_force().as_deref());
        let what = format!("s3://{}/{}", reference.authority, reference.place);
        let listed = self.list(reference).await?;
        if listed.is_empty() {
            let single = if reference.place.is_empty() { None } else { self.head(&reference.place).await? };
            let Some((listed, declared)) = single else {
                return Err(SourceError::NotFound { what: format!("{what} (no object there or below)") });
            };
            let mut files = choose(
                &what,
                vec![listed],
                &crate::model::Selection { include: vec!["*".to_owned()], ..crate::model::Selection::default() },
            )?;
            for file in &mut files {
                file.declared.clone_from(&declared);
            }
            return Ok(resolution(origin, files));
        }
        let files = choose(&what, listed, &reference.selection)?;
        // The listing has no checksums. Asking for each also finds out early who may not read.
        let files: Vec<RemoteFile> = stream::iter(files)
            .map(|mut file| async move {
                let Some((head, declared)) = self.head(&file.locator).await? else {
                    return Err(SourceError::Changed { what: self.what(&file.locator) });
                };
                if head.size != file.size {
                    return Err(SourceError::Changed { what: self.what(&file.locator) });
                }
                file.validator = head.validator;
                file.declared = declared;
                Ok::<_, SourceError>(file)
            })
            .buffered(AT_ONCE)
            .try_collect()
            .await?;
        Ok(resolution(origin, files))
    }
}

impl HttpConnector for OurConnector {
    fn connect(&self, _: &ClientOptions) -> object_store::Result<HttpClient> {
        Ok(HttpClient::new(self.0.clone()))
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

fn denied(what: String, detail: &str) -> SourceError {
    let detail = format!(
        "{detail}; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY to keys that may read it, or AWS_SKIP_SIGNATURE=true"
    );
    SourceError::Denied { what, detail }
}

/// What an error of `object_store` means.
fn explain(error: &object_store::Error, what: &str, stall: Duration) -> SourceError {
    use object_store::Error as Store;
    let what = what.to_owned();
    if let Some(forbidden) = forbidden_in(error) {
        return forbidden.refusal(&what);
    }
    let mut cause: &dyn std::error::Error = error;
    let mut timeout = false;
    loop {
        timeout |= cause.downcast_ref::<reqwest::Error>().is_some_and(reqwest::Error::is_timeout);
        match cause.source() {
            Some(inner) => cause = inner,
            None => break,
        }
    }
    let detail = super::excerpt::excerpt(&cause.to_string());
    let text = error.to_string();
    // Of a listing the library tells the status in words only.
    let says = |status: &str| text.contains(&format!("status code: {status}"));
    match error {
        Store::NotFound { .. } => SourceError::NotFound { what },
        Store::PermissionDenied { .. } | Store::Unauthenticated { .. } => denied(what, &detail),
        _ if says("401") || says("403") => denied(what, &detail),
        Store::Precondition { .. } => SourceError::Changed { what },
        _ if timeout => SourceError::Stalled { what, after: stall },
        _ if text.contains("NoSuchBucket") => SourceError::NotFound { what },
        _ if says("429") || text.contains("SlowDown") => SourceError::RateLimited { what, retry_after: None },
        _ => SourceError::Unavailable { what, detail },
    }
}

/// Base64 (standard alphabet) as lower-case hex.
pub(super) fn hex_of_base64(text: &str) -> Option<String> {
    checksum::hex_of_base64(text)
}

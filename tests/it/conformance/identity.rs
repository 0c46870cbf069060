//! Whose rights a process has of its own: those that its environment names, and none without.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use preheat::base::ErrorKind;
use preheat::model::source::SourceError;
use preheat::model::{Reference, Rights};
use preheat::origin::{Config, Origins};

use super::{Proxy, Verdict, gcs, s3, seen_with, set, upload};
use crate::support::model::model;
use crate::support::secret;

/// What metadata services answer, and how long it is good for.
fn token(lifetime: &str) -> String {
    format!("{{\"access_token\": \"{}\", \"token_type\": \"Bearer\", {lifetime}}}", secret("token-of-ours"))
}

/// A service that gives out credentials: its URL, and the paths that it was asked for.
async fn authority(answer: String) -> (String, Arc<Mutex<Vec<String>>>) {
    let proxy = Proxy::before("http://127.0.0.1:1").await;
    let asked_for = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&asked_for);
    let answer: &'static str = answer.leak();
    proxy.judge(move |asked| {
        seen.lock().unwrap().push(asked.uri.path().to_owned());
        Verdict::Answer(200, answer)
    });
    (proxy.url, asked_for)
}

#[tokio::test]
async fn a_pod_identity_of_aws_is_used() {
    let (directory, url) = s3::with_keys().await;
    upload(&model(1, 1, 1 << 20), "s3://bucket/m").await;
    let answer = serde_json::json!({
        "AccessKeyId": "access",
        "SecretAccessKey": secret("secret-of-ours"),
        "Token": secret("session"),
        "Expiration": "2099-01-01T00:00:00Z",
    });
    let (authority, asked) = authority(answer.to_string()).await;
    let token = directory.path().join("token");
    std::fs::write(&token, "of the pod").unwrap();
    set(&[
        ("AWS_ENDPOINT_URL", &url),
        ("AWS_REGION", "us-east-1"),
        ("AWS_CONTAINER_CREDENTIALS_FULL_URI", &format!("{authority}/v1/credentials")),
        ("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", token.to_str().unwrap()),
    ]);
    assert_eq!(seen_with("s3://bucket/m", &Rights::Own).await.unwrap().len(), 4);
    assert_eq!(*asked.lock().unwrap(), ["/v1/credentials"], "once for all requests");
}

#[tokio::test]
async fn the_service_account_of_a_machine_of_googles_is_used() {
    let server = gcs::with_bucket().await;
    upload(&model(1, 1, 1 << 20), "gs://my_bucket.example/m").await;
    let proxy = Proxy::before(&server.url).await;
    proxy.judge(|asked| match asked.headers.get("authorization") {
        Some(value) if *value == format!("Bearer {}", secret("token-of-ours")) => Verdict::Pass,
        _ => Verdict::Answer(401, ""),
    });
    let (authority, asked) = authority(token("\"expires_in\": 3600")).await;
    set(&[("GOOGLE_BASE_URL", &proxy.url), ("GCE_METADATA_HOST", authority.strip_prefix("http://").unwrap())]);
    assert_eq!(seen_with("gs://my_bucket.example/m", &Rights::Own).await.unwrap().len(), 4);
    let path = "/computeMetadata/v1/instance/service-accounts/default/token";
    assert_eq!(*asked.lock().unwrap(), [path], "once for all requests");
}

#[tokio::test]
async fn a_managed_identity_of_azures_is_used() {
    let store = Proxy::before("http://127.0.0.1:1").await;
    let seen = Arc::new(Mutex::new(None));
    let header = Arc::clone(&seen);
    store.judge(move |asked| {
        *header.lock().unwrap() = asked.headers.get("authorization").cloned();
        Verdict::Headers(404, &[("x-ms-error-code", "ContainerNotFound")])
    });
    let (authority, asked) = authority(token("\"expires_on\": \"4070908800\", \"resource\": \"x\"")).await;
    set(&[
        ("AZURE_STORAGE_ACCOUNT_NAME", "account"),
        ("AZURE_STORAGE_ENDPOINT", &store.url),
        ("AZURE_MSI_ENDPOINT", &format!("{authority}/msi/token")),
    ]);
    let (kind, text) = seen_with("az://models/m", &Rights::Own).await.unwrap_err();
    assert_eq!(kind, ErrorKind::NotFound, "{text}");
    assert_eq!(seen.lock().unwrap().as_ref().unwrap(), &format!("Bearer {}", secret("token-of-ours")));
    assert_eq!(*asked.lock().unwrap(), ["/msi/token"]);
}

/// Parsers repeat what they cannot read.
#[test]
fn a_malformed_credential_of_ours_is_not_shown() {
    let canary = secret("canary-of-ours");
    for (name, value, reference) in [
        ("GOOGLE_SERVICE_ACCOUNT_KEY", format!("{{\"private_key\": [\"{canary}\"]}}"), "gs://bucket/m"),
        ("AZURE_STORAGE_ACCESS_KEY", format!("!{canary}"), "az://models/m"),
    ] {
        set(&[("AZURE_STORAGE_ACCOUNT_NAME", "account"), (name, &value)]);
        let text = super::open_with(reference, &Rights::Own).map(|_| ()).unwrap_err().to_string();
        assert!(!text.contains(&canary) && text.contains("is malformed"), "{text}");
    }
}

/// What a command passes to a daemon that does not have its environment.
#[test]
fn credentials_are_found_where_each_kind_keeps_them() {
    let kind = |reference: &str| {
        let found = preheat::origin::own_credential(&reference.parse().unwrap()).unwrap();
        found.map(|credential| credential.kind())
    };
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("key.json");
    let named = [("GOOGLE_APPLICATION_CREDENTIALS", file.to_str().unwrap())];
    set(&named);
    std::fs::write(&file, "{\"type\": \"authorized_user\"}").unwrap();
    assert_eq!(kind("gs://bucket/m"), None, "a person's is not passed on");
    std::fs::write(&file, "{\"type\": \"service_account\"}").unwrap();
    assert_eq!(kind("gs://bucket/m"), Some("google_service_account"));
    set(&[&named[..], &[("GOOGLE_BEARER_TOKEN", "token")]].concat());
    assert_eq!(kind("gs://bucket/m"), Some("bearer"));
    set(&[("AZURE_STORAGE_SAS_KEY", "sv=1")]);
    assert_eq!(kind("az://models/m"), Some("azure_sas"));
    set(&[("AZURE_STORAGE_SAS_KEY", "sv=1"), ("AZURE_STORAGE_ACCOUNT_KEY", "key")]);
    assert_eq!(kind("az://models/m"), Some("azure_key"));
}

/// The guard on the way out is for what references and answers lead to; who gives out credentials is where the environment says.
#[tokio::test]
async fn a_daemon_gets_its_credentials_where_it_may_not_read() {
    let (authority, asked) = authority(token("\"expires_on\": \"4070908800\", \"resource\": \"x\"")).await;
    let by_name = authority.replace("127.0.0.1", "localhost");
    set(&[
        // There is none of this name, and it is at no address.
        ("AZURE_STORAGE_ACCOUNT_NAME", "preheatnosuchaccount0"),
        ("AZURE_MSI_ENDPOINT", &format!("{by_name}/msi/token")),
    ]);
    let guarded = Origins::new(Config::default()).unwrap();
    let reference: Reference = "az://models/m".parse().unwrap();
    let error = guarded.open(&reference, &Rights::Own).unwrap().resolve(&reference).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    assert_eq!(*asked.lock().unwrap(), ["/msi/token"], "{error}");
    // The same server as a bucket's takes the operator's word, which naming it is.
    set(&[("AZURE_STORAGE_ACCOUNT_NAME", "account"), ("AZURE_STORAGE_ENDPOINT", &by_name)]);
    let error = guarded.open(&reference, &Rights::Own).unwrap().resolve(&reference).await.unwrap_err();
    assert_eq!(asked.lock().unwrap().last().map(String::as_str), Some("/models"), "{error}");
    set(&[("AZURE_STORAGE_ACCOUNT_NAME", "account"), ("AZURE_STORAGE_ENDPOINT", "http://169.254.169.254")]);
    let error = guarded.open(&reference, &Rights::Own).unwrap_err();
    assert!(matches!(error, SourceError::NotAllowed { .. }), "{error}");
}

/// Where nothing names a credential, none is looked for: asking for one hangs where nobody gives them out.
#[tokio::test]
async fn without_a_credential_nobody_is_asked_for_one() {
    let store = Proxy::before("http://127.0.0.1:1").await;
    store.judge(|asked| {
        assert!(!asked.headers.contains_key("authorization"), "{asked:?}");
        Verdict::Answer(404, "<Error><Code>NoSuchBucket</Code></Error>")
    });
    set(&[
        ("AWS_ENDPOINT_URL", &store.url),
        ("GOOGLE_BASE_URL", &store.url),
        ("AZURE_STORAGE_ENDPOINT", &store.url),
        ("AZURE_STORAGE_ACCOUNT_NAME", "account"),
    ]);
    let start = Instant::now();
    for place in ["s3://bucket/m", "gs://bucket/m", "az://bucket/m"] {
        for rights in [Rights::Own, Rights::Anonymous] {
            let (kind, text) = seen_with(place, &rights).await.unwrap_err();
            assert_eq!(kind, ErrorKind::NotFound, "{text}");
            assert!(text.contains("without credentials"), "{text}");
        }
    }
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
    // Nobody there at all.
    let nobody = "http://127.0.0.1:1";
    set(&[
        ("AWS_ENDPOINT_URL", nobody),
        ("GOOGLE_BASE_URL", nobody),
        ("AZURE_STORAGE_ENDPOINT", nobody),
        ("AZURE_STORAGE_ACCOUNT_NAME", "account"),
    ]);
    for (place, names) in [
        ("s3://bucket/m", "AWS_ENDPOINT_URL"),
        ("gs://bucket/m", "GOOGLE_BASE_URL"),
        ("az://bucket/m", "AZURE_STORAGE_ACCOUNT_NAME"),
    ] {
        let (kind, text) = seen_with(place, &Rights::Own).await.unwrap_err();
        assert_eq!(kind, ErrorKind::Unavailable, "{text}");
        assert!(text.contains(names), "{text}");
    }
}

//! Google Cloud Storage, as fake-gcs-server has it. It lets everybody in, so who may not is told by a proxy before it.

use preheat::base::ErrorKind;
use preheat::model::source::RangeSource;
use preheat::model::{Credential, Rights, Secret};
use preheat::origin::conformance::{Digests, resolve};

use super::{
    Row, catches_a_flipped_byte, conforms, digest, open, refused_with, replace_at, seen_with, set, sink, upload, writes,
};
use crate::support::emulator::Emulator;
use crate::support::model::{model, noise, with_more};
use crate::support::node::Node;
use crate::support::proxy::{Proxy, Verdict};
use crate::support::secret;

/// A server with a bucket that is named in the environment, without credentials.
pub(super) async fn with_bucket() -> Emulator {
    let server = Emulator::gcs();
    set(&[("STORAGE_EMULATOR_HOST", &server.url)]);
    preheat::origin::install_tls_provider();
    let made = reqwest::Client::new()
        .post(format!("{}/storage/v1/b", server.url))
        .json(&serde_json::json!({"name": "my_bucket.example"}))
        .send()
        .await
        .unwrap();
    assert!(made.status().is_success(), "{made:?}");
    server
}

#[tokio::test]
async fn a_gcs_server_conforms() {
    let _server = with_bucket().await;
    let files = with_more(model(1, 2, 3 << 20));
    let here = "gs://my_bucket.example/team/model";
    upload(&files, here).await;
    let row = Row {
        name: "gs",
        here: here.to_owned(),
        nowhere: "gs://my_bucket.example/team/none".to_owned(),
        replace: replace_at(here),
    };
    assert_eq!(conforms(&row, &files).await, digest(&files));
    // Names that must be escaped in a URL, and a neighbour whose name only begins alike.
    let odd = "gs://my_bucket.example/odd%20names/m+1=%C3%BC%26x";
    upload(&model(2, 1, 1 << 20), odd).await;
    upload(&model(3, 1, 1 << 20), &format!("{odd}-large")).await;
    assert_eq!(Node::new().files(odd).await.1, model(2, 1, 1 << 20));
}

#[tokio::test]
async fn a_gcs_server_is_written_to() {
    let _server = with_bucket().await;
    writes("gs://my_bucket.example/team/new", Digests::OfAll).await;
}

#[tokio::test]
async fn a_model_is_pushed_to_gcs() {
    let _server = with_bucket().await;
    crate::push::pushes("gs://my_bucket.example/team/pushed");
}

#[tokio::test]
async fn a_byte_that_changes_on_its_way_from_gcs_is_caught() {
    let server = with_bucket().await;
    let proxy = Proxy::before(&server.url).await;
    set(&[("GOOGLE_BASE_URL", &proxy.url)]);
    let files = model(1, 2, 3 << 20);
    upload(&files, "gs://my_bucket.example/m").await;
    catches_a_flipped_byte(&proxy, "gs://my_bucket.example/m", &["crc32c", "md5"], &files).await;
}

#[tokio::test]
async fn what_gcs_would_decompress_is_refused_by_name() {
    let server = with_bucket().await;
    upload(&model(1, 1, 1 << 20), "gs://my_bucket.example/m").await;
    let made = reqwest::Client::new()
        .post(format!(
            "{}/upload/storage/v1/b/my_bucket.example/o?uploadType=media&name=m%2Fvocab.txt&contentEncoding=gzip",
            server.url
        ))
        .body("not really")
        .send()
        .await
        .unwrap();
    assert!(made.status().is_success(), "{made:?}");
    let (kind, text) = seen_with("gs://my_bucket.example/m", &Rights::Own).await.unwrap_err();
    assert_eq!(kind, ErrorKind::Invalid, "{text}");
    assert!(text.contains("m/vocab.txt is stored compressed"), "{text}");
}

#[tokio::test]
async fn refusals_of_gcs_are_told_apart() {
    let server = with_bucket().await;
    let (public, private) = ("gs://my_bucket.example/public", "gs://my_bucket.example/private");
    upload(&model(1, 1, 1 << 20), public).await;
    upload(&model(2, 1, 1 << 20), private).await;
    let proxy = Proxy::before(&server.url).await;
    proxy.judge(|asked| {
        let query = asked.uri.query().unwrap_or_default();
        let private = asked.uri.path().contains("/private/") || query.contains("private");
        let ours = format!("Bearer {}", secret("token-of-ours"));
        match asked.headers.get("authorization").map(|value| value.to_str().unwrap()) {
            Some(shown) if shown == ours => Verdict::Pass,
            None if !private => Verdict::Pass,
            None => Verdict::Answer(401, "<Error><Code>AccessDenied</Code></Error>"),
            Some(_) => Verdict::Answer(401, "<Error><Code>AuthenticationRequired</Code></Error>"),
        }
    });
    set(&[("GOOGLE_BASE_URL", &proxy.url)]);
    let bearer = |token: &str| Credential::Bearer(Secret::new(secret(token)));
    assert_eq!(seen_with(public, &Rights::Anonymous).await.unwrap().len(), 4, "everybody's is everybody's");
    assert_eq!(seen_with(private, &Rights::Caller(bearer("token-of-ours"))).await.unwrap().len(), 4);
    let (kind, text) = seen_with(private, &Rights::Anonymous).await.unwrap_err();
    assert_eq!(kind, ErrorKind::Denied, "{text}");
    assert!(text.contains("GOOGLE_APPLICATION_CREDENTIALS"), "{text}");
    let (kind, text) = refused_with(private, bearer("guess-of-theirs"), "guess-of-theirs").await;
    assert_eq!(kind, ErrorKind::Denied, "{text}");
    let (kind, text) = refused_with(private, Credential::AzureKey(Secret::new("a2V5".to_owned())), "a2V5").await;
    assert_eq!(kind, ErrorKind::Invalid, "{text}");
    assert!(text.contains("google_service_account or bearer, not azure_key"), "{text}");
    let key = format!("{{\"private_key\": \"{}\"}}", secret("secret-of-theirs"));
    let key = Credential::GoogleServiceAccount(Secret::new(key));
    let (kind, text) = refused_with(private, key, "secret-of-theirs").await;
    assert_eq!(kind, ErrorKind::Invalid, "{text}");

    set(&[("GOOGLE_BASE_URL", &proxy.url), ("GOOGLE_BEARER_TOKEN", "token-of-ours")]);
    assert_eq!(seen_with(private, &Rights::Own).await.unwrap().len(), 4, "the environment's own token");
    // As the service says it; the server here has an error of its own.
    proxy.judge(|_| Verdict::Answer(404, "<?xml version='1.0'?><Error><Code>NoSuchBucket</Code></Error>"));
    let (kind, text) = seen_with("gs://absent/m", &Rights::Own).await.unwrap_err();
    assert_eq!((kind, text.contains("the bucket gs://absent")), (ErrorKind::NotFound, true), "{text}");
}

#[tokio::test]
async fn a_planned_generation_is_asked_for_by_name() {
    let server = with_bucket().await;
    let proxy = Proxy::before(&server.url).await;
    set(&[("GOOGLE_BASE_URL", &proxy.url)]);
    let here = "gs://my_bucket.example/m";
    super::put(&*sink(here), "config.json", &noise(1, 100), preheat::model::sink::Existing::Keep).await;
    let (reference, origin) = open(here);
    let resolved = resolve(&*origin, &reference).await;
    proxy.judge(|asked| {
        assert!(asked.uri.query().is_some_and(|query| query.starts_with("generation=")), "{}", asked.uri);
        Verdict::Pass
    });
    let origin: &dyn RangeSource = &*origin;
    origin.open(&resolved.files[0], 0..100).await.unwrap();
}

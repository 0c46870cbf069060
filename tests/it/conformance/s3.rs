//! S3, as the `s3s-fs` crate has it over a directory.

use std::path::Path;
use std::sync::Arc;

use hyper_util::rt::{TokioExecutor, TokioIo};
use preheat::base::ErrorKind;
use preheat::model::{Credential, Rights, Secret};
use preheat::origin::conformance::Digests;

use super::{
    Row, SHARD, catches_a_flipped_byte, conforms, digest, refused_with, replace_at, seen_with, set, upload, writes,
};
use crate::support::model::{model, with_more, write};
use crate::support::node::Node;
use crate::support::proxy::{Proxy, Verdict};
use crate::support::secret;

/// A server; with `keys`, for those who have them.
async fn s3(root: &Path, keys: Option<(&str, &str)>) -> String {
    let mut builder = s3s::service::S3ServiceBuilder::new(s3s_fs::FileSystem::new(root).unwrap());
    if let Some((access, secret)) = keys {
        builder.set_auth(s3s::auth::SimpleAuth::from_single(access, secret));
    }
    let service = builder.build();
    // It looks whether an object exists and writes it later: one writer at a time makes that what S3 does.
    let writing = Arc::new(tokio::sync::Mutex::new(()));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        loop {
            let Ok((stream, _)) = listener.accept().await else { return };
            stream.set_nodelay(true).unwrap();
            let (service, writing) = (service.clone(), Arc::clone(&writing));
            let service = hyper::service::service_fn(move |request: http::Request<hyper::body::Incoming>| {
                let (service, writing) = (service.clone(), Arc::clone(&writing));
                async move {
                    let writes = matches!(*request.method(), http::Method::PUT | http::Method::POST);
                    let _turn = if writes { Some(writing.lock().await) } else { None };
                    hyper::service::Service::call(&service, request).await
                }
            });
            tokio::spawn(async move {
                let http = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
                // A client that has what it wants closes the connection.
                let _ = http.serve_connection(TokioIo::new(stream), service).await;
            });
        }
    });
    url
}

pub(super) const KEYS: [(&str, &str); 3] =
    [("AWS_REGION", "us-east-1"), ("AWS_ACCESS_KEY_ID", "access"), ("AWS_SECRET_ACCESS_KEY", "secret-of-ours")];

/// A server with a bucket, and an environment with the keys to it.
pub(super) async fn with_keys() -> (tempfile::TempDir, String) {
    let directory = tempfile::tempdir().unwrap();
    std::fs::create_dir(directory.path().join("bucket")).unwrap();
    let url = s3(directory.path(), Some(("access", &secret("secret-of-ours")))).await;
    set(&[&KEYS[..], &[("AWS_ENDPOINT_URL", &url)]].concat());
    (directory, url)
}

#[tokio::test]
async fn an_s3_server_conforms_signed() {
    let (directory, _) = with_keys().await;
    s3_conforms(directory.path()).await;
}

#[tokio::test]
async fn an_s3_server_conforms_anonymous() {
    let directory = tempfile::tempdir().unwrap();
    let url = s3(directory.path(), None).await;
    set(&[("AWS_ENDPOINT_URL", &url), ("AWS_REGION", "us-east-1")]);
    s3_conforms(directory.path()).await;
}

async fn s3_conforms(root: &Path) {
    let files = with_more(model(1, 2, 3 << 20));
    let place = root.join("bucket/team/model");
    write(&files, &place);
    let row = Row {
        name: "s3",
        here: "s3://bucket/team/model".to_owned(),
        nowhere: "s3://bucket/team/none".to_owned(),
        replace: Box::new({
            let place = place.clone();
            move |bytes| {
                std::fs::write(place.join(SHARD), bytes).unwrap();
                Box::pin(async {})
            }
        }),
    };
    assert_eq!(conforms(&row, &files).await, digest(&files));
    // Names that must be escaped in a URL, and a neighbour whose name only begins alike.
    let odd = root.join("bucket/odd names/m+1=ü&x");
    write(&model(2, 1, 1 << 20), &odd);
    write(&model(3, 1, 1 << 20), &root.join("bucket/odd names/m+1=ü&x-large"));
    let (_, found) = Node::new().files("s3://bucket/odd%20names/m+1=%C3%BC%26x").await;
    assert_eq!(found, model(2, 1, 1 << 20));
}

#[tokio::test]
async fn an_s3_server_is_written_to() {
    let (_directory, _) = with_keys().await;
    // It forgets the checksums of objects that were written in parts.
    writes("s3://bucket/team/new", Digests::OfSmall).await;
    let files = with_more(model(1, 2, 3 << 20));
    upload(&files, "s3://bucket/team/model").await;
    (replace_at("s3://bucket/team/model"))(files[SHARD].clone()).await;
    assert_eq!(Node::new().files("s3://bucket/team/model").await.1, files);
}

#[tokio::test]
async fn a_byte_that_changes_on_its_way_from_s3_is_caught() {
    let (_directory, url) = with_keys().await;
    let proxy = Proxy::before(&url).await;
    set(&[&KEYS[..], &[("AWS_ENDPOINT_URL", &proxy.url)]].concat());
    let files = model(1, 2, 3 << 20);
    upload(&files, "s3://bucket/m").await;
    catches_a_flipped_byte(&proxy, "s3://bucket/m", &["crc64nvme"], &files).await;
}

#[tokio::test]
async fn refusals_of_s3_are_told_apart() {
    let (_directory, url) = with_keys().await;
    upload(&model(1, 1, 1 << 20), "s3://bucket/m").await;
    let aws = |name: &str| Credential::Aws {
        access_key_id: Secret::new("access".to_owned()),
        secret_access_key: Secret::new(secret(name)),
        session_token: None,
    };
    assert_eq!(seen_with("s3://bucket/m", &Rights::Caller(aws("secret-of-ours"))).await.unwrap().len(), 4);
    let (kind, text) = refused_with("s3://bucket/m", aws("guess-of-theirs"), "guess-of-theirs").await;
    assert_eq!(kind, ErrorKind::Denied, "{text}");
    assert!(text.contains("AWS_SECRET_ACCESS_KEY"), "{text}");
    let other = Credential::Bearer(Secret::new(secret("token-of-theirs")));
    let (kind, text) = refused_with("s3://bucket/m", other, "token-of-theirs").await;
    assert_eq!(
        (kind, text.contains("takes a credential of kind aws, not bearer")),
        (ErrorKind::Invalid, true),
        "{text}"
    );
    let (kind, text) = seen_with("s3://absent/m", &Rights::Own).await.unwrap_err();
    assert_eq!((kind, text.contains("the bucket s3://absent")), (ErrorKind::NotFound, true), "{text}");
    let (kind, text) = seen_with("s3://bucket/m", &Rights::Anonymous).await.unwrap_err();
    assert_eq!(kind, ErrorKind::Denied, "{text}");

    let proxy = Proxy::before(&url).await;
    set(&[&KEYS[..], &[("AWS_ENDPOINT_URL", &proxy.url)]].concat());
    proxy.judge(|_| {
        Verdict::Answer(400, "<Error><Code>AuthorizationHeaderMalformed</Code><Region>eu-west-1</Region></Error>")
    });
    let (kind, text) = seen_with("s3://bucket/m", &Rights::Own).await.unwrap_err();
    assert_eq!((kind, text.contains("region eu-west-1; set AWS_REGION")), (ErrorKind::Invalid, true), "{text}");
}

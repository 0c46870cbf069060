//! Every origin against the one suite: a directory, a web server with a manifest, one without, and an S3 server that nobody
//! here wrote, signed and anonymous. A new origin is a new row.

use std::path::Path;
use std::sync::Arc;

use hyper_util::rt::{TokioExecutor, TokioIo};
use preheat::model::source::Origin;
use preheat::model::{OriginId, Reference, Rights};
use preheat::origin::conformance::{Digests, Expected, absent, reading, replaced, resolve, writing};
use preheat::origin::{Config, Origins};

use super::support::model::{Files, manifest, model, noise, with_more, write};
use super::support::node::Node;
use super::support::web::Web;

const SHARD: &str = "model-00001-of-00002.safetensors";

fn expected(files: &Files) -> Expected {
    files.iter().map(|(path, bytes)| (path.clone(), bytes.clone())).collect()
}

/// Puts other bytes of the same length in the place of the first shard.
type Replace = Box<dyn Fn(&[u8])>;

struct Row {
    name: &'static str,
    /// Where the model is, and where nothing is.
    here: String,
    nowhere: String,
    replace: Replace,
}

fn open(reference: &str) -> (Reference, Arc<dyn Origin>, OriginId) {
    preheat::origin::install_tls_provider();
    let origins = Origins::new(Config::default()).unwrap();
    let reference: Reference = reference.parse().unwrap();
    let origin = origins.open(&reference, &Rights::Own).unwrap();
    let identity = origins.identity(&reference);
    (reference, origin, identity)
}

/// All that is asked of an origin, and the digest of the manifest that a fetch from it makes.
async fn conforms(row: &Row, files: &Files) -> preheat::digest::Hash {
    let (reference, origin, _) = open(&row.here);
    reading(&*origin, &reference, &expected(files)).await;
    let (nowhere, none, _) = open(&row.nowhere);
    absent(&*none, &nowhere).await;
    let fetched = Node::new().fetch(&row.here).await.unwrap_or_else(|error| panic!("{}: {error}", row.name));
    let before = resolve(&*origin, &reference).await;
    let mut other = files[SHARD].clone();
    other.reverse();
    (row.replace)(&other);
    replaced(&*origin, &reference, &before, SHARD).await;
    fetched.model.record.manifest
}

/// An S3 server over a directory, as the `s3s-fs` crate has it.
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

/// Sets variables of this process, which is this test's own.
fn set(variables: &[(&str, &str)]) {
    for (name, value) in variables {
        #[expect(
            unsafe_code,
            reason = "the test runner gives every test a process; nothing reads the environment meanwhile"
        )]
        // SAFETY: called before the runtime has a second thread.
        unsafe {
            std::env::set_var(name, value);
        }
    }
}

#[tokio::test]
async fn directories_and_web_servers_conform() {
    let files = with_more(model(1, 2, 3 << 20));
    let directory = tempfile::tempdir().unwrap();
    let place = directory.path().join("m");
    write(&files, &place);
    let web = Web::serve(&files).await;
    web.put("preheat-manifest.json", &manifest(&files).to_json());
    let named = Web::serve(&model(1, 2, 3 << 20)).await;
    let rows = [
        Row {
            name: "directory",
            here: format!("file://{}", place.display()),
            nowhere: format!("file://{}/none", place.display()),
            replace: Box::new({
                let place = place.clone();
                move |bytes| {
                    // As publishers do it: the new file takes the old one's name.
                    std::fs::write(place.join("new"), bytes).unwrap();
                    std::fs::rename(place.join("new"), place.join(SHARD)).unwrap();
                }
            }),
        },
        Row {
            name: "web server with a manifest",
            here: web.url.clone(),
            nowhere: format!("{}/none", web.url),
            replace: Box::new({
                let (web, mut files) = (web.clone(), files.clone());
                files.remove(SHARD);
                move |bytes| {
                    web.put(SHARD, bytes);
                    let mut files = files.clone();
                    files.insert(SHARD.to_owned(), bytes.to_vec());
                    web.put("preheat-manifest.json", &manifest(&files).to_json());
                }
            }),
        },
    ];
    let mut digests = Vec::new();
    for row in &rows {
        digests.push(conforms(row, &files).await);
    }
    assert!(digests.iter().all(|digest| *digest == manifest(&files).digest()), "one manifest: {digests:?}");
    // Without a manifest a web server has no listing: what the index and the usual names lead to is found.
    let row = Row {
        name: "web server that is probed",
        here: named.url.clone(),
        nowhere: format!("{}/none", named.url),
        replace: Box::new({
            let named = named.clone();
            move |bytes| named.put(SHARD, bytes)
        }),
    };
    let files = model(1, 2, 3 << 20);
    assert_eq!(conforms(&row, &files).await, manifest(&files).digest());
}

#[tokio::test]
async fn an_s3_server_conforms_signed() {
    s3_conforms(Some(("access", "secret"))).await;
}

#[tokio::test]
async fn an_s3_server_conforms_anonymous() {
    s3_conforms(None).await;
}

async fn s3_conforms(keys: Option<(&'static str, &'static str)>) {
    let files = with_more(model(1, 2, 3 << 20));
    let directory = tempfile::tempdir().unwrap();
    let place = directory.path().join("bucket/team/model");
    write(&files, &place);
    let url = s3(directory.path(), keys).await;
    set(&[("AWS_ENDPOINT_URL", &url), ("AWS_REGION", "us-east-1")]);
    if let Some((access, secret)) = keys {
        set(&[("AWS_ACCESS_KEY_ID", access), ("AWS_SECRET_ACCESS_KEY", secret)]);
    }
    let row = Row {
        name: "s3",
        here: "s3://bucket/team/model".to_owned(),
        nowhere: "s3://bucket/team/none".to_owned(),
        replace: Box::new({
            let place = place.clone();
            move |bytes| std::fs::write(place.join(SHARD), bytes).unwrap()
        }),
    };
    assert_eq!(conforms(&row, &files).await, manifest(&files).digest());
    // Names that must be escaped in a URL, and a neighbour whose name only begins alike.
    let odd = directory.path().join("bucket/odd names/m+1=ü&x");
    write(&model(2, 1, 1 << 20), &odd);
    write(&model(3, 1, 1 << 20), &directory.path().join("bucket/odd names/m+1=ü&x-large"));
    let (_, found) = Node::new().files("s3://bucket/odd%20names/m+1=%C3%BC%26x").await;
    assert_eq!(found, model(2, 1, 1 << 20));
}

/// All that is asked of a place that can be written to.
async fn writes(reference: &str, digests: Digests) {
    let (parsed, origin, _) = open(reference);
    let origins = Origins::new(Config::default()).unwrap();
    let sink = origins.sink(&parsed, &Rights::Own).unwrap();
    // Two whole parts and the rest of a third.
    writing(&*sink, &*origin, &parsed, &noise(5, 40 << 20), digests).await;
}

#[tokio::test]
async fn directories_are_written_to() {
    let directory = tempfile::tempdir().unwrap();
    writes(&format!("file://{}/new/m", directory.path().display()), Digests::OfNone).await;
    assert_eq!(std::fs::read_dir(directory.path().join("new/m")).unwrap().count(), 5, "nothing temporary stays");
}

#[tokio::test]
async fn an_s3_server_is_written_to() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::create_dir(directory.path().join("bucket")).unwrap();
    let url = s3(directory.path(), Some(("access", "secret"))).await;
    set(&[("AWS_ENDPOINT_URL", &url), ("AWS_REGION", "us-east-1")]);
    set(&[("AWS_ACCESS_KEY_ID", "access"), ("AWS_SECRET_ACCESS_KEY", "secret")]);
    // It forgets the checksums of objects that were written in parts.
    writes("s3://bucket/team/new", Digests::OfSmall).await;
}

#[tokio::test]
async fn wrong_keys_are_denied_and_told_apart_from_absence() {
    let directory = tempfile::tempdir().unwrap();
    write(&model(1, 1, 1 << 20), &directory.path().join("bucket/m"));
    let url = s3(directory.path(), Some(("access", "secret"))).await;
    set(&[("AWS_ENDPOINT_URL", &url), ("AWS_REGION", "us-east-1")]);
    set(&[("AWS_ACCESS_KEY_ID", "access"), ("AWS_SECRET_ACCESS_KEY", "not the secret")]);
    let error = Node::new().fetch("s3://bucket/m").await.unwrap_err();
    assert_eq!(error.kind(), preheat::base::ErrorKind::Denied, "{error}");
    assert!(!error.to_string().contains("not the secret"));
}

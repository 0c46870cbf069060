//! Every origin against the one suite: a directory, a web server with a manifest, one without, and servers of S3, Google Cloud
//! Storage and Azure that nobody here wrote. A new origin is a new row.

mod azure;
mod faults;
mod gcs;
mod identity;
mod s3;
mod served;

use std::sync::Arc;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use futures_util::future::BoxFuture;
use preheat::base::ErrorKind;
use preheat::model::sink::{Content, Existing, Put, Sink};
use preheat::model::source::{Origin, SourceError};
use preheat::model::{Credential, FilePath, Reference, Rights};
use preheat::origin::conformance::{Digests, Expected, absent, reading, replaced, resolve, writing};
use preheat::origin::{Config, Origins};

use super::support::model::{Files, manifest, noise};
use super::support::node::Node;
use super::support::proxy::{Proxy, Verdict};
use super::support::secret;

const SHARD: &str = "model-00001-of-00002.safetensors";

fn expected(files: &Files) -> Expected {
    files.iter().map(|(path, bytes)| (path.clone(), bytes.clone())).collect()
}

/// Puts other bytes of the same length in the place of the first shard.
type Replace = Box<dyn Fn(Vec<u8>) -> BoxFuture<'static, ()>>;

struct Row {
    name: &'static str,
    /// Where the model is, and where nothing is.
    here: String,
    nowhere: String,
    replace: Replace,
}

fn origins() -> Origins {
    preheat::origin::install_tls_provider();
    Origins::unguarded(Config::default()).unwrap()
}

fn open_with(reference: &str, rights: &Rights) -> Result<(Reference, Arc<dyn Origin>), SourceError> {
    let reference: Reference = reference.parse().unwrap();
    let origin = origins().open(&reference, rights)?;
    Ok((reference, origin))
}

fn open(reference: &str) -> (Reference, Arc<dyn Origin>) {
    open_with(reference, &Rights::Own).unwrap()
}

fn sink(reference: &str) -> Arc<dyn Sink> {
    origins().sink(&reference.parse().unwrap(), &Rights::Own).unwrap()
}

/// All that is asked of an origin, and the digest of the manifest that a fetch from it makes.
async fn conforms(row: &Row, files: &Files) -> preheat::digest::Hash {
    let (reference, origin) = open(&row.here);
    reading(&*origin, &reference, &expected(files)).await;
    let (nowhere, none) = open(&row.nowhere);
    absent(&*none, &nowhere).await;
    let fetched = Node::new().fetch(&row.here).await.unwrap_or_else(|error| panic!("{}: {error}", row.name));
    let before = resolve(&*origin, &reference).await;
    let mut other = files[SHARD].clone();
    other.reverse();
    (row.replace)(other).await;
    replaced(&*origin, &reference, &before, SHARD).await;
    fetched.model.record.manifest
}

/// All that is asked of a place that can be written to.
async fn writes(reference: &str, digests: Digests) {
    let (parsed, origin) = open(reference);
    // Two whole parts and the rest of a third.
    writing(&*sink(reference), &*origin, &parsed, &noise(5, 40 << 20), digests).await;
}

/// Puts files where a model is to be.
async fn upload(files: &Files, reference: &str) {
    let sink = sink(reference);
    for (path, bytes) in files {
        put(&*sink, path, bytes, Existing::Keep).await;
    }
}

async fn put(sink: &dyn Sink, path: &str, bytes: &[u8], existing: Existing) {
    let content = Content::Bytes(bytes.to_vec().into());
    let path = FilePath::new(path).unwrap();
    let put = sink.put(&path, &content, existing, Arc::new(|_| {})).await;
    assert_eq!(put.unwrap_or_else(|error| panic!("put {path}: {error}")), Put::Created, "{path}");
}

/// The first shard of a model, replaced as its publisher would.
fn replace_at(reference: &str) -> Replace {
    let reference = reference.to_owned();
    Box::new(move |bytes| {
        let sink = sink(&reference);
        Box::pin(async move { put(&*sink, SHARD, &bytes, Existing::Replace).await })
    })
}

/// The digests that a store declares of `here` are those of `algorithms`; a byte that changes on its way is caught by them,
/// and once the truth is told it is fetched.
async fn catches_a_flipped_byte(proxy: &Proxy, here: &str, algorithms: &[&str], files: &Files) {
    let (reference, origin) = open(here);
    let resolved = resolve(&*origin, &reference).await;
    for file in &resolved.files {
        let found: Vec<&str> = file.declared.iter().map(|declared| declared.algorithm.as_str()).collect();
        assert_eq!(found, algorithms, "{}", file.path);
    }
    proxy.judge(|asked| {
        let of_shard = asked.method == http::Method::GET && asked.uri.path().ends_with(SHARD);
        if of_shard { Verdict::Flip(1_000_000) } else { Verdict::Pass }
    });
    let node = Node::new();
    let error = node.fetch(here).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
    assert!(error.to_string().contains(SHARD), "{error}");
    node.assert_nothing_published();
    proxy.judge(|_| Verdict::Pass);
    assert_eq!(node.files(here).await.1, *files);
}

/// What opening and resolving comes to with these rights: the paths, or kind and text of the error.
async fn seen_with(reference: &str, rights: &Rights) -> Result<Vec<String>, (ErrorKind, String)> {
    let told = |error: SourceError| (error.kind(), error.to_string());
    let (parsed, origin) = open_with(reference, rights).map_err(told)?;
    let resolved = origin.resolve(&parsed).await.map_err(told)?;
    for file in &resolved.files {
        let body = origin.open(file, 0..file.size.min(10)).await.map_err(told)?;
        drop(body);
    }
    Ok(resolved.files.iter().map(|file| file.path.to_string()).collect())
}

/// A caller's credential that does not fit or is wrong: the kind of error, and that no error or `Debug` text has any of it.
async fn refused_with(reference: &str, credential: Credential, canary: &str) -> (ErrorKind, String) {
    let rights = Rights::Caller(credential);
    if let Ok((_, origin)) = open_with(reference, &rights) {
        assert!(!format!("{origin:?}").contains(canary), "Debug shows it");
    }
    let (kind, text) = seen_with(reference, &rights).await.unwrap_err();
    assert!(!text.contains(canary), "{text}");
    (kind, text)
}

/// A key of a storage account of Azure's.
fn azure_key(name: &str) -> String {
    BASE64_STANDARD.encode(secret(name))
}

/// Sets variables of this process, which is this test's own, and takes away those of the developer's own accounts.
fn set(variables: &[(&str, &str)]) {
    let foreign = |name: &str| {
        ["AWS_", "GOOGLE_", "GCE_", "AZURE_", "STORAGE_EMULATOR_"].iter().any(|prefix| name.starts_with(prefix))
            || matches!(name, "SERVICE_ACCOUNT" | "IDENTITY_ENDPOINT")
    };
    let foreign: Vec<String> = std::env::vars().map(|(name, _)| name).filter(|name| foreign(name)).collect();
    #[expect(
        unsafe_code,
        reason = "the test runner gives every test a process; nothing reads the environment meanwhile"
    )]
    // SAFETY: no other thread of this process looks at the environment while a test sets it up.
    unsafe {
        foreign.iter().for_each(|name| std::env::remove_var(name));
        // Where tools of the clouds leave what they know.
        std::env::set_var("HOME", "/nonexistent");
        variables.iter().for_each(|(name, value)| match *name {
            "AWS_SECRET_ACCESS_KEY" | "GOOGLE_BEARER_TOKEN" => std::env::set_var(name, secret(value)),
            "AZURE_STORAGE_ACCOUNT_KEY" => std::env::set_var(name, azure_key(value)),
            _ => std::env::set_var(name, value),
        });
    }
}

fn digest(files: &Files) -> preheat::digest::Hash {
    manifest(files).digest()
}

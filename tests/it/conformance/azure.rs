//! Azure Blob Storage, as Azurite has it.

use std::sync::Arc;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use object_store::azure::{AzureAccessKey, AzureAuthorizer, AzureCredential};
use object_store::client::{HttpRequest, HttpRequestBody};
use preheat::base::ErrorKind;
use preheat::model::sink::{Content, Existing, Put};
use preheat::model::{Credential, FilePath, Rights, Secret};
use preheat::origin::conformance::Digests;
use preheat::origin::{Config, Origins};
use sha2::{Digest, Sha256};

use super::{
    Row, azure_key, catches_a_flipped_byte, conforms, digest, refused_with, replace_at, seen_with, set, sink, upload,
    writes,
};
use crate::support::emulator::{AZURITE_ACCOUNT, Emulator};
use crate::support::model::{model, shard, with_more};
use crate::support::node::Node;
use crate::support::proxy::Proxy;
use crate::support::secret;

fn environment(endpoint: &str, key: Option<&str>) {
    let mut variables = vec![("AZURE_STORAGE_ACCOUNT_NAME", AZURITE_ACCOUNT), ("AZURE_STORAGE_ENDPOINT", endpoint)];
    variables.extend(key.map(|key| ("AZURE_STORAGE_ACCOUNT_KEY", key)));
    set(&variables);
}

/// Makes a container, as the account's owner would.
async fn container(endpoint: &str, name: &str, public: bool) {
    let mut request = HttpRequest::new(HttpRequestBody::empty());
    *request.method_mut() = http::Method::PUT;
    *request.uri_mut() = format!("{endpoint}/{name}?restype=container").parse().unwrap();
    request.headers_mut().insert("content-length", 0.into());
    if public {
        request.headers_mut().insert("x-ms-blob-public-access", "container".parse().unwrap());
    }
    let key = AzureCredential::AccessKey(AzureAccessKey::try_new(&azure_key("key-of-ours")).unwrap());
    AzureAuthorizer::new(&key, AZURITE_ACCOUNT).try_authorize(&mut request).unwrap();
    let (parts, _) = request.into_parts();
    preheat::origin::install_tls_provider();
    let made = reqwest::Client::new().put(parts.uri.to_string()).headers(parts.headers).send().await.unwrap();
    assert!(made.status().is_success(), "{made:?}");
}

/// A server with the private container `models`, and an environment with the key to it.
async fn with_container() -> Emulator {
    let server = Emulator::azurite(&azure_key("key-of-ours"));
    container(&server.url, "models", false).await;
    environment(&server.url, Some("key-of-ours"));
    server
}

#[tokio::test]
async fn an_azure_server_conforms() {
    let _server = with_container().await;
    let files = with_more(model(1, 2, 3 << 20));
    upload(&files, "az://models/team/model").await;
    let row = Row {
        name: "az",
        here: "az://models/team/model".to_owned(),
        nowhere: "az://models/team/none".to_owned(),
        replace: replace_at("az://models/team/model"),
    };
    assert_eq!(conforms(&row, &files).await, digest(&files));
    // Names that must be escaped in a URL, and a neighbour whose name only begins alike.
    let odd = "az://models/odd%20names/m+1=%C3%BC%26x";
    upload(&model(2, 1, 1 << 20), odd).await;
    upload(&model(3, 1, 1 << 20), &format!("{odd}-large")).await;
    assert_eq!(Node::new().files(odd).await.1, model(2, 1, 1 << 20));
}

#[tokio::test]
async fn a_model_is_pushed_to_azure() {
    let _server = with_container().await;
    crate::push::pushes("az://models/team/pushed");
}

#[tokio::test]
async fn an_azure_server_is_written_to() {
    let _server = with_container().await;
    writes("az://models/team/new", Digests::OfAll).await;
}

/// Blocks are not yet a blob; whoever lists theirs first throws away those of the other.
#[tokio::test]
async fn of_two_that_write_one_large_blob_one_has_written_it() {
    let _server = with_container().await;
    let sink = sink("az://models/m");
    let path = FilePath::new("model.safetensors").unwrap();
    let contents = [shard("t", 1, 40 << 20), shard("t", 2, 40 << 20)];
    let put = |content: &Vec<u8>| {
        let (sink, path, content) = (Arc::clone(&sink), path.clone(), Content::Bytes(content.clone().into()));
        async move { sink.put(&path, &content, Existing::Keep, Arc::new(|_| {})).await.unwrap() }
    };
    let (one, other) = futures_util::future::join(put(&contents[0]), put(&contents[1])).await;
    assert_eq!([one, other].iter().filter(|put| **put == Put::Created).count(), 1, "{one:?} {other:?}");
    let won = if one == Put::Created { &contents[0] } else { &contents[1] };
    let (_, found) = Node::new().files("az://models/m").await;
    assert!(found["model.safetensors"] == *won, "it is the one that was said to be written, unmixed");
}

/// A shared access signature of the whole account, as its owner gives it away: to read and to list.
fn signature_to_read() -> String {
    let (version, end) = ("2023-11-03", "2099-01-01T00:00:00Z");
    let text = format!("{AZURITE_ACCOUNT}\nrl\nb\nsco\n\n{end}\n\n\n{version}\n\n");
    let mut key = secret("key-of-ours").into_bytes();
    assert!(key.len() <= 64, "HMAC takes keys of up to a block as they are");
    key.resize(64, 0);
    let pad = |with: u8| key.iter().map(|byte| byte ^ with).collect::<Vec<u8>>();
    let inner = Sha256::new().chain_update(pad(0x36)).chain_update(text).finalize();
    let outer = Sha256::new().chain_update(pad(0x5c)).chain_update(inner).finalize();
    let signature = BASE64_STANDARD.encode(outer).replace('+', "%2B").replace('/', "%2F").replace('=', "%3D");
    format!("sv={version}&ss=b&srt=sco&sp=rl&se={end}&sig={signature}")
}

#[tokio::test]
async fn a_byte_that_changes_on_its_way_from_azure_is_caught() {
    let server = with_container().await;
    let proxy = Proxy::before(server.url.strip_suffix(&format!("/{AZURITE_ACCOUNT}")).unwrap()).await;
    environment(&format!("{}/{AZURITE_ACCOUNT}", proxy.url), Some("key-of-ours"));
    let files = model(1, 2, 3 << 20);
    upload(&files, "az://models/m").await;
    catches_a_flipped_byte(&proxy, "az://models/m", &["md5"], &files).await;
}

#[tokio::test]
async fn refusals_of_azure_are_told_apart() {
    let server = with_container().await;
    container(&server.url, "public", true).await;
    upload(&model(1, 1, 1 << 20), "az://models/m").await;
    upload(&model(2, 1, 1 << 20), "az://public/m").await;
    let key = |text: &str| Credential::AzureKey(Secret::new(text.to_owned()));
    assert_eq!(seen_with("az://public/m", &Rights::Anonymous).await.unwrap().len(), 4, "everybody's is everybody's");
    assert_eq!(seen_with("az://models/m", &Rights::Caller(key(&azure_key("key-of-ours")))).await.unwrap().len(), 4);
    let (kind, text) = seen_with("az://models/m", &Rights::Anonymous).await.unwrap_err();
    assert!(matches!(kind, ErrorKind::Denied | ErrorKind::NotFound), "{text}");
    assert!(text.contains("AZURE_STORAGE_ACCOUNT_KEY") || text.contains("without credentials"), "{text}");
    let wrong = azure_key("guess-of-theirs");
    let (kind, text) = refused_with("az://models/m", key(&wrong), &wrong).await;
    assert_eq!(kind, ErrorKind::Denied, "{text}");
    let (kind, text) = refused_with("az://models/m", key("no-base64-at-all"), "no-base64-at-all").await;
    assert_eq!((kind, text.as_str()), (ErrorKind::Invalid, "az://models: the azure_key credential is malformed"));
    let sas = Rights::Caller(Credential::AzureSas(Secret::new(signature_to_read())));
    assert_eq!(seen_with("az://models/m", &sas).await.unwrap().len(), 4, "a shared access signature");
    let origins = Origins::unguarded(Config::default()).unwrap();
    let sink = origins.sink(&"az://models/m".parse().unwrap(), &sas).unwrap();
    let content = Content::Bytes(vec![0; 10].into());
    let path = FilePath::new("more.json").unwrap();
    let denied = sink.put(&path, &content, Existing::Keep, Arc::new(|_| {})).await.unwrap_err();
    assert_eq!(denied.kind(), ErrorKind::Denied, "it is to read: {denied}");
    assert!(!denied.to_string().contains("sig="), "{denied}");
    let sas = "sv=2023-11-03&ss=b&srt=sco&sp=rl&se=2099-01-01T00:00:00Z&sig=Z3Vlc3Nvb2Z0aGVpcnM%3D";
    let (kind, text) =
        refused_with("az://models/m", Credential::AzureSas(Secret::new(sas.to_owned())), "Z3Vlc3Nvb2Z0aGVpcnM").await;
    assert_eq!(kind, ErrorKind::Denied, "{text}");
    let aws = Credential::GoogleServiceAccount(Secret::new("{\"of\": \"theirs\"}".to_owned()));
    let (kind, text) = refused_with("az://models/m", aws, "theirs").await;
    assert_eq!(kind, ErrorKind::Invalid, "{text}");
    let (kind, text) = seen_with("az://absent/m", &Rights::Own).await.unwrap_err();
    assert_eq!((kind, text.contains("the bucket az://absent")), (ErrorKind::NotFound, true), "{text}");
    set(&[("AZURE_STORAGE_ACCOUNT_KEY", "key-of-ours")]);
    let (kind, text) = seen_with("az://models/m", &Rights::Own).await.unwrap_err();
    assert_eq!((kind, text.contains("set AZURE_STORAGE_ACCOUNT_NAME")), (ErrorKind::Invalid, true), "{text}");
}

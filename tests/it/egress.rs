//! Where a daemon may be led: addresses, redirects, proxies, endpoints. Numbers and names by the hundred are the business of
//! `scripts/rigs/ssrf.py`; here is what needs no network of its own.

use std::sync::{Arc, Mutex};

use preheat::model::source::SourceError;
use preheat::model::{Credential, Reference, Rights, Secret};
use preheat::origin::{Config, Origins};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

const COMMIT: &str = "cccccccccccccccccccccccccccccccccccccccc";

/// A server that answers each request with what `answer` makes of its head, and remembers the heads.
#[derive(Clone)]
struct Server {
    url: String,
    heads: Arc<Mutex<Vec<String>>>,
}

impl Server {
    async fn start(answer: impl Fn(&str) -> String + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let server = Self { url, heads: Arc::default() };
        let (heads, answer) = (Arc::clone(&server.heads), Arc::new(answer));
        tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let (heads, answer) = (Arc::clone(&heads), Arc::clone(&answer));
                tokio::spawn(async move {
                    let mut head = Vec::new();
                    while !head.ends_with(b"\r\n\r\n") {
                        let Ok(byte) = stream.read_u8().await else { return };
                        head.push(byte);
                    }
                    let head = String::from_utf8(head).unwrap();
                    let answer = answer(&head);
                    heads.lock().unwrap().push(head);
                    // A client that is content with the head is gone by now.
                    let _ = stream.write_all(answer.as_bytes()).await;
                });
            }
        });
        server
    }

    /// One file, four bytes long, whatever is asked.
    async fn file() -> Self {
        Self::start(|head| full(head, "abcd")).await
    }

    fn heads(&self) -> Vec<String> {
        std::mem::take(&mut *self.heads.lock().unwrap())
    }

    /// For each request whether it brought the secret.
    fn authorised(&self) -> Vec<bool> {
        self.heads().iter().map(|head| head.to_lowercase().contains("authorization: bearer secret")).collect()
    }
}

fn full(head: &str, body: &str) -> String {
    let body = if head.starts_with("HEAD ") { (body.len(), "") } else { (body.len(), body) };
    format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{}", body.0, body.1)
}

fn redirect(to: &str) -> String {
    format!("HTTP/1.1 302 Found\r\nlocation: {to}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
}

#[expect(unsafe_code, reason = "the test runner gives every test a process, and this runtime has one thread")]
fn set(variables: &[(&str, &str)]) {
    for (name, value) in variables {
        // SAFETY: no other thread reads the environment meanwhile.
        unsafe { std::env::set_var(name, value) };
    }
}

fn guarded(allow: &[&str]) -> Origins {
    preheat::origin::install_tls_provider();
    let allow = allow.iter().map(|listing| listing.parse().unwrap()).collect();
    Origins::new(Config { allow, ..Config::default() }).unwrap()
}

/// Asks for a reference: `Ok` if the server's answer came through.
async fn ask(origins: &Origins, reference: &str, rights: &Rights) -> Result<(), SourceError> {
    let reference: Reference = reference.parse().unwrap();
    origins.open(&reference, rights)?.resolve(&reference).await.map(|_| ())
}

/// Asks for a reference that must be refused, with all of these words.
#[track_caller]
fn refused(outcome: Result<(), SourceError>, words: &[&str]) {
    let error = outcome.unwrap_err();
    assert!(matches!(error, SourceError::NotAllowed { .. }), "{error}");
    for word in words {
        assert!(error.to_string().contains(word), "`{word}` is not in: {error}");
    }
}

#[tokio::test]
async fn an_address_inside_takes_a_word_of_the_operator() {
    let server = Server::file().await;
    let port = server.url.rsplit(':').next().unwrap().to_owned();
    let reference = format!("{}/model.json", server.url);
    let remedy = format!("--allow-origin '{},allow_private'", server.url);
    let table = format!("{{ prefix = \"{}\", allow_private = true }}", server.url);
    refused(ask(&guarded(&[]), &reference, &Rights::Own).await, &[&remedy, &table, "an address of this machine"]);
    let by_name = format!("http://localhost:{port}/model.json");
    refused(ask(&guarded(&[]), &by_name, &Rights::Own).await, &[&format!("'http://localhost:{port},allow_private'")]);
    let number = format!("http://2130706433:{port}/model.json");
    refused(ask(&guarded(&[]), &number, &Rights::Own).await, &[&remedy]);
    refused(ask(&guarded(&["https://"]), &reference, &Rights::Own).await, &["not on the list", &server.url]);
    refused(ask(&guarded(&["http://"]), &reference, &Rights::Own).await, &[&remedy]);
    for listings in [&[][..], &["https://"]] {
        let error = ask(&guarded(listings), "http://a';reboot;'.example/m.json", &Rights::Own).await.unwrap_err();
        assert!(
            matches!(error, SourceError::NotAllowed { .. }) && !error.to_string().contains("--allow-origin"),
            "{error}"
        );
    }
    assert_eq!(server.heads(), [""; 0], "nothing was sent");
    for listing in [server.url.clone(), format!("http://localhost:{port}"), "http://,allow_private".to_owned()] {
        let asked = if listing.contains("localhost") { &by_name } else { &reference };
        ask(&guarded(&[&listing]), asked, &Rights::Own).await.unwrap_or_else(|error| panic!("{listing}: {error}"));
        assert_eq!(server.heads().len(), 1, "{listing}");
    }
    let metadata = "http://169.254.169.254/latest/model.json";
    for listing in ["http://169.254.169.254", "http://,allow_private"] {
        let remedy = "--allow-origin 'http://169.254.169.254,allow_private'";
        refused(ask(&guarded(&[listing]), metadata, &Rights::Own).await, &[remedy]);
    }
    for never in ["http://0.0.0.0/model.json", "http://[ff02::1]/model.json"] {
        let listing = format!("{},allow_private", never.strip_suffix("/model.json").unwrap());
        refused(ask(&guarded(&[&listing]), never, &Rights::Own).await, &["no listing allows that"]);
    }
}

#[tokio::test]
async fn who_acts_for_himself_has_his_own_network() {
    preheat::origin::install_tls_provider();
    let own = Origins::unguarded(Config::default()).unwrap();
    let server = Server::file().await;
    ask(&own, &format!("{}/model.json", server.url), &Rights::Own).await.unwrap();
    let leading = Server::start(|_| redirect("http://169.254.169.254/latest/model.json")).await;
    let led = ask(&own, &format!("{}/model.json", leading.url), &Rights::Own).await;
    refused(led, &["redirects there", "link-local or metadata", "only a reference"]);
}

#[tokio::test]
async fn every_hop_has_to_be_allowed() {
    let there = Server::file().await;
    let target = format!("{}/x/model.json", there.url);
    let here = Server::start(move |_| redirect(&target)).await;
    let reference = format!("{}/model.json", here.url);
    let led = ask(&guarded(&[&here.url]), &reference, &Rights::Own).await;
    refused(led, &["redirects there", "not on the list", &format!("--allow-origin {}", there.url)]);
    let led = ask(&guarded(&[&here.url, &format!("{}/y", there.url)]), &reference, &Rights::Own).await;
    refused(led, &["not on the list"]);
    assert_eq!(there.heads(), [""; 0], "nothing was sent");
    ask(&guarded(&[&here.url, &there.url]), &reference, &Rights::Own).await.unwrap();
    // The listing of the target decides how far.
    let leading = Server::start(|_| redirect("http://10.1.2.3:9/model.json")).await;
    let led = ask(&guarded(&[&leading.url, "http://"]), &format!("{}/model.json", leading.url), &Rights::Own).await;
    refused(led, &["redirects there", "--allow-origin 'http://10.1.2.3:9,allow_private'"]);
}

#[tokio::test]
async fn five_hops_are_followed_and_no_sixth() {
    // `/5.json` leads to `/4.json`, and so on to the file.
    let server = Server::start(|head| {
        let path = head.split(' ').nth(1).unwrap_or_default();
        match path[1..].trim_end_matches(".json").parse::<u32>() {
            Ok(left @ 1..) => redirect(&format!("{}.json", left - 1)),
            _ => full(head, "abcd"),
        }
    })
    .await;
    let origins = guarded(&[&server.url]);
    ask(&origins, &format!("{}/5.json", server.url), &Rights::Own).await.unwrap();
    assert_eq!(server.heads().len(), 6);
    refused(ask(&origins, &format!("{}/6.json", server.url), &Rights::Own).await, &["more than 5 times"]);
    assert_eq!(server.heads().len(), 6);
}

#[tokio::test]
async fn a_credential_is_for_one_server() {
    let rights = Rights::Caller(Credential::Bearer(Secret::new("secret".to_owned())));
    let back = Arc::new(Mutex::new(String::new()));
    let there = Server::start({
        let back = Arc::clone(&back);
        move |_| redirect(&back.lock().unwrap())
    })
    .await;
    let away = there.url.clone();
    let here = Server::start(move |head| match head.split(' ').nth(1) {
        Some("/model.json") => redirect("/same.json"),
        Some("/same.json") => redirect(&format!("{away}/there")),
        _ => full(head, "abcd"),
    })
    .await;
    *back.lock().unwrap() = format!("{}/back.json", here.url);
    let origins = guarded(&[&here.url, &there.url]);
    ask(&origins, &format!("{}/model.json", here.url), &rights).await.unwrap();
    assert_eq!(there.authorised(), [false]);
    assert_eq!(here.authorised(), [true, true, false], "not even after having been away");
}

#[tokio::test]
async fn an_endpoint_is_the_operators_word_for_itself() {
    let server = Server::start(|head| {
        let bucket = "<ListBucketResult><Name>bucket</Name><IsTruncated>false</IsTruncated></ListBucketResult>";
        full(head, bucket)
    })
    .await;
    set(&[("AWS_ENDPOINT_URL", &server.url)]);
    let asked = ask(&guarded(&[]), "s3://bucket/none", &Rights::Anonymous).await;
    assert!(!server.heads().is_empty(), "{asked:?}");
    let origins = guarded(&[]);
    refused(ask(&origins, &format!("{}/bucket/model.json", server.url), &Rights::Own).await, &["of this machine"]);
    set(&[("AWS_ENDPOINT_URL", "http://169.254.169.254")]);
    refused(ask(&origins, "s3://bucket/none", &Rights::Anonymous).await, &["metadata"]);
    assert_eq!(server.heads(), [""; 0]);
}

#[tokio::test]
async fn a_hub_may_lead_where_the_operator_says() {
    let storage = Server::file().await;
    let leads = Arc::new(Mutex::new(format!("{}/blob", storage.url)));
    let hub = Server::start({
        let leads = Arc::clone(&leads);
        move |head| {
            let sha256 = "88d4266fd4e6338d13b845fcf289579d209c897823b9217da3e161936f031589";
            match head.split(' ').nth(1).unwrap_or_default() {
                path if path.contains("/revision/") => full(head, &format!("{{\"sha\": \"{COMMIT}\"}}")),
                path if path.contains("/tree/") => full(
                    head,
                    &format!(
                        "[{{\"type\": \"file\", \"path\": \"model.safetensors\", \"size\": 4, \"oid\": \"{COMMIT}\", \
                         \"lfs\": {{\"oid\": \"{sha256}\", \"size\": 4}}}}]"
                    ),
                ),
                _ => redirect(&leads.lock().unwrap()),
            }
        }
    })
    .await;
    set(&[("HF_ENDPOINT", &hub.url), ("HF_TOKEN", "secret")]);
    let open = async |allow: &[&str]| {
        let reference: Reference = "hf://org/model".parse().unwrap();
        let origin = guarded(allow).open(&reference, &Rights::Own)?;
        let found = origin.resolve(&reference).await?;
        origin.open(&found.files[0], 0..4).await.map(|_| ())
    };
    refused(open(&[]).await, &["redirects there", &format!("'{},allow_private'", storage.url)]);
    refused(open(&["hf://"]).await, &["redirects there", "not on the list"]);
    assert_eq!(storage.heads(), [""; 0], "nothing was sent");
    open(&["hf://", &storage.url]).await.unwrap();
    assert_eq!((storage.authorised(), hub.authorised().into_iter().all(|sent| sent)), (vec![false], true));
    // A storage may send us on, within the same bounds.
    let on = Server::start({
        let target = format!("{}/blob", storage.url);
        move |_| redirect(&target)
    })
    .await;
    *leads.lock().unwrap() = format!("{}/blob", on.url);
    open(&["hf://", &storage.url, &on.url]).await.unwrap();
    refused(open(&["hf://", &on.url]).await, &["redirects there", "not on the list"]);
}

#[tokio::test]
async fn a_proxy_resolves_names_and_nothing_else_changes() {
    let proxy = Server::file().await;
    let server = Server::file().await;
    let authority = proxy.url.strip_prefix("http://").unwrap().to_owned();
    set(&[
        ("HTTP_PROXY", &format!("http://user:word@{authority}")),
        ("HTTPS_PROXY", &proxy.url),
        ("NO_PROXY", "127.0.0.1"),
    ]);
    let heads = || proxy.heads();
    ask(&guarded(&[]), "http://models.example/m.json", &Rights::Own).await.unwrap();
    let seen = heads().remove(0);
    assert!(seen.starts_with("HEAD http://models.example/m.json HTTP/1.1\r\n"), "{seen}");
    assert!(seen.to_lowercase().contains("proxy-authorization: basic dxnlcjp3b3jk"), "{seen}");
    // The file is no tunnel, so this fails; what matters is that it was asked for one.
    assert!(ask(&guarded(&[]), "https://models.example/m.json", &Rights::Own).await.is_err());
    assert!(heads()[0].starts_with("CONNECT models.example:443 "));
    // The list holds for what is asked through it, and so do numbers and the names that mean this machine.
    refused(ask(&guarded(&["http://a.example"]), "http://b.example/m.json", &Rights::Own).await, &["not on the list"]);
    for denied in [
        "http://10.0.0.5/m.json",
        "http://169.254.169.254/m.json",
        "http://a.localhost/m.json",
        "http://metadata/m.json",
    ] {
        refused(ask(&guarded(&[]), denied, &Rights::Own).await, &[]);
    }
    // What needs no proxy is judged as without one, and the proxy's own address opens to nobody.
    refused(ask(&guarded(&[]), &format!("{}/m.json", server.url), &Rights::Own).await, &["of this machine"]);
    refused(ask(&guarded(&[]), &format!("{}/m.json", proxy.url), &Rights::Own).await, &["of this machine"]);
    assert_eq!((heads(), server.heads()), (vec![], vec![]), "nothing was sent");
    ask(&guarded(&[&server.url]), &format!("{}/m.json", server.url), &Rights::Own).await.unwrap();
    assert_eq!((heads().len(), server.heads().len()), (0, 1));
}

#[tokio::test]
async fn a_proxy_that_cannot_be_used_is_told_when_it_is_needed() {
    set(&[("ALL_PROXY", "socks5://127.0.0.1:1")]);
    let error = ask(&guarded(&[]), "http://models.example/m.json", &Rights::Own).await.unwrap_err().to_string();
    assert!(error.contains("socks5://127.0.0.1:1") && error.contains("NO_PROXY"), "{error}");
}

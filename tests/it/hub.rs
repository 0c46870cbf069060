//! Models of a hub: pages, redirects to a storage that expires, digests, refusals, and where the token goes.

use preheat::base::ErrorKind;
use preheat::digest::OriginVerified;

use super::support::hub::Hub;
use super::support::model::{Files, MIB, model, with_more};
use super::support::node::Node;

const SHARD: &str = "model-00001-of-00002.safetensors";
const MODEL: &str = "hf://org/m";

/// Sets variables of this process, which is this test's own, and starts the runtime after it.
fn with_hub<F: Future<Output = ()>>(files: &Files, token: Option<&str>, test: impl FnOnce(Hub) -> F) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let hub = Hub::serve(files).await;
        #[expect(unsafe_code, reason = "the test runner gives every test a process, and this runtime has one thread")]
        // SAFETY: no other thread reads the environment meanwhile.
        unsafe {
            std::env::set_var("HF_ENDPOINT", &hub.url);
            std::env::set_var("HF_HOME", "/nonexistent");
            match token {
                Some(token) => std::env::set_var("HF_TOKEN", token),
                None => std::env::remove_var("HF_TOKEN"),
            }
        }
        test(hub).await;
    });
}

#[test]
fn a_model_comes_with_its_digests_checked_and_the_token_stays_at_the_hub() {
    let files = with_more(model(1, 2, 10 * MIB));
    with_hub(&files, Some("hf_secret"), |hub| async move {
        let node = Node::new();
        let (fetched, found) = node.files(MODEL).await;
        assert_eq!(found, with_more(model(1, 2, 10 * MIB)));
        assert_eq!(fetched.model.record.revision.to_string(), "c".repeat(40));
        let facts = &fetched.model.record.facts.files;
        let verified = |path: &str| facts.iter().find(|fact| fact.path.as_str() == path).unwrap().origin_verified;
        assert_eq!((verified(SHARD), verified("config.json")), (OriginVerified::Sha256, OriginVerified::GitSha1));
        assert!(hub.asked().iter().all(|(_, token)| token.as_deref() == Some("Bearer hf_secret")));
        assert!(!hub.asked_of_storage().is_empty());
        assert!(
            hub.asked_of_storage().iter().all(|(_, token)| token.is_none()),
            "the second host never sees the token"
        );
        let resolved = hub.asked().iter().filter(|(path, _)| path.ends_with(SHARD)).count();
        assert_eq!(resolved, 1, "the hub is asked once a file, not once a part");
        let asked = hub.asked().len();
        let again = node.fetch(&format!("{MODEL}@{}", "c".repeat(40))).await.unwrap();
        assert_eq!((again.origin_bytes, hub.asked().len()), (0, asked));
    });
}

#[test]
fn a_thousand_and_more_files_are_on_several_pages() {
    let mut files = Files::new();
    for number in 0..1203 {
        files.insert(format!("folder/{number}.json"), format!("{{\"n\":{number}}}").into_bytes());
    }
    files.insert("config.json".to_owned(), b"{}".to_vec());
    let wanted = files.clone();
    with_hub(&files, None, |hub| async move {
        hub.page(500);
        let (fetched, found) = Node::new().files("hf://org/m@refs%2Fpr%2F1").await;
        assert_eq!((fetched.model.record.files, found == wanted), (1204, true));
    });
}

#[test]
fn a_signature_that_expires_in_the_middle_is_renewed() {
    let files = model(2, 1, 24 * MIB);
    let wanted = files.clone();
    with_hub(&files, Some("hf_secret"), |hub| async move {
        hub.expire_every(9);
        let (_, found) = Node::new().files(MODEL).await;
        assert_eq!(found, wanted);
        let refused = hub.asked_of_storage().len();
        assert!(refused > 6, "{refused} requests");
        // A storage that refuses every new signature is a refusal, and is told as one without a stampede.
        hub.expire_every(0);
        hub.commit(&"d".repeat(40), &model(3, 1, 24 * MIB));
        let before = hub.asked_of_storage().len();
        let error = Node::new().fetch(MODEL).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Denied, "{error}");
        assert!(!error.to_string().contains("Signature"), "{error}");
        assert!(hub.asked_of_storage().len() - before < 20);
    });
}

#[test]
fn wrong_bytes_are_refused_by_name_and_the_truth_is_fetched() {
    let files = model(4, 2, 10 * MIB);
    let wanted = files.clone();
    with_hub(&files, None, |hub| async move {
        let node = Node::new();
        for (path, digest, algorithm) in
            [(SHARD, "ab".repeat(32), "sha256"), ("config.json", "ab".repeat(20), "git-sha1")]
        {
            hub.lie(path, &digest);
            let error = node.fetch(MODEL).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
            let text = error.to_string();
            assert!(text.contains(path) && text.contains(algorithm) && text.contains(&digest), "{text}");
            node.assert_nothing_published();
            hub.tell_the_truth();
        }
        let (_, found) = node.files(MODEL).await;
        assert_eq!(found, wanted);
    });
}

#[test]
fn a_new_commit_fetches_what_changed() {
    let mut files = model(5, 2, 10 * MIB);
    with_hub(&files.clone(), None, |hub| async move {
        let node = Node::new();
        node.fetch(MODEL).await.unwrap();
        files.insert("config.json".to_owned(), b"{\"new\":1}".to_vec());
        hub.commit(&"d".repeat(40), &files);
        let (fetched, found) = node.files(MODEL).await;
        assert_eq!(found, files);
        assert_eq!(fetched.origin_bytes, 9);
    });
}

#[test]
fn refusals_are_told_apart() {
    type Refusal = (u16, Vec<(&'static str, String)>, ErrorKind, &'static str);
    let code = |text: &str| vec![("x-error-code", text.to_owned())];
    let refusals: [Refusal; 5] = [
        (401, code("RepoNotFound"), ErrorKind::Denied, "HF_TOKEN"),
        (403, code("GatedRepo"), ErrorKind::Denied, "terms"),
        (404, code("RevisionNotFound"), ErrorKind::NotFound, "revision"),
        (500, Vec::new(), ErrorKind::Unavailable, "500"),
        (429, vec![("ratelimit", "\"api\";r=0;t=200".to_owned())], ErrorKind::Unavailable, "slow down"),
    ];
    with_hub(&model(6, 1, MIB), None, |hub| async move {
        let node = Node::new();
        for (status, headers, kind, word) in refusals {
            hub.refuse(Some((status, headers)));
            let error = node.fetch(MODEL).await.unwrap_err();
            let acceptable = error.kind() == kind || (status == 429 && error.kind() == ErrorKind::Busy);
            assert!(acceptable && error.to_string().contains(word), "{status}: {:?} {error}", error.kind());
        }
        hub.refuse(None);
        node.fetch(MODEL).await.unwrap();
        let error = node.fetch("hf://org/m@nowhere").await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
        let error = node.fetch("hf://org/other").await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Denied, "{error}");
    });
}

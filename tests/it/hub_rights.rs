//! Who may read what at a hub, and how often it may be asked: tokens, gates, proofs, limits.

use std::collections::HashSet;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use preheat::base::ErrorKind;
use preheat::base::units::Span;
use preheat::model::source::SourceError;
use preheat::model::{Credential, Reference, Rights, Secret};
use preheat::origin::{Config, Origins};

use super::hub::{MODEL, SHARD, set, with_hub};
use super::support::hub::{Access, Hub, Refusal};
use super::support::model::{Files, MIB, model, total};
use super::support::node::{Node, config};
use super::support::secret;

fn tokens(names: &[&str]) -> Option<HashSet<String>> {
    Some(names.iter().map(|name| secret(name)).collect())
}

#[test]
fn refusals_are_told_apart() {
    let code = |text: &str| vec![("x-error-code", text.to_owned())];
    let limits = |text: &str| vec![("ratelimit", text.to_owned())];
    let refusals: [(Refusal, ErrorKind, &str); 8] = [
        ((401, code("RepoNotFound"), ""), ErrorKind::Denied, "HF_TOKEN"),
        ((403, code("GatedRepo"), ""), ErrorKind::Denied, "accept its terms at http"),
        ((404, code("RevisionNotFound"), ""), ErrorKind::NotFound, "the revision of hf://org/m@main does not exist"),
        ((404, code("RepoNotFound"), ""), ErrorKind::NotFound, "without a token, does not exist"),
        ((404, Vec::new(), ""), ErrorKind::NotFound, "does not exist"),
        ((500, Vec::new(), "out of order"), ErrorKind::Unavailable, "out of order"),
        ((503, Vec::new(), ""), ErrorKind::Unavailable, "503"),
        ((429, limits("\"api\";r=0;t=200"), ""), ErrorKind::Busy, "slow down for 201 s"),
    ];
    with_hub(&model(6, 1, MIB), None, |hub| async move {
        for (refusal, kind, word) in refusals {
            let status = refusal.0;
            hub.fault(move |_| Some(refusal.clone()));
            let error = Node::new().fetch(MODEL).await.unwrap_err();
            assert!(error.kind() == kind && error.to_string().contains(word), "{status}: {:?} {error}", error.kind());
        }
        hub.heal();
        let node = Node::new();
        let error = node.fetch("hf://org/m@nowhere").await.unwrap_err();
        assert!(error.to_string().contains("the revision of hf://org/m@nowhere does not exist"), "{error}");
        let error = node.fetch("hf://org/other").await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Denied, "{error}");
        // What vanishes between the list and the bytes.
        hub.fault(|asked| {
            asked.path.ends_with("config.json").then(|| (404, vec![("x-error-code", "EntryNotFound".to_owned())], ""))
        });
        let error = node.fetch(MODEL).await.unwrap_err();
        assert!(
            error.kind() == ErrorKind::NotFound && error.to_string().contains("config.json does not exist"),
            "{error}"
        );
        hub.heal();
        node.fetch(MODEL).await.unwrap();
    });
}

#[test]
fn a_bad_token_is_told_from_none_and_from_one_without_rights() {
    with_hub(&model(6, 1, MIB), None, |hub| async move {
        let node = Node::new();
        hub.access(Access { tokens: tokens(&["hf_good", "hf_stranger"]), let_in: tokens(&["hf_good"]), private: true });
        for (token, kind, words) in [
            (None, ErrorKind::Denied, "it is not public: then set HF_TOKEN"),
            (Some("hf_wrong"), ErrorKind::Denied, "the hub does not accept the token in HF_TOKEN"),
            (
                Some("hf_stranger"),
                ErrorKind::Denied,
                "it is gated, and the owner of the token in HF_TOKEN has not been let in",
            ),
        ] {
            set("HF_TOKEN", token);
            let error = node.fetch(MODEL).await.unwrap_err();
            assert!(error.kind() == kind && error.to_string().contains(words), "{token:?}: {error}");
            assert!(token.is_none_or(|token| !error.to_string().contains(token)), "{error}");
            node.assert_nothing_published();
        }
        set("HF_TOKEN", Some("hf_good"));
        node.fetch(MODEL).await.unwrap();
        let refused = node.origins.open(&"hf://org/m".parse().unwrap(), &bearer("two\nlines")).unwrap_err();
        assert!(!refused.to_string().contains("two"), "{refused}");
    });
}

#[test]
fn a_token_that_is_revoked_in_the_middle_leaves_what_has_come() {
    let files = model(2, 1, 24 * MIB);
    let wanted = files.clone();
    with_hub(&files, None, |hub| async move {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("token");
        std::fs::write(&file, secret("hf_first")).unwrap();
        set("HF_TOKEN_PATH", file.to_str());
        hub.access(Access { tokens: tokens(&["hf_first"]), ..Access::default() });
        let (revoking, node) = (hub.clone(), Node::new());
        // After some parts the signature ends, and the token with it.
        hub.expire_every(5);
        hub.storage_fault(move |asked| {
            if asked.number == 5 {
                revoking.access(Access { tokens: tokens(&["hf_second"]), ..Access::default() });
            }
            None
        });
        let error = node.fetch(MODEL).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Denied, "{error}");
        let text = error.to_string();
        assert!(text.contains("does not accept the token in") && text.contains(file.to_str().unwrap()), "{text}");
        assert!(text.contains("revoked") && !text.contains("hf_first"), "{text}");
        node.assert_nothing_published();
        // Another in its place, and the fetch goes on: no restart, and not from the beginning.
        hub.expire_every(usize::MAX);
        std::fs::write(&file, secret("hf_second") + "\n").unwrap();
        let (fetched, found) = node.files(MODEL).await;
        assert!(found == wanted);
        let whole = total(&wanted);
        assert!(fetched.origin_bytes < whole - 4 * MIB as u64, "{} of {whole} fetched again", fetched.origin_bytes);
        for asked in hub.asked_of_storage() {
            assert!(!format!("{asked:?}").contains("hf_"), "{asked:?}");
        }
    });
}

/// Both want the same of the same scope; the one that may not have it is first, and the other finds its transfers under way.
#[test]
fn what_another_is_refused_one_asks_for_oneself() {
    with_hub(&model(6, 2, MIB), None, |hub| async move {
        hub.access(Access { tokens: tokens(&["hf_in", "hf_out"]), let_in: tokens(&["hf_in"]), private: false });
        for _ in 0..10 {
            let node = Node::new();
            let as_who = |token| {
                let mut request = node.request(MODEL);
                request.origin = node.origins.open(&request.reference, &bearer(token)).unwrap();
                node.fetcher.fetch(request)
            };
            let (refused, given) = tokio::join!(as_who("hf_out"), as_who("hf_in"));
            given.unwrap();
            // Or it came after the other's bytes: whether it may have those is not the transfer's to say.
            assert!(refused.is_ok() || refused.unwrap_err().kind() == ErrorKind::Denied);
        }
    });
}

fn bearer(token: &str) -> Rights {
    Rights::Caller(Credential::Bearer(Secret::new(secret(token))))
}

/// Whether a listing succeeds, and what the proof says after it.
async fn prove(hub: &Hub, rights: &Rights) -> Result<Result<(), SourceError>, SourceError> {
    let reference: Reference = MODEL.parse().unwrap();
    let origin = Origins::new(Config::default()).unwrap().open(&reference, rights)?;
    let resolution = origin.resolve(&reference).await?;
    let before = (hub.asked().len(), hub.asked_of_storage().len());
    let proved = origin.prove(&resolution).await;
    let asked = hub.asked()[before.0..].to_vec();
    assert_eq!(hub.asked_of_storage().len(), before.1, "no byte moves");
    assert!(asked.len() <= 2 && asked[0].path.contains("/resolve/"), "{asked:?}");
    Ok(proved)
}

#[test]
fn a_proof_is_of_the_bytes_and_not_of_the_list() {
    with_hub(&model(6, 2, MIB), None, |hub| async move {
        preheat::origin::install_tls_provider();
        prove(&hub, &Rights::Anonymous).await.unwrap().unwrap();
        // Gated: listed for everybody.
        hub.access(Access { tokens: tokens(&["hf_in", "hf_out"]), let_in: tokens(&["hf_in"]), private: false });
        for (rights, accepted) in
            [(Rights::Anonymous, false), (Rights::Own, false), (bearer("hf_out"), false), (bearer("hf_in"), true)]
        {
            let proved = prove(&hub, &rights).await.unwrap();
            assert_eq!(proved.is_ok(), accepted, "{rights:?}: {proved:?}");
            if let Err(error) = proved {
                assert_eq!(error.kind(), ErrorKind::Denied);
                assert!(error.to_string().contains("accept its terms at"), "{error}");
            }
        }
        let error = prove(&hub, &bearer("hf_wrong")).await.unwrap_err();
        assert!(error.to_string().contains("does not accept the token in the credential"), "{error}");
        let asked = hub.asked().into_iter().rfind(|asked| asked.path.contains("/resolve/")).unwrap();
        assert!(asked.path.contains(&format!("/{}/", "c".repeat(40))) && asked.path.ends_with(SHARD), "{}", asked.path);
        // One that lost its right between list and proof; a hub that does not know HEAD; one that sends to another path of its
        // own, which then refuses.
        let lost = vec![("x-error-code", "RepoNotFound".to_owned())];
        hub.fault(move |asked| asked.path.contains("/resolve/").then(|| (401, lost.clone(), "")));
        assert_eq!(prove(&hub, &bearer("hf_in")).await.unwrap().unwrap_err().kind(), ErrorKind::Denied);
        hub.fault(|asked| (asked.method == http::Method::HEAD).then(|| (405, Vec::new(), "")));
        prove(&hub, &bearer("hf_in")).await.unwrap().unwrap();
        assert_eq!(prove(&hub, &bearer("hf_out")).await.unwrap().unwrap_err().kind(), ErrorKind::Denied);
        hub.fault(|asked| match asked.path.contains("/resolve/") {
            true => Some((307, vec![("location", "/api/resolve-cache/x".to_owned())], "")),
            false => {
                asked.path.contains("resolve-cache").then(|| (403, vec![("x-error-code", "GatedRepo".to_owned())], ""))
            }
        });
        assert_eq!(prove(&hub, &bearer("hf_in")).await.unwrap().unwrap_err().kind(), ErrorKind::Denied);
    });
}

/// When each request came.
fn clock(
    hub: &Hub,
    judge: impl Fn(&super::support::hub::Asked) -> Option<Refusal> + Send + Sync + 'static,
) -> Arc<Mutex<Vec<Instant>>> {
    let times = Arc::<Mutex<Vec<Instant>>>::default();
    let written = Arc::clone(&times);
    hub.fault(move |asked| {
        written.lock().unwrap().push(Instant::now());
        judge(asked)
    });
    times
}

fn patient() -> Node {
    Node::with(preheat::transfer::Config { retry_after_longest: Span(Duration::from_secs(5)), ..config() }, |_| {})
}

#[test]
fn what_one_job_is_told_thirty_one_others_hear() {
    with_hub(&model(6, 1, MIB), Some("hf_secret"), |hub| async move {
        let node = patient();
        let refused = vec![("ratelimit", "\"api\";r=0;t=1".to_owned()), ("retry-after", "1".to_owned())];
        let times = clock(&hub, move |asked| (asked.number == 1).then(|| (429, refused.clone(), "")));
        let others = async {
            while hub.asked().is_empty() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
            futures_util::future::join_all((1..32).map(|_| node.fetch(MODEL))).await
        };
        let (first, others) = futures_util::future::join(node.fetch(MODEL), others).await;
        assert!(first.is_ok() && others.iter().all(Result::is_ok), "{first:?}");
        let times = times.lock().unwrap().clone();
        let early = times.iter().skip(1).filter(|at| at.duration_since(times[0]) < Duration::from_secs(2)).count();
        assert_eq!(early, 0, "asked before the window's end");
        assert!(times.last().unwrap().duration_since(times[0]) < Duration::from_secs(20));
    });
}

#[test]
fn a_transfer_and_a_planning_hear_of_each_other() {
    let mut files = model(6, 1, MIB);
    // Small files are asked of the hub one by one.
    files.extend((0..400).map(|number| (format!("{number}.json"), b"{}".to_vec())));
    with_hub(&files, None, |hub| async move {
        let wait = Duration::from_secs(2);
        let planning = "hf://org/m@feature%2Fslash?include=1.json";
        for planning_is_told in [false, true] {
            let (node, told) = (patient(), Arc::<Mutex<Option<Instant>>>::default());
            let (when, before) = (Arc::clone(&told), hub.asked().len());
            let times = clock(&hub, move |asked| {
                let this = if planning_is_told { asked.path.contains("slash") } else { asked.number == before + 40 };
                let mut when = when.lock().unwrap();
                if !this || when.is_some() {
                    return None;
                }
                *when = Some(Instant::now());
                Some((503, vec![("retry-after", "2".to_owned())], ""))
            });
            let other = async {
                // In the middle of the transfer; or long after it was told, and long before it may go on.
                while told.lock().unwrap().is_none() && !(planning_is_told && hub.asked().len() >= before + 40) {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
                if !planning_is_told {
                    tokio::time::sleep(Duration::from_millis(600)).await;
                }
                node.fetch(planning).await
            };
            let (transfer, planning) = futures_util::future::join(node.fetch(MODEL), other).await;
            transfer.unwrap();
            planning.unwrap();
            let told = told.lock().unwrap().unwrap();
            let after: Vec<Duration> =
                times.lock().unwrap().iter().filter_map(|at| at.checked_duration_since(told)).collect();
            // What had been sent by then still comes in; then nothing does.
            let late = after.iter().filter(|at| **at > Duration::from_millis(400) && **at < wait).count();
            assert_eq!(late, 0, "planning is told: {planning_is_told}: {after:?}");
            assert!(after.iter().filter(|at| **at >= wait).count() > 20, "{planning_is_told}: {after:?}");
        }
    });
}

#[test]
fn a_listing_goes_on_where_a_limit_stopped_it() {
    let files: Files = (0..1203).map(|number| (format!("{number}.json"), b"{}".to_vec())).collect();
    with_hub(&files, None, |hub| async move {
        hub.page(100);
        let refused = vec![("ratelimit", "\"api\";r=0;t=0".to_owned())];
        hub.fault(move |asked| (asked.number == 7).then(|| (429, refused.clone(), "")));
        // On the answer that empties the window nothing is asked before it is full again.
        let node = patient();
        let fetched = node.fetch(&format!("{MODEL}?include=1.json")).await.unwrap();
        assert_eq!(fetched.model.record.files, 1);
        let pages = hub.asked().iter().filter(|asked| asked.path.contains("/tree/")).count();
        assert_eq!(pages, 13 + 1, "no page is read twice");
    });
}

#[test]
fn waits_are_bounded_and_can_be_called_off() {
    with_hub(&model(6, 1, MIB), None, |hub| async move {
        hub.fault(|_| Some((429, vec![("retry-after", "86400".to_owned())], "")));
        let begun = Instant::now();
        let error = patient().fetch(MODEL).await.unwrap_err();
        assert!(error.kind() == ErrorKind::Busy && error.to_string().contains("for 86400 s"), "{error}");
        assert_eq!(hub.asked().len(), 1);
        let node = Node::with(preheat::transfer::Config::default(), |_| {});
        hub.fault(|_| Some((503, vec![("retry-after", "300".to_owned())], "")));
        let request = node.request(MODEL);
        let cancel = request.cancel.clone();
        let calls_off = async {
            while hub.asked().len() < 2 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            cancel.cancel();
        };
        let (outcome, ()) = futures_util::future::join(node.fetcher.fetch(request), calls_off).await;
        assert_eq!(outcome.unwrap_err().kind(), ErrorKind::Cancelled);
        assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    });
}

#[test]
fn a_hub_that_echoes_tells_nobody_a_secret() {
    with_hub(&model(6, 1, MIB), None, |hub| async move {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("token");
        std::fs::write(&file, "hf_canary").unwrap();
        set("HF_TOKEN_PATH", file.to_str());
        for (status, headers, body) in [
            (500, Vec::new(), "you sent Authorization: Bearer hf_canary"),
            (400, Vec::new(), "https://cdn/x?Signature=c4n4ry&token=hf_canary"),
            (403, vec![("x-error-message", "the token hf_canary may not")], ""),
            (200, Vec::new(), "\"Bearer hf_canary\""),
            (200, Vec::new(), "{\"sha\": \"hf_canary hf%5Fcanary aGZfY2FuYXJ5\"}"),
        ] {
            let headers: Vec<_> = headers.into_iter().map(|(name, value)| (name, value.to_owned())).collect();
            hub.fault(move |_| Some((status, headers.clone(), body)));
            let error = format!("{0} {0:?}", Node::new().fetch(MODEL).await.unwrap_err());
            for secret in ["canary", "c4n4ry", "aGZfY2FuYXJ5"] {
                assert!(!error.contains(secret), "{error}");
            }
        }
    });
}

//! Verbs that ask a daemon, as people and scripts meet them: what they print, draw and answer.

use std::process::Stdio;
use std::time::Duration;

use serde_json::{Value, json};

use super::support::command::{Daemon, code, fails, json as json_of, preheat, run, stderr, stdout};
use super::support::model::{MIB, model, total, write};
use super::support::stub::Stub;
use super::support::web::{Fault, Web};

/// A job of two models in the middle of it, as a daemon tells it.
fn job(id: &str, state: &str) -> Value {
    let member = |reference: &str, done: u64| {
        json!({
            "reference": reference, "stage": "transfer", "bytes_total": 8_u64 << 30, "bytes_done": done, "origin_bytes": done,
            "files": 4, "path": null, "tree": null, "manifest": null, "revision": null, "durable": false, "resident_bytes": null,
        })
    };
    json!({
        "id": id, "state": state, "reference": "hf://org/base", "tier": "memory", "priority": "demand", "stage": "transfer",
        "bytes_total": 16_u64 << 30, "bytes_done": 6_u64 << 30, "origin_bytes": 6_u64 << 30, "bytes_per_second": 512 << 20,
        "eta_seconds": {"p50": 20.4, "p90": 31.0}, "deadline_met": true, "path": null, "tree": null, "manifest": null,
        "revision": null, "files": 8, "durable": false, "resident_bytes": null, "seconds": 12.5, "warnings": ["slow\u{1b}[2J"],
        "error": null, "members": [member("hf://org/base", 4 << 30), member("s3://adapters/\u{1b}[31m<b>", 2 << 30)],
        "estimate": {
            "bytes_total": 16_u64 << 30, "bytes_missing": {"disk": 16_u64 << 30, "memory": 16_u64 << 30},
            "seconds": {"p50": 32.0, "p90": 45.0}, "queue_seconds": {"p50": 0.0, "p90": 0.0}, "basis": "measured", "rates": [],
            "deadline": "at_risk", "revisions": [null, null],
        },
        "timeline": [
            {"stage": "queue", "member": null, "start": 0.0, "seconds": 0.5},
            {"stage": "resolve", "member": 0, "start": 0.5, "seconds": 0.5},
            {"stage": "transfer", "member": 0, "start": 1.0, "seconds": null},
            {"stage": "resolve", "member": 1, "start": 0.5, "seconds": 2.5},
        ],
    })
}

/// The same when it has ended.
fn ended(state: &str, error: Value, deadline_met: Option<bool>) -> Value {
    let mut job = job("job-1", state);
    job["error"] = error;
    job["deadline_met"] = json!(deadline_met);
    job["eta_seconds"] = Value::Null;
    job
}

fn ask(stub: &Stub, arguments: &[&str]) -> std::process::Output {
    preheat().args(arguments).args(["--daemon", &stub.url, "--daemon-timeout", "2s"]).output().unwrap()
}

#[test]
fn a_job_is_told_and_drawn() {
    let stub = Stub::start();
    stub.answer("GET /v1/prewarm/job-1", &job("job-1", "running"));
    let output = ask(&stub, &["status", "job-1", "--timeline"]);
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    insta::assert_snapshot!(stdout(&output), @r"
    job-1: transfer
      tier memory, priority demand, asked 12.5 s ago
      6 GiB of 16 GiB (37 %), 512 MiB/s, 20.4 s left (nine times in ten 31.0 s), the deadline will hold
      first estimate: 16 GiB, none of it on the node, 16 GiB not in memory: about 32.0 s (nine times in ten within 45.0 s), measured; the deadline is at risk: it will more likely hold than not
      hf://org/base
        transfer, 4 GiB of 8 GiB, 4 GiB from the origin, 4 files
      s3://adapters/?[31m<b>
        transfer, 2 GiB of 8 GiB, 2 GiB from the origin, 4 files
      warning: slow?[2J

               0 s       2 s       4 s       6 s       8 s       10 s      12 s
               +---------+---------+---------+---------+---------+---------+-
    queue      ##                                                             500 ms
    hf://org/base
      resolve    ###                                                          500 ms
      transfer      ########################################################> 11.5 s
    s3://adapters/?[31m<b>
      resolve    #############                                                 2.5 s
    ");
    let wide = preheat()
        .args(["status", "job-1", "--timeline", "--daemon", &stub.url])
        .env("COLUMNS", "132")
        .output()
        .unwrap();
    let widest = stdout(&wide).lines().skip_while(|line| !line.is_empty()).map(str::len).max();
    assert_eq!(widest, Some(132));
}

#[test]
fn the_picture_is_also_a_file() {
    let stub = Stub::start();
    stub.answer("GET /v1/prewarm/job-1", &job("job-1", "running"));
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("job.svg");
    let output = ask(&stub, &["status", "job-1", "--svg", file.to_str().unwrap()]);
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    assert!(stdout(&output).starts_with("job-1: transfer\n"), "the words are still there");
    let svg = std::fs::read_to_string(&file).unwrap();
    assert_eq!(stdout(&ask(&stub, &["status", "job-1", "--svg", "-"])), svg, "on stdout the picture alone");
    assert!(svg.starts_with("<svg ") && svg.ends_with("</svg>\n"), "{svg}");
    assert!(svg.contains("s3://adapters/\u{fffd}[31m&lt;b&gt;") && !svg.contains('\u{1b}'), "{svg}");
    for other in ["http:", "https:", "href", "<script", "url("] {
        assert!(!svg.replace("http://www.w3.org/2000/svg", "").contains(other), "it needs no other file: {other}");
    }
    fails(&ask(&stub, &["status", "job-1", "--svg", "-", "--json"]), 64, &["--svg -"]);
    fails(&ask(&stub, &["status", "job-1", "--svg", "/none/x.svg"]), 66, &["/none/x.svg"]);
    for flag in [&["--watch"][..], &["--timeline"], &["--svg", "-"]] {
        fails(&ask(&stub, &[&["status"], flag].concat()), 64, &["JOB"]);
    }
}

#[test]
fn a_node_at_a_glance() {
    let stub = Stub::start();
    stub.answer(
        "GET /v1/node",
        &json!({
            "version": "1.2.3", "ready": true, "hostname": "gpu-7", "kernel": "6.1", "cpus": 96, "memory_bytes": 1_u64 << 40,
            "gpus": ["NVIDIA H100 80GB HBM3", "NVIDIA H100 80GB HBM3"], "root": "/var/lib/preheat", "halted": null,
            "usage": {
                "capacity": 1_u64 << 40, "blobs": 1_u64 << 38, "partials": 1_u64 << 32, "reserved": 3_u64 << 30, "quarantined": 0,
                "blob_count": 12, "model_count": 2,
            },
        }),
    );
    let published = |name: &str, pins: Value| {
        json!({
            "id": format!("{name}-{}", "0".repeat(32)), "scope": "default", "reference": format!("hf://org/{name}"),
            "revision": "r", "path": "/x", "manifest": "0".repeat(64), "bytes": 15_u64 << 30, "files": 4, "durable": true,
            "published_at": 1, "last_used": 1, "origin_verified": "none", "pins": pins,
        })
    };
    let pin = json!([{"id": "base", "reason": "", "expires_at": null}]);
    // Pages are followed.
    let next = "link: </v1/models?limit=1&after=a>; rel=\"next\"\r\n";
    stub.answer_with("GET /v1/models", next, &json!([published("a", pin)]));
    stub.answer("GET /v1/models?limit=1&after=a", &json!([published("b", json!([]))]));
    let mut all = vec![job("job-9", "running")];
    for number in (1..=7).rev() {
        let mut queued = job(&format!("job-{number}"), "queued");
        queued["members"] = json!([]);
        queued["tier"] = json!("disk");
        all.push(queued);
    }
    let mut failed = ended("failed", json!({"kind": "no_space", "detail": "no room for 16 GiB"}), Some(false));
    failed["id"] = json!("job-0");
    all.push(failed);
    stub.answer("GET /v1/prewarm", &json!(all));
    let output = ask(&stub, &["status"]);
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    insta::assert_snapshot!(stdout(&output), @r"
    gpu-7: ready
      preheat 1.2.3, 96 CPUs, 1 TiB of memory, 2 x NVIDIA H100 80GB HBM3
      store /var/lib/preheat: 260 GiB of 1 TiB (25 %), 4 GiB unfinished, 3 GiB promised
      2 models, 30 GiB, 1 of them pinned or leased
      jobs: 1 running, 7 waiting
    job-9: transfer
      hf://org/base and 1 more, into memory
      6 GiB of 16 GiB (37 %), 512 MiB/s, 20.4 s left (nine times in ten 31.0 s), the deadline will hold
    job-1: queued for 12.5 s
      hf://org/base
    job-2: queued for 12.5 s
      hf://org/base
    job-3: queued for 12.5 s
      hf://org/base
    job-4: queued for 12.5 s
      hf://org/base
    job-5: queued for 12.5 s
      hf://org/base
    and 2 more that wait
    job-0: failed after 12.5 s, past the deadline
      hf://org/base and 1 more, into memory
      no room for 16 GiB
    ");
    let told = json_of(&ask(&stub, &["status", "--json"]));
    assert_eq!(told["node"]["hostname"], "gpu-7");
    assert_eq!((told["models"].as_array().unwrap().len(), told["jobs"].as_array().unwrap().len()), (2, 9));
}

#[test]
fn watching_ends_with_the_job_and_as_it_did() {
    let full = json!({"kind": "no_space", "detail": "no room for 16 GiB"});
    for (last, exit, words) in [
        (ended("ready", Value::Null, Some(true)), 0, vec![]),
        (ended("ready", Value::Null, Some(false)), 124, vec![]),
        (ended("failed", full, None), 73, vec!["no room for 16 GiB"]),
        (ended("cancelled", Value::Null, None), 130, vec![]),
        (ended("needs_credentials", Value::Null, None), 77, vec![]),
    ] {
        let stub = Stub::start();
        stub.events("GET /v1/prewarm/job-1/events", &[job("job-1", "running"), last.clone()], true);
        let output = ask(&stub, &["status", "job-1", "--watch"]);
        fails(&output, exit, &words);
        assert!(stdout(&output).starts_with("job-1: "), "{}", stdout(&output));
        let output = ask(&stub, &["status", "job-1", "--watch", "--json"]);
        fails(&output, exit, &[]);
        assert_eq!((stdout(&output).lines().count(), stderr(&output).as_str()), (2, ""), "a line for each change");
        assert_eq!(json_of(&output)["state"], last["state"]);
    }
    // Whoever only asks has got the answer.
    let stub = Stub::start();
    stub.answer("GET /v1/prewarm/job-1", &ended("cancelled", Value::Null, None));
    assert_eq!(code(&ask(&stub, &["status", "job-1"])), 0);
}

#[test]
fn a_daemon_that_breaks_off_is_told_from_one_that_hangs() {
    let stub = Stub::start();
    stub.events("GET /v1/prewarm/job-1/events", &[job("job-1", "running")], false);
    stub.events("GET /v1/prewarm/job-2/events", &[job("job-2", "running")], true);
    let output = ask(&stub, &["status", "job-1", "--watch"]);
    fails(&output, 69, &[&stub.url, "stopped before"]);
    assert_eq!(stdout(&output), "");
    fails(&ask(&stub, &["status", "job-2", "--watch"]), 124, &[&stub.url, "silent"]);
    fails(&ask(&stub, &["status", "../models"]), 66, &[]);
    let asked = stub.asked.lock().unwrap();
    assert!(asked.last().unwrap().starts_with("GET /v1/prewarm/..%2Fmodels "), "{asked:?}");
    fails(&run(&["status", "--daemon", "http://127.0.0.1:1"]), 69, &["127.0.0.1:1"]);
    fails(&run(&["status"]), 69, &["preheat serve"]);
}

#[test]
fn an_interrupted_watch_says_that_the_job_goes_on() {
    let stub = Stub::start();
    stub.events("GET /v1/prewarm/job-1/events", &[job("job-1", "running")], true);
    let child = preheat()
        .args(["status", "job-1", "--watch", "--daemon", &stub.url])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    while stub.asked.lock().unwrap().is_empty() {
        std::thread::sleep(Duration::from_millis(5));
    }
    rustix::process::kill_process(rustix::process::Pid::from_child(&child), rustix::process::Signal::INT).unwrap();
    let output = child.wait_with_output().unwrap();
    fails(&output, 130, &["goes on"]);
    assert_eq!(stdout(&output), "");
}

#[test]
fn a_token_is_shown_to_the_origins_of_a_set_only_if_it_is_that_of_all() {
    let stub = Stub::start();
    stub.answer("POST /v1/prewarm", &job("job-1", "queued"));
    let prewarm = |references: &[&str]| {
        let output = preheat()
            .arg("prewarm")
            .args(references)
            .args(["--daemon", &stub.url])
            .env("HF_TOKEN", "hf_secret")
            .output()
            .unwrap();
        assert_eq!(code(&output), 0, "{}", stderr(&output));
        (stub.asked.lock().unwrap().pop().unwrap(), stderr(&output))
    };
    let (asked, _) = prewarm(&["hf://org/base", "hf://org/adapter", "file:///models/draft"]);
    assert!(
        asked.contains("hf_secret") && asked.contains(r#""references":["hf://org/base","hf://org/adapter""#),
        "{asked}"
    );
    let (asked, said) = prewarm(&["hf://org/base", "https://elsewhere.example/adapter"]);
    assert!(!asked.contains("hf_secret"), "{asked}");
    assert!(said.contains("no credential is passed"), "{said}");
    let (asked, _) = prewarm(&["hf://org/base", "--pass-credential", "never"]);
    assert!(!asked.contains("hf_secret") && asked.contains(r#""reference":"hf://org/base""#), "{asked}");
}

#[test]
fn an_estimate_is_words_and_a_code() {
    let stub = Stub::start();
    let estimate = |verdict: &str| {
        json!({
            "bytes_total": 15_u64 << 30, "bytes_missing": {"disk": 13_u64 << 30, "memory": 0},
            "seconds": {"p50": 34.0, "p90": 52.0}, "queue_seconds": {"p50": 4.0, "p90": 6.0}, "basis": "measured",
            "rates": [{
                "of": "origin", "server": "https://huggingface.co", "basis": "measured", "bytes_per_second_p50": 419_430_400.0,
                "bytes_per_second_p10": 262_144_000.0, "age_seconds": 185.0,
            }],
            "deadline": verdict, "revisions": [null],
        })
    };
    stub.answer("POST /v1/estimate", &estimate("missed"));
    let output = ask(&stub, &["estimate", "hf://org/base", "--deadline", "30s"]);
    assert_eq!(code(&output), 124, "{}", stderr(&output));
    insta::assert_snapshot!(stdout(&output), @r"
    15 GiB, 13 GiB of it not on the node: about 34.0 s (nine times in ten within 52.0 s), measured; 4.0 s of it behind others
      origin https://huggingface.co: 400 MiB/s (one time in ten below 250 MiB/s), measured 3 min 5 s ago
    the deadline will be missed (30.0 s)
    ");
    assert_eq!(json_of(&ask(&stub, &["estimate", "hf://org/base", "--deadline", "30s", "--json"])), estimate("missed"));
    for verdict in ["met", "at_risk", "unknown"] {
        stub.answer("POST /v1/estimate", &estimate(verdict));
        assert_eq!(code(&ask(&stub, &["estimate", "hf://org/base", "--deadline", "40s"])), 0, "{verdict}");
    }
    fails(&ask(&stub, &["estimate"]), 64, &["REF"]);
    fails(&ask(&stub, &["estimate", "ftp://host/x"]), 64, &["ftp"]);
}

#[test]
fn a_set_is_prewarmed_pinned_and_let_go() {
    let directory = tempfile::tempdir().unwrap();
    let references: Vec<String> = [21, 22]
        .map(|seed| {
            let place = directory.path().join(format!("model-{seed}"));
            write(&model(seed, 1, 2 * MIB), &place);
            format!("file://{}", place.display())
        })
        .to_vec();
    let bytes = total(&model(21, 1, 2 * MIB)) + total(&model(22, 1, 2 * MIB));
    let daemon = Daemon::start(directory.path(), &[]);
    let both: Vec<&str> = references.iter().map(String::as_str).collect();
    let none = daemon.run_locally(&[&["estimate"], &both[..], &["--json"]].concat());
    assert_eq!(json_of(&none)["bytes_missing"]["disk"], bytes, "{}", stderr(&none));
    let asked = [&["prewarm"], &both[..], &["--wait", "--pin", "base", "--priority", "demand", "--json"]].concat();
    let warmed = json_of(&daemon.run_locally(&asked));
    assert_eq!((&warmed["state"], &warmed["priority"]), (&"ready".into(), &"demand".into()));
    assert_eq!((warmed["members"].as_array().unwrap().len(), &warmed["bytes_total"]), (2, &bytes.into()));
    let id = warmed["id"].as_str().unwrap();
    assert_eq!(json_of(&daemon.run_locally(&["status", id, "--json"]))["id"], id);
    let drawn = stdout(&daemon.run_locally(&["status", id, "--timeline"]));
    for word in [both[0], both[1], "resolve", "transfer", "publish", "##"] {
        assert!(drawn.contains(word), "{word} is not in {drawn}");
    }
    assert!(drawn.is_ascii(), "{drawn}");
    let pins = |told: &Value| told["pins"].as_array().unwrap().iter().map(|pin| pin["id"].clone()).collect::<Vec<_>>();
    let leased = daemon.run_locally(&["pin", both[0], "--lease", "10m", "--reason", "on call", "--json"]);
    assert_eq!(pins(&json_of(&leased)), ["base", "manual"], "{}", stderr(&leased));
    let told = stdout(&daemon.run_locally(&["models"]));
    assert!(told.contains("manual (10 min yet: on call)") || told.contains("manual (9 min"), "{told}");
    assert!(told.contains("scope default, used "), "{told}");
    let model = json_of(&leased)["id"].as_str().unwrap().to_owned();
    let kept = json_of(&daemon.run_locally(&["pin", &model, "--remove", "--json"]));
    assert_eq!(pins(&kept), ["base"]);
    fails(&daemon.run_locally(&["pin", &model, "--remove"]), 66, &["no such pin"]);
    fails(&daemon.run_locally(&["pin", "file:///no/such"]), 66, &["preheat models"]);
    fails(&daemon.run_locally(&["pin", &model, "--name", "Not A Name"]), 64, &["--name"]);
    fails(&daemon.run_locally(&["pin", &model, "--remove", "--lease", "1m"]), 64, &["--lease"]);
    assert_eq!(code(&daemon.run_locally(&["cancel", id])), 0, "what has ended stays as it is");
    fails(&daemon.run_locally(&["cancel", "job-none"]), 66, &["job-none"]);
}

/// A daemon beside an origin that takes its time; the command is run off the runtime that serves the origin.
async fn command(daemon: &Daemon, arguments: &[&str]) -> std::process::Output {
    let mut command = preheat();
    command.args(arguments).args(["--daemon", &daemon.url]);
    tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_is_called_off_has_ended_when_the_command_has() {
    let directory = tempfile::tempdir().unwrap();
    let web = Web::serve(&model(23, 2, 24 * MIB)).await;
    let daemon = Daemon::start(directory.path(), &["--allow-origin", &format!("{},allow_private", web.url)]);
    web.fault(|_| Fault { drip: Duration::from_millis(20), ..Fault::default() });
    let asked = command(&daemon, &["prewarm", &web.url, "--deadline", "1s"]).await;
    assert_eq!(code(&asked), 0, "{}", stderr(&asked));
    let id = stdout(&asked).split(':').next().unwrap().to_owned();
    let glance = stdout(&command(&daemon, &["status"]).await);
    assert!(glance.contains("jobs: 1 running, 0 waiting") && glance.contains(&id), "{glance}");
    let cancelled = command(&daemon, &["cancel", &id, "--json"]).await;
    assert_eq!(code(&cancelled), 0, "{}", stderr(&cancelled));
    assert_eq!(json_of(&cancelled)["state"], "cancelled");
    let freed = async {
        loop {
            let told = json_of(&command(&daemon, &["status", "--json"]).await);
            if told["node"]["usage"]["reserved"] == 0 {
                return;
            }
        }
    };
    // Within a second, and another for two busy cores.
    tokio::time::timeout(Duration::from_secs(2), freed).await.unwrap();
    assert_eq!(code(&command(&daemon, &["status", &id, "--watch"]).await), 130);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deadline_that_cannot_hold_is_told_before_anything_starts() {
    let directory = tempfile::tempdir().unwrap();
    let first = Web::serve(&model(24, 2, 8 * MIB)).await;
    let daemon = Daemon::start(directory.path(), &["--allow-origin", &format!("{},allow_private", first.url)]);
    let unseen = command(&daemon, &["estimate", &first.url, "--deadline", "1s"]).await;
    fails(&unseen, 0, &[]);
    assert!(
        stdout(&unseen).contains("never measured") && stdout(&unseen).contains("is not known"),
        "{}",
        stdout(&unseen)
    );
    // 64 KiB each 10 ms: about 6 MB/s a connection.
    first.fault(|_| Fault { drip: Duration::from_millis(10), ..Fault::default() });
    fails(&command(&daemon, &["prewarm", &first.url, "--wait"]).await, 0, &[]);
    for (path, bytes) in model(25, 2, 16 * MIB) {
        first.put(&path, &bytes);
    }
    let missed = command(&daemon, &["estimate", &first.url, "--deadline", "50ms"]).await;
    assert_eq!(code(&missed), 124, "{}{}", stdout(&missed), stderr(&missed));
    assert!(stdout(&missed).contains("measured") && stdout(&missed).contains("will be missed"), "{}", stdout(&missed));
    let met = command(&daemon, &["estimate", &first.url, "--deadline", "10m"]).await;
    assert!(code(&met) == 0 && stdout(&met).contains("the deadline will hold"), "{}", stdout(&met));
    let asked = command(&daemon, &["prewarm", &first.url, "--deadline", "50ms"]).await;
    assert!(stdout(&asked).contains("about ") && stdout(&asked).contains("will be missed"), "{}", stdout(&asked));
    assert_eq!(code(&asked), 0, "it was asked for nevertheless");
}

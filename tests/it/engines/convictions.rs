//! On what evidence a bundle is left out, and when a command is started a second time.

use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use super::super::support::command::{code, stderr};
use super::run::{Bench, ENGINE, is, says};

/// What the store notes of its bundles.
fn records(bench: &Bench) -> Vec<PathBuf> {
    let scopes = std::fs::read_dir(bench.at("store/engines")).into_iter().flatten().flatten();
    scopes
        .flat_map(|scope| std::fs::read_dir(scope.path()).into_iter().flatten().flatten())
        .map(|record| record.path())
        .collect()
}

/// Waits until an attempt is noted, and the command runs.
fn noted_attempt(bench: &Bench) {
    let until = Instant::now() + Duration::from_secs(30);
    let is_noted = |record: &PathBuf| {
        let noted: Option<Value> = std::fs::read(record).ok().and_then(|text| serde_json::from_slice(&text).ok());
        noted.is_some_and(|noted| noted["attempts"][0].is_object())
    };
    while !records(bench).iter().any(is_noted) {
        assert!(Instant::now() < until, "no attempt is noted");
        std::thread::sleep(Duration::from_millis(20));
    }
    std::thread::sleep(Duration::from_millis(300));
}

/// Notes that so many starts were begun an hour ago, and never ended.
fn breaks_off(bench: &Bench, starts: usize) {
    let mut server = bench.start("killed.json", &["--hang-if-warm"]);
    noted_attempt(bench);
    server.signal(Signal::KILL);
    server.child.wait().unwrap();
    let record = records(bench).remove(0);
    let mut noted: Value = serde_json::from_slice(&std::fs::read(&record).unwrap()).unwrap();
    let attempt = noted["attempts"][0].clone();
    let attempts = (0..starts).map(|number| {
        let mut attempt = attempt.clone();
        attempt["id"] = format!("broken-off-{number}").into();
        attempt["begun_at"] = (attempt["begun_at"].as_u64().unwrap() - 3600).into();
        attempt
    });
    noted["attempts"] = attempts.collect();
    std::fs::write(&record, noted.to_string()).unwrap();
    // The engine of the killed wrapper lives on.
    let engines = std::fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| {
        let line = std::fs::read_to_string(entry.path().join("cmdline")).ok()?;
        let ours = line.contains(&bench.text("cache")) && line.contains("hang-if-warm");
        Pid::from_raw(entry.file_name().to_str()?.parse().ok()?).filter(|_| ours)
    });
    for pid in engines {
        // One that is gone is gone.
        let _ = kill_process(pid, Signal::KILL);
    }
}

#[test]
fn what_was_broken_off_twice_is_let_off_once() {
    let bench = Bench::new();
    is(&bench.serve(&["--hang-if-warm"]), "cold");
    breaks_off(&bench, 2);
    let without = bench.serve(&["--hang-if-warm"]);
    is(&without, "cold");
    says(&without, "reason", &["tried once more", "2 starts with it were broken off"]);
    assert_eq!(without["captured"], false, "its bundle stays");
    // It gets its chance; broken off again, it has had it.
    breaks_off(&bench, 1);
    is(&bench.serve(&["--hang-if-warm"]), "quarantined");
}

#[test]
fn who_is_told_to_end_early_says_nothing() {
    let bench = Bench::new();
    is(&bench.serve(&["--hang-if-warm"]), "cold");
    for _ in 0..3 {
        let mut server = bench.start("told.json", &["--hang-if-warm"]);
        noted_attempt(&bench);
        server.end(Signal::TERM);
        assert!(records(&bench).is_empty(), "nothing is left against it");
    }
}

#[test]
fn what_is_never_seen_to_be_ready_says_nothing() {
    let mut bench = Bench::new();
    let script = format!("python3 {ENGINE} --cache {}; sleep $WAIT; exit $CODE", bench.text("cache"));
    let run = |bench: &Bench| bench.command("report.json", &["sh", "-c", &script]).output().unwrap();
    bench.set("WAIT", "0");
    bench.set("CODE", "0");
    assert_eq!(code(&run(&bench)), 0);
    bench.environment.clear();
    bench.set("WAIT", "1.5");
    bench.set("CODE", "1");
    let bench = bench.with(&["--ready", "file:/none/at/all", "--ready-timeout", "700ms"]);
    let output = run(&bench);
    assert_eq!(code(&output), 1);
    let report = bench.report("report.json");
    says(&report, "reason", &["never seen to be ready", "4 files were restored"]);
    assert!(records(&bench).is_empty(), "{}", stderr(&output));
}

#[test]
fn what_is_killed_from_outside_is_let_off_once() {
    let bench = Bench::new();
    let script = |bench: &Bench| {
        format!("test -e {0}/k && kill -9 $$; mkdir -p {0}/k; echo x > {0}/k/x.so", bench.text("cache"))
    };
    let run = |bench: &Bench| {
        bench.command("report.json", &["sh", "-c", &script(bench)]).output().unwrap();
        bench.report("report.json")
    };
    let bench = bench.with(&["--retry-cold"]);
    is(&run(&bench), "cold");
    let killed = run(&bench);
    is(&killed, "cold");
    assert_eq!(killed["retried"], true);
    says(&killed, "reason", &["tried once more", "signal 9"]);
    is(&run(&bench), "quarantined");
}

#[test]
fn what_has_done_its_work_is_not_started_again() {
    let mut bench = Bench::new().with(&["--ready", "http:1/health"]);
    let starts = bench.text("starts");
    bench.set("FAKE_STARTS", &starts);
    is(&bench.run(&[]).1, "cold");
    let (output, done) = bench.run(&[]);
    assert_eq!((code(&output), &done["retried"]), (0, &false.into()));
    is(&done, "hit");
    assert_eq!(std::fs::read_to_string(bench.at("starts")).unwrap().lines().count(), 2);
    assert!(records(&bench).is_empty());
}

#[test]
fn what_a_failed_start_leaves_behind_is_ended_before_the_next() {
    let bench = Bench::new().with(&["--retry-cold"]);
    // A worker in a session of its own, as engines have them. The second start fails while it is there.
    let script = "if [ -e $C/k ]; then setsid sleep 300 & echo $! > $W; sleep 0.3; kill -SEGV $$; fi; \
                  if [ -e $W ] && kill -0 $(cat $W); then exit 9; fi; mkdir -p $C/k; echo x > $C/k/x.so";
    let script = script.replace("$C", &bench.text("cache")).replace("$W", &bench.text("worker"));
    let run = || bench.command("report.json", &["sh", "-c", &script]).output().unwrap();
    assert_eq!(code(&run()), 0);
    let output = run();
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    is(&bench.report("report.json"), "quarantined");
}

#[test]
fn who_is_told_to_end_before_there_is_a_command_starts_none() {
    let mut bench = Bench::new();
    // A place that takes connections and never answers.
    let deaf = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    bench.set("AWS_ENDPOINT_URL", &format!("http://{}", deaf.local_addr().unwrap()));
    bench.set("AWS_REGION", "us-east-1");
    std::fs::write(bench.at("config.toml"), "[engines]\norigin = \"s3://bucket/engines\"\n").unwrap();
    let starts = bench.text("starts");
    bench.set("FAKE_STARTS", &starts);
    let config = bench.text("config.toml");
    let bench = bench.with(&["--config", &config, "--lookup-timeout", "60s"]);
    let argv = ["python3", ENGINE, "--cache", &bench.text("cache")];
    for signal in [Signal::TERM, Signal::INT] {
        let mut child = bench.command("report.json", &argv).stderr(Stdio::null()).spawn().unwrap();
        let asked = deaf.accept().unwrap();
        let told = Instant::now();
        kill_process(Pid::from_child(&child), signal).unwrap();
        let status = child.wait().unwrap();
        assert_eq!(status.signal(), Some(signal.as_raw()));
        assert!(told.elapsed() < Duration::from_secs(10), "{:?}", told.elapsed());
        let report = bench.report("report.json");
        says(&report, "reason", &["before the command was started"]);
        assert_eq!(report["exit_code"], 128 + signal.as_raw());
        assert!(!bench.at("starts").exists(), "it is not started");
        std::fs::remove_file(bench.at("report.json")).unwrap();
        drop(asked);
    }
}

#[test]
fn a_program_that_was_killed_is_warm_the_next_time() {
    let mut bench = Bench::new();
    let script = format!(
        "mkdir -p {0}/k; test -e {0}/k/x.so || echo x > {0}/k/x.so; cat {0}/k/x.so; test -z \"$DIE\" || kill -9 $$",
        bench.text("cache")
    );
    let run = |bench: &Bench| {
        let output = bench.command("report.json", &["sh", "-c", &script]).output().unwrap();
        (output.status, bench.report("report.json"))
    };
    is(&run(&bench).1, "cold");
    // Want of memory, as a rule.
    bench.set("DIE", "1");
    assert_eq!(run(&bench).0.signal(), Some(9));
    bench.environment.clear();
    is(&run(&bench).1, "hit");
}

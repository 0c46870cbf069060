//! However a command ends, the report says what became of its bundle.

use std::io::{BufRead, BufReader};
use std::process::Stdio;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use super::super::support::command::code;
use super::run::{Bench, ENGINE, is, says};

#[test]
fn a_program_that_fails_late_has_used_its_bundle() {
    let mut bench = Bench::new();
    is(&bench.run(&[]).1, "cold");
    bench.set("FAKE_EXIT", "3");
    let (output, failed) = bench.run(&[]);
    assert_eq!(code(&output), 3);
    is(&failed, "hit");
    says(&failed, "reason", &["fails by itself", "exit code 3", "until then 4 files were restored", "read 4"]);
    let has = |field: &str| failed[field].clone();
    assert_eq!((has("captured"), has("ready_seconds"), has("exit_code")), (false.into(), Value::Null, 3.into()));
    assert_eq!((&failed["files"]["restored"], &failed["bundles"][0]["outcome"]), (&4.into(), &"hit".into()));
    says(&failed, "capture", &["not kept"]);
    // Of another set of files than those that were restored nothing is kept either.
    bench.environment.clear();
    is(&bench.run(&[]).1, "hit");
}

/// The engine, or what `STOP` says before it, or afterwards.
fn script(bench: &Bench) -> String {
    let cache = bench.text("cache");
    format!("$BEFORE; python3 {ENGINE} --cache {cache}; $AFTER")
}

#[test]
fn a_program_that_fails_early_has_not() {
    let mut bench = Bench::new();
    let script = script(&bench);
    let run = |bench: &Bench| {
        let output = bench.command("report.json", &["sh", "-c", &script]).output().unwrap();
        (output, bench.report("report.json"))
    };
    is(&run(&bench).1, "cold");
    bench.set("BEFORE", "exit 4");
    let (output, failed) = run(&bench);
    assert_eq!(code(&output), 4);
    is(&failed, "inert");
    says(&failed, "reason", &["exit code 4", "4 files were restored", "nothing new"]);
    assert!(failed["bundle"].is_string() && failed["restored_bytes"].as_u64().unwrap() > 0, "{failed:#}");
}

#[test]
fn who_is_interrupted_says_nothing_against_a_bundle() {
    let mut bench = Bench::new();
    let script = script(&bench);
    let run = |bench: &Bench| bench.command("report.json", &["sh", "-c", &script]);
    run(&bench).output().unwrap();
    bench.set("AFTER", "exec sleep 60");
    // Two attempts that stay open would be enough for the next start to be without it.
    for _ in 0..3 {
        let mut child = run(&bench).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let mut said = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut said).unwrap();
        assert_eq!(said.trim(), "fake engine: used 4, made 0");
        kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
        assert!(!child.wait().unwrap().success());
        let told = bench.report("report.json");
        is(&told, "hit");
        says(&told, "reason", &["told to end", "until then", "read 4"]);
        assert_eq!(told["captured"], false);
    }
}

#[test]
fn what_never_says_that_it_is_ready_is_judged_as_far_as_it_came() {
    let bench = Bench::new().with(&["--ready-timeout", "2s"]);
    is(&bench.serve(&["--hang-if-warm"]), "cold");
    let mut server = bench.start("report.json", &["--hang-if-warm"]);
    server.wait_for_report();
    let told = |report: &Value| {
        is(report, "inert");
        says(report, "reason", &["never seen to be ready", "until then 4 files were restored"]);
    };
    told(&bench.report("report.json"));
    server.end(Signal::TERM);
    told(&bench.report("report.json"));
}

#[test]
fn what_ends_while_it_settles_is_judged_at_once() {
    let mut bench = Bench::new();
    is(&bench.serve(&[]), "cold");
    bench.settle = "50s";
    let mut server = bench.start("report.json", &[]);
    let started = Instant::now();
    while !server.answers() {
        assert!(started.elapsed() < Duration::from_secs(30), "it does not answer");
        std::thread::sleep(Duration::from_millis(50));
    }
    // So that it has been seen to be ready.
    std::thread::sleep(Duration::from_secs(2));
    let told = Instant::now();
    server.end(Signal::TERM);
    assert!(told.elapsed() < Duration::from_secs(15), "{:?}", told.elapsed());
    let report = bench.report("report.json");
    is(&report, "hit");
    assert!(report["ready_seconds"].is_number(), "{report:#}");
}

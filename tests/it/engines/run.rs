//! `preheat run` before an engine that compiles nothing: what is restored, proved, kept, and what happens when something breaks.

use std::io::{Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use super::super::support::command::{Daemon, code, preheat, stderr, stdout};

pub(super) const ENGINE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/support/fake_engine.py");

/// A machine with one cache directory, and a store.
pub(super) struct Bench {
    pub(super) directory: tempfile::TempDir,
    pub(super) more: Vec<String>,
    pub(super) environment: Vec<(String, String)>,
    /// Instead of a root.
    pub(super) daemon: Option<String>,
    pub(super) settle: &'static str,
    /// What stands after the path of the cache directory.
    pub(super) kind: &'static str,
}

impl Bench {
    pub(super) fn new() -> Self {
        Self {
            directory: tempfile::tempdir().unwrap(),
            more: Vec::new(),
            environment: Vec::new(),
            daemon: None,
            settle: "200ms",
            kind: "",
        }
    }

    pub(super) fn at(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(super) fn text(&self, name: &str) -> String {
        self.at(name).display().to_string()
    }

    pub(super) fn with(mut self, more: &[&str]) -> Self {
        self.more = more.iter().map(|word| (*word).to_owned()).collect();
        self
    }

    pub(super) fn set(&mut self, name: &str, value: &str) {
        self.environment.push((name.to_owned(), value.to_owned()));
    }

    pub(super) fn command(&self, report: &str, argv: &[&str]) -> Command {
        let mut command = preheat();
        command
            .args(["run", "--engine", "generic-dir", "--settle", self.settle])
            .args(match &self.daemon {
                Some(daemon) => ["--daemon".to_owned(), daemon.clone()],
                None => ["--root".to_owned(), self.text("store")],
            })
            .arg("--report")
            .arg(self.at(report))
            .arg("--view-dir")
            .arg(self.at("views"))
            .arg("--cache-dir")
            .arg(format!("c={}{}", self.text("cache"), self.kind))
            .args(&self.more)
            .arg("--")
            .args(argv)
            .env("HOME", self.directory.path())
            .envs(self.environment.iter().cloned());
        command
    }

    /// The fake engine with these flags, to its end.
    pub(super) fn run(&self, flags: &[&str]) -> (Output, Value) {
        let cache = self.text("cache");
        let argv = [&["python3", ENGINE, "--cache", &cache], flags].concat();
        let output = self.command("report.json", &argv).output().unwrap();
        (output, self.report("report.json"))
    }

    /// The same with a port: it is ended once there is a report of it.
    pub(super) fn serve(&self, flags: &[&str]) -> Value {
        let mut server = self.start("report.json", flags);
        server.wait_for_report();
        server.end(Signal::TERM);
        self.report("report.json")
    }

    pub(super) fn start(&self, report: &str, flags: &[&str]) -> Server {
        // A port that was free a moment ago, and the same at each start: it is in the key.
        let path = self.at("port");
        let port = std::fs::read_to_string(&path).unwrap_or_else(|_| {
            let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port().to_string();
            std::fs::write(&path, &port).unwrap();
            port
        });
        let cache = self.text("cache");
        let argv = [&["python3", ENGINE, "--cache", &cache, "--port", &port], flags].concat();
        let mut command = self.command(report, &argv);
        let arguments: Vec<_> = command.get_args().map(ToOwned::to_owned).collect();
        let split = arguments.iter().position(|word| word == "--").unwrap();
        let mut with_probe = preheat();
        with_probe
            .args(&arguments[..split])
            .arg("--ready")
            .arg(format!("http:{port}/health"))
            .args(&arguments[split..]);
        with_probe.env("HOME", self.directory.path()).envs(self.environment.iter().cloned());
        command = with_probe;
        // A report of an earlier start is none of this one.
        let _ = std::fs::remove_file(self.at(report));
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        Server { child, report: self.at(report), port: port.parse().unwrap() }
    }

    pub(super) fn report(&self, name: &str) -> Value {
        let text = std::fs::read(self.at(name)).unwrap_or_else(|error| panic!("no report: {error}"));
        serde_json::from_slice(&text).unwrap()
    }

    /// Files that are in the engine's own directory, which is nobody's but its own.
    pub(super) fn left_in_cache(&self) -> usize {
        std::fs::read_dir(self.at("cache")).map_or(0, Iterator::count)
    }

    pub(super) fn views(&self) -> usize {
        std::fs::read_dir(self.at("views")).map_or(0, Iterator::count)
    }
}

pub(super) struct Server {
    pub(super) child: Child,
    report: PathBuf,
    port: u16,
}

impl Server {
    pub(super) fn wait_for_report(&mut self) {
        let started = Instant::now();
        while !self.report.exists() {
            if let Some(status) = self.child.try_wait().unwrap() {
                let mut said = String::new();
                self.child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
                assert!(self.report.exists(), "it ended with {status}: {said}");
                return;
            }
            assert!(started.elapsed() < Duration::from_secs(60), "no report");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    pub(super) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    pub(super) fn end(&mut self, signal: Signal) -> std::process::ExitStatus {
        if self.child.try_wait().unwrap().is_none() {
            self.signal(signal);
        }
        self.child.wait().unwrap()
    }

    pub(super) fn answers(&self) -> bool {
        let Ok(mut stream) = std::net::TcpStream::connect(("127.0.0.1", self.port)) else { return false };
        let _ = stream.write_all(b"GET /health HTTP/1.0\r\n\r\n");
        let mut answer = [0; 12];
        stream.read_exact(&mut answer).is_ok() && answer.ends_with(b"200")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[track_caller]
pub(super) fn is(report: &Value, outcome: &str) {
    assert_eq!(report["outcome"], outcome, "{report:#}");
}

pub(super) fn says(report: &Value, field: &str, words: &[&str]) {
    let text = report[field].as_str().unwrap();
    for word in words {
        assert!(text.contains(word), "`{word}` is not in {field}: {report:#}");
    }
}

#[test]
fn cold_then_hit_in_a_view_of_its_own() {
    let bench = Bench::new();
    let (output, cold) = bench.run(&["--files", "40", "--sleep", "0.01"]);
    assert_eq!((code(&output), stdout(&output).trim()), (0, "fake engine: used 0, made 40"), "{}", stderr(&output));
    is(&cold, "cold");
    assert_eq!((&cold["captured"], &cold["restored_bytes"], &cold["exit_code"]), (&true.into(), &0.into(), &0.into()));
    assert!(cold["bundle"].is_null() && cold["key"].as_str().unwrap().len() == 64);
    let (output, hit) = bench.run(&["--files", "40", "--sleep", "0.01"]);
    assert_eq!(stdout(&output).trim(), "fake engine: used 40, made 0");
    is(&hit, "hit");
    assert_eq!((&hit["captured"], &hit["key"], &hit["files"]["restored"]), (&false.into(), &cold["key"], &40.into()));
    assert!(
        hit["restored_bytes"].as_u64().unwrap() > 300 && hit["bundle"].is_string() && hit["saved_seconds"].is_number()
    );
    // Nothing of it is anywhere else, and nothing is left.
    assert_eq!((bench.left_in_cache(), bench.views()), (0, 0));
    let (_, other) = bench.run(&["--files", "41", "--sleep", "0.01"]);
    is(&other, "cold");
    says(&other, "reason", &["argv.--files", "41 here, 40 there"]);
    assert_eq!(other["differences"][0]["field"], "argv.--files");
}

#[test]
fn without_a_mount_namespace_only_what_may_move_is_moved() {
    let bench = Bench::new().with(&["--no-namespace"]);
    let (output, cold) = bench.run(&[]);
    is(&cold, "cold");
    assert_eq!((code(&output), &cold["captured"], &cold["view"]), (0, &false.into(), &"in_place".into()), "{cold:#}");
    assert_eq!(bench.left_in_cache(), 1, "the engine has used its own directory");
}

#[test]
fn files_of_the_engines_own_are_not_hidden_and_not_kept() {
    let bench = Bench::new();
    std::fs::create_dir_all(bench.at("cache/k/0")).unwrap();
    std::fs::write(bench.at("cache/k/0/0.so"), "compiled 0").unwrap();
    let (output, report) = bench.run(&[]);
    assert_eq!(stdout(&output).trim(), "fake engine: used 1, made 3");
    assert_eq!(report["captured"], false);
    says(&report, "capture", &["has files that preheat did not put there", "--fresh"]);
    let fresh = Bench { more: vec!["--fresh".to_owned()], ..bench };
    let (output, report) = fresh.run(&[]);
    assert_eq!((stdout(&output).trim(), &report["captured"]), ("fake engine: used 0, made 4", &true.into()));
    let plain = Bench { more: Vec::new(), ..fresh };
    // What is verified takes their place.
    is(&plain.run(&[]).1, "hit");
}

#[test]
fn inert_and_partial_are_told_apart() {
    let mut bench = Bench::new();
    let flags = ["--own-key-variable", "POD_NUMBER", "--files", "10"];
    is(&bench.run(&flags).1, "cold");
    bench.set("POD_NUMBER", "7");
    let (_, inert) = bench.run(&flags);
    is(&inert, "inert");
    assert_eq!((&inert["captured"], &inert["files"]["read"]), (&false.into(), &0.into()));
    says(&inert, "reason", &["10 files restored", "read 0", "10 new files"]);
    let bench = Bench::new();
    let flags = ["--more", "1", "--files", "10"];
    is(&bench.run(&flags).1, "cold");
    let (_, partial) = bench.run(&flags);
    is(&partial, "partial");
    assert_eq!(partial["captured"], true, "{partial:#}");
}

#[test]
fn a_refresh_begins_without_and_replaces() {
    let mut bench = Bench::new();
    is(&bench.run(&[]).1, "cold");
    let first = bench.run(&[]).1;
    is(&first, "hit");
    bench.more = vec!["--refresh".to_owned()];
    let (output, anew) = bench.run(&[]);
    assert_eq!((stdout(&output).trim(), &anew["captured"]), ("fake engine: used 0, made 4", &true.into()), "{anew:#}");
    is(&anew, "cold");
    says(&anew, "reason", &["--refresh"]);
    bench.more.clear();
    let second = bench.run(&[]).1;
    is(&second, "hit");
    assert_ne!(first["bundle"], second["bundle"]);
}

#[test]
fn kernels_serve_another_model() {
    let mut bench = Bench::new();
    bench.more = vec!["--cache-dir".to_owned(), format!("k={},kernel", bench.text("kernels"))];
    let cache = bench.text("kernels");
    let run = |model: &str| {
        let argv = ["python3", ENGINE, "--cache", &cache, "--model", model];
        let output = bench.command("report.json", &argv).output().unwrap();
        (stdout(&output), bench.report("report.json"))
    };
    is(&run("a").1, "cold");
    let (said, report) = run("b");
    assert_eq!(said.trim(), "fake engine: used 4, made 0");
    is(&report, "hit");
    assert_eq!(report["bundles"][0]["outcome"], "cold");
    assert_eq!(report["bundles"][1]["kind"], "kernel");
}

#[test]
fn a_bundle_that_breaks_the_engine_is_quarantined_and_the_engine_comes_up() {
    let mut bench = Bench::new();
    let starts = bench.text("starts");
    bench.set("FAKE_STARTS", &starts);
    let flags = ["--die-if-warm"];
    let cold = bench.serve(&flags);
    is(&cold, "cold");
    assert_eq!(cold["captured"], true, "{cold:#}");
    let broken = bench.serve(&flags);
    is(&broken, "quarantined");
    says(&broken, "reason", &["signal 11", "came up"]);
    assert_eq!(broken["retried"], true);
    let starts = std::fs::read_to_string(bench.at("starts")).unwrap().lines().count();
    assert_eq!(starts, 3, "once more, and no more than that");
}

#[test]
fn what_comes_with_the_first_requests_is_kept_as_well() {
    let bench = Bench::new().with(&["--second-look", "3s"]);
    let mut server = bench.start("report.json", &["--later", "2"]);
    server.wait_for_report();
    let until = Instant::now() + Duration::from_secs(30);
    while !bench.report("report.json")["notes"].to_string().contains("came later") && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(100));
    }
    let report = bench.report("report.json");
    assert!(report["notes"].to_string().contains("1 files came later; graph: created"), "{report:#}");
    server.end(Signal::TERM);
    let warm = bench.serve(&["--later", "2"]);
    is(&warm, "hit");
    assert_eq!(warm["files"]["restored"], 5);
}

#[test]
fn a_hang_is_a_crash_for_who_says_so() {
    let bench = Bench::new().with(&["--retry-cold", "--ready-timeout", "3s"]);
    is(&bench.serve(&["--hang-if-warm"]), "cold");
    is(&bench.serve(&["--hang-if-warm"]), "quarantined");
}

#[test]
fn a_program_that_fails_by_itself_is_left_unsuspected() {
    let mut bench = Bench::new();
    is(&bench.serve(&[]), "cold");
    bench.set("FAKE_EXIT", "3");
    let mut server = bench.start("report.json", &[]);
    let status = server.child.wait().unwrap();
    assert_eq!(status.code(), Some(3));
    let failed = bench.report("report.json");
    is(&failed, "cold");
    says(&failed, "reason", &["as well", "exit code 3"]);
    assert_eq!((&failed["retried"], &failed["captured"]), (&true.into(), &false.into()));
    bench.environment.clear();
    is(&bench.serve(&[]), "hit");
}

#[test]
fn an_arbitrary_program_is_not_run_twice() {
    let mut bench = Bench::new();
    let starts = bench.text("starts");
    bench.set("FAKE_STARTS", &starts);
    let flags = [];
    is(&bench.run(&flags).1, "cold");
    bench.set("FAKE_EXIT", "3");
    let (output, failed) = bench.run(&flags);
    assert_eq!(
        (code(&output), &failed["retried"], &failed["captured"]),
        (3, &false.into(), &false.into()),
        "{failed:#}"
    );
    assert_eq!(std::fs::read_to_string(bench.at("starts")).unwrap().lines().count(), 2);
    bench.environment.pop();
    is(&bench.run(&flags).1, "hit");
}

#[test]
fn the_command_is_run_whatever_is_wrong() {
    let bench = Bench::new();
    let wrong = bench.at("a file");
    std::fs::write(&wrong, "x").unwrap();
    let wrong = wrong.display().to_string();
    let facts = ["--gpu-facts", &wrong];
    for (what, flags, words) in [
        ("no daemon and no root", &["--engine", "generic-dir"][..], "there are no bundles"),
        ("a root that is none", &["--engine", "generic-dir", "--root", &wrong], "is of no use"),
        ("facts that are none", &facts, "facts file"),
        ("no such profile", &["--engine", "nothing"], "there is no profile"),
        ("a daemon that is not there", &["--daemon", "http://127.0.0.1:1"], ""),
        ("a configuration that is none", &["--config", &wrong], "not understood"),
    ] {
        let report = bench.text("r.json");
        let mut command = preheat();
        command.args(["run", "--report", &report]).args(flags);
        command.args(["--", "sh", "-c", "cat; echo said >&2; exit 5"]);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(b"through").unwrap();
        let output = child.wait_with_output().unwrap();
        assert_eq!((code(&output), stdout(&output).as_str()), (5, "through"), "{what}: {}", stderr(&output));
        assert!(stderr(&output).contains("said"), "{what}");
        let report = bench.report("r.json");
        is(&report, "cold");
        assert_eq!(report["exit_code"], 5);
        says(&report, "reason", &[words]);
        std::fs::remove_file(bench.at("r.json")).unwrap();
    }
}

#[test]
fn a_daemon_keeps_them_as_well_and_one_that_hangs_is_none() {
    let mut bench = Bench::new();
    let daemon = Daemon::start(bench.directory.path(), &[]);
    bench.daemon = Some(format!("unix:{}", daemon.socket.display()));
    is(&bench.run(&[]).1, "cold");
    let (output, hit) = bench.run(&[]);
    assert_eq!(stdout(&output).trim(), "fake engine: used 4, made 0");
    is(&hit, "hit");
    drop(daemon);
    let (_, gone) = bench.run(&[]);
    is(&gone, "cold");
    says(&gone, "reason", &["is of no use"]);
    let deaf = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    bench.daemon = Some(format!("http://{}", deaf.local_addr().unwrap()));
    bench.more = vec!["--daemon-timeout".to_owned(), "1s".to_owned()];
    let started = Instant::now();
    let (output, hangs) = bench.run(&[]);
    assert!(code(&output) == 0 && started.elapsed() < Duration::from_secs(20));
    says(&hangs, "reason", &["did not answer"]);
}

#[test]
fn exit_codes_and_signals_are_the_commands() {
    let bench = Bench::new();
    for (argv, expected) in [(&["/none/at/all"][..], 127), (&["/etc"], 126), (&["sh", "-c", "exit 200"], 200)] {
        assert_eq!(code(&bench.command("r.json", argv).output().unwrap()), expected, "{argv:?}");
    }
    let killed = bench.command("r.json", &["sh", "-c", "kill -9 $$"]).output().unwrap();
    assert_eq!(killed.status.signal(), Some(9));
    for signal in [Signal::TERM, Signal::INT, Signal::HUP, Signal::USR1] {
        let mut server = bench.start("r.json", &["--print-signal"]);
        server.wait_for_report();
        assert_eq!(server.end(signal).code(), Some(7), "{signal:?}");
        let mut said = String::new();
        server.child.stdout.take().unwrap().read_to_string(&mut said).unwrap();
        assert!(said.contains(&format!("told {}", signal.as_raw())), "{said}");
    }
}

#[test]
fn the_command_outlives_a_wrapper_that_is_killed_and_a_deaf_one_is_waited_for() {
    let bench = Bench::new();
    let mut server = bench.start("r.json", &["--deaf", "--serve", "20"]);
    server.wait_for_report();
    server.signal(Signal::TERM);
    std::thread::sleep(Duration::from_millis(300));
    assert!(server.child.try_wait().unwrap().is_none() && server.answers(), "it takes no notice");
    server.signal(Signal::KILL);
    server.child.wait().unwrap();
    assert!(server.answers(), "it serves on");
    // Its view is locked by the command itself, so that another start leaves it alone.
    let views = bench.views();
    assert_eq!(views, 1);
    let again = bench.command("again.json", &["true"]).output().unwrap();
    assert_eq!((code(&again), bench.views()), (0, 1), "{}", stderr(&again));
}

#[test]
fn a_probe_that_nobody_answers_changes_nothing() {
    let bench = Bench::new().with(&["--ready", "file:/none/at/all", "--ready-timeout", "300ms"]);
    let (output, report) = bench.run(&["--sleep", "0.2"]);
    assert_eq!(code(&output), 0);
    is(&report, "cold");
    assert_eq!((&report["captured"], &report["ready_seconds"]), (&false.into(), &Value::Null));
    assert!(report["notes"].to_string().contains("not ready after"), "{report:#}");
}

#[test]
fn a_line_means_ready_and_output_arrives_whole() {
    let bench = Bench::new().with(&["--ready", "line:used 0"]);
    let script = "i=0; while [ $i -lt 20000 ]; do echo line $i; echo error $i >&2; i=$((i+1)); done; echo used 0, made 4; sleep 1";
    let output = bench.command("report.json", &["sh", "-c", script]).output().unwrap();
    let lines: Vec<String> = stdout(&output).lines().map(str::to_owned).collect();
    assert_eq!((lines.len(), lines[19999].as_str()), (20001, "line 19999"));
    assert_eq!(stderr(&output).lines().filter(|line| line.starts_with("error ")).count(), 20000);
    let report = bench.report("report.json");
    assert!(report["ready_seconds"].as_f64().is_some(), "{report:#}");
}

#[test]
fn secrets_are_not_kept() {
    let mut bench = Bench::new();
    let token = super::super::support::secret("fake-token-0123456789");
    bench.set("FAKE_API_TOKEN", &token);
    let (output, report) = bench.run(&["--secret-file"]);
    assert_eq!((code(&output), &report["captured"]), (0, &false.into()));
    says(&report, "capture", &["FAKE_API_TOKEN"]);
    assert!(!report.to_string().contains(&token) && !stderr(&output).contains(&token));
}

#[test]
fn a_damaged_bundle_is_not_seen_by_the_command() {
    let bench = Bench::new();
    is(&bench.run(&["--files", "9"]).1, "cold");
    let mut damaged = 0;
    let mut places = vec![bench.at("store")];
    while let Some(place) = places.pop() {
        for entry in std::fs::read_dir(place).unwrap().flatten() {
            let path = entry.path();
            if entry.file_type().unwrap().is_dir() {
                places.push(path);
            } else if std::fs::read(&path).unwrap().windows(10).any(|window| window == b"compiled 3") {
                let mut bytes = std::fs::read(&path).unwrap();
                let at = bytes.windows(10).position(|window| window == b"compiled 3").unwrap();
                bytes[at + 9] = b'4';
                let mut permissions = std::fs::metadata(&path).unwrap().permissions();
                std::os::unix::fs::PermissionsExt::set_mode(&mut permissions, 0o644);
                std::fs::set_permissions(&path, permissions).unwrap();
                std::fs::write(&path, bytes).unwrap();
                damaged += 1;
            }
        }
    }
    assert!(damaged > 0);
    let (output, report) = bench.run(&["--files", "9"]);
    assert_eq!((code(&output), stdout(&output).trim()), (0, "fake engine: used 0, made 9"));
    is(&report, "cold");
    says(&report, "reason", &["corrupt"]);
}

#[test]
fn eight_at_once_are_captured_once_and_share_nothing() {
    let bench = Bench::new();
    let cache = bench.text("cache");
    let all = |flags: &[&str]| -> Vec<Value> {
        let names: Vec<String> = (0..8).map(|at| format!("r{at}.json")).collect();
        let children: Vec<Child> = names
            .iter()
            .map(|name| {
                let argv = [&["python3", ENGINE, "--cache", &cache], flags].concat();
                bench.command(name, &argv).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
            })
            .collect();
        for mut child in children {
            assert_eq!(child.wait().unwrap().code(), Some(0));
        }
        names.iter().map(|name| bench.report(name)).collect()
    };
    let cold = all(&["--files", "20"]);
    assert_eq!(cold.iter().filter(|report| report["captured"] == true).count(), 1, "{cold:#?}");
    for report in all(&["--files", "20"]) {
        is(&report, "hit");
    }
    assert_eq!((bench.left_in_cache(), bench.views()), (0, 0));
}

#[test]
fn explain_names_what_was_changed_first() {
    let mut bench = Bench::new();
    bench.set("OMP_NUM_THREADS", "2");
    let cache = bench.text("cache");
    let argv = ["python3", ENGINE, "--cache", cache.as_str()];
    is(&bench.run(&[]).1, "cold");
    bench.set("OMP_NUM_THREADS", "1");
    let explain = |bench: &Bench| {
        let mut command = preheat();
        command
            .args(["engine", "explain", "--json", "--engine", "generic-dir", "--root"])
            .arg(bench.at("store"))
            .arg("--cache-dir")
            .arg(format!("c={cache}"))
            .arg("--")
            .args(argv)
            .env("HOME", bench.directory.path())
            .envs(bench.environment.iter().cloned());
        let output = command.output().unwrap();
        assert_eq!(code(&output), 0, "{}", stderr(&output));
        serde_json::from_str::<Value>(&stdout(&output)).unwrap()
    };
    let told = explain(&bench);
    let first = &told["kinds"][0]["differences"][0];
    assert_eq!(
        (&first["field"], &first["derived"][0]["field"]),
        (&"env.OMP_NUM_THREADS".into(), &"cpu.threads".into())
    );
    assert!(told["kinds"][0]["exact"].is_null());
    bench.environment.pop();
    assert!(explain(&bench)["kinds"][0]["exact"].is_object());
}

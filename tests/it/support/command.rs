//! The built command: verbs that must answer, and daemons that end with the test.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

/// `preheat` with nothing of the caller's own configuration.
pub(crate) fn preheat() -> Command {
    undisturbed(Command::new(env!("CARGO_BIN_EXE_preheat")))
}

/// The same under a limit, as `ulimit` takes it.
pub(crate) fn preheat_under(limit: &str) -> Command {
    let mut command = Command::new("/bin/sh");
    command.arg("-c").arg(format!("ulimit {limit} && exec \"$0\" \"$@\"")).arg(env!("CARGO_BIN_EXE_preheat"));
    undisturbed(command)
}

pub(crate) fn undisturbed(mut command: Command) -> Command {
    let foreign = ["PREHEAT_", "AWS_", "GOOGLE_", "GCE_", "AZURE_", "STORAGE_EMULATOR_"];
    let foreign = |name: &str| foreign.iter().any(|prefix| name.starts_with(prefix));
    // Who reads and writes is chosen for all tests at once: `PREHEAT_STORE__DISK=pool scripts/test`.
    for (name, _) in std::env::vars().filter(|(name, _)| foreign(name) && name != preheat::sys::disk::VARIABLE) {
        command.env_remove(name);
    }
    if super::searched() {
        command.env("PREHEAT_LOG", "trace");
    }
    // A daemon of this machine is none of a test's business.
    command.env("PREHEAT_SOCKET", "/proc/none/preheat.sock").env("NO_COLOR", "1").stdin(Stdio::null());
    command
}

/// Runs a verb to its end.
pub(crate) fn run(arguments: &[&str]) -> Output {
    preheat().args(arguments).output().unwrap()
}

pub(crate) fn code(output: &Output) -> i32 {
    output.status.code().unwrap_or(-1)
}

pub(crate) fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

pub(crate) fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// The last line of standard output, as JSON.
pub(crate) fn json(output: &Output) -> serde_json::Value {
    let text = stdout(output);
    let line = text.lines().last().unwrap_or_else(|| panic!("no output; {}", stderr(output)));
    serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))
}

/// A verb that must fail: its exit code, and every one of these words on standard error.
#[track_caller]
pub(crate) fn fails(output: &Output, with: i32, words: &[&str]) {
    let text = stderr(output);
    assert_eq!(code(output), with, "{text}");
    for word in words {
        assert!(text.contains(word), "`{word}` is not in: {text}");
    }
}

/// `preheat serve`, killed with the test.
pub(crate) struct Daemon {
    pub(crate) process: Child,
    pub(crate) url: String,
    pub(crate) socket: PathBuf,
    pub(crate) root: PathBuf,
}

impl Daemon {
    /// Starts one on `directory`, and waits until it listens.
    pub(crate) fn start(directory: &Path, arguments: &[&str]) -> Self {
        Self::start_with(directory, arguments, &[])
    }

    /// The same with variables of its own.
    pub(crate) fn start_with(directory: &Path, arguments: &[&str], environment: &[(&str, &str)]) -> Self {
        let (root, socket) = (directory.join("store"), directory.join("s.sock"));
        let mut process = preheat()
            .args(["serve", "--listen", "127.0.0.1:0"])
            .arg("--root")
            .arg(&root)
            .arg("--socket")
            .arg(&socket)
            .args(arguments)
            .envs(environment.iter().copied())
            .stdout(Stdio::piped())
            .stderr(std::fs::File::create(directory.join("log")).unwrap())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let url = line.trim().strip_prefix("listening on ").unwrap_or_else(|| {
            panic!("it said `{line}`: {}", std::fs::read_to_string(directory.join("log")).unwrap_or_default())
        });
        Self { process, url: url.to_owned(), socket, root }
    }

    /// Runs a verb against it.
    pub(crate) fn run(&self, arguments: &[&str]) -> Output {
        preheat().args(arguments).args(["--daemon", &self.url]).output().unwrap()
    }

    /// The same over its socket.
    pub(crate) fn run_locally(&self, arguments: &[&str]) -> Output {
        let named = format!("unix:{}", self.socket.display());
        preheat().args(arguments).args(["--daemon", &named]).output().unwrap()
    }

    pub(crate) fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_child(&self.process);
        rustix::process::kill_process(pid, signal).unwrap();
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        if super::searched() {
            eprintln!("{}", std::fs::read_to_string(self.root.with_file_name("log")).unwrap_or_default());
        }
    }
}

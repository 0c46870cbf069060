//! Servers that nobody here wrote, started on a free port and ended with the test. `scripts/setup` installs them; where they
//! are missing, the test fails and says so.

use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A server process.
pub(crate) struct Emulator {
    process: Child,
    pub(crate) url: String,
    _directory: tempfile::TempDir,
}

/// The one storage account of [`Emulator::azurite`].
pub(crate) const AZURITE_ACCOUNT: &str = "ourstorage";

impl Emulator {
    /// Azure Blob Storage, by Azurite, with an account of this key. `url` is the account's endpoint.
    pub(crate) fn azurite(key: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let script = installed("azurite/node_modules/azurite/dist/src/blob/main.js");
        let mut started = Self::start(directory, |port, directory| {
            let mut command = Command::new("node");
            command.env("AZURITE_ACCOUNTS", format!("{AZURITE_ACCOUNT}:{key}"));
            command.arg(script).args(["--blobHost", "127.0.0.1", "--blobPort", port]);
            command.args(["--silent", "--disableTelemetry", "--location"]).arg(directory);
            command
        });
        started.url.push_str(&format!("/{AZURITE_ACCOUNT}"));
        started
    }

    /// Google Cloud Storage, by fake-gcs-server.
    pub(crate) fn gcs() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let program = installed("fake-gcs-server");
        Self::start(directory, |port, directory| {
            let mut command = Command::new(program);
            command.args(["-scheme", "http", "-host", "127.0.0.1", "-port", port, "-log-level", "error"]);
            // It answers for no other host, and sends uploads to the one that asked.
            command.args(["-public-host", &format!("127.0.0.1:{port}"), "-backend", "filesystem", "-filesystem-root"]);
            command.arg(directory);
            command
        })
    }

    fn start(directory: tempfile::TempDir, command: impl FnOnce(&str, &std::path::Path) -> Command) -> Self {
        // Between finding it free and its use another process may take it; then the server ends and the test says why.
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let log = directory.path().join("log");
        let output = std::fs::File::create(&log).unwrap();
        let mut process = command(&port.to_string(), &directory.path().join("data"))
            .stdin(Stdio::null())
            .stdout(output.try_clone().unwrap())
            .stderr(output)
            .spawn()
            .unwrap_or_else(|error| panic!("start the emulator: {error}; run scripts/setup"));
        let limit = Instant::now() + Duration::from_secs(30);
        while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
            let ended = process.try_wait().unwrap();
            if ended.is_some() || Instant::now() > limit {
                let _ = process.kill();
                panic!("the emulator does not listen ({ended:?}): {}", std::fs::read_to_string(&log).unwrap());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Self { process, url: format!("http://127.0.0.1:{port}"), _directory: directory }
    }
}

impl Drop for Emulator {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// What `scripts/setup` has put into its cache.
fn installed(name: &str) -> PathBuf {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let cache = set("PREHEAT_CACHE")
        .or_else(|| Some(set("XDG_CACHE_HOME")?.join("preheat")))
        .or_else(|| Some(set("HOME")?.join(".cache/preheat")))
        .expect("neither PREHEAT_CACHE nor HOME is set");
    let path = cache.join(name);
    assert!(path.exists(), "{} is missing: run scripts/setup", path.display());
    path
}

//! What detectors look at: a root directory, an environment, an argument vector. Nothing global is read, so that a test can set
//! any machine up in a directory, and one process can take the fingerprint of a command that it has not started.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::output::output_of;

/// The command, and the machine that it will run on.
#[derive(Clone, Debug)]
pub struct Scene {
    /// `/` of the machine.
    pub root: PathBuf,
    /// The environment that the command will have. What is not UTF-8 in it has been replaced, and never equals anything else.
    pub environment: BTreeMap<String, String>,
    /// The command and its arguments.
    pub argv: Vec<String>,
    /// Where it will be started.
    pub directory: PathBuf,
}

/// Largest file that is read whole.
const FILE_LIMIT: u64 = 4 << 20;

/// Longest that a compiler or interpreter may take to say its version.
const PATIENCE: Duration = Duration::from_secs(5);

// === impl Scene ===

impl Scene {
    /// A command in the environment of this process.
    #[must_use]
    pub fn of_process(argv: Vec<String>) -> Self {
        let text = |text: std::ffi::OsString| text.to_string_lossy().into_owned();
        Self {
            root: PathBuf::from("/"),
            environment: std::env::vars_os().map(|(name, value)| (text(name), text(value))).collect(),
            argv,
            directory: std::env::current_dir().unwrap_or_else(|_| PathBuf::from("/")),
        }
    }

    /// Where a path of the machine really is.
    #[must_use]
    pub fn at(&self, path: impl AsRef<Path>) -> PathBuf {
        let absolute = self.absolute(path.as_ref());
        self.root.join(absolute.strip_prefix("/").unwrap_or(&absolute))
    }

    /// A path as the command will mean it.
    #[must_use]
    pub fn absolute(&self, path: &Path) -> PathBuf {
        if path.is_absolute() { path.to_owned() } else { self.directory.join(path) }
    }

    /// A variable that is set and not empty.
    #[must_use]
    pub fn variable(&self, name: &str) -> Option<&str> {
        self.environment.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }

    /// Whether a variable is set to something that means yes.
    #[must_use]
    pub fn is_on(&self, name: &str) -> bool {
        self.variable(name).is_some_and(|value| !matches!(value, "0" | "false" | "False" | "off" | "no"))
    }

    /// The text of a file of the machine; none if it is absent, not text or too long.
    #[must_use]
    pub fn read(&self, path: impl AsRef<Path>) -> Option<String> {
        let place = self.at(path);
        let small = std::fs::metadata(&place).is_ok_and(|found| found.len() <= FILE_LIMIT);
        small.then(|| std::fs::read_to_string(place).ok()).flatten()
    }

    /// Where the shell would find a program.
    #[must_use]
    pub fn which(&self, program: &str) -> Option<PathBuf> {
        if program.contains('/') {
            let path = self.absolute(Path::new(program));
            return self.at(&path).is_file().then_some(path);
        }
        let path = self.variable("PATH").unwrap_or("/usr/local/bin:/usr/bin:/bin");
        path.split(':').map(|part| self.absolute(Path::new(part)).join(program)).find(|path| self.is_executable(path))
    }

    fn is_executable(&self, path: &Path) -> bool {
        use std::os::unix::fs::PermissionsExt;
        std::fs::metadata(self.at(path)).is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
    }

    /// What a program of the machine prints, in the command's environment.
    #[must_use]
    pub fn say(&self, program: &Path, arguments: &[&str]) -> Option<String> {
        output_of(&self.at(program), arguments, &self.environment, &self.directory_or_root(), PATIENCE)
    }

    fn directory_or_root(&self) -> PathBuf {
        let place = self.at(&self.directory);
        if place.is_dir() { place } else { self.root.clone() }
    }

    /// The home directory that the command will see.
    #[must_use]
    pub fn home(&self) -> Option<PathBuf> {
        self.variable("HOME").map(PathBuf::from)
    }
}

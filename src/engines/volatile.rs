//! Arguments that are another at each start: each is a field of the key, so that no start would ever find what the last one has
//! compiled. What differs cannot be seen in one command line; how such values look can.

use super::doctor::{Finding, Gravity, varying};
use super::fingerprint::{Fingerprint, Scene};

/// Words in the name of an option whose value is written to.
const WRITTEN: [&str; 24] = [
    "output",
    "outputs",
    "out",
    "outdir",
    "log",
    "logs",
    "logdir",
    "logfile",
    "save",
    "dump",
    "trace",
    "tracing",
    "result",
    "results",
    "report",
    "checkpoint",
    "checkpoints",
    "tmp",
    "tmpdir",
    "temp",
    "workdir",
    "socket",
    "pidfile",
    "artifacts",
];

/// Ports from here on are those that a system gives to who asks for any.
const EPHEMERAL: u16 = 32_768;

/// Looks at the arguments that are in the key.
pub(super) fn arguments(scene: &Scene, fingerprint: &Fingerprint, found: &mut Vec<Finding>) {
    for (name, fact) in &fingerprint.facts.0 {
        let Some(option) = name.strip_prefix("argv.").filter(|option| *option != "program") else { continue };
        let Some(value) = &fact.value else { continue };
        if option.starts_with('@') {
            // A word of which nothing is known is in the key as a digest alone, and may be secret.
            if let Some(why) = word(scene, fingerprint, option, value) {
                found.push(volatile(option, option.to_owned(), &why));
            }
            continue;
        }
        let subject: String =
            format!("{option} {value}").chars().map(|c| if c.is_control() { ' ' } else { c }).take(200).collect();
        if let Some(why) = value.lines().find_map(|value| changing(scene, option, value)) {
            found.push(volatile(option, subject, &why));
        } else if is_written(option) {
            found.push(written(fingerprint, option, value, subject));
        }
    }
}

fn volatile(option: &str, subject: String, why: &str) -> Finding {
    Finding {
        gravity: Gravity::Blocks,
        check: "volatile-argument",
        subject,
        detail: format!("it is in the key, and {why}: each start is another one"),
        remedy: remedy(option),
    }
}

/// Why a word that belongs to no option will be another: the word itself, or of those that are not shown any path.
fn word(scene: &Scene, fingerprint: &Fingerprint, option: &str, value: &str) -> Option<String> {
    if let Some(why) = changing(scene, option, value).filter(|_| scene.argv.iter().any(|word| word == value)) {
        return Some(why);
    }
    let of_option = |word: &str| {
        let mut facts = fingerprint.facts.0.iter().filter(|(name, _)| name.starts_with("argv.-"));
        facts.any(|(_, fact)| fact.value.as_deref().is_some_and(|value| value.contains(word)))
    };
    let hidden = scene.argv.iter().skip(1).filter(|word| word.starts_with('/') && !of_option(word));
    if scene.argv.iter().any(|word| word == value) {
        return None;
    }
    hidden.into_iter().find_map(|word| changing(scene, option, word))
}

/// An output that looks the same at each start.
fn written(fingerprint: &Fingerprint, option: &str, value: &str, subject: String) -> Finding {
    let hashed = value.lines().any(|path| fingerprint.facts.0.contains_key(&format!("file.{path}")));
    let (gravity, detail) = if hashed {
        (Gravity::Blocks, "it is in the key by the content of the file, which the command seems to write to")
    } else {
        (Gravity::Note, "it seems to be where the command writes to, and is in the key: another place is another key")
    };
    Finding { gravity, check: "output-argument", subject, detail: detail.to_owned(), remedy: remedy(option) }
}

fn remedy(option: &str) -> String {
    let take_out = if option.starts_with('@') {
        String::new()
    } else {
        format!(", or take `{option}` out of the key: `ignored_arguments` of a profile in [[engines.profiles]]")
    };
    format!("give the same value at each start{take_out}")
}

fn is_written(option: &str) -> bool {
    let name = option.trim_start_matches('-');
    name == "o" || name.split(['-', '_', '.']).any(|word| WRITTEN.contains(&word))
}

/// Why a value will be another at the next start.
fn changing(scene: &Scene, option: &str, value: &str) -> Option<String> {
    if let Some(part) = varying(scene, value) {
        return Some(format!("`{part}` in it belongs to one pod or process"));
    }
    let process = processes(scene);
    for number in value.split(|c: char| !c.is_ascii_digit()).filter(|digits| !digits.is_empty()) {
        if process.iter().any(|id| id == number) && number.len() >= 2 && option_or_path(option, value) {
            return Some(format!("{number} in it is the number of a process"));
        }
        if is_moment(number) {
            return Some(format!("{number} in it is a moment"));
        }
    }
    if let Some(date) = date(value) {
        return Some(format!("{date} in it is a moment"));
    }
    let port = option.trim_start_matches('-').split(['-', '_']).any(|word| word == "port");
    if port && value.parse::<u16>().is_ok_and(|port| port >= EPHEMERAL) {
        return Some("a port from this range is usually one that the system has given".to_owned());
    }
    None
}

/// Whether a process's number in it means something: not where it is the whole of a plain number, as a batch size is.
fn option_or_path(option: &str, value: &str) -> bool {
    value.contains(['/', '-', '_', '.']) || is_written(option)
}

/// This process, and those that have started it: what `$$` and `$PPID` were to them.
fn processes(scene: &Scene) -> Vec<String> {
    let parent = |id: &str| -> Option<String> {
        let stat = scene.read(format!("/proc/{id}/stat"))?;
        // The name in brackets may have anything in it.
        stat.rsplit_once(')')?.1.split_whitespace().nth(1).map(str::to_owned)
    };
    let own = scene.read("/proc/self/stat").and_then(|stat| Some(stat.split_once(' ')?.0.to_owned()));
    std::iter::successors(own, |id| parent(id)).take_while(|id| id != "0" && id != "1").take(8).collect()
}

/// Seconds or milliseconds since the epoch, between 2017 and 2033.
fn is_moment(digits: &str) -> bool {
    let seconds = match digits.len() {
        10 => digits.parse::<u64>().ok(),
        13 => digits.parse::<u64>().ok().map(|milliseconds| milliseconds / 1000),
        _ => None,
    };
    seconds.is_some_and(|seconds| (1_500_000_000..2_000_000_000).contains(&seconds))
}

/// A day with a time of day in it: `20261125-0312`, `2026-11-25T03:12`. A day alone is also the name of a version.
fn date(value: &str) -> Option<String> {
    let digits: Vec<(usize, char)> = value.char_indices().filter(|(_, c)| c.is_ascii_digit()).collect();
    digits.windows(12).find_map(|run| {
        let text: String = run.iter().map(|(_, c)| *c).collect();
        let (start, end) = (run[0].0, run[11].0 + 1);
        let part = &value[start..end];
        let separated = |c: char| matches!(c, '-' | '_' | ':' | 'T' | '.' | ' ');
        let between =
            |from: usize, to: usize, most: u32| text[from..to].parse::<u32>().is_ok_and(|number| number <= most);
        let day = text.starts_with("20")
            && between(4, 6, 12)
            && between(6, 8, 31)
            && &text[4..6] != "00"
            && &text[6..8] != "00";
        let time = between(8, 10, 23) && between(10, 12, 59);
        let begins = start == 0 || !value.as_bytes()[start - 1].is_ascii_digit();
        let plain = part.chars().all(|c| c.is_ascii_digit() || separated(c)) && part.len() <= 17;
        (begins && plain && day && time).then(|| part.to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engines::fingerprint::Asked;
    use crate::engines::profile::built_in;

    fn found(argv: &[&str], files: &[&str]) -> Vec<(&'static str, Gravity, String)> {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in [
            ("proc/self/stat", "4712 (preheat) S 4711 4711"),
            ("proc/4712/stat", "4712 (preheat) S 4711 4711"),
            ("proc/4711/stat", "4711 (sh (x) y) S 1 4711"),
        ] {
            std::fs::create_dir_all(root.path().join(path).parent().unwrap()).unwrap();
            std::fs::write(root.path().join(path), text).unwrap();
        }
        for path in files {
            std::fs::write(root.path().join(path), "x").unwrap();
        }
        let scene = Scene {
            root: root.path().into(),
            environment: [("HOSTNAME".to_owned(), "pod-7f9c".to_owned())].into(),
            argv: argv.iter().map(|word| (*word).to_owned()).collect(),
            directory: "/".into(),
        };
        let asked = Asked { engine: Some("vllm".to_owned()), ..Asked::default() };
        let fingerprint = Fingerprint::take(&scene, &asked, &built_in()).unwrap();
        let mut all = Vec::new();
        arguments(&scene, &fingerprint, &mut all);
        all.into_iter().map(|finding| (finding.check, finding.gravity, finding.subject)).collect()
    }

    #[test]
    fn what_looks_like_another_at_each_start_is_named() {
        for argument in [
            "--output-dir=/tmp/x-4711",
            "--trace-file=/tmp/4712.json",
            "--run-name=run-1764041520",
            "--run-name=20261125-031207",
            "--run-name=2026-11-25T03:12",
            "--stamp=1764041520123",
            "--dump=/tmp/tmp.Zx81mQ/out",
            "--trace=/logs/pod-7f9c/trace",
            "--session=0b9c6a2e-6a4f-4a58-9c1b-2f1d8c7e5a10",
            "--kv-port=45123",
        ] {
            let found = found(&["vllm", "serve", "m", argument], &[]);
            let (option, value) = argument.split_once('=').unwrap();
            let wanted = ("volatile-argument", Gravity::Blocks, format!("{option} {value}"));
            assert!(found.contains(&wanted), "{argument}: {found:?}");
        }
        let positional = found(&["vllm", "serve", "m", "extra", "/tmp/out-4711"], &[]);
        assert!(positional.iter().any(|(check, ..)| *check == "volatile-argument"), "{positional:?}");
    }

    #[test]
    fn an_output_that_stays_is_a_note_unless_its_content_is_in_the_key() {
        let note = found(&["vllm", "serve", "m", "--output-dir", "/srv/out"], &[]);
        assert_eq!(note, [("output-argument", Gravity::Note, "--output-dir /srv/out".to_owned())]);
        let blocks = found(&["vllm", "serve", "m", "--save-results", "/results.json"], &["results.json"]);
        assert_eq!(blocks, [("output-argument", Gravity::Blocks, "--save-results /results.json".to_owned())]);
    }

    #[test]
    fn plain_arguments_are_left_alone() {
        let argv = [
            "vllm",
            "serve",
            "m",
            "--max-model-len",
            "4711",
            "--seed=1764041520999999",
            "--port",
            "45123",
            "--revision=20261125",
            "--kv-port=5557",
            "--max-num-seqs=256",
            "--dtype=bfloat16",
            "--speculative-config={\"num\":3}",
            "--max-log-len=9",
        ];
        let found: Vec<_> = found(&argv, &[]).into_iter().filter(|(check, ..)| *check == "volatile-argument").collect();
        assert!(found.is_empty(), "{found:?}");
    }
}

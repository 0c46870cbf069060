//! `preheat engine fingerprint`: the keys of a command, with every field, its role and who says so.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;

use serde::Serialize;

use super::super::args::{CommandArgs, FingerprintArgs};
use super::super::error::CliError;
use super::super::screen::{Screen, print, print_json};
use super::library::settings;
use crate::engines::fingerprint::{Asked, Fingerprint, Scene};
use crate::engines::profile::{Directory, Profile, with_configured};
use crate::model::engine::{BundleKind, EngineKey, Role};

/// One kind of key.
#[derive(Debug, Serialize)]
struct Shown {
    key: String,
    /// Hard fields that are not known, with the reasons: then nothing is restored or captured.
    unusable: BTreeMap<String, String>,
    document: EngineKey,
}

/// What `--json` prints.
#[derive(Debug, Serialize)]
struct Outcome {
    profile: String,
    directories: BTreeMap<String, PathBuf>,
    graph: Shown,
    kernel: Shown,
}

pub(super) fn run(args: FingerprintArgs) -> anyhow::Result<ExitCode> {
    let (_, fingerprint) = understand(&args.command, args.argv)?;
    let shown = |kind| -> anyhow::Result<Shown> {
        let document = fingerprint.key(kind)?;
        let unusable = document.unusable().into_iter().map(|(field, why)| (field.to_owned(), why.to_owned())).collect();
        Ok(Shown { key: document.digest().to_string(), unusable, document })
    };
    let (graph, kernel) = (shown(BundleKind::Graph)?, shown(BundleKind::Kernel)?);
    if args.json {
        let directories = fingerprint.roots.iter().map(|root| (root.name.clone(), root.path.clone())).collect();
        print_json(&Outcome { profile: fingerprint.profile.name.clone(), directories, graph, kernel })?;
    } else {
        print(table(&fingerprint, &graph, &kernel))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// The scene of a command and its fingerprint. Without a command: what is known of the machine.
pub(super) fn understand(args: &CommandArgs, argv: Vec<String>) -> anyhow::Result<(Scene, Fingerprint)> {
    let (asked, profiles) = asked(args, argv.is_empty())?;
    let scene = Scene::of_process(argv);
    let fingerprint = Fingerprint::take(&scene, &asked, &profiles)?;
    Ok((scene, fingerprint))
}

/// What is said beside the command, and the profiles that there are.
pub(in super::super) fn asked(args: &CommandArgs, without_command: bool) -> anyhow::Result<(Asked, Vec<Profile>)> {
    let engine = match args.engine.as_str() {
        "auto" if without_command => Some("generic-dir".to_owned()),
        "auto" => None,
        name => Some(name.to_owned()),
    };
    let asked = Asked {
        engine,
        gpu_facts: args.gpu_facts.clone(),
        salt: args.cache_salt.clone(),
        strict_driver: args.strict_driver,
        directories: args.cache_dir.iter().map(|text| directory(text)).collect::<Result<_, _>>()?,
    };
    Ok((asked, with_configured(&settings(args.config.as_deref())?.engines.profiles)))
}

/// Reads `NAME=PATH[,kernel|,in-place]`.
fn directory(text: &str) -> Result<Directory, CliError> {
    let wrong =
        || CliError::invalid(format!("--cache-dir `{text}`: write NAME=PATH, NAME=PATH,kernel or NAME=PATH,in-place"));
    let (name, path) = text.split_once('=').ok_or_else(wrong)?;
    let (path, kind, in_place) = match path.rsplit_once(',') {
        Some((path, "kernel")) => (path, BundleKind::Kernel, false),
        Some((path, "in-place")) => (path, BundleKind::Graph, true),
        _ => (path, BundleKind::Graph, false),
    };
    if path.is_empty() {
        return Err(wrong());
    }
    let directory = Directory {
        name: name.to_owned(),
        kind,
        variable: None,
        default: path.to_owned(),
        below: None,
        ignore: Vec::new(),
        in_place,
    };
    match directory.problems().first() {
        Some(problem) => Err(CliError::invalid(format!("--cache-dir `{text}`: {problem}"))),
        None => Ok(directory),
    }
}

fn table(fingerprint: &Fingerprint, graph: &Shown, kernel: &Shown) -> String {
    let screen = Screen::of_stdout();
    let mut text = format!("profile     {}\n", fingerprint.profile.name);
    for root in &fingerprint.roots {
        text.push_str(&format!(
            "{:<11} {} ({})\n",
            root.name,
            screen.plain(&root.path.display().to_string()),
            root.kind
        ));
    }
    for (kind, shown) in [("graph key", graph), ("kernel key", kernel)] {
        text.push_str(&format!("{kind:<11} {}\n", shown.key));
    }
    text.push('\n');
    let longest = fingerprint.facts.0.keys().map(String::len).filter(|length| *length <= 40).max().unwrap_or_default();
    for (name, fact) in &fingerprint.facts.0 {
        let role = |shown: &Shown| match shown.document.fields().get(name).map(|field| field.role) {
            Some(Role::Hard) => "hard",
            Some(Role::Soft) => "soft",
            None => "-",
        };
        let value = match &fact.value {
            Some(value) => format!("{value}  ({})", fact.from),
            None => format!("NOT KNOWN: {}", fact.from),
        };
        let line = format!("{name:<longest$}  {:<4} {:<4}  {value}", role(graph), role(kernel));
        text.push_str(&screen.plain(&line));
        text.push('\n');
    }
    text
}

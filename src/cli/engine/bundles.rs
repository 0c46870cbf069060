//! `preheat engine list`, `show`, `export`, `import`, `keygen`: the bundles of a node or a root.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::ExitCode;

use anyhow::Context;
use serde::Serialize;

use super::super::args::{
    EngineExportArgs, EngineImportArgs, EngineKeygenArgs, EngineListArgs, EngineRestoreArgs, EngineShowArgs,
};
use super::super::error::CliError;
use super::super::screen::{Screen, print, print_json};
use super::super::words;
use super::library::library;
use crate::base::ErrorKind;
use crate::base::units::ByteSize;
use crate::engines::{BundleRef, BundleView, Library, Near, Refusal, Standing};
use crate::model::engine::Role;
use crate::model::{BundleId, SigningKey};

/// What `show --json` prints.
#[derive(Debug, Serialize)]
struct Shown {
    bundle: BundleRef,
    /// Absent: it would be restored.
    #[serde(skip_serializing_if = "Option::is_none")]
    refusal: Option<Refusal>,
    #[serde(skip_serializing_if = "Option::is_none")]
    why: Option<String>,
    document: serde_json::Value,
}

pub(super) async fn list(args: EngineListArgs) -> anyhow::Result<ExitCode> {
    let bundles = library(&args.library, args.settings.config.as_deref(), true).await?.list().await?;
    if args.json {
        print_json(&bundles)?;
        return Ok(ExitCode::SUCCESS);
    }
    let (screen, now) = (Screen::of_stdout(), super::super::models::now());
    let lines = bundles.iter().flat_map(|near| lines(&near.bundle, now));
    print(lines.map(|line| format!("{}\n", screen.plain(&line))).collect::<String>())?;
    Ok(ExitCode::SUCCESS)
}

pub(super) fn lines(bundle: &BundleRef, now: u64) -> Vec<String> {
    let saved = bundle.evidence.cold_ms.map(|cold| format!(", cold {}", words::seconds(cold as f64 / 1000.0)));
    let engine = bundle.evidence.engine.as_deref().unwrap_or(&bundle.profile);
    let vouched = match (&bundle.signed_by, &bundle.signer) {
        (Some(name), _) => format!("signed by {name}"),
        (None, Some(signer)) => format!("signed by {signer}, whom this node does not trust"),
        (None, None) => "not signed".to_owned(),
    };
    let ago = words::seconds(now.saturating_sub(bundle.captured_at) as f64);
    let mut lines = vec![
        format!("{}  {}  {} files  {}", bundle.id, bundle.kind, bundle.files, ByteSize(bundle.bytes)),
        format!("    {engine}, key {}{}", bundle.key, saved.unwrap_or_default()),
        format!("    scope {}, {vouched}, captured {ago} ago", bundle.scope),
    ];
    match &bundle.standing {
        Standing::Clean => {}
        Standing::Suspect { reason, .. } => lines.push(format!("    suspect: {reason}")),
        Standing::Quarantined { reason, .. } => lines.push(format!("    quarantined: {reason}")),
    }
    let pins: Vec<&str> = bundle.pins.iter().filter(|pin| pin.holds_at(now)).map(|pin| pin.id.as_str()).collect();
    if !pins.is_empty() {
        lines.push(format!("    kept by {}", pins.join(", ")));
    }
    lines
}

/// The bundle whose name begins so.
pub(super) async fn find(library: &dyn Library, text: &str) -> anyhow::Result<BundleId> {
    if let Ok(id) = text.parse() {
        return Ok(id);
    }
    let named: Vec<Near> = library.list().await?;
    let mut found = named.into_iter().map(|near| near.bundle.id).filter(|id| id.to_string().starts_with(text));
    match (found.next(), found.next()) {
        (Some(id), None) if text.len() >= 4 => Ok(id),
        (None, _) => {
            Err(CliError::new(ErrorKind::NotFound, format!("no bundle `{text}`: see `preheat engine list`")).into())
        }
        _ => Err(CliError::invalid(format!("`{text}` is not one bundle: write more digits")).into()),
    }
}

pub(super) async fn show(args: EngineShowArgs) -> anyhow::Result<ExitCode> {
    let library = library(&args.library, args.settings.config.as_deref(), true).await?;
    let BundleView { bundle, document, refusal, .. } =
        library.show(&find(library.as_ref(), &args.bundle).await?).await?;
    if args.json {
        let document = serde_json::from_slice(&document.to_json())?;
        let why = refusal.as_ref().map(ToString::to_string);
        print_json(&Shown { bundle, refusal, why, document })?;
        return Ok(ExitCode::SUCCESS);
    }
    let screen = Screen::of_stdout();
    let mut text = lines(&bundle, super::super::models::now());
    text.push(match &refusal {
        Some(why) => format!("    not restored: {why}"),
        None => "    may be restored".to_owned(),
    });
    for (name, field) in document.key.fields() {
        let role = if field.role == Role::Hard { "hard" } else { "soft" };
        let value = field.value.as_deref().unwrap_or("NOT KNOWN");
        text.push(format!("{role}  {name}  {value}  ({})", field.from));
    }
    for entry in document.manifest.files() {
        text.push(format!("{:>12}  {:o}  {}", entry.size, entry.mode.unwrap_or_default(), entry.path));
    }
    text.extend(document.evidence.log.iter().map(|line| format!("log  {line}")));
    print(text.iter().map(|line| format!("{}\n", screen.plain(line))).collect::<String>())?;
    Ok(ExitCode::SUCCESS)
}

pub(super) async fn export(args: EngineExportArgs) -> anyhow::Result<ExitCode> {
    let library = library(&args.library, args.settings.config.as_deref(), true).await?;
    let id = find(library.as_ref(), &args.bundle).await?;
    let view = library.show(&id).await?;
    let mut pack = library.pack(&id).await?;
    let place = args.to.clone();
    let written = tokio::task::spawn_blocking(move || -> anyhow::Result<u64> {
        let (bundle, signature) = (&view.document, view.signature.as_ref());
        if place == Path::new("-") {
            return Ok(crate::engines::export(bundle, signature, pack.as_mut(), &mut std::io::stdout().lock())?);
        }
        let directory = place.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        // It has its name when it is whole.
        let mut file = tempfile::NamedTempFile::new_in(directory).context("make the archive")?;
        let written = crate::engines::export(bundle, signature, pack.as_mut(), file.as_file_mut())?;
        file.persist(&place).with_context(|| format!("write {}", place.display()))?;
        Ok(written)
    })
    .await??;
    let unsigned = if library.show(&id).await?.signature.is_none() {
        "; it is not signed, so no other node takes it in"
    } else {
        ""
    };
    eprintln!("preheat: bundle {id} is exported, {}{unsigned}", ByteSize(written));
    Ok(ExitCode::SUCCESS)
}

pub(super) async fn restore(args: EngineRestoreArgs) -> anyhow::Result<ExitCode> {
    let library = library(&args.library, args.settings.config.as_deref(), true).await?;
    let id = find(library.as_ref(), &args.bundle).await?;
    let bundle = library.show(&id).await?.bundle;
    let restored = library.restore(&bundle, &args.into).await?;
    if args.json {
        print_json(&restored)?;
    } else {
        let (files, bytes) = (restored.files, ByteSize(restored.bytes));
        eprintln!("preheat: {files} files, {bytes}, in {}", words::seconds(restored.seconds));
        print(format!("{}\n", args.into.display()))?;
    }
    Ok(ExitCode::SUCCESS)
}

pub(super) async fn import(args: EngineImportArgs) -> anyhow::Result<ExitCode> {
    let library = library(&args.library, args.settings.config.as_deref(), true).await?;
    let archive: Box<dyn Read + Send> = if args.from == Path::new("-") {
        Box::new(std::io::stdin())
    } else {
        Box::new(File::open(&args.from).with_context(|| format!("open {}", args.from.display()))?)
    };
    let bundle = library.import(archive).await?;
    if args.json {
        print_json(&bundle)?;
    } else {
        print(format!("{}\n", bundle.id))?;
    }
    Ok(ExitCode::SUCCESS)
}

pub(super) fn keygen(args: &EngineKeygenArgs) -> anyhow::Result<ExitCode> {
    let (key, text) = SigningKey::generate().map_err(|error| CliError::new(ErrorKind::Internal, error.to_string()))?;
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&args.file);
    file.and_then(|mut file| file.write_all(text.as_bytes()).and_then(|()| file.sync_all()))
        .with_context(|| format!("write {}", args.file.display()))?;
    eprintln!("preheat: the private key is in {}; the public one goes into engines.signers", args.file.display());
    print(format!("{}\n", key.signer()))?;
    Ok(ExitCode::SUCCESS)
}

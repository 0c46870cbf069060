//! `preheat engine explain -- CMD`: why the command would be warm, or would not.

use std::process::ExitCode;

use serde::Serialize;

use super::super::args::ExplainArgs;
use super::super::screen::{Screen, print, print_json};
use super::fingerprint::understand;
use super::library::library;
use crate::engines::{BundleRef, Refused};
use crate::model::engine::{BundleKind, Difference, Role};

#[derive(Debug, Serialize)]
struct Outcome {
    profile: String,
    kinds: Vec<OfKind>,
}

/// One kind of bundle.
#[derive(Debug, Serialize)]
struct OfKind {
    kind: BundleKind,
    key: String,
    /// What would be restored.
    exact: Option<BundleRef>,
    /// What has the key and may not.
    refused: Vec<Refused>,
    /// Hard fields that are not known.
    unknown: Vec<Unknown>,
    /// The nearest with another key.
    nearest: Option<BundleRef>,
    /// How its key differs: causes first, what follows from them folded under them.
    differences: Vec<Difference>,
}

#[derive(Debug, Serialize)]
struct Unknown {
    field: String,
    why: String,
}

pub(super) async fn run(args: ExplainArgs) -> anyhow::Result<ExitCode> {
    let (_, fingerprint) = understand(&args.command, args.argv)?;
    let library = library(&args.library, args.command.config.as_deref(), false).await?;
    let mut kinds = Vec::new();
    for kind in BundleKind::ALL {
        if fingerprint.roots.iter().all(|root| root.kind != kind) {
            continue;
        }
        let key = fingerprint.key(kind)?;
        let unknown = key.unusable().into_iter();
        let unknown: Vec<Unknown> =
            unknown.map(|(field, why)| Unknown { field: field.to_owned(), why: why.to_owned() }).collect();
        let found = library.lookup(&key, args.lookup_timeout.0).await?;
        let nearest = found.nearest.into_iter().next();
        let differences = nearest.as_ref().map(|near| key.diff(&near.key)).unwrap_or_default();
        kinds.push(OfKind {
            kind,
            key: key.digest().to_string(),
            exact: found.exact,
            refused: found.refused,
            unknown,
            nearest: nearest.map(|near| near.bundle),
            differences,
        });
    }
    if args.json {
        print_json(&Outcome { profile: fingerprint.profile.name, kinds })?;
    } else {
        print(words(&fingerprint.profile.name, &kinds))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn words(profile: &str, kinds: &[OfKind]) -> String {
    let screen = Screen::of_stdout();
    let mut text = format!("profile {profile}\n");
    for one in kinds {
        text.push_str(&format!("\n{} {}\n", one.kind, one.key));
        for Unknown { field, why } in &one.unknown {
            text.push_str(&format!("  not known: {field}: {}\n", screen.plain(why)));
        }
        if let Some(bundle) = &one.exact {
            text.push_str(&format!("  bundle {} would be restored: {} files\n", bundle.id, bundle.files));
            continue;
        }
        for refused in &one.refused {
            text.push_str(&format!("  refused: {}\n", screen.plain(&refused.why.to_string())));
        }
        match &one.nearest {
            None => text.push_str("  no bundle has this key, nor another of its kind\n"),
            Some(bundle) => {
                text.push_str(&format!("  no bundle to restore; the nearest is {}, and differs in\n", bundle.id));
            }
        }
        for difference in &one.differences {
            let role = if difference.role == Role::Hard { "" } else { " (does not decide)" };
            let line = format!("    {difference}{role}");
            text.push_str(&screen.plain(&line));
            text.push('\n');
            for derived in &difference.derived {
                text.push_str(&format!("      {}\n", screen.plain(&derived.to_string())));
            }
        }
    }
    text
}

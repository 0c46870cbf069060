//! `preheat engine doctor -- CMD`.

use std::process::ExitCode;

use serde::Serialize;

use super::super::args::DoctorArgs;
use super::super::screen::{Screen, print, print_json};
use super::fingerprint::understand;
use crate::engines::doctor::{Finding, Gravity, examine};

#[derive(Debug, Serialize)]
struct Outcome {
    profile: String,
    findings: Vec<Finding>,
}

pub(super) fn run(args: DoctorArgs) -> anyhow::Result<ExitCode> {
    let (scene, fingerprint) = understand(&args.command, args.argv)?;
    let findings = examine(&scene, &fingerprint);
    if args.json {
        print_json(&Outcome { profile: fingerprint.profile.name, findings })?;
        return Ok(ExitCode::SUCCESS);
    }
    let screen = Screen::of_stdout();
    let mut text = String::new();
    for Finding { gravity, subject, detail, remedy, .. } in &findings {
        let gravity = match gravity {
            Gravity::Blocks => "keeps it cold",
            Gravity::Costs => "costs time",
            Gravity::Note => "note",
        };
        text.push_str(&format!("{gravity}: {}\n", screen.plain(subject)));
        text.push_str(&format!("  {}\n  {}\n", screen.plain(detail), screen.plain(remedy)));
    }
    if findings.is_empty() {
        text.push_str(&format!("nothing keeps it from being warm (profile {})\n", fingerprint.profile.name));
    }
    print(text)?;
    Ok(ExitCode::SUCCESS)
}

//! `preheat models`: what a store has. With a root it looks itself, without lock; else it asks the daemon.

use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

use super::args::ModelsArgs;
use super::screen::{Screen, print, print_json};
use super::target::{self, answered, patience};
use super::words;
use crate::base::units::ByteSize;
use crate::engines::is_bundle;
use crate::prewarm::wire::ModelView;
use crate::store::ReadOnlyStore;

pub(super) async fn run(args: ModelsArgs) -> anyhow::Result<ExitCode> {
    let models: Vec<ModelView> = match &args.root {
        Some(root) if args.daemon.daemon.is_none() => ReadOnlyStore::open(root)?
            .models()?
            .into_iter()
            .filter(|model| !is_bundle(&model.record))
            .map(ModelView::from)
            .collect(),
        _ => {
            let client = target::required(&args.daemon)?;
            answered(&client, patience(&args.daemon), client.models()).await?
        }
    };
    if args.json {
        print_json(&models)?;
        return Ok(ExitCode::SUCCESS);
    }
    let (screen, now) = (Screen::of_stdout(), now());
    let lines = models.iter().flat_map(|model| lines(model, now));
    print(lines.map(|line| format!("{}\n", screen.plain(&line))).collect::<String>())?;
    Ok(ExitCode::SUCCESS)
}

fn lines(model: &ModelView, now: u64) -> [String; 4] {
    let durable = if model.durable { "durable" } else { "not yet durable" };
    let pins = if model.pins.is_empty() { String::new() } else { format!(", kept by {}", pins(model, now)) };
    [
        format!("{}  {}  {durable}", model.id, ByteSize(model.bytes)),
        format!("    {}", model.reference),
        format!("    {}", model.path.display()),
        format!("    scope {}, {}{pins}", model.scope, used(model.last_used, now)),
    ]
}

fn used(last_used: u64, now: u64) -> String {
    match now.saturating_sub(last_used) {
        // Uses are noted by the second.
        0 | 1 => "used just now".to_owned(),
        ago => format!("used {} ago", words::seconds(ago as f64)),
    }
}

/// The pins of a model: name, where, how long yet, why.
pub(super) fn pins(model: &ModelView, now: u64) -> String {
    let pins = model.pins.iter().map(|pin| {
        let ends = pin.expires_at.map(|at| format!("{} yet", words::seconds(at.saturating_sub(now) as f64)));
        let reason = Some(pin.reason.clone()).filter(|reason| !reason.is_empty());
        let memory = pin.in_memory.then(|| "in memory".to_owned());
        match [memory, ends, reason].into_iter().flatten().collect::<Vec<_>>().join(", ") {
            about if about.is_empty() => pin.id.clone(),
            about => format!("{} ({about})", pin.id),
        }
    });
    pins.collect::<Vec<_>>().join(", ")
}

/// Seconds since the epoch.
pub(super) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Pin;

    #[test]
    fn a_model_says_whose_it_is_when_it_was_used_and_what_keeps_it() {
        let mut model: ModelView = serde_json::from_value(serde_json::json!({
            "id": format!("a-{}", "0".repeat(32)), "scope": "team-a", "reference": "hf://org/a", "revision": "r",
            "path": "/x", "manifest": "0".repeat(64), "bytes": 1 << 30, "files": 1, "durable": true, "published_at": 0,
            "last_used": 1000, "origin_verified": "none", "pins": [],
        }))
        .unwrap();
        assert_eq!(lines(&model, 1300)[3], "    scope team-a, used 5 min ago");
        assert_eq!(lines(&model, 1001)[3], "    scope team-a, used just now");
        let pin = |id: &str, reason: &str, expires_at| Pin {
            id: id.to_owned(),
            reason: reason.to_owned(),
            expires_at,
            in_memory: id == "b",
        };
        model.pins = vec![pin("base", "", None), pin("job-1", "lease", Some(1600)), pin("b", "", Some(1301))];
        assert!(lines(&model, 1300)[3].ends_with("kept by base, job-1 (5 min yet, lease), b (in memory, 1.0 s yet)"));
    }
}

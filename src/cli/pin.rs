//! `preheat pin`: keeps a model from being evicted, for a while or until the pin is taken away.

use std::process::ExitCode;

use super::args::{NamedPinArgs, PinArgs};
use super::error::CliError;
use super::models;
use super::screen::{Screen, print, print_json};
use super::target::{self, answered, patience};
use crate::base::ErrorKind;
use crate::model::Reference;
use crate::prewarm::wire::{ModelView, PinRequest};
use crate::store::Pin;

pub(super) async fn run(args: PinArgs) -> anyhow::Result<ExitCode> {
    let PinArgs { model, pin, daemon, json } = args;
    let NamedPinArgs { name, lease, reason, remove } = pin;
    if !Pin::is_name(&name) {
        return Err(CliError::invalid(format!("--name {name}: write 1 to 63 characters of a-z, 0-9 and -")).into());
    }
    let client = target::required(&daemon)?;
    let patience = patience(&daemon);
    let mut found = find(answered(&client, patience, client.models()).await?, &model)?;
    if remove {
        answered(&client, patience, client.unpin(&found.id, &name)).await?;
        found.pins.retain(|pin| pin.id != name);
    } else {
        let lease_seconds = lease.map(|lease| lease.0.as_secs());
        let request = PinRequest { reason, lease_seconds, ..PinRequest::default() };
        found = answered(&client, patience, client.pin(&found.id, &name, &request)).await?;
    }
    if json {
        print_json(&found)?;
        return Ok(ExitCode::SUCCESS);
    }
    let now = models::now();
    let kept = match (remove, found.pins.is_empty()) {
        (true, true) => "nothing keeps it any more".to_owned(),
        (true, false) => format!("still kept by {}", models::pins(&found, now)),
        (false, _) => format!("kept by {}", models::pins(&found, now)),
    };
    print(format!("{}\n", Screen::of_stdout().plain(&format!("{}: {kept}", found.id))))?;
    Ok(ExitCode::SUCCESS)
}

/// The one model that is meant: by its id, or by a reference that no other model has.
fn find(models: Vec<ModelView>, named: &str) -> Result<ModelView, CliError> {
    let is_id = |model: &ModelView| model.id.as_str() == named;
    let reference: Option<Reference> = named.parse().ok();
    let is_meant = |model: &ModelView| reference.is_some() && model.reference.parse().ok() == reference;
    let mut found: Vec<ModelView> = models.into_iter().filter(|model| is_id(model) || is_meant(model)).collect();
    match found.len() {
        1 => Ok(found.remove(0)),
        0 => Err(CliError::new(
            ErrorKind::NotFound,
            format!("`{named}` is no model of this node, neither by its id nor by its reference: see `preheat models`"),
        )),
        _ => {
            let ids: Vec<String> =
                found.iter().map(|model| format!("{} (revision {})", model.id, model.revision)).collect();
            Err(CliError::invalid(format!(
                "`{named}` is {} models of this node; name one by its id: {}",
                found.len(),
                ids.join(", ")
            )))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn model(id: &str, reference: &str) -> ModelView {
        serde_json::from_value(serde_json::json!({
            "id": format!("{id}-{}", "0".repeat(32)), "scope": "default", "reference": reference, "revision": id,
            "path": "/x", "manifest": "0".repeat(64), "bytes": 1, "files": 1, "durable": true, "published_at": 0,
            "last_used": 0, "origin_verified": "none", "pins": [],
        }))
        .unwrap()
    }

    #[test]
    fn a_model_is_meant_by_its_id_or_by_a_reference_that_is_its_alone() {
        let all = || {
            vec![
                model("a", "hf://org/a"),
                model("b", "hf://org/b@main"),
                model("c", "hf://org/b@main"),
                model("d", "s3://models/d/"),
            ]
        };
        let meant = |named: &str| find(all(), named).map(|model| model.revision);
        assert_eq!(meant(&format!("c-{}", "0".repeat(32))).unwrap(), "c");
        assert_eq!(meant("hf://org/a").unwrap(), "a");
        assert_eq!(meant("s3://models/d").unwrap(), "d", "however it was typed");
        let two = meant("hf://org/b@main").unwrap_err().to_string();
        assert!(two.contains("2 models") && two.contains("(revision c)"), "{two}");
        for nothing in ["hf://org/b", "c", ""] {
            assert!(meant(nothing).unwrap_err().to_string().contains("preheat models"), "{nothing}");
        }
    }
}

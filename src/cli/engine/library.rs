//! Where bundles are: the daemon that is named, else the root that is named, else the first daemon that answers.

use std::path::Path;
use std::sync::Arc;

use super::super::args::LibraryArgs;
use super::super::error::CliError;
use super::super::target::{answered, candidates, patience};
use crate::base::ErrorKind;
use crate::config::{Flags, Settings};
use crate::doors::client::DaemonLibrary;
use crate::engines::{Library, LocalLibrary, Trust};
use crate::origin::Origins;

/// The settings that count for a root, and for what a command is.
///
/// # Errors
/// Everything that is wrong with them.
pub(in super::super) fn settings(config: Option<&Path>) -> Result<Settings, CliError> {
    let Some(file) = config else { return Ok(Settings::default()) };
    Settings::load(Some(file), &Flags::default()).map_err(|problems| CliError::invalid(problems.to_string()))
}

/// The library of these arguments. `sign`: a root of one's own signs, with a key that whoever is this process's user could take.
///
/// # Errors
/// That there is none, or that the one that is named is of no use.
pub(in super::super) async fn library(
    args: &LibraryArgs,
    config: Option<&Path>,
    sign: bool,
) -> Result<Arc<dyn Library>, CliError> {
    let mut settings = settings(config)?;
    if let (None, Some(root)) = (&args.daemon.daemon, &args.root) {
        if !sign {
            settings.engines.signing_key_file = None;
            settings.engines.publish.clear();
        }
        let origins = Origins::unguarded(settings.origins)
            .map_err(|error| CliError::new(error.kind(), format!("origins: {error}")))?;
        let of_no_use = |error: crate::engines::EngineError| {
            CliError::new(error.kind(), format!("the root {} is of no use: {error}", root.display()))
        };
        return Ok(Arc::new(LocalLibrary::open(root, settings.engines, origins).await.map_err(of_no_use)?));
    }
    let trust = Trust::new(&settings.engines).map_err(|error| CliError::new(error.kind(), error.to_string()))?;
    let none = "there is no daemon and no --root, so that there are no bundles";
    let mut why = CliError::new(ErrorKind::Unavailable, none.to_owned());
    for client in candidates(&args.daemon)? {
        // One that hangs is treated as none.
        match answered(&client, patience(&args.daemon), client.node()).await {
            Ok(_) => return Ok(Arc::new(DaemonLibrary::new(client).with_trust(trust))),
            Err(error) => {
                why = CliError::new(ErrorKind::Unavailable, format!("the daemon {client} is of no use: {error:#}"));
            }
        }
    }
    Err(why)
}

//! The fingerprint of a command: every fact that decides whether what another run has compiled may be used by this one, taken
//! before the command is started and without importing anything of it. Detectors look at a [`Scene`] and add facts; the table of
//! [roles](crate::model::engine::rule) then makes a key for each kind of bundle out of them.

mod arguments;
mod argv;
mod cpu;
mod discreet;
mod environment;
mod facts;
mod gpu;
mod model;
mod named;
mod output;
mod packages;
mod paths;
mod python;
mod scene;
mod source;
mod toolchain;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

pub use facts::{Fact, Facts};
pub use gpu::{FactsFileError, Gpu, Gpus};
pub use scene::Scene;

use self::arguments::Arguments;
use super::profile::{Profile, Ready};
use super::roots::{Root, roots};
use super::secrets::{Secrets, is_searched, secrets_of};
use crate::model::Secret;
use crate::model::engine::{BundleKind, CUDA_CACHE, Circumstances, EngineKey, Field, KeyError, rule};

/// What somebody who takes a fingerprint says beside the command.
#[derive(Clone, Debug, Default)]
pub struct Asked {
    /// `--engine`: a profile's name; `None` finds one.
    pub engine: Option<String>,
    /// `--gpu-facts`
    pub gpu_facts: Option<PathBuf>,
    /// `--cache-salt`
    pub salt: Option<String>,
    /// The driver must be the same.
    pub strict_driver: bool,
    /// `--cache-dir NAME=PATH`: directories beside the profile's.
    pub directories: Vec<super::profile::Directory>,
}

/// A command that is understood.
#[derive(Clone, Debug)]
pub struct Fingerprint {
    /// How its engine works.
    pub profile: Profile,
    /// Where it keeps what it compiles.
    pub roots: Vec<Root>,
    /// Which node of its replica this is.
    pub node_rank: u32,
    /// Everything found.
    pub facts: Facts,
    /// Credentials that the command is given, by the variables and options that give them: no bundle may have them.
    pub secrets: Vec<(String, Secret)>,
    circumstances: Circumstances,
    /// The port that it will answer on, if it says.
    port: Option<u16>,
}

/// Why there is no fingerprint.
#[derive(Debug, thiserror::Error)]
pub enum FingerprintError {
    /// No profile has this name.
    #[error("there is no profile `{name}`: there are {known}")]
    Profile {
        /// What was asked for.
        name: String,
        /// What there is.
        known: String,
    },
    /// No profile is for this command.
    #[error("no profile is for `{0}`; name one with --engine, or give its directories with --cache-dir NAME=PATH")]
    Unknown(String),
    /// The facts file is of no use.
    #[error(transparent)]
    Facts(#[from] FactsFileError),
    /// More credentials than can be looked for.
    #[error(transparent)]
    Secrets(#[from] super::EngineError),
}

// === impl FingerprintError ===

impl FingerprintError {
    /// What it means to whoever has to act.
    #[must_use]
    pub fn kind(&self) -> crate::base::ErrorKind {
        match self {
            Self::Profile { .. } | Self::Unknown(_) => crate::base::ErrorKind::Invalid,
            Self::Facts(error) => error.kind(),
            Self::Secrets(error) => error.kind(),
        }
    }
}

// === impl Fingerprint ===

impl Fingerprint {
    /// Takes it. Blocks: files are read, a compiler or an interpreter may be asked for its version.
    ///
    /// # Errors
    /// [`FingerprintError`]; what merely could not be found out is a fact that is unknown, and no error.
    pub fn take(scene: &Scene, asked: &Asked, profiles: &[Profile]) -> Result<Self, FingerprintError> {
        let mut facts = Facts::default();
        // Which profile it is depends on the packages, and whether an interpreter is missed on the profile.
        let mut unread = Facts::default();
        let python = python::detect(scene, false, &mut unread);
        let on_gpu = gpu::detect(scene, asked.gpu_facts.as_deref(), toolchain::torch(scene, &python), &mut facts)?;
        let mut arguments = Arguments::parse(scene, &python);
        let mut secrets = secrets_of(scene.environment.clone());
        let given = discreet::credentials(&arguments).into_iter().filter(|(_, value)| is_searched(value));
        secrets.extend(given.map(|(name, value)| (name, Secret::new(value))));
        let mut profile = choose(asked, profiles, scene, &arguments, &python)?;
        profile.directories.extend(asked.directories.iter().cloned());
        let python = if profile.python && python.program.is_none() {
            python::detect(scene, true, &mut facts)
        } else {
            facts.0.extend(unread.0);
            python
        };
        toolchain::detect(scene, &python, &mut facts);
        cpu::detect(scene, &mut facts);
        let port = profile.ready.as_ref().and_then(|ready| arguments.value(&ready.port_arguments)?.parse().ok());
        let node_rank = model::detect(scene, &mut arguments, &profile, &mut facts);
        let roots = roots(scene, &profile);
        let caches: Vec<PathBuf> = roots.iter().map(|root| root.path.clone()).collect();
        argv::detect(scene, &python, &arguments, &profile, &caches, &mut facts);
        environment::detect(scene, &mut facts);
        paths(scene, &profile, &roots, &mut facts);
        if let Some(salt) = &asked.salt {
            facts.know("salt", facts::hidden(salt), "--cache-salt");
        }
        let circumstances = Circumstances {
            on_cpu: !on_gpu,
            strict_driver: asked.strict_driver || scene.variable(CUDA_CACHE).is_some(),
            memory_compiled_in: profile.memory_compiled_in
                || profile.memory_compiled_in_if.iter().any(|name| scene.is_on(name)),
            weights_compiled_in: profile.weights_compiled_in,
        };
        if profile.weights_compiled_in {
            weights(scene, &mut facts);
        }
        facts.hide(&Secrets::new(&secrets)?);
        Ok(Self { profile, roots, node_rank, facts, secrets, circumstances, port })
    }

    /// The key of its bundle of a kind.
    ///
    /// # Errors
    /// [`KeyError`] when there is more than a key holds.
    pub fn key(&self, kind: BundleKind) -> Result<EngineKey, KeyError> {
        let fields = self.facts.0.iter().filter_map(|(name, fact)| {
            let role = rule(name, kind, fact.value.is_some(), self.circumstances)?;
            Some((name.clone(), Field { value: fact.value.clone(), role, from: fact.from.clone() }))
        });
        let fields: BTreeMap<String, Field> = fields.collect();
        EngineKey::new(kind, &self.profile.name, self.node_rank, fields)
    }

    /// How it says that it is ready, with the port that it was given.
    #[must_use]
    pub fn ready(&self) -> Option<Ready> {
        let mut ready = self.profile.ready.clone()?;
        ready.port = self.port.or(ready.port);
        Some(ready)
    }
}

fn choose(
    asked: &Asked,
    profiles: &[Profile],
    scene: &Scene,
    arguments: &Arguments,
    python: &python::Interpreter,
) -> Result<Profile, FingerprintError> {
    if let Some(name) = &asked.engine {
        return profiles.iter().find(|profile| profile.name == *name).cloned().ok_or_else(|| {
            let known: Vec<&str> = profiles.iter().map(|profile| profile.name.as_str()).collect();
            FingerprintError::Profile { name: name.chars().take(80).collect(), known: known.join(", ") }
        });
    }
    let program = arguments.program.as_deref().unwrap_or_default();
    let name = if arguments.module { program } else { program.rsplit('/').next().unwrap_or_default() };
    let by_command = profiles.iter().find(|profile| profile.fits(name, arguments.module));
    let by_package = || {
        let installed = |profile: &&Profile| profile.packages.iter().any(|name| python.packages.contains_key(name));
        profiles.iter().find(installed)
    };
    let by_directory =
        || profiles.iter().find(|profile| profile.name == "generic-dir" && !asked.directories.is_empty());
    let found = by_command.or_else(by_package).or_else(by_directory);
    found.cloned().ok_or_else(|| {
        FingerprintError::Unknown(scene.argv.first().map(|word| word.chars().take(80).collect()).unwrap_or_default())
    })
}

fn paths(scene: &Scene, profile: &Profile, roots: &[Root], facts: &mut Facts) {
    facts.know("path.home", scene.variable("HOME").unwrap_or("none"), "environment");
    facts.know("path.xdg_cache", scene.variable("XDG_CACHE_HOME").unwrap_or("none"), "environment");
    if !profile.relocatable {
        for root in roots {
            facts.know(format!("path.cache_root.{}", root.name), root.path.display().to_string(), "environment");
        }
    }
}

/// What preheat's own manifest, beside a model, says of its weights.
fn weights(scene: &Scene, facts: &mut Facts) {
    let unknown = "the model directory has no preheat-manifest.json (`preheat manifest DIR` writes one)";
    let model = facts.value("model.reference").map(|model| scene.absolute(Path::new(model)));
    let manifest = model.and_then(|model| std::fs::read(scene.at(model).join(crate::model::Manifest::FILE_NAME)).ok());
    let digest = manifest.and_then(|json| Some(crate::model::Manifest::parse(&json).ok()?.digest().to_string()));
    facts.know_or_miss("model.weights", digest, "preheat-manifest.json", unknown);
}

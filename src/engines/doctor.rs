//! What keeps a command from being warm, told before it is started: what makes each start another one to its engine, what cannot
//! be found out about it, and what would be looked for in vain.

use serde::Serialize;

use super::fingerprint::{Fingerprint, Scene};
use crate::model::engine::BundleKind;

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Gravity {
    /// Nothing will be restored, or nothing of it used.
    Blocks,
    /// Something will be compiled again.
    Costs,
    /// Worth knowing.
    Note,
}

/// One thing that was found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// How bad it is.
    pub gravity: Gravity,
    /// A word for scripts.
    pub check: &'static str,
    /// What it is about: a variable, a path, a field.
    pub subject: String,
    /// What is wrong with it.
    pub detail: String,
    /// What to do.
    pub remedy: String,
}

/// Variables that vLLM puts into its own key, and that differ from pod to pod.
const VOLATILE: [&str; 17] = [
    "VLLM_LOOPBACK_IP",
    "VLLM_NIXL_SIDE_CHANNEL_HOST",
    "VLLM_NIXL_SIDE_CHANNEL_PORT",
    "VLLM_EC_SIDE_CHANNEL_HOST",
    "VLLM_EC_SIDE_CHANNEL_PORT",
    "VLLM_P2P_SIDE_CHANNEL_HOST",
    "VLLM_P2P_SIDE_CHANNEL_PORT",
    "VLLM_MOONCAKE_BOOTSTRAP_PORT",
    "VLLM_RAY_BUNDLE_INDICES",
    "VLLM_RAY_DP_PLACEMENT_NODE_IPS",
    "VLLM_PROCESS_NAME_PREFIX",
    "VLLM_NCCL_SO_PATH",
    "VLLM_CUDART_SO_PATH",
    "VLLM_HOST_IP",
    "VLLM_INSTANCE_ID",
    "MOONCAKE_REQUESTER_LOCAL_HOSTNAME",
    "MOONCAKE_PREFERRED_SEGMENT",
];

/// Switches that turn a cache off, or a miss into an end.
const SWITCHES: [(&str, Gravity, &str); 6] = [
    ("VLLM_DISABLE_COMPILE_CACHE", Gravity::Blocks, "vLLM reads and writes no compile cache"),
    ("TORCHINDUCTOR_FORCE_DISABLE_CACHES", Gravity::Blocks, "Inductor reads and writes no cache"),
    ("TORCH_COMPILE_DISABLE", Gravity::Blocks, "nothing is compiled"),
    ("TORCHINDUCTOR_FX_GRAPH_CACHE_DISABLE", Gravity::Blocks, "Inductor keeps no graphs"),
    ("VLLM_FORCE_AOT_LOAD", Gravity::Costs, "a failed load ends the engine, instead of being compiled anew"),
    ("FLASHINFER_DISABLE_JIT", Gravity::Note, "a kernel that is not there ends the engine, instead of being compiled"),
];

/// File systems on which engines' locks hold on one node only.
const SHARED: [&str; 9] = ["nfs", "nfs4", "cifs", "smb3", "lustre", "ceph", "gpfs", "9p", "fuse.glusterfs"];

/// Looks at a command that is understood.
#[must_use]
pub fn examine(scene: &Scene, fingerprint: &Fingerprint) -> Vec<Finding> {
    let mut found = Vec::new();
    unknown(fingerprint, &mut found);
    environment(scene, fingerprint, &mut found);
    super::volatile::arguments(scene, fingerprint, &mut found);
    model(scene, fingerprint, &mut found);
    directories(scene, fingerprint, &mut found);
    if fingerprint.facts.value("toolchain.gcc") == Some("none") && fingerprint.facts.value("gpu.name") == Some("none") {
        found.push(Finding {
            gravity: Gravity::Blocks,
            check: "compiler",
            subject: "g++".to_owned(),
            detail: "there is no C++ compiler; on a CPU even a warm start asks it for its version".to_owned(),
            remedy: "install g++ into the image".to_owned(),
        });
    }
    found.sort_by(|one, other| {
        (one.gravity, one.check, &one.subject).cmp(&(other.gravity, other.check, &other.subject))
    });
    found
}

fn unknown(fingerprint: &Fingerprint, found: &mut Vec<Finding>) {
    let mut seen = Vec::new();
    for kind in BundleKind::ALL {
        let Ok(key) = fingerprint.key(kind) else { continue };
        for (field, why) in key.unusable() {
            if !seen.contains(&field.to_owned()) {
                seen.push(field.to_owned());
                found.push(Finding {
                    gravity: Gravity::Blocks,
                    check: "unknown",
                    subject: field.to_owned(),
                    detail: format!("it decides whether something fits, and is not known: {why}"),
                    remedy: "make it known; nothing is restored or captured on a guess".to_owned(),
                });
            }
        }
    }
}

fn environment(scene: &Scene, fingerprint: &Fingerprint, found: &mut Vec<Finding>) {
    if fingerprint.profile.name == "vllm" {
        for name in VOLATILE.into_iter().filter(|name| scene.environment.contains_key(*name)) {
            found.push(Finding {
                gravity: Gravity::Blocks,
                check: "volatile-environment",
                subject: name.to_owned(),
                detail:
                    "vLLM hashes it into its own key, and it differs from pod to pod: each start is another one to it"
                        .to_owned(),
                remedy: "take it out of the pod's specification, or give it the same value everywhere".to_owned(),
            });
        }
    }
    for (name, gravity, detail) in SWITCHES {
        if scene.is_on(name) {
            let remedy = "take it out of the environment".to_owned();
            found.push(Finding {
                gravity,
                check: "switch",
                subject: name.to_owned(),
                detail: detail.to_owned(),
                remedy,
            });
        }
    }
}

fn model(scene: &Scene, fingerprint: &Fingerprint, found: &mut Vec<Finding>) {
    let Some(model) = fingerprint.facts.value("model.reference") else { return };
    if let Some(part) = varying(scene, model) {
        found.push(Finding {
            gravity: Gravity::Blocks,
            check: "model-path",
            subject: model.to_owned(),
            detail: format!(
                "engines hash the path of the model as it is written, and `{part}` in it is not the same at each start"
            ),
            remedy: "mount the weights at one path on every node (`preheat fetch --to DIR`)".to_owned(),
        });
    }
    if fingerprint.profile.name == "vllm" && std::path::Path::new(model).is_relative() && scene.at(model).is_dir() {
        found.push(Finding {
            gravity: Gravity::Costs,
            check: "model-path",
            subject: model.to_owned(),
            detail: "the path is relative, and vLLM hashes it as it is written".to_owned(),
            remedy: "give the same absolute path everywhere".to_owned(),
        });
    }
}

fn directories(scene: &Scene, fingerprint: &Fingerprint, found: &mut Vec<Finding>) {
    for root in &fingerprint.roots {
        let path = root.path.display().to_string();
        if !fingerprint.profile.relocatable
            && let Some(part) = varying(scene, &path)
        {
            found.push(Finding {
                gravity: Gravity::Blocks,
                check: "cache-path",
                subject: path.clone(),
                detail: format!("what is compiled has its path in it, and `{part}` is not the same at each start"),
                remedy: format!(
                    "set {} to the same path everywhere",
                    root.variable.as_ref().map_or("it", |(name, _)| name)
                ),
            });
        }
        if let Some(kind) = file_system(scene, &path).filter(|kind| SHARED.contains(&kind.as_str())) {
            found.push(Finding {
                gravity: Gravity::Costs,
                check: "shared-file-system",
                subject: path.clone(),
                detail: format!("it is on {kind}, where engines' locks do not hold between nodes"),
                remedy: "give each node its own; preheat shares what is finished".to_owned(),
            });
        }
        if std::fs::read_dir(scene.at(&root.path)).is_ok_and(|mut entries| entries.next().is_some()) {
            found.push(Finding {
                gravity: Gravity::Note,
                check: "not-empty",
                subject: path,
                detail: "it has files that preheat did not put there: a start without a bundle uses them, and is not captured".to_owned(),
                remedy: "empty it, or `preheat run --fresh`".to_owned(),
            });
        }
    }
}

/// A part of a path that belongs to one pod, process or digest.
pub(super) fn varying(scene: &Scene, path: &str) -> Option<String> {
    let names = ["HOSTNAME", "POD_NAME", "POD_UID", "NODE_NAME", "POD_IP"];
    let known = names.iter().filter_map(|name| scene.variable(name)).filter(|value| value.len() >= 3);
    if let Some(value) = known.into_iter().find(|value| path.split('/').any(|part| part.contains(value))) {
        return Some(value.to_owned());
    }
    let hex = |part: &&str| part.len() >= 32 && part.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'-');
    // A snapshot of a hub's cache is the same on every node.
    let mut parts = path.split('/');
    let mut last = "";
    parts
        .find(|part| {
            let digest = hex(part) && last != "snapshots";
            last = part;
            digest || part.starts_with("tmp.") || part.starts_with("tmp") && part.len() == 11
        })
        .map(str::to_owned)
}

/// The type of the file system that a path is on, by the longest mount point above it.
fn file_system(scene: &Scene, path: &str) -> Option<String> {
    let mounts = scene.read("/proc/self/mounts")?;
    let lines = mounts.lines().filter_map(|line| {
        let mut words = line.split(' ');
        let (_, point, kind) = (words.next()?, words.next()?, words.next()?);
        let above =
            path.strip_prefix(point.trim_end_matches('/')).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
        above.then(|| (point.len(), kind.to_owned()))
    });
    lines.max_by_key(|(length, _)| *length).map(|(_, kind)| kind)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engines::fingerprint::Asked;
    use crate::engines::profile::built_in;

    fn checks(environment: &[(&str, &str)], argv: &[&str]) -> Vec<(&'static str, String)> {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(root.path().join("proc/self")).unwrap();
        std::fs::write(root.path().join("proc/self/mounts"), "x / ext4 rw\ny /shared nfs4 rw\n").unwrap();
        let scene = Scene {
            root: root.path().into(),
            environment: environment.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect(),
            argv: argv.iter().map(|word| (*word).to_owned()).collect(),
            directory: "/".into(),
        };
        let asked = Asked { engine: Some("vllm".to_owned()), ..Asked::default() };
        let fingerprint = Fingerprint::take(&scene, &asked, &built_in()).unwrap();
        examine(&scene, &fingerprint).into_iter().map(|finding| (finding.check, finding.subject)).collect()
    }

    #[test]
    fn what_differs_from_pod_to_pod_is_named() {
        let found = checks(
            &[
                ("VLLM_NIXL_SIDE_CHANNEL_HOST", "10.0.0.7"),
                ("HOSTNAME", "vllm-7f9c-abcde"),
                ("VLLM_CACHE_ROOT", "/cache/vllm-7f9c-abcde"),
                ("TRITON_CACHE_DIR", "/shared/triton"),
                ("VLLM_DISABLE_COMPILE_CACHE", "1"),
            ],
            &["vllm", "serve", "/models/0123456789abcdef0123456789abcdef"],
        );
        for (check, subject) in [
            ("volatile-environment", "VLLM_NIXL_SIDE_CHANNEL_HOST"),
            ("cache-path", "/cache/vllm-7f9c-abcde"),
            ("shared-file-system", "/shared/triton"),
            ("switch", "VLLM_DISABLE_COMPILE_CACHE"),
            ("model-path", "/models/0123456789abcdef0123456789abcdef"),
            ("unknown", "python.version"),
        ] {
            assert!(found.contains(&(check, subject.to_owned())), "{check} {subject} in {found:?}");
        }
    }

    #[test]
    fn a_plain_command_is_not_scolded() {
        let commit = "0123456789abcdef0123456789abcdef01234567";
        let model = format!("/hub/models--a--b/snapshots/{commit}");
        let found = checks(&[("VLLM_DISABLE_COMPILE_CACHE", "0")], &["vllm", "serve", &model]);
        let scolded = [
            "volatile-environment",
            "cache-path",
            "model-path",
            "switch",
            "shared-file-system",
            "volatile-argument",
            "output-argument",
        ];
        assert!(found.iter().all(|(check, _)| !scolded.contains(check)), "{found:?}");
    }
}

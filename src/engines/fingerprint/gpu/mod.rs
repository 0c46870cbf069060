//! Facts of the GPUs, from a chain: the first source that has an answer is believed, alone, and the key says which it was.
//!
//! A facts file that somebody gives (for tests, and for machines where the rest cannot know); NVML, the driver's own library; the
//! driver's files under `/proc`; the labels that GPU Feature Discovery gives nodes; the devices of which none of them tells. No source
//! at all: a machine without a GPU.
//! A source that is there and cannot answer is told, and never becomes "no GPU".

mod devices;
mod labels;
mod nvml;
mod procfs;
mod stated;

use std::path::Path;

use serde::{Deserialize, Serialize};

pub use stated::FactsFileError;

use super::facts::Facts;
use super::scene::Scene;
use super::toolchain::Torch;

/// One GPU, or one slice of one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Gpu {
    /// The name as NVML has it, e.g. `NVIDIA H100 80GB HBM3`.
    pub name: String,
    /// Of a slice: its profile, e.g. `1g.10gb`.
    #[serde(default)]
    pub mig: Option<String>,
    /// Compute capability, e.g. `9.0`.
    #[serde(default)]
    pub capability: Option<String>,
    /// Multiprocessors.
    #[serde(default)]
    pub sm_count: Option<u32>,
    /// Memory in MiB.
    #[serde(default)]
    pub memory_mib: Option<u64>,
    /// Version of the video BIOS.
    #[serde(default)]
    pub vbios: Option<String>,
    /// Whether memory is corrected.
    #[serde(default)]
    pub ecc: Option<bool>,
    /// `GPU-...` or `MIG-...`
    #[serde(default)]
    pub uuid: Option<String>,
}

/// What a source says.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Gpus {
    /// `nvidia`, or whoever makes them.
    #[serde(default)]
    pub vendor: Option<String>,
    /// Version of the driver.
    #[serde(default)]
    pub driver: Option<String>,
    /// Newest CUDA that the driver runs.
    #[serde(default)]
    pub driver_cuda: Option<String>,
    /// In the order of the driver; none: a machine without a GPU.
    pub gpus: Vec<Gpu>,
}

/// What one source of the chain has to say.
pub(super) enum Answer {
    /// There is no such source here.
    Absent,
    /// It is here, and cannot say.
    Silent(String),
    /// This.
    Found(Gpus),
}

/// Adds what there is to know; whether the command will see a GPU. `torch`: what the command's is built for, if it has one.
pub(super) fn detect(
    scene: &Scene,
    stated: Option<&Path>,
    torch: Option<Torch>,
    facts: &mut Facts,
) -> Result<bool, FactsFileError> {
    let (gpus, from) = match stated {
        Some(file) => (stated::read(file)?, crate::model::engine::FROM_FACTS),
        None => {
            if let Some(why) = devices::built_for(torch) {
                facts.miss("gpu.name", why);
                return Ok(true);
            }
            let chain: [(&str, &dyn Fn() -> Answer); 4] = [
                ("NVML", &|| nvml::ask(scene)),
                ("/proc/driver/nvidia", &|| procfs::ask(scene)),
                ("node labels", &|| labels::ask(scene)),
                ("/dev", &|| devices::ask(scene, torch)),
            ];
            let mut silent = Vec::new();
            let found = chain.into_iter().find_map(|(name, ask)| match ask() {
                Answer::Found(gpus) => Some((gpus, name)),
                Answer::Silent(why) => {
                    silent.push(format!("{name}: {why}"));
                    None
                }
                Answer::Absent => None,
            });
            match found {
                Some(found) => found,
                None if silent.is_empty() => (Gpus::default(), "no driver"),
                None => {
                    facts.miss("gpu.name", silent.join("; "));
                    return Ok(true);
                }
            }
        }
    };
    Ok(describe(scene, &gpus, from, facts))
}

fn describe(scene: &Scene, all: &Gpus, from: &str, facts: &mut Facts) -> bool {
    let (visible, ordinals) = match visible(scene, &all.gpus) {
        Ok(visible) => visible,
        Err(why) => {
            facts.miss("gpu.ordinals", why);
            (all.gpus.iter().collect(), String::new())
        }
    };
    let Some(first) = visible.first() else {
        facts.know("gpu.vendor", "none", from);
        facts.know("gpu.name", "none", from);
        return false;
    };
    if !ordinals.is_empty() {
        facts.know("gpu.ordinals", ordinals, from);
    }
    facts.know("gpu.vendor", all.vendor.as_deref().unwrap_or("nvidia"), from);
    // Labels cannot have blanks, so that names are compared without.
    facts.know("gpu.name", first.name.split_whitespace().collect::<Vec<_>>().join("-"), from);
    facts.know("gpu.mig", first.mig.as_deref().unwrap_or("none"), from);
    facts.know_or_miss("gpu.capability", first.capability.clone(), from, &format!("{from} does not say"));
    facts.know("gpu.count", visible.len().to_string(), from);
    let others = visible.iter().filter(|gpu| !alike(gpu, first)).count();
    // Which of them a rank gets is not known here.
    match others {
        0 => facts.know("gpu.others", "none", from),
        _ => facts.miss("gpu.others", format!("{others} of the visible GPUs are not like the first; show one kind")),
    }
    let unsaid = format!("{from} does not say");
    facts.know_or_miss("gpu.sm_count", first.sm_count.map(|count| count.to_string()), from, &unsaid);
    facts.know_or_miss("gpu.memory", first.memory_mib.map(|mib| format!("{mib} MiB")), from, &unsaid);
    facts.know_or_miss("gpu.driver", all.driver.clone(), from, &unsaid);
    for (name, value) in [
        ("gpu.driver_cuda", all.driver_cuda.clone()),
        ("gpu.vbios", first.vbios.clone()),
        ("gpu.ecc", first.ecc.map(|ecc| if ecc { "on" } else { "off" }.to_owned())),
    ] {
        if let Some(value) = value {
            facts.know(name, value, from);
        }
    }
    true
}

/// The GPUs that the command will see, and their ordinals as it will count them.
fn visible<'a>(scene: &Scene, all: &'a [Gpu]) -> Result<(Vec<&'a Gpu>, String), String> {
    let normal = |gpus: Vec<&'a Gpu>| {
        let ordinals: Vec<String> = (0..gpus.len()).map(|ordinal| ordinal.to_string()).collect();
        (gpus, ordinals.join(","))
    };
    let Some(list) = scene.environment.get("CUDA_VISIBLE_DEVICES") else { return Ok(normal(all.iter().collect())) };
    // CUDA counts the fastest first unless it is told otherwise; which that is matters where they differ.
    let counted =
        all.iter().all(|gpu| alike(gpu, &all[0])) || scene.variable("CUDA_DEVICE_ORDER") == Some("PCI_BUS_ID");
    let mut chosen: Vec<&Gpu> = Vec::new();
    for word in list.split(',').map(str::trim) {
        // CUDA stops at the first that is none.
        if word.is_empty() || word == "-1" || word.eq_ignore_ascii_case("nodevfiles") {
            break;
        }
        let found = match word.parse::<usize>() {
            Ok(_) if !counted => {
                return Err("CUDA_VISIBLE_DEVICES counts GPUs that differ, the fastest first; set CUDA_DEVICE_ORDER=PCI_BUS_ID, or \
                            name them by UUID"
                    .to_owned());
            }
            Ok(ordinal) => all.get(ordinal),
            Err(_) => {
                let mut named = all.iter().filter(|gpu| gpu.uuid.as_ref().is_some_and(|uuid| uuid.starts_with(word)));
                named.next().filter(|_| named.next().is_none())
            }
        };
        let found =
            found.ok_or_else(|| format!("CUDA_VISIBLE_DEVICES names `{word}`, which is not one of the GPUs found"))?;
        if chosen.iter().any(|one| std::ptr::eq(*one, found)) {
            return Err(format!("CUDA_VISIBLE_DEVICES names `{word}` twice"));
        }
        chosen.push(found);
    }
    Ok(normal(chosen))
}

/// Whether two are of one kind: what is compiled for one is good for the other.
fn alike(one: &Gpu, other: &Gpu) -> bool {
    let kind = |gpu: &Gpu| Gpu { uuid: None, vbios: None, ecc: None, ..gpu.clone() };
    kind(one) == kind(other)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gpu(name: &str, uuid: &str) -> Gpu {
        let uuid = Some(uuid.to_owned());
        Gpu { name: name.to_owned(), capability: Some("9.0".to_owned()), uuid, ..Gpu::default() }
    }

    fn take(visible: Option<&str>, gpus: Vec<Gpu>) -> (Facts, bool) {
        take_by(None, visible, gpus)
    }

    fn take_by(order: Option<&str>, visible: Option<&str>, gpus: Vec<Gpu>) -> (Facts, bool) {
        let environment = [("CUDA_VISIBLE_DEVICES", visible), ("CUDA_DEVICE_ORDER", order)];
        let environment =
            environment.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?.to_owned())));
        let scene =
            Scene { root: "/".into(), environment: environment.collect(), argv: Vec::new(), directory: "/".into() };
        let mut facts = Facts::default();
        let on_gpu = describe(&scene, &Gpus { gpus, ..Gpus::default() }, "test", &mut facts);
        (facts, on_gpu)
    }

    #[test]
    fn what_is_visible_counts_and_where_it_sits_does_not() {
        let two = || vec![gpu("NVIDIA H100 NVL", "GPU-aa"), gpu("NVIDIA H100 NVL", "GPU-bb")];
        let (first, _) = take(Some("0"), two());
        for other in ["1", "GPU-bb", "1,-1,0"] {
            assert_eq!(take(Some(other), two()).0, first, "{other}");
        }
        assert_eq!(first.value("gpu.count"), Some("1"));
        assert_eq!(first.value("gpu.name"), Some("NVIDIA-H100-NVL"));
        let (both, _) = take(None, two());
        assert_eq!((both.value("gpu.count"), both.value("gpu.ordinals")), (Some("2"), Some("0,1")));
        for strange in ["7", "GPU-cc", "GPU-", "0,0"] {
            let (facts, _) = take(Some(strange), two());
            assert_eq!(facts.value("gpu.ordinals"), None, "{strange}");
            assert!(facts.0.contains_key("gpu.ordinals"));
        }
    }

    #[test]
    fn none_visible_is_a_machine_without() {
        for none in ["", "-1"] {
            let (facts, on_gpu) = take(Some(none), vec![gpu("X", "GPU-aa")]);
            assert!(!on_gpu && facts.value("gpu.name") == Some("none"));
        }
    }

    #[test]
    fn ordinals_of_gpus_that_differ_need_an_order() {
        let two = || vec![gpu("NVIDIA L40S", "GPU-aa"), gpu("NVIDIA H100 NVL", "GPU-bb")];
        let (unknown, _) = take(Some("0"), two());
        assert!(unknown.0["gpu.ordinals"].value.is_none() && unknown.0["gpu.ordinals"].from.contains("PCI_BUS_ID"));
        for order in [None, Some("FASTEST_FIRST")] {
            assert_eq!(take_by(order, Some("1"), two()).0.0["gpu.ordinals"].value, None);
            assert_eq!(take_by(order, Some("GPU-bb"), two()).0.value("gpu.name"), Some("NVIDIA-H100-NVL"));
        }
        assert_eq!(take_by(Some("PCI_BUS_ID"), Some("0"), two()).0.value("gpu.name"), Some("NVIDIA-L40S"));
    }

    #[test]
    fn a_mixture_is_not_guessed_at() {
        let (facts, _) = take(None, vec![gpu("NVIDIA H100 NVL", "GPU-aa"), gpu("NVIDIA L40S", "GPU-bb")]);
        assert_eq!(facts.0["gpu.others"].value, None);
    }
}

//! The driver's files under `/proc`. They name the GPU and the driver, and neither its compute capability nor its slices; so
//! where NVML cannot be asked, a key is usable only as far as these facts go.

use super::super::scene::Scene;
use super::{Answer, Gpu, Gpus};

const DIRECTORY: &str = "/proc/driver/nvidia";

pub(super) fn ask(scene: &Scene) -> Answer {
    let Ok(entries) = std::fs::read_dir(scene.at(DIRECTORY).join("gpus")) else { return Answer::Absent };
    // Ordinals of CUDA are by bus where nothing else is asked for.
    let mut buses: Vec<_> = entries.filter_map(|entry| Some(entry.ok()?.file_name())).collect();
    buses.sort();
    let mut gpus = Vec::new();
    for bus in buses {
        let path = std::path::Path::new(DIRECTORY).join("gpus").join(&bus).join("information");
        let Some(text) = scene.read(&path) else { continue };
        let line = |name: &str| {
            let lines = text.lines().filter_map(|line| line.split_once(':'));
            lines.map(|(key, value)| (key.trim(), value.trim())).find(|(key, _)| *key == name).map(|(_, value)| value)
        };
        let Some(name) = line("Model") else { continue };
        let known = |name: &str| line(name).filter(|value| !value.contains("??")).map(str::to_owned);
        gpus.push(Gpu { name: name.to_owned(), vbios: known("Video BIOS"), uuid: known("GPU UUID"), ..Gpu::default() });
    }
    if gpus.is_empty() {
        return Answer::Absent;
    }
    if sliced(scene) {
        return Answer::Silent("the GPU is cut into slices, of which it does not tell".to_owned());
    }
    Answer::Found(Gpus { vendor: Some("nvidia".to_owned()), driver: driver(scene), driver_cuda: None, gpus })
}

/// Whether any GPU has instances of the multi-instance kind.
fn sliced(scene: &Scene) -> bool {
    let Ok(entries) = std::fs::read_dir(scene.at(DIRECTORY).join("capabilities")) else { return false };
    entries.flatten().any(|gpu| {
        let instances = std::fs::read_dir(gpu.path().join("mig"));
        instances.is_ok_and(|found| found.flatten().any(|one| one.file_name().to_string_lossy().starts_with("gi")))
    })
}

/// The version in `NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.65.06  ...`.
fn driver(scene: &Scene) -> Option<String> {
    let text = scene.read(format!("{DIRECTORY}/version"))?;
    let line = text.lines().find(|line| line.starts_with("NVRM version:"))?;
    let version = |word: &&str| word.contains('.') && word.split('.').all(|part| part.parse::<u32>().is_ok());
    line.split_whitespace().find(version).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_names_the_gpu_and_the_driver_and_knows_what_it_cannot_say() {
        let root = tempfile::tempdir().unwrap();
        let scene = Scene {
            root: root.path().into(),
            environment: std::collections::BTreeMap::new(),
            argv: Vec::new(),
            directory: "/".into(),
        };
        assert!(matches!(ask(&scene), Answer::Absent));
        let nvidia = root.path().join("proc/driver/nvidia");
        let gpu = nvidia.join("gpus/0000:0a:00.0");
        std::fs::create_dir_all(&gpu).unwrap();
        std::fs::write(
            gpu.join("information"),
            "Model: \t\t NVIDIA H100 PCIe\nIRQ:   \t\t 1\nGPU UUID: \t GPU-1\nVideo BIOS: \t ??.??.??.??.??\n",
        )
        .unwrap();
        std::fs::write(
            nvidia.join("version"),
            "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build\nGCC version: 12.3.0\n",
        )
        .unwrap();
        let Answer::Found(gpus) = ask(&scene) else { panic!("a GPU is there") };
        assert_eq!(gpus.driver.as_deref(), Some("580.65.06"));
        let expected = Gpu { name: "NVIDIA H100 PCIe".to_owned(), uuid: Some("GPU-1".to_owned()), ..Gpu::default() };
        assert_eq!(gpus.gpus, [expected]);
        std::fs::create_dir_all(nvidia.join("capabilities/gpu0/mig/gi3")).unwrap();
        assert!(matches!(ask(&scene), Answer::Silent(_)));
    }
}

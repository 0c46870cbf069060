//! Accelerators of other makers, and GPUs of NVIDIA without the driver's files: there is something that the command may compute on,
//! and nothing that tells one such from another. So it is never "no GPU". Device nodes decide, since they are what the command can
//! open; `/sys` shows the whole machine's in every container.

use super::super::scene::Scene;
use super::super::toolchain::Torch;
use super::Answer;

const REMEDY: &str = "--gpu-facts FILE says what is there, an empty list that nothing is";

/// Whether torch, if it is there, computes on GPUs of other makers: whoever has it built for them wants it to.
pub(super) fn built_for(torch: Option<Torch>) -> Option<String> {
    let torch = torch?;
    let maker = if torch.rocm { "ROCm" } else { torch.xpu.then_some("XPU")? };
    Some(format!("torch is built for {maker}, whose GPUs cannot be told apart; {REMEDY}"))
}

/// What is there. `torch`: one that is built for other things leaves GPUs of AMD and Intel alone.
pub(super) fn ask(scene: &Scene, torch: Option<Torch>) -> Answer {
    let names = |directory: &str| -> Vec<String> {
        let entries = std::fs::read_dir(scene.at(directory)).into_iter().flatten().flatten();
        let mut names: Vec<String> = entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    };
    let numbered = |name: &str, prefix: &str| {
        name.strip_prefix(prefix).is_some_and(|rest| !rest.is_empty() && rest.bytes().all(|byte| byte.is_ascii_digit()))
    };
    let vendor = |class: &str, name: &str| {
        let text = scene.read(format!("/sys/class/{class}/{name}/device/vendor"));
        text.map(|text| text.trim().to_ascii_lowercase()).unwrap_or_default()
    };
    let mut found = Vec::new();
    for name in names("/dev") {
        let what = match name.as_str() {
            "nvidiactl" | "dxg" => "a GPU of NVIDIA, without the driver's library and files",
            "kfd" if torch.is_none() => "a GPU of AMD",
            name if numbered(name, "nvidia") => "a GPU of NVIDIA, without the driver's library and files",
            name if numbered(name, "accel") => "an accelerator",
            name if numbered(name, "neuron") || numbered(name, "davinci") || numbered(name, "hl") => "an accelerator",
            _ => continue,
        };
        found.push(format!("/dev/{name} is {what}"));
    }
    for name in names("/dev/accel") {
        // An Intel processor's own unit, which nothing in torch uses.
        if numbered(&name, "accel") && !(torch.is_some() && vendor("accel", &name) == "0x8086") {
            found.push(format!("/dev/accel/{name} is an accelerator"));
        }
    }
    for name in names("/dev/dri").into_iter().filter(|name| numbered(name, "renderD") && torch.is_none()) {
        match vendor("drm", &name).as_str() {
            "0x1002" => found.push(format!("/dev/dri/{name} is a GPU of AMD")),
            "0x8086" => found.push(format!("/dev/dri/{name} is a GPU of Intel")),
            _ => {}
        }
    }
    match found.first() {
        Some(first) => Answer::Silent(format!("{first}, which cannot be told from another; {REMEDY}")),
        None => Answer::Absent,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_can_be_computed_on_is_seen_and_what_cannot_is_not() {
        let plain = Some(Torch { rocm: false, xpu: false });
        for (nodes, without_torch, with_torch) in [
            (&["dev/kfd", "dev/dri/renderD128"][..], true, false),
            (&["dev/nvidia0"], true, true),
            (&["dev/nvidiactl"], true, true),
            (&["dev/accel0"], true, true),
            (&["dev/accel/accel0"], true, true),
            (&["dev/neuron0"], true, true),
            (&["dev/davinci3"], true, true),
            (&["dev/null", "dev/nvidia-caps", "dev/accelerate", "dev/dri/card0"], false, false),
        ] {
            let root = tempfile::tempdir().unwrap();
            for node in nodes {
                let place = root.path().join(node);
                std::fs::create_dir_all(place.parent().unwrap()).unwrap();
                std::fs::write(place, "").unwrap();
            }
            let scene =
                Scene { root: root.path().into(), environment: [].into(), argv: Vec::new(), directory: "/".into() };
            for (torch, expected) in [(None, without_torch), (plain, with_torch)] {
                assert_eq!(matches!(ask(&scene, torch), Answer::Silent(_)), expected, "{nodes:?} {torch:?}");
            }
        }
        assert!(built_for(None).or(built_for(plain)).is_none());
        assert!(built_for(Some(Torch { rocm: true, xpu: false })).unwrap().contains("ROCm"));
        assert!(built_for(Some(Torch { rocm: false, xpu: true })).is_some());
    }

    #[test]
    fn a_screen_is_known_by_its_maker() {
        let root = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let place = root.path().join(path);
            std::fs::create_dir_all(place.parent().unwrap()).unwrap();
            std::fs::write(place, text).unwrap();
        };
        write("dev/dri/renderD128", "");
        write("dev/accel/accel0", "");
        let scene = Scene { root: root.path().into(), environment: [].into(), argv: Vec::new(), directory: "/".into() };
        let torch = Some(Torch { rocm: false, xpu: false });
        write("sys/class/accel/accel0/device/vendor", "0x8086\n");
        assert!(matches!(ask(&scene, torch), Answer::Absent));
        std::fs::remove_file(root.path().join("dev/accel/accel0")).unwrap();
        for (vendor, seen) in [("0x1002\n", true), ("0x8086\n", true), ("0x1af4\n", false)] {
            write("sys/class/drm/renderD128/device/vendor", vendor);
            assert_eq!(matches!(ask(&scene, None), Answer::Silent(_)), seen, "{vendor}");
        }
    }
}

//! NVML: the names that it gives are those that engines see.

use super::super::scene::Scene;
use super::{Answer, Gpu, Gpus};
use crate::sys::nvml::{Device, Library};

/// Where to look beside the loader's own paths.
const VARIABLE: &str = "PREHEAT_NVML";

pub(super) fn ask(scene: &Scene) -> Answer {
    let named = scene.variable(VARIABLE);
    // The library is this machine's, so that a scene elsewhere has none unless it names one.
    if named.is_none() && scene.root != std::path::Path::new("/") {
        return Answer::Absent;
    }
    let library = match Library::open(named) {
        Ok(Some(library)) => library,
        Ok(None) => return Answer::Absent,
        Err(why) => return Answer::Silent(why),
    };
    match library.devices() {
        Ok(devices) => Answer::Found(Gpus {
            vendor: Some("nvidia".to_owned()),
            driver: library.driver(),
            driver_cuda: library.driver_cuda(),
            gpus: devices.into_iter().map(of).collect(),
        }),
        Err(why) => Answer::Silent(why),
    }
}

fn of(device: Device) -> Gpu {
    // A slice is called after its GPU and its profile.
    let (name, mig) = match device.name.split_once(" MIG ") {
        Some((name, profile)) => (name.to_owned(), Some(profile.to_owned())),
        None => (device.name, None),
    };
    Gpu {
        name,
        mig,
        capability: device.capability.map(|(major, minor)| format!("{major}.{minor}")),
        sm_count: device.multiprocessors,
        memory_mib: device.memory.map(|bytes| bytes >> 20),
        vbios: device.vbios,
        ecc: device.ecc,
        uuid: device.uuid,
    }
}

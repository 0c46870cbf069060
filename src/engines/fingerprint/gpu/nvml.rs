//! NVML: the names that it gives are those that engines see. What it does not tell of whole GPUs, their multiprocessors, the driver's
//! CUDA library tells, where it is there.

use super::super::scene::Scene;
use super::{Answer, Gpu, Gpus};
use crate::sys::cuda;
use crate::sys::nvml::{Device, Library};

/// Where to look beside the loader's own paths.
const VARIABLE: &str = "PREHEAT_NVML";

/// The same for the driver's CUDA library.
const CUDA: &str = "PREHEAT_LIBCUDA";

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
        Ok(mut devices) => {
            count(scene, &mut devices);
            Answer::Found(Gpus {
                vendor: Some("nvidia".to_owned()),
                driver: library.driver(),
                driver_cuda: library.driver_cuda(),
                gpus: devices.into_iter().map(of).collect(),
            })
        }
        Err(why) => Answer::Silent(why),
    }
}

/// Fills multiprocessors in. A library that cannot be used (one for building only, say) leaves them unknown.
fn count(scene: &Scene, devices: &mut [Device]) {
    let named = scene.variable(CUDA);
    let elsewhere = named.is_none() && scene.root != std::path::Path::new("/");
    if elsewhere || devices.iter().all(|device| device.multiprocessors.is_some()) {
        return;
    }
    let counts = cuda::multiprocessors(named).unwrap_or_default();
    for device in devices.iter_mut().filter(|device| device.multiprocessors.is_none()) {
        device.multiprocessors = device.uuid.as_ref().and_then(|uuid| counts.get(uuid)).copied();
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

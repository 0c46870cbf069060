//! NVML by `dlopen`: the driver's library is on machines with the driver and nowhere else, so nothing is linked against it. Only
//! reading calls, and the library is shut down and closed again before the process goes on to anything else.

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};

use super::dynamic::Dynamic;

/// One GPU, or one slice of one, as NVML tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// Its name; of a slice with ` MIG ` and the profile after it.
    pub name: String,
    /// `GPU-...` or `MIG-...`
    pub uuid: Option<String>,
    /// Major, minor.
    pub capability: Option<(u32, u32)>,
    /// Multiprocessors; told of slices only ([`cuda`](super::cuda) tells of whole ones).
    pub multiprocessors: Option<u32>,
    /// Bytes.
    pub memory: Option<u64>,
    /// Version of the video BIOS.
    pub vbios: Option<String>,
    /// Whether memory is corrected.
    pub ecc: Option<bool>,
}

/// The library, initialised until it is dropped.
#[derive(Debug)]
pub struct Library {
    open: Dynamic,
}

#[cfg(feature = "nvml")]
const NAME: &str = "libnvidia-ml.so.1";
const SUCCESS: c_int = 0;
/// Longest string of any call used here.
const TEXT: usize = 96;

type Handle = *mut c_void;

#[repr(C)]
struct Memory {
    total: u64,
    free: u64,
    used: u64,
}

#[repr(C)]
struct Attributes {
    multiprocessors: c_uint,
    engines: [c_uint; 5],
    slices: [c_uint; 2],
    memory_mib: u64,
}

// === impl Library ===

impl Library {
    /// Opens `path`, or the driver's own; none where there is no such library.
    ///
    /// # Errors
    /// When it is there and cannot be used, in words.
    #[cfg(feature = "nvml")]
    pub fn open(path: Option<&str>) -> Result<Option<Self>, String> {
        let Some(open) = Dynamic::open(path.unwrap_or(NAME), false) else {
            return match path {
                Some(path) => Err(format!("{path} cannot be loaded")),
                None => Ok(None),
            };
        };
        let library = Self { open };
        let init = library.function("nvmlInit_v2").ok_or("it has no nvmlInit_v2")?;
        // SAFETY: nvmlInit_v2 takes nothing and returns a code.
        let code = unsafe { std::mem::transmute::<*mut c_void, extern "C" fn() -> c_int>(init)() };
        // Without a driver that runs there is nothing for the other sources to say either, but they may know why.
        if code == SUCCESS { Ok(Some(library)) } else { Err(format!("nvmlInit_v2 answers {code}")) }
    }

    /// This build does not look.
    ///
    /// # Errors
    /// None.
    #[cfg(not(feature = "nvml"))]
    pub fn open(_path: Option<&str>) -> Result<Option<Self>, String> {
        Ok(None)
    }

    /// Version of the driver.
    #[must_use]
    pub fn driver(&self) -> Option<String> {
        let call = self.function("nvmlSystemGetDriverVersion")?;
        // SAFETY: the documented signature is (char *, unsigned).
        let call = unsafe { std::mem::transmute::<*mut c_void, extern "C" fn(*mut c_char, c_uint) -> c_int>(call) };
        text(|buffer, length| call(buffer, length))
    }

    /// Newest CUDA that the driver runs.
    #[must_use]
    pub fn driver_cuda(&self) -> Option<String> {
        let call = self.function("nvmlSystemGetCudaDriverVersion_v2")?;
        // SAFETY: the documented signature is (int *).
        let call = unsafe { std::mem::transmute::<*mut c_void, extern "C" fn(*mut c_int) -> c_int>(call) };
        let mut version = 0;
        (call(&raw mut version) == SUCCESS).then(|| format!("{}.{}", version / 1000, version % 1000 / 10))
    }

    /// All devices in NVML's order; of a GPU that is cut up, its slices.
    ///
    /// # Errors
    /// Which call failed.
    pub fn devices(&self) -> Result<Vec<Device>, String> {
        let mut count = 0;
        self.number("nvmlDeviceGetCount_v2", &mut count)?;
        let mut devices = Vec::new();
        for index in 0..count {
            let gpu = self.by_index("nvmlDeviceGetHandleByIndex_v2", index)?;
            match self.slices(gpu) {
                Some(slices) => devices.extend(
                    slices.into_iter().map(|slice| self.describe(slice, Some(gpu))).collect::<Result<Vec<_>, _>>()?,
                ),
                None => devices.push(self.describe(gpu, None)?),
            }
        }
        Ok(devices)
    }

    fn describe(&self, device: Handle, whole: Option<Handle>) -> Result<Device, String> {
        let whole = whole.unwrap_or(device);
        let name = self.string("nvmlDeviceGetName", device).ok_or("nvmlDeviceGetName fails")?;
        Ok(Device {
            name,
            uuid: self.string("nvmlDeviceGetUUID", device),
            capability: self.pair("nvmlDeviceGetCudaComputeCapability", whole),
            multiprocessors: self.multiprocessors(device),
            memory: self.memory(device),
            vbios: self.string("nvmlDeviceGetVbiosVersion", whole),
            ecc: self.pair("nvmlDeviceGetEccMode", whole).map(|(now, _)| now == 1),
        })
    }

    /// The slices of a GPU that is in that mode.
    fn slices(&self, gpu: Handle) -> Option<Vec<Handle>> {
        let (mode, _) = self.pair("nvmlDeviceGetMigMode", gpu)?;
        if mode != 1 {
            return None;
        }
        let most = self.function("nvmlDeviceGetMaxMigDeviceCount")?;
        // SAFETY: the documented signature is (nvmlDevice_t, unsigned *).
        let most = unsafe { std::mem::transmute::<*mut c_void, extern "C" fn(Handle, *mut c_uint) -> c_int>(most) };
        let mut count = 0;
        if most(gpu, &raw mut count) != SUCCESS {
            return None;
        }
        let at = self.function("nvmlDeviceGetMigDeviceHandleByIndex")?;
        // SAFETY: the documented signature is (nvmlDevice_t, unsigned, nvmlDevice_t *).
        let at = unsafe { std::mem::transmute::<*mut c_void, extern "C" fn(Handle, c_uint, *mut Handle) -> c_int>(at) };
        let slice = |index| {
            let mut handle = std::ptr::null_mut();
            (at(gpu, index, &raw mut handle) == SUCCESS).then_some(handle)
        };
        Some((0..count).filter_map(slice).collect())
    }

    fn multiprocessors(&self, device: Handle) -> Option<u32> {
        let call = self.function("nvmlDeviceGetAttributes_v2")?;
        // SAFETY: the documented signature is (nvmlDevice_t, nvmlDeviceAttributes_t *).
        let call = unsafe { std::mem::transmute::<*mut c_void, extern "C" fn(Handle, *mut Attributes) -> c_int>(call) };
        let mut found = Attributes { multiprocessors: 0, engines: [0; 5], slices: [0; 2], memory_mib: 0 };
        (call(device, &raw mut found) == SUCCESS && found.multiprocessors > 0).then_some(found.multiprocessors)
    }

    fn memory(&self, device: Handle) -> Option<u64> {
        let call = self.function("nvmlDeviceGetMemoryInfo")?;
        // SAFETY: the documented signature is (nvmlDevice_t, nvmlMemory_t *).
        let call = unsafe { std::mem::transmute::<*mut c_void, extern "C" fn(Handle, *mut Memory) -> c_int>(call) };
        let mut found = Memory { total: 0, free: 0, used: 0 };
        (call(device, &raw mut found) == SUCCESS).then_some(found.total)
    }

    fn number(&self, name: &str, into: &mut c_uint) -> Result<(), String> {
        let call = self.function(name).ok_or_else(|| format!("it has no {name}"))?;
        // SAFETY: the documented signature is (unsigned *).
        let call = unsafe { std::mem::transmute::<*mut c_void, extern "C" fn(*mut c_uint) -> c_int>(call) };
        match call(into) {
            SUCCESS => Ok(()),
            code => Err(format!("{name} answers {code}")),
        }
    }

    fn by_index(&self, name: &str, index: c_uint) -> Result<Handle, String> {
        let call = self.function(name).ok_or_else(|| format!("it has no {name}"))?;
        // SAFETY: the documented signature is (unsigned, nvmlDevice_t *).
        let call = unsafe { std::mem::transmute::<*mut c_void, extern "C" fn(c_uint, *mut Handle) -> c_int>(call) };
        let mut handle = std::ptr::null_mut();
        match call(index, &raw mut handle) {
            SUCCESS => Ok(handle),
            code => Err(format!("{name} of GPU {index} answers {code}")),
        }
    }

    fn string(&self, name: &str, device: Handle) -> Option<String> {
        let call = self.function(name)?;
        // SAFETY: the documented signature is (nvmlDevice_t, char *, unsigned).
        let call =
            unsafe { std::mem::transmute::<*mut c_void, extern "C" fn(Handle, *mut c_char, c_uint) -> c_int>(call) };
        text(|buffer, length| call(device, buffer, length))
    }

    fn pair(&self, name: &str, device: Handle) -> Option<(u32, u32)> {
        let call = self.function(name)?;
        // SAFETY: the documented signature is (nvmlDevice_t, two pointers to 32-bit integers or enums).
        let call = unsafe {
            std::mem::transmute::<*mut c_void, extern "C" fn(Handle, *mut c_uint, *mut c_uint) -> c_int>(call)
        };
        let (mut one, mut other) = (0, 0);
        (call(device, &raw mut one, &raw mut other) == SUCCESS).then_some((one, other))
    }

    fn function(&self, name: &str) -> Option<*mut c_void> {
        self.open.function(name)
    }
}

impl Drop for Library {
    fn drop(&mut self) {
        if let Some(shutdown) = self.function("nvmlShutdown") {
            // SAFETY: nvmlShutdown takes nothing and returns a code.
            unsafe { std::mem::transmute::<*mut c_void, extern "C" fn() -> c_int>(shutdown)() };
        }
    }
}

fn text(call: impl FnOnce(*mut c_char, c_uint) -> c_int) -> Option<String> {
    let mut buffer = [0 as c_char; TEXT];
    // The last byte stays zero, whatever the library does.
    if call(buffer.as_mut_ptr(), (TEXT - 1) as c_uint) != SUCCESS {
        return None;
    }
    // SAFETY: the buffer ends with a zero byte.
    let text = unsafe { CStr::from_ptr(buffer.as_ptr()) };
    Some(text.to_str().ok()?.trim().to_owned()).filter(|text| !text.is_empty())
}

#[cfg(all(test, feature = "nvml"))]
mod tests {
    use super::*;

    /// A library that knows one whole GPU and one that is cut into two slices.
    const STAND_IN: &str = r#"
        #include <string.h>
        typedef struct { unsigned sm, rest[7]; unsigned long long mib; } attributes;
        typedef struct { unsigned long long total, free, used; } memory;
        static long whole = 1, cut = 2, slices[2] = {3, 4};
        int nvmlInit_v2(void) { return 0; }
        int nvmlShutdown(void) { return 0; }
        int nvmlSystemGetDriverVersion(char *to, unsigned size) { strncpy(to, "580.65.06", size); return 0; }
        int nvmlSystemGetCudaDriverVersion_v2(int *to) { *to = 13020; return 0; }
        int nvmlDeviceGetCount_v2(unsigned *to) { *to = 2; return 0; }
        int nvmlDeviceGetHandleByIndex_v2(unsigned at, void **to) { *to = at ? &cut : &whole; return 0; }
        int nvmlDeviceGetName(void *of, char *to, unsigned size) {
            strncpy(to, *(long *)of > 2 ? "NVIDIA H100 80GB HBM3 MIG 1g.10gb" : "NVIDIA H100 80GB HBM3", size); return 0;
        }
        int nvmlDeviceGetUUID(void *of, char *to, unsigned size) { strncpy(to, "GPU-x", size); to[4] = '0' + *(long *)of; return 0; }
        int nvmlDeviceGetCudaComputeCapability(void *of, int *major, int *minor) {
            if (*(long *)of > 2) return 3;
            *major = 9; *minor = 0; return 0;
        }
        int nvmlDeviceGetMigMode(void *of, unsigned *now, unsigned *later) { *now = *later = of == &cut; return 0; }
        int nvmlDeviceGetMaxMigDeviceCount(void *of, unsigned *to) { *to = 7; return 0; }
        int nvmlDeviceGetMigDeviceHandleByIndex(void *of, unsigned at, void **to) { if (at > 1) return 6; *to = &slices[at]; return 0; }
        int nvmlDeviceGetAttributes_v2(void *of, attributes *to) {
            if (*(long *)of < 3) return 3;
            to->sm = 16; to->mib = 9984; return 0;
        }
        int nvmlDeviceGetMemoryInfo(void *of, memory *to) { to->total = *(long *)of > 2 ? 9984ull << 20 : 81559ull << 20; return 0; }
        int nvmlDeviceGetVbiosVersion(void *of, char *to, unsigned size) { return 3; }
        int nvmlDeviceGetEccMode(void *of, unsigned *now, unsigned *later) { *now = *later = 1; return 0; }
    "#;

    #[test]
    fn whole_gpus_and_slices_are_told() {
        let directory = tempfile::tempdir().unwrap();
        let (source, library) = (directory.path().join("nvml.c"), directory.path().join("libnvidia-ml.so.1"));
        std::fs::write(&source, STAND_IN).unwrap();
        let compiled =
            std::process::Command::new("cc").args(["-shared", "-fPIC", "-w", "-o"]).arg(&library).arg(&source).status();
        assert!(compiled.unwrap().success(), "a C compiler is needed to build preheat");
        let library = Library::open(library.to_str()).unwrap().unwrap();
        assert_eq!((library.driver().as_deref(), library.driver_cuda().as_deref()), (Some("580.65.06"), Some("13.2")));
        let slice = |number: u8| Device {
            name: "NVIDIA H100 80GB HBM3 MIG 1g.10gb".to_owned(),
            uuid: Some(format!("GPU-{number}")),
            capability: Some((9, 0)),
            multiprocessors: Some(16),
            memory: Some(9984 << 20),
            vbios: None,
            ecc: Some(true),
        };
        let whole = Device {
            name: "NVIDIA H100 80GB HBM3".to_owned(),
            uuid: Some("GPU-1".to_owned()),
            multiprocessors: None,
            memory: Some(81_559 << 20),
            ..slice(1)
        };
        assert_eq!(library.devices().unwrap(), [whole, slice(3), slice(4)]);
    }

    #[test]
    fn what_cannot_be_used_is_told() {
        assert!(Library::open(Some("/none/at/all.so")).unwrap_err().contains("/none/at/all.so"));
        let directory = tempfile::tempdir().unwrap();
        let empty = directory.path().join("empty.so");
        std::fs::write(&empty, "").unwrap();
        assert!(Library::open(empty.to_str()).is_err());
    }
}

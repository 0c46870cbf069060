//! How many multiprocessors a GPU has, from the driver's CUDA library by `dlopen`: NVML tells it of slices only. Nothing is created
//! on a GPU, no context and no memory. The library is where the driver's capability `compute` is, and may be absent where NVML is
//! there. Once initialised it stays loaded: unloading it is not foreseen by its maker.
#![cfg_attr(not(feature = "nvml"), allow(dead_code, reason = "such a build opens no library"))]

use std::collections::BTreeMap;
use std::ffi::{c_char, c_int, c_uint, c_void};

use super::dynamic::Dynamic;

#[cfg(feature = "nvml")]
const NAME: &str = "libcuda.so.1";
const SUCCESS: c_int = 0;
/// `CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT`
const MULTIPROCESSOR_COUNT: c_int = 16;

/// Counts by `GPU-...`, of the GPUs that this process may use. `path` instead of the driver's own library. Empty where there is none.
///
/// # Errors
/// When it is there and cannot be used, in words.
#[cfg(feature = "nvml")]
pub fn multiprocessors(path: Option<&str>) -> Result<BTreeMap<String, u32>, String> {
    match (Dynamic::open(path.unwrap_or(NAME), true), path) {
        (Some(open), _) => counts(&open),
        (None, Some(path)) => Err(format!("{path} cannot be loaded")),
        (None, None) => Ok(BTreeMap::new()),
    }
}

/// This build does not look.
///
/// # Errors
/// None.
#[cfg(not(feature = "nvml"))]
pub fn multiprocessors(_path: Option<&str>) -> Result<BTreeMap<String, u32>, String> {
    Ok(BTreeMap::new())
}

fn counts(open: &Dynamic) -> Result<BTreeMap<String, u32>, String> {
    let function = |name: &str| open.function(name).ok_or_else(|| format!("it has no {name}"));
    let said = |name: &str, code: c_int| if code == SUCCESS { Ok(()) } else { Err(format!("{name} answers {code}")) };
    // SAFETY: the documented signature is (unsigned).
    let init = unsafe { std::mem::transmute::<*mut c_void, extern "C" fn(c_uint) -> c_int>(function("cuInit")?) };
    said("cuInit", init(0))?;
    let count = function("cuDeviceGetCount")?;
    // SAFETY: the documented signature is (int *).
    let count = unsafe { std::mem::transmute::<*mut c_void, extern "C" fn(*mut c_int) -> c_int>(count) };
    let device = function("cuDeviceGet")?;
    // SAFETY: the documented signature is (CUdevice *, int), and CUdevice is an int.
    let device = unsafe { std::mem::transmute::<*mut c_void, extern "C" fn(*mut c_int, c_int) -> c_int>(device) };
    let uuid = open.function("cuDeviceGetUuid_v2").map_or_else(|| function("cuDeviceGetUuid"), Ok)?;
    // SAFETY: the documented signature is (CUuuid *, CUdevice), and CUuuid is 16 chars.
    let uuid = unsafe { std::mem::transmute::<*mut c_void, extern "C" fn(*mut [c_char; 16], c_int) -> c_int>(uuid) };
    let attribute = function("cuDeviceGetAttribute")?;
    // SAFETY: the documented signature is (int *, CUdevice_attribute, CUdevice), and the second is an enum.
    let attribute =
        unsafe { std::mem::transmute::<*mut c_void, extern "C" fn(*mut c_int, c_int, c_int) -> c_int>(attribute) };
    let mut all = 0;
    said("cuDeviceGetCount", count(&raw mut all))?;
    let mut found = BTreeMap::new();
    for ordinal in 0..all {
        let (mut handle, mut id, mut number) = (0, [0; 16], 0);
        said("cuDeviceGet", device(&raw mut handle, ordinal))?;
        said("cuDeviceGetUuid", uuid(&raw mut id, handle))?;
        said("cuDeviceGetAttribute", attribute(&raw mut number, MULTIPROCESSOR_COUNT, handle))?;
        if let Some(number) = u32::try_from(number).ok().filter(|number| *number > 0) {
            found.insert(named(&id), number);
        }
    }
    Ok(found)
}

/// As NVML writes it: groups of 4, 2, 2, 2 and 6 bytes.
fn named(id: &[c_char; 16]) -> String {
    let mut text = "GPU".to_owned();
    for (at, byte) in id.iter().enumerate() {
        if matches!(at, 0 | 4 | 6 | 8 | 10) {
            text.push('-');
        }
        text.push_str(&format!("{:02x}", byte.to_ne_bytes()[0]));
    }
    text
}

#[cfg(all(test, feature = "nvml"))]
mod tests {
    use super::*;

    /// A library that knows two GPUs, or fails as one for building only does.
    const STAND_IN: &str = r#"
        #include <string.h>
        static int ready;
        int cuInit(unsigned flags) { ready = flags == 0; return CODE; }
        int cuDeviceGetCount(int *to) { if (!ready) return 3; *to = 2; return 0; }
        int cuDeviceGet(int *to, int at) { *to = at + 40; return 0; }
        int cuDeviceGetUuid_v2(char *to, int of) { for (int at = 0; at < 16; at++) to[at] = at * 16 + of - 40; return 0; }
        int cuDeviceGetAttribute(int *to, int which, int of) { if (which != 16) return 1; *to = of == 40 ? 132 : 114; return 0; }
    "#;

    fn library(directory: &std::path::Path, code: &str) -> std::io::Result<String> {
        let (source, library) = (directory.join("cuda.c"), directory.join(format!("libcuda{code}.so")));
        std::fs::write(&source, STAND_IN.replace("CODE", code))?;
        let mut compiler = std::process::Command::new("cc");
        let compiled = compiler.args(["-shared", "-fPIC", "-w", "-o"]).arg(&library).arg(&source).status()?;
        assert!(compiled.success(), "a C compiler is needed to build preheat");
        Ok(library.display().to_string())
    }

    #[test]
    fn each_gpu_tells_its_count() {
        let directory = tempfile::tempdir().unwrap();
        let found = multiprocessors(Some(&library(directory.path(), "0").unwrap())).unwrap();
        let expected = [
            ("GPU-00102030-4050-6070-8090-a0b0c0d0e0f0".to_owned(), 132),
            ("GPU-01112131-4151-6171-8191-a1b1c1d1e1f1".to_owned(), 114),
        ];
        assert_eq!(found, expected.into());
    }

    #[test]
    fn what_cannot_be_used_is_told() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(multiprocessors(Some(&library(directory.path(), "34").unwrap())).unwrap_err(), "cuInit answers 34");
        assert!(multiprocessors(Some("/none/at/all.so")).unwrap_err().contains("/none/at/all.so"));
    }
}

//! A library opened by name while the process runs: one that is on machines with a driver and nowhere else cannot be linked
//! against.
#![cfg_attr(not(feature = "nvml"), allow(dead_code, reason = "such a build opens no library"))]

use std::ffi::{CString, c_void};

/// An open library.
#[derive(Debug)]
pub(super) struct Dynamic {
    handle: *mut c_void,
}

// === impl Dynamic ===

impl Dynamic {
    /// Opens it; none where there is no such library. `stays`: it is not unloaded when this is dropped.
    pub(super) fn open(name: &str, stays: bool) -> Option<Self> {
        let name = CString::new(name).ok()?;
        let stays = if stays { libc::RTLD_NODELETE } else { 0 };
        // SAFETY: the name is NUL-terminated; loading runs the library's initialisers, which the driver's maker answers for.
        let handle = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL | stays) };
        // Nothing is made of no handle: dropping it would close one.
        if handle.is_null() { None } else { Some(Self { handle }) }
    }

    /// The address of a function, good for as long as `self` is.
    pub(super) fn function(&self, name: &str) -> Option<*mut c_void> {
        let name = CString::new(name).ok()?;
        // SAFETY: the handle is open until `self` is dropped, and the name is NUL-terminated.
        let found = unsafe { libc::dlsym(self.handle, name.as_ptr()) };
        (!found.is_null()).then_some(found)
    }
}

impl Drop for Dynamic {
    fn drop(&mut self) {
        // SAFETY: opened by `open`, closed once; no function of it is held by anybody.
        unsafe { libc::dlclose(self.handle) };
    }
}

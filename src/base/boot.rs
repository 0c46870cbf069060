//! The identity of this boot of the machine. Bytes that were written but not synced survive a killed process, because
//! the page cache outlives it, and do not survive a power cut: the boot id tells the two apart.

use serde::{Deserialize, Serialize};

/// Opaque identity of one boot; equal ids mean that the page cache has survived.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct BootId(String);

impl BootId {
    /// Environment variable that overrides the kernel's boot id, for power-cut rigs that stay within one boot.
    pub const OVERRIDE: &str = "PREHEAT_BOOT_ID";

    /// The current boot: the override if set, else the kernel's id (the host's, inside a container too).
    ///
    /// # Errors
    /// When neither is readable. There is no safe guess: a constant would resurrect unsynced bytes.
    pub fn current() -> std::io::Result<Self> {
        if let Ok(id) = std::env::var(Self::OVERRIDE)
            && !id.is_empty()
        {
            return Ok(Self(id));
        }
        let id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
        Ok(Self(id.trim().to_owned()))
    }
}

impl From<&str> for BootId {
    fn from(id: &str) -> Self {
        Self(id.to_owned())
    }
}

//! Pins and leases: why a model may not be evicted, as files, so that they outlive the daemon. A lease is a pin that ends.

use std::fs;

use super::error::IoContext;
use super::index::{Index, ModelKey};
use super::layout::{Layout, names, parse_pin, tenants};
use super::recover::read_limited;
use super::{Inner, Pin, StoreError, now};
use crate::sys::durable::{sync_directory, write_atomic};

/// Most pins of one model: a caller that forgets its own must not fill the disk.
const PIN_LIMIT: usize = 256;

// === impl Pin ===

impl Pin {
    /// Whether it still holds at `now`, seconds since the epoch.
    #[must_use]
    pub fn holds_at(&self, now: u64) -> bool {
        crate::sys::mutant::mutant("lease_off_by_one") || self.expires_at.is_none_or(|expires_at| expires_at > now)
    }

    /// Whether a pin may have this id.
    #[must_use]
    pub fn is_name(id: &str) -> bool {
        (1..=63).contains(&id.len()) && id.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
    }

    fn check(&self) -> Result<(), StoreError> {
        if Self::is_name(&self.id) && self.reason.len() <= 1024 {
            return Ok(());
        }
        let detail = "a pin needs an id of 1 to 63 characters of a-z, 0-9 and -, and a reason of at most 1,024 bytes";
        Err(StoreError::Refused { detail: detail.to_owned() })
    }
}

/// Reads all pins; lapsed ones and those of models that are gone are removed.
pub(super) fn load(layout: &Layout, index: &mut Index) -> Result<(), StoreError> {
    let now = now();
    for (tenant, directory) in tenants(&layout.pins())? {
        for (name, path) in names(&directory)? {
            let Some((id, pin_id)) = parse_pin(&name) else { continue };
            let pin = read_limited(&path).and_then(|text| serde_json::from_slice::<Pin>(&text).ok());
            let entry = index.models.get_mut(&(tenant.clone(), id));
            match (pin, entry) {
                (Some(pin), Some(entry)) if pin.id == pin_id && pin.holds_at(now) => entry.pins.push(pin),
                _ => {
                    // Of no use to anybody; tried again at the next start if it stays.
                    let _ = fs::remove_file(&path);
                }
            }
        }
    }
    Ok(())
}

// === impl Inner ===

impl Inner {
    pub(super) fn pin_model(&self, key: &ModelKey, pin: Pin) -> Result<(), StoreError> {
        self.check_writable()?;
        pin.check()?;
        // Under the lock until the file is there: an eviction must see the pin or have removed the model.
        let _alone = self.evicting.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        {
            let index = self.index();
            let Some(entry) = index.models.get(key) else {
                return Err(StoreError::Missing { what: format!("model {}", key.1) });
            };
            let now = now();
            let others = entry.pins.iter().filter(|other| other.id != pin.id && other.holds_at(now)).count();
            if others >= PIN_LIMIT {
                return Err(StoreError::Refused {
                    detail: format!("model {} has {PIN_LIMIT} pins: remove some", key.1),
                });
            }
        }
        let directory = self.layout.make_tenant(&self.layout.pins(), &key.0)?;
        let text = serde_json::to_vec(&pin).unwrap_or_default();
        let path = self.layout.pin(&key.0, &key.1, &pin.id);
        let name = format!("{}.{}.json", key.1, pin.id);
        self.note(write_atomic(&self.layout.temporaries(), &directory, &name, &text).at("write pin", &path))?;
        if let Some(entry) = self.index().models.get_mut(key) {
            entry.pins.retain(|other| other.id != pin.id);
            entry.pins.push(pin);
        }
        Ok(())
    }

    pub(super) fn unpin_model(&self, key: &ModelKey, pin_id: &str) -> Result<bool, StoreError> {
        self.check_writable()?;
        let known = {
            let mut index = self.index();
            let Some(entry) = index.models.get_mut(key) else {
                return Err(StoreError::Missing { what: format!("model {}", key.1) });
            };
            let before = entry.pins.len();
            entry.pins.retain(|pin| pin.id != pin_id);
            entry.pins.len() < before
        };
        if known {
            self.remove_pin_file(key, pin_id)?;
        }
        Ok(known)
    }

    fn remove_pin_file(&self, key: &ModelKey, pin_id: &str) -> Result<(), StoreError> {
        let path = self.layout.pin(&key.0, &key.1, pin_id);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error).at("remove pin", &path),
            _ => {}
        }
        let directory = self.layout.pins().join(key.0.as_str());
        sync_directory(&directory).at("sync directory", &directory)
    }

    /// Removes lapsed leases.
    pub(super) fn drop_lapsed(&self) -> Result<(), StoreError> {
        let now = now();
        let lapsed: Vec<(ModelKey, String)> = {
            let mut index = self.index();
            let mut lapsed = Vec::new();
            for (key, entry) in &mut index.models {
                for pin in entry.pins.extract_if(.., |pin| !pin.holds_at(now)) {
                    lapsed.push((key.clone(), pin.id));
                }
            }
            lapsed
        };
        lapsed.iter().try_for_each(|(key, id)| self.remove_pin_file(key, id))
    }
}

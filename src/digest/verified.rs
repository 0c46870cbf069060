//! Bytes that have been checked. The only way to make one is to check.

use std::ops::Deref;

use super::{GroupCv, Hash, group_cv};

/// A value whose bytes were hashed and found equal to what they had to be.
#[derive(Clone, Debug)]
pub struct Verified<T>(T);

/// The bytes are not those that were promised.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("bytes do not match their digest")]
pub struct WrongBytes;

// === impl Verified ===

impl<T: AsRef<[u8]>> Verified<T> {
    /// Checks group `index` of a blob of `size` bytes against its chaining value.
    ///
    /// # Errors
    /// [`WrongBytes`]; the unverified bytes are dropped.
    pub fn group(size: u64, index: u64, expected: GroupCv, bytes: T) -> Result<Self, WrongBytes> {
        if group_cv(size, index, bytes.as_ref()) == expected { Ok(Self(bytes)) } else { Err(WrongBytes) }
    }

    /// Checks a whole blob held in memory against its name.
    ///
    /// # Errors
    /// [`WrongBytes`]; the unverified bytes are dropped.
    pub fn whole(expected: Hash, bytes: T) -> Result<Self, WrongBytes> {
        if Hash::of(bytes.as_ref()) == expected { Ok(Self(bytes)) } else { Err(WrongBytes) }
    }
}

impl<T> Verified<T> {
    /// Gives up the proof and returns the bytes.
    pub fn into_inner(self) -> T {
        self.0
    }
}

impl<T> Deref for Verified<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

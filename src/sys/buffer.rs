//! A budget of transfer buffers. Memory for bytes on their way is taken from here and nowhere else, so that a model of any
//! size needs the same. Buffers are made when first needed and kept, since giving megabytes back to the allocator and taking
//! them again costs a page fault for every 4 KiB.

use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The budget. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Buffers {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    each: usize,
    count: usize,
    permits: Arc<Semaphore>,
    /// Not in use at the moment; at most `count`.
    idle: Mutex<Vec<Box<[u8]>>>,
}

/// One buffer; goes back to the budget when dropped.
#[derive(Debug)]
pub struct Buffer {
    bytes: Box<[u8]>,
    shared: Arc<Shared>,
    _permit: OwnedSemaphorePermit,
}

// === impl Buffers ===

impl Buffers {
    /// As many buffers of `each` bytes as fit `budget`, at least one.
    #[must_use]
    pub fn new(budget: u64, each: usize) -> Self {
        let count = usize::try_from(budget / each as u64).unwrap_or(usize::MAX).clamp(1, Semaphore::MAX_PERMITS);
        let shared = Shared { each, count, permits: Arc::new(Semaphore::new(count)), idle: Mutex::new(Vec::new()) };
        Self { shared: Arc::new(shared) }
    }

    /// Takes a buffer, waiting until the budget has one. Its content is whatever it was.
    pub async fn acquire(&self) -> Buffer {
        let permit = loop {
            // The semaphore is never closed.
            if let Ok(permit) = Arc::clone(&self.shared.permits).acquire_owned().await {
                break permit;
            }
        };
        let kept = self.shared.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let bytes = kept.unwrap_or_else(|| vec![0; self.shared.each].into_boxed_slice());
        Buffer { bytes, shared: Arc::clone(&self.shared), _permit: permit }
    }

    /// How many buffers are out.
    #[must_use]
    pub fn in_use(&self) -> usize {
        self.shared.count - self.shared.permits.available_permits()
    }

    /// How many there are.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.shared.count
    }

    /// Bytes in each.
    #[must_use]
    pub fn each(&self) -> usize {
        self.shared.each
    }
}

// === impl Buffer ===

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.bytes
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let bytes = std::mem::take(&mut self.bytes);
        self.shared.idle.lock().unwrap_or_else(PoisonError::into_inner).push(bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_budget_is_kept() {
        let buffers = Buffers::new(2048, 1024);
        let one = buffers.acquire().await;
        let _two = buffers.acquire().await;
        assert_eq!((buffers.in_use(), buffers.capacity()), (2, 2));
        let third = tokio::time::timeout(std::time::Duration::from_millis(5), buffers.acquire()).await;
        assert!(third.is_err());
        drop(one);
        assert_eq!(buffers.acquire().await.len(), 1024);
    }
}

//! A budget of buffers for bytes on their way. Memory for them is taken from here and nowhere else, so that a model of any size
//! needs the same. Buffers are made when first needed and kept, since giving megabytes back to the allocator and taking them
//! again costs a page fault for every 4 KiB.
//!
//! They are cut from stretches of anonymous memory that begin at a huge page's boundary. So each begins at a page, which direct
//! I/O wants; the kernel can put huge pages behind them, one page fault and one entry for the device instead of 512; and nothing
//! is zeroed but by the kernel at the first touch. `alloc_zeroed` was turned down: with an alignment it takes memory that is
//! zero already and zeroes it again.

use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, PoisonError};

use memmap2::{MmapMut, MmapRaw};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// What a huge page has on most machines, and a multiple of what it has on none: where one is larger, buffers get small pages.
const STRETCH: usize = 2 << 20;

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
    idle: Mutex<Idle>,
}

#[derive(Debug, Default)]
struct Idle {
    /// Not in use at the moment.
    pieces: Vec<Piece>,
    /// How many have been cut; at most `count`.
    cut: usize,
}

/// Memory of one buffer, which nobody else has.
#[derive(Debug)]
struct Piece {
    start: NonNull<u8>,
    /// Unmapped when its last piece is gone.
    stretch: Arc<MmapRaw>,
}

/// One buffer; goes back to the budget when dropped.
#[derive(Debug)]
pub struct Buffer {
    start: NonNull<u8>,
    stretch: Arc<MmapRaw>,
    shared: Arc<Shared>,
    _permit: OwnedSemaphorePermit,
}

// SAFETY: a piece is the only way to its bytes, and these are plain memory, bound to no thread.
unsafe impl Send for Piece {}
// SAFETY: as for `Piece`; what a buffer took from the budget nobody else has.
unsafe impl Send for Buffer {}
// SAFETY: through a shared reference its bytes can only be read.
unsafe impl Sync for Buffer {}

// === impl Buffers ===

impl Buffers {
    /// As many buffers of `each` bytes as fit `budget`, at least one.
    #[must_use]
    pub fn new(budget: u64, each: usize) -> Self {
        let each = each.max(1);
        let count = usize::try_from(budget / each as u64).unwrap_or(usize::MAX).clamp(1, Semaphore::MAX_PERMITS);
        let shared = Shared { each, count, permits: Arc::new(Semaphore::new(count)), idle: Mutex::default() };
        Self { shared: Arc::new(shared) }
    }

    /// Takes a buffer, waiting until the budget has one. Its content is whatever it was.
    pub async fn acquire(&self) -> Buffer {
        loop {
            // The semaphore is never closed.
            if let Ok(permit) = Arc::clone(&self.shared.permits).acquire_owned().await {
                return self.take(permit);
            }
        }
    }

    /// Takes a buffer if the budget has one now.
    #[must_use]
    pub fn try_acquire(&self) -> Option<Buffer> {
        Arc::clone(&self.shared.permits).try_acquire_owned().ok().map(|permit| self.take(permit))
    }

    fn take(&self, permit: OwnedSemaphorePermit) -> Buffer {
        let mut idle = self.shared.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let piece = loop {
            match idle.pieces.pop() {
                Some(piece) => break piece,
                None => self.shared.cut(&mut idle),
            }
        };
        drop(idle);
        let Piece { start, stretch } = piece;
        Buffer { start, stretch, shared: Arc::clone(&self.shared), _permit: permit }
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

// === impl Shared ===

impl Shared {
    /// Adds the pieces of a new stretch, at least one.
    fn cut(&self, idle: &mut Idle) {
        let stride = self.each.next_multiple_of(rustix::param::page_size());
        let pieces = (STRETCH / stride).clamp(1, self.count.saturating_sub(idle.cut).max(1));
        let length = pieces * stride;
        // Room to begin at a boundary; what is never touched takes no memory.
        let slack = if length >= STRETCH { STRETCH } else { 0 };
        let Ok(map) = MmapMut::map_anon(length + slack) else {
            // What the allocator does when there is no memory.
            std::alloc::handle_alloc_error(std::alloc::Layout::new::<[u8; STRETCH]>());
        };
        if slack > 0 {
            // Only a hint: without huge pages the first touch of each page is slower.
            let _ = map.advise(memmap2::Advice::HugePage);
        }
        let stretch = Arc::new(MmapRaw::from(map));
        let skip = if slack > 0 { stretch.as_mut_ptr().align_offset(STRETCH).min(slack) } else { 0 };
        for number in 0..pieces {
            // SAFETY: `skip + pieces * stride` is at most the length of the mapping.
            let start = unsafe { stretch.as_mut_ptr().add(skip + number * stride) };
            if let Some(start) = NonNull::new(start) {
                idle.pieces.push(Piece { start, stretch: Arc::clone(&stretch) });
            }
        }
        idle.cut += pieces;
    }
}

// === impl Buffer ===

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: `each` bytes from `start` are mapped as long as `stretch` lives, were zeroed by the kernel, and are this
        // buffer's alone.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.shared.each) }
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`, and `self` is borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.shared.each) }
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let piece = Piece { start: self.start, stretch: Arc::clone(&self.stretch) };
        self.shared.idle.lock().unwrap_or_else(PoisonError::into_inner).pieces.push(piece);
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
        assert!(third.is_err() && buffers.try_acquire().is_none());
        drop(one);
        assert_eq!(buffers.acquire().await.len(), 1024);
    }

    #[test]
    fn every_buffer_begins_at_a_page_and_is_nobody_elses() {
        let page = rustix::param::page_size();
        for (each, count) in [(1, 3), (1000, 5), (page, 700), (1 << 20, 7), (3 << 20, 2), ((2 << 20) + 1, 3)] {
            let buffers = Buffers::new((each * count) as u64, each);
            for round in 0..2_u8 {
                let mut taken: Vec<Buffer> = std::iter::from_fn(|| buffers.try_acquire()).collect();
                assert_eq!(taken.len(), count);
                for (number, buffer) in taken.iter_mut().enumerate() {
                    assert_eq!((buffer.as_ptr().addr() % page, buffer.len()), (0, each));
                    buffer.fill((number % 250) as u8 + round);
                }
                for (number, buffer) in taken.iter().enumerate() {
                    assert!(buffer.iter().all(|byte| *byte == (number % 250) as u8 + round), "{each}, {number}");
                }
            }
            let idle = buffers.shared.idle.lock().unwrap();
            assert_eq!((idle.pieces.len(), idle.cut), (count, count), "kept, and never more than the budget");
        }
    }

    #[test]
    fn a_buffer_outlives_its_budget() {
        let buffers = Buffers::new(1 << 20, 1 << 20);
        let mut buffer = buffers.try_acquire().unwrap();
        drop(buffers);
        buffer.fill(7);
        assert!(std::thread::spawn(move || buffer.iter().all(|byte| *byte == 7)).join().unwrap());
    }
}

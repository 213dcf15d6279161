//! A heap that forgets: every block is zeroed before it is given back.
//!
//! `zeroize` cleans the buffers that we own; it cannot reach the copies that a growing `Vec`, a
//! JSON parser or an HTTP buffer leaves behind. Zeroing in the allocator reaches all of them.
//!
//! It also keeps locked memory from being the end of a program: what the limit refuses is asked for
//! again after everything was unlocked ([`lock_what_fits`](crate::memory::lock_what_fits)).
//!
//! ```
//! #[global_allocator]
//! static HEAP: mayfly_kernel::alloc::Zeroing = mayfly_kernel::alloc::Zeroing::new();
//! # fn main() {}
//! ```

#![expect(unsafe_code, reason = "GlobalAlloc is an unsafe trait")]

use std::alloc::{GlobalAlloc, Layout, System};

use crate::memory::unlock;

/// A global allocator that zeroes each block when it is freed or moved.
///
/// Covers all that goes through Rust's allocator; memory that a C library takes from `malloc` by
/// itself is not covered. Costs one `memset` of the block's size for each free, and a copy where
/// `realloc` might have grown in place.
pub struct Zeroing<A = System>(A);

impl Zeroing {
    /// The system's allocator, zeroing.
    pub const fn new() -> Self {
        Self(System)
    }
}

impl Default for Zeroing {
    fn default() -> Self {
        Self::new()
    }
}

// SAFETY: every call is passed on to `A` with the layout that the caller gave, so the contract is
// kept if `A` keeps it. There is no safe form of this trait.
unsafe impl<A: GlobalAlloc> GlobalAlloc for Zeroing<A> {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller keeps the contract of `alloc`, which is that of `A::alloc`.
        unsafe {
            let block = self.0.alloc(layout);
            if block.is_null() && unlock() {
                return self.0.alloc(layout);
            }
            block
        }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as for `alloc`.
        unsafe {
            let block = self.0.alloc_zeroed(layout);
            if block.is_null() && unlock() {
                return self.0.alloc_zeroed(layout);
            }
            block
        }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: the caller owns `layout.size()` bytes at `block`, and will not use them again.
        // A plain `memset` before `free` is a dead store that the optimizer removes;
        // explicit_bzero(3) is the one that it must keep, at the speed of memset.
        unsafe {
            libc::explicit_bzero(block.cast(), layout.size());
            self.0.dealloc(block, layout);
        }
    }

    // `realloc` is left to the trait on purpose: it allocates, copies, and calls `dealloc` above.
    // `System::realloc` would leave the old block behind as it was, and a shrunk tail too.
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;

    /// Notes what each block held when it was given back.
    struct Spy(RefCell<Vec<Vec<u8>>>);

    // SAFETY: passes everything on to `System`, and reads only a block that its caller still owns.
    unsafe impl GlobalAlloc for Spy {
        unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
            // SAFETY: the caller's contract.
            unsafe { System.alloc(layout) }
        }
        unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
            // SAFETY: the tests below wrote all bytes of the block before they free it.
            unsafe {
                let bytes = std::slice::from_raw_parts(block, layout.size());
                self.0.borrow_mut().push(bytes.to_vec());
                System.dealloc(block, layout);
            }
        }
    }

    fn heap() -> Zeroing<Spy> {
        Zeroing(Spy(RefCell::new(Vec::new())))
    }

    #[test]
    fn a_freed_block_holds_zeros() {
        let heap = heap();
        for size in [1, 7, 64, 4096, 1 << 20] {
            let layout = Layout::from_size_align(size, 8).unwrap();
            // SAFETY: the block is written within its size and freed with its own layout.
            unsafe {
                let block = heap.alloc(layout);
                block.write_bytes(0xA5, size);
                heap.dealloc(block, layout);
            }
            assert_eq!(heap.0.0.borrow_mut().pop().unwrap(), vec![0; size]);
        }
    }

    #[test]
    fn a_moved_block_is_kept_and_its_old_place_holds_zeros() {
        let heap = heap();
        for (old, new) in [(32, 4096), (4096, 32), (1 << 20, 2 << 20), (64, 64)] {
            let layout = Layout::from_size_align(old, 16).unwrap();
            // SAFETY: each block is written within its size and freed with its own layout.
            unsafe {
                let block = heap.alloc(layout);
                block.write_bytes(0xA5, old);
                let moved = heap.realloc(block, layout, new);
                let kept = std::slice::from_raw_parts(moved, old.min(new));
                assert!(kept.iter().all(|byte| *byte == 0xA5));
                assert_eq!(heap.0.0.borrow_mut().pop().unwrap(), vec![0; old]);
                moved.write_bytes(0, new);
                heap.dealloc(moved, Layout::from_size_align(new, 16).unwrap());
            }
        }
    }

    /// With the real heap behind it, the bytes are gone from the process.
    #[test]
    fn freed_bytes_are_gone_from_the_process() {
        static HEAP: Zeroing = Zeroing::new();
        let layout = Layout::from_size_align(4096, 8).unwrap();
        // SAFETY: as above. What is left is read through /proc/self/mem, not a dead pointer; the
        // neighbour keeps the page mapped meanwhile.
        let (address, neighbour) = unsafe {
            let block = HEAP.alloc(layout);
            let neighbour = HEAP.alloc(layout);
            block.write_bytes(0x5A, layout.size());
            HEAP.dealloc(block, layout);
            (block as u64, neighbour)
        };
        let mut found = vec![0; layout.size()];
        let memory = std::fs::File::open("/proc/self/mem").unwrap();
        std::os::unix::fs::FileExt::read_exact_at(&memory, &mut found, address).unwrap();
        assert!(!found.windows(16).any(|window| window == [0x5A; 16]));
        // SAFETY: allocated above with this layout, and freed once.
        unsafe { HEAP.dealloc(neighbour, layout) };
    }
}

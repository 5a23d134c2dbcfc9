//! Reusable work memory, per thread. Fresh memory costs a page fault every 4 KiB, which is as slow as the product that
//! wants it; buffers therefore go back to their thread and are handed out again.
//! Cost: a few buffers of the largest size asked for stay allocated per thread.

use bytemuck::{Pod, Zeroable};
use std::cell::RefCell;

/// One cache line. Buffers start on its boundary, as tiles and full-width stores like it.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub(crate) struct Line([u64; 8]);

// SAFETY: all bit patterns, zero included, are valid numbers.
unsafe impl Zeroable for Line {}
// SAFETY: numbers without padding (64 bytes, alignment 64).
unsafe impl Pod for Line {}

thread_local! {
    static FREE: RefCell<Vec<Vec<Line>>> = const { RefCell::new(Vec::new()) };
}

/// Zeroed cache lines for at least `bytes` bytes; the pages are touched on first use.
pub(crate) fn zeroed_lines(bytes: usize) -> Vec<Line> {
    crate::memory::zeroed(bytes.div_ceil(size_of::<Line>()))
}

/// Calls `f` with `len` values of UNSPECIFIED content. Calls nest; each gets its own buffer.
pub(crate) fn with_scratch<T: Pod, R>(len: usize, f: impl FnOnce(&mut [T]) -> R) -> R {
    let lines = (len * size_of::<T>()).div_ceil(size_of::<Line>());
    // The smallest that fits, else the largest, which is then replaced.
    let found = FREE.with_borrow_mut(|free| {
        let fits = free.iter().position(|buffer| buffer.len() >= lines);
        fits.or(free.len().checked_sub(1)).map(|index| free.remove(index))
    });
    let mut buffer = found.unwrap_or_default();
    if buffer.len() < lines {
        // Freed before the larger one is allocated.
        drop(buffer);
        buffer = zeroed_lines(lines * size_of::<Line>());
    }
    let result = f(&mut bytemuck::cast_slice_mut(&mut buffer)[..len]);
    FREE.with_borrow_mut(|free| {
        let at = free.partition_point(|other| other.len() < buffer.len());
        free.insert(at, buffer);
    });
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_nest_and_are_reused() {
        let first = with_scratch::<f32, _>(100, |outer| {
            assert_eq!(outer.as_ptr() as usize % 64, 0);
            outer.fill(1.0);
            let inner = with_scratch::<u16, _>(10, |inner| {
                inner.fill(2);
                inner.as_ptr() as usize
            });
            assert_ne!(inner, outer.as_ptr() as usize);
            assert!(outer.iter().all(|&x| x == 1.0));
            outer.as_ptr() as usize
        });
        let again = with_scratch::<f32, _>(90, |again| again.as_ptr() as usize);
        assert_eq!(first, again);
    }
}

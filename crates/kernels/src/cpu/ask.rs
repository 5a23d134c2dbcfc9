//! Asking for memory before it is wanted, where the processor cannot guess what comes next.
//! Knows addresses. Cost: an instruction per line, and a place among the sixteen or so that a core can have under way:
//! whoever asks for too much at a time waits.

/// Bytes of a cache line.
const LINE: usize = 64;

/// Bytes that a loop over long rows asks for ahead of itself: more than a page, at whose end the processor's own
/// prefetching stops, and about what can be under way at a time.
const AHEAD: usize = 6 << 10;

/// How many values further on those are that a loop should ask for, in whole periods of `period` values.
pub(crate) fn ahead<E>(period: usize) -> usize {
    (AHEAD / size_of::<E>()).div_ceil(period.max(1)) * period
}

/// Asks for the lines of `x[at..at + len]`, which need not exist, to come to the first-level cache.
#[inline(always)]
pub(crate) fn ask_ahead<E>(x: &[E], at: usize, len: usize) {
    for line in (0..len).step_by(LINE / size_of::<E>()) {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: SSE is part of x86-64, and prefetching never faults.
        unsafe {
            use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
            _mm_prefetch::<_MM_HINT_T0>(x.as_ptr().wrapping_add(at + line).cast());
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = (x, at, line);
    }
}

/// Asks for values to come to the second-level cache: more such requests can be under way at a time than loads.
#[inline]
pub(crate) fn ask_for<E>(values: &[E]) {
    #[cfg(target_arch = "x86_64")]
    for at in (0..size_of_val(values)).step_by(LINE) {
        // SAFETY: SSE is part of x86-64, and prefetching never faults; the address lies inside the slice.
        unsafe {
            use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
            _mm_prefetch::<_MM_HINT_T1>(values.as_ptr().cast::<i8>().add(at));
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = values;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::element::bf16;

    #[test]
    fn values_ahead_are_whole_periods() {
        for period in [1, 100, 1536, 3072, 10_000] {
            let values = ahead::<bf16>(period);
            assert!(values.is_multiple_of(period) && values >= 3072 && values < 3072 + period, "{period}: {values}");
        }
    }

    #[test]
    fn what_does_not_exist_can_be_asked_for() {
        let x = [1.0f32; 40];
        ask_ahead(&x, usize::MAX / 16, 100);
        ask_ahead::<f32>(&[], 0, 64);
        ask_for::<bf16>(&[]);
        ask_for(&x[3..]);
    }
}

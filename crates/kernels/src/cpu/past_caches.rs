//! Copies past the caches: an ordinary store to memory first reads the line that it overwrites, and drives out what the
//! caches hold. For what nobody reads soon.
//! Knows bytes. Cost: half of what an ordinary store to memory moves.

use bytemuck::Pod;

/// Bytes of an output that no cache of a core will keep until it is read.
pub(crate) const LARGE: usize = 2 << 20;

/// Copies `from` to `to`, which is as long: past the caches where `to` consists of whole lines. [`finish_stores`] before
/// other threads read it.
#[inline]
pub(crate) fn copy_past_caches<T: Pod>(from: &[T], to: &mut [T]) {
    assert_eq!(from.len(), to.len(), "copy_past_caches: lengths differ");
    #[cfg(target_arch = "x86_64")]
    if (to.as_ptr() as usize).is_multiple_of(LINE) && size_of_val(to).is_multiple_of(LINE) {
        let (from, to, bytes) = (from.as_ptr().cast(), to.as_mut_ptr().cast(), size_of_val(to));
        // SAFETY: both slices have so many bytes, whole lines that begin on one; `vector_isa` answers Avx512 only where
        // detection found it.
        return unsafe {
            match crate::isa::vector_isa() {
                crate::isa::VectorIsa::Avx512 => lines(from, to, bytes),
                _ => quarters(from, to, bytes),
            }
        };
    }
    to.copy_from_slice(from);
}

/// Makes what this thread copied past the caches visible to the threads that are told of it afterwards.
pub(crate) fn finish_stores() {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: SSE is part of x86-64.
    unsafe {
        std::arch::x86_64::_mm_sfence()
    }
}

#[cfg(target_arch = "x86_64")]
const LINE: usize = 64;

/// # Safety
/// AVX-512; `bytes` bytes at both places, a multiple of 64, `to` aligned to them.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
unsafe fn lines(from: *const u8, to: *mut u8, bytes: usize) {
    use std::arch::x86_64::{_mm512_loadu_si512, _mm512_stream_si512};
    for at in (0..bytes).step_by(LINE) {
        // SAFETY: as promised by the caller.
        unsafe { _mm512_stream_si512(to.add(at).cast(), _mm512_loadu_si512(from.add(at).cast())) }
    }
}

/// # Safety
/// As [`lines`], on any x86-64.
#[cfg(target_arch = "x86_64")]
unsafe fn quarters(from: *const u8, to: *mut u8, bytes: usize) {
    use std::arch::x86_64::{_mm_loadu_si128, _mm_stream_si128};
    for at in (0..bytes).step_by(LINE / 4) {
        // SAFETY: as promised by the caller.
        unsafe { _mm_stream_si128(to.add(at).cast(), _mm_loadu_si128(from.add(at).cast())) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::isa::for_each_isa;

    #[test]
    fn copies_of_any_place_and_length_arrive() {
        #[repr(align(64))]
        struct Aligned([u16; 400]);
        let from: Vec<u16> = (1..=400).collect();
        for_each_isa(|isa| {
            for (start, len) in [(0, 0), (0, 32), (0, 33), (32, 320), (1, 64), (8, 32), (64, 336)] {
                let mut to = Aligned([0; 400]);
                copy_past_caches(&from[..len], &mut to.0[start..start + len]);
                finish_stores();
                assert_eq!(to.0[start..start + len], from[..len], "{}: {len} at {start}", isa.name());
                let beside = to.0[..start].iter().chain(&to.0[start + len..]);
                assert!(beside.into_iter().all(|value| *value == 0), "{}: {len} at {start}", isa.name());
            }
        });
    }
}

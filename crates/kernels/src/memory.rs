//! Large zeroed buffers on large pages: weights, moments, gradients and activations are walked from end to end every
//! step, and with pages of 4 KiB the walk is limited by looking up addresses.
//! Knows the allocator's and the system's habits; knows nothing of tensors. Cost: one system call per buffer.

use bytemuck::Zeroable;

/// Pages that Linux calls huge on x86-64 and most of AArch64.
const HUGE: usize = 2 << 20;

/// `len` zeros, on huge pages where the system has them and the buffer is large enough to matter. The pages are
/// touched on first use.
pub fn zeroed<T: Zeroable>(len: usize) -> Vec<T> {
    let values = bytemuck::zeroed_vec(len);
    prefer_huge_pages(&values);
    values
}

/// Advises the system, before the first touch. Whether it listens changes speed only, so its answer is not looked at.
fn prefer_huge_pages<T>(values: &[T]) {
    #[cfg(target_os = "linux")]
    {
        const PAGE: usize = 4096;
        if size_of_val(values) >= HUGE / 4 {
            // Outwards to whole pages: neighbouring buffers then share the huge pages between them.
            let start = values.as_ptr() as usize / PAGE * PAGE;
            let end = (values.as_ptr() as usize + size_of_val(values)).next_multiple_of(PAGE);
            // SAFETY: these pages belong to the allocator's live mapping; the advice changes no contents.
            unsafe { libc::madvise(start as *mut libc::c_void, end - start, libc::MADV_HUGEPAGE) };
        }
    }
    #[cfg(not(target_os = "linux"))]
    let _ = values;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_zero_at_every_size() {
        for len in [0, 1, 1000, HUGE / 4, 3 * HUGE / 4 + 5] {
            let values = zeroed::<f32>(len);
            assert_eq!(values.len(), len);
            assert!(values.iter().all(|&value| value == 0.0));
        }
    }
}

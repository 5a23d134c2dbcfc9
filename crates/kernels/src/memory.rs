//! Large zeroed buffers on large pages: weights, moments, gradients and activations are walked from end to end every
//! step, and with pages of 4 KiB the walk is limited by looking up addresses.
//! Knows the allocator's and the system's habits; knows nothing of tensors. Cost: one system call per buffer.

use crate::cpu::scratch::Line;
use bytemuck::{Pod, Zeroable};
use std::marker::PhantomData;

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

/// Zeroed bytes that keep their place, on huge pages of their own where that pays: for what is read from end to end,
/// once a token.
#[derive(Debug)]
pub(crate) enum Bytes {
    /// Small: from the allocator.
    Heap(Vec<Line>),
    /// Whole huge pages from the system, and how many bytes of them are used.
    Mapped(memmap2::MmapMut, usize),
}

impl Bytes {
    /// At least `len` bytes, up to the next cache line.
    pub(crate) fn new(len: usize) -> Self {
        let len = len.next_multiple_of(size_of::<Line>());
        // Below half a huge page the rest of it would be wasted; where the system gives none, the allocator does.
        if len >= HUGE / 2
            && let Ok(map) = memmap2::MmapMut::map_anon(len.next_multiple_of(HUGE))
        {
            #[cfg(target_os = "linux")]
            let _ = map.advise(memmap2::Advice::HugePage);
            return Self::Mapped(map, len);
        }
        Self::Heap(zeroed(len / size_of::<Line>()))
    }
}

impl Clone for Bytes {
    fn clone(&self) -> Self {
        let mut bytes = Self::new(self.len());
        bytes.copy_from_slice(self);
        bytes
    }
}

impl std::ops::Deref for Bytes {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        match self {
            Self::Heap(lines) => bytemuck::cast_slice(lines),
            Self::Mapped(map, len) => &map[..*len],
        }
    }
}

impl std::ops::DerefMut for Bytes {
    fn deref_mut(&mut self) -> &mut [u8] {
        match self {
            Self::Heap(lines) => bytemuck::cast_slice_mut(lines),
            Self::Mapped(map, len) => &mut map[..*len],
        }
    }
}

/// Numbers that start on a cache line, so that no vector or tile straddles two, on large pages where there are many.
/// Holds a fixed room; how much of it counts can change.
#[derive(Debug)]
pub struct Values<T> {
    room: Room,
    len: usize,
    element: PhantomData<T>,
}

#[derive(Debug)]
enum Room {
    Heap(Vec<Line>),
    Mapped(memmap2::MmapMut),
}

impl<T: Pod> Values<T> {
    /// `len` zeros; the pages of large buffers are touched on first use.
    pub fn zeroed(len: usize) -> Self {
        let bytes = len * size_of::<T>();
        let mapped = if bytes >= HUGE / 4 { memmap2::MmapMut::map_anon(bytes).ok() } else { None };
        let room = match mapped {
            Some(map) => {
                #[cfg(target_os = "linux")]
                // Whether the system listens changes speed only.
                let _ = map.advise(memmap2::Advice::HugePage);
                Room::Mapped(map)
            }
            None => Room::Heap(bytemuck::zeroed_vec(bytes.div_ceil(size_of::<Line>()))),
        };
        Self { room, len, element: PhantomData }
    }

    fn room(&self) -> &[T] {
        let bytes: &[u8] = match &self.room {
            Room::Heap(lines) => bytemuck::cast_slice(lines),
            Room::Mapped(map) => map,
        };
        bytemuck::cast_slice(&bytes[..bytes.len() / size_of::<T>() * size_of::<T>()])
    }

    fn room_mut(&mut self) -> &mut [T] {
        let bytes: &mut [u8] = match &mut self.room {
            Room::Heap(lines) => bytemuck::cast_slice_mut(lines),
            Room::Mapped(map) => map,
        };
        let whole = bytes.len() / size_of::<T>() * size_of::<T>();
        bytemuck::cast_slice_mut(&mut bytes[..whole])
    }

    /// How many numbers fit.
    pub fn capacity(&self) -> usize {
        self.room().len()
    }

    /// Makes the first `len` numbers count, whatever they are.
    pub fn set_len(&mut self, len: usize) {
        assert!(len <= self.capacity(), "{len} numbers do not fit");
        self.len = len;
    }
}

impl<T: Pod> Default for Values<T> {
    fn default() -> Self {
        Self::zeroed(0)
    }
}

impl<T: Pod + PartialEq> PartialEq for Values<T> {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl<'a, T: Pod> IntoIterator for &'a Values<T> {
    type Item = &'a T;
    type IntoIter = std::slice::Iter<'a, T>;
    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl<T: Pod> std::ops::Deref for Values<T> {
    type Target = [T];
    fn deref(&self) -> &[T] {
        &self.room()[..self.len]
    }
}

impl<T: Pod> std::ops::DerefMut for Values<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        let len = self.len;
        &mut self.room_mut()[..len]
    }
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

    #[test]
    fn values_start_on_a_line_and_keep_their_room() {
        for len in [0, 1, 17, 1000, HUGE / 16, HUGE / 2 + 3] {
            let mut values = Values::<f32>::zeroed(len);
            assert_eq!((values.len(), values.as_ptr() as usize % 64), (len, 0));
            assert!(values.capacity() >= len && values.iter().all(|&value| value == 0.0));
            values.fill(2.0);
            values.set_len(len / 2);
            assert_eq!(values.iter().sum::<f32>(), 2.0 * (len / 2) as f32);
        }
    }

    #[test]
    fn bytes_hold_what_is_written_in_either_place() {
        for len in [1, 64, HUGE / 2, HUGE + 1] {
            let mut bytes = Bytes::new(len);
            assert!(bytes.len() >= len && bytes.iter().all(|&byte| byte == 0));
            assert_eq!(bytes.as_ptr() as usize % 64, 0);
            let last = bytes.len() - 1;
            bytes[last] = 7;
            assert_eq!(bytes.clone()[last], 7);
        }
    }
}

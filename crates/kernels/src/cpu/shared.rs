//! A buffer that several tasks write to, each in places of its own: rows and heads that no splitting of slices can
//! express. Knows nothing of who writes where; that promise is the callers'.
//! Cost: one bounds check per slice.

use std::marker::PhantomData;

/// A buffer that several tasks write to, each in places of its own.
pub(crate) struct SharedMut<'a, T> {
    start: *mut T,
    len: usize,
    owner: PhantomData<&'a mut [T]>,
}

// SAFETY: access goes through `slice`, whose callers promise disjoint ranges.
unsafe impl<T: Send> Sync for SharedMut<'_, T> {}
// SAFETY: as above.
unsafe impl<T: Send> Send for SharedMut<'_, T> {}

impl<'a, T> SharedMut<'a, T> {
    /// Borrows `data` for as long as tasks may write to it.
    pub(crate) fn new(data: &'a mut [T]) -> Self {
        Self { start: data.as_mut_ptr(), len: data.len(), owner: PhantomData }
    }

    /// `len` elements from `start` on; panics outside the buffer.
    ///
    /// # Safety
    /// No two live slices may overlap.
    #[allow(clippy::mut_from_ref)]
    pub(crate) unsafe fn slice(&self, start: usize, len: usize) -> &mut [T] {
        assert!(start.checked_add(len).is_some_and(|end| end <= self.len), "slice outside the shared buffer");
        // SAFETY: inside the buffer (checked above) and disjoint from other slices (promised by the caller).
        unsafe { std::slice::from_raw_parts_mut(self.start.add(start), len) }
    }
}

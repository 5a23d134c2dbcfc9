//! Where the gradients of all parameters add up, on the host and on a GPU.
//! Knows places in the flat buffer; knows neither names nor ops.
//! Cost: 4 bytes for each value from the first that learns to the last. Clearing writes nothing: what counts as zero is
//! filled, or written over, by the next backward pass.

use std::ops::Range;

use foveate_kernels::cuda::{Device, DeviceBuffer, Number, View};
use foveate_kernels::memory::Values;
use foveate_kernels::parallel;

/// Parameters accumulate their gradients here, at the same offsets as in the flat buffer.
#[derive(Debug, Default)]
pub struct Gradients {
    /// One value a parameter; zero where nothing learns. After [`Gradients::clear`] it holds again once a backward pass on
    /// the CPU has ended, or [`Gradients::collect`] was called.
    pub flat: Values<f32>,
    /// From the first value that learns to behind the last: the rest is never touched and takes no memory.
    pub active: Range<usize>,
    /// Parts of `flat` that count as zero whatever stands there, ascending: filled when first written to, or at the end
    /// of a backward pass.
    pub(crate) untouched: Vec<Range<usize>>,
    /// What a GPU has added up: one value for each of `active`.
    pub(crate) on_device: Option<DeviceBuffer>,
}

impl Gradients {
    /// Adds what a GPU has summed to `flat`; nothing to do on the CPU. Waits for the device, whose errors the next pass
    /// tells.
    pub fn collect(&mut self) {
        self.settle();
        if let Some(sums) = self.on_device.take() {
            let more: Vec<f32> = sums.download();
            for (sum, more) in self.flat[self.active.clone()].iter_mut().zip(more) {
                *sum += more;
            }
        }
    }

    /// Makes room on a GPU, zeroed, unless there is some.
    pub(crate) fn make_on_device(&mut self, device: &Device) -> &DeviceBuffer {
        let len = self.active.len();
        self.on_device.get_or_insert_with(|| device.zeroed(Number::F32, len))
    }

    /// Where a GPU adds the gradients of part of the flat buffer.
    pub(crate) fn on_device(&self, range: Range<usize>) -> View<'_> {
        let sums = self.on_device.as_ref().expect("made when the backward pass began");
        sums.part(range.start - self.active.start..range.end - self.active.start)
    }

    /// Back to zero, keeping the memory. The values change when the next backward pass writes them, or at its end: a
    /// pass over all of them is saved.
    pub fn clear(&mut self) {
        if let Some(sums) = &self.on_device {
            sums.all().zero();
        }
        self.untouched = vec![self.active.clone()];
    }

    /// Fills what no pass has written to since it was cleared.
    pub(crate) fn settle(&mut self) {
        let parts = std::mem::take(&mut self.untouched);
        self.fill(parts);
    }

    /// Part of `flat`, to be added to.
    pub(crate) fn part(&mut self, range: Range<usize>) -> &mut [f32] {
        self.touch(range.clone());
        &mut self.flat[range]
    }

    /// Part of `flat`, and whether its values are to be taken for zeros.
    pub(crate) fn part_or_fresh(&mut self, range: Range<usize>) -> (&mut [f32], bool) {
        let fresh = self.untouched.iter().any(|free| free.start <= range.start && range.end <= free.end);
        if fresh {
            self.cut(&range);
        } else {
            self.touch(range.clone());
        }
        (&mut self.flat[range], fresh)
    }

    /// Fills what has not been written to in `range`.
    pub(crate) fn touch(&mut self, range: Range<usize>) {
        let parts = self.cut(&range);
        self.fill(parts);
    }

    fn fill(&mut self, parts: Vec<Range<usize>>) {
        for part in parts {
            parallel::for_rows(&mut self.flat[part], 1, 1 << 16, |_, chunk| chunk.fill(0.0));
        }
    }

    /// Takes `range` out of what is untouched; returns what was.
    fn cut(&mut self, range: &Range<usize>) -> Vec<Range<usize>> {
        let mut taken = Vec::new();
        let mut left = Vec::with_capacity(self.untouched.len() + 1);
        for free in self.untouched.drain(..) {
            let part = free.start.max(range.start)..free.end.min(range.end);
            if part.is_empty() {
                left.push(free);
                continue;
            }
            left.extend([free.start..part.start, part.end..free.end].into_iter().filter(|rest| !rest.is_empty()));
            taken.push(part);
        }
        self.untouched = left;
        taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_cleared_counts_as_zero_until_it_is_written() {
        let mut gradients = Gradients { flat: Values::zeroed(100), active: 10..90, ..Gradients::default() };
        gradients.flat.fill(7.0);
        gradients.clear();
        // Written over: nobody fills it.
        let (part, fresh) = gradients.part_or_fresh(20..30);
        assert!(fresh && part.iter().all(|value| *value == 7.0));
        part.fill(1.0);
        // Added to, partly for the second time.
        assert!(gradients.part(25..35).iter().enumerate().all(|(at, value)| *value == if at < 5 { 1.0 } else { 0.0 }));
        // Neither all new nor all old.
        let (part, fresh) = gradients.part_or_fresh(33..50);
        assert!(!fresh && part.iter().all(|value| *value == 0.0));
        gradients.settle();
        let expected = |at| match at {
            20..30 => 1.0,
            10..90 => 0.0,
            _ => 7.0,
        };
        assert!(gradients.flat.iter().enumerate().all(|(at, value)| *value == expected(at)));
        assert!(!gradients.part_or_fresh(40..50).1, "a pass adds to the one before");
    }
}

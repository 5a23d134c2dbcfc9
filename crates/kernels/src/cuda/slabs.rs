//! Which parts of large pieces of memory are in use: the arena of a device. Best fit, neighbours joined at once.
//! Knows addresses and sizes; touches no memory and asks nobody for any. Cost: two searches in ordered maps per request.

use std::collections::{BTreeMap, BTreeSet};

/// What a device's addresses are multiples of, so that every vector load and every product is aligned.
pub(super) const GRAIN: usize = 256;

/// Slabs of memory and what is free in them.
#[derive(Debug, Default)]
pub(super) struct Slabs {
    /// Begin and size of every slab.
    slabs: BTreeMap<u64, usize>,
    /// Begin and size of every free part. Two free parts of one slab never touch.
    free: BTreeMap<u64, usize>,
    /// The same by size.
    by_size: BTreeSet<(usize, u64)>,
}

impl Slabs {
    /// Another slab, all free.
    pub fn add(&mut self, start: u64, bytes: usize) {
        self.slabs.insert(start, bytes);
        self.put(start, bytes);
    }

    /// Bytes of all slabs.
    pub fn bytes(&self) -> usize {
        self.slabs.values().sum()
    }

    /// The largest request that can be served.
    #[cfg(test)]
    pub fn largest(&self) -> usize {
        self.by_size.last().map_or(0, |(bytes, _)| *bytes)
    }

    /// `bytes` (a multiple of [`GRAIN`]) from the smallest free part that has so many.
    pub fn take(&mut self, bytes: usize) -> Option<u64> {
        let (found, start) = *self.by_size.range((bytes, 0)..).next()?;
        self.cut(start, found);
        if found > bytes {
            self.put(start + bytes as u64, found - bytes);
        }
        Some(start)
    }

    /// Takes back what [`Slabs::take`] gave.
    pub fn give(&mut self, start: u64, bytes: usize) {
        let (mut start, mut bytes) = (start, bytes);
        // Slabs are never joined: they go back to the system one by one.
        if let Some((before, size)) = self.free.range(..start).next_back().map(|(at, size)| (*at, *size))
            && before + size as u64 == start
            && !self.slabs.contains_key(&start)
        {
            self.cut(before, size);
            (start, bytes) = (before, bytes + size);
        }
        let end = start + bytes as u64;
        if let Some(size) = self.free.get(&end).copied()
            && !self.slabs.contains_key(&end)
        {
            self.cut(end, size);
            bytes += size;
        }
        self.put(start, bytes);
    }

    /// Removes the slabs in which nothing is used.
    pub fn remove_unused(&mut self) -> Vec<u64> {
        let unused: Vec<(u64, usize)> =
            self.slabs.iter().map(|(start, bytes)| (*start, *bytes)).filter(|slab| self.is_unused(*slab)).collect();
        for (start, bytes) in &unused {
            self.cut(*start, *bytes);
            self.slabs.remove(start);
        }
        unused.into_iter().map(|(start, _)| start).collect()
    }

    fn is_unused(&self, (start, bytes): (u64, usize)) -> bool {
        self.free.get(&start) == Some(&bytes)
    }

    fn put(&mut self, start: u64, bytes: usize) {
        self.free.insert(start, bytes);
        self.by_size.insert((bytes, start));
    }

    fn cut(&mut self, start: u64, bytes: usize) {
        self.free.remove(&start);
        self.by_size.remove(&(bytes, start));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::{Purpose, Stream};

    #[test]
    fn parts_never_overlap_and_everything_comes_back() {
        let mut slabs = Slabs::default();
        // Two slabs that touch: a part must not reach from one into the other.
        slabs.add(1 << 20, 1 << 16);
        slabs.add((1 << 20) + (1 << 16), 1 << 15);
        let all = slabs.bytes();
        let stream = Stream::new(1, Purpose::Initialisation, 0, 0, 0);
        let mut used: Vec<(u64, usize)> = Vec::new();
        for turn in 0..4000 {
            let [choice, size, ..] = stream.words(turn);
            if choice % 3 == 0 && !used.is_empty() {
                let (start, bytes) = used.swap_remove(size as usize % used.len());
                slabs.give(start, bytes);
            } else {
                let bytes = GRAIN * (1 + size as usize % 40);
                let fits = slabs.largest() >= bytes;
                let found = slabs.take(bytes);
                assert_eq!(found.is_some(), fits);
                used.extend(found.map(|start| (start, bytes)));
            }
            let mut sorted = used.clone();
            sorted.sort_unstable();
            for pair in sorted.windows(2) {
                assert!(pair[0].0 + pair[0].1 as u64 <= pair[1].0, "two parts overlap");
            }
            for (start, bytes) in &sorted {
                let inside =
                    |(slab, size): (&u64, &usize)| *slab <= *start && start + *bytes as u64 <= slab + *size as u64;
                assert!(slabs.slabs.iter().any(inside), "a part reaches out of its slab");
            }
            let free: usize = slabs.free.values().sum();
            assert_eq!(free + used.iter().map(|(_, bytes)| bytes).sum::<usize>(), all, "nothing is lost");
        }
        assert!(slabs.remove_unused().len() < 2, "a slab in use stays");
        used.drain(..).for_each(|(start, bytes)| slabs.give(start, bytes));
        assert_eq!(slabs.free.len(), slabs.slabs.len(), "neighbours are joined");
        slabs.remove_unused();
        assert_eq!((slabs.bytes(), slabs.largest()), (0, 0));
    }

    #[test]
    fn the_smallest_part_that_fits_is_taken() {
        let mut slabs = Slabs::default();
        slabs.add(0, 10 * GRAIN);
        let parts: Vec<u64> = [3, 1, 2, 4].iter().map(|grains| slabs.take(grains * GRAIN).expect("fits")).collect();
        assert!(slabs.take(GRAIN).is_none(), "all is used");
        slabs.give(parts[0], 3 * GRAIN);
        slabs.give(parts[2], 2 * GRAIN);
        assert_eq!(slabs.take(2 * GRAIN), Some(parts[2]));
        assert_eq!(slabs.take(GRAIN), Some(parts[0]));
    }
}

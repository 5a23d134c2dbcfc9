//! A cursor over one keyed stream of random numbers, with the few kinds of draws that worlds need.
//! Knows nothing of scenes. Cost: one Philox call per draw.

use foveate_kernels::rng::{Purpose, Stream};

/// Draws one number after another from a keyed stream; same key, same numbers.
#[derive(Clone, Debug)]
pub struct Draws {
    stream: Stream,
    position: u32,
}

impl Draws {
    /// The draws for (`seed`, `purpose`, `part`, `index`). `part` separates uses that share the other three.
    pub fn new(seed: u64, purpose: Purpose, part: u32, index: u64) -> Self {
        Self { stream: Stream::new(seed, purpose, part, index as u32, (index >> 32) as u32), position: 0 }
    }

    /// Uniform in `0..bound`; `bound` must not be 0.
    pub fn below(&mut self, bound: usize) -> usize {
        assert!(bound > 0, "a draw needs at least one possibility");
        self.position += 1;
        self.stream.below(self.position - 1, bound as u32) as usize
    }

    /// Uniform in `low..=high`.
    pub fn between(&mut self, low: i64, high: i64) -> i64 {
        low + self.below((high - low + 1) as usize) as i64
    }

    /// True in `percent` of 100 cases.
    pub fn percent(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }

    /// True with probability `share`.
    pub fn chance(&mut self, share: f64) -> bool {
        (self.below(1 << 24) as f64) < share * f64::from(1u32 << 24)
    }

    /// One of the items, which must not be empty.
    pub fn pick<T: Copy>(&mut self, items: &[T]) -> T {
        items[self.below(items.len())]
    }

    /// A random order in place (Fisher-Yates).
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            items.swap(i, self.below(i + 1));
        }
    }

    /// `count` different items in random order; fewer if there are fewer.
    pub fn sample<T: Copy>(&mut self, items: &[T], count: usize) -> Vec<T> {
        let mut all = items.to_vec();
        self.shuffle(&mut all);
        all.truncate(count);
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_repeat_and_cover_their_range() {
        let numbers = |part| {
            let mut draws = Draws::new(7, Purpose::Test, part, 1 << 40);
            (0..200).map(|_| draws.below(5)).collect::<Vec<_>>()
        };
        assert_eq!(numbers(1), numbers(1));
        assert_ne!(numbers(1), numbers(2));
        assert!((0..5).all(|wanted| numbers(1).contains(&wanted)));
    }

    #[test]
    fn a_shuffle_keeps_all_items() {
        let mut draws = Draws::new(7, Purpose::Test, 0, 0);
        let mut items: Vec<u32> = (0..50).collect();
        draws.shuffle(&mut items);
        assert_ne!(items, (0..50).collect::<Vec<_>>());
        items.sort_unstable();
        assert_eq!(items, (0..50).collect::<Vec<_>>());
    }
}

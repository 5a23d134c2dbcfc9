//! The order in which rows are asked: shuffled epochs without end, resumable from one number.
//! The order is a keyed permutation computed entry by entry (a Feistel network on Philox with cycle walking), so any
//! position can be reached at once and nothing but the position needs to be saved.
//! Cost: about 12 Philox calls per question.

use std::sync::Arc;

use foveate_kernels::rng::{Purpose, Stream};
use foveate_tasks::Row;

use super::dataset::Dataset;

/// A permutation of `0..len` for each epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Order {
    len: u64,
    /// Bits of each half of the Feistel network; two halves cover `len`.
    half_bits: u32,
    seed: u64,
    /// Keeps orders apart that share a seed, for instance those of several stages.
    stream: u32,
    shuffled: bool,
}

const ROUNDS: u32 = 6;

impl Order {
    /// Shuffled epochs over `len` rows, keyed by `seed` and `stream`.
    pub fn shuffled(len: usize, seed: u64, stream: u32) -> Self {
        let len = len as u64;
        let bits = u64::BITS - len.saturating_sub(1).leading_zeros();
        Self { len, half_bits: bits.div_ceil(2).max(1), seed, stream, shuffled: true }
    }

    /// Epochs in the order of the source.
    pub fn as_is(len: usize) -> Self {
        Self { shuffled: false, ..Self::shuffled(len, 0, 0) }
    }

    /// The row asked at `position`, counted over all epochs. There must be rows.
    pub fn row_at(&self, position: u64) -> usize {
        assert!(self.len > 0, "an order needs rows; `open` refuses sources without any");
        let (epoch, offset) = (position / self.len, position % self.len);
        if !self.shuffled {
            return offset as usize;
        }
        // A permutation of a power of four at least as large as len; walk on until the result lies inside.
        let mut place = offset;
        loop {
            place = self.mix(epoch, place);
            if place < self.len {
                return place as usize;
            }
        }
    }

    fn mix(&self, epoch: u64, place: u64) -> u64 {
        let mask = (1u64 << self.half_bits) - 1;
        let (mut left, mut right) = (place >> self.half_bits, place & mask);
        for round in 0..ROUNDS {
            let key = Stream::new(self.seed, Purpose::Shuffle, self.stream, epoch as u32, round);
            let words = key.words(right as u32);
            let scrambled = u64::from(words[0]) | u64::from(words[1]) << 32;
            (left, right) = (right, left ^ (scrambled & mask));
        }
        left << self.half_bits | right
    }
}

/// A row about to be asked.
#[derive(Clone, Debug)]
pub struct Question {
    /// Position in the run, counted over all epochs; randomness is keyed by it.
    pub position: u64,
    /// The row's index in its dataset.
    pub index: usize,
    /// The row.
    pub row: Row,
}

/// Rows in their order, from a position that can be saved and restored.
#[derive(Clone, Debug)]
pub struct Questions {
    dataset: Arc<Dataset>,
    order: Order,
    position: u64,
}

impl Questions {
    /// Starts at position 0.
    pub fn new(dataset: Arc<Dataset>, order: Order) -> Self {
        Self { dataset, order, position: 0 }
    }

    /// The next `count` questions, across the end of an epoch if need be.
    pub fn next_batch(&mut self, count: usize) -> Vec<Question> {
        let batch = (self.position..self.position + count as u64).map(|position| self.at(position)).collect();
        self.position += count as u64;
        batch
    }

    /// The question at any position; does not move.
    pub fn at(&self, position: u64) -> Question {
        let index = self.order.row_at(position);
        Question { position, index, row: self.dataset.row(index) }
    }

    /// How many questions were asked. All there is to save.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// Goes on from a saved position.
    pub fn seek(&mut self, position: u64) {
        self.position = position;
    }

    /// Passes through the data so far, with fraction.
    pub fn epochs(&self) -> f64 {
        self.position as f64 / self.dataset.len() as f64
    }

    /// The rows.
    pub fn dataset(&self) -> &Dataset {
        &self.dataset
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_epoch_asks_every_row_once_in_an_order_of_its_own() {
        for len in [1, 2, 3, 5, 16, 17, 100, 1000] {
            let order = Order::shuffled(len, 7, 0);
            let epoch =
                |epoch: u64| -> Vec<usize> { (0..len as u64).map(|i| order.row_at(epoch * len as u64 + i)).collect() };
            let mut sorted = epoch(0);
            sorted.sort_unstable();
            assert_eq!(sorted, (0..len).collect::<Vec<_>>());
            if len >= 16 {
                assert_ne!(epoch(0), epoch(1));
                assert_ne!(epoch(0), (0..len).collect::<Vec<_>>());
                assert_ne!(
                    Order::shuffled(len, 8, 0).row_at(0)..=Order::shuffled(len, 8, 0).row_at(3),
                    epoch(0)[0]..=epoch(0)[3]
                );
            }
        }
    }

    #[test]
    fn places_are_evenly_spread() {
        // Where row 0 of 10 lands over 2000 epochs: 200 times each place, give or take.
        let order = Order::shuffled(10, 3, 1);
        let mut counts = [0; 10];
        for epoch in 0..2000 {
            let place = (0..10).find(|i| order.row_at(epoch * 10 + i) == 0).unwrap();
            counts[place as usize] += 1;
        }
        assert!(counts.iter().all(|&count| (150..250).contains(&count)), "{counts:?}");
    }

    #[test]
    fn the_order_of_the_source_can_be_kept() {
        let order = Order::as_is(3);
        assert_eq!((0..7).map(|position| order.row_at(position)).collect::<Vec<_>>(), [0, 1, 2, 0, 1, 2, 0]);
    }
}

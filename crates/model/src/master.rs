//! The flat buffer of a model's weights on the host. Where a GPU has moved on with parts of it, they are fetched when
//! somebody next reads: a run on a GPU reads at checkpoints alone.
//! Knows values and ranges; knows no parameters. Cost: none where nothing is behind.

use std::ops::Range;
use std::sync::{Mutex, OnceLock, PoisonError};

/// The values, and which of them are out of date.
pub(crate) struct Master {
    len: usize,
    /// Absent while some are behind.
    current: OnceLock<Vec<f32>>,
    behind: Mutex<Option<Behind>>,
}

struct Behind {
    values: Vec<f32>,
    ranges: Vec<Range<usize>>,
}

impl Master {
    pub fn new(values: Vec<f32>) -> Self {
        Master { len: values.len(), current: OnceLock::from(values), behind: Mutex::default() }
    }

    /// Number of values.
    pub fn len(&self) -> usize {
        self.len
    }

    /// The values; `fetch` overwrites those that are behind.
    pub fn get(&self, fetch: impl Fn(Range<usize>, &mut [f32])) -> &[f32] {
        self.current.get_or_init(|| {
            let mut behind = self.behind.lock().unwrap_or_else(PoisonError::into_inner);
            let Behind { mut values, ranges } = behind.take().expect("values are here or behind");
            for range in joined(ranges) {
                fetch(range.clone(), &mut values[range]);
            }
            values
        })
    }

    /// The values, to be changed. [`Master::get`] comes first.
    pub fn get_mut(&mut self) -> &mut [f32] {
        self.current.get_mut().expect("values are fetched before they are changed")
    }

    /// The values, handed out. [`Master::get`] comes first.
    pub fn into_values(self) -> Vec<f32> {
        self.current.into_inner().expect("values are fetched before they are handed out")
    }

    /// Somebody else has newer values of `range`.
    pub fn falls_behind(&mut self, range: Range<usize>) {
        let behind = self.behind.get_mut().unwrap_or_else(PoisonError::into_inner);
        if let Some(values) = self.current.take() {
            *behind = Some(Behind { values, ranges: Vec::new() });
        }
        let ranges = &mut behind.as_mut().expect("values are here or behind").ranges;
        // An optimiser moves the same ranges every step.
        if !ranges.contains(&range) {
            ranges.push(range);
        }
    }
}

/// The ranges in order, those that touch or overlap as one.
pub(crate) fn joined(mut ranges: Vec<Range<usize>>) -> Vec<Range<usize>> {
    ranges.sort_unstable_by_key(|range| range.start);
    let mut all: Vec<Range<usize>> = Vec::with_capacity(ranges.len());
    for range in ranges {
        match all.last_mut() {
            Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
            _ => all.push(range),
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_behind_is_fetched_once_when_it_is_read() {
        let mut master = Master::new(vec![0.0; 10]);
        for range in [2..4, 7..9, 2..4, 4..5] {
            master.falls_behind(range);
        }
        let fetched = Mutex::new(Vec::new());
        let fetch = |range: Range<usize>, values: &mut [f32]| {
            fetched.lock().expect("no holder panics").push(range);
            values.fill(1.0);
        };
        let want = [0.0, 0.0, 1.0, 1.0, 1.0, 0.0, 0.0, 1.0, 1.0, 0.0];
        assert_eq!(master.get(fetch), want);
        assert_eq!(master.get(fetch), want);
        assert_eq!(*fetched.lock().expect("no holder panics"), [2..5, 7..9]);
        master.get_mut()[0] = 3.0;
        assert_eq!((master.len(), master.into_values()[0]), (10, 3.0));
    }
}

//! Where the time of a pass goes: each op's name, how often it ran and for how long, on the thread that calls ops.
//! Off unless asked for; knows names and the clock. Cost: one look at a flag per op when off.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// Calls and time of one op.
#[derive(Clone, Copy, Debug, Default)]
pub struct Spent {
    /// How often it ran.
    pub calls: u64,
    /// For how long, together.
    pub time: Duration,
}

thread_local! {
    static TIMES: RefCell<Option<BTreeMap<&'static str, Spent>>> = const { RefCell::new(None) };
}

/// Times everything that `f` runs on this thread.
pub fn profiled<R>(f: impl FnOnce() -> R) -> (R, BTreeMap<&'static str, Spent>) {
    let outer = TIMES.replace(Some(BTreeMap::new()));
    let result = f();
    let times = TIMES.replace(outer).unwrap_or_default();
    (result, times)
}

/// Counts the time until it is dropped.
pub struct Timer(Option<(&'static str, Instant)>);

/// Starts timing the op `name`, if anybody wants to know.
pub fn timer(name: &'static str) -> Timer {
    let wanted = TIMES.with_borrow(Option::is_some);
    Timer(wanted.then(|| (name, Instant::now())))
}

impl Drop for Timer {
    fn drop(&mut self) {
        if let Some((name, start)) = self.0 {
            let time = start.elapsed();
            TIMES.with_borrow_mut(|times| {
                if let Some(times) = times {
                    let spent = times.entry(name).or_default();
                    spent.calls += 1;
                    spent.time += time;
                }
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_only_inside() {
        drop(timer("before"));
        let (value, times) = profiled(|| {
            for _ in 0..3 {
                drop(timer("inside"));
            }
            7
        });
        drop(timer("after"));
        assert_eq!(value, 7);
        assert_eq!(times.keys().copied().collect::<Vec<_>>(), ["inside"]);
        assert_eq!(times["inside"].calls, 3);
    }
}

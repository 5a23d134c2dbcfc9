//! What the tests of several ops share: repeatable values, comparison with a reference, pools of several sizes.
//! Cost: none worth naming.

#![allow(dead_code)] // each test binary uses its part

use foveate_kernels::element::Element;
use foveate_kernels::rng::{Purpose, Stream};

/// Normal values that `E` holds exactly.
pub fn values<E: Element>(stream: u32, count: usize) -> Vec<E> {
    let stream = Stream::new(11, Purpose::Test, stream, 0, 0);
    (0..count as u32).map(|at| E::from_f32(stream.normal(at))).collect()
}

/// Widens to f64.
pub fn wide<E: Element>(x: &[E]) -> Vec<f64> {
    x.iter().map(|x| f64::from(x.to_f32())).collect()
}

/// Holds `have` against `want`, `tolerance` relative to the largest element of `want`; bf16 gets its rounding on top.
#[track_caller]
pub fn check<E: Element>(what: &str, have: &[E], want: &[f64], tolerance: f64) {
    let rounding = if E::NAME == "bf16" { 1.0 / 128.0 } else { 0.0 };
    assert_eq!(have.len(), want.len(), "{what}: lengths");
    let scale = want.iter().fold(1e-3f64, |most, value| most.max(value.abs()));
    for (index, (have, want)) in have.iter().zip(want).enumerate() {
        let have = f64::from(have.to_f32());
        let fine = (have - want).abs() <= (tolerance + rounding) * scale;
        assert!(fine, "{what} ({}): element {index} is {have}, the reference has {want}", E::NAME);
    }
}

/// Raw bits, so that comparisons tell -0 from 0 and hold NaN equal to itself.
pub fn bits<E: Element>(x: &[E]) -> Vec<u32> {
    x.iter().map(|x| x.to_f32().to_bits()).collect()
}

/// Runs `job` on teams of 1, 2 and 5 threads and demands the same answer from all.
#[track_caller]
pub fn same_in_every_pool<R: PartialEq + Send>(what: &str, job: impl Fn() -> R + Sync) -> R {
    let run = |threads| foveate_kernels::team::with_threads(threads, &job);
    let one = run(1);
    assert!(one == run(2), "{what}: two threads differ from one");
    assert!(one == run(5), "{what}: five threads differ from one");
    one
}

/// `sum of a * b`: the scalar whose gradient a backward pass with incoming gradient `b` gives.
pub fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

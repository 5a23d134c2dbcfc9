//! How sure a score is (methods 7.2): unbiased pass@k, Wilson intervals, bootstrap over questions, paired comparisons.
//! Knows numbers only; resampling is keyed by a seed. Cost: 10,000 resamples of the clusters, groups of them in parallel.

use foveate_kernels::rng::{Purpose, Stream};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

/// Number of bootstrap resamples.
pub const RESAMPLES: u32 = 10_000;

/// Quantile of the normal distribution for 95 %.
const Z: f64 = 1.959_964;

/// A mean with its 95 % interval.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Estimate {
    /// The mean.
    pub mean: f64,
    /// Lower end.
    pub low: f64,
    /// Upper end.
    pub high: f64,
    /// Questions behind it.
    pub num: usize,
}

impl Estimate {
    /// Whether the intervals of two estimates have no common point.
    pub fn is_apart_from(&self, other: &Estimate) -> bool {
        self.low > other.high || self.high < other.low
    }
}

/// Unbiased pass@k with `correct` of `n` samples right: `1 - C(n-c, k) / C(n, k)`. `None` for k of 0 or beyond n:
/// nothing is extrapolated.
pub fn pass_at_k(n: u64, correct: u64, k: u64) -> Option<f64> {
    if k == 0 || k > n || correct > n {
        return None;
    }
    if n - correct < k {
        return Some(1.0);
    }
    let miss: f64 = (n - correct + 1..=n).map(|i| 1.0 - k as f64 / i as f64).product();
    Some(1.0 - miss)
}

/// Mean of pass@k over questions, each with (samples, right ones).
pub fn mean_pass_at_k(questions: &[(u64, u64)], k: u64) -> Option<f64> {
    let values: Option<Vec<f64>> = questions.iter().map(|&(n, c)| pass_at_k(n, c, k)).collect();
    values.filter(|v| !v.is_empty()).map(|v| v.iter().sum::<f64>() / v.len() as f64)
}

/// Wilson's 95 % interval of `correct` out of `n`: for greedy, right-or-wrong scores.
pub fn wilson(correct: u64, n: u64) -> Estimate {
    if n == 0 {
        return Estimate { mean: 0.0, low: 0.0, high: 1.0, num: 0 };
    }
    let (size, p) = (n as f64, correct as f64 / n as f64);
    let z2 = Z * Z / size;
    let centre = p + z2 / 2.0;
    let half = Z * (p * (1.0 - p) / size + z2 / (4.0 * size)).sqrt();
    let end = |x: f64| (x / (1.0 + z2)).clamp(0.0, 1.0);
    // At the borders the exact end is the border; rounding would leave 1e-17.
    let low = if correct == 0 { 0.0 } else { end(centre - half) };
    let high = if correct == n { 1.0 } else { end(centre + half) };
    Estimate { mean: p, low, high, num: n as usize }
}

/// `a - b` of two shares with their Wilson intervals, on different questions (Newcombe 1998, the tenth of his methods).
pub fn difference(a: &Estimate, b: &Estimate) -> Estimate {
    let mean = a.mean - b.mean;
    let low = mean - (a.mean - a.low).hypot(b.high - b.mean);
    let high = mean + (a.high - a.mean).hypot(b.mean - b.low);
    Estimate { mean, low, high, num: a.num + b.num }
}

/// Mean of graded or sampled scores with a percentile bootstrap over clusters. `clusters` gives each score's cluster
/// (its image, where an image has several questions); without it every score is its own.
pub fn bootstrap(scores: &[f64], clusters: Option<&[u64]>, seed: u64) -> Estimate {
    let grouped = group(scores, clusters);
    let (mean, num) = (mean_of(grouped.iter()), scores.len());
    if grouped.is_empty() {
        return Estimate { mean: 0.0, low: 0.0, high: 0.0, num };
    }
    let size = grouped.len() as u32;
    let mut means: Vec<f64> = (0..RESAMPLES)
        .into_par_iter()
        .map(|resample| {
            let stream = Stream::new(seed, Purpose::Bootstrap, resample, 0, 0);
            mean_of((0..size).map(|i| &grouped[stream.below(i, size) as usize]))
        })
        .collect();
    means.sort_by(f64::total_cmp);
    let at = |share: f64| means[((means.len() - 1) as f64 * share).round() as usize];
    Estimate { mean, low: at(0.025), high: at(0.975), num }
}

/// Difference `b - a` of two checkpoints on the same questions, in the same order. `None` if the lengths differ.
pub fn paired_difference(a: &[f64], b: &[f64], clusters: Option<&[u64]>, seed: u64) -> Option<Estimate> {
    if a.len() != b.len() || clusters.is_some_and(|c| c.len() != a.len()) {
        return None;
    }
    let differences: Vec<f64> = a.iter().zip(b).map(|(a, b)| b - a).collect();
    Some(bootstrap(&differences, clusters, seed))
}

// (sum, count) per cluster, in order of first appearance.
fn group(scores: &[f64], clusters: Option<&[u64]>) -> Vec<(f64, f64)> {
    let Some(clusters) = clusters else { return scores.iter().map(|s| (*s, 1.0)).collect() };
    let mut index = std::collections::BTreeMap::new();
    let mut grouped: Vec<(f64, f64)> = Vec::new();
    for (score, cluster) in scores.iter().zip(clusters) {
        let at = *index.entry(*cluster).or_insert_with(|| {
            grouped.push((0.0, 0.0));
            grouped.len() - 1
        });
        grouped[at].0 += score;
        grouped[at].1 += 1.0;
    }
    grouped
}

fn mean_of<'a>(clusters: impl Iterator<Item = &'a (f64, f64)>) -> f64 {
    let (sum, count) = clusters.fold((0.0, 0.0), |(s, n), (sum, count)| (s + sum, n + count));
    if count == 0.0 { 0.0 } else { sum / count }
}

/// The three levels of averaging, one way only: a task is the plain mean of its suites, the total that of its tasks.
pub fn macro_average(tasks: &[Vec<f64>]) -> Option<f64> {
    let mean = |values: &[f64]| (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64);
    let tasks: Option<Vec<f64>> = tasks.iter().map(|suites| mean(suites)).collect();
    mean(&tasks?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn golden_pass_at_k() {
        for (n, c, k, want) in
            [(256, 10, 1, 0.0390625), (256, 10, 8, 0.276246), (256, 10, 64, 0.946984), (8, 2, 4, 0.785714)]
        {
            assert!((pass_at_k(n, c, k).expect("k <= n") - want).abs() < 1e-6, "{k}");
        }
        assert_eq!(pass_at_k(8, 7, 4), Some(1.0));
        assert_eq!(pass_at_k(8, 0, 4), Some(0.0));
        assert_eq!((pass_at_k(8, 2, 9), pass_at_k(8, 2, 0), pass_at_k(2, 3, 1)), (None, None, None));
        assert_eq!(mean_pass_at_k(&[(4, 4), (4, 0)], 2), Some(0.5));
        assert_eq!(mean_pass_at_k(&[], 2), None);
    }

    #[test]
    fn golden_wilson() {
        for (c, n, low, high) in
            [(50, 100, 0.403832, 0.596168), (0, 20, 0.0, 0.161125), (649, 1000, 0.618899, 0.677960)]
        {
            let got = wilson(c, n);
            assert!((got.low - low).abs() < 1e-6 && (got.high - high).abs() < 1e-6, "{got:?}");
        }
        assert_eq!(wilson(20, 20).high, 1.0);
        assert_eq!((wilson(0, 0).low, wilson(0, 0).high), (0.0, 1.0));
    }

    #[test]
    fn golden_difference() {
        // His example: 56 of 70 against 48 of 80.
        let got = difference(&wilson(56, 70), &wilson(48, 80));
        let near = |got: f64, want: f64| (got - want).abs() < 1e-4;
        assert!(near(got.mean, 0.2) && near(got.low, 0.0524) && near(got.high, 0.3339), "{got:?}");
    }

    #[test]
    fn the_bootstrap_repeats_and_covers() {
        let scores: Vec<f64> = (0..100).map(|i| f64::from(u8::from(i % 2 == 0))).collect();
        let got = bootstrap(&scores, None, 1);
        assert_eq!(got, bootstrap(&scores, None, 1));
        let exact = wilson(50, 100);
        assert!((got.low - exact.low).abs() < 0.02 && (got.high - exact.high).abs() < 0.02, "{got:?}");
        // Ten questions of one image are one piece of evidence.
        let clusters: Vec<u64> = (0..100).map(|i| i / 10).collect();
        let blocks: Vec<f64> = (0..100).map(|i| f64::from(u8::from((i / 10) % 2 == 0))).collect();
        let clustered = bootstrap(&blocks, Some(&clusters), 1);
        assert!(clustered.high - clustered.low > 2.0 * (got.high - got.low));
        assert_eq!(bootstrap(&[], None, 1).num, 0);
        assert_eq!(bootstrap(&[0.5], None, 1).low, 0.5);
    }

    #[test]
    fn pairs_see_small_differences() {
        // Hard and easy questions: each run alone is noisy, their difference is not.
        let a: Vec<f64> = (0..200).map(|i| f64::from(u8::from(i % 2 == 0))).collect();
        let b: Vec<f64> = a.iter().enumerate().map(|(i, s)| if i % 10 == 1 { 1.0 } else { *s }).collect();
        let difference = paired_difference(&a, &b, None, 3).expect("same questions");
        assert!(difference.low > 0.04 && (difference.mean - 0.1).abs() < 1e-9, "{difference:?}");
        assert!(!bootstrap(&a, None, 3).is_apart_from(&bootstrap(&b, None, 3)));
        assert_eq!(paired_difference(&a, &b[1..], None, 3), None);
        assert_eq!(macro_average(&[vec![1.0, 0.0], vec![1.0]]), Some(0.75));
        assert_eq!(macro_average(&[vec![]]), None);
    }
}

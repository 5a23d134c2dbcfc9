//! Softmax statistics of one chunk of one row, their combination over chunks, and the gradient by the logits.
//! One definition of the order of sums for training and sampling: both call the functions of this file.
//! Cost: one `exp` per token.

use super::{CHUNK, RowData};
use crate::cpu::math::{exp, ln};
use crate::element::Element;
use crate::isa::multiversion;

/// What happens to a row's logits before the softmax.
#[derive(Clone, Copy, Debug)]
pub struct Scaling<'a> {
    /// Factor on the logits.
    pub inv_temperature: f32,
    /// Sorted ids without probability.
    pub banned: &'a [u32],
}

impl PartialEq for Scaling<'_> {
    fn eq(&self, other: &Self) -> bool {
        let same_list = std::ptr::eq(self.banned, other.banned) || self.banned == other.banned;
        self.inv_temperature.to_bits() == other.inv_temperature.to_bits() && same_list
    }
}

impl Scaling<'_> {
    /// Scaled logits in `z`, banned ones and the rest of the chunk at negative infinity.
    pub(super) fn apply(&self, logits: &[f32], first: usize, z: &mut [f32; CHUNK]) {
        scale(logits, self.inv_temperature, z);
        for index in banned_within(self.banned, first, logits.len()) {
            z[index] = f32::NEG_INFINITY;
        }
    }
}

impl Scaling<'_> {
    /// One token's scaled logit.
    pub(super) fn of(&self, logit: f32, id: u32) -> f32 {
        if self.banned.binary_search(&id).is_ok() { f32::NEG_INFINITY } else { logit * self.inv_temperature }
    }
}

/// Positions of banned tokens inside the chunk `first..first + len`.
fn banned_within(banned: &[u32], first: usize, len: usize) -> impl Iterator<Item = usize> {
    let start = banned.partition_point(|&id| (id as usize) < first);
    banned[start..].iter().map(move |&id| id as usize - first).take_while(move |&index| index < len)
}

/// Statistics of one chunk: with m the largest scaled logit, `sum` = Σ e^(z−m) and `weighted` = Σ (z−m) e^(z−m).
#[derive(Clone, Copy, Debug)]
pub(super) struct Partial {
    max: f32,
    sum: f32,
    weighted: f32,
    /// Scaled logit of the target, if it lies in this chunk.
    target: Option<f32>,
}

impl Partial {
    pub(super) fn max(&self) -> f32 {
        self.max
    }

    pub(super) fn sum(&self) -> f32 {
        self.sum
    }

    pub(super) fn set_target(&mut self, scaled_logit: f32) {
        self.target = Some(scaled_logit);
    }
}

/// Results of a whole row.
#[derive(Clone, Copy, Debug)]
pub(super) struct RowResult {
    pub(super) logprob: f32,
    pub(super) entropy: f32,
    pub(super) lse: f32,
}

/// Statistics of the chunk that starts at token `first`.
pub(super) fn partial(logits: &[f32], first: usize, scaling: &Scaling<'_>, target: u32) -> Partial {
    let mut z = [f32::NEG_INFINITY; CHUNK];
    scaling.apply(logits, first, &mut z);
    let (max, sum, weighted) = statistics(&z);
    let target = (target as usize).checked_sub(first).filter(|&index| index < logits.len()).map(|index| z[index]);
    Partial { max, sum, weighted, target }
}

/// Combines the chunks of a row, first to last.
pub(super) fn combine(partials: impl Iterator<Item = Partial> + Clone) -> RowResult {
    let max = partials.clone().fold(f32::NEG_INFINITY, |max, part| if part.max > max { part.max } else { max });
    let (mut sum, mut weighted, mut target) = (0.0f32, 0.0f32, f32::NAN);
    for part in partials {
        target = part.target.unwrap_or(target);
        // A chunk without a single allowed token counts for nothing; a NaN in it is kept in `sum`.
        if part.max == f32::NEG_INFINITY && part.sum == 0.0 {
            continue;
        }
        let below = part.max - max;
        let factor = exp(below);
        sum += part.sum * factor;
        weighted += (part.weighted + part.sum * below) * factor;
    }
    let log_sum = ln(sum);
    // Entropy = Σ p (lse − z) = ln sum − Σ p (z − max): no large numbers cancel.
    RowResult { logprob: (target - max) - log_sum, entropy: log_sum - weighted / sum, lse: max + log_sum }
}

/// e^(−200) is 0 in f32; the bound keeps 0 · ∞ out of the sums.
const LOWEST: f32 = -200.0;
const LANES: usize = 32;
const MAX_LANES: usize = 128;

multiversion! {
    fn scale(logits: &[f32], inv_temperature: f32, z: &mut [f32; CHUNK]) {
        for (z, logit) in z.iter_mut().zip(logits) {
            *z = logit * inv_temperature;
        }
    }
}

/// Halves the lanes until one is left; always the same order.
#[inline(always)]
fn fold_lanes(mut lanes: [f32; LANES], f: impl Fn(f32, f32) -> f32) -> f32 {
    let mut half = LANES / 2;
    while half > 0 {
        for lane in 0..half {
            lanes[lane] = f(lanes[lane], lanes[lane + half]);
        }
        half /= 2;
    }
    lanes[0]
}

multiversion! {
    /// z becomes e^(z − max).
    pub(super) fn masses(z: &mut [f32; CHUNK], max: f32) {
        for z in z {
            let below = *z - max;
            // Also where everything is banned, or nothing is a number.
            *z = if below >= LOWEST { exp(below) } else { 0.0 };
        }
    }
}

multiversion! {
    /// Sum of one block, always in the same order.
    pub(super) fn block_sum(masses: &[f32]) -> f64 {
        const LANES: usize = 16;
        let mut lanes = [0f64; LANES];
        let mut parts = masses.chunks_exact(LANES);
        for part in &mut parts {
            for lane in 0..LANES {
                lanes[lane] += f64::from(part[lane]);
            }
        }
        for (lane, mass) in lanes.iter_mut().zip(parts.remainder()) {
            *lane += f64::from(*mass);
        }
        lanes.iter().sum()
    }
}

multiversion! {
    fn statistics(z: &[f32; CHUNK]) -> (f32, f32, f32) {
        // So many lanes that the compiler keeps the loop over them; it unrolls shorter ones into scalars.
        let mut largest = [f32::NEG_INFINITY; MAX_LANES];
        for part in z.chunks_exact(MAX_LANES) {
            for lane in 0..MAX_LANES {
                largest[lane] = if part[lane] > largest[lane] { part[lane] } else { largest[lane] };
            }
        }
        let max = largest.iter().fold(f32::NEG_INFINITY, |a, &b| if b > a { b } else { a });
        // All banned, or all NaN: any finite stand-in gives sum 0 or NaN.
        let shift = if max == f32::NEG_INFINITY { 0.0 } else { max };
        let (mut sums, mut weighted) = ([0.0f32; LANES], [0.0f32; LANES]);
        for part in z.chunks_exact(LANES) {
            for lane in 0..LANES {
                let below = part[lane] - shift;
                let below = if below < LOWEST { LOWEST } else { below };
                let e = exp(below);
                sums[lane] += e;
                weighted[lane] += e * below;
            }
        }
        (max, fold_lanes(sums, |a, b| a + b), fold_lanes(weighted, |a, b| a + b))
    }
}

/// Gradient by the unscaled logits of the chunk that starts at token `first`; `logits` is used as work space.
pub(super) fn logit_gradients<O: Element>(
    logits: &mut [f32],
    first: usize,
    rows: &RowData<'_>,
    row: usize,
    out: &mut [O],
) {
    let target = (rows.targets[row] as usize).wrapping_sub(first);
    let scale = rows.inv_temperature[row];
    for index in banned_within(rows.banned, first, logits.len()) {
        logits[index] = f32::NEG_INFINITY;
    }
    let allowed_target = target < logits.len() && logits[target] != f32::NEG_INFINITY;
    let constants = [scale, rows.lse[row], rows.entropy[row], rows.by_logprob[row], rows.by_entropy[row]];
    gradients(logits, constants);
    if allowed_target {
        logits[target] += scale * rows.by_logprob[row];
    }
    store(logits, out);
}

multiversion! {
    /// The part that all tokens share: −scale · p · (by_logprob + by_entropy · (ln p + entropy)).
    fn gradients(z: &mut [f32], constants: [f32; 5]) {
        let [scale, lse, entropy, by_logprob, by_entropy] = constants;
        for z in z {
            let logp = *z * scale - lse;
            let logp = if logp < LOWEST { LOWEST } else { logp };
            *z = -scale * exp(logp) * (by_logprob + by_entropy * (logp + entropy));
        }
    }
}

multiversion! {
    fn store<O: Element>(values: &[f32], out: &mut [O]) {
        for (out, value) in out.iter_mut().zip(values) {
            *out = O::from_f32(*value);
        }
    }
}

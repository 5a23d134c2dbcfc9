//! Softmax statistics of one chunk of one row, their combination over chunks, and the gradient by the logits.
//! One definition of the order of sums for training and sampling: both call the functions of this file.
//! Cost: one `exp` per token.

use super::{CHUNK, RowData};
use crate::cpu::math::{exp, ln};
use crate::cpu::vector::{
    Arithmetic, FOUR, Four, Stripe, Vector, WIDTH, exp2, in_stripes, load, store, total, vectorised,
};
use crate::element::Element;
use crate::isa::multiversion;
use std::f32::consts::LOG2_E;

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

    /// Whether a chunk of `len` tokens from `first` on has all its tokens, and none of them banned.
    fn takes_all(&self, first: usize, len: usize) -> bool {
        len == CHUNK && banned_within(self.banned, first, len).next().is_none()
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

/// Statistics of the chunk that starts at token `first`. `masses`, if any, receives e^(z−m) of each of its tokens.
pub(super) fn partial<O: Element>(
    logits: &[f32],
    first: usize,
    scaling: &Scaling<'_>,
    target: u32,
    masses: Option<&mut ChunkMasses<O>>,
) -> Partial {
    let masses = masses.map_or(&mut [][..], |masses| &mut masses.0);
    let (max, sum, weighted) = match logits.try_into() {
        Ok(z) if scaling.takes_all(first, logits.len()) => statistics(z, scaling.inv_temperature, masses),
        _ => {
            let mut z = [f32::NEG_INFINITY; CHUNK];
            scaling.apply(logits, first, &mut z);
            statistics(&z, 1.0, masses)
        }
    };
    let index = (target as usize).checked_sub(first).filter(|&index| index < logits.len());
    Partial { max, sum, weighted, target: index.map(|index| scaling.of(logits[index], target)) }
}

/// e^(z−m) of a chunk, with m the largest of its scaled logits; zero for banned tokens and beyond the vocabulary.
#[derive(Clone, Copy)]
#[repr(align(64))]
pub(super) struct ChunkMasses<O>(pub(super) [O; CHUNK]);

impl<O: Element> Default for ChunkMasses<O> {
    fn default() -> Self {
        Self([O::default(); CHUNK])
    }
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

/// e to less than this is taken for 0; in sums it also stands for negative infinity, which times 0 is not a number.
const LOWEST: f32 = -87.0;
/// Sums of a chunk that run side by side.
const LANES: usize = 2 * WIDTH;

/// e^x for x up to 0; NaN stays NaN.
#[inline(always)]
fn mass<V: Arithmetic>(x: V) -> V {
    x.select_less(V::splat(LOWEST), V::splat(0.0), exp2(x.mul(V::splat(LOG2_E))))
}

multiversion! {
    fn scale(logits: &[f32], inv_temperature: f32, z: &mut [f32; CHUNK]) {
        for (z, logit) in z.iter_mut().zip(logits) {
            *z = logit * inv_temperature;
        }
    }
}

/// e to less than this is 0 in f32.
const FAINTEST: f32 = -200.0;

multiversion! {
    /// z becomes e^(z − max).
    pub(super) fn masses(z: &mut [f32; CHUNK], max: f32) {
        for z in z {
            let below = *z - max;
            // Also where everything is banned, or nothing is a number.
            *z = if below >= FAINTEST { exp(below) } else { 0.0 };
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

vectorised! {
    /// The largest of the scaled logits m, Σ e^(z−m) and Σ (z−m) e^(z−m). `masses` is empty, or receives all e^(z−m).
    fn statistics<V, O: Element>(logits: &[f32; CHUNK], scale: f32, masses: &mut [O]) -> (f32, f32, f32) {
        let (parts, _) = logits.as_chunks::<WIDTH>();
        let max = largest::<V>(parts, V::splat(scale));
        // All banned, or all NaN: any finite stand-in gives sum 0 or NaN.
        let shift = if max == f32::NEG_INFINITY { 0.0 } else { max };
        let (mut sums, mut weighted) = ([V::splat(0.0); LANES / WIDTH], [V::splat(0.0); LANES / WIDTH]);
        let (scale, shift, lowest) = (Four::<V>::splat(scale), Four::splat(shift), Four::splat(LOWEST));
        for at in (0..CHUNK).step_by(FOUR) {
            let below = load::<Four<V>, f32>(logits, at).mul(scale).sub(shift);
            let e = mass(below);
            if !masses.is_empty() {
                store(e, masses, at);
            }
            add_in_turns(&mut sums, e);
            add_in_turns(&mut weighted, e.mul(lowest.max(below)));
        }
        (max, total(sums[0].add(sums[1])), total(weighted[0].add(weighted[1])))
    }
}

/// Adds the first and third vector to the first sum, the others to the second.
#[inline(always)]
fn add_in_turns<V: Vector>(sums: &mut [V; LANES / WIDTH], four: Four<V>) {
    let [a, b, c, d] = four.vectors();
    *sums = [sums[0].add(a).add(c), sums[1].add(b).add(d)];
}

/// The largest of the scaled logits; those that are not a number do not count.
#[inline(always)]
fn largest<V: Vector>(logits: &[[f32; WIDTH]], scale: V) -> f32 {
    let mut largest = [V::splat(f32::NEG_INFINITY); 4];
    for four in logits.as_chunks::<4>().0 {
        for (largest, z) in largest.iter_mut().zip(four) {
            *largest = V::load(z).mul(scale).max(*largest);
        }
    }
    let mut values = [0.0; WIDTH];
    largest[0].max(largest[1]).max(largest[2].max(largest[3])).store(&mut values);
    values.into_iter().fold(f32::NEG_INFINITY, f32::max)
}

/// Gradient by the unscaled logits of the chunk that starts at token `first`; `logits` is used as work space. Rows
/// without a derivative by the entropy go through masses, as they do where these were kept.
pub(super) fn logit_gradients<O: Element>(
    logits: &mut [f32],
    first: usize,
    rows: &RowData<'_>,
    row: usize,
    out: &mut [O],
) {
    if rows.takes_masses(row) {
        let mut masses = ChunkMasses::<O>::default();
        let part = partial(logits, first, &rows.scaling(row), u32::MAX, Some(&mut masses));
        return mass_gradients(&masses.0, part.max, first, rows, row, out);
    }
    for index in banned_within(rows.banned, first, logits.len()) {
        logits[index] = f32::NEG_INFINITY;
    }
    let scale = rows.inv_temperature[row];
    let constants = Constants {
        scale,
        lse: rows.lse[row],
        entropy: rows.entropy[row],
        by_logprob: -scale * rows.by_logprob[row],
        by_entropy: -scale * rows.by_entropy[row],
    };
    gradients(logits, &constants, out);
    if let Some(target) = rows.target_within(row, first, logits.len()) {
        let mut own = [0.0f32];
        gradients(&logits[target..=target], &constants, &mut own);
        out[target] = O::from_f32(own[0] + scale * rows.by_logprob[row]);
    }
}

/// The same from the masses of the chunk and the largest of its scaled logits, for a row without a derivative by the
/// entropy.
pub(super) fn mass_gradients<O: Element>(
    masses: &[O],
    max: f32,
    first: usize,
    rows: &RowData<'_>,
    row: usize,
    out: &mut [O],
) {
    let by_logprob = rows.inv_temperature[row] * rows.by_logprob[row];
    // p = e^(z−m) · e^(m−lse); a chunk without an allowed token has masses of zero.
    let factor = -by_logprob * exp(max - rows.lse[row]);
    times(masses, factor, out);
    if let Some(target) = rows.target_within(row, first, out.len()) {
        out[target] = O::from_f32(masses[target].to_f32() * factor + by_logprob);
    }
}

vectorised! {
    fn times<V, O: Element>(x: &[O], factor: f32, out: &mut [O]) {
        in_stripes!(V, out.len(), times_at::<O>(x, factor, out));
    }
}

#[inline(always)]
fn times_at<S: Stripe, O: Element>(at: usize, x: &[O], factor: f32, out: &mut [O]) {
    store(load::<S, O>(x, at).mul(S::splat(factor)), out, at);
}

/// What the gradients of a row's logits have in common; the last two times minus the scale.
#[derive(Clone, Copy)]
struct Constants {
    scale: f32,
    lse: f32,
    entropy: f32,
    by_logprob: f32,
    by_entropy: f32,
}

vectorised! {
    /// The part that all tokens share: −scale · p · (by_logprob + by_entropy · (ln p + entropy)).
    fn gradients<V, O: Element>(logits: &[f32], constants: &Constants, out: &mut [O]) {
        in_stripes!(V, out.len(), gradients_at::<O>(logits, constants, out));
    }
}

#[inline(always)]
fn gradients_at<S: Stripe, O: Element>(at: usize, logits: &[f32], constants: &Constants, out: &mut [O]) {
    let Constants { scale, lse, entropy, by_logprob, by_entropy } = *constants;
    let (by_logprob, by_entropy) = (S::splat(by_logprob), S::splat(by_entropy));
    let logp = load::<S, f32>(logits, at).mul_add(S::splat(scale), S::splat(-lse));
    let above = S::splat(LOWEST).max(logp).add(S::splat(entropy));
    store(mass(logp).mul(by_entropy.mul_add(above, by_logprob)), out, at);
}

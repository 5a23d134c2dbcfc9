//! The language-model head: log-probability and entropy of given tokens, and their gradients.
//! Knows hidden states, the output weight and temperatures; nothing of losses. The vocabulary is walked in chunks of a
//! fixed size, whose results are combined in a fixed order. Sampling works from full logits rows of few tokens and gets
//! the same bits through [`RowStatistics`].
//! Cost: one product forward, two backward, and a third for rows whose probabilities were not kept ([`Masses`]); half a
//! MiB of scratch per thread, and going back up to 30 MiB for 4096 rows.

// R trained positions, D width, V vocabulary

mod kept;
mod row;
mod softmax;

use super::ask::ask_for;
use super::matmul::{self as products, pack};
use super::matmul::{Columns, PackedMatrix, Rows, Sink, Target};
use super::past_caches::{copy_past_caches, finish_stores};
use super::scratch::with_scratch;
use crate::element::{Element, bf16, same_type};
use crate::isa::{MatmulPath, matmul_path};
use crate::parallel::{self, SharedPointer};
use crate::team;
use kept::Places;
use softmax::{ChunkMasses, Partial, combine, logit_gradients, mass_gradients, partial};
use std::ops::Range;

pub use kept::{MOST_VALUES, MassValues, Masses};
pub use row::RowStatistics;
pub use softmax::Scaling;

/// Tokens of the vocabulary whose logits are reduced together. Part of the definition of the result's bits.
pub(crate) const CHUNK: usize = 1024;
/// Rows of one task with bf16 weights, whose logits take 0.5 MiB.
const TASK_ROWS: usize = 128;
/// The same with f32 weights, which are brought into order again for every task.
const TASK_ROWS_F32: usize = 512;
/// Weights that are asked for beside the statistics of one row: about what a core can have under way.
const ASKED: usize = 96 * 32;
/// Rows of kept masses that are asked for before they are wanted.
const AHEAD: usize = 2;
/// Logits between the rows of a block: rows a power of two apart would share their place in the caches.
const PADDING: usize = 16;
/// Rows that the backward pass handles at a time: the gradient of the whole weight is read and written once for each
/// such group.
const BACKWARD_ROWS: usize = 4096;
/// Chunks of the vocabulary that the backward pass handles at a time.
const BACKWARD_CHUNKS: usize = 2;

/// The output weight. For bf16 it is packed both ways, once per optimiser step.
#[derive(Clone, Copy, Debug)]
pub enum HeadWeight<'a> {
    /// Row-major `[V, D]`.
    F32(&'a [f32]),
    /// Rounded to bf16.
    Bf16 {
        /// D x V, `pack_transposed` of the weight.
        forward: &'a PackedMatrix,
        /// V x D, `pack` of the weight.
        backward: &'a PackedMatrix,
    },
}

impl HeadWeight<'_> {
    fn check(&self, d: usize, v: usize) {
        match self {
            Self::F32(w_vd) => assert_eq!(w_vd.len(), v * d, "head weight is [V, D] = [{v}, {d}]"),
            Self::Bf16 { forward, .. } => {
                assert_eq!((forward.k(), forward.n()), (d, v), "packed head weight is D x V");
            }
        }
    }
}

/// Hidden states in the form that the products of one weight type want.
#[derive(Clone, Copy)]
enum Hidden<'a> {
    F32(&'a [f32]),
    /// Rows packed for the matrix unit.
    Packed(&'a [bf16]),
}

/// Logits of any block of rows and vocabulary.
struct Logits<'a> {
    x: Hidden<'a>,
    weight: HeadWeight<'a>,
    d: usize,
    v: usize,
    path: MatmulPath,
}

impl Logits<'_> {
    /// Calls `f` with each row of x[rows]·W[tokens]ᵀ, on this thread; `rows.start` is a multiple of 16.
    fn for_rows(&self, rows: Range<usize>, tokens: Range<usize>, mut f: impl FnMut(usize, &mut [f32])) {
        let stride = tokens.len() + PADDING;
        with_scratch(rows.len() * stride, |block: &mut [f32]| {
            // SAFETY: `block` has this many rows of this many columns.
            unsafe { self.block_into(rows.clone(), tokens.clone(), block.as_mut_ptr(), stride) }
            for (row, z) in rows.zip(block.chunks_exact_mut(stride)) {
                f(row, &mut z[..tokens.len()]);
            }
        });
    }

    /// # Safety
    /// `out` has `rows` rows, `stride` apart, of `tokens` columns that no other thread uses.
    unsafe fn block_into(&self, rows: Range<usize>, tokens: Range<usize>, out: *mut f32, stride: usize) {
        match (self.x, self.weight) {
            (Hidden::Packed(x), HeadWeight::Bf16 { forward, .. }) => {
                let a = &x[pack::rows_len(rows.start, self.d)..];
                let b: Columns<'_> = forward.columns().columns(tokens.clone());
                let target = Target::new(Sink::F32(out), stride, tokens.len());
                // SAFETY: as promised by the caller.
                unsafe { products::multiply_serial(self.path, a, rows.len(), b, None, target) }
            }
            (Hidden::F32(x), HeadWeight::F32(w)) => {
                let x = &x[rows.start * self.d..rows.end * self.d];
                let w = &w[tokens.start * self.d..tokens.end * self.d];
                // SAFETY: as promised by the caller.
                unsafe { products::f32_nt_serial(x, rows.len(), w, tokens.len(), self.d, out, stride) }
            }
            _ => unreachable!("`with_logits` pairs hidden states with their weight type"),
        }
    }

    /// Rows of a task; bits do not depend on it.
    fn task_rows(&self) -> usize {
        match self.weight {
            HeadWeight::F32(_) => TASK_ROWS_F32,
            HeadWeight::Bf16 { .. } => TASK_ROWS,
        }
    }

    /// Asks for a part of a chunk's weights, which come while statistics are made.
    fn ask_for(&self, chunk: usize, part: usize) {
        if let HeadWeight::Bf16 { forward, .. } = self.weight
            && chunk < self.chunks()
        {
            let values = forward.columns().columns(self.tokens(chunk)).values();
            if let Some(values) = values.chunks(ASKED).nth(part) {
                ask_for(values);
            }
        }
    }

    fn chunks(&self) -> usize {
        self.v.div_ceil(CHUNK)
    }

    /// Statistics of `r` rows, chunk by chunk, made while a chunk's logits are in the caches: its weight serves all rows
    /// meanwhile. `of` makes them of a row's place, the chunk's, the logits, and work space that its task keeps. What it
    /// wrote past the caches is there afterwards.
    fn partials<S: Default>(
        &self,
        r: usize,
        of: impl Fn(usize, usize, &mut [f32], &mut S) -> Partial + Sync,
    ) -> Partials {
        let task_rows = self.task_rows();
        let groups = r.div_ceil(task_rows);
        let parts = parallel::map(groups * self.chunks(), |task| {
            let (first, chunk) = (task % groups * task_rows, task / groups);
            let rows = first..(first + task_rows).min(r);
            let (mut parts, mut space) = (Vec::with_capacity(rows.len()), S::default());
            self.for_rows(rows, self.tokens(chunk), |row, z| parts.push(of(row, chunk, z, &mut space)));
            finish_stores();
            parts
        });
        Partials { parts, task_rows, groups }
    }

    fn tokens(&self, chunk: usize) -> Range<usize> {
        chunk * CHUNK..((chunk + 1) * CHUNK).min(self.v)
    }
}

/// What [`Logits::partials`] found, one entry per task.
struct Partials {
    parts: Vec<Vec<Partial>>,
    task_rows: usize,
    groups: usize,
}

impl Partials {
    /// The chunks of a row, first to last.
    fn of_row(&self, row: usize) -> impl Iterator<Item = Partial> + Clone + '_ {
        let (group, place) = (row / self.task_rows, row % self.task_rows);
        self.parts.iter().skip(group).step_by(self.groups).map(move |part| part[place])
    }
}

/// Calls `f` with `x` as `T`, converted if need be.
fn as_type<E: Element, T: Element, R>(x: &[E], f: impl FnOnce(&[T]) -> R) -> R {
    match same_type(x) {
        Some(x) => f(x),
        None => with_scratch(x.len(), |converted: &mut [T]| {
            parallel::for_rows(converted, 1, 1 << 15, |first, converted| {
                for (converted, x) in converted.iter_mut().zip(&x[first..]) {
                    *converted = T::from_f32(x.to_f32());
                }
            });
            f(converted)
        }),
    }
}

/// Prepares `x[rows, D]` for products with `weight`.
fn with_logits<E: Element, R>(
    path: MatmulPath,
    x: &[E],
    rows: usize,
    weight: HeadWeight<'_>,
    v: usize,
    f: impl FnOnce(&Logits<'_>) -> R,
) -> R {
    let d = x.len() / rows.max(1);
    weight.check(d, v);
    match weight {
        HeadWeight::F32(_) => as_type(x, |x: &[f32]| f(&Logits { x: Hidden::F32(x), weight, d, v, path })),
        HeadWeight::Bf16 { .. } => as_type(x, |x: &[bf16]| {
            with_scratch(pack::rows_len(rows, d), |packed: &mut [bf16]| {
                pack::rows_from_rows(x, d, rows, packed);
                f(&Logits { x: Hidden::Packed(packed), weight, d, v, path })
            })
        }),
    }
}

/// Log-probability of `targets[R]`, entropy and log-sum-exp at hidden states `x[R, D]`. Logits are multiplied by
/// `inv_temperature[R]`; tokens in `banned` (sorted) have no probability. A row's results do not depend on R. `kept` is
/// filled for the backward pass.
pub fn head_logprob<E: Element>(
    x: &[E],
    weight: HeadWeight<'_>,
    v: usize,
    targets: &[u32],
    inv_temperature: &[f32],
    banned: &[u32],
    logprob: &mut [f32],
    entropy: &mut [f32],
    lse: &mut [f32],
    kept: Option<&mut Masses<'_>>,
) {
    head_logprob_on(matmul_path(), x, weight, v, targets, inv_temperature, banned, logprob, entropy, lse, kept);
}

pub(crate) fn head_logprob_on<E: Element>(
    path: MatmulPath,
    x: &[E],
    weight: HeadWeight<'_>,
    v: usize,
    targets: &[u32],
    inv_temperature: &[f32],
    banned: &[u32],
    logprob: &mut [f32],
    entropy: &mut [f32],
    lse: &mut [f32],
    kept: Option<&mut Masses<'_>>,
) {
    let r = targets.len();
    check_columns(r, v, targets, banned, &[inv_temperature, logprob, entropy, lse]);
    if r == 0 {
        return;
    }
    let results = (logprob, entropy, lse);
    with_logits(path, x, r, weight, v, |logits| match weight {
        HeadWeight::F32(_) => {
            forward_rows::<f32>(logits, targets, inv_temperature, banned, results, kept.map(Masses::places));
        }
        HeadWeight::Bf16 { .. } => {
            forward_rows::<bf16>(logits, targets, inv_temperature, banned, results, kept.map(Masses::places));
        }
    });
}

/// The forward pass of prepared rows; `O` is the type of the products' operands.
fn forward_rows<O: Element>(
    logits: &Logits<'_>,
    targets: &[u32],
    inv_temperature: &[f32],
    banned: &[u32],
    (logprob, entropy, lse): (&mut [f32], &mut [f32], &mut [f32]),
    kept: Option<Places<'_, O>>,
) {
    let partials = logits.partials(targets.len(), |row, chunk, z, masses: &mut ChunkMasses<O>| {
        let scaling = Scaling { inv_temperature: inv_temperature[row], banned };
        let (tokens, places) = (logits.tokens(chunk), kept.as_ref().filter(|places| places.take(row)));
        let part = partial(z, tokens.start, &scaling, targets[row], places.map(|_| &mut *masses));
        if let Some(places) = places {
            // SAFETY: tasks cover different rows or different chunks.
            unsafe { places.keep(row, chunk, tokens.len(), masses, part.max()) }
        }
        part
    });
    for row in 0..targets.len() {
        let result = combine(partials.of_row(row));
        (logprob[row], entropy[row], lse[row]) = (result.logprob, result.entropy, result.lse);
    }
}

/// Gradients of [`head_logprob`]: `by_logprob[R]` and `by_entropy[R]` are the derivatives of the loss by its two
/// results, `lse` and `entropy` are what it returned. `dx[R, D]` is overwritten, `dw[V, D]` added to; the flag beside it
/// takes it for zero, whatever stands there. `kept` is what the forward pass filled, if it was asked to.
///
/// By logit z of token v: inv_temperature · (by_logprob · (1[v = target] − p) − by_entropy · p · (ln p + entropy)).
pub fn head_logprob_backward<E: Element>(
    x: &[E],
    weight: HeadWeight<'_>,
    v: usize,
    targets: &[u32],
    inv_temperature: &[f32],
    banned: &[u32],
    lse: &[f32],
    entropy: &[f32],
    by_logprob: &[f32],
    by_entropy: &[f32],
    kept: Option<&Masses<'_>>,
    dx: &mut [E],
    dw: Option<(&mut [f32], bool)>,
) {
    let rows = RowData { first: 0, targets, inv_temperature, banned, lse, entropy, by_logprob, by_entropy, kept };
    head_logprob_backward_on(matmul_path(), x, weight, v, &rows, dx, dw);
}

/// What the backward pass knows of each row.
#[derive(Clone, Copy)]
pub(crate) struct RowData<'a> {
    /// Place of the first of these rows among those that went forward.
    pub(crate) first: usize,
    pub(crate) targets: &'a [u32],
    pub(crate) inv_temperature: &'a [f32],
    pub(crate) banned: &'a [u32],
    pub(crate) lse: &'a [f32],
    pub(crate) entropy: &'a [f32],
    pub(crate) by_logprob: &'a [f32],
    pub(crate) by_entropy: &'a [f32],
    pub(crate) kept: Option<&'a Masses<'a>>,
}

impl<'a> RowData<'a> {
    fn part(&self, rows: Range<usize>) -> Self {
        Self {
            first: self.first + rows.start,
            kept: self.kept,
            targets: &self.targets[rows.clone()],
            inv_temperature: &self.inv_temperature[rows.clone()],
            banned: self.banned,
            lse: &self.lse[rows.clone()],
            entropy: &self.entropy[rows.clone()],
            by_logprob: &self.by_logprob[rows.clone()],
            by_entropy: &self.by_entropy[rows],
        }
    }

    fn scaling(&self, row: usize) -> Scaling<'a> {
        Scaling { inv_temperature: self.inv_temperature[row], banned: self.banned }
    }

    /// Whether masses say all that the gradients of this row need.
    fn takes_masses(&self, row: usize) -> bool {
        self.by_entropy[row] == 0.0
    }

    /// The masses of some rows, if all of them were kept and suffice.
    fn kept_of(&self, mut rows: Range<usize>) -> Option<&'a Masses<'a>> {
        let all = |kept: &&Masses<'_>| self.first + rows.end <= kept.rows();
        self.kept.filter(all).filter(|_| rows.all(|row| self.takes_masses(row)))
    }

    /// Place of the row's target within the tokens from `first` on, unless it is banned.
    fn target_within(&self, row: usize, first: usize, num_tokens: usize) -> Option<usize> {
        let target = self.targets[row];
        let index = (target as usize).checked_sub(first).filter(|index| *index < num_tokens)?;
        self.banned.binary_search(&target).is_err().then_some(index)
    }
}

pub(crate) fn head_logprob_backward_on<E: Element>(
    path: MatmulPath,
    x: &[E],
    weight: HeadWeight<'_>,
    v: usize,
    rows: &RowData<'_>,
    dx: &mut [E],
    mut dw: Option<(&mut [f32], bool)>,
) {
    let r = rows.targets.len();
    let columns = [rows.inv_temperature, rows.lse, rows.entropy, rows.by_logprob, rows.by_entropy];
    check_columns(r, v, rows.targets, rows.banned, &columns);
    assert_eq!(x.len(), dx.len(), "dx has the shape of x");
    if r == 0 {
        if let Some((dw, true)) = dw {
            dw.fill(0.0);
        }
        return;
    }
    let d = x.len() / r;
    if let Some((dw, _)) = &dw {
        assert_eq!(dw.len(), v * d, "dw is [V, D] = [{v}, {d}]");
    }
    for first in (0..r).step_by(BACKWARD_ROWS) {
        let part = first..(first + BACKWARD_ROWS).min(r);
        let (x, dx) = (&x[part.start * d..part.end * d], &mut dx[part.start * d..part.end * d]);
        let rows = rows.part(part);
        let dw = dw.as_mut().map(|(dw, fresh)| (&mut **dw, *fresh && first == 0));
        match weight {
            HeadWeight::F32(_) => backward_rows::<E, f32>(path, x, weight, v, &rows, dx, dw),
            HeadWeight::Bf16 { .. } => backward_rows::<E, bf16>(path, x, weight, v, &rows, dx, dw),
        }
    }
}

/// Hidden states in the form that the weight's gradient wants.
#[derive(Clone, Copy)]
enum Factor<'a> {
    F32(&'a [f32]),
    Packed(Columns<'a>),
}

/// The backward pass of at most [`BACKWARD_ROWS`] rows; `O` is the type of the products' operands.
fn backward_rows<E: Element, O: Element>(
    path: MatmulPath,
    x: &[E],
    weight: HeadWeight<'_>,
    v: usize,
    rows: &RowData<'_>,
    dx: &mut [E],
    mut dw: Option<(&mut [f32], bool)>,
) {
    let r = rows.targets.len();
    let d = x.len() / r;
    // Rows of dz are not a power of two apart where the products can do with that.
    let padding = if matches!(weight, HeadWeight::F32(_)) { 0 } else { 2 * PADDING };
    with_logits(path, x, r, weight, v, |logits| {
        with_factor(x, r, weight, dw.is_some(), |factor| {
            with_scratch(r * d, |sums: &mut [f32]| {
                with_scratch(r * (CHUNK * BACKWARD_CHUNKS + padding), |dz: &mut [O]| {
                    for first in (0..logits.chunks()).step_by(BACKWARD_CHUNKS) {
                        let last = (first + BACKWARD_CHUNKS).min(logits.chunks()) - 1;
                        let tokens = logits.tokens(first).start..logits.tokens(last).end;
                        let stride = tokens.len() + padding;
                        let dz = &mut dz[..r * stride];
                        gradients_by_logits(logits, rows, first..last + 1, dz, stride);
                        let dw = dw.as_mut().map(|(dw, fresh)| (&mut **dw, *fresh));
                        backward_products(path, factor, weight, tokens, dz, stride, first > 0, sums, dw);
                    }
                });
                parallel::for_rows(dx, d, 64, |first, dx| {
                    for (dx, sum) in dx.iter_mut().zip(&sums[first * d..]) {
                        *dx = E::from_f32(*sum);
                    }
                });
            });
        });
    });
}

/// Prepares `x[rows, D]` as the second factor of the weight's gradient, if that is `wanted`.
fn with_factor<E: Element, R>(
    x: &[E],
    rows: usize,
    weight: HeadWeight<'_>,
    wanted: bool,
    f: impl FnOnce(Option<Factor<'_>>) -> R,
) -> R {
    let d = x.len() / rows;
    match weight {
        _ if !wanted => f(None),
        HeadWeight::F32(_) => as_type(x, |x: &[f32]| f(Some(Factor::F32(x)))),
        HeadWeight::Bf16 { .. } => as_type(x, |x: &[bf16]| {
            with_scratch(pack::panels_len(rows, d), |packed: &mut [bf16]| {
                pack::columns_from_rows(x, rows, d, packed);
                f(Some(Factor::Packed(Columns::new(packed, rows, d))))
            })
        }),
    }
}

/// dz[R, tokens of `chunks`], rows `stride` apart.
fn gradients_by_logits<O: Element>(
    logits: &Logits<'_>,
    rows: &RowData<'_>,
    chunks: Range<usize>,
    dz: &mut [O],
    stride: usize,
) {
    let r = rows.targets.len();
    let task_rows = logits.task_rows();
    let groups = r.div_ceil(task_rows);
    let first_token = logits.tokens(chunks.start).start;
    assert!(dz.len() >= r * stride, "dz is [R, tokens]");
    let dz = SharedPointer(dz.as_mut_ptr());
    parallel::for_chunks(groups * chunks.len(), 1, |task| {
        let first = task.start % groups * task_rows;
        let chunk = chunks.start + task.start / groups;
        let (tokens, members) = (logits.tokens(chunk), first..(first + task_rows).min(r));
        let out_of = |row: usize| {
            let offset = row * stride + tokens.start - first_token;
            // SAFETY: tasks cover different rows or different tokens of `dz`.
            unsafe { std::slice::from_raw_parts_mut(dz.at(offset), tokens.len()) }
        };
        match rows.kept_of(members.clone()) {
            Some(kept) => {
                let end = members.end;
                for row in members {
                    if row + AHEAD < end {
                        let (later, _) = kept.of::<O>(rows.first + row + AHEAD, chunk, tokens.clone());
                        ask_for(later);
                    }
                    let (masses, max) = kept.of::<O>(rows.first + row, chunk, tokens.clone());
                    mass_gradients(masses, max, tokens.start, rows, row, out_of(row));
                }
            }
            None => logits.for_rows(members, tokens.clone(), |row, z| {
                logit_gradients(z, tokens.start, rows, row, out_of(row));
            }),
        }
    });
}

/// dx (+)= dz·W[tokens] and dw[tokens] += dzᵀ·x. Rows of dz are `stride` apart.
fn backward_products<O: Element>(
    path: MatmulPath,
    x: Option<Factor<'_>>,
    weight: HeadWeight<'_>,
    tokens: Range<usize>,
    dz: &[O],
    stride: usize,
    add: bool,
    dx: &mut [f32],
    dw: Option<(&mut [f32], bool)>,
) {
    let r = dz.len() / stride;
    let d = dx.len() / r;
    let dw = dw.map(|(dw, fresh)| (&mut dw[tokens.start * d..tokens.end * d], fresh));
    match weight {
        HeadWeight::F32(w) => {
            let dz: &[f32] = same_type(dz).expect("f32 weights get f32 gradients");
            products::matmul_f32_nn(dz, r, &w[tokens.start * d..tokens.end * d], tokens.len(), d, add, dx);
            if let (Some((dw, fresh)), Some(Factor::F32(x))) = (dw, x) {
                products::matmul_f32_weight_gradient(dz, x, r, tokens.len(), d, fresh, dw);
            }
        }
        HeadWeight::Bf16 { backward, .. } => {
            let dz: &[bf16] = same_type(dz).expect("bf16 weights get bf16 gradients");
            let b = backward.columns().depth(tokens.clone());
            let out = dx.as_mut_ptr();
            let sink = if add { Sink::add_to(out) } else { Sink::F32(out) };
            let target = Target::new(sink, d, d);
            let rows = Rows::RowMajor { x: dz, k: tokens.len(), stride };
            // SAFETY: `dx` is [R, D] and borrowed mutably.
            unsafe { products::multiply_rows(path, rows, r, b, None, target) }
            if let (Some((dw, fresh)), Some(Factor::Packed(x))) = (dw, x) {
                products::weight_gradient_of(path, dz, tokens.len(), stride, x, d, fresh, dw);
            }
        }
    }
}

/// Full logits of R rows for sampling, and their softmax statistics at the scaling of each: `out[R, V]`, not divided by
/// the temperature, banned tokens untouched.
pub fn head_logits<'a, E: Element>(
    x: &[E],
    weight: HeadWeight<'_>,
    v: usize,
    scalings: &[Scaling<'a>],
    out: &mut [f32],
) -> Vec<RowStatistics<'a>> {
    head_logits_on(matmul_path(), x, weight, v, scalings, out)
}

pub(crate) fn head_logits_on<'a, E: Element>(
    path: MatmulPath,
    x: &[E],
    weight: HeadWeight<'_>,
    v: usize,
    scalings: &[Scaling<'a>],
    out: &mut [f32],
) -> Vec<RowStatistics<'a>> {
    let r = scalings.len();
    assert_eq!(out.len(), r * v, "logits are [R, V]");
    if r == 0 {
        return Vec::new();
    }
    with_logits(path, x, r, weight, v, |logits| {
        let out = SharedPointer(out.as_mut_ptr());
        let task_rows = logits.task_rows();
        let partials = logits.partials(r, |row, chunk, z, ()| {
            let first = logits.tokens(chunk).start;
            // SAFETY: tasks cover different rows or different tokens of `out`.
            let to = unsafe { std::slice::from_raw_parts_mut(out.at(row * v + first), z.len()) };
            let part = partial::<f32>(z, first, &scalings[row], u32::MAX, None);
            copy_past_caches(z, to);
            logits.ask_for(chunk + team::num_threads(), row % task_rows);
            part
        });
        (0..r).map(|row| RowStatistics::from_partials(scalings[row], partials.of_row(row).collect())).collect()
    })
}

fn check_columns(r: usize, v: usize, targets: &[u32], banned: &[u32], columns: &[&[f32]]) {
    assert!(columns.iter().all(|column| column.len() == r), "every column has one entry per row");
    assert!(targets.iter().all(|&target| (target as usize) < v), "targets are in the vocabulary");
    assert!(banned.is_sorted(), "banned tokens are sorted");
}

#[cfg(test)]
mod tests;

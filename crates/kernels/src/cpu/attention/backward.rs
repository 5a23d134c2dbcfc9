//! The backward pass of training: gradients of queries, keys and values of whole trees of segments.
//! One task per tree and key/value head visits key blocks in order and, inside, all tiles of queries that see them, so
//! that every gradient is summed in one fixed order; ancestors collect from all their descendants. The arithmetic is a
//! [`Unit`]'s.
//! Cost: five products per (block, tile) instead of the forward pass's two; working copies of a tree's queries.

use super::lanes::{self, Lanes, Visible};
use super::plan::{self, GROUP, Tree, TreeSegment};
use super::{BLOCK, Heads, LANES};
use crate::cpu::scratch::with_scratch;
use crate::cpu::shared::SharedMut;
use crate::cpu::vector::{WIDTH, load, total, vectorised};
use crate::element::Element;
use crate::isa::{MatmulPath, matmul_path};
use crate::parallel::for_chunks;
use crate::segment::Segment;
use std::marker::PhantomData;

/// Gradient of [`attention`](super::attention) when every row of every segment is a query (training).
///
/// `qkv` and `d_qkv` have rows of `(num_heads + 2 * num_kv_heads) * d`: queries, keys, values. `out` and `lse` are what
/// the forward pass wrote, `d_out` the gradient of `out`. Rows outside every segment get zero.
pub fn attention_backward<E: Element>(
    heads: &Heads,
    segments: &[Segment],
    qkv: &[E],
    out: &[E],
    lse: &[f32],
    d_out: &[E],
    d_qkv: &mut [E],
) {
    attention_backward_on(matmul_path(), heads, segments, qkv, out, lse, d_out, d_qkv);
}

/// [`attention_backward`] with a chosen path for bf16.
pub(super) fn attention_backward_on<E: Element>(
    path: MatmulPath,
    heads: &Heads,
    segments: &[Segment],
    qkv: &[E],
    out: &[E],
    lse: &[f32],
    d_out: &[E],
    d_qkv: &mut [E],
) {
    // Only x86 has more than one path.
    let _ = path;
    heads.check(segments);
    let stride = (heads.num_heads + 2 * heads.num_kv_heads) * heads.head_dim;
    let rows = qkv.len() / stride;
    assert_eq!(d_qkv.len(), qkv.len(), "attention_backward: qkv and its gradient differ");
    assert_eq!(out.len(), rows * heads.num_heads * heads.head_dim, "attention_backward: out length");
    assert_eq!(d_out.len(), out.len(), "attention_backward: d_out length");
    assert_eq!(lse.len(), rows * heads.num_heads, "attention_backward: lse length");
    if segments.iter().map(|segment| segment.len as usize).sum::<usize>() != rows {
        d_qkv.fill(E::from_f32(0.0));
    }
    let trees = plan::trees(heads, segments);
    let call = Call { heads, stride, qkv, out, lse, d_out, d_qkv: SharedMut::new(d_qkv) };
    for_chunks(trees.len() * heads.num_kv_heads, 1, |range| {
        for task in range {
            let (tree, kv_head) = (&trees[task / heads.num_kv_heads], task % heads.num_kv_heads);
            let tiles = tree.segments.last().map_or(0, |last| last.tiles.end);
            let d = heads.head_dim;
            #[cfg(target_arch = "x86_64")]
            if super::amx::available::<E>(path) {
                use super::backward_amx::AmxUnit;
                with_scratch(AmxUnit::scratch_len(tiles, d), |scratch: &mut [f32]| {
                    call.run(tree, kv_head, &mut AmxUnit::new(tiles, d, scratch));
                });
                continue;
            }
            with_scratch(LanesUnit::<E>::scratch_len(tiles, d), |scratch: &mut [f32]| {
                call.run(tree, kv_head, &mut LanesUnit::new(tiles, d, scratch));
            });
        }
    });
}

/// What a task needs of the arithmetic. Lanes are numbered through the tree's tiles.
pub(super) trait Unit<E> {
    /// Takes one lane's query, the gradient of its output, its log-sum-exp times log2(e), and `sum of out * d_out`.
    fn load_query(&mut self, lane: usize, q: &[E], d_out: &[E], lse2: f32, delta: f32);
    /// All queries are loaded.
    fn start(&mut self) {}
    /// Takes `count` keys and values, rows `stride` apart, and starts their gradients at zero.
    fn load_block(&mut self, k: &[E], v: &[E], stride: usize, count: usize);
    /// Adds what [`GROUP`] tiles from `first_tile` on contribute to the gradients of the block, and the block to theirs.
    fn step(&mut self, first_tile: usize, visible: &[Visible; GROUP], scale2: f32);
    /// Writes the gradients of key and value `index` of the block.
    fn finish_key(&self, index: usize, scale: f32, dk: &mut [E], dv: &mut [E]);
    /// All blocks are visited.
    fn end(&mut self, scale: f32);
    /// Writes the gradient of a lane's query.
    fn finish_query(&self, lane: usize, dq: &mut [E]);
}

struct Call<'a, E> {
    heads: &'a Heads,
    stride: usize,
    qkv: &'a [E],
    out: &'a [E],
    lse: &'a [f32],
    d_out: &'a [E],
    d_qkv: SharedMut<'a, E>,
}

impl<E: Element> Call<'_, E> {
    fn run(&self, tree: &Tree, kv_head: usize, unit: &mut impl Unit<E>) {
        let Heads { num_heads, head_dim: d, scale, .. } = *self.heads;
        self.for_lanes(tree, kv_head, |lane, row, head| {
            let at = row * num_heads + head;
            let (out, d_out) = (&self.out[at * d..][..d], &self.d_out[at * d..][..d]);
            let q = &self.qkv[row * self.stride + head * d..][..d];
            unit.load_query(lane, q, d_out, self.lse[at] * std::f32::consts::LOG2_E, dot(out, d_out));
        });
        unit.start();
        for segment in 0..tree.segments.len() {
            for first in (0..tree.segments[segment].len).step_by(BLOCK) {
                self.visit_block(tree, kv_head, segment, first, unit);
            }
        }
        unit.end(scale);
        self.for_lanes(tree, kv_head, |lane, row, head| {
            // SAFETY: each (row, head) belongs to one lane of one task.
            let dq = unsafe { self.d_qkv.slice(row * self.stride + head * d, d) };
            unit.finish_query(lane, dq);
        });
    }

    /// Calls `body(lane, row, query head)` for every lane of the tree.
    fn for_lanes(&self, tree: &Tree, kv_head: usize, mut body: impl FnMut(usize, usize, usize)) {
        let group = self.heads.group();
        for segment in &tree.segments {
            for lane in 0..segment.len * group {
                let (row, head) = (segment.start + lane / group, kv_head * group + lane % group);
                body(segment.tiles.start * LANES + lane, row, head);
            }
        }
    }

    /// One block of keys and values: gradients of both, and their share in the gradients of the queries.
    fn visit_block(&self, tree: &Tree, kv_head: usize, segment: usize, first: usize, unit: &mut impl Unit<E>) {
        let Heads { num_heads, num_kv_heads, head_dim: d, scale, .. } = *self.heads;
        let scale2 = scale * std::f32::consts::LOG2_E;
        let key_segment = &tree.segments[segment];
        let count = (key_segment.len - first).min(BLOCK);
        let row = |index: usize| (key_segment.start + first + index) * self.stride;
        let (k_at, v_at) = ((num_heads + kv_head) * d, (num_heads + num_kv_heads + kv_head) * d);
        unit.load_block(&self.qkv[row(0) + k_at..], &self.qkv[row(0) + v_at..], self.stride, count);
        for &reader in &key_segment.seen_by {
            let own = reader == segment;
            let reader = &tree.segments[reader];
            for tile in reader.tiles.clone().step_by(GROUP) {
                let visible = std::array::from_fn(|index| {
                    let limits = self.limits(reader, tile + index - reader.tiles.start, own, key_segment.len);
                    Visible::new(&limits, first)
                });
                if visible.iter().any(|visible: &Visible| visible.count > 0) {
                    unit.step(tile, &visible, scale2);
                }
            }
        }
        for index in 0..count {
            // SAFETY: the keys and values of a row and head belong to one block of one task.
            let (dk, dv) = unsafe { (self.d_qkv.slice(row(index) + k_at, d), self.d_qkv.slice(row(index) + v_at, d)) };
            unit.finish_key(index, scale, dk, dv);
        }
    }

    /// How many keys of a segment each lane of the reader's tile `index` sees.
    fn limits(&self, reader: &TreeSegment, index: usize, own: bool, key_len: usize) -> [u32; LANES] {
        let group = self.heads.group();
        std::array::from_fn(|lane| {
            let position = (index * LANES + lane) / group;
            match (position < reader.len, own && self.heads.causal) {
                (false, _) => 0,
                (true, true) => position as u32 + 1,
                (true, false) => key_len as u32,
            }
        })
    }
}

vectorised! {
    /// `sum of a * b`
    fn dot<V, E: Element>(a: &[E], b: &[E]) -> f32 {
        let mut sum = V::splat(0.0);
        for at in (0..a.len()).step_by(WIDTH) {
            sum = load::<V, E>(a, at).mul_add(load(b, at), sum);
        }
        total(sum)
    }
}

/// f32 arithmetic for either element type.
struct LanesUnit<'s, E> {
    head_dim: usize,
    /// `head_dim` filled up to whole vectors.
    width: usize,
    /// `[tile][dim]` lanes.
    q: &'s mut [Lanes],
    d_out: &'s mut [Lanes],
    dq: &'s mut [Lanes],
    /// `[tile][lane][width]` values.
    q_rows: &'s mut [f32],
    d_out_rows: &'s mut [f32],
    /// Log-sum-exp times log2(e), and `sum of out * d_out`, per tile.
    lse2: Vec<Lanes>,
    delta: Vec<Lanes>,
    /// `[BLOCK][head_dim]` values.
    keys: &'s mut [f32],
    values: &'s mut [f32],
    /// `[BLOCK][width]` values.
    dk: &'s mut [f32],
    dv: &'s mut [f32],
    p: Box<[Lanes; BLOCK]>,
    ds: Box<[Lanes; BLOCK]>,
    element: PhantomData<E>,
}

impl<'s, E: Element> LanesUnit<'s, E> {
    fn scratch_len(tiles: usize, head_dim: usize) -> usize {
        let width = head_dim.next_multiple_of(LANES);
        tiles * LANES * (3 * head_dim + 2 * width) + BLOCK * (2 * head_dim + 2 * width)
    }

    fn new(tiles: usize, head_dim: usize, scratch: &'s mut [f32]) -> Self {
        let width = head_dim.next_multiple_of(LANES);
        // Lanes that stand for no query must hold zeros: their share in the gradients of keys is 0 times this.
        scratch.fill(0.0);
        let mut rest = scratch;
        let mut take = |len: usize| {
            let (part, tail) = std::mem::take(&mut rest).split_at_mut(len);
            rest = tail;
            part
        };
        Self {
            head_dim,
            width,
            q: take(tiles * LANES * head_dim).as_chunks_mut().0,
            d_out: take(tiles * LANES * head_dim).as_chunks_mut().0,
            dq: take(tiles * LANES * head_dim).as_chunks_mut().0,
            q_rows: take(tiles * LANES * width),
            d_out_rows: take(tiles * LANES * width),
            lse2: vec![[0.0; LANES]; tiles],
            delta: vec![[0.0; LANES]; tiles],
            keys: take(BLOCK * head_dim),
            values: take(BLOCK * head_dim),
            dk: take(BLOCK * width),
            dv: take(BLOCK * width),
            p: Box::new([[0.0; LANES]; BLOCK]),
            ds: Box::new([[0.0; LANES]; BLOCK]),
            element: PhantomData,
        }
    }
}

impl<E: Element> Unit<E> for LanesUnit<'_, E> {
    fn load_query(&mut self, lane: usize, q: &[E], d_out: &[E], lse2: f32, delta: f32) {
        let (tile, at) = (lane / LANES, lane * self.width);
        for dim in 0..self.head_dim {
            let (q, d_out) = (q[dim].to_f32(), d_out[dim].to_f32());
            self.q[tile * self.head_dim + dim][lane % LANES] = q;
            self.d_out[tile * self.head_dim + dim][lane % LANES] = d_out;
            self.q_rows[at + dim] = q;
            self.d_out_rows[at + dim] = d_out;
        }
        self.lse2[tile][lane % LANES] = lse2;
        self.delta[tile][lane % LANES] = delta;
    }

    fn load_block(&mut self, k: &[E], v: &[E], stride: usize, count: usize) {
        lanes::load_block(k, stride, count, self.head_dim, self.keys);
        lanes::load_block(v, stride, count, self.head_dim, self.values);
        self.dk.fill(0.0);
        self.dv.fill(0.0);
    }

    fn step(&mut self, first_tile: usize, visible: &[Visible; GROUP], scale2: f32) {
        for (tile, visible) in (first_tile..).zip(visible) {
            let count = visible.count;
            if count == 0 {
                continue;
            }
            let dims = tile * self.head_dim..(tile + 1) * self.head_dim;
            lanes::scores(self.keys, &self.q[dims.clone()], count, &mut self.p);
            lanes::scores(self.values, &self.d_out[dims.clone()], count, &mut self.ds);
            let (lse2, delta) = (&self.lse2[tile], &self.delta[tile]);
            lanes::softmax_backward(&mut self.p, &mut self.ds, visible, scale2, lse2, delta);
            lanes::accumulate(self.keys, &self.ds, count, &[1.0; LANES], &mut self.dq[dims]);
            let rows = tile * LANES * self.width..(tile + 1) * LANES * self.width;
            lanes::outer(&self.p, &self.d_out_rows[rows.clone()], count, self.width, self.dv);
            lanes::outer(&self.ds, &self.q_rows[rows], count, self.width, self.dk);
        }
    }

    fn finish_key(&self, index: usize, scale: f32, dk: &mut [E], dv: &mut [E]) {
        for (to, from) in dk.iter_mut().zip(&self.dk[index * self.width..]) {
            *to = E::from_f32(from * scale);
        }
        for (to, from) in dv.iter_mut().zip(&self.dv[index * self.width..]) {
            *to = E::from_f32(*from);
        }
    }

    fn end(&mut self, scale: f32) {
        self.dq.as_flattened_mut().iter_mut().for_each(|dq| *dq *= scale);
    }

    fn finish_query(&self, lane: usize, dq: &mut [E]) {
        for (to, from) in dq.iter_mut().zip(&self.dq[lane / LANES * self.head_dim..]) {
            *to = E::from_f32(from[lane % LANES]);
        }
    }
}

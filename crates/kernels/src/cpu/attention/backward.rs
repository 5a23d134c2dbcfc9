//! The backward pass of training: gradients of queries, keys and values of whole trees of segments.
//! One task per tree and key/value head visits key blocks in order and, inside, all tiles of queries that see them, so
//! that every gradient is summed in one fixed order; ancestors collect from all their descendants.
//! Cost: five products per (block, tile) instead of the forward pass's two; f32 working copies of a tree's queries.

use super::lanes::{self, Lanes};
use super::plan::{self, Tree};
use super::{BLOCK, Heads, LANES};
use crate::cpu::shared::SharedMut;
use crate::element::Element;
use crate::parallel::for_chunks;
use crate::segment::Segment;

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
            call.run(&trees[task / heads.num_kv_heads], task % heads.num_kv_heads);
        }
    });
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

/// A tree's queries in both orientations, and the gradients under construction.
struct Work {
    /// `[tile][dim]` lanes.
    q: Vec<Lanes>,
    d_out: Vec<Lanes>,
    dq: Vec<Lanes>,
    /// `[tile][lane][dim]` values.
    q_rows: Vec<f32>,
    d_out_rows: Vec<f32>,
    /// Log-sum-exp times log2(e), and `sum of out * d_out`, per tile.
    lse2: Vec<Lanes>,
    delta: Vec<Lanes>,
    keys: Vec<f32>,
    values: Vec<f32>,
    dk: Vec<f32>,
    dv: Vec<f32>,
    p: Box<[Lanes; BLOCK]>,
    ds: Box<[Lanes; BLOCK]>,
}

impl<E: Element> Call<'_, E> {
    fn run(&self, tree: &Tree, kv_head: usize) {
        let d = self.heads.head_dim;
        let tiles = tree.segments.last().map_or(0, |last| last.tiles.end);
        let mut work = Work {
            q: vec![[0.0; LANES]; tiles * d],
            d_out: vec![[0.0; LANES]; tiles * d],
            dq: vec![[0.0; LANES]; tiles * d],
            q_rows: vec![0.0; tiles * LANES * d],
            d_out_rows: vec![0.0; tiles * LANES * d],
            lse2: vec![[0.0; LANES]; tiles],
            delta: vec![[0.0; LANES]; tiles],
            keys: vec![0.0; BLOCK * d],
            values: vec![0.0; BLOCK * d],
            dk: vec![0.0; BLOCK * d],
            dv: vec![0.0; BLOCK * d],
            p: Box::new([[0.0; LANES]; BLOCK]),
            ds: Box::new([[0.0; LANES]; BLOCK]),
        };
        self.load_queries(tree, kv_head, &mut work);
        for segment in 0..tree.segments.len() {
            for first in (0..tree.segments[segment].len).step_by(BLOCK) {
                self.visit_block(tree, kv_head, segment, first, &mut work);
            }
        }
        self.store_queries(tree, kv_head, &work);
    }

    /// Calls `body(tile, lane, row, query head)` for every lane of the tree.
    fn for_lanes(&self, tree: &Tree, kv_head: usize, mut body: impl FnMut(usize, usize, usize, usize)) {
        let group = self.heads.group();
        for segment in &tree.segments {
            for lane in 0..segment.len * group {
                let (row, head) = (segment.start + lane / group, kv_head * group + lane % group);
                body(segment.tiles.start + lane / LANES, lane % LANES, row, head);
            }
        }
    }

    fn load_queries(&self, tree: &Tree, kv_head: usize, work: &mut Work) {
        let (d, num_heads) = (self.heads.head_dim, self.heads.num_heads);
        self.for_lanes(tree, kv_head, |tile, lane, row, head| {
            let q = &self.qkv[row * self.stride + head * d..][..d];
            let at = (row * num_heads + head) * d;
            let (out, d_out) = (&self.out[at..][..d], &self.d_out[at..][..d]);
            let rows_at = (tile * LANES + lane) * d;
            let mut delta = 0.0;
            for dim in 0..d {
                let (q, d_out) = (q[dim].to_f32(), d_out[dim].to_f32());
                work.q[tile * d + dim][lane] = q;
                work.d_out[tile * d + dim][lane] = d_out;
                work.q_rows[rows_at + dim] = q;
                work.d_out_rows[rows_at + dim] = d_out;
                delta += out[dim].to_f32() * d_out;
            }
            work.delta[tile][lane] = delta;
            work.lse2[tile][lane] = self.lse[row * num_heads + head] * std::f32::consts::LOG2_E;
        });
    }

    /// One block of keys and values: gradients of both, and their share in the gradients of the queries.
    fn visit_block(&self, tree: &Tree, kv_head: usize, segment: usize, first: usize, work: &mut Work) {
        let Heads { num_heads, num_kv_heads, head_dim: d, .. } = *self.heads;
        let key_segment = &tree.segments[segment];
        let count = (key_segment.len - first).min(BLOCK);
        let row = |index: usize| (key_segment.start + first + index) * self.stride;
        let (k_at, v_at) = ((num_heads + kv_head) * d, (num_heads + num_kv_heads + kv_head) * d);
        lanes::load_block(&self.qkv[row(0) + k_at..], self.stride, count, d, &mut work.keys);
        lanes::load_block(&self.qkv[row(0) + v_at..], self.stride, count, d, &mut work.values);
        work.dk.fill(0.0);
        work.dv.fill(0.0);
        for &reader in &key_segment.seen_by {
            for (index, tile) in tree.segments[reader].tiles.clone().enumerate() {
                let visible = self.visible(&tree.segments[reader], index, reader == segment, key_segment.len, first);
                let count = visible.iter().copied().max().map_or(0, |most| (most as usize).min(count));
                if count > 0 {
                    self.visit_tile(tile, count, &visible, work);
                }
            }
        }
        for index in 0..count {
            // SAFETY: the keys and values of a row and head belong to one block of one task.
            let (dk, dv) = unsafe { (self.d_qkv.slice(row(index) + k_at, d), self.d_qkv.slice(row(index) + v_at, d)) };
            for (to, from) in dk.iter_mut().zip(&work.dk[index * d..]) {
                *to = E::from_f32(*from);
            }
            for (to, from) in dv.iter_mut().zip(&work.dv[index * d..]) {
                *to = E::from_f32(*from);
            }
        }
    }

    /// How many keys from `first` on each lane of the reader's tile `index` sees.
    fn visible(
        &self,
        reader: &plan::TreeSegment,
        index: usize,
        own: bool,
        key_len: usize,
        first: usize,
    ) -> [u32; LANES] {
        let group = self.heads.group();
        std::array::from_fn(|lane| {
            let position = (index * LANES + lane) / group;
            let limit = match (position < reader.len, own && self.heads.causal) {
                (false, _) => 0,
                (true, true) => position + 1,
                (true, false) => key_len,
            };
            limit.saturating_sub(first) as u32
        })
    }

    fn visit_tile(&self, tile: usize, count: usize, visible: &[u32; LANES], work: &mut Work) {
        let d = self.heads.head_dim;
        lanes::scores(&work.keys, &work.q[tile * d..][..d], count, &mut work.p);
        lanes::scores(&work.values, &work.d_out[tile * d..][..d], count, &mut work.ds);
        let (lse2, delta) = (&work.lse2[tile], &work.delta[tile]);
        lanes::softmax_backward(&mut work.p, &mut work.ds, count, visible, self.heads.scale, lse2, delta);
        lanes::accumulate(&work.keys, &work.ds, count, &[1.0; LANES], &mut work.dq[tile * d..][..d]);
        let rows = tile * LANES * d..(tile + 1) * LANES * d;
        lanes::outer(&work.p, &work.d_out_rows[rows.clone()], count, d, &mut work.dv);
        lanes::outer(&work.ds, &work.q_rows[rows], count, d, &mut work.dk);
    }

    fn store_queries(&self, tree: &Tree, kv_head: usize, work: &Work) {
        let d = self.heads.head_dim;
        self.for_lanes(tree, kv_head, |tile, lane, row, head| {
            // SAFETY: each (row, head) belongs to one lane of one task.
            let dq = unsafe { self.d_qkv.slice(row * self.stride + head * d, d) };
            for (to, from) in dq.iter_mut().zip(&work.dq[tile * d..][..d]) {
                *to = E::from_f32(from[lane]);
            }
        });
    }
}

//! The forward pass: tasks of up to 256 lanes, each visiting its ancestors and its own segments block by block.
//! Cost: each block of keys and values is loaded once per task and used by all its tiles.

use super::lanes::{self, Lanes, Softmax};
use super::plan::{self, Plan, Task};
use super::{BLOCK, Heads, LANES, Rows};
use crate::cpu::shared::SharedMut;
use crate::element::Element;
use crate::parallel::for_chunks;
use crate::segment::{Queries, Segment};

/// Attention of `queries` over `segments`.
///
/// `q` rows `[.., num_heads * d]` are numbered like `out`; `k` and `v` rows `[.., num_kv_heads * d]` by the coordinates
/// of the segments. `out` `[rows, num_heads * d]` and `lse` `[rows, num_heads]` are written at the query rows.
pub fn attention<E: Element>(
    heads: &Heads,
    queries: &[Queries],
    segments: &[Segment],
    q: Rows<E>,
    k: Rows<E>,
    v: Rows<E>,
    out: &mut [E],
    lse: &mut [f32],
) {
    heads.check(segments);
    let width = heads.num_heads * heads.head_dim;
    assert_eq!(out.len() / width, lse.len() / heads.num_heads, "attention: out and lse have different rows");
    let plan = plan::forward(heads, queries, segments);
    let call = Call { heads, segments, q, k, v, out: SharedMut::new(out), lse: SharedMut::new(lse) };
    for_chunks(plan.tasks.len(), 1, |range| {
        for task in &plan.tasks[range] {
            call.run(&plan, task);
        }
    });
}

struct Call<'a, E> {
    heads: &'a Heads,
    segments: &'a [Segment],
    q: Rows<'a, E>,
    k: Rows<'a, E>,
    v: Rows<'a, E>,
    out: SharedMut<'a, E>,
    lse: SharedMut<'a, f32>,
}

/// Everything a task keeps while it visits blocks.
struct Work {
    /// Queries, `[tile][dim]`.
    q: Vec<Lanes>,
    /// Sums of values, `[tile][dim]`.
    out: Vec<Lanes>,
    softmax: Vec<Softmax>,
    keys: Vec<f32>,
    values: Vec<f32>,
    scores: Box<[Lanes; BLOCK]>,
}

impl<E: Element> Call<'_, E> {
    fn run(&self, plan: &Plan, task: &Task) {
        let (d, group) = (self.heads.head_dim, self.heads.group());
        let num_lanes = task.num_rows * group;
        let tiles = num_lanes.div_ceil(LANES);
        let mut work = Work {
            q: vec![[0.0; LANES]; tiles * d],
            out: vec![[0.0; LANES]; tiles * d],
            softmax: vec![Softmax::EMPTY; tiles],
            keys: vec![0.0; BLOCK * d],
            values: vec![0.0; BLOCK * d],
            scores: Box::new([[0.0; LANES]; BLOCK]),
        };
        self.load_queries(task, &mut work);
        // How many rows of the segment under visit each lane sees.
        let mut limits = vec![[0u32; LANES]; tiles];
        for &ancestor in &plan.chains[task.chain] {
            let len = self.segments[ancestor as usize].len;
            for lane in 0..num_lanes {
                limits[lane / LANES][lane % LANES] = len;
            }
            self.visit(ancestor as usize, task.kv_head, &limits, &mut work);
        }
        let mut first_lane = 0;
        for part in &task.parts {
            limits.fill([0; LANES]);
            let len = self.segments[part.segment].len;
            for lane in 0..part.num_rows * group {
                let seen = if self.heads.causal { (part.first_position + lane / group + 1) as u32 } else { len };
                limits[(first_lane + lane) / LANES][(first_lane + lane) % LANES] = seen.min(len);
            }
            self.visit(part.segment, task.kv_head, &limits, &mut work);
            first_lane += part.num_rows * group;
        }
        self.store(task, &work);
    }

    /// Calls `body(lane, query row, query head)` for every lane of the task.
    fn for_lanes(&self, task: &Task, mut body: impl FnMut(usize, usize, usize)) {
        let group = self.heads.group();
        let rows = task.parts.iter().flat_map(|part| part.first_row..part.first_row + part.num_rows);
        for (index, row) in rows.enumerate() {
            for member in 0..group {
                body(index * group + member, row, task.kv_head * group + member);
            }
        }
    }

    fn load_queries(&self, task: &Task, work: &mut Work) {
        let d = self.heads.head_dim;
        self.for_lanes(task, |lane, row, head| {
            let tile = &mut work.q[lane / LANES * d..][..d];
            for (to, from) in tile.iter_mut().zip(self.q.at(row, head * d, d)) {
                to[lane % LANES] = from.to_f32();
            }
        });
    }

    fn visit(&self, segment: usize, kv_head: usize, limits: &[[u32; LANES]], work: &mut Work) {
        let d = self.heads.head_dim;
        let scale2 = self.heads.scale * std::f32::consts::LOG2_E;
        let start = self.segments[segment].start as usize;
        let most = |limits: &[u32; LANES]| limits.iter().copied().max().unwrap_or(0) as usize;
        let end = limits.iter().map(most).max().unwrap_or(0);
        for first in (0..end).step_by(BLOCK) {
            let count = (end - first).min(BLOCK);
            for (rows, block) in [(self.k, &mut work.keys), (self.v, &mut work.values)] {
                let from = &rows.data[rows.offset + (start + first) * rows.stride + kv_head * d..];
                lanes::load_block(from, rows.stride, count, d, block);
            }
            for (tile, limits) in limits.iter().enumerate() {
                let count = most(limits).saturating_sub(first).min(BLOCK);
                if count == 0 {
                    continue;
                }
                let visible = limits.map(|limit| limit.saturating_sub(first as u32));
                lanes::scores(&work.keys, &work.q[tile * d..][..d], count, &mut work.scores);
                let state = &mut work.softmax[tile];
                let factor = lanes::softmax_step(&mut work.scores, count, &visible, scale2, state);
                lanes::accumulate(&work.values, &work.scores, count, &factor, &mut work.out[tile * d..][..d]);
            }
        }
    }

    fn store(&self, task: &Task, work: &Work) {
        let (d, num_heads) = (self.heads.head_dim, self.heads.num_heads);
        self.for_lanes(task, |lane, row, head| {
            let (tile, lane) = (lane / LANES, lane % LANES);
            let (max, sum) = (work.softmax[tile].max[lane], work.softmax[tile].sum[lane]);
            // A query that sees nothing (an empty, non-causal segment) answers zero.
            let inverse = if sum == 0.0 { 0.0 } else { 1.0 / sum };
            // SAFETY: each (row, head) belongs to one lane of one task.
            let (out, lse) =
                unsafe { (self.out.slice((row * num_heads + head) * d, d), self.lse.slice(row * num_heads + head, 1)) };
            for (to, from) in out.iter_mut().zip(&work.out[tile * d..][..d]) {
                *to = E::from_f32(from[lane] * inverse);
            }
            lse[0] = if sum == 0.0 { 0.0 } else { (max + sum.log2()) * std::f32::consts::LN_2 };
        });
    }
}

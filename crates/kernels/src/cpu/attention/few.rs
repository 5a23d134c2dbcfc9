//! The order of visits of a decoding task: single queries with few lanes each, which share their ancestors.
//! Knows the store and the plan; the arithmetic is [`FewUnit`]'s.
//! Cost: many queries visit their ancestors together, as tiles of lanes; each visits its own segment alone.

use super::BLOCK;
use super::amx::DEPTH;
use super::few_amx::{FEW, FewUnit};
use super::forward::{Call, FETCHED_LINES, Wanted};
use super::forward_amx::AmxUnit;
use super::plan::{Plan, Task};
use crate::cpu::scratch::with_scratch;
use crate::element::Element;
use std::ops::Range;

/// Queries that visit their ancestors one by one: tiles of lanes pay for more.
const ALONE: usize = 3;

impl<E: Element> Call<'_, E> {
    /// Whether every part of a task is a single row with few query heads for its key/value head, over a store.
    pub(super) fn has_few_lanes(&self, plan: &Plan, task: &Task) -> bool {
        let d = self.heads.head_dim;
        self.pairs
            && self.heads.group() <= FEW
            && d.is_multiple_of(DEPTH)
            && self.k.stride == d
            && task.num_rows == plan.parts(task).len()
    }

    /// Answers the queries of such a task.
    pub(super) fn run_few(&self, plan: &Plan, task: &Task, tiles: usize, next: &mut Wanted<'_, E>) {
        let (d, group, num_heads) = (self.heads.head_dim, self.heads.group(), self.heads.num_heads);
        let (parts, chain) = (plan.parts(task), plan.chain(task));
        let together = parts.len() > ALONE && !chain.is_empty();
        let many = if together { AmxUnit::scratch_len(tiles, d).next_multiple_of(16) } else { 0 };
        with_scratch(many + FewUnit::scratch_len(parts.len(), d), |scratch: &mut [f32]| {
            let (many, few) = scratch.split_at_mut(many);
            let before = together.then(|| {
                let mut unit = AmxUnit::new(tiles, d, self.pairs, many);
                let (mut limits, mut visible) = (vec![[0; super::LANES]; tiles], Vec::with_capacity(tiles));
                self.visit_ancestors(plan, task, &mut limits, &mut visible, &mut unit, next);
                unit.into_sums()
            });
            let mut unit = FewUnit::new(parts.len(), d, few);
            for (query, part) in parts.iter().enumerate() {
                for lane in 0..group {
                    let q = self.q.at(part.first_row, task.kv_head * group + lane, d);
                    unit.load_query(query, lane, bytemuck::cast_slice(q));
                    if let Some((softmax, sums, dims)) = &before {
                        let (tile, of) = ((query * group + lane) / super::LANES, (query * group + lane) % super::LANES);
                        unit.take_over(query, lane, &softmax[tile], of, |dim| sums[tile * dims + dim][of]);
                    }
                }
            }
            next.fetch(FETCHED_LINES);
            if !together {
                for &ancestor in chain {
                    let len = self.segments[ancestor as usize].len;
                    self.visit_few(ancestor as usize, task.kv_head, len, 0..parts.len(), &mut unit, next);
                }
            }
            for (query, part) in parts.iter().enumerate() {
                let seen = self.seen_by(part, 0);
                self.visit_few(part.segment, task.kv_head, seen, query..query + 1, &mut unit, next);
            }
            next.fetch(usize::MAX);
            for (query, part) in parts.iter().enumerate() {
                for lane in 0..group {
                    let at = part.first_row * num_heads + task.kv_head * group + lane;
                    // SAFETY: each (row, head) belongs to one lane of one task.
                    let (out, lse) = unsafe { (self.out.slice(at * d, d), self.lse.slice(at, 1)) };
                    lse[0] = unit.finish(query, lane, bytemuck::cast_slice_mut(out));
                }
            }
        });
    }

    /// Shows the first `seen` rows of a segment to some queries.
    fn visit_few(
        &self,
        segment: usize,
        kv_head: usize,
        seen: u32,
        queries: Range<usize>,
        unit: &mut FewUnit<'_>,
        next: &mut Wanted<'_, E>,
    ) {
        let scale2 = self.heads.scale * std::f32::consts::LOG2_E;
        let (start, seen) = (self.segments[segment].start as usize, seen as usize);
        for first in (0..seen).step_by(BLOCK) {
            let at = (start + first) * self.k.stride + kv_head * self.k.head;
            let (k, v) = (bytemuck::cast_slice(&self.k.data[at..]), bytemuck::cast_slice(&self.v.data[at..]));
            unit.load_block(k, v, (seen - first).min(BLOCK));
            for query in queries.clone() {
                unit.step(query, scale2);
                next.fetch(FETCHED_LINES);
            }
        }
    }
}

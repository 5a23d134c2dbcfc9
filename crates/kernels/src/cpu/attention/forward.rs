//! The forward pass: tasks of up to 512 lanes, each visiting its ancestors and its own segments block by block.
//! Knows the order of visits; the arithmetic is a [`Unit`]'s.
//! Cost: each block of keys and values is loaded once per task and used by all its tiles.

use super::lanes::{self, Lanes, Softmax, Visible};
use super::plan::{self, Part, Plan, Task};
use super::{BLOCK, Heads, LANES, Rows};
use crate::cpu::ask::ask_for;
use crate::cpu::scratch::with_scratch;
use crate::cpu::shared::SharedMut;
use crate::element::Element;
use crate::isa::{MatmulPath, matmul_path};
use crate::parallel::for_chunks;
use crate::segment::{Queries, Segment};
use crate::team;
use std::marker::PhantomData;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// Attention of `queries` over `segments`.
///
/// `q` rows `[.., num_heads * d]` are numbered like `out`; `k` and `v` rows `[.., num_kv_heads * d]` by the coordinates
/// of the segments. `out` `[rows, num_heads * d]` and `lse` `[rows, num_heads]` are written at the query rows only.
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
    attention_on(matmul_path(), heads, queries, segments, q, k, v, false, out, lse);
}

/// [`attention`] over keys and values as [`store`] keeps them.
pub fn attention_stored<E: Element>(
    heads: &Heads,
    queries: &[Queries],
    segments: &[Segment],
    q: Rows<E>,
    keys: &[E],
    values: &[E],
    out: &mut [E],
    lse: &mut [f32],
) {
    attention_stored_on(matmul_path(), heads, queries, segments, q, keys, values, out, lse);
}

/// [`attention_stored`] with a chosen path for bf16.
pub(super) fn attention_stored_on<E: Element>(
    path: MatmulPath,
    heads: &Heads,
    queries: &[Queries],
    segments: &[Segment],
    q: Rows<E>,
    keys: &[E],
    values: &[E],
    out: &mut [E],
    lse: &mut [f32],
) {
    let plane = heads.check_store(keys, values);
    assert!(segments.iter().all(|segment| segment.start.is_multiple_of(2)), "stored segments start at even rows");
    let rows = |data| Rows { data, offset: 0, stride: heads.head_dim, head: plane };
    attention_on(path, heads, queries, segments, q, rows(keys), rows(values), true, out, lse);
}

/// [`attention`] with a chosen path for bf16; `pairs` says that rows of values stand in pairs.
pub(super) fn attention_on<E: Element>(
    path: MatmulPath,
    heads: &Heads,
    queries: &[Queries],
    segments: &[Segment],
    q: Rows<E>,
    k: Rows<E>,
    v: Rows<E>,
    pairs: bool,
    out: &mut [E],
    lse: &mut [f32],
) {
    // Only x86 has more than one path.
    let _ = path;
    heads.check(segments);
    let width = heads.num_heads * heads.head_dim;
    assert_eq!(out.len() / width, lse.len() / heads.num_heads, "attention: out and lse have different rows");
    let plan = plan::forward(heads, queries, segments);
    let call = Call { heads, segments, q, k, v, pairs, out: SharedMut::new(out), lse: SharedMut::new(lse) };
    let (ahead, count) = (team::num_threads(), plan.tasks.len());
    let next = AtomicUsize::new(0);
    for_chunks(ahead.min(count), 1, |_| {
        loop {
            let index = next.fetch_add(1, Relaxed);
            let Some(task) = plan.tasks.get(index) else { return };
            if index < ahead {
                call.wanted_by(&plan, task, path).fetch(usize::MAX);
            }
            // The task that this thread is likely to take next.
            let mut next = match plan.tasks.get(index + ahead) {
                Some(next) => call.wanted_by(&plan, next, path),
                None => Wanted::default(),
            };
            call.perform(&plan, task, path, &mut next);
        }
    });
}

/// What a task needs of the arithmetic. Lanes are numbered through the task's tiles.
pub(super) trait Unit<E> {
    /// Takes the query of one lane.
    fn load_query(&mut self, lane: usize, q: &[E]);
    /// All queries are loaded.
    fn start(&mut self) {}
    /// Takes `count` keys and values; the slices begin at the first one's, rows are `strides` apart. They live and stay
    /// as they are until the next call, so that a unit may read keys in place.
    fn load_block(&mut self, k: &[E], v: &[E], strides: [usize; 2], count: usize);
    /// Advances the running softmax and the sums of the tiles from `first_tile` on by the loaded block.
    fn step(&mut self, first_tile: usize, visible: &[Visible], scale2: f32);
    /// All blocks are visited.
    fn end(&mut self) {}
    /// Writes a lane's answer and returns its log-sum-exp.
    fn finish(&self, lane: usize, out: &mut [E]) -> f32;
}

pub(super) struct Call<'a, E> {
    pub heads: &'a Heads,
    pub segments: &'a [Segment],
    pub q: Rows<'a, E>,
    pub k: Rows<'a, E>,
    pub v: Rows<'a, E>,
    /// Whether rows of values stand in pairs.
    pub pairs: bool,
    pub out: SharedMut<'a, E>,
    pub lse: SharedMut<'a, f32>,
}

/// Bytes of keys, and of values, that are fetched for a task beforehand; what is longer than that the hardware
/// recognises as a run.
const FETCHED: usize = 16 << 10;

/// Runs of memory that a later task reads, asked for a few lines at a time between the products of this one: in one
/// burst they would fill the queue to memory and stop the thread.
#[derive(Default)]
pub(super) struct Wanted<'a, E> {
    runs: Vec<&'a [E]>,
}

/// Lines that are asked for between two steps.
pub(super) const FETCHED_LINES: usize = 48;

impl<E> Wanted<'_, E> {
    /// Asks for the next `lines` cache lines.
    pub(super) fn fetch(&mut self, mut lines: usize) {
        let per_line = 64 / size_of::<E>();
        while lines > 0
            && let Some(run) = self.runs.last_mut()
        {
            let (now, later) = run.split_at(run.len().min(lines.saturating_mul(per_line)));
            ask_for(now);
            lines -= now.len().div_ceil(per_line);
            if later.is_empty() {
                self.runs.pop();
            } else {
                *run = later;
            }
        }
    }
}

impl<'a, E: Element> Call<'a, E> {
    /// The keys and values of a task, where each head has its rows one after the other: decoding reads every one of
    /// them once, from memory.
    fn wanted_by(&self, plan: &Plan, task: &Task, path: MatmulPath) -> Wanted<'a, E> {
        let d = self.heads.head_dim;
        let mut wanted = Wanted::default();
        #[cfg(target_arch = "x86_64")]
        if super::amx::available::<E>(path) && self.k.stride == d && self.v.stride == d {
            let (chain, parts) = (plan.chain(task), plan.parts(task));
            let segments = chain.iter().map(|above| *above as usize).chain(parts.iter().map(|part| part.segment));
            wanted.runs.reserve(2 * (chain.len() + parts.len()));
            for segment in segments {
                let Segment { start, len, .. } = self.segments[segment];
                let len = (len as usize * d).min(FETCHED / size_of::<E>());
                for rows in [self.k, self.v] {
                    let from = rows.offset + start as usize * d + task.kv_head * rows.head;
                    wanted.runs.push(&rows.data[from..from + len]);
                }
            }
            // Asked for from the end on; what is read first comes first.
            wanted.runs.reverse();
        }
        let _ = (plan, task, path, d);
        wanted
    }

    /// Answers the queries of a task with the arithmetic that suits it.
    fn perform(&self, plan: &Plan, task: &Task, path: MatmulPath, next: &mut Wanted<'_, E>) {
        let _ = path;
        let (tiles, d, pairs) = ((task.num_rows * self.heads.group()).div_ceil(LANES), self.heads.head_dim, self.pairs);
        #[cfg(target_arch = "x86_64")]
        if super::amx::available::<E>(path) {
            use super::forward_amx::AmxUnit;
            if self.has_few_lanes(plan, task) {
                return self.run_few(plan, task, tiles, next);
            }
            return with_scratch(AmxUnit::scratch_len(tiles, d), |scratch: &mut [f32]| {
                self.run(plan, task, tiles, &mut AmxUnit::new(tiles, d, pairs, scratch), next);
            });
        }
        with_scratch(LanesUnit::<E>::scratch_len(tiles, d), |scratch: &mut [f32]| {
            self.run(plan, task, tiles, &mut LanesUnit::new(tiles, d, pairs, scratch), next);
        });
    }

    fn run(&self, plan: &Plan, task: &Task, tiles: usize, unit: &mut impl Unit<E>, next: &mut Wanted<'_, E>) {
        let Heads { num_heads, head_dim: d, .. } = *self.heads;
        let group = self.heads.group();
        let (mut limits, mut visible) = (vec![[0u32; LANES]; tiles], Vec::with_capacity(tiles));
        self.visit_ancestors(plan, task, &mut limits, &mut visible, unit, next);
        let mut first_lane = 0;
        for part in plan.parts(task) {
            let lanes = first_lane..first_lane + part.num_rows * group;
            let tiles = lanes.start / LANES..lanes.end.div_ceil(LANES);
            limits[tiles.clone()].fill([0; LANES]);
            for (index, limit) in limits.as_flattened_mut()[lanes.clone()].iter_mut().enumerate() {
                *limit = self.seen_by(part, index / group);
            }
            self.visit(part.segment, task.kv_head, &limits[tiles.clone()], tiles.start, &mut visible, unit, next);
            first_lane = lanes.end;
        }
        next.fetch(usize::MAX);
        unit.end();
        self.for_lanes(plan, task, |lane, row, head| {
            let at = row * num_heads + head;
            // SAFETY: each (row, head) belongs to one lane of one task.
            let (out, lse) = unsafe { (self.out.slice(at * d, d), self.lse.slice(at, 1)) };
            lse[0] = unit.finish(lane, out);
        });
    }

    /// Loads the queries and shows them all that their ancestors hold. `limits` says how many rows of the segment under
    /// visit each lane sees.
    pub(super) fn visit_ancestors(
        &self,
        plan: &Plan,
        task: &Task,
        limits: &mut [[u32; LANES]],
        visible: &mut Vec<Visible>,
        unit: &mut impl Unit<E>,
        next: &mut Wanted<'_, E>,
    ) {
        let (group, d) = (self.heads.group(), self.heads.head_dim);
        self.for_lanes(plan, task, |lane, row, head| unit.load_query(lane, self.q.at(row, head, d)));
        unit.start();
        next.fetch(FETCHED_LINES);
        for &ancestor in plan.chain(task) {
            let len = self.segments[ancestor as usize].len;
            limits.as_flattened_mut()[..task.num_rows * group].fill(len);
            self.visit(ancestor as usize, task.kv_head, limits, 0, visible, unit, next);
        }
    }

    /// How many rows of its own segment row `row` of a part sees.
    pub(super) fn seen_by(&self, part: &Part, row: usize) -> u32 {
        let len = self.segments[part.segment].len;
        if self.heads.causal { len.min((part.first_position + row + 1) as u32) } else { len }
    }

    /// Calls `body(lane, query row, query head)` for every lane of the task.
    fn for_lanes(&self, plan: &Plan, task: &Task, mut body: impl FnMut(usize, usize, usize)) {
        let group = self.heads.group();
        let rows = plan.parts(task).iter().flat_map(|part| part.first_row..part.first_row + part.num_rows);
        for (index, row) in rows.enumerate() {
            for member in 0..group {
                body(index * group + member, row, task.kv_head * group + member);
            }
        }
    }

    /// Shows the blocks of a segment to the tiles from `first_tile` on, as far as their `limits` allow.
    fn visit(
        &self,
        segment: usize,
        kv_head: usize,
        limits: &[[u32; LANES]],
        first_tile: usize,
        visible: &mut Vec<Visible>,
        unit: &mut impl Unit<E>,
        next: &mut Wanted<'_, E>,
    ) {
        let scale2 = self.heads.scale * std::f32::consts::LOG2_E;
        let start = self.segments[segment].start as usize;
        let end = limits.as_flattened().iter().copied().max().unwrap_or(0) as usize;
        for first in (0..end).step_by(BLOCK) {
            let from = |rows: &Rows<'_, E>| rows.offset + (start + first) * rows.stride + kv_head * rows.head;
            let (k, v) = (&self.k.data[from(&self.k)..], &self.v.data[from(&self.v)..]);
            unit.load_block(k, v, [self.k.stride, self.v.stride], (end - first).min(BLOCK));
            next.fetch(FETCHED_LINES);
            visible.clear();
            visible.extend(limits.iter().map(|limits| Visible::new(limits, first)));
            unit.step(first_tile, visible, scale2);
            next.fetch(FETCHED_LINES);
        }
    }
}

/// f32 arithmetic for either element type.
struct LanesUnit<'s, E> {
    head_dim: usize,
    /// Whether rows of values stand in pairs.
    pairs: bool,
    /// Queries and sums of values, `[tile][dim]`.
    q: &'s mut [Lanes],
    out: &'s mut [Lanes],
    keys: &'s mut [f32],
    values: &'s mut [f32],
    scores: Box<[Lanes; BLOCK]>,
    softmax: Vec<Softmax>,
    element: PhantomData<E>,
}

impl<'s, E: Element> LanesUnit<'s, E> {
    fn scratch_len(tiles: usize, head_dim: usize) -> usize {
        2 * (tiles * LANES + BLOCK) * head_dim
    }

    fn new(tiles: usize, head_dim: usize, pairs: bool, scratch: &'s mut [f32]) -> Self {
        let (lanes, blocks) = scratch.split_at_mut(2 * tiles * LANES * head_dim);
        lanes.fill(0.0);
        let (q, out) = lanes.as_chunks_mut().0.split_at_mut(tiles * head_dim);
        let (keys, values) = blocks.split_at_mut(BLOCK * head_dim);
        let (softmax, scores) = (vec![Softmax::EMPTY; tiles], Box::new([[0.0; LANES]; BLOCK]));
        Self { head_dim, pairs, q, out, keys, values, scores, softmax, element: PhantomData }
    }
}

impl<E: Element> Unit<E> for LanesUnit<'_, E> {
    fn load_query(&mut self, lane: usize, q: &[E]) {
        for (to, from) in self.q[lane / LANES * self.head_dim..].iter_mut().zip(q) {
            to[lane % LANES] = from.to_f32();
        }
    }

    fn load_block(&mut self, k: &[E], v: &[E], strides: [usize; 2], count: usize) {
        lanes::load_block(k, strides[0], count, self.head_dim, self.keys);
        if self.pairs {
            lanes::load_pairs(v, count, self.head_dim, self.values);
        } else {
            lanes::load_block(v, strides[1], count, self.head_dim, self.values);
        }
    }

    fn step(&mut self, first_tile: usize, visible: &[Visible], scale2: f32) {
        for (tile, visible) in (first_tile..).zip(visible) {
            if visible.count > 0 {
                let dims = tile * self.head_dim..(tile + 1) * self.head_dim;
                lanes::scores(self.keys, &self.q[dims.clone()], visible.count, &mut self.scores);
                let factor = lanes::softmax_step(&mut self.scores, visible, scale2, &mut self.softmax[tile]);
                lanes::accumulate(self.values, &self.scores, visible.count, &factor, &mut self.out[dims]);
            }
        }
    }

    fn finish(&self, lane: usize, out: &mut [E]) -> f32 {
        let (tile, lane) = (lane / LANES, lane % LANES);
        let (inverse, lse) = self.softmax[tile].finish(lane);
        for (to, from) in out.iter_mut().zip(&self.out[tile * self.head_dim..]) {
            *to = E::from_f32(from[lane] * inverse);
        }
        lse
    }
}

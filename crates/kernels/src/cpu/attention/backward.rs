//! The backward pass of training: gradients of queries, keys and values of whole trees of segments.
//! One task per tree and key/value head visits key blocks in order and, inside, all tiles of queries that see them, so
//! that every gradient is summed in one fixed order; ancestors collect from all their descendants. The arithmetic is a
//! [`Unit`]'s.
//! Cost: five products per (block, tile) instead of the forward pass's two; working copies of a tree's queries.

use super::lanes::{self, Lanes, Visible};
use super::plan::{self, GROUP, Tree, TreeSegment};
use super::{BLOCK, Heads, LANES};
use crate::cpu::ask::ask_for;
use crate::cpu::past_caches::{LARGE, copy_past_caches, finish_stores};
use crate::cpu::rope::{RopeTable, turn_row};
use crate::cpu::scratch::with_scratch;
use crate::cpu::shared::SharedMut;
use crate::cpu::vector::{WIDTH, load, total, vectorised};
use crate::element::Element;
use crate::isa::{MatmulPath, matmul_path};
use crate::parallel::for_chunks;
use crate::segment::Segment;
use crate::team;
use std::marker::PhantomData;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// Gradient of [`attention`](super::attention) when every row of every segment is a query (training).
///
/// `qkv` and `d_qkv` have rows of `(num_heads + 2 * num_kv_heads) * d`: queries, keys, values. `out` and `lse` are what
/// the forward pass wrote, `d_out` the gradient of `out`. Rows outside every segment get zero.
///
/// Where all queries and keys were turned by [`rope`](crate::cpu::rope::rope), `table` says how, and `d_qkv` is the
/// gradient of what they were before: each head is turned back before it leaves the caches, with the same bits as in a
/// pass of its own.
pub fn attention_backward<E: Element>(
    heads: &Heads,
    segments: &[Segment],
    qkv: &[E],
    out: &[E],
    lse: &[f32],
    d_out: &[E],
    table: Option<&RopeTable>,
    d_qkv: &mut [E],
) {
    attention_backward_on(matmul_path(), heads, segments, qkv, out, lse, d_out, table, d_qkv);
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
    table: Option<&RopeTable>,
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
    if let Some(table) = table {
        assert_eq!(table.cos.len(), rows * table.half, "attention_backward: the table has another number of rows");
        assert!(2 * table.half <= heads.head_dim, "attention_backward: the table turns more than a head");
    }
    if segments.iter().map(|segment| segment.len as usize).sum::<usize>() != rows {
        d_qkv.fill(E::from_f32(0.0));
    }
    let trees = plan::trees(heads, segments);
    let past_caches = size_of_val(&*d_qkv) >= LARGE;
    let call = Call { heads, stride, qkv, out, lse, d_out, table, d_qkv: SharedMut::new(d_qkv) };
    let (ahead, count) = (team::num_threads(), trees.len() * heads.num_kv_heads);
    let task = |index: usize| (index < count).then(|| (&trees[index / heads.num_kv_heads], index % heads.num_kv_heads));
    let next = AtomicUsize::new(0);
    for_chunks(ahead.min(count), 1, |_| {
        let mut traffic = Traffic::new(past_caches);
        loop {
            let index = next.fetch_add(1, Relaxed);
            let Some((tree, kv_head)) = task(index) else { return };
            // The task that this thread is likely to take next.
            traffic.want(task(index + ahead));
            let (tiles, d) = (tree.segments.last().map_or(0, |last| last.tiles.end), heads.head_dim);
            #[cfg(target_arch = "x86_64")]
            if super::amx::available::<E>(path) {
                use super::backward_amx::AmxUnit;
                with_scratch(AmxUnit::scratch_len(tiles, d), |scratch: &mut [f32]| {
                    call.run(tree, kv_head, &mut AmxUnit::new(tiles, d, scratch), &mut traffic);
                });
                continue;
            }
            with_scratch(LanesUnit::<E>::scratch_len(tiles, d), |scratch: &mut [f32]| {
                call.run(tree, kv_head, &mut LanesUnit::new(tiles, d, scratch), &mut traffic);
            });
        }
    });
}

/// Lanes of a group of tiles.
const GROUP_LANES: usize = GROUP * LANES;

/// What a task needs of the arithmetic. Lanes are numbered through the tree's tiles; a group of tiles is loaded before
/// its first step and finished after its last.
pub(super) trait Unit<E> {
    /// Takes one lane's query, its answer with the gradient of it, and its log-sum-exp times log2(e).
    fn load_query(&mut self, lane: usize, q: &[E], out: &[E], d_out: &[E], lse2: f32);
    /// The group that begins with `first_tile` is loaded and holds `num_lanes` queries.
    fn start_group(&mut self, _first_tile: usize, _num_lanes: usize) {}
    /// Takes `count` keys and values, rows `stride` apart, and starts their gradients at zero.
    fn load_block(&mut self, k: &[E], v: &[E], stride: usize, count: usize);
    /// Adds what [`GROUP`] tiles from `first_tile` on contribute to the gradients of the block, and the block to theirs;
    /// calls `between` between products, for memory to be at work meanwhile.
    fn step(&mut self, first_tile: usize, visible: &[Visible; GROUP], scale2: f32, between: impl FnMut());
    /// Writes the gradients of key and value `index` of the block.
    fn finish_key(&self, index: usize, scale: f32, dk: &mut [E], dv: &mut [E]);
    /// All blocks that the group sees are visited.
    fn end_group(&mut self, first_tile: usize, scale: f32);
    /// Writes the gradient of a lane's query, a lane of the group that has ended last.
    fn finish_query(&self, lane: usize, dq: &mut [E]);
}

struct Call<'a, E> {
    heads: &'a Heads,
    stride: usize,
    qkv: &'a [E],
    out: &'a [E],
    lse: &'a [f32],
    d_out: &'a [E],
    table: Option<&'a RopeTable>,
    d_qkv: SharedMut<'a, E>,
}

impl<E: Element> Call<'_, E> {
    fn run(&self, tree: &Tree, kv_head: usize, unit: &mut impl Unit<E>, traffic: &mut Traffic<'_, E>) {
        let mut loaded = vec![false; tree.segments.last().map_or(0, |last| last.tiles.end / GROUP)];
        for segment in 0..tree.segments.len() {
            for first in (0..tree.segments[segment].len).step_by(BLOCK) {
                self.visit_block(tree, kv_head, segment, first, &mut loaded, unit, traffic);
            }
        }
        traffic.end(self);
    }

    /// Hands the unit the queries of one group.
    fn load_group(&self, segment: &TreeSegment, kv_head: usize, first_tile: usize, unit: &mut impl Unit<E>) {
        let Heads { num_heads, head_dim: d, .. } = *self.heads;
        let num_lanes = self.for_lanes(segment, kv_head, first_tile, |lane, row, head| {
            let at = row * num_heads + head;
            let (out, d_out) = (&self.out[at * d..][..d], &self.d_out[at * d..][..d]);
            let q = &self.qkv[row * self.stride + head * d..][..d];
            unit.load_query(lane, q, out, d_out, self.lse[at] * std::f32::consts::LOG2_E);
        });
        unit.start_group(first_tile, num_lanes);
    }

    /// Takes the gradients of one group's queries from the unit.
    fn finish_group(
        &self,
        segment: &TreeSegment,
        kv_head: usize,
        first_tile: usize,
        unit: &mut impl Unit<E>,
        traffic: &mut Traffic<'_, E>,
    ) {
        let Heads { head_dim: d, scale, .. } = *self.heads;
        unit.end_group(first_tile, scale);
        self.for_lanes(segment, kv_head, first_tile, |lane, row, head| {
            let dq = traffic.row(row * self.stride + head * d, d);
            unit.finish_query(lane, dq);
            self.turn_back(row, dq);
        });
    }

    /// The way back through the rotation of a query or key, if there was one.
    fn turn_back(&self, row: usize, head: &mut [E]) {
        if let Some(table) = self.table {
            let (cos, sin) = table.row(row);
            turn_row(head, cos, sin, true);
        }
    }

    /// The lanes of a segment, counted from its first, that the group from `first_tile` on holds.
    fn lanes(&self, segment: &TreeSegment, first_tile: usize) -> Range<usize> {
        let (first, end) = ((first_tile - segment.tiles.start) * LANES, segment.len * self.heads.group());
        first..(first + GROUP_LANES).min(end)
    }

    /// Calls `body(lane, row, query head)` for every lane of a group; their number.
    fn for_lanes(
        &self,
        segment: &TreeSegment,
        kv_head: usize,
        first_tile: usize,
        mut body: impl FnMut(usize, usize, usize),
    ) -> usize {
        let group = self.heads.group();
        let lanes = self.lanes(segment, first_tile);
        for lane in lanes.clone() {
            let (row, head) = (segment.start + lane / group, kv_head * group + lane % group);
            body(segment.tiles.start * LANES + lane, row, head);
        }
        lanes.len()
    }

    /// One block of keys and values: gradients of both, and their share in the gradients of the queries.
    fn visit_block(
        &self,
        tree: &Tree,
        kv_head: usize,
        segment: usize,
        first: usize,
        loaded: &mut [bool],
        unit: &mut impl Unit<E>,
        traffic: &mut Traffic<'_, E>,
    ) {
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
                // The most that a lane of the group sees of the segment: what its last one sees.
                let most = match own && self.heads.causal {
                    true => self.lanes(reader, tile).end.div_ceil(self.heads.group()),
                    false => key_segment.len,
                };
                if most <= first {
                    continue;
                }
                if !std::mem::replace(&mut loaded[tile / GROUP], true) {
                    self.load_group(reader, kv_head, tile, unit);
                }
                let visible = std::array::from_fn(|index| {
                    self.visible(reader, tile + index - reader.tiles.start, own, key_segment.len, first)
                });
                unit.step(tile, &visible, scale2, || traffic.advance(self));
                if own && most <= first + BLOCK {
                    self.finish_group(reader, kv_head, tile, unit, traffic);
                }
            }
        }
        for index in 0..count {
            let [dk, dv] = traffic.two_rows([row(index) + k_at, row(index) + v_at], d);
            unit.finish_key(index, scale, dk, dv);
            self.turn_back(key_segment.start + first + index, dk);
        }
    }

    /// How many keys of the block that begins at `first` each lane of the reader's tile `index` sees; the block's segment
    /// has `key_len`.
    fn visible(&self, reader: &TreeSegment, index: usize, own: bool, key_len: usize, first: usize) -> Visible {
        let (group, causal) = (self.heads.group(), own && self.heads.causal);
        let position = |lane: usize| (index * LANES + lane) / group;
        // Most tiles see all of a block or nothing.
        if position(0) >= reader.len || causal && position(LANES - 1) < first {
            return Visible::alike(0);
        }
        if position(LANES - 1) < reader.len && (!causal || position(0) + 1 >= first + BLOCK) {
            return Visible::alike((key_len - first).min(BLOCK));
        }
        let limits = std::array::from_fn(|lane| match (position(lane) < reader.len, causal) {
            (false, _) => 0,
            (true, true) => position(lane) as u32 + 1,
            (true, false) => key_len as u32,
        });
        Visible::new(&limits, first)
    }
}

/// Rows of the next task, for all that it reads of a row, that are asked for at a time; enough to be done with a task
/// of 256 rows and three query heads before it begins.
const FETCHED_ROWS: usize = 2;
/// Finished rows that are written at a time.
const WRITTEN_ROWS: usize = 12;
/// Bytes that are asked for ahead of a task: they wait in the second-level cache, beside what this task works on.
const FETCHED: usize = 512 << 10;

/// What goes from and to memory while a task computes: in one burst either would stop the thread.
struct Traffic<'a, E> {
    /// The next task, and how far it is fetched.
    next: Option<(&'a Tree, usize)>,
    segment: usize,
    row: usize,
    fetched: usize,
    /// Finished rows, how many of them are written, and where they go.
    finished: Vec<E>,
    written: usize,
    places: Vec<usize>,
    past_caches: bool,
}

impl<'a, E: Element> Traffic<'a, E> {
    fn new(past_caches: bool) -> Self {
        let (finished, places) = (Vec::new(), Vec::new());
        Self { next: None, segment: 0, row: 0, fetched: 0, finished, written: 0, places, past_caches }
    }

    /// A task will follow.
    fn want(&mut self, next: Option<(&'a Tree, usize)>) {
        (self.next, self.segment, self.row, self.fetched) = (next, 0, 0, 0);
    }

    /// Room for a finished row of `d` values that belongs at `place`.
    fn row(&mut self, place: usize, d: usize) -> &mut [E] {
        let at = self.finished.len();
        self.places.push(place);
        self.finished.resize(at + d, E::default());
        &mut self.finished[at..]
    }

    /// Room for two of them.
    fn two_rows(&mut self, places: [usize; 2], d: usize) -> [&mut [E]; 2] {
        let at = self.finished.len();
        self.places.extend(places);
        self.finished.resize(at + 2 * d, E::default());
        self.finished[at..].split_at_mut(d).into()
    }

    /// A little of everything.
    fn advance(&mut self, call: &Call<'_, E>) {
        for _ in 0..FETCHED_ROWS {
            self.fetch_row(call);
        }
        self.write(call, WRITTEN_ROWS);
    }

    /// Asks for what the next task reads of its next row.
    fn fetch_row(&mut self, call: &Call<'_, E>) {
        #[cfg(target_arch = "x86_64")]
        if let Some((tree, kv_head)) = self.next
            && self.fetched < FETCHED
            && let Some(segment) = tree.segments.get(self.segment)
        {
            let Heads { num_heads, num_kv_heads, head_dim: d, .. } = *call.heads;
            let (row, width) = (segment.start + self.row, call.heads.group() * d);
            let (x, at) = (&call.qkv[row * call.stride..][..call.stride], row * num_heads * d + kv_head * width);
            let (key, value) = ((num_heads + kv_head) * d, (num_heads + num_kv_heads + kv_head) * d);
            for run in [&x[kv_head * width..][..width], &call.out[at..][..width], &call.d_out[at..][..width]] {
                ask_for(run);
            }
            ask_for(&x[key..][..d]);
            ask_for(&x[value..][..d]);
            self.fetched += (3 * width + 2 * d) * size_of::<E>();
            self.row += 1;
            if self.row == segment.len {
                (self.segment, self.row) = (self.segment + 1, 0);
            }
        }
        let _ = call;
    }

    /// Writes up to `rows` of the finished rows.
    fn write(&mut self, call: &Call<'_, E>, rows: usize) {
        let d = call.heads.head_dim;
        let end = self.places.len().min(self.written.saturating_add(rows));
        for index in self.written..end {
            // SAFETY: each query, key and value of a row and head belongs to one task, which finishes it once.
            let to = unsafe { call.d_qkv.slice(self.places[index], d) };
            let from = &self.finished[index * d..][..d];
            if self.past_caches {
                copy_past_caches(from, to);
            } else {
                to.copy_from_slice(from);
            }
        }
        self.written = end;
        if end == self.places.len() {
            self.places.clear();
            self.finished.clear();
            self.written = 0;
        }
    }

    /// The task is done: everything is written.
    fn end(&mut self, call: &Call<'_, E>) {
        self.write(call, usize::MAX);
        if self.past_caches {
            finish_stores();
        }
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
    fn load_query(&mut self, lane: usize, q: &[E], out: &[E], d_out: &[E], lse2: f32) {
        let (tile, at, delta) = (lane / LANES, lane * self.width, dot(out, d_out));
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

    fn step(&mut self, first_tile: usize, visible: &[Visible; GROUP], scale2: f32, mut between: impl FnMut()) {
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
            between();
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

    fn end_group(&mut self, first_tile: usize, scale: f32) {
        let dims = first_tile * self.head_dim..(first_tile + GROUP) * self.head_dim;
        self.dq[dims].as_flattened_mut().iter_mut().for_each(|dq| *dq *= scale);
    }

    fn finish_query(&self, lane: usize, dq: &mut [E]) {
        for (to, from) in dq.iter_mut().zip(&self.dq[lane / LANES * self.head_dim..]) {
            *to = E::from_f32(from[lane % LANES]);
        }
    }
}

//! Attention over segments, as `cpu::attention` defines it: bf16 runs of rows go in tiles to the tensor cores, single rows
//! (decoding), f32 and heads wider than 128 go row by row.
//! A plan holds who sees whom on the device; it is made once per pass and serves all layers.
//! Cost: a plan costs a few words per row and 64 keys; no `tokens x tokens` matrix.

use super::{same_number, typed, u32_of, u64_of};
use crate::cpu::attention::Heads;
use crate::cuda::buffer::{DeviceBuffer, View};
use crate::cuda::device::Device;
use crate::cuda::engine::{Argument, Number};
use crate::cuda::sources::{Module, TILE_HEADS};
use crate::segment::{Queries, Segment, ancestors};

/// Rows of a tile, of queries or of keys.
const TILE: usize = 64;
/// An owner that stands for all rows of a tile.
const EVERYBODY: u32 = u32::MAX;
/// Threads of a block that works on tiles, and on a row.
const TILE_THREADS: u32 = 128;
const ROW_THREADS: u32 = 256;
/// Parentless segments shorter than this share tiles.
const SHORT: u32 = 32;

/// Rows of queries, keys or values: head `h` of row `r` begins at `data[offset + r * stride + h * head_dim]`.
#[derive(Clone, Copy)]
pub struct Strided<'a> {
    /// The whole tensor.
    pub data: View<'a>,
    /// Where row 0 begins.
    pub offset: usize,
    /// Distance between rows.
    pub stride: usize,
}

impl Strided<'_> {
    fn argument(&self) -> Argument {
        self.data.argument_at(self.offset)
    }
}

/// The width that tiles are compiled for, if they serve this type and head.
fn tile_head(number: Number, head_dim: usize) -> Option<u32> {
    let fits = TILE_HEADS.into_iter().find(|head| *head as usize >= head_dim);
    fits.filter(|_| number == Number::Bf16)
}

/// Bytes of shared memory for so many tiles.
fn shared_bytes(head: u32, rows: usize) -> usize {
    rows * (head as usize + 8) * 2
}

fn stages(head: u32) -> usize {
    if head <= 96 { 2 } else { 1 }
}

fn check(heads: &Heads) {
    let Heads { num_heads, num_kv_heads, head_dim, .. } = *heads;
    assert!((8..=256).contains(&head_dim) && head_dim.is_multiple_of(8), "attention: head_dim {head_dim}");
    assert!(num_kv_heads > 0 && num_heads.is_multiple_of(num_kv_heads), "attention: {num_heads}/{num_kv_heads} heads");
}

/// Lists of a plan, as words.
#[derive(Default)]
struct Lists {
    tiles: Vec<u32>,
    rows: Vec<u32>,
    ranges: Vec<u32>,
}

/// Tiles of query rows.
struct Tiles {
    head: u32,
    count: usize,
    lists: [DeviceBuffer; 3],
}

/// A query row by itself: it sees `num_ranges` ranges of its ancestors, and rows of its own segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RowQuery {
    /// Row in the query and output tensors.
    pub row: u32,
    /// Its first range in the list of ranges, which are a start and a length each.
    pub first_range: u32,
    /// How many it has.
    pub num_ranges: u32,
    /// First row of its own segment.
    pub own_start: u32,
    /// Rows of it that it sees.
    pub own_visible: u32,
}

impl RowQuery {
    /// Words of a query in the list that the kernel reads.
    pub const WORDS: usize = 5;

    /// As the kernel reads it.
    pub fn words(&self) -> [u32; Self::WORDS] {
        [self.row, self.first_range, self.num_ranges, self.own_start, self.own_visible]
    }
}

/// Query rows one by one.
struct Rows {
    queries: DeviceBuffer,
    ranges: DeviceBuffer,
}

fn tiles_of(device: &Device, heads: &Heads, head: u32, queries: &[Queries], segments: &[Segment]) -> Option<Tiles> {
    let mut lists = Lists::default();
    let mut tile = OpenTile::default();
    for run in queries {
        let segment = segments[run.segment as usize];
        let alone = segment.parent.is_none() && segment.len >= SHORT;
        if tile.parent != Some(segment.parent) || alone || tile.alone {
            tile.close(segments, &mut lists);
            tile = OpenTile { parent: Some(segment.parent), alone, ..OpenTile::default() };
        }
        for index in 0..run.num_rows {
            if tile.rows.len() == TILE {
                tile.close(segments, &mut lists);
                tile.rows.clear();
                tile.own.clear();
            }
            let visible = if heads.causal { run.first_position + index + 1 } else { segment.len };
            tile.rows.push([run.first_row + index, run.segment, visible]);
            match tile.own.last_mut() {
                Some((owner, most)) if *owner == run.segment => *most = visible.max(*most),
                _ => tile.own.push((run.segment, visible)),
            }
        }
    }
    tile.close(segments, &mut lists);
    let count = lists.tiles.len() / 4;
    (count > 0).then(|| {
        let lists = [&lists.tiles, &lists.rows, &lists.ranges].map(|list| device.upload(list));
        Tiles { head, count, lists }
    })
}

/// A tile that may still take rows. All its rows have one parent, so they share their ancestors.
#[derive(Default)]
struct OpenTile {
    parent: Option<Option<u32>>,
    alone: bool,
    rows: Vec<[u32; 3]>,
    own: Vec<(u32, u32)>,
}

impl OpenTile {
    fn close(&self, segments: &[Segment], lists: &mut Lists) {
        let Some(row) = self.rows.first() else { return };
        let first_range = lists.ranges.len() as u32 / 3;
        for ancestor in ancestors(segments, row[1]) {
            let Segment { start, len, .. } = segments[ancestor as usize];
            if len > 0 {
                lists.ranges.extend([start, len, EVERYBODY]);
            }
        }
        for (owner, visible) in &self.own {
            lists.ranges.extend([segments[*owner as usize].start, *visible, *owner]);
        }
        let num_ranges = lists.ranges.len() as u32 / 3 - first_range;
        lists.tiles.extend([lists.rows.len() as u32 / 3, self.rows.len() as u32, first_range, num_ranges]);
        lists.rows.extend(self.rows.iter().flatten());
    }
}

fn rows_of(device: &Device, heads: &Heads, queries: &[Queries], segments: &[Segment]) -> Option<Rows> {
    let mut lists = Lists::default();
    for run in queries {
        let segment = segments[run.segment as usize];
        let first_range = lists.ranges.len() as u32 / 2;
        for ancestor in ancestors(segments, run.segment) {
            let Segment { start, len, .. } = segments[ancestor as usize];
            if len > 0 {
                lists.ranges.extend([start, len]);
            }
        }
        let num_ranges = lists.ranges.len() as u32 / 2 - first_range;
        for index in 0..run.num_rows {
            let visible = if heads.causal { run.first_position + index + 1 } else { segment.len };
            let row = run.first_row + index;
            let query = RowQuery { row, first_range, num_ranges, own_start: segment.start, own_visible: visible };
            lists.rows.extend(query.words());
        }
    }
    (!lists.rows.is_empty()).then(|| Rows { queries: device.upload(&lists.rows), ranges: device.upload(&lists.ranges) })
}

/// Who asks and who is seen, for forward passes.
pub struct Plan {
    tiles: Option<Tiles>,
    rows: Option<Rows>,
}

impl Plan {
    /// The plan of `queries` over `segments` for tensors of `number`.
    pub fn new(device: &Device, heads: &Heads, number: Number, queries: &[Queries], segments: &[Segment]) -> Plan {
        check(heads);
        let head = tile_head(number, heads.head_dim);
        // By each run's own length, so that nobody's result depends on who else is asked.
        let (runs, single): (Vec<Queries>, Vec<Queries>) =
            queries.iter().partition(|run| head.is_some() && run.num_rows > 1);
        Plan {
            tiles: head.and_then(|head| tiles_of(device, heads, head, &runs, segments)),
            rows: rows_of(device, heads, &single, segments),
        }
    }

    /// Writes `out` `[rows, num_heads * d]` and `lse` `[rows, num_heads]` at the query rows.
    pub fn attend(&self, heads: &Heads, q: Strided, k: Strided, v: Strided, out: View, lse: View) {
        if let Some(Tiles { head, count, lists }) = &self.tiles {
            let mut arguments = lists.each_ref().map(|list| list.all().argument()).to_vec();
            arguments.extend(tensors(heads, q, k, v, out, lse));
            let grid = [*count, heads.num_heads];
            let kernel = format!("attention_tiles_{head}");
            let shared = shared_bytes(*head, 5 * TILE);
            out.device().launch(Module::AttentionTiles(*head), &kernel, grid, TILE_THREADS, shared, &arguments);
        }
        if let Some(Rows { queries, ranges }) = &self.rows {
            attend_rows(heads, queries.all(), ranges.all(), q, k, v, out, lse);
        }
    }
}

/// What a forward kernel gets behind its lists.
fn tensors(heads: &Heads, q: Strided, k: Strided, v: Strided, out: View, lse: View) -> [Argument; 10] {
    same_number("attention", &[q.data, k.data, v.data, out]);
    assert_eq!(k.stride, v.stride, "attention: keys and values have rows of one length");
    [
        q.argument(),
        u64_of(q.stride),
        k.argument(),
        v.argument(),
        u64_of(k.stride),
        u32_of(heads.num_heads / heads.num_kv_heads),
        u32_of(heads.head_dim),
        Argument::F32(heads.scale * std::f32::consts::LOG2_E),
        out.argument(),
        lse.argument(),
    ]
}

/// [`Plan::attend`] for rows by themselves, with lists on the device: words of [`RowQuery`], and ranges. That they name
/// rows that exist is the caller's promise.
pub fn attend_rows(
    heads: &Heads,
    queries: View,
    ranges: View,
    q: Strided,
    k: Strided,
    v: Strided,
    out: View,
    lse: View,
) {
    check(heads);
    assert!(queries.number() == Number::U32 && ranges.number() == Number::U32, "attention: lists are words");
    let mut arguments = vec![queries.argument(), ranges.argument()];
    arguments.extend(tensors(heads, q, k, v, out, lse));
    let grid = [queries.len() / RowQuery::WORDS, heads.num_heads];
    let kernel = typed("attention_rows", out.number());
    out.device().launch(Module::AttentionRows, &kernel, grid, ROW_THREADS, 0, &arguments);
}

/// Who asks and who is seen, for backward passes over packed rows, where every row of every segment asks.
pub struct BackwardPlan {
    queries: Option<Tiles>,
    query_rows: Option<Rows>,
    keys: Keys,
    /// Whether the segments leave rows out.
    has_gaps: bool,
}

/// Keys, in tiles or one by one, and the runs of rows that see them.
struct Keys {
    head: Option<u32>,
    count: usize,
    keys: DeviceBuffer,
    readers: DeviceBuffer,
}

impl BackwardPlan {
    /// The plan for packed rows of `number`, `num_rows` of them.
    pub fn new(device: &Device, heads: &Heads, number: Number, segments: &[Segment], num_rows: usize) -> Self {
        check(heads);
        let queries = Queries::whole(segments);
        let head = tile_head(number, heads.head_dim);
        let covered: usize = segments.iter().map(|segment| segment.len as usize).sum();
        BackwardPlan {
            queries: head.and_then(|head| tiles_of(device, heads, head, &queries, segments)),
            query_rows: if head.is_some() { None } else { rows_of(device, heads, &queries, segments) },
            keys: keys_of(device, heads, head, segments),
            has_gaps: covered != num_rows,
        }
    }

    /// Gradient of [`Plan::attend`] over fused rows: `d_qkv` in the layout of `qkv`.
    pub fn attend_backward(&self, heads: &Heads, qkv: View, out: View, lse: View, d_out: View, d_qkv: View) {
        let number = same_number("attention_backward", &[qkv, out, d_out, d_qkv]);
        let device = qkv.device();
        let Heads { num_heads, num_kv_heads, head_dim, scale, .. } = *heads;
        let stride = (num_heads + 2 * num_kv_heads) * head_dim;
        assert!(qkv.len() == d_qkv.len() && out.len() == d_out.len(), "attention_backward: lengths differ");
        if self.has_gaps {
            d_qkv.zero();
        }
        let delta = device.take(Number::F32, lse.len());
        let delta_arguments =
            [out.argument(), d_out.argument(), u64_of(lse.len()), u32_of(head_dim), delta.all().argument()];
        let blocks = [lse.len().div_ceil(4), 1];
        device.launch(Module::AttentionRows, &typed("attention_delta", number), blocks, 128, 0, &delta_arguments);
        let tail = [
            qkv.argument(),
            u64_of(stride),
            u32_of(num_heads / num_kv_heads),
            u32_of(head_dim),
            Argument::F32(scale),
            lse.argument(),
            delta.all().argument(),
            d_out.argument(),
            d_qkv.argument(),
        ];
        if let Some(Tiles { head, count, lists }) = &self.queries {
            let mut arguments = lists.each_ref().map(|list| list.all().argument()).to_vec();
            arguments.extend(tail);
            let kernel = format!("attention_tiles_queries_{head}");
            let shared = shared_bytes(*head, (2 + 2 * stages(*head)) * TILE);
            let module = Module::AttentionTiles(*head);
            device.launch(module, &kernel, [*count, num_heads], TILE_THREADS, shared, &arguments);
        }
        if let Some(Rows { queries, ranges }) = &self.query_rows {
            let mut arguments = vec![queries.all().argument(), ranges.all().argument()];
            arguments.extend(tail);
            let kernel = typed("attention_rows_queries", number);
            let grid = [queries.len() / RowQuery::WORDS, num_heads];
            device.launch(Module::AttentionRows, &kernel, grid, ROW_THREADS, 0, &arguments);
        }
        let Keys { head, count, keys, readers } = &self.keys;
        let mut arguments = vec![keys.all().argument(), readers.all().argument()];
        arguments.extend(tail);
        let grid = [*count, num_kv_heads];
        match head {
            Some(head) => {
                let kernel = format!("attention_tiles_keys_{head}");
                let query_tile = if *head <= 64 { 64 } else { 32 };
                let shared = shared_bytes(*head, 2 * TILE + 2 * stages(*head) * query_tile);
                device.launch(Module::AttentionTiles(*head), &kernel, grid, TILE_THREADS, shared, &arguments);
            }
            None => {
                let kernel = typed("attention_rows_keys", number);
                device.launch(Module::AttentionRows, &kernel, grid, ROW_THREADS, 0, &arguments);
            }
        }
    }
}

fn keys_of(device: &Device, heads: &Heads, head: Option<u32>, segments: &[Segment]) -> Keys {
    let (mut keys, mut readers) = (Vec::new(), Vec::<u32>::new());
    let words = if head.is_some() { 3 } else { 2 };
    for (index, segment) in segments.iter().enumerate() {
        let descendants = descendants(segments, index as u32);
        let step = if head.is_some() { TILE as u32 } else { 1 };
        for first in (0..segment.len).step_by(step as usize) {
            let first_range = readers.len() as u32 / words;
            // Rows before the first key of the tile see none of it.
            let from = if heads.causal { segment.start + first } else { segment.start };
            readers.extend([from, segment.start + segment.len - from]);
            if head.is_some() {
                readers.push(heads.causal.into());
            }
            for (start, len) in &descendants {
                readers.extend([*start, *len]);
                if head.is_some() {
                    readers.push(0);
                }
            }
            let num_ranges = readers.len() as u32 / words - first_range;
            keys.push(segment.start + first);
            if head.is_some() {
                keys.push(step.min(segment.len - first));
            }
            keys.extend([first_range, num_ranges]);
        }
    }
    let count = keys.len() / if head.is_some() { 4 } else { 3 };
    Keys { head, count, keys: device.upload(&keys), readers: device.upload(&readers) }
}

/// Rows of the segments that descend from one, neighbours joined.
fn descendants(segments: &[Segment], index: u32) -> Vec<(u32, u32)> {
    let mut runs: Vec<(u32, u32)> = Vec::new();
    for (place, segment) in segments.iter().enumerate().skip(index as usize + 1) {
        if segment.len == 0 || !ancestors(segments, place as u32).contains(&index) {
            continue;
        }
        match runs.last_mut() {
            Some((start, len)) if *start + *len == segment.start => *len += segment.len,
            _ => runs.push((segment.start, segment.len)),
        }
    }
    runs
}

//! The backward pass's arithmetic on the AMX unit: probabilities and their gradients are recomputed in f32 and rounded
//! to bf16 as operands, all sums are f32.
//! Cost: per 64 lanes and block of 64 keys about 160 tile products for heads of 64, and 256 rows of softmax.

use super::amx::{self, DEPTH, KEY_STEPS, KEY_TILES, Pieces, Saved, TILE, Tiles};
use super::backward::Unit;
use super::lanes::{Lanes, Visible};
use super::plan::GROUP;
use super::{BLOCK, LANES};
use crate::element::{Element, bf16};

// Lanes of a group as depth.
const LANE_STEPS: usize = GROUP * LANES / DEPTH;

/// See the file's header.
pub(super) struct AmxUnit<'s> {
    tiles: Tiles,
    head_dim: usize,
    /// Operand tiles along a head: 32 dims each as depth, 16 each as rows or columns.
    steps: usize,
    dim_tiles: usize,
    /// Queries and gradients of outputs of one group as they come, `[lane][steps * 32]`; gradients of queries as they
    /// go.
    q_rows: &'s mut [bf16],
    d_out_rows: &'s mut [bf16],
    dq_rows: &'s mut [bf16],
    /// The same as B with dims as depth, `[tile][steps]`.
    q: &'s mut [bf16],
    d_out: &'s mut [bf16],
    /// The same as B with lanes as depth, `[group][dim tile][lane step]`.
    q_pairs: &'s mut [bf16],
    d_out_pairs: &'s mut [bf16],
    /// Gradient of the queries, `[tile][dim]`, and which tiles have one.
    dq: &'s mut [Lanes],
    begun: Vec<bool>,
    saved: Vec<Saved>,
    /// Keys and values as A with dims as depth, keys as A with keys as depth.
    keys: &'s mut [bf16],
    values: &'s mut [bf16],
    keys_transposed: &'s mut [bf16],
    /// Gradients of keys and values, `[dim tile][key tile]` tiles of sums.
    dk: &'s mut [f32],
    dv: &'s mut [f32],
    /// Whether these hold sums of this block.
    block_begun: bool,
    /// Of two tiles: the unit works on one while the other's become probabilities.
    scores: [&'s mut [Lanes; BLOCK]; 2],
    dp: [&'s mut [Lanes; BLOCK]; 2],
    /// Probabilities and gradients of scores as A with lanes as depth, `[key tile][lane step]`; the latter also as B
    /// with keys as depth, `[key step]`, of one tile of lanes.
    p: &'s mut [bf16],
    ds: &'s mut [bf16],
    ds_pairs: &'s mut [bf16],
}

impl<'s> AmxUnit<'s> {
    /// f32 of scratch.
    pub(super) fn scratch_len(tiles: usize, head_dim: usize) -> usize {
        let (steps, dim_tiles) = (head_dim.div_ceil(DEPTH), head_dim.div_ceil(16));
        let lanes = (2 * tiles + 3 * GROUP) * steps + 2 * tiles / GROUP * dim_tiles * LANE_STEPS;
        let block = 2 * KEY_TILES * steps + dim_tiles * KEY_STEPS + 2 * KEY_TILES * LANE_STEPS + KEY_STEPS;
        let sums = tiles * dim_tiles + 2 * dim_tiles * KEY_TILES + 4 * KEY_TILES;
        (lanes + block + sums) * TILE / 2
    }

    /// For a tree of `tiles` tiles.
    pub(super) fn new(tiles: usize, head_dim: usize, scratch: &'s mut [f32]) -> Self {
        let (steps, dim_tiles) = (head_dim.div_ceil(DEPTH), head_dim.div_ceil(16));
        let mut pieces = Pieces(scratch);
        Self {
            tiles: Tiles::new(),
            head_dim,
            steps,
            dim_tiles,
            q_rows: pieces.tiles(GROUP * steps),
            d_out_rows: pieces.tiles(GROUP * steps),
            dq_rows: pieces.tiles(GROUP * steps),
            q: pieces.tiles(tiles * steps),
            d_out: pieces.tiles(tiles * steps),
            q_pairs: pieces.tiles(tiles / GROUP * dim_tiles * LANE_STEPS),
            d_out_pairs: pieces.tiles(tiles / GROUP * dim_tiles * LANE_STEPS),
            dq: pieces.floats(tiles * dim_tiles * 16 * LANES).as_chunks_mut().0,
            begun: vec![false; tiles],
            saved: vec![Saved { lse2: [0.0; LANES], delta: [0.0; LANES] }; tiles],
            keys: pieces.tiles(KEY_TILES * steps),
            values: pieces.tiles(KEY_TILES * steps),
            keys_transposed: pieces.tiles(dim_tiles * KEY_STEPS),
            dk: pieces.floats(dim_tiles * BLOCK * 16),
            dv: pieces.floats(dim_tiles * BLOCK * 16),
            block_begun: false,
            scores: [pieces.block(), pieces.block()],
            dp: [pieces.block(), pieces.block()],
            p: pieces.tiles(KEY_TILES * LANE_STEPS),
            ds: pieces.tiles(KEY_TILES * LANE_STEPS),
            ds_pairs: pieces.tiles(KEY_STEPS),
        }
    }
}

impl AmxUnit<'_> {
    /// Scores of one tile's queries against the first `count` keys of the block, and the gradients of probabilities.
    fn multiply_scores(&mut self, tile: usize, count: usize, turn: usize) {
        if count == 0 {
            return;
        }
        let (steps, keys) = (self.steps, count.next_multiple_of(16));
        let lanes = tile * steps * TILE..(tile + 1) * steps * TILE;
        let (q, d_out) = (&self.q[lanes.clone()], &self.d_out[lanes]);
        self.tiles.multiply(self.keys, steps, q, steps, self.scores[turn][..keys].as_flattened_mut(), false);
        self.tiles.multiply(self.values, steps, d_out, steps, self.dp[turn][..keys].as_flattened_mut(), false);
    }
}

impl<E: Element> Unit<E> for AmxUnit<'_> {
    fn load_query(&mut self, lane: usize, q: &[E], out: &[E], d_out: &[E], lse2: f32) {
        let width = self.steps * DEPTH;
        let at = lane % (GROUP * LANES) * width;
        let (q_row, d_out_row) = (&mut self.q_rows[at..][..width], &mut self.d_out_rows[at..][..width]);
        let saved = &mut self.saved[lane / LANES];
        saved.lse2[lane % LANES] = lse2;
        let (q, out, d_out) = (bytemuck::cast_slice(q), bytemuck::cast_slice(out), bytemuck::cast_slice(d_out));
        amx::take_query(&self.tiles, q, out, d_out, q_row, d_out_row, &mut saved.delta[lane % LANES]);
    }

    fn start_group(&mut self, first_tile: usize, num_lanes: usize) {
        let (width, group) = (self.steps * DEPTH, first_tile / GROUP);
        // Lanes that stand for no query must hold zeros: their share in the gradients of keys is 0 times this.
        self.q_rows[num_lanes * width..].fill(bf16::ZERO);
        self.d_out_rows[num_lanes * width..].fill(bf16::ZERO);
        let lanes_len = GROUP * self.steps * TILE;
        let pairs_len = self.dim_tiles * LANE_STEPS * TILE;
        for (rows, lanes, pairs) in [
            (&*self.q_rows, &mut *self.q, &mut *self.q_pairs),
            (&*self.d_out_rows, &mut *self.d_out, &mut *self.d_out_pairs),
        ] {
            let lanes = &mut lanes[group * lanes_len..][..lanes_len];
            for (rows, lanes) in rows.chunks_exact(LANES * width).zip(lanes.chunks_exact_mut(self.steps * TILE)) {
                amx::pack_lanes(&self.tiles, rows, width, lanes);
            }
            let pairs = &mut pairs[group * pairs_len..][..pairs_len];
            amx::pack_lane_pairs(&self.tiles, rows, width, self.head_dim, pairs);
        }
    }

    fn load_block(&mut self, k: &[E], v: &[E], stride: usize, count: usize) {
        let (k, v) = (bytemuck::cast_slice(k), bytemuck::cast_slice(v));
        amx::pack_rows(&self.tiles, k, stride, count, self.head_dim, self.keys);
        amx::pack_rows(&self.tiles, v, stride, count, self.head_dim, self.values);
        amx::pack_rows_transposed(&self.tiles, k, stride, count, self.head_dim, self.keys_transposed);
        self.block_begun = false;
    }

    fn step(&mut self, first_tile: usize, visible: &[Visible; GROUP], scale2: f32, mut between: impl FnMut()) {
        let dims = self.dim_tiles * 16;
        // Tiles beyond the last that sees the block are left out; pairs of tiles are the depth of the last products.
        let used = visible.iter().rposition(|visible| visible.count > 0).map_or(0, |last| (last / 2 + 1) * 2);
        let visible = &visible[..used];
        // The products of the next tile are issued before the softmax of this one, so that the two units overlap.
        self.multiply_scores(first_tile, visible[0].count, 0);
        for (index, visible_now) in visible.iter().enumerate() {
            let (tile, turn) = (first_tile + index, index % 2);
            if let Some(next) = visible.get(index + 1) {
                self.multiply_scores(tile + 1, next.count, 1 - turn);
            }
            between();
            let column = index / 2 * TILE;
            amx::softmax_backward(
                &self.tiles,
                self.scores[turn],
                self.dp[turn],
                visible_now,
                scale2,
                &self.saved[tile],
                index % 2,
                LANE_STEPS * TILE,
                &mut self.p[column..],
                &mut self.ds[column..],
                self.ds_pairs,
            );
            if visible_now.count > 0 {
                let dq = self.dq[tile * dims..][..dims].as_flattened_mut();
                let steps = visible_now.count.div_ceil(DEPTH);
                let add = std::mem::replace(&mut self.begun[tile], true);
                self.tiles.multiply(self.keys_transposed, KEY_STEPS, self.ds_pairs, steps, dq, add);
            }
        }
        let add = std::mem::replace(&mut self.block_begun, true);
        let pairs_at = first_tile / GROUP * self.dim_tiles * LANE_STEPS * TILE;
        for dim_tile in 0..self.dim_tiles {
            let at = pairs_at + dim_tile * LANE_STEPS * TILE;
            let sums = dim_tile * BLOCK * 16..(dim_tile + 1) * BLOCK * 16;
            let (dk, dv) = (&mut self.dk[sums.clone()], &mut self.dv[sums]);
            self.tiles.multiply(self.p, LANE_STEPS, &self.d_out_pairs[at..], used / 2, dv, add);
            self.tiles.multiply(self.ds, LANE_STEPS, &self.q_pairs[at..], used / 2, dk, add);
        }
    }

    fn finish_key(&self, index: usize, scale: f32, dk: &mut [E], dv: &mut [E]) {
        amx::finish_row(&self.tiles, self.dk, index, scale, bytemuck::cast_slice_mut(dk));
        amx::finish_row(&self.tiles, self.dv, index, 1.0, bytemuck::cast_slice_mut(dv));
    }

    fn end_group(&mut self, first_tile: usize, scale: f32) {
        let (width, dims) = (self.steps * DEPTH, self.dim_tiles * 16);
        let group = &self.dq[first_tile * dims..][..GROUP * dims];
        for (rows, dq) in self.dq_rows.chunks_exact_mut(LANES * width).zip(group.chunks_exact(dims)) {
            amx::finish_lanes(&self.tiles, dq, &[scale; LANES], width, rows);
        }
    }

    fn finish_query(&self, lane: usize, dq: &mut [E]) {
        let at = lane % (GROUP * LANES) * self.steps * DEPTH;
        dq.copy_from_slice(bytemuck::cast_slice(&self.dq_rows[at..][..self.head_dim]));
    }
}

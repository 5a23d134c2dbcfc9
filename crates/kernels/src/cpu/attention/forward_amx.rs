//! The forward pass's arithmetic on the AMX unit: bf16 operands, f32 sums, softmax in f32.
//! Cost: per tile and block of 64 keys about 16 tile products for heads of 64, and 64 rows of softmax, which dominate.

use super::amx::{self, DEPTH, KEY_STEPS, KEY_TILES, Layout, Pieces, TILE, Tiles};
use super::forward::Unit;
use super::lanes::{Lanes, Softmax, Visible};
use super::{BLOCK, LANES};
use crate::element::{Element, bf16};

/// See the file's header.
pub(super) struct AmxUnit<'s> {
    tiles: Tiles,
    head_dim: usize,
    /// Whether rows of values stand in pairs.
    pairs: bool,
    /// Operand tiles along a head: 32 dims each as depth, 16 each as rows.
    steps: usize,
    dim_tiles: usize,
    /// Queries as they come, answers as they go, `[lane][steps * 32]`.
    rows: &'s mut [bf16],
    /// Queries as B, `[tile][steps]`.
    q: &'s mut [bf16],
    /// Sums of values, `[tile][dim]`.
    out: &'s mut [Lanes],
    keys: &'s mut [bf16],
    /// Keys that are multiplied where they are, with the distance of their rows: a single tile of lanes reads them only
    /// once.
    in_place: Option<(*const bf16, usize)>,
    values: &'s mut [bf16],
    p: &'s mut [bf16],
    /// Of two tiles: the unit works on one while the other's become probabilities.
    scores: [&'s mut [Lanes; BLOCK]; 2],
    softmax: Vec<Softmax>,
}

impl<'s> AmxUnit<'s> {
    /// f32 of scratch.
    pub(super) fn scratch_len(tiles: usize, head_dim: usize) -> usize {
        let (steps, dim_tiles) = (head_dim.div_ceil(DEPTH), head_dim.div_ceil(16));
        let operands = 2 * tiles * steps + KEY_TILES * steps + dim_tiles * KEY_STEPS + KEY_STEPS;
        operands * TILE / 2 + (tiles * dim_tiles * 16 + 2 * BLOCK) * LANES
    }

    /// For a task of `tiles` tiles.
    pub(super) fn new(tiles: usize, head_dim: usize, pairs: bool, scratch: &'s mut [f32]) -> Self {
        let (steps, dim_tiles) = (head_dim.div_ceil(DEPTH), head_dim.div_ceil(16));
        let mut pieces = Pieces(scratch);
        let rows = pieces.tiles(tiles * steps);
        rows.fill(bf16::ZERO);
        let out = pieces.floats(tiles * dim_tiles * 16 * LANES).as_chunks_mut().0;
        out.fill([0.0; LANES]);
        Self {
            tiles: Tiles::new(),
            head_dim,
            pairs,
            steps,
            dim_tiles,
            rows,
            q: pieces.tiles(tiles * steps),
            out,
            keys: pieces.tiles(KEY_TILES * steps),
            in_place: None,
            values: pieces.tiles(dim_tiles * KEY_STEPS),
            p: pieces.tiles(KEY_STEPS),
            scores: [pieces.block(), pieces.block()],
            softmax: vec![Softmax::EMPTY; tiles],
        }
    }
}

impl<'s> AmxUnit<'s> {
    /// The running softmax of every tile, and the sums of its values `[tile][dim_tiles * 16]`.
    pub(super) fn into_sums(self) -> (Vec<Softmax>, &'s [Lanes], usize) {
        (self.softmax, self.out, self.dim_tiles * 16)
    }

    /// Scores of one tile's queries against the first `count` keys of the block.
    fn multiply_scores(&mut self, tile: usize, count: usize, turn: usize) {
        let q = &self.q[tile * self.steps * TILE..][..self.steps * TILE];
        let scores = self.scores[turn][..count.next_multiple_of(16)].as_flattened_mut();
        match self.in_place {
            Some((keys, line)) => {
                let layout = Layout { line, step: DEPTH, panel: 16 * line };
                // SAFETY: `load_block` saw that the rows are there, and the trait says that they stay for the step.
                unsafe { self.tiles.multiply_from(keys, layout, q, self.steps, scores, false) }
            }
            None => self.tiles.multiply(self.keys, self.steps, q, self.steps, scores, false),
        }
    }
}

impl<E: Element> Unit<E> for AmxUnit<'_> {
    fn load_query(&mut self, lane: usize, q: &[E]) {
        self.rows[lane * self.steps * DEPTH..][..self.head_dim].copy_from_slice(bytemuck::cast_slice(q));
    }

    fn start(&mut self) {
        let width = self.steps * DEPTH;
        for (rows, q) in self.rows.chunks_exact(LANES * width).zip(self.q.chunks_exact_mut(self.steps * TILE)) {
            amx::pack_lanes(&self.tiles, rows, width, q);
        }
    }

    fn load_block(&mut self, k: &[E], v: &[E], strides: [usize; 2], count: usize) {
        let (k, v): (&[bf16], &[bf16]) = (bytemuck::cast_slice(k), bytemuck::cast_slice(v));
        // Whole tiles are read; what stands in rows beyond `count` makes scores that nobody looks at.
        let read = (count.next_multiple_of(16) - 1) * strides[0] + self.head_dim;
        let whole = self.softmax.len() == 1 && self.head_dim.is_multiple_of(DEPTH) && k.len() >= read;
        self.in_place = whole.then(|| (k.as_ptr(), strides[0]));
        if !whole {
            amx::pack_rows(&self.tiles, k, strides[0], count, self.head_dim, self.keys);
        }
        if self.pairs {
            amx::pack_pairs_transposed(&self.tiles, v, count, self.head_dim, self.values);
        } else {
            amx::pack_rows_transposed(&self.tiles, v, strides[1], count, self.head_dim, self.values);
        }
    }

    fn step(&mut self, first_tile: usize, visible: &[Visible], scale2: f32) {
        // The products of the next tile are issued before the softmax of this one, so that the two units overlap.
        let mut seeing = (first_tile..).zip(visible).filter(|(_, visible)| visible.count > 0);
        let mut next = seeing.next();
        if let Some((tile, visible)) = next {
            self.multiply_scores(tile, visible.count, 0);
        }
        let mut turn = 0;
        while let Some((tile, visible)) = next {
            next = seeing.next();
            if let Some((tile, visible)) = next {
                self.multiply_scores(tile, visible.count, 1 - turn);
            }
            let out = &mut self.out[tile * self.dim_tiles * 16..][..self.dim_tiles * 16];
            let state = &mut self.softmax[tile];
            amx::softmax_step(&self.tiles, self.scores[turn], visible, scale2, state, self.p, out);
            let steps = visible.count.div_ceil(DEPTH);
            self.tiles.multiply(self.values, KEY_STEPS, self.p, steps, out.as_flattened_mut(), true);
            turn = 1 - turn;
        }
    }

    fn end(&mut self) {
        let (width, dims) = (self.steps * DEPTH, self.dim_tiles * 16);
        let tiles = self.rows.chunks_exact_mut(LANES * width).zip(self.out.chunks_exact(dims)).zip(&self.softmax);
        for ((rows, out), softmax) in tiles {
            let factor = std::array::from_fn(|lane| softmax.finish(lane).0);
            amx::finish_lanes(&self.tiles, out, &factor, width, rows);
        }
    }

    fn finish(&self, lane: usize, out: &mut [E]) -> f32 {
        out.copy_from_slice(bytemuck::cast_slice(&self.rows[lane * self.steps * DEPTH..][..self.head_dim]));
        self.softmax[lane / LANES].finish(lane % LANES).1
    }
}

//! The tape: a model family calls these ops forward; the tape remembers what ran on what and replays the pairs
//! backwards. Knows ops and buffers; knows no architecture.
//! Cost: one entry per op; values inside a block are freed when the block ends, unless they are needed backwards.

mod backward;
mod device;
mod device_backward;

use std::rc::Rc;

use foveate_kernels::cpu::activation::Activation;
use foveate_kernels::cpu::attention::{Heads, Rows};
use foveate_kernels::cpu::head_norm::{self, NormedHeads};
use foveate_kernels::cpu::interpolate::{self, Interpolation};
use foveate_kernels::cpu::rope::RopeTable;
use foveate_kernels::cpu::{activation, attention, elementwise, embed, layer_scale, norm, pixel_shuffle, rope, sums};
use foveate_kernels::element::bf16;
use foveate_kernels::segment::{Queries, Segment};

use crate::arena::{Arena, Buffer, Kind};
use crate::cache::KeyValueStore;
use crate::profile::timer;
use crate::weights::{LinearId, ParamId, Weights};

use backward::{Node, Op};

/// A value on the tape.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Var(u32);

/// Calls `$body` with `$x` bound to the typed slice of a buffer.
macro_rules! typed {
    ($buffer:expr, $x:ident => $body:expr) => {
        match $buffer {
            $crate::arena::Buffer::F32($x) => $body,
            $crate::arena::Buffer::Bf16($x) => $body,
            $crate::arena::Buffer::Device(_) => panic!("an op of the CPU received a buffer of a GPU"),
        }
    };
}

/// The same for two or three buffers of one element type.
macro_rules! same_type {
    (($a:expr, $x:ident), ($b:expr, $y:ident) => $body:expr) => {
        match ($a, $b) {
            ($crate::arena::Buffer::F32($x), $crate::arena::Buffer::F32($y)) => $body,
            ($crate::arena::Buffer::Bf16($x), $crate::arena::Buffer::Bf16($y)) => $body,
            _ => panic!("operands of one op must have one element type"),
        }
    };
    (($a:expr, $x:ident), ($b:expr, $y:ident), ($c:expr, $z:ident) => $body:expr) => {
        match ($a, $b, $c) {
            ($crate::arena::Buffer::F32($x), $crate::arena::Buffer::F32($y), $crate::arena::Buffer::F32($z)) => $body,
            ($crate::arena::Buffer::Bf16($x), $crate::arena::Buffer::Bf16($y), $crate::arena::Buffer::Bf16($z)) => {
                $body
            }
            _ => panic!("operands of one op must have one element type"),
        }
    };
}
pub(crate) use {same_type, typed};

/// Sizes of a pixel shuffle.
#[derive(Clone, Copy, Debug)]
pub struct Shuffle {
    /// Number of images.
    pub tiles: usize,
    /// Rows of patches.
    pub height: usize,
    /// Columns of patches.
    pub width: usize,
    /// Width of a feature.
    pub depth: usize,
    /// Side of the square of patches that becomes one feature.
    pub factor: usize,
}

/// Where attention finds keys and values.
#[derive(Clone)]
pub enum Attend {
    /// In the packed rows themselves (training, scoring).
    Packed(Rc<[Segment]>),
    /// In a store that outlives the pass (prefill and decoding): the new rows are written there first.
    Stored {
        /// Keys and values of all layers.
        store: Rc<KeyValueStore>,
        /// Segments in coordinates of the store, lengths as they are after this pass.
        segments: Rc<[Segment]>,
        /// What is asked.
        queries: Rc<[Queries]>,
        /// Row of the store for each new row.
        rows: Rc<[u32]>,
    },
}

type BlockFn<'w> = Rc<dyn Fn(&mut Tape<'w>, Var) -> Var + 'w>;

/// Records a forward pass and replays it backwards.
pub struct Tape<'w> {
    /// The parameters that ops read.
    pub weights: &'w Weights,
    arena: Arena,
    values: Vec<Option<Buffer>>,
    needs_gradient: Vec<bool>,
    gradients: Vec<Option<Buffer>>,
    nodes: Vec<Node<'w>>,
    record: bool,
    recompute: bool,
    operand: Kind,
    /// Where the model is on a GPU: what its ops share.
    on: Option<device::OnDevice>,
}

impl<'w> Tape<'w> {
    /// An empty tape. `operand` is the type of matrix operands; `record` is off when nothing will be asked back;
    /// `recompute` keeps only the inputs of blocks and runs them again when going back.
    pub fn new(weights: &'w Weights, arena: Arena, operand: Kind, record: bool, recompute: bool) -> Self {
        Self {
            weights,
            arena,
            values: Vec::new(),
            needs_gradient: Vec::new(),
            gradients: Vec::new(),
            nodes: Vec::new(),
            record,
            recompute,
            operand,
            on: weights.device_weights().map(|weights| device::OnDevice::new(&weights.device)),
        }
    }

    /// Frees all values and gives the memory back.
    pub fn into_arena(mut self) -> Arena {
        for buffer in self.values.drain(..).chain(self.gradients.drain(..)).flatten() {
            self.arena.give(buffer);
        }
        self.arena
    }

    /// The memory, for work between forward and backward.
    pub fn arena(&mut self) -> &mut Arena {
        &mut self.arena
    }

    /// Type of matrix operands.
    pub fn operand(&self) -> Kind {
        self.operand
    }

    /// The values of `var`.
    pub fn value(&self, var: Var) -> &Buffer {
        self.values[var.0 as usize].as_ref().expect("a value is read only while it lives")
    }

    fn push(&mut self, buffer: Buffer, needs_gradient: bool) -> Var {
        self.values.push(Some(buffer));
        self.needs_gradient.push(needs_gradient && self.record);
        self.gradients.push(None);
        Var(self.values.len() as u32 - 1)
    }

    fn remember(&mut self, out: Var, op: Op<'w>) {
        if self.needs(out) {
            self.nodes.push(Node { out, op });
        } else {
            op.forget(&mut self.arena);
        }
    }

    fn needs(&self, var: Var) -> bool {
        self.needs_gradient[var.0 as usize]
    }

    fn take_value(&mut self, var: Var) -> Buffer {
        self.values[var.0 as usize].take().expect("a value is consumed once")
    }

    fn free(&mut self, var: Var) {
        if let Some(buffer) = self.values[var.0 as usize].take() {
            self.arena.give(buffer);
        }
    }

    // ----- forward -----

    /// A constant: pixels, or features made elsewhere.
    pub fn constant(&mut self, buffer: Buffer) -> Var {
        if self.on.is_some() {
            return self.device_constant(buffer);
        }
        self.push(buffer, false)
    }

    /// Runs `run` as one block: what it makes inside is freed at its end, unless it is needed backwards.
    pub fn block(&mut self, x: Var, run: impl Fn(&mut Tape<'w>, Var) -> Var + 'w) -> Var {
        let first_value = self.values.len();
        let first_node = self.nodes.len();
        let redo = self.recompute && self.record;
        if redo {
            self.record = false;
            let out = run(self, x);
            self.record = true;
            let buffer = self.take_value(out);
            self.drop_since(first_value);
            let out = self.push(buffer, true);
            self.nodes.push(Node { out, op: Op::Block { x, run: Rc::new(run) } });
            return out;
        }
        let out = run(self, x);
        if self.nodes.len() == first_node {
            // Nothing inside will be asked back.
            let buffer = self.take_value(out);
            self.drop_since(first_value);
            return self.push(buffer, false);
        }
        out
    }

    fn drop_since(&mut self, first_value: usize) {
        for buffer in self.values.drain(first_value..).flatten() {
            self.arena.give(buffer);
        }
        self.needs_gradient.truncate(first_value);
        self.gradients.truncate(first_value);
    }

    /// Rows of an embedding table: `[ids, D]` in f32.
    pub fn embed(&mut self, table: ParamId, ids: Rc<[u32]>) -> Var {
        if self.on.is_some() {
            return self.device_embed(table, ids);
        }
        let _timer = timer("embed");
        let depth = *self.weights.infos()[table.0].shape.last().expect("a table has two axes");
        let mut out = self.arena.take_f32(ids.len() * depth);
        embed::embed(&ids, self.weights.tensor(table), depth, &mut out);
        let out = self.push(Buffer::F32(out), self.weights.is_trainable(table));
        self.remember(out, Op::Embed { table, ids });
        out
    }

    /// `x·Wᵀ + b` as operand of the next op.
    pub fn linear(&mut self, x: Var, linear: LinearId) -> Var {
        self.linear_to(x, linear, None, self.operand)
    }

    /// `x·Wᵀ + b` in f32 (the start of a residual stream).
    pub fn linear_f32(&mut self, x: Var, linear: LinearId) -> Var {
        self.linear_to(x, linear, None, Kind::F32)
    }

    /// `residual + x·Wᵀ + b` in f32.
    pub fn linear_add(&mut self, x: Var, linear: LinearId, residual: Var) -> Var {
        self.linear_to(x, linear, Some(residual), Kind::F32)
    }

    fn linear_to(&mut self, x: Var, id: LinearId, residual: Option<Var>, kind: Kind) -> Var {
        if self.on.is_some() {
            return self.device_linear(x, id, residual, kind);
        }
        let _timer = timer("linear");
        let linear = self.weights.linear(id);
        let num_rows = self.value(x).len() / linear.k;
        let mut out = self.arena.take(kind, num_rows * linear.n);
        let mut adapters = Vec::new();
        crate::linear::forward(
            self.weights,
            id,
            self.values[x.0 as usize].as_ref().expect("the input lives"),
            residual.map(|residual| self.values[residual.0 as usize].as_ref().expect("the residual lives").f32()),
            &mut out,
            &mut self.arena,
            &mut adapters,
        );
        let learns = self.weights.linear_is_trainable(id)
            || self.weights.adapters(id).iter().any(|adapter| self.weights.linear_is_trainable(adapter.a));
        let needs = self.needs(x) || residual.is_some_and(|r| self.needs(r)) || learns;
        let out = self.push(out, needs);
        self.remember(out, Op::Linear { x, linear: id, residual, adapters });
        out
    }

    /// Root-mean-square norm of an f32 stream, as operand.
    pub fn rms_norm(&mut self, x: Var, weight: ParamId, eps: f32) -> Var {
        if self.on.is_some() {
            return self.device_rms_norm(x, weight, eps);
        }
        let _timer = timer("rms norm");
        let (kind, len) = (self.operand, self.value(x).len());
        let depth = self.weights.tensor(weight).len();
        let mut out = self.arena.take(kind, len);
        let mut rstd = self.arena.take_f32(len / depth);
        let (input, gain) = (self.value(x).f32(), self.weights.tensor(weight));
        typed!(&mut out, y => norm::rms_norm(input, gain, eps, y, &mut rstd));
        let out = self.push(out, self.needs(x) || self.weights.is_trainable(weight));
        self.remember(out, Op::RmsNorm { x, weight, rstd: Buffer::F32(rstd) });
        out
    }

    /// Layer norm of an f32 stream, as operand.
    pub fn layer_norm(&mut self, x: Var, weight: ParamId, bias: ParamId, eps: f32) -> Var {
        self.layer_norm_to(x, weight, bias, eps, self.operand)
    }

    /// Layer norm of an f32 stream that stays one.
    pub fn layer_norm_f32(&mut self, x: Var, weight: ParamId, bias: ParamId, eps: f32) -> Var {
        self.layer_norm_to(x, weight, bias, eps, Kind::F32)
    }

    fn layer_norm_to(&mut self, x: Var, weight: ParamId, bias: ParamId, eps: f32, kind: Kind) -> Var {
        if self.on.is_some() {
            return self.device_layer_norm(x, weight, bias, eps, kind);
        }
        let _timer = timer("layer norm");
        let len = self.value(x).len();
        let num_rows = len / self.weights.tensor(weight).len();
        let mut out = self.arena.take(kind, len);
        let (mut mean, mut rstd) = (self.arena.take_f32(num_rows), self.arena.take_f32(num_rows));
        let (gain, shift) = (self.weights.tensor(weight), self.weights.tensor(bias));
        let input = self.value(x).f32();
        typed!(&mut out, y => norm::layer_norm(input, gain, shift, eps, y, &mut mean, &mut rstd));
        let out = self.push(out, self.needs(x) || self.weights.is_trainable(weight));
        self.remember(out, Op::LayerNorm { x, weight, bias, mean: Buffer::F32(mean), rstd: Buffer::F32(rstd) });
        out
    }

    /// Root-mean-square norm of every query and key head of a fused row tensor, each kind with its own weight.
    pub fn head_norm(&mut self, x: Var, heads: NormedHeads, queries: ParamId, keys: ParamId, eps: f32) -> Var {
        if self.on.is_some() {
            return self.device_head_norm(x, heads, [queries, keys], eps);
        }
        let _timer = timer("head norm");
        let (kind, len) = (self.value(x).kind(), self.value(x).len());
        let mut out = self.arena.take(kind, len);
        let mut rstd = self.arena.take_f32(len / heads.width * heads.count());
        let gains = [self.weights.tensor(queries), self.weights.tensor(keys)];
        same_type!((self.value(x), x), (&mut out, y) => head_norm::head_norm(&heads, x, gains, eps, y, &mut rstd));
        let learns = self.weights.is_trainable(queries) || self.weights.is_trainable(keys);
        let out = self.push(out, self.needs(x) || learns);
        self.remember(out, Op::HeadNorm { x, heads, weights: [queries, keys], rstd: Buffer::F32(rstd) });
        out
    }

    /// Rotates the first `heads` heads of every row in place (queries and keys of a fused row); `x` is used up.
    pub fn rope(&mut self, x: Var, width: usize, heads: usize, head_dim: usize, table: Rc<RopeTable>) -> Var {
        if self.on.is_some() {
            return self.device_rope(x, width, heads, head_dim, table);
        }
        let _timer = timer("rope");
        let mut buffer = self.take_value(x);
        typed!(&mut buffer, x => rope::rope(x, width, 0, heads, head_dim, &table, false));
        let out = self.push(buffer, self.needs(x));
        self.remember(out, Op::Rope { x, width, heads, head_dim, table });
        out
    }

    /// Attention of a fused `[T, (Hq + 2 Hkv) d]` row tensor; `layer` names the store's layer while decoding.
    pub fn attention(&mut self, qkv: Var, heads: Heads, attend: &Attend, layer: usize) -> Var {
        if self.on.is_some() {
            return self.device_attention(qkv, heads, attend, layer);
        }
        let _timer = timer("attention");
        let (query_width, key_width) = (heads.num_heads * heads.head_dim, heads.num_kv_heads * heads.head_dim);
        let stride = query_width + 2 * key_width;
        let num_rows = self.value(qkv).len() / stride;
        let kind = self.value(qkv).kind();
        let mut out = self.arena.take(kind, num_rows * query_width);
        let mut lse = self.arena.take_f32(num_rows * heads.num_heads);
        match attend {
            Attend::Packed(segments) => {
                let queries = Queries::whole(segments);
                same_type!((self.value(qkv), x), (&mut out, y) => {
                    let view = |offset| Rows { data: x, offset, stride, head: heads.head_dim };
                    attention::attention(
                        &heads, &queries, segments, view(0), view(query_width), view(query_width + key_width), y,
                        &mut lse,
                    );
                });
            }
            Attend::Stored { store, segments, queries, rows } => {
                store.attend(layer, &heads, self.value(qkv), rows, segments, queries, &mut out, &mut lse);
            }
        }
        let out = self.push(out, self.needs(qkv));
        let segments = self.segments_of(qkv, attend);
        self.remember(out, Op::Attention { qkv, heads, segments, lse: Buffer::F32(lse) });
        out
    }

    /// The segments that attention of `qkv` remembers.
    fn segments_of(&self, qkv: Var, attend: &Attend) -> Rc<[Segment]> {
        match attend {
            Attend::Packed(segments) => segments.clone(),
            Attend::Stored { segments, .. } => {
                assert!(!self.needs(qkv), "gradients are asked of packed rows only");
                segments.clone()
            }
        }
    }

    /// A plain activation.
    pub fn activation(&mut self, x: Var, kind: Activation) -> Var {
        if self.on.is_some() {
            return self.device_activation(x, kind);
        }
        let _timer = timer("activation");
        let mut out = self.arena.take(self.value(x).kind(), self.value(x).len());
        same_type!((self.value(x), x), (&mut out, y) => activation::activation(kind, x, y));
        let out = self.push(out, self.needs(x));
        self.remember(out, Op::Activation { x, kind });
        out
    }

    /// `act(gate) * up` of a fused `[T, 2F]` row tensor.
    pub fn gated(&mut self, x: Var, kind: Activation, width: usize) -> Var {
        if self.on.is_some() {
            return self.device_gated(x, kind, width);
        }
        let _timer = timer("gated");
        let mut out = self.arena.take(self.value(x).kind(), self.value(x).len() / 2);
        same_type!((self.value(x), x), (&mut out, y) => activation::gated(kind, x, width, y));
        let out = self.push(out, self.needs(x));
        self.remember(out, Op::Gated { x, kind, width });
        out
    }

    /// `stream + scale * branch`, the scale channel by channel, in f32.
    pub fn layer_scale(&mut self, branch: Var, scale: ParamId, stream: Var) -> Var {
        if self.on.is_some() {
            return self.device_layer_scale(branch, scale, stream);
        }
        let _timer = timer("layer scale");
        let mut out = self.arena.take_f32(self.value(stream).len());
        elementwise::convert(self.value(stream).f32(), &mut out);
        let factors = self.weights.tensor(scale);
        typed!(self.value(branch), branch => layer_scale::layer_scale(branch, factors, &mut out));
        let needs = self.needs(branch) || self.needs(stream) || self.weights.is_trainable(scale);
        let out = self.push(Buffer::F32(out), needs);
        self.remember(out, Op::LayerScale { branch, scale, stream });
        out
    }

    /// An f32 stream, rounded to the type of matrix operands.
    pub fn as_operand(&mut self, x: Var) -> Var {
        if self.on.is_some() {
            return self.device_as_operand(x);
        }
        let _timer = timer("as operand");
        let (kind, len) = (self.operand, self.value(x).len());
        let mut out = self.arena.take(kind, len);
        let input = self.value(x).f32();
        typed!(&mut out, y => elementwise::convert(input, y));
        let out = self.push(out, self.needs(x));
        self.remember(out, Op::AsOperand { x });
        out
    }

    /// Adds row `rows[i]` of a learned table to row `i`, in place; `x` is used up.
    pub fn add_table_rows(&mut self, x: Var, table: ParamId, rows: Rc<[u32]>) -> Var {
        if self.on.is_some() {
            return self.device_add_table_rows(x, table, rows);
        }
        let _timer = timer("add table rows");
        let depth = *self.weights.infos()[table.0].shape.last().expect("a table has two axes");
        let mut buffer = self.take_value(x);
        sums::add_table_rows(&rows, self.weights.tensor(table), depth, buffer.f32_mut());
        let out = self.push(buffer, self.needs(x) || self.weights.is_trainable(table));
        self.remember(out, Op::AddTableRows { x, table, rows });
        out
    }

    /// Adds `features[i]` to row `rows[i]` of an f32 stream, in place; `x` is used up.
    pub fn add_rows(&mut self, x: Var, features: Var, rows: Rc<[u32]>, depth: usize) -> Var {
        if self.on.is_some() {
            return self.device_add_rows(x, features, rows, depth);
        }
        let _timer = timer("add rows");
        let mut buffer = self.take_value(x);
        embed::scatter_rows_add(self.value(features).f32(), &rows, depth, buffer.f32_mut());
        let out = self.push(buffer, self.needs(x) || self.needs(features));
        self.remember(out, Op::AddRows { x, features, rows, depth });
        out
    }

    /// A learned table of `from` rows and columns read at `to` rows and columns: `[to.0 * to.1, D]` in f32.
    pub fn interpolate(
        &mut self,
        table: ParamId,
        from: (usize, usize),
        to: (usize, usize),
        kind: Interpolation,
    ) -> Var {
        if self.on.is_some() {
            return self.device_interpolate(table, from, to, kind);
        }
        let _timer = timer("interpolate");
        let depth = self.weights.infos()[table.0].len / (from.0 * from.1);
        let mut out = self.arena.take_f32(to.0 * to.1 * depth);
        let values = self.weights.tensor(table);
        interpolate::interpolate_positions(values, from.0, from.1, to.0, to.1, depth, kind, &mut out);
        let out = self.push(Buffer::F32(out), self.weights.is_trainable(table));
        self.remember(out, Op::Interpolate { table, from, to, kind });
        out
    }

    /// A grid of features of `from` rows and columns, resampled bilinearly to `to` rows and columns, in f32.
    pub fn resample(&mut self, x: Var, from: (usize, usize), to: (usize, usize), depth: usize) -> Var {
        if self.on.is_some() {
            return self.device_resample(x, from, to, depth);
        }
        let _timer = timer("resample");
        let mut out = self.arena.take_f32(to.0 * to.1 * depth);
        let (grid, kind) = (self.value(x).f32(), Interpolation::Bilinear);
        interpolate::interpolate_positions(grid, from.0, from.1, to.0, to.1, depth, kind, &mut out);
        let out = self.push(Buffer::F32(out), self.needs(x));
        self.remember(out, Op::Resample { x, from, to, depth });
        out
    }

    /// Puts image features in the place of their placeholders, in place; `text` is used up.
    pub fn place(&mut self, text: Var, features: Var, rows: Rc<[u32]>, depth: usize) -> Var {
        if self.on.is_some() {
            return self.device_place(text, features, rows, depth);
        }
        let _timer = timer("place");
        let mut buffer = self.take_value(text);
        embed::place_rows(self.value(features).f32(), &rows, depth, buffer.f32_mut());
        let out = self.push(buffer, self.needs(text) || self.needs(features));
        self.remember(out, Op::Place { text, features, rows, depth });
        out
    }

    /// Squares of neighbouring patches become one wide feature.
    pub fn pixel_shuffle(&mut self, x: Var, shuffle: Shuffle) -> Var {
        if self.on.is_some() {
            return self.device_pixel_shuffle(x, shuffle);
        }
        let _timer = timer("pixel shuffle");
        let mut out = self.arena.take(self.value(x).kind(), self.value(x).len());
        let Shuffle { tiles, height, width, depth, factor } = shuffle;
        same_type!((self.value(x), x), (&mut out, y) =>
            pixel_shuffle::pixel_shuffle(x, tiles, height, width, depth, factor, y));
        let out = self.push(out, self.needs(x));
        self.remember(out, Op::PixelShuffle { x, shuffle });
        out
    }

    /// Some rows of an f32 stream, repeats allowed.
    pub fn gather(&mut self, x: Var, rows: Rc<[u32]>, depth: usize) -> Var {
        if self.on.is_some() {
            return self.device_gather(x, rows, depth);
        }
        let _timer = timer("gather");
        let mut out = self.arena.take_f32(rows.len() * depth);
        embed::gather_rows(self.value(x).f32(), &rows, depth, &mut out);
        let out = self.push(Buffer::F32(out), self.needs(x));
        self.remember(out, Op::Gather { x, rows, depth });
        out
    }

    /// Rounds or copies a buffer into the operand type.
    pub fn to_operand(&mut self, x: &[f32]) -> Buffer {
        let mut out = self.arena.take(self.operand, x.len());
        typed!(&mut out, y => elementwise::convert(x, y));
        out
    }
}

/// Views a bf16 buffer; used where an op has separate code for the two types.
pub(crate) fn bf16_of(buffer: &Buffer) -> &[bf16] {
    match buffer {
        Buffer::Bf16(values) => values,
        Buffer::F32(_) => panic!("an op received f32 where its contract says bf16"),
        Buffer::Device(_) => panic!("an op of the CPU received a buffer of a GPU"),
    }
}

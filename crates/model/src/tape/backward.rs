//! The way back: what each op left on the tape, and its gradient on the CPU. A device's gradients are in `device.rs`.
//! Knows ops and buffers; knows no architecture. Cost: one pair per recorded op; the last use of a value frees it.

use std::rc::Rc;

use foveate_kernels::cpu::activation::Activation;
use foveate_kernels::cpu::attention::Heads;
use foveate_kernels::cpu::head_norm::{self, NormedHeads};
use foveate_kernels::cpu::interpolate::{self, Interpolation};
use foveate_kernels::cpu::rope::RopeTable;
use foveate_kernels::cpu::{activation, attention, elementwise, embed, layer_scale, norm, pixel_shuffle, rope, sums};
use foveate_kernels::cuda::ops;
use foveate_kernels::segment::Segment;

use super::{BlockFn, Shuffle, Tape, Var, same_type, typed};
use crate::arena::{Arena, Buffer};
use crate::gradients::Gradients;
use crate::profile::timer;
use crate::weights::{LinearId, ParamId};

/// What ran: its inputs, and what the way back needs beside them. Statistics lie where the model computes.
pub(super) enum Op<'w> {
    Embed { table: ParamId, ids: Rc<[u32]> },
    Linear { x: Var, linear: LinearId, residual: Option<Var>, adapters: Vec<Buffer> },
    RmsNorm { x: Var, weight: ParamId, rstd: Buffer },
    LayerNorm { x: Var, weight: ParamId, bias: ParamId, mean: Buffer, rstd: Buffer },
    HeadNorm { x: Var, heads: NormedHeads, weights: [ParamId; 2], rstd: Buffer },
    Rope { x: Var, width: usize, heads: usize, head_dim: usize, table: Rc<RopeTable> },
    Attention { qkv: Var, heads: Heads, segments: Rc<[Segment]>, lse: Buffer },
    Activation { x: Var, kind: Activation },
    Gated { x: Var, kind: Activation, width: usize },
    LayerScale { branch: Var, scale: ParamId, stream: Var },
    AsOperand { x: Var },
    AddTableRows { x: Var, table: ParamId, rows: Rc<[u32]> },
    AddRows { x: Var, features: Var, rows: Rc<[u32]>, depth: usize },
    Interpolate { table: ParamId, from: (usize, usize), to: (usize, usize), kind: Interpolation },
    Resample { x: Var, from: (usize, usize), to: (usize, usize), depth: usize },
    Place { text: Var, features: Var, rows: Rc<[u32]>, depth: usize },
    PixelShuffle { x: Var, shuffle: Shuffle },
    Gather { x: Var, rows: Rc<[u32]>, depth: usize },
    Block { x: Var, run: BlockFn<'w> },
}

impl Op<'_> {
    /// Its name in profiles; a block has none, its ops have.
    fn backward_name(&self) -> Option<&'static str> {
        Some(match self {
            Op::Embed { .. } => "embed, backward",
            Op::Linear { .. } => "linear, backward",
            Op::RmsNorm { .. } => "rms norm, backward",
            Op::LayerNorm { .. } => "layer norm, backward",
            Op::HeadNorm { .. } => "head norm, backward",
            Op::Rope { .. } => "rope, backward",
            Op::Attention { .. } => "attention, backward",
            Op::Activation { .. } => "activation, backward",
            Op::Gated { .. } => "gated, backward",
            Op::AddTableRows { .. } => "add table rows, backward",
            Op::LayerScale { .. } => "layer scale, backward",
            Op::AsOperand { .. } => "as operand, backward",
            Op::Resample { .. } => "resample, backward",
            Op::AddRows { .. } => "add rows, backward",
            Op::Interpolate { .. } => "interpolate, backward",
            Op::Place { .. } => "place, backward",
            Op::PixelShuffle { .. } => "pixel shuffle, backward",
            Op::Gather { .. } => "gather, backward",
            Op::Block { .. } => return None,
        })
    }

    /// Gives back what is kept beside the inputs.
    pub(super) fn forget(self, arena: &mut Arena) {
        match self {
            Op::Linear { adapters, .. } => adapters.into_iter().for_each(|inner| arena.give(inner)),
            Op::RmsNorm { rstd, .. } | Op::HeadNorm { rstd, .. } => arena.give(rstd),
            Op::LayerNorm { mean, rstd, .. } => {
                arena.give(mean);
                arena.give(rstd);
            }
            Op::Attention { lse, .. } => arena.give(lse),
            _ => {}
        }
    }
}

/// One entry of the tape.
pub(super) struct Node<'w> {
    pub out: Var,
    pub op: Op<'w>,
}

impl<'w> Tape<'w> {
    /// Gives `var` its gradient, from outside the tape.
    pub fn seed(&mut self, var: Var, gradient: Buffer) {
        if self.needs(var) {
            self.accumulate(var, gradient);
        } else {
            self.arena.give(gradient);
        }
    }

    pub(super) fn accumulate(&mut self, var: Var, gradient: Buffer) {
        let slot = &mut self.gradients[var.0 as usize];
        match slot {
            None => *slot = Some(gradient),
            Some(Buffer::Device(sum)) => ops::elementwise::add(sum.all(), gradient.on_device().all()),
            Some(sum) => {
                same_type!((sum, sum), (&gradient, more) => sums::add_elements(sum, more));
                self.arena.give(gradient);
            }
        }
    }

    /// The gradient of an f32 stream, made zero if nothing has reached it yet, taken out to be added to.
    fn stream_gradient(&mut self, var: Var) -> Buffer {
        self.gradients[var.0 as usize].take().unwrap_or_else(|| {
            let mut zero = self.arena.take_f32(self.values[var.0 as usize].as_ref().map_or(0, Buffer::len));
            zero.fill(0.0);
            Buffer::F32(zero)
        })
    }

    /// The rotation that made `qkv`, where it is the entry that is replayed next and turned all queries and keys: its
    /// way back then goes with that of attention.
    fn take_rotation(&mut self, qkv: Var, of: &Heads) -> Option<(Var, Rc<RopeTable>)> {
        let Node { out, op: Op::Rope { heads, head_dim, .. } } = self.nodes.last()? else { return None };
        let all = (*out, *heads, *head_dim) == (qkv, of.num_heads + of.num_kv_heads, of.head_dim);
        if !all || self.gradients[qkv.0 as usize].is_some() {
            return None;
        }
        match self.nodes.pop()?.op {
            Op::Rope { x, table, .. } => Some((x, table)),
            _ => unreachable!("the last entry was just seen to be a rotation"),
        }
    }

    /// Replays everything backwards; parameters add to `gradients`.
    pub fn backward(&mut self, gradients: &mut Gradients) {
        while let Some(Node { out, op }) = self.nodes.pop() {
            let Some(d_out) = self.gradients[out.0 as usize].take() else {
                self.free(out);
                continue;
            };
            self.step_back(out, op, d_out, gradients);
        }
    }

    fn grad_of<'g>(&self, gradients: &'g mut Gradients, id: ParamId) -> Option<&'g mut [f32]> {
        let info = &self.weights.infos()[id.0];
        self.weights.is_trainable(id).then(|| gradients.part(info.offset..info.offset + info.len))
    }

    fn step_back(&mut self, out: Var, op: Op<'w>, mut d_out: Buffer, gradients: &mut Gradients) {
        if let Op::Block { x, run } = op {
            // Run it again, recording this time; the new entries are replayed next.
            self.free(out);
            self.recompute = false;
            let again = run(self, x);
            self.recompute = true;
            self.gradients[again.0 as usize] = Some(d_out);
            return;
        }
        if self.on.is_some() {
            self.device_step_back(out, op, d_out.into_device(), gradients);
            self.free(out);
            return;
        }
        let _timer = op.backward_name().map(timer);
        match op {
            Op::Block { .. } => unreachable!("a block was run again above"),
            Op::Embed { table, ids } => {
                let depth = d_out.len() / ids.len().max(1);
                if let Some(d_table) = self.grad_of(gradients, table) {
                    embed::embed_backward(&ids, d_out.f32(), depth, d_table);
                }
                self.arena.give(d_out);
            }
            Op::Linear { x, linear, residual, adapters } => {
                let needs_x = self.needs(x);
                let x_value = self.values[x.0 as usize].take().expect("inputs of recorded ops live");
                let d_x = crate::linear::backward(
                    self.weights,
                    linear,
                    &x_value,
                    &d_out,
                    self.operand,
                    needs_x,
                    adapters,
                    &mut self.arena,
                    gradients,
                );
                self.values[x.0 as usize] = Some(x_value);
                if let Some(d_x) = d_x {
                    self.accumulate(x, d_x);
                }
                match residual {
                    Some(residual) if self.needs(residual) => self.accumulate(residual, d_out),
                    _ => self.arena.give(d_out),
                }
            }
            Op::RmsNorm { x, weight, rstd } => {
                let mut d_x = self.stream_gradient(x);
                let input = self.values[x.0 as usize].as_ref().expect("inputs of recorded ops live");
                let d_weight = self.grad_of(gradients, weight);
                typed!(&d_out, dy => norm::rms_norm_backward(
                    dy, input.f32(), self.weights.tensor(weight), rstd.f32(), d_x.f32_mut(), d_weight));
                self.arena.give(rstd);
                self.arena.give(d_out);
                self.keep_or_give(x, d_x);
            }
            Op::LayerNorm { x, weight, bias, mean, rstd } => {
                let mut d_x = self.stream_gradient(x);
                let input = self.values[x.0 as usize].as_ref().expect("inputs of recorded ops live");
                let (mut d_weight, mut d_bias) = (None, None);
                let infos = self.weights.infos();
                if self.weights.is_trainable(weight) {
                    // Weight and bias of one norm lie one after the other; borrow both at once.
                    let (low, high) = (infos[weight.0].offset, infos[bias.0].offset);
                    assert!(low < high, "a norm's bias is declared after its weight");
                    gradients.touch(low..low + infos[weight.0].len);
                    gradients.touch(high..high + infos[bias.0].len);
                    let (head, tail) = gradients.flat.split_at_mut(high);
                    d_weight = Some(&mut head[low..low + infos[weight.0].len]);
                    d_bias = Some(&mut tail[..infos[bias.0].len]);
                }
                typed!(&d_out, dy => norm::layer_norm_backward(
                    dy, input.f32(), self.weights.tensor(weight), mean.f32(), rstd.f32(), d_x.f32_mut(), d_weight, d_bias));
                self.arena.give(mean);
                self.arena.give(rstd);
                self.arena.give(d_out);
                self.keep_or_give(x, d_x);
            }
            Op::HeadNorm { x, heads, weights: [queries, keys], rstd } => {
                let infos = self.weights.infos();
                let (low, high) = (infos[queries.0].offset, infos[keys.0].offset);
                assert!(low < high, "the weight of the queries is declared before that of the keys");
                gradients.touch(low..low + infos[queries.0].len);
                gradients.touch(high..high + infos[keys.0].len);
                let (head, tail) = gradients.flat.split_at_mut(high);
                let d_queries = self.weights.is_trainable(queries).then(|| &mut head[low..low + infos[queries.0].len]);
                let d_keys = self.weights.is_trainable(keys).then(|| &mut tail[..infos[keys.0].len]);
                let gains = [self.weights.tensor(queries), self.weights.tensor(keys)];
                same_type!((&mut d_out, d), (self.value(x), x) =>
                    head_norm::head_norm_backward(&heads, d, x, gains, rstd.f32(), [d_queries, d_keys]));
                self.arena.give(rstd);
                self.pass_on(x, d_out);
            }
            Op::Rope { x, width, heads, head_dim, table } => {
                typed!(&mut d_out, dx => rope::rope(dx, width, 0, heads, head_dim, &table, true));
                self.accumulate(x, d_out);
            }
            Op::Attention { qkv, heads, segments, lse } => {
                let qkv_value = self.values[qkv.0 as usize].take().expect("inputs of recorded ops live");
                let mut d_qkv = self.arena.take(qkv_value.kind(), qkv_value.len());
                let rotation = self.take_rotation(qkv, &heads);
                let (out_value, table) = (self.value(out), rotation.as_ref().map(|(_, table)| &**table));
                match (&qkv_value, out_value, &d_out, &mut d_qkv) {
                    (Buffer::F32(x), Buffer::F32(y), Buffer::F32(dy), Buffer::F32(dx)) => {
                        attention::attention_backward(&heads, &segments, x, y, lse.f32(), dy, table, dx);
                    }
                    (Buffer::Bf16(x), Buffer::Bf16(y), Buffer::Bf16(dy), Buffer::Bf16(dx)) => {
                        attention::attention_backward(&heads, &segments, x, y, lse.f32(), dy, table, dx);
                    }
                    _ => panic!("operands of one op must have one element type"),
                }
                self.arena.give(lse);
                self.arena.give(d_out);
                match rotation {
                    // The rotation was done in place: its output is what attention read.
                    Some((x, _)) => {
                        self.arena.give(qkv_value);
                        self.accumulate(x, d_qkv);
                    }
                    None => {
                        self.values[qkv.0 as usize] = Some(qkv_value);
                        self.accumulate(qkv, d_qkv);
                    }
                }
            }
            Op::Activation { x, kind } => {
                let mut d_x = self.arena.take(d_out.kind(), self.value(x).len());
                same_type!((&d_out, dy), (self.value(x), x), (&mut d_x, dx) =>
                    activation::activation_backward(kind, dy, x, dx));
                self.arena.give(d_out);
                self.accumulate(x, d_x);
            }
            Op::Gated { x, kind, width } => {
                let mut d_x = self.arena.take(d_out.kind(), self.value(x).len());
                same_type!((&d_out, dy), (self.value(x), x), (&mut d_x, dx) =>
                    activation::gated_backward(kind, dy, x, width, dx));
                self.arena.give(d_out);
                self.accumulate(x, d_x);
            }
            Op::LayerScale { branch, scale, stream } => {
                let (kind, len) = (self.value(branch).kind(), d_out.len());
                let mut d_branch = self.arena.take(kind, len);
                let d_scale = self.grad_of(gradients, scale);
                let factors = self.weights.tensor(scale);
                same_type!((self.value(branch), branch), (&mut d_branch, d_branch) =>
                    layer_scale::layer_scale_backward(d_out.f32(), branch, factors, d_branch, d_scale));
                self.pass_on(branch, d_branch);
                self.pass_on(stream, d_out);
            }
            Op::AsOperand { x } => {
                let mut d_x = self.arena.take_f32(d_out.len());
                typed!(&d_out, dy => elementwise::convert(dy, &mut d_x));
                self.arena.give(d_out);
                self.accumulate(x, Buffer::F32(d_x));
            }
            Op::AddTableRows { x, table, rows } => {
                let depth = d_out.len() / rows.len().max(1);
                if let Some(d_table) = self.grad_of(gradients, table) {
                    embed::embed_backward(&rows, d_out.f32(), depth, d_table);
                }
                self.pass_on(x, d_out);
            }
            Op::AddRows { x, features, rows, depth } => {
                if self.needs(features) {
                    let mut d_features = self.arena.take_f32(rows.len() * depth);
                    embed::gather_rows(d_out.f32(), &rows, depth, &mut d_features);
                    self.accumulate(features, Buffer::F32(d_features));
                }
                self.pass_on(x, d_out);
            }
            Op::Interpolate { table, from, to, kind } => {
                let depth = d_out.len() / (to.0 * to.1).max(1);
                if let Some(d_table) = self.grad_of(gradients, table) {
                    interpolate::interpolate_positions_backward(
                        d_out.f32(),
                        from.0,
                        from.1,
                        to.0,
                        to.1,
                        depth,
                        kind,
                        d_table,
                    );
                }
                self.arena.give(d_out);
            }
            Op::Resample { x, from, to, depth } => {
                let mut d_x = self.arena.take_f32(from.0 * from.1 * depth);
                d_x.fill(0.0);
                let kind = Interpolation::Bilinear;
                let d_grid = d_out.f32();
                interpolate::interpolate_positions_backward(d_grid, from.0, from.1, to.0, to.1, depth, kind, &mut d_x);
                self.arena.give(d_out);
                self.accumulate(x, Buffer::F32(d_x));
            }
            Op::Place { text, features, rows, depth } => {
                let mut d_features = self.arena.take_f32(rows.len() * depth);
                embed::place_rows_backward(d_out.f32_mut(), &rows, depth, &mut d_features);
                self.pass_on(features, Buffer::F32(d_features));
                self.pass_on(text, d_out);
            }
            Op::PixelShuffle { x, shuffle } => {
                let mut d_x = self.arena.take(d_out.kind(), d_out.len());
                let Shuffle { tiles, height, width, depth, factor } = shuffle;
                same_type!((&d_out, dy), (&mut d_x, dx) =>
                    pixel_shuffle::pixel_shuffle_backward(dy, tiles, height, width, depth, factor, dx));
                self.arena.give(d_out);
                self.accumulate(x, d_x);
            }
            Op::Gather { x, rows, depth } => {
                let mut d_x = self.stream_gradient(x);
                embed::scatter_rows_add(d_out.f32(), &rows, depth, d_x.f32_mut());
                self.arena.give(d_out);
                self.keep_or_give(x, d_x);
            }
        }
        self.free(out);
    }

    pub(super) fn pass_on(&mut self, var: Var, gradient: Buffer) {
        if self.needs(var) {
            self.accumulate(var, gradient);
        } else {
            self.arena.give(gradient);
        }
    }

    pub(super) fn keep_or_give(&mut self, var: Var, gradient: Buffer) {
        if self.needs(var) {
            self.gradients[var.0 as usize] = Some(gradient);
        } else {
            self.arena.give(gradient);
        }
    }
}

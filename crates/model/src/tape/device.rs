//! The tape's ops where the model is on a GPU: the same pairs, over buffers of the device. Values, gradients and blocks are
//! the tape's own; what an op keeps for its way back is kept here.
//! Knows which op calls which kernel; knows no architecture. Cost: plans of attention and tables of rotation are sent
//! once per pass.

use std::rc::Rc;

use foveate_kernels::cpu::activation::Activation;
use foveate_kernels::cpu::attention::Heads;
use foveate_kernels::cpu::head_norm::NormedHeads;
use foveate_kernels::cpu::interpolate::Interpolation;
use foveate_kernels::cpu::rope::RopeTable;
use foveate_kernels::cuda::ops;
use foveate_kernels::cuda::ops::attention::{BackwardPlan, Plan, Strided};
use foveate_kernels::cuda::{Device, DeviceBuffer, Number, View};
use foveate_kernels::segment::{Queries, Segment};

use super::{Attend, Op, Shuffle, Tape, Var};
use crate::arena::{Buffer, Kind};
use crate::on_device::number;
use crate::weights::{Adapter, Gradients, LinearId, ParamId, Weights};

/// A plan and what it was made of; no queries: all rows of the segments.
struct KeptPlan {
    segments: Rc<[Segment]>,
    queries: Option<Rc<[Queries]>>,
    heads: Heads,
    plan: Rc<Plan>,
}

/// What a pass has sent to the device for all its layers, by the address of the host's list, which is kept alive.
pub(super) struct OnDevice {
    device: Device,
    plans: Vec<KeptPlan>,
    backward_plans: Vec<(Rc<[Segment]>, Heads, Rc<BackwardPlan>)>,
    tables: Vec<(Rc<RopeTable>, Rc<[DeviceBuffer; 2]>)>,
    rows: Vec<(Rc<[u32]>, Rc<DeviceBuffer>)>,
}

impl OnDevice {
    pub(super) fn new(device: &Device) -> Self {
        let device = device.clone();
        OnDevice { device, plans: vec![], backward_plans: vec![], tables: vec![], rows: vec![] }
    }

    fn plan(
        &mut self,
        segments: &Rc<[Segment]>,
        queries: Option<&Rc<[Queries]>>,
        heads: &Heads,
        number: Number,
    ) -> Rc<Plan> {
        let same = |one: Option<&Rc<[Queries]>>| match (one, queries) {
            (Some(one), Some(other)) => Rc::ptr_eq(one, other),
            (None, None) => true,
            _ => false,
        };
        for kept in &self.plans {
            if Rc::ptr_eq(&kept.segments, segments) && same(kept.queries.as_ref()) && kept.heads == *heads {
                return kept.plan.clone();
            }
        }
        let whole;
        let list: &[Queries] = match queries {
            Some(queries) => queries,
            None => {
                whole = Queries::whole(segments);
                &whole
            }
        };
        let plan = Rc::new(Plan::new(&self.device, heads, number, list, segments));
        let (segments, queries) = (segments.clone(), queries.cloned());
        self.plans.push(KeptPlan { segments, queries, heads: *heads, plan: plan.clone() });
        plan
    }

    fn backward_plan(
        &mut self,
        segments: &Rc<[Segment]>,
        heads: &Heads,
        number: Number,
        num_rows: usize,
    ) -> Rc<BackwardPlan> {
        for (kept, of, plan) in &self.backward_plans {
            if Rc::ptr_eq(kept, segments) && of == heads {
                return plan.clone();
            }
        }
        let plan = Rc::new(BackwardPlan::new(&self.device, heads, number, segments, num_rows));
        self.backward_plans.push((segments.clone(), *heads, plan.clone()));
        plan
    }

    fn table(&mut self, table: &Rc<RopeTable>) -> Rc<[DeviceBuffer; 2]> {
        for (kept, sent) in &self.tables {
            if Rc::ptr_eq(kept, table) {
                return sent.clone();
            }
        }
        let sent = Rc::new([self.device.upload(&table.cos), self.device.upload(&table.sin)]);
        self.tables.push((table.clone(), sent.clone()));
        sent
    }

    fn rows(&mut self, rows: &Rc<[u32]>) -> Rc<DeviceBuffer> {
        for (kept, sent) in &self.rows {
            if Rc::ptr_eq(kept, rows) {
                return sent.clone();
            }
        }
        let sent = Rc::new(self.device.upload(rows));
        self.rows.push((rows.clone(), sent.clone()));
        sent
    }
}

/// What the backward pass needs of an op.
pub(super) enum DeviceOp {
    Embed { table: ParamId, ids: Rc<[u32]> },
    Linear { x: Var, linear: LinearId, residual: Option<Var>, adapters: Vec<DeviceBuffer> },
    RmsNorm { x: Var, weight: ParamId, rstd: DeviceBuffer },
    LayerNorm { x: Var, weight: ParamId, bias: ParamId, mean: DeviceBuffer, rstd: DeviceBuffer },
    HeadNorm { x: Var, heads: NormedHeads, weights: [ParamId; 2], rstd: DeviceBuffer },
    Rope { x: Var, width: usize, heads: usize, head_dim: usize, table: Rc<RopeTable> },
    Attention { qkv: Var, heads: Heads, segments: Rc<[Segment]>, lse: DeviceBuffer },
    Activation { x: Var, kind: Activation },
    Gated { x: Var, kind: Activation, width: usize },
    LayerScale { branch: Var, scale: ParamId, stream: Var },
    AsOperand { x: Var },
    AddTableRows { x: Var, table: ParamId, rows: Rc<[u32]> },
    AddRows { x: Var, features: Var, rows: Rc<[u32]>, depth: usize },
    Interpolate { table: ParamId, from: [usize; 2], to: [usize; 2], kind: Interpolation },
    Resample { x: Var, from: [usize; 2], to: [usize; 2], depth: usize },
    Place { text: Var, features: Var, rows: Rc<[u32]>, depth: usize },
    PixelShuffle { x: Var, shuffle: Shuffle },
    Gather { x: Var, rows: Rc<[u32]>, depth: usize },
}

impl<'w> Tape<'w> {
    fn on(&mut self) -> &mut OnDevice {
        self.on.as_mut().expect("only called on a device")
    }

    fn take_on_device(&self, number: Number, len: usize) -> DeviceBuffer {
        self.on.as_ref().expect("only called on a device").device.take(number, len)
    }

    fn view(&self, var: Var) -> View<'_> {
        self.value(var).on_device().all()
    }

    fn done(&mut self, out: DeviceBuffer, needs: bool, op: DeviceOp) -> Var {
        let out = self.push(Buffer::Device(out), needs);
        self.remember(out, Op::OnDevice(op));
        out
    }

    /// Takes a value out to be changed in place.
    fn used_up(&mut self, var: Var) -> DeviceBuffer {
        self.take_value(var).into_device()
    }

    // ----- forward -----

    pub(super) fn device_constant(&mut self, buffer: Buffer) -> Var {
        let device = &self.on.as_ref().expect("only called on a device").device;
        let sent = match &buffer {
            Buffer::F32(values) => device.upload(&values[..]),
            Buffer::Bf16(values) => device.upload(&values[..]),
            Buffer::Device(_) => return self.push(buffer, false),
        };
        self.arena.give(buffer);
        self.push(Buffer::Device(sent), false)
    }

    pub(super) fn device_embed(&mut self, table: ParamId, ids: Rc<[u32]>) -> Var {
        let depth = *self.weights.infos()[table.0].shape.last().expect("a table has two axes");
        let out = self.take_on_device(Number::F32, ids.len() * depth);
        ops::rows::gather_rows(self.weights.tensor_on_device(table), &ids, depth, out.all());
        self.done(out, self.weights.is_trainable(table), DeviceOp::Embed { table, ids })
    }

    pub(super) fn device_linear(&mut self, x: Var, id: LinearId, residual: Option<Var>, kind: Kind) -> Var {
        let weights = self.weights;
        let linear = weights.linear(id);
        let num_rows = self.value(x).len() / linear.k;
        let out = self.take_on_device(number(kind), num_rows * linear.n);
        if let Some(residual) = residual {
            out.all().copy_from(self.view(residual));
        }
        let input = self.view(x);
        product(weights, id, input, residual.is_some(), out.all());
        let mut adapters = Vec::new();
        for adapter in weights.adapters(id) {
            let inner = self.take_on_device(input.number(), num_rows * adapter.rank);
            let thinned = thinned(weights, adapter, input);
            product(weights, adapter.a, thinned.as_ref().map_or(input, |x| x.all()), false, inner.all());
            let outer = self.take_on_device(Number::F32, num_rows * adapter.n);
            product(weights, adapter.b, inner.all(), false, outer.all());
            let Adapter { column, n, scale, .. } = *adapter;
            ops::elementwise::add_columns(out.all(), linear.n, column, outer.all(), n, scale);
            adapters.push(inner);
        }
        let learns = weights.linear_is_trainable(id)
            || weights.adapters(id).iter().any(|adapter| weights.linear_is_trainable(adapter.a));
        let needs = self.needs(x) || residual.is_some_and(|r| self.needs(r)) || learns;
        self.done(out, needs, DeviceOp::Linear { x, linear: id, residual, adapters })
    }

    pub(super) fn device_rms_norm(&mut self, x: Var, weight: ParamId, eps: f32) -> Var {
        let gain = self.weights.tensor_on_device(weight);
        let len = self.value(x).len();
        let out = self.take_on_device(number(self.operand), len);
        let rstd = self.take_on_device(Number::F32, len / gain.len());
        ops::norm::rms_norm(self.view(x), gain, eps, out.all(), rstd.all());
        let needs = self.needs(x) || self.weights.is_trainable(weight);
        self.done(out, needs, DeviceOp::RmsNorm { x, weight, rstd })
    }

    pub(super) fn device_layer_norm(&mut self, x: Var, weight: ParamId, bias: ParamId, eps: f32, kind: Kind) -> Var {
        let (gain, shift) = (self.weights.tensor_on_device(weight), self.weights.tensor_on_device(bias));
        let len = self.value(x).len();
        let num_rows = len / gain.len();
        let out = self.take_on_device(number(kind), len);
        let [mean, rstd] = [(); 2].map(|()| self.take_on_device(Number::F32, num_rows));
        ops::norm::layer_norm(self.view(x), gain, shift, eps, out.all(), mean.all(), rstd.all());
        let needs = self.needs(x) || self.weights.is_trainable(weight);
        self.done(out, needs, DeviceOp::LayerNorm { x, weight, bias, mean, rstd })
    }

    pub(super) fn device_head_norm(
        &mut self,
        x: Var,
        heads: NormedHeads,
        [queries, keys]: [ParamId; 2],
        eps: f32,
    ) -> Var {
        let input = self.view(x);
        let out = self.take_on_device(input.number(), input.len());
        let rstd = self.take_on_device(Number::F32, input.len() / heads.width * heads.count());
        let gains = [queries, keys].map(|id| self.weights.tensor_on_device(id));
        ops::norm::head_norm(&heads, input, gains, eps, out.all(), rstd.all());
        let learns = self.weights.is_trainable(queries) || self.weights.is_trainable(keys);
        let needs = self.needs(x) || learns;
        self.done(out, needs, DeviceOp::HeadNorm { x, heads, weights: [queries, keys], rstd })
    }

    pub(super) fn device_rope(
        &mut self,
        x: Var,
        width: usize,
        heads: usize,
        head_dim: usize,
        table: Rc<RopeTable>,
    ) -> Var {
        let buffer = self.used_up(x);
        let angles = self.on().table(&table);
        let [cos, sin] = &*angles;
        ops::rows::rope(buffer.all(), width, heads, head_dim, cos.all(), sin.all(), table.half, false);
        let needs = self.needs(x);
        self.done(buffer, needs, DeviceOp::Rope { x, width, heads, head_dim, table })
    }

    pub(super) fn device_attention(&mut self, qkv: Var, heads: Heads, attend: &Attend, layer: usize) -> Var {
        let (query_width, key_width) = (heads.num_heads * heads.head_dim, heads.num_kv_heads * heads.head_dim);
        let stride = query_width + 2 * key_width;
        let (len, number) = (self.value(qkv).len(), self.view(qkv).number());
        let num_rows = len / stride;
        let out = self.take_on_device(number, num_rows * query_width);
        let lse = self.take_on_device(Number::F32, num_rows * heads.num_heads);
        match attend {
            Attend::Packed(segments) => {
                let plan = self.on().plan(segments, None, &heads, number);
                let view = |offset| Strided { data: self.view(qkv), offset, stride };
                let (q, k, v) = (view(0), view(query_width), view(query_width + key_width));
                plan.attend(&heads, q, k, v, out.all(), lse.all());
            }
            Attend::Stored { store, segments, queries, rows } => {
                let plan = self.on().plan(segments, Some(queries), &heads, number);
                let places = self.on().rows(rows);
                let held = store.layer(layer);
                let (keys, values) = (held.0.on_device().all(), held.1.on_device().all());
                ops::rows::store_rows(self.view(qkv), query_width, key_width, places.all(), keys, values);
                let q = Strided { data: self.view(qkv), offset: 0, stride };
                let [k, v] = [keys, values].map(|data| Strided { data, offset: 0, stride: key_width });
                plan.attend(&heads, q, k, v, out.all(), lse.all());
            }
        }
        let needs = self.needs(qkv);
        let segments = match attend {
            Attend::Packed(segments) | Attend::Stored { segments, .. } => segments.clone(),
        };
        self.done(out, needs, DeviceOp::Attention { qkv, heads, segments, lse })
    }

    pub(super) fn device_activation(&mut self, x: Var, kind: Activation) -> Var {
        let input = self.view(x);
        let out = self.take_on_device(input.number(), input.len());
        ops::activation::activation(kind, input, out.all());
        let needs = self.needs(x);
        self.done(out, needs, DeviceOp::Activation { x, kind })
    }

    pub(super) fn device_gated(&mut self, x: Var, kind: Activation, width: usize) -> Var {
        let input = self.view(x);
        let out = self.take_on_device(input.number(), input.len() / 2);
        ops::activation::gated(kind, input, width, out.all());
        let needs = self.needs(x);
        self.done(out, needs, DeviceOp::Gated { x, kind, width })
    }

    pub(super) fn device_layer_scale(&mut self, branch: Var, scale: ParamId, stream: Var) -> Var {
        let out = self.take_on_device(Number::F32, self.value(stream).len());
        let factors = self.weights.tensor_on_device(scale);
        ops::norm::layer_scale(self.view(branch), factors, self.view(stream), out.all());
        let needs = self.needs(branch) || self.needs(stream) || self.weights.is_trainable(scale);
        self.done(out, needs, DeviceOp::LayerScale { branch, scale, stream })
    }

    pub(super) fn device_as_operand(&mut self, x: Var) -> Var {
        let out = self.take_on_device(number(self.operand), self.value(x).len());
        ops::elementwise::convert(self.view(x), out.all());
        let needs = self.needs(x);
        self.done(out, needs, DeviceOp::AsOperand { x })
    }

    pub(super) fn device_add_table_rows(&mut self, x: Var, table: ParamId, rows: Rc<[u32]>) -> Var {
        let depth = *self.weights.infos()[table.0].shape.last().expect("a table has two axes");
        let buffer = self.used_up(x);
        ops::rows::add_table_rows(&rows, self.weights.tensor_on_device(table), depth, buffer.all());
        let needs = self.needs(x) || self.weights.is_trainable(table);
        self.done(buffer, needs, DeviceOp::AddTableRows { x, table, rows })
    }

    pub(super) fn device_add_rows(&mut self, x: Var, features: Var, rows: Rc<[u32]>, depth: usize) -> Var {
        let buffer = self.used_up(x);
        ops::rows::scatter_rows_add(self.view(features), &rows, depth, buffer.all());
        let needs = self.needs(x) || self.needs(features);
        self.done(buffer, needs, DeviceOp::AddRows { x, features, rows, depth })
    }

    pub(super) fn device_interpolate(
        &mut self,
        table: ParamId,
        from: [usize; 2],
        to: [usize; 2],
        kind: Interpolation,
    ) -> Var {
        let depth = self.weights.infos()[table.0].len / (from[0] * from[1]);
        let out = self.take_on_device(Number::F32, to[0] * to[1] * depth);
        ops::rows::interpolate_positions(self.weights.tensor_on_device(table), from, to, depth, kind, out.all());
        let needs = self.weights.is_trainable(table);
        self.done(out, needs, DeviceOp::Interpolate { table, from, to, kind })
    }

    pub(super) fn device_resample(&mut self, x: Var, from: [usize; 2], to: [usize; 2], depth: usize) -> Var {
        let out = self.take_on_device(Number::F32, to[0] * to[1] * depth);
        ops::rows::interpolate_positions(self.view(x), from, to, depth, Interpolation::Bilinear, out.all());
        let needs = self.needs(x);
        self.done(out, needs, DeviceOp::Resample { x, from, to, depth })
    }

    pub(super) fn device_place(&mut self, text: Var, features: Var, rows: Rc<[u32]>, depth: usize) -> Var {
        let buffer = self.used_up(text);
        ops::rows::place_rows(self.view(features), &rows, depth, buffer.all());
        let needs = self.needs(text) || self.needs(features);
        self.done(buffer, needs, DeviceOp::Place { text, features, rows, depth })
    }

    pub(super) fn device_pixel_shuffle(&mut self, x: Var, shuffle: Shuffle) -> Var {
        let input = self.view(x);
        let out = self.take_on_device(input.number(), input.len());
        let Shuffle { height, width, depth, factor, .. } = shuffle;
        ops::rows::pixel_shuffle(input, height, width, depth, factor, false, out.all());
        let needs = self.needs(x);
        self.done(out, needs, DeviceOp::PixelShuffle { x, shuffle })
    }

    pub(super) fn device_gather(&mut self, x: Var, rows: Rc<[u32]>, depth: usize) -> Var {
        let out = self.take_on_device(Number::F32, rows.len() * depth);
        ops::rows::gather_rows(self.view(x), &rows, depth, out.all());
        let needs = self.needs(x);
        self.done(out, needs, DeviceOp::Gather { x, rows, depth })
    }

    // ----- backward -----

    /// The gradient of an f32 stream, made zero if nothing has reached it yet, taken out to be added to.
    fn device_stream_gradient(&mut self, var: Var) -> DeviceBuffer {
        match self.gradients[var.0 as usize].take() {
            Some(gradient) => gradient.into_device(),
            None => {
                let zero = self.take_on_device(Number::F32, self.value(var).len());
                zero.all().zero();
                zero
            }
        }
    }

    /// Where a parameter's gradient is added, unless it is frozen.
    fn device_sum<'g>(&self, gradients: &'g Gradients, id: ParamId) -> Option<View<'g>> {
        let info = &self.weights.infos()[id.0];
        self.weights.is_trainable(id).then(|| gradients.on_device().part(info.offset..info.offset + info.len))
    }

    pub(super) fn device_step_back(&mut self, out: Var, op: DeviceOp, d_out: DeviceBuffer, gradients: &mut Gradients) {
        gradients.make_on_device(&self.on().device);
        match op {
            DeviceOp::Embed { table, ids } => {
                if let Some(sum) = self.device_sum(gradients, table) {
                    let depth = d_out.len() / ids.len().max(1);
                    ops::rows::scatter_rows_add(d_out.all(), &ids, depth, sum);
                }
            }
            DeviceOp::Linear { x, linear, residual, adapters } => {
                if let Some(d_x) = self.device_linear_backward(x, linear, &d_out, adapters, gradients) {
                    self.accumulate(x, Buffer::Device(d_x));
                }
                if let Some(residual) = residual {
                    self.pass_on(residual, Buffer::Device(d_out));
                }
            }
            DeviceOp::RmsNorm { x, weight, rstd } => {
                let d_x = self.device_stream_gradient(x);
                let gain = self.weights.tensor_on_device(weight);
                let sum = self.device_sum(gradients, weight);
                ops::norm::rms_norm_backward(d_out.all(), self.view(x), gain, rstd.all(), d_x.all(), sum);
                self.keep_or_give(x, Buffer::Device(d_x));
            }
            DeviceOp::LayerNorm { x, weight, bias, mean, rstd } => {
                let d_x = self.device_stream_gradient(x);
                let gain = self.weights.tensor_on_device(weight);
                let sums = [weight, bias].map(|id| self.device_sum(gradients, id));
                let (dy, input) = (d_out.all(), self.view(x));
                ops::norm::layer_norm_backward(dy, input, gain, mean.all(), rstd.all(), d_x.all(), sums[0], sums[1]);
                self.keep_or_give(x, Buffer::Device(d_x));
            }
            DeviceOp::HeadNorm { x, heads, weights, rstd } => {
                let gains = weights.map(|id| self.weights.tensor_on_device(id));
                let sums = weights.map(|id| self.device_sum(gradients, id));
                ops::norm::head_norm_backward(&heads, d_out.all(), self.view(x), gains, rstd.all(), sums);
                self.pass_on(x, Buffer::Device(d_out));
            }
            DeviceOp::Rope { x, width, heads, head_dim, table } => {
                let angles = self.on().table(&table);
                let [cos, sin] = &*angles;
                ops::rows::rope(d_out.all(), width, heads, head_dim, cos.all(), sin.all(), table.half, true);
                self.accumulate(x, Buffer::Device(d_out));
            }
            DeviceOp::Attention { qkv, heads, segments, lse } => {
                let (len, number) = (self.value(qkv).len(), d_out.number());
                let stride = (heads.num_heads + 2 * heads.num_kv_heads) * heads.head_dim;
                let plan = self.on().backward_plan(&segments, &heads, number, len / stride);
                let d_qkv = self.take_on_device(number, len);
                let (input, output) = (self.view(qkv), self.view(out));
                plan.attend_backward(&heads, input, output, lse.all(), d_out.all(), d_qkv.all());
                self.accumulate(qkv, Buffer::Device(d_qkv));
            }
            DeviceOp::Activation { x, kind } => {
                let d_x = self.take_on_device(d_out.number(), d_out.len());
                ops::activation::activation_backward(kind, d_out.all(), self.view(x), d_x.all());
                self.accumulate(x, Buffer::Device(d_x));
            }
            DeviceOp::Gated { x, kind, width } => {
                let d_x = self.take_on_device(d_out.number(), self.value(x).len());
                ops::activation::gated_backward(kind, d_out.all(), self.view(x), width, d_x.all());
                self.accumulate(x, Buffer::Device(d_x));
            }
            DeviceOp::LayerScale { branch, scale, stream } => {
                let input = self.view(branch);
                let d_branch = self.take_on_device(input.number(), d_out.len());
                let factors = self.weights.tensor_on_device(scale);
                let sum = self.device_sum(gradients, scale);
                ops::norm::layer_scale_backward(d_out.all(), input, factors, d_branch.all(), sum);
                self.pass_on(branch, Buffer::Device(d_branch));
                self.pass_on(stream, Buffer::Device(d_out));
            }
            DeviceOp::AsOperand { x } => {
                let d_x = self.take_on_device(Number::F32, d_out.len());
                ops::elementwise::convert(d_out.all(), d_x.all());
                self.accumulate(x, Buffer::Device(d_x));
            }
            DeviceOp::AddTableRows { x, table, rows } => {
                if let Some(sum) = self.device_sum(gradients, table) {
                    let depth = d_out.len() / rows.len().max(1);
                    ops::rows::scatter_rows_add(d_out.all(), &rows, depth, sum);
                }
                self.pass_on(x, Buffer::Device(d_out));
            }
            DeviceOp::AddRows { x, features, rows, depth } => {
                if self.needs(features) {
                    let d_features = self.take_on_device(Number::F32, rows.len() * depth);
                    ops::rows::gather_rows(d_out.all(), &rows, depth, d_features.all());
                    self.accumulate(features, Buffer::Device(d_features));
                }
                self.pass_on(x, Buffer::Device(d_out));
            }
            DeviceOp::Interpolate { table, from, to, kind } => {
                if let Some(sum) = self.device_sum(gradients, table) {
                    let depth = d_out.len() / (to[0] * to[1]).max(1);
                    ops::rows::interpolate_positions_backward(d_out.all(), from, to, depth, kind, sum);
                }
            }
            DeviceOp::Resample { x, from, to, depth } => {
                let d_x = self.take_on_device(Number::F32, from[0] * from[1] * depth);
                d_x.all().zero();
                let kind = Interpolation::Bilinear;
                ops::rows::interpolate_positions_backward(d_out.all(), from, to, depth, kind, d_x.all());
                self.accumulate(x, Buffer::Device(d_x));
            }
            DeviceOp::Place { text, features, rows, depth } => {
                let d_features = self.take_on_device(Number::F32, rows.len() * depth);
                ops::rows::place_rows_backward(d_out.all(), &rows, depth, d_features.all());
                self.pass_on(features, Buffer::Device(d_features));
                self.pass_on(text, Buffer::Device(d_out));
            }
            DeviceOp::PixelShuffle { x, shuffle } => {
                let d_x = self.take_on_device(d_out.number(), d_out.len());
                let Shuffle { height, width, depth, factor, .. } = shuffle;
                ops::rows::pixel_shuffle(d_out.all(), height, width, depth, factor, true, d_x.all());
                self.accumulate(x, Buffer::Device(d_x));
            }
            DeviceOp::Gather { x, rows, depth } => {
                let d_x = self.device_stream_gradient(x);
                ops::rows::scatter_rows_add(d_out.all(), &rows, depth, d_x.all());
                self.keep_or_give(x, Buffer::Device(d_x));
            }
        }
    }

    fn device_linear_backward(
        &mut self,
        x: Var,
        id: LinearId,
        d_out: &DeviceBuffer,
        adapters: Vec<DeviceBuffer>,
        gradients: &Gradients,
    ) -> Option<DeviceBuffer> {
        let (weights, needs_x) = (self.weights, self.needs(x));
        let input = self.view(x);
        // The residual stream's gradient is f32; the matrix unit wants bf16.
        let rounded = (d_out.number() != input.number()).then(|| {
            let rounded = self.take_on_device(input.number(), d_out.len());
            ops::elementwise::convert(d_out.all(), rounded.all());
            rounded
        });
        let d_operand = rounded.as_ref().unwrap_or(d_out).all();
        let d_x = product_backward(weights, id, input, d_operand, needs_x, gradients);
        let linear = weights.linear(id);
        let num_rows = input.len() / linear.k;
        for (adapter, inner) in weights.adapters(id).iter().zip(adapters) {
            let d_outer = self.take_on_device(d_operand.number(), num_rows * adapter.n);
            let Adapter { column, n, scale, .. } = *adapter;
            ops::elementwise::take_columns(d_operand, linear.n, column, d_outer.all(), n, scale);
            let d_inner = product_backward(weights, adapter.b, inner.all(), d_outer.all(), true, gradients)
                .expect("the inner gradient was asked for");
            let thinned = thinned(weights, adapter, input);
            let entered = thinned.as_ref().map_or(input, |x| x.all());
            let more = product_backward(weights, adapter.a, entered, d_inner.all(), needs_x, gradients);
            if let (Some(d_x), Some(more)) = (&d_x, more) {
                if let Some((rate, stream)) = weights.dropout_of(adapter.a) {
                    ops::elementwise::thin(more.all(), rate, &stream);
                }
                ops::elementwise::add(d_x.all(), more.all());
            }
        }
        d_x
    }
}

/// A copy of an adapter's input with some values left out, where dropout is on.
fn thinned(weights: &Weights, adapter: &Adapter, x: View) -> Option<DeviceBuffer> {
    let (rate, stream) = weights.dropout_of(adapter.a)?;
    let out = x.device().take(x.number(), x.len());
    out.all().copy_from(x);
    ops::elementwise::thin(out.all(), rate, &stream);
    Some(out)
}

/// `out (+)= x·Wᵀ + b`
fn product(weights: &Weights, id: LinearId, x: View, add: bool, out: View) {
    let linear = weights.linear(id);
    let sizes = [x.len() / linear.k, linear.n, linear.k];
    let matrix = weights.matrix_on_device(id);
    x.device().multiply(sizes, (x, false), (matrix, true), weights.bias_on_device(id), add, out);
}

fn product_backward(
    weights: &Weights,
    id: LinearId,
    x: View,
    d_out: View,
    needs_x: bool,
    gradients: &Gradients,
) -> Option<DeviceBuffer> {
    let linear = weights.linear(id);
    let (n, k, device) = (linear.n, linear.k, x.device());
    let num_rows = x.len() / k;
    if weights.linear_is_trainable(id) {
        let sums = gradients.on_device();
        let d_weight = sums.part(linear.offset..linear.offset + n * k);
        device.multiply([n, k, num_rows], (d_out, true), (x, false), None, true, d_weight);
        if let Some(offset) = linear.bias {
            ops::norm::column_sums(d_out, None, n, sums.part(offset..offset + n));
        }
    }
    needs_x.then(|| {
        let d_x = device.take(x.number(), x.len());
        let matrix = weights.matrix_on_device(id);
        device.multiply([num_rows, k, n], (d_out, false), (matrix, false), None, false, d_x.all());
        d_x
    })
}

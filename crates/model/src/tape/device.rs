//! The tape's ops where the model is on a GPU: the same pairs, over buffers of the device. Values, gradients and blocks are
//! the tape's own; plans and tables that a pass has sent are kept here.
//! Knows which op calls which kernel; knows no architecture. Cost: plans of attention and tables of rotation are sent
//! once per pass.

use std::rc::Rc;

use foveate_kernels::cpu::activation::Activation;
use foveate_kernels::cpu::attention::Heads;
use foveate_kernels::cpu::head_norm::NormedHeads;
use foveate_kernels::cpu::interpolate::Interpolation;
use foveate_kernels::cpu::rope::RopeTable;
use foveate_kernels::cuda::ops;
use foveate_kernels::cuda::ops::attention::{BackwardPlan, Plan, Strided, attend_rows};
use foveate_kernels::cuda::{Device, DeviceBuffer, Number, View};
use foveate_kernels::segment::{Queries, Segment};

use super::backward::Op;
use super::{Attend, Shuffle, Tape, Var};
use crate::arena::{Buffer, Kind};
use crate::on_device::number;
use crate::steps::Lists;
use crate::weights::{Adapter, LinearId, ParamId, Weights};

/// A plan and what it was made of; no queries: all rows of the segments.
struct KeptPlan {
    segments: Rc<[Segment]>,
    queries: Option<Rc<[Queries]>>,
    heads: Heads,
    plan: Rc<Plan>,
}

/// What a pass has sent to the device for all its layers, by the address of the host's list, which is kept alive.
pub(super) struct OnDevice {
    pub(super) device: Device,
    plans: Vec<KeptPlan>,
    backward_plans: Vec<(Rc<[Segment]>, Heads, Rc<BackwardPlan>)>,
    tables: Vec<(Rc<RopeTable>, Rc<[DeviceBuffer; 2]>)>,
    rows: Vec<(Rc<[u32]>, Rc<DeviceBuffer>)>,
    /// In a step of decoding: the lists that stand for those that the ops name.
    lists: Option<Rc<Lists>>,
}

impl OnDevice {
    pub(super) fn new(device: &Device) -> Self {
        let device = device.clone();
        OnDevice { device, plans: vec![], backward_plans: vec![], tables: vec![], rows: vec![], lists: None }
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

    pub(super) fn backward_plan(
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

    pub(super) fn table(&mut self, table: &Rc<RopeTable>) -> Rc<[DeviceBuffer; 2]> {
        if let Some(lists) = &self.lists {
            return lists.angles.clone();
        }
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

impl<'w> Tape<'w> {
    pub(super) fn on(&mut self) -> &mut OnDevice {
        self.on.as_mut().expect("only called on a device")
    }

    /// From now on ids, rows, angles and who sees whom are those of a step of decoding. What the ops name only has the
    /// right length.
    pub(crate) fn read_lists(&mut self, lists: Rc<Lists>) {
        self.on().lists = Some(lists);
    }

    fn lists(&self) -> Option<Rc<Lists>> {
        self.on.as_ref().and_then(|on| on.lists.clone())
    }

    pub(super) fn take_on_device(&self, number: Number, len: usize) -> DeviceBuffer {
        self.on.as_ref().expect("only called on a device").device.take(number, len)
    }

    pub(super) fn view(&self, var: Var) -> View<'_> {
        self.value(var).on_device().all()
    }

    fn done(&mut self, out: DeviceBuffer, needs: bool, op: Op<'w>) -> Var {
        let out = self.push(Buffer::Device(out), needs);
        self.remember(out, op);
        out
    }

    /// Takes a value out to be changed in place.
    fn used_up(&mut self, var: Var) -> DeviceBuffer {
        self.take_value(var).into_device()
    }

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
        let values = self.weights.tensor_on_device(table);
        match self.lists() {
            Some(lists) => ops::rows::gather_listed(values, lists.ids(), depth, out.all()),
            None => ops::rows::gather_rows(values, &ids, depth, out.all()),
        }
        self.done(out, self.weights.is_trainable(table), Op::Embed { table, ids })
    }

    pub(super) fn device_linear(&mut self, x: Var, id: LinearId, residual: Option<Var>, kind: Kind) -> Var {
        let weights = self.weights;
        let linear = weights.linear(id);
        let num_rows = self.value(x).len() / linear.k;
        let out = self.take_on_device(number(kind), num_rows * linear.n);
        let input = self.view(x);
        product(weights, id, input, residual.map(|residual| self.view(residual)), out.all());
        let mut adapters = Vec::new();
        for adapter in weights.adapters(id) {
            let inner = self.take_on_device(input.number(), num_rows * adapter.rank);
            let thinned = thinned(weights, adapter, input);
            product(weights, adapter.a, thinned.as_ref().map_or(input, |x| x.all()), None, inner.all());
            let outer = self.take_on_device(Number::F32, num_rows * adapter.n);
            product(weights, adapter.b, inner.all(), None, outer.all());
            let Adapter { column, n, scale, .. } = *adapter;
            ops::elementwise::add_columns(out.all(), linear.n, column, outer.all(), n, scale);
            adapters.push(Buffer::Device(inner));
        }
        let learns = weights.linear_is_trainable(id)
            || weights.adapters(id).iter().any(|adapter| weights.linear_is_trainable(adapter.a));
        let needs = self.needs(x) || residual.is_some_and(|r| self.needs(r)) || learns;
        self.done(out, needs, Op::Linear { x, linear: id, residual, adapters })
    }

    pub(super) fn device_rms_norm(&mut self, x: Var, weight: ParamId, eps: f32) -> Var {
        let gain = self.weights.tensor_on_device(weight);
        let len = self.value(x).len();
        let out = self.take_on_device(number(self.operand), len);
        let rstd = self.take_on_device(Number::F32, len / gain.len());
        ops::norm::rms_norm(self.view(x), gain, eps, out.all(), rstd.all());
        let needs = self.needs(x) || self.weights.is_trainable(weight);
        self.done(out, needs, Op::RmsNorm { x, weight, rstd: Buffer::Device(rstd) })
    }

    pub(super) fn device_layer_norm(&mut self, x: Var, weight: ParamId, bias: ParamId, eps: f32, kind: Kind) -> Var {
        let (gain, shift) = (self.weights.tensor_on_device(weight), self.weights.tensor_on_device(bias));
        let len = self.value(x).len();
        let num_rows = len / gain.len();
        let out = self.take_on_device(number(kind), len);
        let [mean, rstd] = [(); 2].map(|()| self.take_on_device(Number::F32, num_rows));
        ops::norm::layer_norm(self.view(x), gain, shift, eps, out.all(), mean.all(), rstd.all());
        let needs = self.needs(x) || self.weights.is_trainable(weight);
        let [mean, rstd] = [mean, rstd].map(Buffer::Device);
        self.done(out, needs, Op::LayerNorm { x, weight, bias, mean, rstd })
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
        self.done(out, needs, Op::HeadNorm { x, heads, weights: [queries, keys], rstd: Buffer::Device(rstd) })
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
        self.done(buffer, needs, Op::Rope { x, width, heads, head_dim, table })
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
                let held = store.layer(layer);
                let (keys, values) = (held.0.on_device().all(), held.1.on_device().all());
                let [k, v] = [keys, values].map(|data| Strided { data, offset: 0, stride: key_width });
                if let Some(lists) = self.lists() {
                    let q = Strided { data: self.view(qkv), offset: 0, stride };
                    ops::rows::store_rows(self.view(qkv), query_width, key_width, lists.places(), keys, values);
                    attend_rows(&heads, lists.queries(), lists.ranges(), q, k, v, out.all(), lse.all());
                } else {
                    let plan = self.on().plan(segments, Some(queries), &heads, number);
                    let places = self.on().rows(rows);
                    let q = Strided { data: self.view(qkv), offset: 0, stride };
                    ops::rows::store_rows(self.view(qkv), query_width, key_width, places.all(), keys, values);
                    plan.attend(&heads, q, k, v, out.all(), lse.all());
                }
            }
        }
        let needs = self.needs(qkv);
        let segments = self.segments_of(qkv, attend);
        self.done(out, needs, Op::Attention { qkv, heads, segments, lse: Buffer::Device(lse) })
    }

    pub(super) fn device_activation(&mut self, x: Var, kind: Activation) -> Var {
        let input = self.view(x);
        let out = self.take_on_device(input.number(), input.len());
        ops::activation::activation(kind, input, out.all());
        let needs = self.needs(x);
        self.done(out, needs, Op::Activation { x, kind })
    }

    pub(super) fn device_gated(&mut self, x: Var, kind: Activation, width: usize) -> Var {
        let input = self.view(x);
        let out = self.take_on_device(input.number(), input.len() / 2);
        ops::activation::gated(kind, input, width, out.all());
        let needs = self.needs(x);
        self.done(out, needs, Op::Gated { x, kind, width })
    }

    pub(super) fn device_layer_scale(&mut self, branch: Var, scale: ParamId, stream: Var) -> Var {
        let out = self.take_on_device(Number::F32, self.value(stream).len());
        let factors = self.weights.tensor_on_device(scale);
        ops::norm::layer_scale(self.view(branch), factors, self.view(stream), out.all());
        let needs = self.needs(branch) || self.needs(stream) || self.weights.is_trainable(scale);
        self.done(out, needs, Op::LayerScale { branch, scale, stream })
    }

    pub(super) fn device_as_operand(&mut self, x: Var) -> Var {
        let out = self.take_on_device(number(self.operand), self.value(x).len());
        ops::elementwise::convert(self.view(x), out.all());
        let needs = self.needs(x);
        self.done(out, needs, Op::AsOperand { x })
    }

    pub(super) fn device_add_table_rows(&mut self, x: Var, table: ParamId, rows: Rc<[u32]>) -> Var {
        let depth = *self.weights.infos()[table.0].shape.last().expect("a table has two axes");
        let buffer = self.used_up(x);
        ops::rows::add_table_rows(&rows, self.weights.tensor_on_device(table), depth, buffer.all());
        let needs = self.needs(x) || self.weights.is_trainable(table);
        self.done(buffer, needs, Op::AddTableRows { x, table, rows })
    }

    pub(super) fn device_add_rows(&mut self, x: Var, features: Var, rows: Rc<[u32]>, depth: usize) -> Var {
        let buffer = self.used_up(x);
        ops::rows::scatter_rows_add(self.view(features), &rows, depth, buffer.all());
        let needs = self.needs(x) || self.needs(features);
        self.done(buffer, needs, Op::AddRows { x, features, rows, depth })
    }

    pub(super) fn device_interpolate(
        &mut self,
        table: ParamId,
        from: (usize, usize),
        to: (usize, usize),
        kind: Interpolation,
    ) -> Var {
        let depth = self.weights.infos()[table.0].len / (from.0 * from.1);
        let out = self.take_on_device(Number::F32, to.0 * to.1 * depth);
        ops::rows::interpolate_positions(
            self.weights.tensor_on_device(table),
            from.into(),
            to.into(),
            depth,
            kind,
            out.all(),
        );
        let needs = self.weights.is_trainable(table);
        self.done(out, needs, Op::Interpolate { table, from, to, kind })
    }

    pub(super) fn device_resample(&mut self, x: Var, from: (usize, usize), to: (usize, usize), depth: usize) -> Var {
        let out = self.take_on_device(Number::F32, to.0 * to.1 * depth);
        ops::rows::interpolate_positions(
            self.view(x),
            from.into(),
            to.into(),
            depth,
            Interpolation::Bilinear,
            out.all(),
        );
        let needs = self.needs(x);
        self.done(out, needs, Op::Resample { x, from, to, depth })
    }

    pub(super) fn device_place(&mut self, text: Var, features: Var, rows: Rc<[u32]>, depth: usize) -> Var {
        let buffer = self.used_up(text);
        ops::rows::place_rows(self.view(features), &rows, depth, buffer.all());
        let needs = self.needs(text) || self.needs(features);
        self.done(buffer, needs, Op::Place { text, features, rows, depth })
    }

    pub(super) fn device_pixel_shuffle(&mut self, x: Var, shuffle: Shuffle) -> Var {
        let input = self.view(x);
        let out = self.take_on_device(input.number(), input.len());
        let Shuffle { height, width, depth, factor, .. } = shuffle;
        ops::rows::pixel_shuffle(input, height, width, depth, factor, false, out.all());
        let needs = self.needs(x);
        self.done(out, needs, Op::PixelShuffle { x, shuffle })
    }

    pub(super) fn device_gather(&mut self, x: Var, rows: Rc<[u32]>, depth: usize) -> Var {
        let out = self.take_on_device(Number::F32, rows.len() * depth);
        match self.lists() {
            Some(lists) => ops::rows::gather_listed(self.view(x), lists.rows(), depth, out.all()),
            None => ops::rows::gather_rows(self.view(x), &rows, depth, out.all()),
        }
        let needs = self.needs(x);
        self.done(out, needs, Op::Gather { x, rows, depth })
    }
}

/// A copy of an adapter's input with some values left out, where dropout is on.
pub(super) fn thinned(weights: &Weights, adapter: &Adapter, x: View) -> Option<DeviceBuffer> {
    let (rate, stream) = weights.dropout_of(adapter.a)?;
    let out = x.device().take(x.number(), x.len());
    out.all().copy_from(x);
    ops::elementwise::thin(out.all(), rate, &stream);
    Some(out)
}

/// `out = x·Wᵀ + b (+ plus)`
fn product(weights: &Weights, id: LinearId, x: View, plus: Option<View>, out: View) {
    let linear = weights.linear(id);
    let sizes = [x.len() / linear.k, linear.n, linear.k];
    let matrix = weights.matrix_on_device(id);
    x.device().multiply(sizes, (x, false), (matrix, true), weights.bias_on_device(id), plus, out);
}

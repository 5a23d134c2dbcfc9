//! The way back on a device: the gradient of each op, over buffers of the device; sums of parameters lie there too.
//! Knows which op calls which kernel; knows no architecture. Cost: one or two launches per op, as many products as on the
//! CPU.

use foveate_kernels::cpu::interpolate::Interpolation;
use foveate_kernels::cuda::ops;
use foveate_kernels::cuda::{DeviceBuffer, Number, View};

use super::backward::Op;
use super::device::thinned;
use super::{Shuffle, Tape, Var};
use crate::arena::Buffer;
use crate::gradients::Gradients;
use crate::weights::{Adapter, LinearId, ParamId, Weights};

impl<'w> Tape<'w> {
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
        self.weights.is_trainable(id).then(|| gradients.on_device(info.offset..info.offset + info.len))
    }

    pub(super) fn device_step_back(&mut self, out: Var, op: Op<'w>, d_out: DeviceBuffer, gradients: &mut Gradients) {
        gradients.make_on_device(&self.on().device);
        match op {
            Op::Block { .. } => unreachable!("the tape runs a block again before its ops are asked"),
            Op::Embed { table, ids } => {
                if let Some(sum) = self.device_sum(gradients, table) {
                    let depth = d_out.len() / ids.len().max(1);
                    ops::rows::scatter_rows_add(d_out.all(), &ids, depth, sum);
                }
            }
            Op::Linear { x, linear, residual, adapters } => {
                if let Some(d_x) = self.device_linear_backward(x, linear, &d_out, adapters, gradients) {
                    self.accumulate(x, Buffer::Device(d_x));
                }
                if let Some(residual) = residual {
                    self.pass_on(residual, Buffer::Device(d_out));
                }
            }
            Op::RmsNorm { x, weight, rstd } => {
                let d_x = self.device_stream_gradient(x);
                let gain = self.weights.tensor_on_device(weight);
                let sum = self.device_sum(gradients, weight);
                ops::norm::rms_norm_backward(d_out.all(), self.view(x), gain, rstd.on_device().all(), d_x.all(), sum);
                self.keep_or_give(x, Buffer::Device(d_x));
            }
            Op::LayerNorm { x, weight, bias, mean, rstd } => {
                let d_x = self.device_stream_gradient(x);
                let gain = self.weights.tensor_on_device(weight);
                let sums = [weight, bias].map(|id| self.device_sum(gradients, id));
                let (dy, input) = (d_out.all(), self.view(x));
                ops::norm::layer_norm_backward(
                    dy,
                    input,
                    gain,
                    mean.on_device().all(),
                    rstd.on_device().all(),
                    d_x.all(),
                    sums[0],
                    sums[1],
                );
                self.keep_or_give(x, Buffer::Device(d_x));
            }
            Op::HeadNorm { x, heads, weights, rstd } => {
                let gains = weights.map(|id| self.weights.tensor_on_device(id));
                let sums = weights.map(|id| self.device_sum(gradients, id));
                ops::norm::head_norm_backward(&heads, d_out.all(), self.view(x), gains, rstd.on_device().all(), sums);
                self.pass_on(x, Buffer::Device(d_out));
            }
            Op::Rope { x, width, heads, head_dim, table } => {
                let angles = self.on().table(&table);
                let [cos, sin] = &*angles;
                ops::rows::rope(d_out.all(), width, heads, head_dim, cos.all(), sin.all(), table.half, true);
                self.accumulate(x, Buffer::Device(d_out));
            }
            Op::Attention { qkv, heads, segments, lse } => {
                let (len, number) = (self.value(qkv).len(), d_out.number());
                let stride = (heads.num_heads + 2 * heads.num_kv_heads) * heads.head_dim;
                let plan = self.on().backward_plan(&segments, &heads, number, len / stride);
                let d_qkv = self.take_on_device(number, len);
                let (input, output) = (self.view(qkv), self.view(out));
                plan.attend_backward(&heads, input, output, lse.on_device().all(), d_out.all(), d_qkv.all());
                self.accumulate(qkv, Buffer::Device(d_qkv));
            }
            Op::Activation { x, kind } => {
                let d_x = self.take_on_device(d_out.number(), d_out.len());
                ops::activation::activation_backward(kind, d_out.all(), self.view(x), d_x.all());
                self.accumulate(x, Buffer::Device(d_x));
            }
            Op::Gated { x, kind, width } => {
                let d_x = self.take_on_device(d_out.number(), self.value(x).len());
                ops::activation::gated_backward(kind, d_out.all(), self.view(x), width, d_x.all());
                self.accumulate(x, Buffer::Device(d_x));
            }
            Op::LayerScale { branch, scale, stream } => {
                let input = self.view(branch);
                let d_branch = self.take_on_device(input.number(), d_out.len());
                let factors = self.weights.tensor_on_device(scale);
                let sum = self.device_sum(gradients, scale);
                ops::norm::layer_scale_backward(d_out.all(), input, factors, d_branch.all(), sum);
                self.pass_on(branch, Buffer::Device(d_branch));
                self.pass_on(stream, Buffer::Device(d_out));
            }
            Op::AsOperand { x } => {
                let d_x = self.take_on_device(Number::F32, d_out.len());
                ops::elementwise::convert(d_out.all(), d_x.all());
                self.accumulate(x, Buffer::Device(d_x));
            }
            Op::AddTableRows { x, table, rows } => {
                if let Some(sum) = self.device_sum(gradients, table) {
                    let depth = d_out.len() / rows.len().max(1);
                    ops::rows::scatter_rows_add(d_out.all(), &rows, depth, sum);
                }
                self.pass_on(x, Buffer::Device(d_out));
            }
            Op::AddRows { x, features, rows, depth } => {
                if self.needs(features) {
                    let d_features = self.take_on_device(Number::F32, rows.len() * depth);
                    ops::rows::gather_rows(d_out.all(), &rows, depth, d_features.all());
                    self.accumulate(features, Buffer::Device(d_features));
                }
                self.pass_on(x, Buffer::Device(d_out));
            }
            Op::Interpolate { table, from, to, kind } => {
                if let Some(sum) = self.device_sum(gradients, table) {
                    let depth = d_out.len() / (to.0 * to.1).max(1);
                    ops::rows::interpolate_positions_backward(d_out.all(), from.into(), to.into(), depth, kind, sum);
                }
            }
            Op::Resample { x, from, to, depth } => {
                let d_x = self.take_on_device(Number::F32, from.0 * from.1 * depth);
                d_x.all().zero();
                let kind = Interpolation::Bilinear;
                ops::rows::interpolate_positions_backward(d_out.all(), from.into(), to.into(), depth, kind, d_x.all());
                self.accumulate(x, Buffer::Device(d_x));
            }
            Op::Place { text, features, rows, depth } => {
                let d_features = self.take_on_device(Number::F32, rows.len() * depth);
                ops::rows::place_rows_backward(d_out.all(), &rows, depth, d_features.all());
                self.pass_on(features, Buffer::Device(d_features));
                self.pass_on(text, Buffer::Device(d_out));
            }
            Op::PixelShuffle { x, shuffle } => {
                let d_x = self.take_on_device(d_out.number(), d_out.len());
                let Shuffle { height, width, depth, factor, .. } = shuffle;
                ops::rows::pixel_shuffle(d_out.all(), height, width, depth, factor, true, d_x.all());
                self.accumulate(x, Buffer::Device(d_x));
            }
            Op::Gather { x, rows, depth } => {
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
        adapters: Vec<Buffer>,
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
            let d_inner = product_backward(weights, adapter.b, inner.on_device().all(), d_outer.all(), true, gradients)
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
        let d_weight = gradients.on_device(linear.offset..linear.offset + n * k);
        device.multiply([n, k, num_rows], (d_out, true), (x, false), None, Some(d_weight), d_weight);
        if let Some(offset) = linear.bias {
            ops::norm::column_sums(d_out, None, n, gradients.on_device(offset..offset + n));
        }
    }
    needs_x.then(|| {
        let d_x = device.take(x.number(), x.len());
        let matrix = weights.matrix_on_device(id);
        device.multiply([num_rows, k, n], (d_out, false), (matrix, false), None, None, d_x.all());
        d_x
    })
}

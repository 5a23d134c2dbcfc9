//! RMS norm, layer norm, norm of heads, layer scale, and sums over rows for parameters.
//! Parameter gradients are summed over 64 rows first, then over the parts, always in the same order.
//! Cost: one launch for activations, two for each parameter.

// T rows, D width

use super::{NULL, flat, is_f32, same_number, typed, u32_of, u64_of};
use crate::cpu::head_norm::NormedHeads;
use crate::cuda::buffer::{DeviceBuffer, View};
use crate::cuda::engine::{Argument, Number};
use crate::cuda::sources::Module;

const MODULE: Module = Module::Norm;
/// `PART_ROWS` of the source.
const PART_ROWS: usize = 64;
/// Threads of a block that sums columns.
const COLUMNS: usize = 128;
/// Threads of a block that norms a row.
const ROW: u32 = 128;

/// `y = x * rstd * w`; `rstd` is kept.
pub fn rms_norm(x: View, w: View, eps: f32, y: View, rstd: View) {
    is_f32("rms_norm", &[x, w, rstd]);
    let (d, rows) = (w.len(), rstd.len());
    assert!(x.len() == rows * d && y.len() == x.len(), "rms_norm: lengths differ");
    let arguments = [x.argument(), w.argument(), u32_of(d), Argument::F32(eps), y.argument(), rstd.argument()];
    x.device().launch(MODULE, &typed("rms_norm", y.number()), [rows, 1], ROW, 0, &arguments);
}

/// Adds the gradient of `x` to `dx_add`, and that of `w` to `dw` unless the weight is frozen.
pub fn rms_norm_backward(dy: View, x: View, w: View, rstd: View, dx_add: View, dw: Option<View>) {
    is_f32("rms_norm_backward", &[x, w, rstd, dx_add]);
    let (d, rows) = (w.len(), rstd.len());
    assert!(dy.len() == rows * d && x.len() == dy.len() && dx_add.len() == dy.len(), "rms_norm_backward: lengths");
    let arguments = [dy.argument(), x.argument(), w.argument(), rstd.argument(), u32_of(d), dx_add.argument()];
    x.device().launch(MODULE, &typed("rms_norm_backward", dy.number()), [rows, 1], ROW, 0, &arguments);
    norm_parameters(dy, x, None, rstd, d, dw, None);
}

/// `y = (x - mean) * rstd * w + b`; `mean` and `rstd` are kept.
pub fn layer_norm(x: View, w: View, b: View, eps: f32, y: View, mean: View, rstd: View) {
    is_f32("layer_norm", &[x, w, b, mean, rstd]);
    let (d, rows) = (w.len(), rstd.len());
    assert!(x.len() == rows * d && y.len() == x.len() && b.len() == d && mean.len() == rows, "layer_norm: lengths");
    let arguments = [
        x.argument(),
        w.argument(),
        b.argument(),
        u32_of(d),
        Argument::F32(eps),
        y.argument(),
        mean.argument(),
        rstd.argument(),
    ];
    x.device().launch(MODULE, &typed("layer_norm", y.number()), [rows, 1], ROW, 0, &arguments);
}

/// Adds the gradient of `x` to `dx_add`, those of weight and bias to `dw` and `db` unless frozen.
pub fn layer_norm_backward(
    dy: View,
    x: View,
    w: View,
    mean: View,
    rstd: View,
    dx_add: View,
    dw: Option<View>,
    db: Option<View>,
) {
    is_f32("layer_norm_backward", &[x, w, mean, rstd, dx_add]);
    let (d, rows) = (w.len(), rstd.len());
    assert!(dy.len() == rows * d && x.len() == dy.len() && dx_add.len() == dy.len(), "layer_norm_backward: lengths");
    let arguments =
        [dy.argument(), x.argument(), w.argument(), mean.argument(), rstd.argument(), u32_of(d), dx_add.argument()];
    x.device().launch(MODULE, &typed("layer_norm_backward", dy.number()), [rows, 1], ROW, 0, &arguments);
    norm_parameters(dy, x, Some(mean), rstd, d, dw, db);
}

fn norm_parameters(dy: View, x: View, mean: Option<View>, rstd: View, d: usize, dw: Option<View>, db: Option<View>) {
    let rows = rstd.len();
    if rows == 0 || (dw.is_none() && db.is_none()) {
        return;
    }
    let part_w = dw.map(|_| parts(dy, rows, d));
    let part_b = db.map(|_| parts(dy, rows, d));
    let pointer = |part: &Option<DeviceBuffer>| part.as_ref().map_or(NULL, |part| part.all().argument());
    let arguments = [
        dy.argument(),
        x.argument(),
        mean.map_or(NULL, |mean| mean.argument()),
        rstd.argument(),
        u32_of(rows),
        u32_of(d),
        pointer(&part_w),
        pointer(&part_b),
    ];
    dy.device().launch(MODULE, &typed("norm_parts", dy.number()), grid(rows, d), COLUMNS as u32, 0, &arguments);
    for (part, sum) in [(part_w, dw), (part_b, db)] {
        if let (Some(part), Some(sum)) = (part, sum) {
            add_parts(&part, d, sum);
        }
    }
}

fn parts(near: View, rows: usize, d: usize) -> DeviceBuffer {
    near.device().take(Number::F32, rows.div_ceil(PART_ROWS) * d)
}

fn grid(rows: usize, d: usize) -> [usize; 2] {
    [rows.div_ceil(PART_ROWS), d.div_ceil(COLUMNS)]
}

fn add_parts(part: &DeviceBuffer, d: usize, sum: View) {
    is_f32("parameter gradients", &[sum]);
    assert_eq!(sum.len(), d, "a parameter's gradient has its length");
    let arguments = [part.all().argument(), u32_of(part.len() / d), u32_of(d), sum.argument()];
    sum.device().launch(MODULE, "add_parts", [d.div_ceil(COLUMNS), 1], COLUMNS as u32, 0, &arguments);
}

/// `sum += ` the sum over rows of `a`, or of `a * b` where `b` is f32: gradients of biases and of scales.
pub fn column_sums(a: View, b: Option<View>, d: usize, sum: View) {
    let rows = a.len() / d;
    assert!(a.len() == rows * d && b.is_none_or(|b| b.len() == a.len()), "column_sums: lengths differ");
    if rows == 0 {
        return;
    }
    if let Some(b) = b {
        is_f32("column_sums", &[b]);
    }
    let part = parts(a, rows, d);
    let b = b.map_or(NULL, |b| b.argument());
    let arguments = [a.argument(), b, u32_of(rows), u32_of(d), part.all().argument()];
    a.device().launch(MODULE, &typed("column_parts", a.number()), grid(rows, d), COLUMNS as u32, 0, &arguments);
    add_parts(&part, d, sum);
}

fn head_grid(heads: &NormedHeads, len: usize) -> [usize; 2] {
    assert!(
        heads.width.is_multiple_of(heads.head_dim) && len.is_multiple_of(heads.width),
        "head_norm: rows of {} do not fit",
        heads.width
    );
    [len / heads.width, (heads.width / heads.head_dim).div_ceil(4)]
}

/// RMS norm of every query and key head; `rstd` `[T, heads]` is kept.
pub fn head_norm(heads: &NormedHeads, x: View, weights: [View; 2], eps: f32, y: View, rstd: View) {
    let number = same_number("head_norm", &[x, y]);
    is_f32("head_norm", &[weights[0], weights[1], rstd]);
    assert!(weights.iter().all(|w| w.len() == heads.head_dim), "head_norm: a weight has another width");
    assert!(x.len() == y.len() && rstd.len() * heads.width == x.len() * heads.count(), "head_norm: lengths differ");
    let arguments = [
        x.argument(),
        u32_of(heads.width),
        u32_of(heads.queries),
        u32_of(heads.keys),
        u32_of(heads.head_dim),
        weights[0].argument(),
        weights[1].argument(),
        Argument::F32(eps),
        y.argument(),
        rstd.argument(),
    ];
    x.device().launch(MODULE, &typed("head_norm", number), head_grid(heads, x.len()), 128, 0, &arguments);
}

/// Turns the gradient of the output into that of the input, in place, and adds those of the weights unless frozen.
pub fn head_norm_backward(
    heads: &NormedHeads,
    dy_dx: View,
    x: View,
    weights: [View; 2],
    rstd: View,
    d_weights: [Option<View>; 2],
) {
    let number = same_number("head_norm_backward", &[dy_dx, x]);
    let (rows, d) = (x.len() / heads.width, heads.head_dim);
    let sides = [(0, heads.queries), (heads.queries, heads.keys)];
    for ((first, count), sum) in sides.into_iter().zip(d_weights) {
        let Some(sum) = sum.filter(|_| rows > 0) else { continue };
        let part = parts(x, rows, d);
        let arguments = [
            dy_dx.argument(),
            x.argument(),
            rstd.argument(),
            u32_of(rows),
            u32_of(heads.width),
            u32_of(first),
            u32_of(count),
            u32_of(heads.count()),
            u32_of(d),
            part.all().argument(),
        ];
        x.device().launch(MODULE, &typed("head_norm_parts", number), grid(rows, d), COLUMNS as u32, 0, &arguments);
        add_parts(&part, d, sum);
    }
    let arguments = [
        dy_dx.argument(),
        x.argument(),
        u32_of(heads.width),
        u32_of(heads.queries),
        u32_of(heads.keys),
        u32_of(d),
        weights[0].argument(),
        weights[1].argument(),
        rstd.argument(),
    ];
    x.device().launch(MODULE, &typed("head_norm_backward", number), head_grid(heads, x.len()), 128, 0, &arguments);
}

/// `out = stream + scale * branch`, rows of `scale.len()` values.
pub fn layer_scale(branch: View, scale: View, stream: View, out: View) {
    is_f32("layer_scale", &[scale, stream, out]);
    let (d, count) = (scale.len(), stream.len());
    assert!(branch.len() == count && out.len() == count && count.is_multiple_of(d), "layer_scale: lengths differ");
    let arguments = [branch.argument(), scale.argument(), stream.argument(), u32_of(d), u64_of(count), out.argument()];
    flat(out.device(), MODULE, &typed("layer_scale", branch.number()), count, &arguments);
}

/// `d_branch = scale * d_stream`, and `d_scale += ` the sum over rows of `branch * d_stream` unless frozen.
pub fn layer_scale_backward(d_stream: View, branch: View, scale: View, d_branch: View, d_scale: Option<View>) {
    is_f32("layer_scale_backward", &[d_stream, scale]);
    let (d, count) = (scale.len(), d_stream.len());
    assert!(branch.len() == count && d_branch.len() == count, "layer_scale_backward: lengths differ");
    let arguments = [d_stream.argument(), scale.argument(), u32_of(d), u64_of(count), d_branch.argument()];
    flat(scale.device(), MODULE, &typed("layer_scale_backward", d_branch.number()), count, &arguments);
    if let Some(d_scale) = d_scale {
        column_sums(branch, Some(d_stream), d, d_scale);
    }
}

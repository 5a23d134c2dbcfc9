//! Every op but attention and products: against its reference on awkward shapes, its backward against finite
//! differences of the reference, and its bits in pools of several sizes. f32 and bf16.
//! Cost: about a second.

mod support;

use foveate_kernels::cpu::activation::{Activation, activation, activation_backward, gated, gated_backward};
use foveate_kernels::cpu::adamw::{adamw_step, all_finite, sum_of_squares};
use foveate_kernels::cpu::elementwise::{accumulate, add_assign, convert};
use foveate_kernels::cpu::embed::{
    embed, embed_backward, gather_rows, place_rows, place_rows_backward, scatter_rows_add,
};
use foveate_kernels::cpu::head_norm::{NormedHeads, head_norm, head_norm_backward};
use foveate_kernels::cpu::interpolate::{Interpolation, interpolate_positions, interpolate_positions_backward};
use foveate_kernels::cpu::layer_scale::{layer_scale, layer_scale_backward};
use foveate_kernels::cpu::norm::{layer_norm, layer_norm_backward, rms_norm, rms_norm_backward};
use foveate_kernels::cpu::pixel_shuffle::{im2col, pixel_shuffle, pixel_shuffle_backward};
use foveate_kernels::cpu::rope::{RopeTable, rope};
use foveate_kernels::element::{Element, bf16};
use foveate_kernels::reference;
use foveate_kernels::reference::differences::finite_differences;
use support::{bits, check, dot, same_in_every_pool, values, wide};

const KINDS: [Activation; 5] =
    [Activation::GeluTanh, Activation::GeluErf, Activation::QuickGelu, Activation::Silu, Activation::Relu];

fn rms<E: Element>(rows: usize, d: usize) {
    let (x, w, dy) = (values::<f32>(1, rows * d), values::<f32>(2, d), values::<E>(3, rows * d));
    let (y, dx, dw) = same_in_every_pool("rms_norm", || {
        let (mut y, mut rstd) = (vec![E::default(); rows * d], vec![0.0; rows]);
        rms_norm(&x, &w, 1e-5, &mut y, &mut rstd);
        let (mut dx, mut dw) = (vec![1.0; rows * d], vec![1.0; d]);
        rms_norm_backward(&dy, &x, &w, &rstd, &mut dx, Some(&mut dw));
        let mut frozen = vec![1.0; rows * d];
        rms_norm_backward(&dy, &x, &w, &rstd, &mut frozen, None);
        assert_eq!(bits(&frozen), bits(&dx));
        (y, dx, dw)
    });
    let (x, w, dy) = (wide(&x), wide(&w), wide(&dy));
    check("rms_norm", &y, &reference::norm::rms_norm(&x, &w, 1e-5), 1e-6);
    if rows * d > 2000 {
        return;
    }
    let by_x = finite_differences(&x, |x| dot(&reference::norm::rms_norm(x, &w, 1e-5), &dy));
    let by_w = finite_differences(&w, |w| dot(&reference::norm::rms_norm(&x, w, 1e-5), &dy));
    // The gradients were added to ones.
    check("rms_norm dx", &dx, &by_x.iter().map(|g| g + 1.0).collect::<Vec<_>>(), 2e-6);
    check("rms_norm dw", &dw, &by_w.iter().map(|g| g + 1.0).collect::<Vec<_>>(), 2e-6);
}

fn layer<E: Element>(rows: usize, d: usize) {
    let (x, w, b) = (values::<f32>(1, rows * d), values::<f32>(2, d), values::<f32>(4, d));
    // A large mean: a one-pass variance would lose it.
    let x: Vec<f32> = x.iter().map(|x| x + 30.0).collect();
    let dy = values::<E>(3, rows * d);
    let (y, dx, dw, db) = same_in_every_pool("layer_norm", || {
        let (mut y, mut mean, mut rstd) = (vec![E::default(); rows * d], vec![0.0; rows], vec![0.0; rows]);
        layer_norm(&x, &w, &b, 1e-6, &mut y, &mut mean, &mut rstd);
        let (mut dx, mut dw, mut db) = (vec![0.0; rows * d], vec![0.0; d], vec![0.0; d]);
        layer_norm_backward(&dy, &x, &w, &mean, &rstd, &mut dx, Some(&mut dw), Some(&mut db));
        let (mut frozen, mut only) = (vec![0.0; rows * d], vec![0.0; d]);
        layer_norm_backward(&dy, &x, &w, &mean, &rstd, &mut frozen, None, Some(&mut only));
        assert_eq!(bits(&frozen), bits(&dx));
        assert_eq!(bits(&only), bits(&db));
        (y, dx, dw, db)
    });
    let (x, w, b, dy) = (wide(&x), wide(&w), wide(&b), wide(&dy));
    check("layer_norm", &y, &reference::norm::layer_norm(&x, &w, &b, 1e-6), 1e-5);
    if rows * d > 2000 {
        return;
    }
    let by_x = finite_differences(&x, |x| dot(&reference::norm::layer_norm(x, &w, &b, 1e-6), &dy));
    let by_w = finite_differences(&w, |w| dot(&reference::norm::layer_norm(&x, w, &b, 1e-6), &dy));
    let by_b = finite_differences(&b, |b| dot(&reference::norm::layer_norm(&x, &w, b, 1e-6), &dy));
    check("layer_norm dx", &dx, &by_x, 2e-5);
    check("layer_norm dw", &dw, &by_w, 2e-5);
    check("layer_norm db", &db, &by_b, 2e-5);
}

fn heads<E: Element>(rows: usize, d: usize, queries: usize, keys: usize) {
    let heads = NormedHeads { width: (queries + 2 * keys) * d, queries, keys, head_dim: d };
    let (wq, wk) = (values::<f32>(2, d), values::<f32>(4, d));
    let (x, dy) = (values::<E>(1, rows * heads.width), values::<E>(3, rows * heads.width));
    let (y, dx, dq, dk) = same_in_every_pool("head_norm", || {
        let (mut y, mut rstd) = (vec![E::default(); x.len()], vec![0.0; rows * heads.count()]);
        head_norm(&heads, &x, [&wq, &wk], 1e-5, &mut y, &mut rstd);
        let (mut dx, mut dq, mut dk) = (dy.clone(), vec![1.0; d], vec![1.0; d]);
        head_norm_backward(&heads, &mut dx, &x, [&wq, &wk], &rstd, [Some(&mut dq), Some(&mut dk)]);
        let (mut frozen, mut only) = (dy.clone(), vec![1.0; d]);
        head_norm_backward(&heads, &mut frozen, &x, [&wq, &wk], &rstd, [None, Some(&mut only)]);
        assert_eq!(bits(&frozen), bits(&dx));
        assert_eq!(bits(&only), bits(&dk));
        (y, dx, dq, dk)
    });
    let (x, wq, wk, dy) = (wide(&x), wide(&wq), wide(&wk), wide(&dy));
    let formula =
        |x: &[f64], wq: &[f64], wk: &[f64]| reference::norm::head_norm(x, heads.width, queries, keys, [wq, wk], 1e-5);
    check("head_norm", &y, &formula(&x, &wq, &wk), 1e-6);
    if x.len() > 2000 {
        return;
    }
    check("head_norm dx", &dx, &finite_differences(&x, |x| dot(&formula(x, &wq, &wk), &dy)), 2e-6);
    let by_q = finite_differences(&wq, |wq| dot(&formula(&x, wq, &wk), &dy));
    let by_k = finite_differences(&wk, |wk| dot(&formula(&x, &wq, wk), &dy));
    // The gradients were added to ones.
    check("head_norm dq", &dq, &by_q.iter().map(|g| g + 1.0).collect::<Vec<_>>(), 2e-6);
    check("head_norm dk", &dk, &by_k.iter().map(|g| g + 1.0).collect::<Vec<_>>(), 2e-6);
}

#[test]
fn norms_of_heads() {
    for (rows, d, queries, keys) in [(1, 8, 1, 1), (3, 16, 3, 1), (2, 33, 2, 2), (150, 24, 4, 2)] {
        heads::<f32>(rows, d, queries, keys);
        heads::<bf16>(rows, d, queries, keys);
    }
}

#[test]
fn norms() {
    for (rows, d) in [(1, 8), (3, 48), (5, 33), (2, 1), (7, 100), (200, 72)] {
        rms::<f32>(rows, d);
        rms::<bf16>(rows, d);
        if d > 1 {
            layer::<f32>(rows, d);
            layer::<bf16>(rows, d);
        }
    }
}

fn scaled_branch<E: Element>(rows: usize, d: usize) {
    let (branch, scale) = (values::<E>(21, rows * d), values::<f32>(22, d));
    let (stream, dy) = (values::<f32>(23, rows * d), values::<f32>(24, rows * d));
    let (y, d_branch, d_scale) = same_in_every_pool("layer_scale", || {
        let mut y = stream.clone();
        layer_scale(&branch, &scale, &mut y);
        let (mut d_branch, mut d_scale) = (vec![E::default(); rows * d], vec![1.0; d]);
        layer_scale_backward(&dy, &branch, &scale, &mut d_branch, Some(&mut d_scale));
        let mut frozen = vec![E::default(); rows * d];
        layer_scale_backward(&dy, &branch, &scale, &mut frozen, None);
        assert_eq!(bits(&frozen), bits(&d_branch));
        (y, d_branch, d_scale)
    });
    let (branch, scale, stream, dy) = (wide(&branch), wide(&scale), wide(&stream), wide(&dy));
    check("layer_scale", &y, &reference::layer_scale::layer_scale(&branch, &scale, &stream), 1e-6);
    if rows * d > 2000 {
        return;
    }
    let by_branch = finite_differences(&branch, |b| dot(&reference::layer_scale::layer_scale(b, &scale, &stream), &dy));
    let by_scale = finite_differences(&scale, |s| dot(&reference::layer_scale::layer_scale(&branch, s, &stream), &dy));
    check("layer_scale d_branch", &d_branch, &by_branch, 2e-6);
    // The gradient was added to ones.
    check("layer_scale d_scale", &d_scale, &by_scale.iter().map(|g| g + 1.0).collect::<Vec<_>>(), 2e-6);
}

#[test]
fn layer_scales() {
    for (rows, d) in [(1, 8), (3, 48), (5, 33), (2, 1), (200, 72)] {
        scaled_branch::<f32>(rows, d);
        scaled_branch::<bf16>(rows, d);
    }
}

fn rotation<E: Element>() {
    let (rows, width, head_dim, half) = (131, 5 * 24, 24, 10);
    let inv_freq: Vec<f32> = (0..half).map(|i| 100f32.powf(-(i as f32) / half as f32)).collect();
    let columns: Vec<Vec<u32>> =
        (0..3).map(|axis| (0..rows as u32).map(|row| (row * 7 + axis) % 97).collect()).collect();
    let positions: Vec<&[u32]> = columns.iter().map(Vec::as_slice).collect();
    let section: Vec<u8> = (0..half as u8).map(|i| i % 3).collect();
    let angles: Vec<f64> = (0..rows * half)
        .map(|at| f64::from(positions[section[at % half] as usize][at / half] as f32 * inv_freq[at % half]))
        .collect();
    let x = values::<E>(5, rows * width);
    let (y, back) = same_in_every_pool("rope", || {
        let table = RopeTable::axes(&positions, &section, head_dim, &inv_freq);
        let mut y = x.clone();
        rope(&mut y, width, 1, 3, head_dim, &table, false);
        let mut back = y.clone();
        rope(&mut back, width, 1, 3, head_dim, &table, true);
        (y, back)
    });
    check("rope", &y, &reference::rope::rope(&wide(&x), width, 1, 3, head_dim, &angles, half), 1e-6);
    check("rope and back", &back, &wide(&x), if E::NAME == "bf16" { 0.01 } else { 1e-6 });
    // A rotation's transpose is its inverse, which is the backward pass; heads outside the range do not move.
    let outside = |row: &[E]| [bits(&row[..head_dim]), bits(&row[4 * head_dim..])];
    for (x, y) in x.chunks_exact(width).zip(y.chunks_exact(width)) {
        assert_eq!(outside(x), outside(y));
    }
}

#[test]
fn rotary_embedding() {
    rotation::<f32>();
    rotation::<bf16>();
    let table = RopeTable::one_axis(&[0, 3], 8, &[1.0, 0.5]);
    assert_eq!(table.cos[..2], [1.0, 1.0]);
    assert_eq!(table.sin[2..], [3f32.sin(), 1.5f32.sin()]);
}

fn curves<E: Element>() {
    let f = 37;
    let mut x: Vec<E> = (-400..=400).map(|i| E::from_f32(i as f32 / 33.0)).collect();
    x.extend([-100.0, 100.0, -1e4, 1e4, 0.0, -0.0, 1e-20, -1e-20].map(E::from_f32));
    x.extend(values::<E>(6, 30_000));
    let dy = values::<E>(7, x.len());
    for kind in KINDS {
        let (y, dx) = same_in_every_pool("activation", || {
            let (mut y, mut dx) = (vec![E::default(); x.len()], vec![E::default(); x.len()]);
            activation(kind, &x, &mut y);
            activation_backward(kind, &dy, &x, &mut dx);
            (y, dx)
        });
        for i in 0..x.len() {
            let (at, have) = (f64::from(x[i].to_f32()), f64::from(y[i].to_f32()));
            let want = reference::activation::activation(kind, at);
            // Relative where it can be: 16 bits hold 8 bits of a value, small ones included.
            let room = if E::NAME == "bf16" { want.abs() / 200.0 + 1e-6 } else { want.abs() * 2e-6 + 3e-7 };
            assert!((have - want).abs() <= room, "{kind:?} at {at}: {have}, the reference has {want}");
            let h = 1e-5;
            if kind == Activation::Relu && at.abs() < 2.0 * h {
                continue;
            }
            let up = reference::activation::activation(kind, at + h);
            let slope = (up - reference::activation::activation(kind, at - h)) / (2.0 * h);
            let want = slope * f64::from(dy[i].to_f32());
            let have = f64::from(dx[i].to_f32());
            let room = if E::NAME == "bf16" { want.abs() / 200.0 + 1e-5 } else { 1e-5 };
            assert!((have - want).abs() <= room, "slope of {kind:?} at {at}: {have}, differences give {want}");
        }
        let rows = 45;
        let (gate_up, dy) = (&x[x.len() - rows * 2 * f..], &dy[..rows * f]);
        let (y, d_gate_up) = same_in_every_pool("gated", || {
            let (mut y, mut d_gate_up) = (vec![E::default(); rows * f], vec![E::default(); rows * 2 * f]);
            gated(kind, gate_up, f, &mut y);
            gated_backward(kind, dy, gate_up, f, &mut d_gate_up);
            (y, d_gate_up)
        });
        check("gated", &y, &reference::activation::gated(kind, &wide(gate_up), f), 1e-6);
        let small = 2 * 2 * f;
        let by_gate_up = finite_differences(&wide(&gate_up[..small]), |gate_up| {
            dot(&reference::activation::gated(kind, gate_up, f), &wide(dy))
        });
        check("gated backward", &d_gate_up[..small], &by_gate_up, 2e-6);
    }
}

#[test]
fn activations() {
    curves::<f32>();
    curves::<bf16>();
    let mut y = [0f32; 1];
    for kind in KINDS {
        activation(kind, &[f32::NAN], &mut y);
        assert!(y[0].is_nan(), "{kind:?} hides NaN");
    }
}

#[test]
fn rows_that_move() {
    let (vocabulary, d) = (50, 13);
    let table = values::<f32>(8, vocabulary * d);
    // Many repeats, in no order, and rows that never occur.
    let ids: Vec<u32> = (0..777u32).map(|t| t * t % 37 + (t % 5 == 0) as u32 * 7).collect();
    let dout = values::<f32>(9, ids.len() * d);
    let dtable = same_in_every_pool("embed_backward", || {
        let mut dtable = vec![0.5; vocabulary * d];
        embed_backward(&ids, &dout, d, &mut dtable);
        bits(&dtable)
    });
    let mut want = vec![0.5f32; vocabulary * d];
    for (t, &id) in ids.iter().enumerate() {
        for i in 0..d {
            want[id as usize * d + i] += dout[t * d + i];
        }
    }
    assert_eq!(dtable, bits(&want), "sums run in token order");
    let mut out = vec![0.0; ids.len() * d];
    embed(&ids, &table, d, &mut out);
    for (t, &id) in ids.iter().enumerate() {
        assert_eq!(out[t * d..][..d], table[id as usize * d..][..d]);
    }

    let x = values::<bf16>(10, 20 * d);
    let rows = [3u32, 3, 0, 19];
    let mut picked = vec![bf16::default(); rows.len() * d];
    gather_rows(&x, &rows, d, &mut picked);
    assert_eq!(picked[d..2 * d], x[3 * d..4 * d]);
    let mut back = vec![0f32; 20 * d];
    scatter_rows_add(&picked, &rows, d, &mut back);
    assert_eq!(back[3 * d], 2.0 * x[3 * d].to_f32());
    assert_eq!(back[19 * d + 1], x[19 * d + 1].to_f32());
    scatter_rows_add::<f32>(&[], &[], d, &mut back);

    let mut x = vec![1.0f32; 5 * d];
    let features = values::<f32>(12, 2 * d);
    place_rows(&features, &[4, 1], d, &mut x);
    assert_eq!(x[4 * d..], features[..d]);
    let mut dfeatures = vec![0.0; 2 * d];
    place_rows_backward(&mut x, &[4, 1], d, &mut dfeatures);
    assert_eq!(dfeatures, features);
    assert!(x[4 * d..].iter().chain(&x[d..2 * d]).all(|&x| x == 0.0));
    assert!(x[..d].iter().all(|&x| x == 1.0));
}

fn folding<E: Element>() {
    for (tiles, h, w, d, factor) in [(1, 4, 4, 3, 2), (3, 6, 9, 5, 3), (2, 5, 7, 1, 1), (4, 16, 8, 9, 4)] {
        let x = values::<E>(13, tiles * h * w * d);
        let y = same_in_every_pool("pixel_shuffle", || {
            let mut y = vec![E::default(); x.len()];
            pixel_shuffle(&x, tiles, h, w, d, factor, &mut y);
            y
        });
        assert_eq!(wide(&y), reference::pixel_shuffle::pixel_shuffle(&wide(&x), tiles, h, w, d, factor));
        let mut back = vec![E::default(); x.len()];
        pixel_shuffle_backward(&y, tiles, h, w, d, factor, &mut back);
        assert_eq!(bits(&back), bits(&x), "a permutation's gradient is its inverse");
    }
    for (c, h, w, patch) in [(3, 8, 12, 4), (1, 3, 3, 1), (3, 28, 14, 14), (3, 29, 17, 7), (2, 5, 5, 6)] {
        let pixels: Vec<f32> = values::<E>(14, c * h * w).iter().map(|x| x.to_f32()).collect();
        let mut out = vec![E::default(); (h / patch) * (w / patch) * c * patch * patch];
        im2col(&pixels, c, h, w, patch, &mut out);
        assert_eq!(wide(&out), reference::pixel_shuffle::im2col(&wide(&pixels), c, h, w, patch));
    }
}

#[test]
fn folding_and_cutting() {
    folding::<f32>();
    folding::<bf16>();
}

#[test]
fn position_tables() {
    let d = 70;
    for align in [Interpolation::Bilinear, Interpolation::Bicubic, Interpolation::BilinearLinspace] {
        for (from, to) in [([4, 4], [7, 9]), ([6, 5], [2, 3]), ([1, 3], [4, 1]), ([5, 5], [5, 5])] {
            let table = values::<f32>(15, from[0] * from[1] * d);
            let dout = values::<f32>(16, to[0] * to[1] * d);
            let (out, dtable) = same_in_every_pool("interpolate_positions", || {
                let (mut out, mut dtable) = (vec![0.0; dout.len()], vec![0.0; table.len()]);
                interpolate_positions(&table, from[0], from[1], to[0], to[1], d, align, &mut out);
                interpolate_positions_backward(&dout, from[0], from[1], to[0], to[1], d, align, &mut dtable);
                (out, dtable)
            });
            let reference = |table: &[f64]| reference::interpolate::interpolate_positions(table, from, to, d, align);
            check("interpolate_positions", &out, &reference(&wide(&table)), 2e-6);
            // Linear in the table: the gradient of one column is that of all.
            let column = |x: &[f32]| wide(x).chunks_exact(d).map(|row| row[0]).collect::<Vec<_>>();
            let by_table = finite_differences(&column(&table), |table| {
                let out = reference::interpolate::interpolate_positions(table, from, to, 1, align);
                dot(&out, &column(&dout))
            });
            let have: Vec<f32> = dtable.chunks_exact(d).map(|row| row[0]).collect();
            check("interpolate_positions backward", &have, &by_table, 2e-6);
        }
    }
}

#[test]
fn optimiser() {
    let count = 40_000;
    let (p, m) = (values::<f32>(17, count), values::<f32>(18, count));
    let v: Vec<f32> = m.iter().map(|m| m * m).collect();
    let mut g = values::<f32>(19, count);
    g[5] = 0.0;
    let (p1, m1, v1) = same_in_every_pool("adamw_step", || {
        let (mut p, mut m, mut v) = (p.clone(), m.clone(), v.clone());
        adamw_step(&mut p, &g, &mut m, &mut v, 1e-3, 0.9, 0.999, 1e-8, 0.01, 3, 0.5);
        (p, m, v)
    });
    let knobs = reference::adamw::Knobs {
        lr: f64::from(1e-3f32),
        beta1: f64::from(0.9f32),
        beta2: f64::from(0.999f32),
        eps: 1e-8,
        weight_decay: f64::from(0.01f32),
    };
    let want: Vec<(f64, f64, f64)> = (0..count)
        .map(|i| {
            let [p, g, m, v] = [p[i], g[i], m[i], v[i]].map(f64::from);
            reference::adamw::adamw_step(p, 0.5 * g, m, v, 3, knobs)
        })
        .collect();
    check("weights", &p1, &want.iter().map(|w| w.0).collect::<Vec<_>>(), 1e-6);
    check("first moments", &m1, &want.iter().map(|w| w.1).collect::<Vec<_>>(), 1e-6);
    check("second moments", &v1, &want.iter().map(|w| w.2).collect::<Vec<_>>(), 1e-6);
    assert!(m1[5] != m[5] && p1[5] != p[5], "a gradient of zero still decays");

    let squares = same_in_every_pool("sum_of_squares", || sum_of_squares(&g).to_bits());
    let want: f64 = g.iter().map(|&g| f64::from(g) * f64::from(g)).sum();
    assert!((f64::from_bits(squares) / want - 1.0).abs() < 1e-12);
    assert!(sum_of_squares(&[]) == 0.0 && all_finite(&[]) && all_finite(&g));
    for broken in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        for place in [0, 777, count - 1] {
            let mut g = g.clone();
            g[place] = broken;
            assert!(!all_finite(&g));
        }
    }
}

#[test]
fn conversions_and_sums() {
    let x = values::<f32>(20, 50_001);
    let mut narrow = vec![bf16::default(); x.len()];
    convert(&x, &mut narrow);
    assert!(narrow.iter().zip(&x).all(|(have, &x)| *have == half::bf16::from_f32(x)));
    let mut back = vec![0f32; x.len()];
    convert(&narrow, &mut back);
    assert_eq!(wide(&back), wide(&narrow));
    let mut sum = x.clone();
    accumulate(&mut sum, &narrow);
    add_assign(&mut sum, &x);
    assert!((0..x.len()).all(|i| sum[i] == x[i] + back[i] + x[i]));
}

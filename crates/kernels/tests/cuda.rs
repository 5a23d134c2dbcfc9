//! Every op of `cuda::ops` against the CPU's, in f32 and bf16, on the host emulating a GPU and on a GPU where there is one.
//! Emulated, each op runs with the threads of a block in three orders, on a GPU twice: the bits must be the same.
//! Cost: some seconds, once more so many for compiling the kernels' sources; what cannot run says so.

#[path = "emulator/mod.rs"]
mod emulator;
mod support;

use foveate_kernels::cpu;
use foveate_kernels::cpu::activation::Activation;
use foveate_kernels::cpu::adamw::Numbers;
use foveate_kernels::cpu::attention::Heads;
use foveate_kernels::cpu::head::{HeadWeight, RowStatistics, Scaling};
use foveate_kernels::cpu::head_norm::NormedHeads;
use foveate_kernels::cpu::interpolate::Interpolation;
use foveate_kernels::cpu::rope::RopeTable;
use foveate_kernels::cuda::ops;
use foveate_kernels::cuda::ops::attention::{BackwardPlan, Plan, Strided};
use foveate_kernels::cuda::ops::head::{Columns, Draw};
use foveate_kernels::cuda::{Device, GpuError, Number, Value, number_of};
use foveate_kernels::element::{Element, bf16};
use foveate_kernels::rng::{Purpose, Stream};
use foveate_kernels::segment::{Queries, Segment};
use support::{check, values, wide};

/// All devices that there are, twice or thrice each.
fn devices() -> Vec<Vec<Device>> {
    let mut all = Vec::new();
    if let Some(library) = emulator::library() {
        all.push((0..3).map(|order| Device::emulated(&library, order).expect("it was just made")).collect());
    }
    match Device::cuda(0) {
        Ok(device) => all.push(vec![device.clone(), device]),
        Err(error) => eprintln!("no op runs on a GPU: {error}; {}", error.hint()),
    }
    all
}

/// What an op wrote, in f32, and what it should have written.
struct Outcome {
    what: String,
    have: Vec<f32>,
    want: Vec<f64>,
    bf16: bool,
    tolerance: f64,
}

fn outcome<E: Element>(what: &str, have: Vec<E>, want: &[E], tolerance: f64) -> Outcome {
    let have = have.iter().map(|x| x.to_f32()).collect();
    Outcome { what: what.into(), have, want: wide(want), bf16: E::NAME == "bf16", tolerance }
}

/// Runs `op` everywhere and compares.
fn everywhere(op: impl Fn(&Device) -> Vec<Outcome>) {
    for turns in devices() {
        let mut first: Option<Vec<Outcome>> = None;
        for device in turns {
            let outcomes = op(&device);
            device.check().unwrap_or_else(|error| panic!("{}: {error}", device.name()));
            for Outcome { what, have, want, bf16, tolerance } in &outcomes {
                let what = format!("{what} on {}", device.name());
                if *bf16 {
                    let have: Vec<half::bf16> = have.iter().map(|x| half::bf16::from_f32(*x)).collect();
                    check(&what, &have, want, *tolerance);
                } else {
                    check(&what, have, want, *tolerance);
                }
            }
            match &first {
                None => first = Some(outcomes),
                Some(first) => {
                    for (one, other) in first.iter().zip(&outcomes) {
                        let same = one.have.iter().zip(&other.have).all(|(a, b)| a.to_bits() == b.to_bits());
                        assert!(same, "{} on {}: another turn gives other bits", one.what, device.name());
                    }
                }
            }
        }
    }
}

/// Runs a test for both types.
macro_rules! both {
    ($test:ident, $generic:ident) => {
        #[test]
        fn $test() {
            $generic::<f32>();
            $generic::<bf16>();
        }
    };
}

const F32: f64 = 1e-5;

fn elementwise<E: Element + Value>() {
    let (rows, width, n) = (37, 20, 7);
    let (x, y) = (values::<E>(1, rows * width), values::<E>(2, rows * width));
    let more = values::<f32>(3, rows * n);
    let stream = Stream::new(3, Purpose::Dropout, 1, 2, 3);
    everywhere(|device| {
        let mut outcomes = Vec::new();
        let mut want = x.clone();
        cpu::sums::add_elements(&mut want, &y);
        let on = device.upload(&x);
        ops::elementwise::add(on.all(), device.upload(&y).all());
        outcomes.push(outcome("add", on.download::<E>(), &want, F32));

        cpu::sums::add_columns(&mut want, width, 5, &more, n, 0.5);
        ops::elementwise::add_columns(on.all(), width, 5, device.upload(&more).all(), n, 0.5);
        outcomes.push(outcome("add_columns", on.download::<E>(), &want, F32));

        let mut part = vec![E::default(); rows * n];
        cpu::sums::take_columns(&want, width, 5, &mut part, n, 2.0);
        let taken = device.take(number_of::<E>(), rows * n);
        ops::elementwise::take_columns(on.all(), width, 5, taken.all(), n, 2.0);
        outcomes.push(outcome("take_columns", taken.download::<E>(), &part, F32));

        let mut wider = vec![0f32; want.len()];
        cpu::elementwise::convert(&x, &mut wider);
        let converted = device.take(Number::F32, x.len());
        ops::elementwise::convert(device.upload(&x).all(), converted.all());
        outcomes.push(outcome("convert", converted.download::<f32>(), &wider, 0.0));

        let thinned = device.upload(&x);
        ops::elementwise::thin(thinned.all(), 0.25, &stream);
        let expected: Vec<E> = x
            .iter()
            .enumerate()
            .map(|(at, x)| {
                let word = stream.words(at as u32 / 4)[at % 4];
                E::from_f32(if u64::from(word) < 1 << 30 { 0.0 } else { x.to_f32() * (1.0 / 0.75) })
            })
            .collect();
        outcomes.push(outcome("thin", thinned.download::<E>(), &expected, F32));
        outcomes
    });
}
both!(elements, elementwise);

fn norms_of<E: Element + Value>() {
    for (rows, d) in [(1, 8), (70, 40), (3, 576)] {
        let (x, w, b) = (values::<f32>(1, rows * d), values::<f32>(2, d), values::<f32>(3, d));
        let (dy, dx0) = (values::<E>(4, rows * d), values::<f32>(5, rows * d));
        everywhere(|device| {
            let mut outcomes = Vec::new();
            let up = |values: &[f32]| device.upload(values);
            let (on_x, on_w, on_b, on_dy) = (up(&x), up(&w), up(&b), device.upload(&dy));
            let (mut y, mut mean, mut rstd) = (vec![E::default(); rows * d], vec![0.0; rows], vec![0.0; rows]);
            let on_y = device.take(number_of::<E>(), rows * d);
            let (on_mean, on_rstd) = (device.take(Number::F32, rows), device.take(Number::F32, rows));

            cpu::norm::rms_norm(&x, &w, 1e-6, &mut y, &mut rstd);
            ops::norm::rms_norm(on_x.all(), on_w.all(), 1e-6, on_y.all(), on_rstd.all());
            outcomes.push(outcome("rms_norm", on_y.download::<E>(), &y, F32));
            outcomes.push(outcome("rms_norm's rstd", on_rstd.download::<f32>(), &rstd, F32));
            let (mut dx, mut dw, mut db) = (dx0.clone(), w.clone(), b.clone());
            let (on_dx, on_dw, on_db) = (up(&dx0), up(&w), up(&b));
            cpu::norm::rms_norm_backward(&dy, &x, &w, &rstd, &mut dx, Some(&mut dw));
            let sums = Some(on_dw.all());
            ops::norm::rms_norm_backward(on_dy.all(), on_x.all(), on_w.all(), on_rstd.all(), on_dx.all(), sums);
            outcomes.push(outcome("rms_norm's dx", on_dx.download::<f32>(), &dx, F32));
            outcomes.push(outcome("rms_norm's dw", on_dw.download::<f32>(), &dw, F32));

            cpu::norm::layer_norm(&x, &w, &b, 1e-6, &mut y, &mut mean, &mut rstd);
            ops::norm::layer_norm(on_x.all(), on_w.all(), on_b.all(), 1e-6, on_y.all(), on_mean.all(), on_rstd.all());
            outcomes.push(outcome("layer_norm", on_y.download::<E>(), &y, F32));
            cpu::norm::layer_norm_backward(&dy, &x, &w, &mean, &rstd, &mut dx, Some(&mut dw), Some(&mut db));
            ops::norm::layer_norm_backward(
                on_dy.all(),
                on_x.all(),
                on_w.all(),
                on_mean.all(),
                on_rstd.all(),
                on_dx.all(),
                Some(on_dw.all()),
                Some(on_db.all()),
            );
            outcomes.push(outcome("layer_norm's dx", on_dx.download::<f32>(), &dx, F32));
            outcomes.push(outcome("layer_norm's dw", on_dw.download::<f32>(), &dw, F32));
            outcomes.push(outcome("layer_norm's db", on_db.download::<f32>(), &db, F32));

            let (branch, mut stream) = (dy.clone(), dx0.clone());
            cpu::layer_scale::layer_scale(&branch, &w, &mut stream);
            let on_out = device.take(Number::F32, rows * d);
            ops::norm::layer_scale(on_dy.all(), on_w.all(), up(&dx0).all(), on_out.all());
            outcomes.push(outcome("layer_scale", on_out.download::<f32>(), &stream, F32));
            let mut d_branch = vec![E::default(); rows * d];
            cpu::layer_scale::layer_scale_backward(&x, &branch, &w, &mut d_branch, Some(&mut dw));
            let on_branch = device.take(number_of::<E>(), rows * d);
            let sums = Some(on_dw.all());
            ops::norm::layer_scale_backward(on_x.all(), on_dy.all(), on_w.all(), on_branch.all(), sums);
            outcomes.push(outcome("layer_scale's d_branch", on_branch.download::<E>(), &d_branch, F32));
            outcomes.push(outcome("layer_scale's d_scale", on_dw.download::<f32>(), &dw, F32));

            cpu::matmul::bias_gradient(&dy, rows, d, &mut db);
            ops::norm::column_sums(on_dy.all(), None, d, on_db.all());
            outcomes.push(outcome("bias gradient", on_db.download::<f32>(), &db, F32));
            outcomes
        });
    }
}
both!(norms, norms_of);

fn heads_normed<E: Element + Value>() {
    for (rows, queries, keys, rest, d) in [(67, 3, 1, 1, 16), (2, 5, 2, 2, 72)] {
        let width = (queries + keys + rest) * d;
        let heads = NormedHeads { width, queries, keys, head_dim: d };
        let (x, dy) = (values::<E>(1, rows * width), values::<E>(2, rows * width));
        let gains = [values::<f32>(3, d), values::<f32>(4, d)];
        everywhere(|device| {
            let (mut y, mut rstd) = (vec![E::default(); x.len()], vec![0.0; rows * (queries + keys)]);
            cpu::head_norm::head_norm(&heads, &x, [&gains[0], &gains[1]], 1e-6, &mut y, &mut rstd);
            let on_gains = gains.each_ref().map(|gain| device.upload(gain));
            let views = on_gains.each_ref().map(|gain| gain.all());
            let (on_x, on_y) = (device.upload(&x), device.take(number_of::<E>(), x.len()));
            let on_rstd = device.take(Number::F32, rstd.len());
            ops::norm::head_norm(&heads, on_x.all(), views, 1e-6, on_y.all(), on_rstd.all());
            let have = on_y.download::<E>();
            let (mut d_y, mut sums) = (dy.clone(), gains.clone());
            let [d_queries, d_keys] = &mut sums;
            let borrowed = [Some(&mut d_queries[..]), Some(&mut d_keys[..])];
            cpu::head_norm::head_norm_backward(&heads, &mut d_y, &x, [&gains[0], &gains[1]], &rstd, borrowed);
            let (on_dy, on_sums) = (device.upload(&dy), gains.each_ref().map(|gain| device.upload(gain)));
            let targets = on_sums.each_ref().map(|sum| Some(sum.all()));
            ops::norm::head_norm_backward(&heads, on_dy.all(), on_x.all(), views, on_rstd.all(), targets);
            vec![
                outcome("head_norm", have, &y, F32),
                outcome("head_norm's dx", on_dy.download::<E>(), &d_y, F32),
                outcome("head_norm's dw of queries", on_sums[0].download::<f32>(), &sums[0], F32),
                outcome("head_norm's dw of keys", on_sums[1].download::<f32>(), &sums[1], F32),
            ]
        });
    }
}
both!(norms_of_heads, heads_normed);

fn curves<E: Element + Value>() {
    let (rows, f) = (19, 24);
    let (x, dy) = (values::<E>(1, rows * 2 * f), values::<E>(2, rows * 2 * f));
    for kind in [Activation::GeluTanh, Activation::GeluErf, Activation::QuickGelu, Activation::Silu, Activation::Relu] {
        everywhere(|device| {
            let (on_x, on_dy) = (device.upload(&x), device.upload(&dy));
            let (on_y, on_dx) = (device.take(number_of::<E>(), x.len()), device.take(number_of::<E>(), x.len()));
            let (mut y, mut dx) = (x.clone(), x.clone());
            cpu::activation::activation(kind, &x, &mut y);
            cpu::activation::activation_backward(kind, &dy, &x, &mut dx);
            ops::activation::activation(kind, on_x.all(), on_y.all());
            ops::activation::activation_backward(kind, on_dy.all(), on_x.all(), on_dx.all());
            let mut outcomes = vec![
                outcome(&format!("{kind:?}"), on_y.download::<E>(), &y, F32),
                outcome(&format!("{kind:?}'s dx"), on_dx.download::<E>(), &dx, F32),
            ];
            let half = rows * f;
            cpu::activation::gated(kind, &x, f, &mut y[..half]);
            cpu::activation::gated_backward(kind, &dy[..half], &x, f, &mut dx);
            ops::activation::gated(kind, on_x.all(), f, on_y.part(0..half));
            ops::activation::gated_backward(kind, on_dy.part(0..half), on_x.all(), f, on_dx.all());
            outcomes.push(outcome("gated", on_y.part(0..half).download::<E>(), &y[..half], F32));
            outcomes.push(outcome("gated's gradient", on_dx.download::<E>(), &dx, F32));
            outcomes
        });
    }
}
both!(activations, curves);

#[test]
fn rows_that_move() {
    let (count, d) = (23, 13);
    let (x, more) = (values::<f32>(1, count * d), values::<f32>(2, 9 * d));
    let rows = [3, 3, 0, 22, 7, 3, 0, 11, 12];
    let places = [4, 1, 20, 0, 9, 2, 3, 8, 22];
    everywhere(|device| {
        let mut outcomes = Vec::new();
        let (on_x, on_more) = (device.upload(&x), device.upload(&more));
        let mut picked = vec![0.0; 9 * d];
        cpu::embed::gather_rows(&x, &rows, d, &mut picked);
        let on_picked = device.take(Number::F32, 9 * d);
        ops::rows::gather_rows(on_x.all(), &rows, d, on_picked.all());
        outcomes.push(outcome("gather_rows", on_picked.download::<f32>(), &picked, 0.0));
        let mut want = x.clone();
        cpu::embed::scatter_rows_add(&more, &rows, d, &mut want);
        ops::rows::scatter_rows_add(on_more.all(), &rows, d, on_x.all());
        outcomes.push(outcome("scatter_rows_add", on_x.download::<f32>(), &want, F32));
        cpu::embed::place_rows(&more, &places, d, &mut want);
        ops::rows::place_rows(on_more.all(), &places, d, on_x.all());
        outcomes.push(outcome("place_rows", on_x.download::<f32>(), &want, F32));
        cpu::embed::place_rows_backward(&mut want, &rows[3..5], d, &mut picked[..2 * d]);
        ops::rows::place_rows_backward(on_x.all(), &rows[3..5], d, on_picked.part(0..2 * d));
        outcomes.push(outcome("place_rows_backward", on_x.download::<f32>(), &want, F32));
        outcomes.push(outcome("its features", on_picked.download::<f32>(), &picked, F32));
        let mut sums = more.clone();
        cpu::sums::add_table_rows(&rows, &x, d, &mut sums);
        ops::rows::add_table_rows(&rows, device.upload(&x).all(), d, on_more.all());
        outcomes.push(outcome("add_table_rows", on_more.download::<f32>(), &sums, F32));
        outcomes
    });
    for align in [Interpolation::Bilinear, Interpolation::Bicubic, Interpolation::BilinearLinspace] {
        for (from, to) in [([4, 4], [7, 9]), ([6, 5], [2, 3]), ([1, 3], [4, 1])] {
            let table = values::<f32>(3, from[0] * from[1] * d);
            let d_out = values::<f32>(4, to[0] * to[1] * d);
            everywhere(|device| {
                let (mut out, mut d_table) = (vec![0.0; d_out.len()], table.clone());
                cpu::interpolate::interpolate_positions(&table, from[0], from[1], to[0], to[1], d, align, &mut out);
                cpu::interpolate::interpolate_positions_backward(
                    &d_out,
                    from[0],
                    from[1],
                    to[0],
                    to[1],
                    d,
                    align,
                    &mut d_table,
                );
                let (on_table, on_out) = (device.upload(&table), device.take(Number::F32, out.len()));
                ops::rows::interpolate_positions(on_table.all(), from, to, d, align, on_out.all());
                let have = on_out.download::<f32>();
                let on_d_out = device.upload(&d_out);
                ops::rows::interpolate_positions_backward(on_d_out.all(), from, to, d, align, on_table.all());
                vec![
                    outcome(&format!("{align:?}"), have, &out, F32),
                    outcome(&format!("{align:?}'s gradient"), on_table.download::<f32>(), &d_table, F32),
                ]
            });
        }
    }
}

fn turned<E: Element + Value>() {
    let (rows, heads, d, width) = (11, 3, 24, 5 * 24);
    let x = values::<E>(1, rows * width);
    let positions: Vec<u32> = (0..rows as u32).map(|row| row * 7 % 5 + row).collect();
    for half in [12, 8] {
        let inv_freq: Vec<f32> = (0..half).map(|i| 0.7f32.powi(i)).collect();
        let table = RopeTable::one_axis(&positions, d, &inv_freq);
        everywhere(|device| {
            let (cos, sin) = (device.upload(&table.cos), device.upload(&table.sin));
            let on_x = device.upload(&x);
            let mut want = x.clone();
            let mut outcomes = Vec::new();
            for inverse in [false, true] {
                cpu::rope::rope(&mut want, width, 0, heads, d, &table, inverse);
                ops::rows::rope(on_x.all(), width, heads, d, cos.all(), sin.all(), half as usize, inverse);
                outcomes.push(outcome("rope", on_x.download::<E>(), &want, F32));
            }
            outcomes
        });
    }
    let (tiles, h, w, depth, factor) = (2, 6, 9, 5, 3);
    let x = values::<E>(2, tiles * h * w * depth);
    everywhere(|device| {
        let mut y = x.clone();
        cpu::pixel_shuffle::pixel_shuffle(&x, tiles, h, w, depth, factor, &mut y);
        let (on_x, on_y) = (device.upload(&x), device.take(number_of::<E>(), x.len()));
        ops::rows::pixel_shuffle(on_x.all(), h, w, depth, factor, false, on_y.all());
        let back = device.take(number_of::<E>(), x.len());
        ops::rows::pixel_shuffle(on_y.all(), h, w, depth, factor, true, back.all());
        vec![
            outcome("pixel_shuffle", on_y.download::<E>(), &y, 0.0),
            outcome("pixel_shuffle back", back.download::<E>(), &x, 0.0),
        ]
    });
}
both!(rotation_and_folding, turned);

/// The arena that a GPU has, and what running out of memory says.
#[test]
fn memory_is_reused_reserved_and_runs_out_in_words() {
    let library = emulator::library();
    let emulated = library.map(|library| Device::emulated_with_arena(&library).expect("it was just made"));
    for device in emulated.into_iter().chain(Device::cuda(0).ok()) {
        let kept = device.upload(&values::<f32>(1, 3000));
        let place = |buffer: &foveate_kernels::cuda::DeviceBuffer| format!("{:?}", buffer.all().argument());
        let first = device.take(Number::F32, 1 << 20);
        let (at, before) = (place(&first), device.memory_used());
        drop(first);
        assert_eq!(device.memory_used()[0], before[0] - (4 << 20));
        assert_eq!(place(&device.take(Number::Bf16, 2 << 20)), at, "the same memory serves another type");
        device.reserve(200 << 20).expect("there is room");
        let held = device.memory_used();
        assert!(held[0] + held[1] >= 200 << 20);
        device.reserve(100 << 20).expect("it is there already");
        assert_eq!(device.memory_used(), held);
        let parts: Vec<_> = (0..9).map(|part| device.zeroed(Number::U32, 1000 + part * 400_000)).collect();
        assert_eq!(device.memory_used().iter().take(2).sum::<usize>(), held[0] + held[1], "what was reserved serves");
        assert!(parts.iter().all(|part| part.download::<u32>().iter().all(|word| *word == 0)));
        assert_eq!(kept.download::<f32>(), values::<f32>(1, 3000), "nobody wrote there");
        device.check().expect("nothing failed");

        let error = device.reserve(1 << 50).expect_err("nobody has so much");
        let (text, hint) = (error.to_string(), error.hint());
        assert!(text.starts_with("out of GPU memory: ") && text.contains(" of "), "{text}");
        for advice in ["tokens_per_batch", "recompute", "lora", "foveate plan"] {
            assert!(hint.contains(advice), "{hint}");
        }
        let nothing = device.zeroed(Number::F32, 1 << 48);
        assert!(device.check().is_err(), "a buffer that is not there is an error, not a crash");
        drop(nothing);
        assert_eq!(kept.download::<f32>().len(), 3000);
        device.check().expect("and the device goes on");
    }
}

#[test]
fn optimiser() {
    let count = 40_000;
    let (p, g, m) = (values::<f32>(1, count), values::<f32>(2, count), values::<f32>(3, count));
    let v: Vec<f32> = m.iter().map(|m| m * m).collect();
    everywhere(|device| {
        let (mut p1, mut m1, mut v1) = (p.clone(), m.clone(), v.clone());
        cpu::adamw::adamw_step(&mut p1, &g, &mut m1, &mut v1, 1e-3, 0.9, 0.999, 1e-8, 0.01, 3, 0.5);
        let numbers = Numbers::new(1e-3, 0.9, 0.999, 1e-8, 0.01, 3, 0.5);
        let [on_p, on_g, on_m, on_v] = [&p, &g, &m, &v].map(|values| device.upload(values));
        let mirror = device.take(Number::Bf16, count);
        let target = Some(mirror.all());
        ops::optimiser::adamw_step(on_p.all(), on_g.all(), on_m.all(), on_v.all(), &numbers, target);
        let rounded: Vec<bf16> = p1.iter().map(|p| Element::from_f32(*p)).collect();
        let same = |have: Vec<f32>, want: &[f32]| have.iter().zip(want).all(|(a, b)| a.to_bits() == b.to_bits());
        assert!(same(on_p.download(), &p1), "the weights have the bits of the CPU");
        assert!(same(on_m.download(), &m1) && same(on_v.download(), &v1), "and so have the moments");
        assert_eq!(mirror.download::<bf16>(), rounded);
        let (have, want) = (ops::optimiser::sum_of_squares(on_g.all()), cpu::adamw::sum_of_squares(&g));
        assert!((have / want - 1.0).abs() < 1e-12, "{have} {want}");
        vec![]
    });
}

fn products<E: Element + Value>() {
    for [m, n, k] in [[1, 8, 8], [5, 24, 40], [33, 16, 72]] {
        let (x, w, bias) = (values::<E>(1, m * k), values::<f32>(2, n * k), values::<f32>(3, n));
        let narrow: Vec<E> = w.iter().map(|w| E::from_f32(*w)).collect();
        let (dy, dw0) = (values::<E>(4, m * n), values::<f32>(5, n * k));
        everywhere(|device| {
            let plain = |x: &[E]| x.iter().map(|x| x.to_f32()).collect::<Vec<f32>>();
            let (x32, w32, dy32) = (plain(&x), plain(&narrow), plain(&dy));
            let (mut out, mut dx, mut dw) = (vec![0.0; m * n], vec![0.0; m * k], dw0.clone());
            cpu::matmul::matmul_f32_nt(&x32, m, &w32, n, k, Some(&bias), false, &mut out);
            cpu::matmul::matmul_f32_nn(&dy32, m, &w32, n, k, false, &mut dx);
            cpu::matmul::matmul_f32_weight_gradient(&dy32, &x32, m, n, k, false, &mut dw);
            let (on_x, on_w, on_dy) = (device.upload(&x), device.upload(&narrow), device.upload(&dy));
            let (on_out, on_dx) = (device.take(Number::F32, m * n), device.take(Number::F32, m * k));
            let (on_dw, on_bias) = (device.upload(&dw0), device.upload(&bias));
            let typed = device.take(number_of::<E>(), m * n);
            let (rows, weight) = ((on_x.all(), false), (on_w.all(), true));
            device.multiply([m, n, k], rows, weight, Some(on_bias.all()), None, on_out.all());
            device.multiply([m, n, k], rows, weight, Some(on_bias.all()), None, typed.all());
            device.multiply([m, k, n], (on_dy.all(), false), (on_w.all(), false), None, None, on_dx.all());
            device.multiply([n, k, m], (on_dy.all(), true), (on_x.all(), false), None, Some(on_dw.all()), on_dw.all());
            let rounded: Vec<E> = out.iter().map(|out| E::from_f32(*out)).collect();
            // Something else than the result is added, and stays as it is.
            let (more, on_sum) = (values::<f32>(6, m * n), device.take(Number::F32, m * n));
            let on_more = device.upload(&more);
            device.multiply([m, n, k], rows, weight, Some(on_bias.all()), Some(on_more.all()), on_sum.all());
            let sum: Vec<f32> = out.iter().zip(&more).map(|(out, more)| out + more).collect();
            assert_eq!(on_more.download::<f32>(), more);
            vec![
                outcome("x·Wᵀ + b + r", on_sum.download::<f32>(), &sum, F32),
                outcome("x·Wᵀ + b", on_out.download::<f32>(), &out, F32),
                outcome("x·Wᵀ + b, typed", typed.download::<E>(), &rounded, F32),
                outcome("dy·W", on_dx.download::<f32>(), &dx, F32),
                outcome("dyᵀ·x", on_dw.download::<f32>(), &dw, F32),
            ]
        });
    }
}
both!(matrix_products, products);

/// The CPU's head in f32 is the measure for both types: operands are values that bf16 holds.
fn head_of<E: Element + Value>() {
    // More than one chunk of the vocabulary, the second with a few tokens.
    for (rows, d, v) in [(3, 16, 8200), (70, 8, 300)] {
        let x = values::<E>(1, rows * d);
        let w: Vec<E> = values::<f32>(2, v * d).iter().map(|w| E::from_f32(*w)).collect();
        let plain = |x: &[E]| x.iter().map(|x| x.to_f32()).collect::<Vec<f32>>();
        let (x32, w32) = (plain(&x), plain(&w));
        let targets: Vec<u32> = (0..rows as u32).map(|row| (row * 7919 + 8190) % v as u32).collect();
        let inv_temperature: Vec<f32> = (0..rows).map(|row| 0.5 + row as f32 * 0.02).collect();
        let banned: Vec<u32> = [5, 100, 131, v as u32 - 2].into_iter().filter(|id| !targets.contains(id)).collect();
        assert!(banned.len() > 1, "some tokens are banned");
        let (by_logprob, by_entropy) = (values::<f32>(3, rows), values::<f32>(4, rows));
        let dw0 = values::<f32>(5, v * d);
        everywhere(|device| {
            let weight = HeadWeight::F32(&w32);
            let [mut logprob, mut entropy, mut lse] = [(); 3].map(|()| vec![0.0; rows]);
            cpu::head::head_logprob(
                &x32,
                weight,
                v,
                &targets,
                &inv_temperature,
                &banned,
                &mut logprob,
                &mut entropy,
                &mut lse,
                None,
            );
            let (mut dx, mut dw) = (vec![0f32; rows * d], dw0.clone());
            cpu::head::head_logprob_backward(
                &x32,
                weight,
                v,
                &targets,
                &inv_temperature,
                &banned,
                &lse,
                &entropy,
                &by_logprob,
                &by_entropy,
                None,
                &mut dx,
                Some((&mut dw, false)),
            );
            let (on_x, on_w, on_dw) = (device.upload(&x), device.upload(&w), device.upload(&dw0));
            let columns = Columns::new(device, &targets, &inv_temperature, &banned);
            ops::head::head_logprob(on_x.all(), on_w.all(), &columns);
            let (have_logprob, have_entropy) = columns.results();
            let on_dx = device.take(number_of::<E>(), rows * d);
            ops::head::head_logprob_backward(
                on_x.all(),
                on_w.all(),
                &columns,
                &by_logprob,
                &by_entropy,
                on_dx.all(),
                Some(on_dw.all()),
            );
            let dx: Vec<E> = dx.iter().map(|dx| E::from_f32(*dx)).collect();
            // The gradient by a logit is rounded to the operand type before the products.
            let rounding = if E::NAME == "bf16" { 4e-3 } else { 0.0 };
            vec![
                outcome("logprob", have_logprob, &logprob, F32),
                outcome("entropy", have_entropy, &entropy, F32),
                outcome("head's dx", on_dx.download::<E>(), &dx, F32 + rounding),
                outcome("head's dw", on_dw.download::<f32>(), &dw, F32 + rounding),
            ]
        });
    }
}
both!(head, head_of);

#[test]
fn draws_are_those_of_the_cpu() {
    let (rows, v) = (5, 3000);
    let logits: Vec<f32> = values::<f32>(1, rows * v).iter().map(|z| z * 3.0).collect();
    let mut banned: Vec<f32> = logits.clone();
    banned[2 * v] = f32::NEG_INFINITY;
    let draws: Vec<Draw> = (0..40)
        .map(|answer| Draw {
            row: answer % rows as u32,
            greedy: answer % 4 == 3,
            inv_temperature: if answer % 4 == 3 { 1.0 } else { 0.7 + answer as f32 * 0.01 },
            stream: Stream::new(9, Purpose::Sampling, 1, 2, answer),
            position: answer / 3,
        })
        .collect();
    everywhere(|device| {
        let on_logits = device.upload(&banned);
        let chosen = ops::head::pick(on_logits.all(), v, &draws);
        let [mut logprobs, mut entropies] = [(); 2].map(|()| Vec::new());
        for (draw, (id, ..)) in draws.iter().zip(&chosen) {
            let row = &banned[draw.row as usize * v..][..v];
            let statistics = RowStatistics::new(row, Scaling { inv_temperature: draw.inv_temperature, banned: &[] });
            let want = if draw.greedy {
                let most = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                row.iter().position(|z| *z == most).expect("there is a largest") as u32
            } else {
                statistics.draw(row, f64::from(draw.stream.uniform(draw.position)))
            };
            assert_eq!(*id, want, "{draw:?} on {}", device.name());
            let (logprob, entropy) = statistics.logprob(row, want);
            logprobs.push(logprob);
            entropies.push(entropy);
        }
        vec![
            outcome("logprob of draws", chosen.iter().map(|chosen| chosen.1).collect(), &logprobs, F32),
            outcome("entropy of draws", chosen.iter().map(|chosen| chosen.2).collect(), &entropies, F32),
        ]
    });
}

/// Segments of the given lengths and parents, packed one after the other.
fn pack(shape: &[(u32, Option<u32>)]) -> Vec<Segment> {
    let mut start = 0;
    let segments = shape.iter().map(|&(len, parent)| {
        start += len;
        Segment { start: start - len, len, parent }
    });
    segments.collect()
}

fn attention_over<E: Element + Value>(heads: Heads, segments: &[Segment]) {
    let rows: usize = segments.iter().map(|segment| segment.len as usize).sum();
    let Heads { num_heads, num_kv_heads, head_dim: d, .. } = heads;
    let stride = (num_heads + 2 * num_kv_heads) * d;
    let (qkv, d_out) = (values::<E>(1, rows * stride), values::<E>(2, rows * num_heads * d));
    // The reference, in f64 from the same values.
    let (want, want_lse) = foveate_kernels::reference::attention::attention(&heads, segments, &wide(&qkv));
    let want_d =
        foveate_kernels::reference::attention::attention_backward(&heads, segments, &wide(&qkv), &wide(&d_out));
    everywhere(|device| {
        let number = number_of::<E>();
        let (on_qkv, on_d_out) = (device.upload(&qkv), device.upload(&d_out));
        let (on_out, on_lse) = (device.take(number, d_out.len()), device.take(Number::F32, rows * num_heads));
        let plan = Plan::new(device, &heads, number, &Queries::whole(segments), segments);
        let view = |head: usize| Strided { data: on_qkv.all(), offset: head * d, stride };
        let (q, k, v) = (view(0), view(num_heads), view(num_heads + num_kv_heads));
        plan.attend(&heads, q, k, v, on_out.all(), on_lse.all());
        let on_d_qkv = device.take(number, qkv.len());
        let plan = BackwardPlan::new(device, &heads, number, segments, rows);
        plan.attend_backward(&heads, on_qkv.all(), on_out.all(), on_lse.all(), on_d_out.all(), on_d_qkv.all());
        let is_bf16 = E::NAME == "bf16";
        let new = |what: &str, have: Vec<f32>, want: &[f64], bf16: bool| {
            let what = format!("{what} of {heads:?}");
            Outcome { what, have, want: want.to_vec(), bf16, tolerance: if is_bf16 { 4e-3 } else { F32 } }
        };
        let plain = |x: Vec<E>| x.iter().map(|x| x.to_f32()).collect::<Vec<f32>>();
        vec![
            new("attention", plain(on_out.download::<E>()), &want, is_bf16),
            new("log-sum-exp", on_lse.download::<f32>(), &want_lse, false),
            new("gradient", plain(on_d_qkv.download::<E>()), &want_d, is_bf16),
        ]
    });
}

#[test]
fn attention_in_f32() {
    let awkward = pack(&[(37, None), (1, Some(0)), (0, Some(0)), (9, Some(0)), (5, Some(3)), (3, None), (2, Some(4))]);
    for (num_heads, num_kv_heads, head_dim, causal) in [(3, 1, 16, true), (2, 2, 40, false), (2, 1, 136, true)] {
        let scale = (head_dim as f32).powf(-0.5);
        attention_over::<f32>(Heads { num_heads, num_kv_heads, head_dim, scale, causal }, &awkward);
    }
}

#[test]
fn attention_on_tensor_cores() {
    // Tiles that are full, cut, shared by siblings; ancestors of ancestors; windows without parents.
    let tree = pack(&[(70, None), (1, Some(0)), (0, Some(0)), (9, Some(0)), (65, Some(3)), (66, Some(3)), (3, None)]);
    let windows = pack(&[(16, None), (16, None), (5, None), (64, None), (40, None)]);
    let small = pack(&[(20, None), (7, Some(0)), (4, Some(0))]);
    for (num_heads, num_kv_heads, head_dim, causal, segments) in [
        (2, 1, 16, true, &tree),
        (1, 1, 16, false, &tree),
        (2, 2, 8, false, &windows),
        (2, 1, 64, true, &small),
        (1, 1, 64, true, &tree),
        (1, 1, 72, false, &windows),
        (2, 1, 80, true, &small),
        (2, 1, 128, true, &small),
        (1, 1, 128, false, &windows),
        (1, 1, 136, true, &small),
    ] {
        let scale = (head_dim as f32).powf(-0.5);
        attention_over::<bf16>(Heads { num_heads, num_kv_heads, head_dim, scale, causal }, segments);
    }
}

/// What decoding reads from a store is what training saw in the packed rows.
fn stored<E: Element + Value>() {
    let heads = Heads { num_heads: 4, num_kv_heads: 2, head_dim: 16, scale: 0.25, causal: true };
    let (query_width, key_width, stride) = (64, 32, 128);
    let segments = pack(&[(67, None), (5, Some(0)), (3, Some(0))]);
    let rows = 75;
    let qkv = values::<E>(1, rows * stride);
    let (want, _) = foveate_kernels::reference::attention::attention(&heads, &segments, &wide(&qkv));
    everywhere(|device| {
        let number = number_of::<E>();
        // The store has its rows elsewhere: everything is moved by seven.
        let places: Vec<u32> = (0..rows as u32).map(|row| row + 7).collect();
        let moved: Vec<Segment> = segments.iter().map(|s| Segment { start: s.start + 7, ..*s }).collect();
        let store = [(); 2].map(|()| device.zeroed(number, (rows + 9) * key_width));
        let (on_qkv, on_places) = (device.upload(&qkv), device.upload(&places));
        let [keys, values] = store.each_ref().map(|half| half.all());
        ops::rows::store_rows(on_qkv.all(), query_width, key_width, on_places.all(), keys, values);
        let on_out = device.zeroed(number, rows * query_width);
        let on_lse = device.take(Number::F32, rows * 4);
        // Every row by itself, as decoding asks.
        let queries: Vec<Queries> = segments
            .iter()
            .enumerate()
            .flat_map(|(index, segment)| {
                (0..segment.len).map(move |position| Queries {
                    first_row: segment.start + position,
                    num_rows: 1,
                    segment: index as u32,
                    first_position: position,
                })
            })
            .collect();
        let plan = Plan::new(device, &heads, number, &queries, &moved);
        let asked = Strided { data: on_qkv.all(), offset: 0, stride };
        let seen = [keys, values].map(|data| Strided { data, offset: 0, stride: key_width });
        plan.attend(&heads, asked, seen[0], seen[1], on_out.all(), on_lse.all());
        let have = on_out.download::<E>().iter().map(|x| x.to_f32()).collect();
        vec![Outcome { what: "decoding".into(), have, want: want.clone(), bf16: E::NAME == "bf16", tolerance: F32 }]
    });
}
both!(decoding_equals_training, stored);

#[test]
fn memory_is_counted_and_its_end_is_an_error() {
    for device in devices().into_iter().flatten() {
        let before = device.memory_used()[0];
        let buffer = device.zeroed(Number::F32, 1000);
        assert!(device.memory_used()[0] >= before + 4000);
        drop(buffer);
        assert_eq!(device.memory_used()[0], before);
        let total = device.memory().expect("a device knows its memory").total;
        drop(device.take(Number::F32, total));
        let error = device.check().expect_err("nobody has four times its memory");
        assert!(matches!(error, GpuError::OutOfMemory { .. }), "{error}");
        assert!(error.to_string().contains(" asked for, ") && error.hint().contains("recompute"));
        device.check().expect("the error has been told once");
        assert_eq!(device.upload(&[1f32, 2.0]).download::<f32>(), [1.0, 2.0], "and the device goes on");
    }
}

#[test]
fn what_is_recorded_runs_when_it_is_repeated_and_keeps_its_memory() {
    let arena = emulator::library().map(|library| Device::emulated_with_arena(&library).expect("it was just made"));
    for device in devices().into_iter().flatten().chain(arena) {
        let (resting, before) = (device.memory_used()[0], device.counts());
        let (x, out) = (device.upload(&[1f32, 2.0, 3.0]), device.zeroed(Number::F32, 3));
        let weight = device.upload(&[2f32, 0.0, 0.0, 0.0, 3.0, 0.0, 0.0, 0.0, 4.0]);
        let work = || {
            // A kernel, a copy, zeroes and a product, through a buffer that is gone when the recording is made.
            let inner = device.take(Number::F32, 3);
            inner.all().copy_from(x.all());
            ops::elementwise::add(inner.all(), x.all());
            out.all().zero();
            device.multiply([1, 3, 3], (inner.all(), false), (weight.all(), false), None, Some(out.all()), out.all());
        };
        work();
        assert_eq!(out.download::<f32>(), [4.0, 12.0, 24.0]);
        out.all().zero();
        let scratch = device.scratch();
        let (recording, ()) = device.record(&scratch, work).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(out.download::<f32>(), [0.0; 3], "recording does nothing by itself on {}", device.name());
        // Whatever is taken now lies elsewhere than the recording's own buffers.
        let others: Vec<_> = (0..40).map(|_| device.upload(&[7f32; 3])).collect();
        for factor in [1.0, 5.0] {
            x.all().write(&[factor, 2.0, 3.0]);
            device.replay(&recording);
            assert_eq!(out.download::<f32>(), [4.0 * factor, 12.0, 24.0], "on {}", device.name());
        }
        assert!(others.iter().all(|other| other.download::<f32>() == [7.0; 3]), "on {}", device.name());
        let counts = device.counts();
        assert_eq!((counts.recordings - before.recordings, counts.replays - before.replays), (1, 2));

        // What no recording can hold is its error, and the device goes on.
        for forbidden in [0, 1, 2] {
            let refused = device.record(&scratch, || match forbidden {
                0 => drop(device.upload(&[1f32])),
                1 => drop(out.download::<f32>()),
                _ => device.check().expect("the recording is told, not this"),
            });
            let error = refused.err().expect("refused");
            assert!(matches!(error, GpuError::Unsupported { .. }), "{error}");
            device.check().expect("the device has no error of its own");
        }
        let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            device.record(&scratch, || assert!(out.is_empty(), "while recording")).is_ok()
        }));
        assert!(panicked.is_err());
        device.replay(&recording);
        assert_eq!(out.download::<f32>(), [20.0, 12.0, 24.0], "on {}", device.name());
        drop((recording, scratch, others, x, out, weight));
        assert_eq!(device.memory_used()[0], resting, "on {}", device.name());
    }
}

#[test]
fn what_another_thread_asks_for_is_not_recorded() {
    for device in devices().into_iter().flatten() {
        let (x, y, one) = (device.upload(&[1f32]), device.upload(&[5f32]), device.upload(&[1f32]));
        let scratch = device.scratch();
        let begun = std::sync::Barrier::new(2);
        let recording = std::thread::scope(|scope| {
            let other = scope.spawn(|| {
                begun.wait();
                ops::elementwise::add(y.all(), one.all());
                y.download::<f32>()
            });
            let recorded = device.record(&scratch, || {
                ops::elementwise::add(x.all(), one.all());
                begun.wait();
                // Time to come into the recording, were it open to others.
                std::thread::sleep(std::time::Duration::from_millis(30));
            });
            assert_eq!(other.join().expect("it does not panic"), [6.0], "on {}", device.name());
            recorded.unwrap_or_else(|error| panic!("{error}")).0
        });
        assert_eq!(x.download::<f32>(), [1.0], "on {}", device.name());
        device.replay(&recording);
        assert_eq!((x.download::<f32>(), y.download::<f32>()), (vec![2.0], vec![6.0]), "on {}", device.name());
    }
}

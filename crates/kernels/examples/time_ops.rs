//! Times the operations at the shapes that matter: `cargo run --release -p foveate-kernels --example time_ops [WHAT [TYPE]]`.
//! Prints the best of a few repetitions, in processor time per thread; says nothing about correctness. Cost: a few seconds.

use foveate_kernels::cpu::activation::{Activation, activation, activation_backward, gated, gated_backward};
use foveate_kernels::cpu::adamw::{adamw_step, all_finite, sum_of_squares};
use foveate_kernels::cpu::attention::{Heads, Rows, attention, attention_backward};
use foveate_kernels::cpu::norm::{layer_norm, layer_norm_backward, rms_norm, rms_norm_backward};
use foveate_kernels::cpu::rope::{RopeTable, rope};
use foveate_kernels::element::{Element, bf16};
use foveate_kernels::rng::{Purpose, Stream};
use foveate_kernels::segment::{Queries, Segment};

fn main() {
    let what = std::env::args().nth(1).unwrap_or_default();
    let element = std::env::args().nth(2).unwrap_or_default();
    let (narrow, full) = ("bf16".starts_with(&element), "f32".starts_with(&element));
    println!("{}, {} threads", foveate_kernels::isa::describe(), rayon::current_num_threads());
    if "attention".starts_with(&what) {
        if narrow {
            time_attention::<bf16>();
        }
        if full {
            time_attention::<f32>();
        }
    }
    if "rows".starts_with(&what) {
        if narrow {
            time_rows::<bf16>();
        }
        if full {
            time_rows::<f32>();
        }
    }
    if "adamw".starts_with(&what) {
        time_adamw();
    }
}

/// Least processor time of `count` calls over all threads, in milliseconds per thread of the pool: what the wall clock
/// would show on a machine that does nothing else.
fn best(count: usize, mut job: impl FnMut() + Send) -> f64 {
    let threads = rayon::current_num_threads() as f64;
    rayon::scope(|_| {
        let time = |_| {
            let start = processor_secs();
            job();
            (processor_secs() - start) * 1e3 / threads
        };
        (0..count).map(time).fold(f64::INFINITY, f64::min)
    })
}

/// Processor time of this process so far.
fn processor_secs() -> f64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the pointer is valid for the call.
    let status = unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &mut time) };
    assert_eq!(status, 0, "every Unix has this clock");
    time.tv_sec as f64 + time.tv_nsec as f64 * 1e-9
}

fn values<E: Element>(count: usize) -> Vec<E> {
    let stream = Stream::new(1, Purpose::Test, 0, 0, 0);
    let few: Vec<E> = (0..10_007).map(|at| E::from_f32(stream.uniform(at) * 4.0 - 2.0)).collect();
    few.iter().copied().cycle().take(count).collect()
}

fn time_attention<E: Element>() {
    let full = |len| Segment { start: 0, len, parent: None };
    let texts: Vec<Segment> = (0..16).map(|i| Segment { start: i * 256, len: 256, parent: None }).collect();
    let mut group = vec![full(1100)];
    group.extend((0..8).map(|i| Segment { start: 1100 + i * 110, len: 110, parent: Some(0) }));
    let vision = Heads { num_heads: 12, num_kv_heads: 12, head_dim: 64, scale: 0.125, causal: false };
    let text = Heads { num_heads: 9, num_kv_heads: 3, head_dim: 64, scale: 0.125, causal: true };
    for (name, heads, segments) in [
        ("vision 1024 full, 12 heads", vision, vec![full(1024)]),
        ("text 16 x 256 causal, 9/3 heads", text, texts),
        ("prompt 1100 + 8 x 110, 9/3 heads", text, group.clone()),
    ] {
        let rows: usize = segments.iter().map(|segment| segment.len as usize).sum();
        let stride = (heads.num_heads + 2 * heads.num_kv_heads) * 64;
        let width = heads.num_heads * 64;
        let qkv = values::<E>(rows * stride);
        let d_out = values::<E>(rows * width);
        let (mut out, mut lse) = (vec![E::default(); rows * width], vec![0.0; rows * heads.num_heads]);
        let mut d_qkv = vec![E::default(); qkv.len()];
        let queries = Queries::whole(&segments);
        let view = |head: usize| Rows { data: &qkv[..], offset: head * 64, stride, head: 64 };
        let (q, k, v) = (view(0), view(heads.num_heads), view(heads.num_heads + heads.num_kv_heads));
        let forward = best(5, || attention(&heads, &queries, &segments, q, k, v, &mut out, &mut lse));
        let backward = best(5, || attention_backward(&heads, &segments, &qkv, &out, &lse, &d_out, None, &mut d_qkv));
        // Visible pairs, two products of 2 * 64 operations forward and five backward.
        let seen = |segment: &Segment| {
            let (len, parent) = (segment.len as f64, segment.parent.map_or(0.0, |_| 1100.0));
            len * (parent + if heads.causal { (len + 1.0) / 2.0 } else { len })
        };
        let pairs: f64 = segments.iter().map(seen).sum::<f64>() * heads.num_heads as f64;
        println!(
            "{:4} {name}: forward {forward:.2} ms ({:.0} GFLOP/s), backward {backward:.2} ms ({:.0} GFLOP/s)",
            E::NAME,
            pairs * 256.0 / forward / 1e6,
            pairs * 640.0 / backward / 1e6
        );
    }
    // One decoding step: 8 answers of 60 tokens so far.
    for (index, segment) in group.iter_mut().enumerate().skip(1) {
        *segment = Segment { start: 1100 + index as u32 * 110, len: 60, parent: Some(0) };
    }
    let queries: Vec<Queries> =
        (0..8).map(|i| Queries { first_row: i, num_rows: 1, segment: i + 1, first_position: 59 }).collect();
    let (q, kv) = (values::<E>(8 * 9 * 64), values::<E>(2200 * 6 * 64));
    let (mut out, mut lse) = (vec![E::default(); 8 * 9 * 64], vec![0.0; 8 * 9]);
    let q = Rows { data: &q[..], offset: 0, stride: 9 * 64, head: 64 };
    let k = Rows { data: &kv[..], offset: 0, stride: 6 * 64, head: 64 };
    let v = Rows { data: &kv[..], offset: 3 * 64, stride: 6 * 64, head: 64 };
    let time = best(20, || attention(&text, &queries, &group, q, k, v, &mut out, &mut lse));
    println!("{:4} decoding step, prompt 1100 + 8 x 60, 9/3 heads: {time:.3} ms", E::NAME);
}

fn time_rows<E: Element>() {
    let (rows, d, f) = (4096, 576, 1536);
    let gb = |bytes: usize, ms: f64| format!("{ms:.2} ms ({:.1} GB/s)", bytes as f64 / ms / 1e6);
    let e = size_of::<E>();
    let (x, dy, w) = (values::<f32>(rows * d), values::<E>(rows * d), values::<f32>(d));
    let (mut y, mut mean, mut rstd) = (vec![E::default(); rows * d], vec![0.0; rows], vec![0.0; rows]);
    let (mut dx, mut dw, mut db) = (vec![0.0; rows * d], vec![0.0; d], vec![0.0; d]);
    let n = rows * d;
    let time = best(5, || rms_norm(&x, &w, 1e-5, &mut y, &mut rstd));
    println!("{:4} rms_norm: {}", E::NAME, gb(n * (4 + e), time));
    let time = best(5, || rms_norm_backward(&dy, &x, &w, &rstd, &mut dx, Some(&mut dw)));
    println!("{:4} rms_norm_backward: {}", E::NAME, gb(n * (12 + e), time));
    let time = best(5, || layer_norm(&x, &w, &w, 1e-5, &mut y, &mut mean, &mut rstd));
    println!("{:4} layer_norm: {}", E::NAME, gb(n * (4 + e), time));
    let time = best(5, || layer_norm_backward(&dy, &x, &w, &mean, &rstd, &mut dx, Some(&mut dw), Some(&mut db)));
    println!("{:4} layer_norm_backward: {}", E::NAME, gb(n * (12 + e), time));
    let positions: Vec<u32> = (0..rows as u32).collect();
    let inv_freq: Vec<f32> = (0..32).map(|i| 10000f32.powf(-(i as f32) / 32.0)).collect();
    let mut table = RopeTable::default();
    let time = best(5, || table = RopeTable::one_axis(&positions, 64, &inv_freq));
    println!("     RopeTable, {rows} rows: {time:.2} ms");
    let mut qkv = values::<E>(rows * 15 * 64);
    let time = best(5, || rope(&mut qkv, 15 * 64, 0, 12, 64, &table, false));
    println!("{:4} rope: {}", E::NAME, gb(rows * 12 * 64 * 2 * e, time));
    let (gate_up, dy) = (values::<E>(rows * 2 * f), values::<E>(rows * f));
    let (mut y, mut d_gate_up) = (vec![E::default(); rows * f], vec![E::default(); rows * 2 * f]);
    let time = best(5, || gated(Activation::Silu, &gate_up, f, &mut y));
    println!("{:4} swiglu: {}", E::NAME, gb(rows * f * 3 * e, time));
    let time = best(5, || gated_backward(Activation::Silu, &dy, &gate_up, f, &mut d_gate_up));
    println!("{:4} swiglu backward: {}", E::NAME, gb(rows * f * 5 * e, time));
    for kind in [Activation::GeluTanh, Activation::GeluErf] {
        let time = best(5, || activation(kind, &gate_up, &mut d_gate_up));
        println!("{:4} {kind:?}: {}", E::NAME, gb(rows * 2 * f * 2 * e, time));
        let time = best(5, || activation_backward(kind, &gate_up, &gate_up, &mut d_gate_up));
        println!("{:4} {kind:?} backward: {}", E::NAME, gb(rows * 2 * f * 2 * e, time));
    }
}

fn time_adamw() {
    // A quarter of a 135M model: large enough to leave every cache.
    let count = 33_750_000;
    let mut p = vec![0.1f32; count];
    let g = vec![0.01f32; count];
    let (mut m, mut v) = (vec![0f32; count], vec![0f32; count]);
    let mut step = 0;
    let time = best(4, || {
        step += 1;
        adamw_step(&mut p, &g, &mut m, &mut v, 1e-4, 0.9, 0.999, 1e-8, 0.01, step, 1.0);
    });
    println!("adamw_step, {count} parameters: {time:.1} ms ({:.1} GB/s)", count as f64 * 28.0 / time / 1e6);
    let mut sum = 0.0;
    let time = best(4, || sum += sum_of_squares(&g));
    println!("sum_of_squares: {time:.1} ms ({:.1} GB/s)", count as f64 * 4.0 / time / 1e6);
    let mut fine = true;
    let time = best(4, || fine &= all_finite(&g));
    println!("all_finite: {time:.1} ms ({:.1} GB/s)", count as f64 * 4.0 / time / 1e6);
    assert!(fine && sum > 0.0);
}

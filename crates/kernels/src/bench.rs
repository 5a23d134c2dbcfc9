//! Short measurements of this machine and of the products on it: what it can do, and what we get.
//! Used by `foveate bench` and when a kernel changes; reads the clock, which nothing else in this crate does.
//! Cost: a few seconds. Each figure is the best of repeated runs, since other programs can only slow a run down.

use crate::cpu::head::{HeadWeight, head_logprob, head_logprob_backward};
use crate::cpu::matmul::{
    Output, PackedMatrix, matmul_bf16, matmul_bf16_weight_gradient, matmul_f32_nn, matmul_f32_nt,
    matmul_f32_weight_gradient, peak_rate,
};
use crate::element::{Element, bf16};
use crate::isa::{MatmulPath, matmul_path, multiversion};
use crate::parallel;
use crate::team;
use std::time::{Duration, Instant};

/// One measurement.
#[derive(Clone, Debug)]
pub struct Measured {
    /// What was measured, shapes as rows x k x columns.
    pub name: String,
    /// Time of one run.
    pub seconds: f64,
    /// Billions of floating-point operations per second, a multiplication and an addition counted as two; 0 where
    /// memory is what counts.
    pub gflops: f64,
    /// Billions of bytes per second that had to be read and written at least.
    pub gbytes: f64,
}

/// Time given to each measurement.
const BUDGET: Duration = Duration::from_millis(150);

/// Best time of `run` within the budget, after one run that does not count.
fn best_time(mut run: impl FnMut()) -> f64 {
    run();
    let start = Instant::now();
    let mut best = f64::INFINITY;
    while start.elapsed() < BUDGET {
        let begin = Instant::now();
        run();
        best = best.min(begin.elapsed().as_secs_f64());
    }
    best
}

fn measure(name: impl Into<String>, flops: f64, bytes: f64, run: impl FnMut()) -> Measured {
    let seconds = best_time(run);
    Measured { name: name.into(), seconds, gflops: flops / seconds / 1e9, gbytes: bytes / seconds / 1e9 }
}

fn numbers(len: usize) -> Vec<f32> {
    (0..len as u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 8) as f32 / (1 << 24) as f32 - 0.5).collect()
}

fn narrow(x: &[f32]) -> Vec<bf16> {
    x.iter().map(|&x| Element::from_f32(x)).collect()
}

/// What the machine can do: products from registers, f32 from registers, reading memory.
pub fn peaks() -> Vec<Measured> {
    let threads = team::num_threads();
    let mut results = Vec::new();
    for path in MatmulPath::available() {
        // The portable path has no unit of its own.
        if let Some(rate) = peak_rate(path) {
            let flops = (rate.flops * threads) as f64;
            let name = format!("bf16 from registers, {}", path.name());
            results.push(measure(name, flops, 0.0, || parallel::for_chunks(threads, 1, |_| (rate.run)())));
        }
    }
    const ROUNDS: usize = 20_000;
    let flops = (ROUNDS * FMA_LANES * 2 * threads) as f64;
    results.push(measure("f32 from registers", flops, 0.0, || {
        parallel::for_chunks(threads, 1, |_| {
            std::hint::black_box(fma_rounds(std::hint::black_box(ROUNDS)));
        });
    }));
    let data = vec![1u64; 16 << 20];
    let bytes = size_of_val(&data[..]) as f64;
    results.push(measure("reading memory", 0.0, bytes, || {
        parallel::for_chunks(data.len(), 1 << 18, |range| {
            std::hint::black_box(xor_all(&data[range]));
        });
    }));
    results
}

/// Independent sums, enough of them to hide the latency of a fused multiply-add in 512-bit registers.
const FMA_LANES: usize = 128;

multiversion! {
    fn fma_rounds(rounds: usize) -> f32 {
        let factor = std::hint::black_box([0.999f32; FMA_LANES]);
        let mut sums = factor;
        for _ in 0..rounds {
            for lane in 0..FMA_LANES {
                sums[lane] = sums[lane].mul_add(0.999, 0.999);
            }
        }
        sums.iter().sum()
    }
}

multiversion! {
    fn xor_all(data: &[u64]) -> u64 {
        let mut sums = [0u64; 32];
        for part in data.chunks_exact(32) {
            for lane in 0..32 {
                sums[lane] ^= part[lane];
            }
        }
        sums.iter().fold(0, |a, b| a ^ b)
    }
}

/// The products of training and decoding at the shapes of small models.
pub fn matmul_cases() -> Vec<Measured> {
    let mut results = Vec::new();
    for (m, k, n) in [(1024, 576, 1536), (1024, 1536, 576), (4096, 576, 3072), (32, 576, 1536), (1, 576, 1536)] {
        results.extend(bf16_case(m, k, n));
    }
    for (m, k, n) in [(1, 576, 3072), (16, 576, 1536), (32, 576, 3072), (32, 1536, 576), (32, 576, 576)] {
        results.push(streaming_case(m, k, n));
    }
    for (m, k, n) in [(1024, 576, 1536), (4096, 576, 3072), (4096, 1536, 576)] {
        results.extend(f32_case(m, k, n));
    }
    results.push(packing_case());
    results.extend(head_case());
    results
}

fn bf16_case(m: usize, k: usize, n: usize) -> Vec<Measured> {
    let flops = 2.0 * (m * n * k) as f64;
    let bytes = 2.0 * (m * k + k * n + m * n) as f64;
    let name = |what: &str| format!("bf16 {what} {m}x{k}x{n}, {}", matmul_path().name());
    let (x, w, dy) = (narrow(&numbers(m * k)), numbers(n * k), narrow(&numbers(m * n)));
    let mut packed = PackedMatrix::new(k, n);
    packed.pack_transposed(&w);
    let mut y = vec![bf16::ZERO; m * n];
    let mut results =
        vec![measure(name("forward"), flops, bytes, || matmul_bf16(&x, m, &packed, None, Output::Bf16(&mut y)))];
    if m >= 256 {
        let mut backward = PackedMatrix::new(n, k);
        backward.pack(&w);
        let mut dx = vec![bf16::ZERO; m * k];
        results.push(measure(name("dx"), flops, bytes, || {
            matmul_bf16(&dy, m, &backward, None, Output::Bf16(&mut dx));
        }));
        let mut dw = vec![0.0; n * k];
        results.push(measure(name("dw"), flops, bytes + 6.0 * (n * k) as f64, || {
            matmul_bf16_weight_gradient(&dy, &x, m, n, k, false, &mut dw);
        }));
    }
    results
}

/// Decoding: weights that no cache holds, few rows.
fn streaming_case(m: usize, k: usize, n: usize) -> Measured {
    let layers = 70_000_000 / (k * n);
    let x = narrow(&numbers(m * k));
    let mut packed = PackedMatrix::new(k, n);
    packed.pack_transposed(&numbers(n * k));
    let weights = vec![packed; layers];
    let mut y = vec![0.0; m * n];
    let (flops, bytes) = (2.0 * (m * n * k * layers) as f64, (weights[0].bytes() * layers) as f64);
    measure(format!("bf16 forward {m}x{k}x{n} through {layers} weights"), flops, bytes, || {
        for weight in &weights {
            matmul_bf16(&x, m, weight, None, Output::F32(&mut y));
        }
    })
}

fn f32_case(m: usize, k: usize, n: usize) -> Vec<Measured> {
    let flops = 2.0 * (m * n * k) as f64;
    let bytes = 4.0 * (m * k + k * n + m * n) as f64;
    let name = |what: &str| format!("f32 {what} {m}x{k}x{n}");
    let (x, w, dy) = (numbers(m * k), numbers(n * k), numbers(m * n));
    let (mut y, mut dx, mut dw) = (vec![0.0; m * n], vec![0.0; m * k], vec![0.0; n * k]);
    vec![
        measure(name("forward"), flops, bytes, || matmul_f32_nt(&x, m, &w, n, k, None, false, &mut y)),
        measure(name("dx"), flops, bytes, || matmul_f32_nn(&dy, m, &w, n, k, false, &mut dx)),
        measure(name("dw"), flops, bytes, || matmul_f32_weight_gradient(&dy, &x, m, n, k, false, &mut dw)),
    ]
}

/// What an optimiser step pays to bring new weights to the matrix unit, both ways.
fn packing_case() -> Measured {
    let (k, n) = (576, 12_288);
    let w = numbers(n * k);
    let (mut forward, mut backward) = (PackedMatrix::new(k, n), PackedMatrix::new(n, k));
    measure(format!("packing weights both ways {n}x{k}"), 0.0, 12.0 * (n * k) as f64, || {
        forward.pack_transposed(&w);
        backward.pack(&w);
    })
}

fn head_case() -> Vec<Measured> {
    let (r, d, v) = (512, 576, 8192);
    let flops = 2.0 * (r * d * v) as f64;
    let w = numbers(v * d);
    let (mut forward, mut backward) = (PackedMatrix::new(d, v), PackedMatrix::new(v, d));
    forward.pack_transposed(&w);
    backward.pack(&w);
    let weight = HeadWeight::Bf16 { forward: &forward, backward: &backward };
    let x = narrow(&numbers(r * d));
    let targets: Vec<u32> = (0..r as u32).collect();
    let ones = vec![1.0; r];
    let (mut logprob, mut entropy, mut lse) = (vec![0.0; r], vec![0.0; r], vec![0.0; r]);
    let mut results = vec![measure(format!("head forward {r}x{d}x{v}"), flops, 0.0, || {
        head_logprob(&x, weight, v, &targets, &ones, &[], &mut logprob, &mut entropy, &mut lse, None);
    })];
    let (mut dx, mut dw) = (vec![bf16::ZERO; r * d], vec![0.0; v * d]);
    results.push(measure(format!("head backward {r}x{d}x{v}"), 3.0 * flops, 0.0, || {
        let by = &ones;
        head_logprob_backward(
            &x,
            weight,
            v,
            &targets,
            by,
            &[],
            &lse,
            &entropy,
            by,
            by,
            None,
            &mut dx,
            Some((&mut dw, false)),
        );
    }));
    results
}

//! Matrix products in f64, and the exact arithmetic of the AMX unit.
//! Knows nothing of packing. Cost: three plain loops.

use crate::element::{Element, bf16};

/// x[m, k]·Wᵀ for row-major W `[n, k]`, in f64.
pub fn matmul_nt<E: Element, W: Element>(x: &[E], m: usize, w_nk: &[W], n: usize, k: usize) -> Vec<f64> {
    let mut out = vec![0.0; m * n];
    for row in 0..m {
        for column in 0..n {
            for depth in 0..k {
                out[row * n + column] +=
                    f64::from(x[row * k + depth].to_f32()) * f64::from(w_nk[column * k + depth].to_f32());
            }
        }
    }
    out
}

/// dy[m, n]·W for row-major W `[n, k]`, in f64.
pub fn matmul_nn<E: Element, W: Element>(dy: &[E], m: usize, w_nk: &[W], n: usize, k: usize) -> Vec<f64> {
    let mut out = vec![0.0; m * k];
    for row in 0..m {
        for depth in 0..n {
            for column in 0..k {
                out[row * k + column] +=
                    f64::from(dy[row * n + depth].to_f32()) * f64::from(w_nk[depth * k + column].to_f32());
            }
        }
    }
    out
}

/// dyᵀ[n, m]·x[m, k], in f64.
pub fn weight_gradient<E: Element>(dy: &[E], x: &[E], m: usize, n: usize, k: usize) -> Vec<f64> {
    let mut out = vec![0.0; n * k];
    for depth in 0..m {
        for row in 0..n {
            for column in 0..k {
                out[row * k + column] +=
                    f64::from(dy[depth * n + row].to_f32()) * f64::from(x[depth * k + column].to_f32());
            }
        }
    }
    out
}

/// x[m, k]·Wᵀ exactly as a chain of `tdpbf16ps` over steps of 32 computes it: within a step two fused chains, one over
/// even and one over odd k, their sum added to the accumulator; subnormals count as zero.
pub fn amx_matmul_nt(x: &[bf16], m: usize, w_nk: &[bf16], n: usize, k: usize) -> Vec<f32> {
    let flush = |x: f32| if x.abs() < f32::MIN_POSITIVE { 0.0 * x } else { x };
    let mut out = vec![0.0; m * n];
    for row in 0..m {
        for column in 0..n {
            let mut sum = 0.0f32;
            for step in (0..k).step_by(32) {
                let mut chains = [0.0f32; 2];
                for depth in step..k.min(step + 32) {
                    let (a, b) = (x[row * k + depth].to_f32(), w_nk[column * k + depth].to_f32());
                    let chain = &mut chains[depth % 2];
                    *chain = flush(flush(a).mul_add(flush(b), *chain));
                }
                sum = flush(sum + flush(chains[0] + chains[1]));
            }
            out[row * n + column] = sum;
        }
    }
    out
}

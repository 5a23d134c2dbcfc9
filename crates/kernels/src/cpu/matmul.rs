//! Matrix products: bf16 operands with f32 sums on the best unit of the machine, and f32 through the `gemm` crate.
//! Knows shapes and memory; nothing of layers. Every element of a bf16 result is one chain of sums over k in a fixed
//! order, so its bits do not depend on the number of rows, on blocking or on threads.
//! Cost: weights are packed once per change (`PackedMatrix`), activations are packed on the way, into reused scratch.

#[cfg(target_arch = "x86_64")]
mod amx;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod float32;
mod forms;
mod kernel;
pub(crate) mod pack;
mod portable;
mod product;
mod shuffle;
mod target;

pub(crate) use float32::f32_nt_serial;
pub use float32::{matmul_f32_nn, matmul_f32_nt, matmul_f32_weight_gradient};
pub use forms::Forms;
pub(crate) use kernel::peak_rate;
pub(crate) use product::{Columns, Rows, multiply_rows, multiply_serial};
pub(crate) use target::{Sink, Target};

use crate::cpu::scratch::with_scratch;
use crate::element::{Element, bf16};
use crate::isa::{MatmulPath, matmul_path};
use crate::memory::Bytes;
use crate::parallel;

/// B operand of X·B for bf16, packed for the matrix unit: panels of 32 columns, in each of them pairs of k side by
/// side, k and n filled up with zeros to multiples of 32. The layout is private and the same for all paths.
#[derive(Clone, Debug)]
pub struct PackedMatrix {
    k: usize,
    n: usize,
    bytes: Bytes,
}

impl PackedMatrix {
    /// A zeroed matrix of `k` rows and `n` columns; its memory never moves afterwards.
    pub fn new(k: usize, n: usize) -> Self {
        Self { k, n, bytes: Bytes::new(pack::panels_len(k, n) * size_of::<bf16>()) }
    }

    /// Rows, the dimension that a product sums over.
    pub fn k(&self) -> usize {
        self.k
    }

    /// Columns of the product.
    pub fn n(&self) -> usize {
        self.n
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        self.bytes.len()
    }

    /// B = Wᵀ for a row-major f32 master weight `[n, k]`, rounded to bf16 (forward: y = x Wᵀ).
    pub fn pack_transposed(&mut self, w_nk: &[f32]) {
        assert_eq!(w_nk.len(), self.n * self.k, "weight is [n, k] = [{}, {}]", self.n, self.k);
        let (k, n) = (self.k, self.n);
        pack::columns_from_transposed(w_nk, k, n, self.panels_mut());
    }

    /// B = W as stored, row-major f32 `[k, n]`, rounded to bf16 (backward: dx = dy W).
    pub fn pack(&mut self, w_kn: &[f32]) {
        assert_eq!(w_kn.len(), self.n * self.k, "weight is [k, n] = [{}, {}]", self.k, self.n);
        let (k, n) = (self.k, self.n);
        pack::columns_from_rows(w_kn, k, n, self.panels_mut());
    }

    fn panels_mut(&mut self) -> &mut [bf16] {
        bytemuck::cast_slice_mut(&mut self.bytes)
    }

    pub(crate) fn columns(&self) -> Columns<'_> {
        Columns::new(bytemuck::cast_slice(&self.bytes), self.k, self.n)
    }
}

/// Where a product goes: row-major `[m, n]`.
#[derive(Debug)]
pub enum Output<'a> {
    /// Overwrite with f32.
    F32(&'a mut [f32]),
    /// Add to f32.
    F32Add(&'a mut [f32]),
    /// Overwrite with f32, on top of a base of the same shape.
    F32Onto {
        /// What the products are added to.
        base: &'a [f32],
        /// Where the sums go.
        out: &'a mut [f32],
    },
    /// Overwrite, rounded to bf16.
    Bf16(&'a mut [bf16]),
}

impl Output<'_> {
    fn target(self, m: usize, n: usize) -> Target {
        let check = |len: usize| assert_eq!(len, m * n, "output is [m, n] = [{m}, {n}]");
        let sink = match self {
            Output::F32(out) => {
                check(out.len());
                Sink::F32(out.as_mut_ptr())
            }
            Output::F32Add(out) => {
                check(out.len());
                Sink::add_to(out.as_mut_ptr())
            }
            Output::F32Onto { base, out } => {
                check(base.len());
                check(out.len());
                Sink::F32Add { base: base.as_ptr(), out: out.as_mut_ptr() }
            }
            Output::Bf16(out) => {
                check(out.len());
                Sink::Bf16(out.as_mut_ptr())
            }
        };
        Target::new(sink, n, n)
    }
}

/// out[m, n] (+)= x[m, k]·B (+ bias[n]). A row of the result has the same bits for every m.
pub fn matmul_bf16(x: &[bf16], m: usize, b: &PackedMatrix, bias: Option<&[f32]>, out: Output) {
    matmul_bf16_on(matmul_path(), x, m, b, bias, out);
}

pub(crate) fn matmul_bf16_on(
    path: MatmulPath,
    x: &[bf16],
    m: usize,
    b: &PackedMatrix,
    bias: Option<&[f32]>,
    out: Output,
) {
    assert_eq!(x.len(), m * b.k, "x is [m, k] = [{m}, {}]", b.k);
    let target = out.target(m, b.n);
    // SAFETY: `target` covers the whole borrowed output, and `b` has `b.n` columns.
    unsafe { multiply_rows(path, Rows::RowMajor { x, k: b.k, stride: b.k }, m, b.columns(), bias, target) }
}

/// Rows of a weight gradient's contraction that are summed before they are added to it.
const CONTRACTION: usize = 4096;

/// dw[n, k] += dyᵀ[n, m]·x[m, k], summed over the rows in order; `fresh` takes dw for zero, whatever stands there.
pub fn matmul_bf16_weight_gradient(dy: &[bf16], x: &[bf16], m: usize, n: usize, k: usize, fresh: bool, dw: &mut [f32]) {
    matmul_bf16_weight_gradient_on(matmul_path(), dy, x, m, n, k, fresh, dw);
}

pub(crate) fn matmul_bf16_weight_gradient_on(
    path: MatmulPath,
    dy: &[bf16],
    x: &[bf16],
    m: usize,
    n: usize,
    k: usize,
    fresh: bool,
    dw: &mut [f32],
) {
    assert_eq!(dy.len(), m * n, "dy is [m, n] = [{m}, {n}]");
    assert_eq!(x.len(), m * k, "x is [m, k] = [{m}, {k}]");
    assert_eq!(dw.len(), n * k, "dw is [n, k] = [{n}, {k}]");
    if fresh && m == 0 {
        dw.fill(0.0);
    }
    for first in (0..m).step_by(CONTRACTION) {
        let depth = CONTRACTION.min(m - first);
        let (dy, x) = (&dy[first * n..][..depth * n], &x[first * k..][..depth * k]);
        with_scratch(pack::panels_len(depth, k), |panels: &mut [bf16]| {
            pack::columns_from_rows(x, depth, k, panels);
            weight_gradient_of(path, dy, n, n, Columns::new(panels, depth, k), k, fresh && first == 0, dw);
        });
    }
}

/// dw[n, k] += dyᵀ·x for packed x, or just its value if `fresh`; `dy` has as many rows as x, `stride` apart.
pub(crate) fn weight_gradient_of(
    path: MatmulPath,
    dy: &[bf16],
    n: usize,
    stride: usize,
    x: Columns<'_>,
    k: usize,
    fresh: bool,
    dw: &mut [f32],
) {
    let out = dw.as_mut_ptr();
    let target =
        if fresh { Target::new(Sink::F32(out), k, k).not_read_soon() } else { Target::new(Sink::add_to(out), k, k) };
    // SAFETY: `target` covers the borrowed dw.
    unsafe { multiply_rows(path, Rows::Transposed { dy, stride }, n, x, None, target) }
}

/// db[n] += column sums of dy[m, n], rows in chunks of a fixed size.
pub fn bias_gradient<E: Element>(dy: &[E], m: usize, n: usize, db: &mut [f32]) {
    assert_eq!(dy.len(), m * n, "dy is [m, n] = [{m}, {n}]");
    assert_eq!(db.len(), n, "db is [n] = [{n}]");
    const ROWS: usize = 64;
    parallel::sum_rows(m, ROWS, db, |rows, partial| add_rows(&dy[rows.start * n..rows.end * n], partial));
}

crate::isa::multiversion! {
    fn add_rows<E: Element>(rows: &[E], sums: &mut [f32]) {
        for row in rows.chunks_exact(sums.len()) {
            for (sum, x) in sums.iter_mut().zip(row) {
                *sum += x.to_f32();
            }
        }
    }
}

#[cfg(test)]
mod tests;

//! Matrix products by cuBLASLt: bf16 or f32 operands, sums in f32, the bias added in the epilogue where the result is f32
//! (the library knows no f32 bias for bf16 results), else by a kernel of ours.
//! Which algorithm serves a shape is asked once and kept. Algorithms that sum in an order of chance are not asked for.
//! Cost: about ten microseconds of the host per product, a workspace of 32 MiB.

use std::collections::BTreeMap;
use std::ffi::c_void;
use std::sync::{Mutex, PoisonError};

use cudarc::cublaslt::result;
use cudarc::cublaslt::sys::{
    self, cublasComputeType_t as Compute, cublasLtEpilogue_t as Epilogue, cublasLtMatmulAlgo_t as Algorithm,
    cublasLtMatmulDescAttributes_t as Describe, cublasLtMatmulPreferenceAttributes_t as Prefer, cudaDataType_t as Type,
};
use cudarc::driver::sys::CUstream;

use super::engine::{Argument, Engine, Launch, Number, Operand, Product};
use super::error::GpuError;
use super::libraries::Library;
use super::sources::Module;

/// What the library recommends for the newest GPUs.
const WORKSPACE: usize = 32 << 20;

/// The library, the algorithms that it chose, its workspace.
pub(super) struct Products {
    handle: sys::cublasLtHandle_t,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    chosen: BTreeMap<Shape, Option<Algorithm>>,
    workspace: Option<u64>,
}

/// All that the choice of an algorithm depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Shape {
    sizes: [usize; 3],
    bf16: [bool; 2],
    transposed: [bool; 2],
    plus: bool,
    bias: bool,
    /// Bytes that the addresses of a, b, plus and out are multiples of.
    aligned: [u32; 4],
}

// SAFETY: the handle may be used from any thread; the rest is behind a lock.
unsafe impl Send for Products {}
// SAFETY: as above.
unsafe impl Sync for Products {}

fn failed(call: &'static str) -> impl Fn(result::CublasError) -> GpuError {
    move |error| GpuError::Call { call: call.into(), problem: format!("{error:?}") }
}

fn aligned(pointer: u64) -> u32 {
    1 << pointer.trailing_zeros().min(8)
}

fn shape_of(product: &Product) -> Shape {
    Shape {
        sizes: [product.m, product.n, product.k],
        bf16: [product.number == Number::Bf16, product.out_number == Number::Bf16],
        transposed: [product.a.transposed, product.b.transposed],
        plus: product.plus != 0,
        bias: product.bias != 0,
        aligned: [product.a.pointer, product.b.pointer, plus_of(product), product.out].map(aligned),
    }
}

/// What is added, of the layout of the result; where nothing is, the result stands for it and counts nothing.
fn plus_of(product: &Product) -> u64 {
    if product.plus == 0 { product.out } else { product.plus }
}

fn type_of(number: Number) -> Type {
    match number {
        Number::Bf16 => Type::CUDA_R_16BF,
        _ => Type::CUDA_R_32F,
    }
}

impl Products {
    pub(super) fn new() -> Result<Products, GpuError> {
        Library::Products.find()?;
        let handle = result::create_handle().map_err(failed("cublasLtCreate"))?;
        Ok(Products { handle, state: Mutex::default() })
    }

    /// The library reads columns where we have rows: `outᵀ = bᵀ·aᵀ`, so its first operand is our second.
    pub(super) fn multiply(&self, product: &Product, stream: CUstream, engine: &dyn Engine) -> Result<(), GpuError> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let workspace = match state.workspace {
            Some(workspace) => workspace,
            None => {
                let memory = engine.allocate(WORKSPACE)?.ok_or(GpuError::OutOfMemory {
                    asked: WORKSPACE,
                    free: 0,
                    total: 0,
                    used: 0,
                    held: 0,
                })?;
                *state.workspace.insert(memory)
            }
        };
        // The epilogue knows a bias of the result's type, read in vectors of 16 bytes.
        if product.bias != 0 && product.out_number == Number::F32 && product.bias.is_multiple_of(16) {
            let call = Call::new(product, true)?;
            if let Some(algorithm) = self.algorithm(&mut state, product, &call)? {
                match self.run(&call, product, &algorithm, workspace, stream) {
                    Ok(()) => return Ok(()),
                    // An algorithm that was recommended and is refused: what is wrong beside the epilogue is told below.
                    Err(_) => drop(state.chosen.insert(shape_of(product), None)),
                }
            }
        }
        let plain = Product { bias: 0, ..*product };
        let call = Call::new(&plain, false)?;
        let algorithm = self.algorithm(&mut state, &plain, &call)?.ok_or_else(|| GpuError::Call {
            call: "cublasLtMatmulAlgoGetHeuristic".into(),
            problem: format!("no algorithm for {plain:?}"),
        })?;
        self.run(&call, &plain, &algorithm, workspace, stream)?;
        if product.bias == 0 {
            return Ok(());
        }
        let count = product.m * product.n;
        let arguments = [
            Argument::Pointer(product.out),
            Argument::U64(count as u64),
            Argument::Pointer(product.bias),
            Argument::U32(product.n as u32),
        ];
        let kernel = format!("add_bias_{}", product.out_number.suffix());
        let grid = [count.div_ceil(256) as u32, 1];
        let (module, block, shared) = (Module::Elementwise, 256, 0);
        engine.launch(&Launch { module, kernel: &kernel, grid, block, shared, arguments: &arguments })
    }

    fn algorithm(&self, state: &mut State, product: &Product, call: &Call) -> Result<Option<Algorithm>, GpuError> {
        let shape = shape_of(product);
        if let Some(known) = state.chosen.get(&shape) {
            return Ok(*known);
        }
        let preference = Preference::new()?;
        let [a, b, plus, out] = shape.aligned;
        // No sums whose order is left to chance: split products are added up in f32 in the workspace, or not split.
        let schemes = sys::cublasLtReductionScheme_t::CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE as u32;
        preference.set(Prefer::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &WORKSPACE)?;
        preference.set(Prefer::CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, &schemes)?;
        preference.set(Prefer::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, &b)?;
        preference.set(Prefer::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, &a)?;
        preference.set(Prefer::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, &plus)?;
        preference.set(Prefer::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, &out)?;
        let Call { describe, a, b, out } = call;
        // SAFETY: all handles are alive.
        let answer =
            unsafe { result::get_matmul_algo_heuristic(self.handle, describe.0, a.0, b.0, out.0, out.0, preference.0) };
        // "Not supported" is an answer: the caller tries without the epilogue.
        let chosen = answer.ok().map(|answer| answer.algo);
        state.chosen.insert(shape, chosen);
        Ok(chosen)
    }

    fn run(
        &self,
        call: &Call,
        product: &Product,
        algorithm: &Algorithm,
        workspace: u64,
        stream: CUstream,
    ) -> Result<(), GpuError> {
        let (one, before) = (1f32, if product.plus != 0 { 1f32 } else { 0f32 });
        let out = product.out as *mut c_void;
        // SAFETY: handles are alive; `device.rs` promises that the operands have the lengths of the layouts.
        unsafe {
            result::matmul(
                self.handle,
                call.describe.0,
                std::ptr::from_ref(&one).cast(),
                std::ptr::from_ref(&before).cast(),
                product.b.pointer as *const c_void,
                call.a.0,
                product.a.pointer as *const c_void,
                call.b.0,
                plus_of(product) as *const c_void,
                call.out.0,
                out,
                call.out.0,
                algorithm,
                workspace as *mut c_void,
                WORKSPACE,
                stream.cast(),
            )
        }
        .map_err(failed("cublasLtMatmul"))
    }
}

/// Descriptions of one product.
struct Call {
    describe: Description,
    a: Layout,
    b: Layout,
    out: Layout,
}

impl Call {
    fn new(product: &Product, with_bias: bool) -> Result<Call, GpuError> {
        let Product { m, n, k, .. } = *product;
        let describe = Description::new()?;
        // Their first operand is our second. Rows of `[k, n]` are columns of `[n, k]`: read as it is; `[n, k]` is turned.
        let turn = |turned: bool| i32::from(turned);
        describe.set(Describe::CUBLASLT_MATMUL_DESC_TRANSA, &turn(product.b.transposed))?;
        describe.set(Describe::CUBLASLT_MATMUL_DESC_TRANSB, &turn(product.a.transposed))?;
        if with_bias {
            describe.set(Describe::CUBLASLT_MATMUL_DESC_EPILOGUE, &Epilogue::CUBLASLT_EPILOGUE_BIAS)?;
            describe.set(Describe::CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, &Type::CUDA_R_32F)?;
            describe.set(Describe::CUBLASLT_MATMUL_DESC_BIAS_POINTER, &product.bias)?;
        }
        let number = type_of(product.number);
        let stored = |operand: Operand, rows: usize, columns: usize| {
            let (rows, columns) = if operand.transposed { (columns, rows) } else { (rows, columns) };
            Layout::new(number, rows, columns)
        };
        Ok(Call {
            describe,
            a: stored(product.b, n, k)?,
            b: stored(product.a, k, m)?,
            out: Layout::new(type_of(product.out_number), n, m)?,
        })
    }
}

struct Description(sys::cublasLtMatmulDesc_t);

impl Description {
    fn new() -> Result<Self, GpuError> {
        // f32 products in full f32, not in TF32.
        let made = result::create_matmul_desc(Compute::CUBLAS_COMPUTE_32F, Type::CUDA_R_32F);
        made.map(Description).map_err(failed("cublasLtMatmulDescCreate"))
    }

    fn set<T>(&self, attribute: Describe, value: &T) -> Result<(), GpuError> {
        // SAFETY: the value lives during the call and has the size that is told.
        unsafe {
            result::set_matmul_desc_attribute(self.0, attribute, std::ptr::from_ref(value).cast(), size_of::<T>())
        }
        .map_err(failed("cublasLtMatmulDescSetAttribute"))
    }
}

impl Drop for Description {
    fn drop(&mut self) {
        // SAFETY: made once, destroyed once. An error here has no consequence.
        let _ = unsafe { result::destroy_matmul_desc(self.0) };
    }
}

struct Layout(sys::cublasLtMatrixLayout_t);

impl Layout {
    /// Columns without gaps.
    fn new(number: Type, rows: usize, columns: usize) -> Result<Self, GpuError> {
        let made = result::create_matrix_layout(number, rows as u64, columns as u64, rows as i64);
        made.map(Layout).map_err(failed("cublasLtMatrixLayoutCreate"))
    }
}

impl Drop for Layout {
    fn drop(&mut self) {
        // SAFETY: made once, destroyed once. An error here has no consequence.
        let _ = unsafe { result::destroy_matrix_layout(self.0) };
    }
}

struct Preference(sys::cublasLtMatmulPreference_t);

impl Preference {
    fn new() -> Result<Self, GpuError> {
        result::create_matmul_pref().map(Preference).map_err(failed("cublasLtMatmulPreferenceCreate"))
    }

    fn set<T>(&self, attribute: Prefer, value: &T) -> Result<(), GpuError> {
        // SAFETY: the value lives during the call and has the size that is told.
        unsafe {
            result::set_matmul_pref_attribute(self.0, attribute, std::ptr::from_ref(value).cast(), size_of::<T>())
        }
        .map_err(failed("cublasLtMatmulPreferenceSetAttribute"))
    }
}

impl Drop for Preference {
    fn drop(&mut self) {
        // SAFETY: made once, destroyed once. An error here has no consequence.
        let _ = unsafe { result::destroy_matmul_pref(self.0) };
    }
}

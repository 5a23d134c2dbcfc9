//! The host as a device: kernels are functions of a shared library that a test has made from the very same sources with
//! the system's C++ compiler (`tests/emulator`), products are plain loops.
//! Exists so that kernels, launches and everything above them can be tested where there is no GPU; nothing else uses it.
//! Cost: as slow as it looks.

use std::collections::BTreeMap;
use std::ffi::{CStr, CString, c_void};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::device::Device;
use super::engine::{Argument, Engine, Launch, MemoryInfo, Number, Operand, Product};
use super::error::GpuError;
use super::sources::Module;
use crate::element::{Element, bf16};

/// `emulate_NAME(grid x, grid y, threads, bytes of shared memory, pointers to the arguments)`
type Kernel = unsafe extern "C" fn(u32, u32, u32, u32, *const *const c_void);

/// Memory that the emulator pretends to have.
const TOTAL: usize = 4 << 30;
/// What fresh memory holds, so that reading before writing is seen: a NaN in every type.
const UNWRITTEN: u8 = 0xff;

struct Host {
    library: usize,
    order: i32,
    manner: Manner,
    used: Mutex<BTreeMap<u64, Fenced>>,
    recordings: Mutex<Recordings>,
}

/// How the host emulates.
#[derive(Clone, Copy)]
struct Manner {
    /// Memory is reused.
    arena: bool,
    /// Launches can be recorded.
    records: bool,
}

/// What is recorded, by value: what is repeated is exactly what was asked for.
#[derive(Default)]
struct Recordings {
    open: Option<Vec<Recorded>>,
    kept: BTreeMap<u64, Arc<Vec<Recorded>>>,
    next: u64,
}

enum Recorded {
    Launch { module: Module, kernel: String, grid: [u32; 2], block: u32, shared: u32, arguments: Vec<Argument> },
    Multiply(Product),
    Copy { from: u64, to: u64, bytes: usize },
    Zero { at: u64, bytes: usize },
}

/// A buffer that ends where memory ends: reading or writing behind it stops the program.
struct Fenced {
    map: *mut c_void,
    map_bytes: usize,
    bytes: usize,
}

// SAFETY: the pointer is an address that is only handed to `munmap`.
unsafe impl Send for Fenced {}

impl Device {
    /// The host as a device, with kernels from `library`. `order` is that of the threads of a block: 0 rising, 1 falling,
    /// 2 mixed anew in every round. No result may depend on it.
    pub fn emulated(library: &Path, order: i32) -> Result<Device, GpuError> {
        emulate(library, order, Manner { arena: false, records: true })
    }

    /// The same with the arena that a GPU has: memory is reused, and nothing stands behind a buffer's end.
    pub fn emulated_with_arena(library: &Path) -> Result<Device, GpuError> {
        emulate(library, 0, Manner { arena: true, records: true })
    }

    /// The same as [`Device::emulated`], but nothing can be recorded, as where a driver refuses it.
    pub fn emulated_without_recordings(library: &Path) -> Result<Device, GpuError> {
        emulate(library, 0, Manner { arena: false, records: false })
    }
}

fn emulate(library: &Path, order: i32, manner: Manner) -> Result<Device, GpuError> {
    let problem = |problem: String| GpuError::File { path: library.into(), problem };
    let name = CString::new(library.to_string_lossy().as_bytes()).map_err(|error| problem(error.to_string()))?;
    // SAFETY: the library is made by a test from our sources; it has no initialisers of its own.
    let handle = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
    if handle.is_null() {
        // SAFETY: after a failure `dlerror` returns a string that lives until the next call.
        let said = unsafe { CStr::from_ptr(libc::dlerror()) };
        return Err(problem(said.to_string_lossy().into_owned()));
    }
    let (used, recordings) = (Mutex::default(), Mutex::default());
    Ok(Device::new(Box::new(Host { library: handle as usize, order, manner, used, recordings })))
}

impl Host {
    fn symbol(&self, name: &str) -> Result<*mut c_void, GpuError> {
        let symbol = CString::new(name).expect("names hold no zero");
        // SAFETY: the handle is open and the name ends with a zero.
        let address = unsafe { libc::dlsym(self.library as *mut c_void, symbol.as_ptr()) };
        if address.is_null() {
            return Err(GpuError::Call { call: name.into(), problem: "the library has no such function".into() });
        }
        Ok(address)
    }

    fn recordings(&self) -> MutexGuard<'_, Recordings> {
        self.recordings.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes it down if a recording is open; says whether.
    fn recorded(&self, what: impl FnOnce() -> Recorded) -> bool {
        let mut recordings = self.recordings();
        recordings.open.as_mut().map(|open| open.push(what())).is_some()
    }
}

fn refused(call: &str, problem: &str) -> GpuError {
    GpuError::Call { call: call.into(), problem: problem.into() }
}

const PAGE: usize = 4096;

impl Engine for Host {
    fn name(&self) -> String {
        "the host, emulating".into()
    }

    fn allocate(&self, bytes: usize) -> Result<Option<u64>, GpuError> {
        let mut used = self.used.lock().expect("no holder panics");
        if used.values().map(|fenced| fenced.bytes).sum::<usize>() + bytes > TOTAL {
            return Ok(None);
        }
        let inside = bytes.next_multiple_of(PAGE);
        // SAFETY: a fresh private mapping; its last page is taken away from everybody, the rest is filled.
        unsafe {
            let protection = libc::PROT_READ | libc::PROT_WRITE;
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
            let map = libc::mmap(std::ptr::null_mut(), inside + PAGE, protection, flags, -1, 0);
            if map == libc::MAP_FAILED {
                return Ok(None);
            }
            libc::mprotect(map.byte_add(inside), PAGE, libc::PROT_NONE);
            std::ptr::write_bytes(map.cast::<u8>(), UNWRITTEN, inside);
            let pointer = map as u64 + (inside - bytes) as u64;
            used.insert(pointer, Fenced { map, map_bytes: inside + PAGE, bytes });
            Ok(Some(pointer))
        }
    }

    fn reuses(&self) -> bool {
        // Fresh memory every time: what is read after it was given back, or before it was written, is seen.
        self.manner.arena
    }

    fn free(&self, pointer: u64) {
        if let Some(fenced) = self.used.lock().expect("no holder panics").remove(&pointer) {
            // SAFETY: mapped by `allocate` with this size, unmapped once.
            unsafe { libc::munmap(fenced.map, fenced.map_bytes) };
        }
    }

    fn upload(&self, to: u64, bytes: &[u8]) -> Result<(), GpuError> {
        // SAFETY: `device.rs` promises that the memory is in use and large enough.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), to as *mut u8, bytes.len()) };
        Ok(())
    }

    fn download(&self, from: u64, bytes: &mut [u8]) -> Result<(), GpuError> {
        // SAFETY: as above.
        unsafe { std::ptr::copy_nonoverlapping(from as *const u8, bytes.as_mut_ptr(), bytes.len()) };
        Ok(())
    }

    fn copy(&self, from: u64, to: u64, bytes: usize) -> Result<(), GpuError> {
        if self.recorded(|| Recorded::Copy { from, to, bytes }) {
            return Ok(());
        }
        // SAFETY: as above.
        unsafe { std::ptr::copy(from as *const u8, to as *mut u8, bytes) };
        Ok(())
    }

    fn zero(&self, at: u64, bytes: usize) -> Result<(), GpuError> {
        if self.recorded(|| Recorded::Zero { at, bytes }) {
            return Ok(());
        }
        // SAFETY: as above.
        unsafe { std::ptr::write_bytes(at as *mut u8, 0, bytes) };
        Ok(())
    }

    fn launch(&self, launch: &Launch) -> Result<(), GpuError> {
        let Launch { module, kernel, grid, block, shared, arguments } = *launch;
        let record = || {
            let (kernel, arguments) = (kernel.to_string(), arguments.to_vec());
            Recorded::Launch { module, kernel, grid, block, shared, arguments }
        };
        if self.recorded(record) {
            return Ok(());
        }
        let kernel = self.symbol(&format!("emulate_{}", launch.kernel))?;
        let order = self.symbol("emulate_order")?;
        let pointers: Vec<*const c_void> = launch.arguments.iter().map(Argument::address).collect();
        // The library runs one kernel at a time.
        static ONE: Mutex<()> = Mutex::new(());
        let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: functions of these names have these types by construction of the library; the arguments have the
        // number and types of the kernel's parameters, which tests of every op hold.
        unsafe {
            std::mem::transmute::<*mut c_void, unsafe extern "C" fn(i32)>(order)(self.order);
            let kernel = std::mem::transmute::<*mut c_void, Kernel>(kernel);
            kernel(launch.grid[0], launch.grid[1], launch.block, launch.shared, pointers.as_ptr());
        }
        Ok(())
    }

    fn multiply(&self, product: &Product) -> Result<(), GpuError> {
        if self.recorded(|| Recorded::Multiply(*product)) {
            return Ok(());
        }
        match product.number {
            Number::F32 => multiply::<f32>(product),
            Number::Bf16 => multiply::<bf16>(product),
            Number::U32 | Number::F64 => panic!("products are of f32 or bf16"),
        }
        Ok(())
    }

    fn begin_recording(&self) -> Result<(), GpuError> {
        if !self.manner.records {
            return Err(refused("begin_recording", "this device records nothing"));
        }
        let open = &mut self.recordings().open;
        if open.is_some() {
            return Err(refused("begin_recording", "a recording is open"));
        }
        *open = Some(Vec::new());
        Ok(())
    }

    fn end_recording(&self) -> Result<u64, GpuError> {
        let mut recordings = self.recordings();
        let list = recordings.open.take().ok_or_else(|| refused("end_recording", "no recording is open"))?;
        recordings.next += 1;
        let handle = recordings.next;
        recordings.kept.insert(handle, Arc::new(list));
        Ok(handle)
    }

    fn replay(&self, recording: u64) -> Result<(), GpuError> {
        let list = self.recordings().kept.get(&recording).cloned();
        let list = list.ok_or_else(|| refused("replay", "there is no such recording"))?;
        for recorded in list.iter() {
            match recorded {
                Recorded::Launch { module, kernel, grid, block, shared, arguments } => self.launch(&Launch {
                    module: *module,
                    kernel,
                    grid: *grid,
                    block: *block,
                    shared: *shared,
                    arguments,
                })?,
                Recorded::Multiply(product) => self.multiply(product)?,
                Recorded::Copy { from, to, bytes } => self.copy(*from, *to, *bytes)?,
                Recorded::Zero { at, bytes } => self.zero(*at, *bytes)?,
            }
        }
        Ok(())
    }

    fn forget(&self, recording: u64) {
        self.recordings().kept.remove(&recording);
    }

    fn synchronize(&self) -> Result<(), GpuError> {
        Ok(())
    }

    fn memory(&self) -> Result<MemoryInfo, GpuError> {
        let used: usize = self.used.lock().expect("no holder panics").values().map(|fenced| fenced.bytes).sum();
        Ok(MemoryInfo { free: TOTAL - used, total: TOTAL })
    }
}

/// Rows of an operand in f32, the right way round.
fn gathered<E: Element>(operand: Operand, rows: usize, columns: usize) -> Vec<f32> {
    // SAFETY: `device.rs` has checked the lengths.
    let stored = unsafe { std::slice::from_raw_parts(operand.pointer as *const E, rows * columns) };
    let mut values = Vec::with_capacity(rows * columns);
    for row in 0..rows {
        for column in 0..columns {
            let at = if operand.transposed { column * rows + row } else { row * columns + column };
            values.push(stored[at].to_f32());
        }
    }
    values
}

fn multiply<E: Element>(product: &Product) {
    let Product { m, n, k, .. } = *product;
    let a = gathered::<E>(product.a, m, k);
    let b = gathered::<E>(product.b, k, n);
    let mut sums = vec![0f32; m * n];
    for (row, sums) in sums.chunks_exact_mut(n).enumerate() {
        for depth in 0..k {
            let factor = a[row * k + depth];
            for (sum, value) in sums.iter_mut().zip(&b[depth * n..][..n]) {
                *sum = factor.mul_add(*value, *sum);
            }
        }
    }
    if product.bias != 0 {
        // SAFETY: as above.
        let bias = unsafe { std::slice::from_raw_parts(product.bias as *const f32, n) };
        sums.chunks_exact_mut(n).flat_map(|row| row.iter_mut().zip(bias)).for_each(|(sum, bias)| *sum += bias);
    }
    match product.out_number {
        Number::F32 => put::<f32>(product, &sums),
        Number::Bf16 => put::<bf16>(product, &sums),
        Number::U32 | Number::F64 => panic!("products give f32 or bf16"),
    }
}

fn put<E: Element>(product: &Product, sums: &[f32]) {
    // SAFETY: `device.rs` has checked the lengths.
    unsafe {
        let (out, plus) = (product.out as *mut E, product.plus as *const E);
        for (at, sum) in sums.iter().enumerate() {
            let before = if product.plus != 0 { (*plus.add(at)).to_f32() } else { 0.0 };
            *out.add(at) = E::from_f32(before + sum);
        }
    }
}

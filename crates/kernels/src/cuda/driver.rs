//! An NVIDIA GPU through its driver: one context, one stream, modules that are loaded when a kernel of theirs is first
//! launched.
//! Knows calls of the driver; knows no ops. Cost: a few microseconds per launch; downloads wait for the stream.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::ffi::{CStr, CString, c_void};
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use cudarc::driver::sys::{
    self, CUcontext, CUdevice_attribute_enum as Attribute, CUfunction, CUmodule, CUresult, CUstream,
};

use super::compile;
use super::device::Device;
use super::engine::{Argument, Engine, Launch, MemoryInfo, Product};
use super::error::GpuError;
use super::graph;
use super::libraries::Library;
use super::products::Products;
use super::sources::Module;

/// What is known of a GPU without using it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Card {
    /// Its number.
    pub index: usize,
    /// Its name.
    pub name: String,
    /// Compute capability, 80 for 8.0.
    pub capability: i32,
    /// Memory.
    pub bytes: usize,
}

/// Version of the driver, 13000 for 13.0.
pub fn version() -> Result<i32, GpuError> {
    start()?;
    let mut version = 0;
    // SAFETY: the driver is there and the pointer is to a live integer.
    check("cuDriverGetVersion", unsafe { sys::cuDriverGetVersion(&mut version) })?;
    Ok(version)
}

/// The GPUs that the driver sees. None if there is a driver and no GPU.
pub fn cards() -> Result<Vec<Card>, GpuError> {
    start()?;
    let mut count = 0;
    // SAFETY: the driver is there and started; pointers are to live values, the name has the length that is told.
    unsafe {
        check("cuDeviceGetCount", sys::cuDeviceGetCount(&mut count))?;
        let mut cards = Vec::new();
        for index in 0..count {
            let mut device = 0;
            check("cuDeviceGet", sys::cuDeviceGet(&mut device, index))?;
            let mut name = [0u8; 256];
            check("cuDeviceGetName", sys::cuDeviceGetName(name.as_mut_ptr().cast(), 255, device))?;
            let name = CStr::from_bytes_until_nul(&name).unwrap_or_default().to_string_lossy().into_owned();
            let (mut major, mut minor, mut bytes) = (0, 0, 0);
            let ask = sys::cuDeviceGetAttribute;
            let attribute = Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR;
            check("cuDeviceGetAttribute", ask(&mut major, attribute, device))?;
            let attribute = Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR;
            check("cuDeviceGetAttribute", ask(&mut minor, attribute, device))?;
            check("cuDeviceTotalMem", sys::cuDeviceTotalMem_v2(&mut bytes, device))?;
            cards.push(Card { index: index as usize, name, capability: major * 10 + minor, bytes });
        }
        Ok(cards)
    }
}

/// Finds and starts the driver. Without a GPU it answers "no device", which is no fault.
fn start() -> Result<(), GpuError> {
    Library::Driver.find()?;
    // SAFETY: the driver is there.
    match unsafe { sys::cuInit(0) } {
        CUresult::CUDA_ERROR_NO_DEVICE => Err(GpuError::NoDevice { index: 0, count: 0 }),
        result => check("cuInit", result),
    }
}

pub(super) fn check(call: &str, result: CUresult) -> Result<(), GpuError> {
    if result == CUresult::CUDA_SUCCESS {
        return Ok(());
    }
    let mut text = std::ptr::null();
    // SAFETY: the driver answers with a string that lives as long as it does, or leaves the pointer null.
    let problem = unsafe {
        sys::cuGetErrorString(result, &mut text);
        if text.is_null() { format!("{result:?}") } else { CStr::from_ptr(text).to_string_lossy().into_owned() }
    };
    Err(GpuError::Call { call: call.into(), problem })
}

struct Cuda {
    card: Card,
    driver: i32,
    context: CUcontext,
    stream: CUstream,
    modules: Mutex<Modules>,
    products: Products,
    staging: Mutex<Staging>,
    cache: Option<PathBuf>,
}

/// Locked memory of the host through which small things go down: the copy is behind the host's back, and what was handed in
/// may go away at once. Of memory that is not locked the driver does not promise that.
struct Staging {
    ring: *mut c_void,
    next: usize,
}

/// Bytes of the ring, and of the largest thing that goes through it.
const RING: usize = 16 << 20;
const MOST_STAGED: usize = 1 << 20;

#[derive(Default)]
struct Modules {
    modules: BTreeMap<Module, Loaded>,
    functions: BTreeMap<(Module, String), Function>,
}

struct Loaded(CUmodule);

#[derive(Clone, Copy)]
struct Function {
    function: CUfunction,
    /// Bytes of dynamic shared memory that it has been allowed.
    shared: u32,
}

// SAFETY: handles of the driver may be used from any thread; the maps are behind a lock.
unsafe impl Send for Cuda {}
// SAFETY: as above; every call makes the context current first.
unsafe impl Sync for Cuda {}
// SAFETY: as above.
unsafe impl Send for Modules {}
// SAFETY: the ring is memory of the process, used behind a lock.
unsafe impl Send for Staging {}

impl Device {
    /// GPU number `index`.
    pub fn cuda(index: usize) -> Result<Device, GpuError> {
        let cards = match cards() {
            Err(GpuError::NoDevice { count, .. }) => return Err(GpuError::NoDevice { index, count }),
            cards => cards?,
        };
        let count = cards.len();
        let card = cards.into_iter().nth(index).ok_or(GpuError::NoDevice { index, count })?;
        if card.capability < 80 {
            let (major, minor) = (card.capability / 10, card.capability % 10);
            return Err(GpuError::TooOld { index, name: card.name, major, minor });
        }
        Library::Compiler.find()?;
        let driver = version()?;
        let compiler = compile::version()?.0;
        if driver / 1000 < compiler {
            // Older drivers refuse code of a newer compiler.
            return Err(GpuError::OldDriver { driver: [driver / 1000, driver % 1000 / 10], compiler });
        }
        let mut context: CUcontext = std::ptr::null_mut();
        let mut stream: CUstream = std::ptr::null_mut();
        // SAFETY: the driver is started and the GPU exists; the context is the process's own and lives as long.
        unsafe {
            let mut device = 0;
            check("cuDeviceGet", sys::cuDeviceGet(&mut device, index as i32))?;
            check("cuDevicePrimaryCtxRetain", sys::cuDevicePrimaryCtxRetain(&mut context, device))?;
            check("cuCtxSetCurrent", sys::cuCtxSetCurrent(context))?;
            const NON_BLOCKING: u32 = 1;
            check("cuStreamCreate", sys::cuStreamCreate(&mut stream, NON_BLOCKING))?;
        }
        let products = Products::new()?;
        let modules = Mutex::default();
        Ok(Device::new(Box::new(Cuda {
            card,
            driver,
            context,
            stream,
            modules,
            products,
            staging: Mutex::new(Staging { ring: std::ptr::null_mut(), next: 0 }),
            cache: compile::cache_folder(),
        })))
    }
}

fn load(image: &[u8]) -> Result<CUmodule, GpuError> {
    let mut module: CUmodule = std::ptr::null_mut();
    // SAFETY: the image is machine code or zero-terminated PTX that outlives the call.
    check("cuModuleLoadData", unsafe { sys::cuModuleLoadData(&mut module, image.as_ptr().cast()) })?;
    Ok(module)
}

impl Cuda {
    /// Puts `bytes` into the ring and gives their place there; none if there is no ring.
    fn stage(&self, staging: &mut Staging, bytes: &[u8]) -> Result<Option<*const c_void>, GpuError> {
        if staging.ring.is_null() {
            // SAFETY: the pointer is to a live pointer. Where there is no such memory, it stays null.
            if unsafe { sys::cuMemHostAlloc(&mut staging.ring, RING, 0) } != CUresult::CUDA_SUCCESS {
                staging.ring = std::ptr::null_mut();
                return Ok(None);
            }
        }
        if staging.next + bytes.len() > RING {
            // Round again, when everything that is in the ring has gone down.
            self.synchronize()?;
            staging.next = 0;
        }
        // SAFETY: there is room behind `next`, and nothing that is still under way lies there.
        let place = unsafe {
            let place = staging.ring.byte_add(staging.next);
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), place.cast::<u8>(), bytes.len());
            place
        };
        staging.next += bytes.len().next_multiple_of(64);
        Ok(Some(place.cast_const()))
    }

    /// Makes the context current on this thread.
    fn enter(&self) -> Result<(), GpuError> {
        // SAFETY: the context lives as long as the process.
        check("cuCtxSetCurrent", unsafe { sys::cuCtxSetCurrent(self.context) })
    }

    fn function(&self, launch: &Launch) -> Result<CUfunction, GpuError> {
        let mut guard = self.modules.lock().unwrap_or_else(PoisonError::into_inner);
        let modules = &mut *guard;
        let key = (launch.module, launch.kernel.to_string());
        let known = match modules.functions.get(&key) {
            Some(function) => *function,
            None => {
                if let Entry::Vacant(place) = modules.modules.entry(launch.module) {
                    let folder = self.cache.as_deref();
                    let image = compile::image(launch.module, self.card.capability, self.driver, folder)?;
                    let module = match load(&image.bytes) {
                        // A file of the cache that is not what was written must not stop every later run.
                        Err(_) if image.cached => load(&compile::compile(launch.module, self.card.capability)?)?,
                        loaded => loaded?,
                    };
                    place.insert(Loaded(module));
                }
                let name = CString::new(launch.kernel).expect("names hold no zero");
                let mut function: CUfunction = std::ptr::null_mut();
                // SAFETY: the module is loaded and never unloaded.
                check(&format!("cuModuleGetFunction({})", launch.kernel), unsafe {
                    sys::cuModuleGetFunction(&mut function, modules.modules[&launch.module].0, name.as_ptr())
                })?;
                Function { function, shared: 0 }
            }
        };
        // Above 48 KiB a kernel must be allowed its shared memory.
        const FREE: u32 = 40 << 10;
        let mut known = known;
        if launch.shared > FREE && launch.shared > known.shared {
            let attribute = sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            // SAFETY: the function is of a loaded module.
            check(&format!("cuFuncSetAttribute({}, {} bytes)", launch.kernel, launch.shared), unsafe {
                sys::cuFuncSetAttribute(known.function, attribute, launch.shared as i32)
            })?;
            known.shared = launch.shared;
        }
        modules.functions.insert(key, known);
        Ok(known.function)
    }
}

impl Engine for Cuda {
    fn name(&self) -> String {
        let Card { index, name, capability, .. } = &self.card;
        format!("cuda:{index} ({name}, sm_{capability})")
    }

    fn allocate(&self, bytes: usize) -> Result<Option<u64>, GpuError> {
        self.enter()?;
        let mut pointer = 0;
        // SAFETY: the pointer is to a live integer.
        match unsafe { sys::cuMemAlloc_v2(&mut pointer, bytes) } {
            CUresult::CUDA_ERROR_OUT_OF_MEMORY => Ok(None),
            result => check("cuMemAlloc", result).map(|()| Some(pointer)),
        }
    }

    fn free(&self, pointer: u64) {
        // SAFETY: allocated by `allocate`, freed once; the driver waits for work that uses it.
        unsafe {
            if sys::cuCtxSetCurrent(self.context) == CUresult::CUDA_SUCCESS {
                sys::cuStreamSynchronize(self.stream);
                sys::cuMemFree_v2(pointer);
            }
        }
    }

    fn upload(&self, to: u64, bytes: &[u8]) -> Result<(), GpuError> {
        self.enter()?;
        let mut staging = self.staging.lock().unwrap_or_else(PoisonError::into_inner);
        let staged = if bytes.len() <= MOST_STAGED { self.stage(&mut staging, bytes)? } else { None };
        let from = staged.unwrap_or(bytes.as_ptr().cast());
        // SAFETY: `device.rs` promises room; the ring stays, and other memory stays until the stream has been waited for.
        check("cuMemcpyHtoDAsync", unsafe { sys::cuMemcpyHtoDAsync_v2(to, from, bytes.len(), self.stream) })?;
        if staged.is_some() { Ok(()) } else { self.synchronize() }
    }

    fn download(&self, from: u64, bytes: &mut [u8]) -> Result<(), GpuError> {
        self.enter()?;
        // SAFETY: `device.rs` promises the length; the slice lives until the stream has been waited for.
        check("cuMemcpyDtoHAsync", unsafe {
            sys::cuMemcpyDtoHAsync_v2(bytes.as_mut_ptr().cast(), from, bytes.len(), self.stream)
        })?;
        self.synchronize()
    }

    fn copy(&self, from: u64, to: u64, bytes: usize) -> Result<(), GpuError> {
        self.enter()?;
        // SAFETY: `device.rs` promises both lengths.
        check("cuMemcpyDtoDAsync", unsafe { sys::cuMemcpyDtoDAsync_v2(to, from, bytes, self.stream) })
    }

    fn zero(&self, at: u64, bytes: usize) -> Result<(), GpuError> {
        self.enter()?;
        // SAFETY: `device.rs` promises the length.
        check("cuMemsetD8Async", unsafe { sys::cuMemsetD8Async(at, 0, bytes, self.stream) })
    }

    fn launch(&self, launch: &Launch) -> Result<(), GpuError> {
        self.enter()?;
        let function = self.function(launch)?;
        let mut pointers: Vec<*mut c_void> =
            launch.arguments.iter().map(|argument| Argument::address(argument).cast_mut()).collect();
        let ([x, y], none) = (launch.grid, std::ptr::null_mut());
        // SAFETY: the arguments have the number and types of the kernel's parameters, which tests of every op hold; the
        // driver copies them before the call returns.
        check(&format!("launch of {}", launch.kernel), unsafe {
            sys::cuLaunchKernel(
                function,
                x,
                y,
                1,
                launch.block,
                1,
                1,
                launch.shared,
                self.stream,
                pointers.as_mut_ptr(),
                none,
            )
        })
    }

    fn multiply(&self, product: &Product) -> Result<(), GpuError> {
        self.enter()?;
        self.products.multiply(product, self.stream, self)
    }

    fn begin_recording(&self) -> Result<(), GpuError> {
        self.enter()?;
        graph::begin(self.stream)
    }

    fn end_recording(&self) -> Result<u64, GpuError> {
        self.enter()?;
        graph::end(self.stream)
    }

    fn replay(&self, recording: u64) -> Result<(), GpuError> {
        self.enter()?;
        graph::launch(recording, self.stream)
    }

    fn forget(&self, recording: u64) {
        if self.enter().is_ok() {
            graph::forget(recording);
        }
    }

    fn synchronize(&self) -> Result<(), GpuError> {
        self.enter()?;
        // SAFETY: the stream lives as long as the engine.
        check("cuStreamSynchronize", unsafe { sys::cuStreamSynchronize(self.stream) })
    }

    fn memory(&self) -> Result<MemoryInfo, GpuError> {
        self.enter()?;
        let (mut free, mut total) = (0, 0);
        // SAFETY: the pointers are to live integers.
        check("cuMemGetInfo", unsafe { sys::cuMemGetInfo_v2(&mut free, &mut total) })?;
        Ok(MemoryInfo { free, total })
    }
}

//! Compiles kernels at run time with NVRTC, and keeps the results on disk by source, compiler and architecture.
//! Knows sources and files; runs nothing on a GPU and needs none.
//! Cost: seconds per module the first time on a machine, a file read afterwards.

use std::ffi::{CStr, CString, c_char, c_int};
use std::path::{Path, PathBuf};

use cudarc::nvrtc::sys;

use super::error::GpuError;
use super::libraries::Library;
use super::sources::Module;

/// What the driver loads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// Machine code, or PTX with its final zero.
    pub bytes: Vec<u8>,
    /// Whether it came from the cache.
    pub cached: bool,
}

/// Version of the compiler.
pub fn version() -> Result<(i32, i32), GpuError> {
    Library::Compiler.find()?;
    let (mut major, mut minor) = (0, 0);
    // SAFETY: the library is there and the pointers are to live integers.
    check("nvrtcVersion", unsafe { sys::nvrtcVersion(&mut major, &mut minor) })?;
    Ok((major, minor))
}

/// Compute capabilities that the compiler makes machine code for, ascending (80 is 8.0).
pub fn architectures() -> Result<Vec<i32>, GpuError> {
    Library::Compiler.find()?;
    let mut count = 0;
    // SAFETY: the library is there; the second call gets as much room as the first asked for.
    unsafe {
        check("nvrtcGetNumSupportedArchs", sys::nvrtcGetNumSupportedArchs(&mut count))?;
        let mut all: Vec<c_int> = vec![0; count as usize];
        check("nvrtcGetSupportedArchs", sys::nvrtcGetSupportedArchs(all.as_mut_ptr()))?;
        Ok(all)
    }
}

/// The module for a compute capability: from the cache in `folder`, or compiled and put there. `driver` is the driver's
/// version, which is part of the key.
pub fn image(module: Module, capability: i32, driver: i32, folder: Option<&Path>) -> Result<Image, GpuError> {
    let (major, minor) = version()?;
    let source = module.source();
    let key = fingerprint(&format!("{major}.{minor} {driver} sm_{capability}\n{source}"));
    let file = folder.map(|folder| folder.join(format!("{}-sm_{capability}-{key:032x}.bin", module.name())));
    if let Some(file) = &file
        && let Ok(bytes) = std::fs::read(file)
        && !bytes.is_empty()
    {
        return Ok(Image { bytes, cached: true });
    }
    let bytes = compile(module, capability)?;
    if let Some(file) = &file {
        keep(file, &bytes)?;
    }
    Ok(Image { bytes, cached: false })
}

/// Compiles without looking at the cache: machine code where the compiler knows the architecture, else PTX for the
/// newest that it knows below, which the driver translates.
pub fn compile(module: Module, capability: i32) -> Result<Vec<u8>, GpuError> {
    let known = architectures()?;
    let machine_code = known.contains(&capability);
    let architecture = if machine_code {
        format!("sm_{capability}")
    } else {
        let nearest = known.iter().rev().find(|known| **known < capability).or(known.last()).copied().unwrap_or(80);
        format!("compute_{nearest}")
    };
    let options =
        [format!("--gpu-architecture={architecture}"), "--std=c++17".into(), "--extra-device-vectorization".into()];
    let text = |text: String| CString::new(text).expect("sources and options hold no zero");
    let (source, name) = (text(module.source()), text(format!("{}.cu", module.name())));
    let options: Vec<CString> = options.into_iter().map(text).collect();
    let pointers: Vec<*const c_char> = options.iter().map(|option| option.as_ptr()).collect();
    let mut program = Program(std::ptr::null_mut());
    // SAFETY: the library is there (`architectures` asked it); all strings live until the program is destroyed, and
    // buffers are as long as the library asks.
    unsafe {
        let none = std::ptr::null();
        check(
            "nvrtcCreateProgram",
            sys::nvrtcCreateProgram(&mut program.0, source.as_ptr(), name.as_ptr(), 0, none, none),
        )?;
        let result = sys::nvrtcCompileProgram(program.0, pointers.len() as c_int, pointers.as_ptr());
        if result != sys::nvrtcResult::NVRTC_SUCCESS {
            let mut len = 0;
            check("nvrtcGetProgramLogSize", sys::nvrtcGetProgramLogSize(program.0, &mut len))?;
            let mut log = vec![0u8; len.max(1)];
            check("nvrtcGetProgramLog", sys::nvrtcGetProgramLog(program.0, log.as_mut_ptr().cast()))?;
            let log = String::from_utf8_lossy(&log).trim_end_matches('\0').to_string();
            return Err(GpuError::Compile { module: module.name(), architecture, log });
        }
        let mut len = 0;
        let mut bytes;
        if machine_code {
            check("nvrtcGetCUBINSize", sys::nvrtcGetCUBINSize(program.0, &mut len))?;
            bytes = vec![0u8; len];
            check("nvrtcGetCUBIN", sys::nvrtcGetCUBIN(program.0, bytes.as_mut_ptr().cast()))?;
        } else {
            check("nvrtcGetPTXSize", sys::nvrtcGetPTXSize(program.0, &mut len))?;
            bytes = vec![0u8; len];
            check("nvrtcGetPTX", sys::nvrtcGetPTX(program.0, bytes.as_mut_ptr().cast()))?;
        }
        Ok(bytes)
    }
}

struct Program(sys::nvrtcProgram);

impl Drop for Program {
    fn drop(&mut self) {
        if !self.0.is_null() {
            // SAFETY: made by nvrtcCreateProgram and destroyed once.
            unsafe { sys::nvrtcDestroyProgram(&mut self.0) };
        }
    }
}

fn check(call: &str, result: sys::nvrtcResult) -> Result<(), GpuError> {
    if result == sys::nvrtcResult::NVRTC_SUCCESS {
        return Ok(());
    }
    // SAFETY: the library returns a string that lives as long as it does.
    let problem = unsafe { CStr::from_ptr(sys::nvrtcGetErrorString(result)) };
    Err(GpuError::Call { call: call.into(), problem: problem.to_string_lossy().into_owned() })
}

/// Where compiled kernels are kept; none where no home is known.
pub fn cache_folder() -> Option<PathBuf> {
    let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    variable("FOVEATE_KERNEL_CACHE")
        .or_else(|| variable("XDG_CACHE_HOME").map(|cache| cache.join("foveate/kernels")))
        .or_else(|| variable("HOME").map(|home| home.join(".cache/foveate/kernels")))
}

/// Written aside and renamed: another process sees the whole file or none.
fn keep(file: &Path, bytes: &[u8]) -> Result<(), GpuError> {
    let wrong = |error: std::io::Error| GpuError::File { path: file.into(), problem: error.to_string() };
    if let Some(folder) = file.parent() {
        std::fs::create_dir_all(folder).map_err(wrong)?;
    }
    let aside = file.with_extension(format!("{}.part", std::process::id()));
    std::fs::write(&aside, bytes).map_err(wrong)?;
    std::fs::rename(&aside, file).map_err(wrong)
}

/// FNV-1a over 128 bits: names files, guards nothing.
fn fingerprint(text: &str) -> u128 {
    text.bytes().fold(0x6c62_272e_07bb_0142_62b8_2175_6295_c58d, |hash, byte| {
        (hash ^ u128::from(byte)).wrapping_mul(0x0000_0000_0100_0000_0000_0000_0000_013b)
    })
}

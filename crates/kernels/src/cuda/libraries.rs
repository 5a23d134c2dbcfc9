//! Finds the three libraries of a GPU at run time: driver, compiler (NVRTC), matrix products (cuBLASLt).
//! Knows file names and folders; opens nothing that was not asked for, and never fails to start without them.
//! Cost: a look into a few folders, once per library.
//!
//! Order of search: the folders in `FOVEATE_CUDA_LIBRARIES`, the system's loader, CUDA toolkits, and the
//! `nvidia/*/lib` folders of the Python wheels that PyTorch brings along. A library found outside the loader's own path
//! is opened by its full path first; the loader then answers the plain name with it.

use std::ffi::CString;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use super::error::GpuError;

/// One of the libraries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Library {
    /// `libcuda`, which comes with the kernel driver.
    Driver,
    /// `libnvrtc`, the run-time compiler.
    Compiler,
    /// `libcublasLt`, matrix products.
    Products,
}

impl Library {
    /// All of them.
    pub const ALL: [Library; 3] = [Library::Driver, Library::Compiler, Library::Products];

    /// Name for people.
    pub fn name(self) -> &'static str {
        match self {
            Library::Driver => "the CUDA driver",
            Library::Compiler => "NVRTC",
            Library::Products => "cuBLASLt",
        }
    }

    /// File names, the preferred one first. The bindings know these and no others.
    fn files(self) -> &'static [&'static str] {
        match self {
            Library::Driver => &["libcuda.so", "libcuda.so.1"],
            Library::Compiler => &["libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so"],
            Library::Products => &["libcublasLt.so.13", "libcublasLt.so.12", "libcublasLt.so"],
        }
    }

    fn hint(self) -> &'static str {
        match self {
            Library::Driver => "set device = \"cpu\"; a GPU needs NVIDIA's driver, version 580 or newer",
            Library::Compiler => {
                "install a CUDA toolkit or the Python package nvidia-cuda-nvrtc, or name a folder in \
                 FOVEATE_CUDA_LIBRARIES; `foveate doctor` says where it was looked for"
            }
            Library::Products => {
                "install a CUDA toolkit or the Python package nvidia-cublas, or name a folder in \
                 FOVEATE_CUDA_LIBRARIES; `foveate doctor` says where it was looked for"
            }
        }
    }

    /// Where it is; opened once, and kept open.
    pub fn find(self) -> Result<Found, GpuError> {
        static FOUND: [OnceLock<Result<Found, GpuError>>; 3] = [OnceLock::new(), OnceLock::new(), OnceLock::new()];
        FOUND[self as usize].get_or_init(|| self.search()).clone()
    }

    fn search(self) -> Result<Found, GpuError> {
        let named = folders_named();
        let mut problem = String::new();
        for path in named.iter().flat_map(|folder| self.candidates(folder)) {
            match open(&path.to_string_lossy()) {
                Ok(()) => {
                    self.open_companions(&path);
                    return self.known(Found::File(path));
                }
                Err(said) => problem = said,
            }
        }
        for file in self.files() {
            if open(file).is_ok() {
                return self.known(Found::Loader(file));
            }
        }
        for path in usual_folders().iter().flat_map(|folder| self.candidates(folder)) {
            match open(&path.to_string_lossy()) {
                Ok(()) => {
                    self.open_companions(&path);
                    return self.known(Found::File(path));
                }
                Err(said) => problem = said,
            }
        }
        Err(GpuError::Library { library: self.name(), problem, hint: self.hint() })
    }

    /// NVRTC opens a second library by its plain name when it first compiles, which works if that is open already.
    fn open_companions(self, path: &Path) {
        if self == Library::Compiler
            && let Some(folder) = path.parent()
        {
            for companion in children(folder, "libnvrtc-builtins.so") {
                // If this fails, compiling says what is missing.
                let _ = open(&companion.to_string_lossy());
            }
        }
    }

    fn candidates(self, folder: &Path) -> Vec<PathBuf> {
        self.files().iter().map(|file| folder.join(file)).filter(|path| path.exists()).collect()
    }

    /// The bindings panic if they do not find what we found, so they are asked first.
    fn known(self, found: Found) -> Result<Found, GpuError> {
        // SAFETY: these open a library and look at nothing in it.
        let present = unsafe {
            match self {
                Library::Driver => cudarc::driver::sys::is_culib_present(),
                Library::Compiler => cudarc::nvrtc::sys::is_culib_present(),
                Library::Products => cudarc::cublaslt::sys::is_culib_present(),
            }
        };
        let problem = || format!("{found} opens, but not under a name that the bindings know");
        if present {
            Ok(found)
        } else {
            Err(GpuError::Library { library: self.name(), problem: problem(), hint: self.hint() })
        }
    }
}

/// Where a library was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// The system's loader knows it by this name.
    Loader(&'static str),
    /// A file.
    File(PathBuf),
}

impl std::fmt::Display for Found {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Found::Loader(name) => write!(out, "{name} (system)"),
            Found::File(path) => write!(out, "{}", path.display()),
        }
    }
}

/// Folders that the person named.
fn folders_named() -> Vec<PathBuf> {
    std::env::var_os("FOVEATE_CUDA_LIBRARIES").map(|list| std::env::split_paths(&list).collect()).unwrap_or_default()
}

/// Folders of toolkits and of Python environments.
pub fn usual_folders() -> Vec<PathBuf> {
    let mut folders = Vec::new();
    let variable = |name: &str| std::env::var_os(name).map(PathBuf::from);
    let toolkits =
        [variable("CUDA_HOME"), variable("CUDA_PATH"), Some("/usr/local/cuda".into()), Some("/opt/cuda".into())];
    for toolkit in toolkits.into_iter().flatten() {
        folders.push(toolkit.join("lib64"));
        folders.push(toolkit.join("targets/x86_64-linux/lib"));
    }
    let mut environments: Vec<PathBuf> =
        [variable("VIRTUAL_ENV"), variable("CONDA_PREFIX")].into_iter().flatten().collect();
    // A Python that is on the path belongs to an environment two folders up.
    let path = std::env::var_os("PATH").unwrap_or_default();
    environments.extend(
        std::env::split_paths(&path)
            .filter(|bin| bin.join("python3").exists())
            .filter_map(|bin| Some(bin.parent()?.into())),
    );
    for environment in environments {
        for python in children(&environment.join("lib"), "python3") {
            for packages in ["site-packages", "dist-packages"] {
                for package in children(&python.join(packages).join("nvidia"), "") {
                    folders.push(package.join("lib"));
                }
            }
        }
    }
    folders.retain(|folder| folder.is_dir());
    folders
}

/// Folders inside `folder` whose name begins so, in order.
fn children(folder: &Path, beginning: &str) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    let mut found: Vec<PathBuf> = entries
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().starts_with(beginning))
        .map(|entry| entry.path())
        .collect();
    found.sort();
    found
}

/// Opens a library for the rest of the program's life.
#[cfg(unix)]
fn open(name: &str) -> Result<(), String> {
    let name = CString::new(name).map_err(|_| "a name with a zero in it".to_string())?;
    // SAFETY: opening runs the library's initialisers, which NVIDIA's libraries are made for; the handle is never
    // closed, so nothing dangles.
    let handle = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_NOW | libc::RTLD_GLOBAL) };
    if !handle.is_null() {
        return Ok(());
    }
    // SAFETY: `dlerror` returns null or a string that lives until the next call of this thread.
    unsafe {
        let said = libc::dlerror();
        Err(if said.is_null() { String::new() } else { std::ffi::CStr::from_ptr(said).to_string_lossy().into_owned() })
    }
}

/// Other systems: the bindings' own search is all there is.
#[cfg(not(unix))]
fn open(name: &str) -> Result<(), String> {
    let _ = CString::new(name);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_absent_library_is_an_error_with_a_hint() {
        for library in Library::ALL {
            // Present or not depends on the machine; a panic or an empty hint would be wrong on any.
            match library.find() {
                Ok(found) => assert!(!found.to_string().is_empty()),
                Err(error) => assert!(error.to_string().contains(library.name()) && !error.hint().is_empty()),
            }
        }
        assert!(open("libfoveate-is-not-a-library.so").is_err());
    }
}

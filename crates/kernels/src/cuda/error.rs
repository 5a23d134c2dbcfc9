//! What can go wrong with a GPU, in words for the person, each with a hint.
//! Knows causes; knows no ops. Cost: none.

use std::path::PathBuf;

use thiserror::Error;

/// Why something cannot be done on a GPU.
#[derive(Clone, Debug, PartialEq, Error)]
pub enum GpuError {
    /// A library is not on this machine, or cannot be opened.
    #[error("{library} was not found{}", reason(.problem))]
    Library {
        /// Name for people.
        library: &'static str,
        /// What the system's loader said, if a file was there.
        problem: String,
        /// What to do about it.
        hint: &'static str,
    },
    /// The driver sees no GPU of that number.
    #[error("there is no GPU {index}: the driver sees {count}")]
    NoDevice {
        /// What was asked for.
        index: usize,
        /// How many there are.
        count: usize,
    },
    /// The GPU is older than the kernels.
    #[error("GPU {index} ({name}) has compute capability {major}.{minor}; the kernels need 8.0")]
    TooOld {
        /// Its number.
        index: usize,
        /// Its name.
        name: String,
        /// Compute capability.
        major: i32,
        /// Compute capability.
        minor: i32,
    },
    /// The compiler is newer than the driver.
    #[error("the GPU's driver is for CUDA {}.{}, the compiler that was found is of CUDA {compiler}", driver[0], driver[1])]
    OldDriver {
        /// Major and minor version that the driver is for.
        driver: [i32; 2],
        /// Major version of the compiler.
        compiler: i32,
    },
    /// A kernel source does not compile.
    #[error("{module} does not compile for {architecture}:\n{log}")]
    Compile {
        /// Which source.
        module: String,
        /// For what.
        architecture: String,
        /// What the compiler said.
        log: String,
    },
    /// Memory ran out.
    #[error(
        "out of GPU memory: {} asked for, {} of {} free; this program uses {} and holds {} more for reuse",
        mib(*asked), mib(*free), mib(*total), mib(*used), mib(*held)
    )]
    OutOfMemory {
        /// Size of the request.
        asked: usize,
        /// Free on the GPU.
        free: usize,
        /// On the GPU.
        total: usize,
        /// Used by this program.
        used: usize,
        /// Kept by this program for reuse.
        held: usize,
    },
    /// A call of a library failed.
    #[error("{call} failed: {problem}")]
    Call {
        /// Which.
        call: String,
        /// What it said.
        problem: String,
    },
    /// A file of the kernel cache cannot be written or read.
    #[error("{}: {problem}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// What the system said.
        problem: String,
    },
    /// The kernels cannot do this; the CPU can.
    #[error("the GPU kernels do not do this: {what}")]
    Unsupported {
        /// What was asked.
        what: String,
    },
}

fn mib(bytes: usize) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}

fn reason(problem: &str) -> String {
    if problem.is_empty() { String::new() } else { format!(": {problem}") }
}

impl GpuError {
    /// What to do about it.
    pub fn hint(&self) -> &'static str {
        match self {
            GpuError::Library { hint, .. } => hint,
            GpuError::NoDevice { .. } => {
                "GPUs are counted from 0; `foveate doctor` lists them, and CUDA_VISIBLE_DEVICES hides some"
            }
            GpuError::TooOld { .. } => "set device = \"cpu\", or take a GPU of the Ampere generation or newer",
            GpuError::OldDriver { .. } => {
                "install a newer driver, or name a folder with NVRTC and cuBLASLt of the driver's version in \
                 FOVEATE_CUDA_LIBRARIES"
            }
            GpuError::Compile { .. } | GpuError::Call { .. } => {
                "this is a fault of the program or of the driver; set device = \"cpu\" to go on, and report it"
            }
            GpuError::OutOfMemory { .. } => {
                "a smaller tokens_per_batch, memory.recompute = true, [lora], fewer answers at once, or memory.optimiser and \
                 memory.reference on the host need less; `foveate plan` tells what takes how much"
            }
            GpuError::File { .. } => "FOVEATE_KERNEL_CACHE names another folder for compiled kernels",
            GpuError::Unsupported { .. } => "set device = \"cpu\"",
        }
    }
}

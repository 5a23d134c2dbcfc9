//! Every kernel compiles for the architectures that we name, where NVRTC is to be found: it needs no GPU.
//! `FOVEATE_CUDA_LIBRARIES` names the folder of the library where nothing else leads to it (the Python package
//! nvidia-cuda-nvrtc has one).
//! Cost: seconds per module and architecture the first time, nothing as long as the sources are the same or where the library is absent, which is printed.

use std::path::Path;
use std::time::Instant;

use foveate_kernels::cuda::libraries::Library;
use foveate_kernels::cuda::{Module, compile};

#[test]
fn every_kernel_compiles() {
    let found = match Library::Compiler.find() {
        Ok(found) => found,
        Err(error) => {
            eprintln!("kernels are not compiled for GPUs: {error}; {}", error.hint());
            return;
        }
    };
    let (major, minor) = compile::version().expect("it has just been found");
    let known = compile::architectures().expect("it has just been found");
    println!("NVRTC {major}.{minor} at {found}, which knows {known:?}");
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
    for capability in [80, 90, 100, 120].into_iter().filter(|capability| known.contains(capability)) {
        for module in Module::all() {
            let start = Instant::now();
            let image = compile::image(module, capability, 0, Some(folder)).unwrap_or_else(|error| panic!("{error}"));
            let again = compile::image(module, capability, 0, Some(folder)).expect("it is kept");
            assert!(again.cached && again.bytes == image.bytes, "{}: the cache gives back what it got", module.name());
            let image = image.bytes;
            // Machine code is an ELF file that names its kernels.
            assert!(image.starts_with(b"\x7fELF"), "{}: no machine code", module.name());
            for kernel in module.kernels() {
                let named = image.windows(kernel.len()).any(|window| window == kernel.as_bytes());
                assert!(named, "{kernel} is not in its module");
            }
            println!("sm_{capability} {:<22} {:>7} bytes {:>5.0?}", module.name(), image.len(), start.elapsed());
        }
    }
    // An architecture that nobody has yet: PTX, which the driver would translate.
    let image = compile::compile(Module::Optimiser, 999).expect("the newest that is known stands in");
    assert!(image.starts_with(b"//"), "PTX is text");
    assert_eq!(image.last(), Some(&0), "the driver wants a final zero");
}

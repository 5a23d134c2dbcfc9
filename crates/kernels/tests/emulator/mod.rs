//! Makes a device of the host: compiles the kernels' own sources with the system's C++ compiler, once per content.
//! Knows sources and the compiler; knows no ops. Cost: some seconds the first time, nothing afterwards.

use std::path::PathBuf;
use std::process::Command;

use foveate_kernels::cuda::Module;

/// The library with all kernels, or none. Prints the reason.
pub fn library() -> Option<PathBuf> {
    match make() {
        Ok(library) => Some(library),
        Err(reason) => {
            eprintln!("kernels are not emulated: {reason}");
            None
        }
    }
}

/// Modules that are made: of attention's tiles, one width for each way that they differ in.
fn modules() -> Vec<Module> {
    let wanted = |module: &Module| match module {
        Module::AttentionTiles(head) => [16, 64, 80, 128].contains(head),
        _ => true,
    };
    Module::all().into_iter().filter(wanted).collect()
}

fn make() -> Result<PathBuf, String> {
    let compiler = std::env::var("CXX").unwrap_or_else(|_| "c++".into());
    let asked = Command::new(&compiler).arg("--version").output();
    let version = match asked {
        Ok(output) if output.status.success() => String::from_utf8_lossy(&output.stdout).into_owned(),
        _ => return Err(format!("there is no C++ compiler ({compiler})")),
    };
    let header = include_str!("emulator.h");
    let mut whole = format!("{header}\n#pragma GCC diagnostic ignored \"-Wunknown-pragmas\"\n");
    for (place, module) in modules().into_iter().enumerate() {
        let source = module.source();
        let names = module.kernels();
        // The prelude is the same everywhere; a namespace for each source keeps helpers of one name apart.
        whole += &format!("namespace source{place} {{\n{source}\n");
        for name in &names {
            whole += &format!("EXPORT({name})\n");
        }
        whole += "}\n";
        for macro_name in defined(&source) {
            whole += &format!("#undef {macro_name}\n");
        }
    }
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
    std::fs::create_dir_all(&folder).map_err(|error| error.to_string())?;
    let stem = format!("kernels-{:016x}", hash(&format!("{version}{whole}")));
    let library = folder.join(format!("{stem}.so"));
    if library.exists() {
        return Ok(library);
    }
    // Written aside: several test binaries may come at once.
    let own = format!("{stem}-{}", std::process::id());
    let (source, made) = (folder.join(format!("{own}.cpp")), folder.join(format!("{own}.so")));
    std::fs::write(&source, whole).map_err(|error| error.to_string())?;
    let mut command = Command::new(&compiler);
    // Contraction would round less often than the kernels say.
    command.args(["-std=c++17", "-O1", "-fPIC", "-shared", "-ffp-contract=off", "-fno-strict-aliasing", "-w"]);
    if cfg!(target_arch = "x86_64") {
        command.arg("-march=native");
    }
    let output = command.arg("-o").arg(&made).arg(&source).output().map_err(|error| error.to_string())?;
    assert!(output.status.success(), "the kernels do not compile:\n{}", String::from_utf8_lossy(&output.stderr));
    std::fs::rename(&made, &library).map_err(|error| error.to_string())?;
    let _ = std::fs::remove_file(source);
    Ok(library)
}

/// Names that a source defines for the preprocessor.
fn defined(source: &str) -> Vec<&str> {
    let lines = source.lines().filter_map(|line| line.strip_prefix("#define "));
    let names = lines.filter_map(|rest| rest.split([' ', '(']).next());
    names.filter(|name| !matches!(*name, "DEVICE" | "KERNEL" | "DYNAMIC_SHARED")).collect()
}

/// FNV-1a: names a file.
fn hash(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

//! Lists the files of the built-in models, so that the program can carry them. Reads the repository, nothing else.

use std::fmt::Write;
use std::path::{Path, PathBuf};

fn main() {
    let assets = Path::new(&std::env::var("CARGO_MANIFEST_DIR").expect("set by cargo")).join("../../assets");
    println!("cargo:rerun-if-changed={}", assets.display());
    let mut text = String::from("static MODELS: &[(&str, Files)] = &[\n");
    for model in sorted(&assets).iter().filter(|path| path.join("model.safetensors").is_file()) {
        println!("cargo:rerun-if-changed={}", model.display());
        writeln!(text, "({:?}, &[", name(model)).expect("text");
        for file in sorted(model).iter().filter(|path| path.is_file()) {
            let path = file.canonicalize().expect("the file was just listed");
            writeln!(text, "({:?}, include_bytes!({path:?}) as &[u8]),", name(file)).expect("text");
        }
        text.push_str("]),\n");
    }
    text.push_str("];\n");
    let out = PathBuf::from(std::env::var("OUT_DIR").expect("set by cargo")).join("builtin_models.rs");
    std::fs::write(out, text).expect("cargo's own folder can be written");
}

fn sorted(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten();
    let mut paths: Vec<PathBuf> = entries.filter_map(|entry| entry.ok().map(|entry| entry.path())).collect();
    paths.sort();
    paths
}

fn name(path: &Path) -> String {
    path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

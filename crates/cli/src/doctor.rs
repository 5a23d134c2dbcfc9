//! `foveate doctor`: what this machine offers, and what would be used.

use foveate_kernels::cuda::libraries::{self, Library};
use foveate_kernels::cuda::{compile, driver};
use foveate_kernels::isa;

/// Arguments of `foveate doctor`.
#[derive(clap::Args)]
pub struct Args {}

/// Prints a short table.
pub fn run(_args: Args) -> anyhow::Result<()> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let line = |name: &str, value: String| println!("{name:<16}{value}");
    line("foveate", env!("CARGO_PKG_VERSION").to_string());
    line("system", format!("{} on {}", std::env::consts::OS, std::env::consts::ARCH));
    line("cores", cores.to_string());
    if let Some(gib) = memory_gib() {
        line("memory", format!("{gib:.1} GiB"));
    }
    line("instructions", isa::Machine::get().to_string());
    line("vectors use", isa::vector_isa().name().to_string());
    line("bf16 uses", isa::matmul_path().name().to_string());
    let auto = if isa::has_fast_bf16() { "bf16" } else { "f32: this machine has no fast bf16" };
    line("precision auto", auto.to_string());
    for (name, value) in gpu_lines() {
        line(name, value);
    }
    let builtin = foveate_train::builtin::names();
    line("built-in models", if builtin.is_empty() { "none".to_string() } else { builtin.join(", ") });
    isa::check()?;
    Ok(())
}

/// What a GPU needs, where it was found, and which GPUs there are. Nothing here is a fault: a machine without a GPU is
/// as good as any.
fn gpu_lines() -> Vec<(&'static str, String)> {
    let mut lines = Vec::new();
    for library in Library::ALL {
        let name = match library {
            Library::Driver => "gpu driver",
            Library::Compiler => "gpu compiler",
            Library::Products => "gpu products",
        };
        let value = match library.find() {
            Ok(found) => match library {
                Library::Driver => format!("{found}{}", driver::version().map(version_of).unwrap_or_default()),
                Library::Compiler => {
                    let version = compile::version().map(|(major, minor)| format!(", {major}.{minor}"));
                    format!("{found}{}", version.unwrap_or_default())
                }
                Library::Products => found.to_string(),
            },
            Err(error) => format!("none: {error}"),
        };
        lines.push((name, value));
    }
    if Library::Compiler.find().is_err() {
        let looked: Vec<String> =
            libraries::usual_folders().iter().map(|folder| folder.display().to_string()).collect();
        let also = if looked.is_empty() { "nowhere else".to_string() } else { looked.join(", ") };
        lines.push(("gpu folders", format!("looked in the system's and in {also}")));
    }
    match driver::cards() {
        Ok(cards) if cards.is_empty() => lines.push(("gpus", "none".into())),
        Ok(cards) => lines.extend(cards.iter().map(|card| {
            let gib = card.bytes as f64 / f64::from(1 << 30);
            ("gpu", format!("cuda:{} {}, sm_{}, {gib:.0} GiB", card.index, card.name, card.capability))
        })),
        Err(error) => lines.push(("gpus", format!("none: {error}"))),
    }
    lines
}

/// `, 13.0` of 13000.
fn version_of(version: i32) -> String {
    format!(", {}.{}", version / 1000, version % 1000 / 10)
}

/// Memory of the machine, where the system tells it.
fn memory_gib() -> Option<f64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find(|line| line.starts_with("MemTotal:"))?;
    let kib: f64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kib / 1024.0 / 1024.0)
}

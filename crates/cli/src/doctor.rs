//! `foveate doctor`: what this machine offers, and what would be used.

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
    let builtin = foveate_train::builtin::names();
    line("built-in models", if builtin.is_empty() { "none".to_string() } else { builtin.join(", ") });
    isa::check()?;
    Ok(())
}

/// Memory of the machine, where the system tells it.
fn memory_gib() -> Option<f64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find(|line| line.starts_with("MemTotal:"))?;
    let kib: f64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kib / 1024.0 / 1024.0)
}

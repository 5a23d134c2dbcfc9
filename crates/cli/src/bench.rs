//! `foveate bench`: what this machine can do, what the kernels reach, and how long whole steps take.
//! Prints; measures through `kernels::bench` and `train::speed`. Cost: seconds to a minute.

use std::path::Path;

use foveate_kernels::bench::{self, Measured};
use foveate_kernels::{isa, team};
use foveate_model::{Policy, Precision};
use foveate_train::source;
use foveate_train::speed::{self, Timed, Work, shapes};
use serde_json::json;

use crate::failure::failure;
use crate::load::ComputeArgs;

/// Arguments of `foveate bench`.
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    what: Option<What>,
}

#[derive(clap::Subcommand)]
enum What {
    /// A supervised optimiser step
    Train {
        #[command(flatten)]
        common: Common,
        /// Texts per step
        #[arg(long, default_value_t = 16)]
        rows: usize,
        /// Tokens of a text
        #[arg(long, default_value_t = 256)]
        tokens: usize,
        /// Texts that go through the model together
        #[arg(long, default_value_t = 8)]
        rows_together: usize,
    },
    /// The optimiser step of one question and its answers
    Group {
        #[command(flatten)]
        common: Common,
        /// Tokens of the question
        #[arg(long, default_value_t = 1100)]
        prompt: usize,
        /// Answers
        #[arg(long, default_value_t = 8)]
        answers: usize,
        /// Tokens of an answer
        #[arg(long, default_value_t = 110)]
        tokens: usize,
        /// Pictures in the question
        #[arg(long, default_value_t = 0)]
        images: usize,
        /// A copy of the question for every answer
        #[arg(long)]
        separate: bool,
    },
    /// Drawing answers
    Sample {
        #[command(flatten)]
        common: Common,
        /// Questions
        #[arg(long, default_value_t = 32)]
        sequences: usize,
        /// Tokens of a question
        #[arg(long, default_value_t = 64)]
        prompt: usize,
        /// Tokens of an answer
        #[arg(long, default_value_t = 64)]
        tokens: usize,
    },
    /// Forward and backward of the image tower
    Tower {
        #[command(flatten)]
        common: Common,
        /// Pictures that go through together
        #[arg(long, default_value_t = 1)]
        images: usize,
    },
}

#[derive(clap::Args)]
struct Common {
    /// A model folder, a built-in model, or a shape (smollm2-135m, smolvlm-256m, siglip-base, minnow-like)
    #[arg(long)]
    model: Option<String>,
    #[command(flatten)]
    compute: ComputeArgs,
    /// Rounds on the clock, after one that does not count
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Kernel threads; all cores if not given
    #[arg(long)]
    threads: Option<usize>,
    /// Keep only the inputs of blocks, and run them again when going back
    #[arg(long)]
    recompute: bool,
    /// One line of JSON instead of a table
    #[arg(long)]
    json: bool,
}

/// Prints the measurements.
pub fn run(args: Args) -> anyhow::Result<()> {
    isa::check()?;
    let Some(what) = args.what else {
        println!("{} threads, {}", team::num_threads(), isa::Machine::get());
        let peaks = bench::peaks();
        let best = |pick: fn(&Measured) -> f64, prefix: &str| {
            let of_kind = peaks.iter().filter(|peak| peak.name.starts_with(prefix));
            of_kind.map(pick).fold(f64::NAN, f64::max)
        };
        let bf16 = best(|peak| peak.gflops, "bf16");
        let f32 = best(|peak| peak.gflops, "f32");
        let memory = best(|peak| peak.gbytes, "reading");
        for measured in peaks.iter().cloned().chain(bench::matmul_cases()) {
            let peak = if measured.name.starts_with("f32") { f32 } else { bf16 };
            print_case(&measured, peak, memory);
        }
        return Ok(());
    };
    let (common, work, usual) = match what {
        What::Train { common, rows, tokens, rows_together } => {
            (common, Work::Train { rows, tokens: tokens.max(2), rows_together }, "smollm2-135m")
        }
        What::Group { common, prompt, answers, tokens, images, separate } => {
            let tokens = tokens.max(2);
            (common, Work::Group { prompt, answers, tokens, images, shared: !separate }, "smolvlm-256m")
        }
        What::Sample { common, sequences, prompt, tokens } => {
            (common, Work::Sample { sequences, prompt: prompt.max(1), tokens: tokens.max(1) }, "smollm2-135m")
        }
        What::Tower { common, images } => (common, Work::Tower { images: images.max(1) }, "siglip-base"),
    };
    let model = common.model.clone().unwrap_or_else(|| usual.to_string());
    let precision = common.compute.precision.map_or(Precision::Auto, Precision::from);
    common.compute.device.open()?;
    let mut policy = open(&model, precision)?.on(common.compute.device, precision)?;
    policy.set_recompute(common.recompute);
    if let Work::Group { prompt, images, .. } = work {
        let features = images * policy.description().features_per_tile;
        if features >= prompt {
            return Err(failure(
                format!("{images} pictures take {features} tokens, the question has {prompt}"),
                "give a longer --prompt or fewer --images",
            ));
        }
    }
    let threads = common.threads.unwrap_or_else(team::num_threads);
    let rounds = common.rounds.max(1);
    let timed = team::with_threads(threads, || speed::time(&mut policy, work, rounds))?;
    let afresh = team::with_threads(threads, || speed::time_afresh(&mut policy, work, rounds))?;
    let afresh = afresh.map(|timed| timed.median());
    if common.json {
        println!(
            "{}",
            json!({
                "model": model, "precision": policy.operand_name(), "threads": threads,
                "device": policy.device().map_or("cpu".to_string(), |device| device.name()),
                "matmul": isa::matmul_path().name(), "seconds": timed.seconds, "tokens": timed.tokens,
                "median_seconds": timed.median(), "median_seconds_without_graphs": afresh, "peak_memory_gib": peak_memory_gib(),
            })
        );
    } else {
        print_timed(&model, &policy, threads, &timed);
        if let Some(seconds) = afresh {
            println!("every step launched afresh: median {:.1} ms", seconds * 1e3);
        }
    }
    Ok(())
}

fn open(model: &str, precision: Precision) -> anyhow::Result<Policy> {
    if let Some(shape) = shapes::find(model) {
        return Ok(Policy::fresh(&shape.config, 1, precision)?);
    }
    Ok(source::find(Path::new(""), model)?.load(precision)?)
}

fn print_case(measured: &Measured, peak_gflops: f64, peak_gbytes: f64) {
    let Measured { name, seconds, gflops, gbytes } = measured;
    let share = |value: f64, peak: f64| if value > 0.0 { format!("{:3.0} %", 100.0 * value / peak) } else { "".into() };
    println!(
        "{name:56} {:10.1} us {gflops:7.0} GFLOP/s {:5} {gbytes:6.1} GB/s {:5}",
        seconds * 1e6,
        share(*gflops, peak_gflops),
        share(*gbytes, peak_gbytes),
    );
}

fn print_timed(model: &str, policy: &Policy, threads: usize, timed: &Timed) {
    let median = timed.median();
    match policy.device() {
        Some(device) => println!("{model}, {}, {}", policy.operand_name(), device.name()),
        None => println!("{model}, {}, {threads} threads, {}", policy.operand_name(), isa::matmul_path().name()),
    }
    println!(
        "median {:.1} ms of {} rounds, {:.0} tokens/s, {:.0} GFLOP/s",
        median * 1e3,
        timed.seconds.len(),
        timed.tokens as f64 / median,
        timed.flops / median / 1e9,
    );
    if let Some(gib) = peak_memory_gib() {
        println!("peak memory {gib:.2} GiB");
    }
    let last = timed.seconds.last().copied().unwrap_or(median);
    let mut ops: Vec<_> = timed.profile.iter().collect();
    ops.sort_by_key(|(_, spent)| std::cmp::Reverse(spent.time));
    println!("{:28}{:>8}{:>12}{:>9}", "last round", "calls", "ms", "share");
    let mut rest = last;
    for (name, spent) in ops {
        let seconds = spent.time.as_secs_f64();
        rest -= seconds;
        println!("{name:28}{:>8}{:>12.2}{:>7.1} %", spent.calls, seconds * 1e3, 100.0 * seconds / last);
    }
    println!("{:28}{:>8}{:>12.2}{:>7.1} %", "everything else", "", rest * 1e3, 100.0 * rest / last);
}

/// The most memory that this program has held, where the system tells it.
fn peak_memory_gib() -> Option<f64> {
    let text = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = text.lines().find(|line| line.starts_with("VmHWM:"))?;
    let kib: f64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kib / 1024.0 / 1024.0)
}

//! `foveate sample`: a model's good answers become rows to learn from.

use std::path::{Path, PathBuf};

use foveate_model::Precision;
use foveate_train::checkpoint::durable::read_file;
use foveate_train::collect::{CollectSpec, collect};
use foveate_train::data::{self, Dataset};
use foveate_train::recipe::parse::parse;
use indicatif::ProgressBar;

use crate::failure::failure;
use crate::load::{self, ModelArgs};

/// Arguments of `foveate sample`.
#[derive(clap::Args)]
pub struct Args {
    /// Settings, a TOML file: data, answers_per_question, sampling, judge or accuracy, threshold, quotas
    settings: PathBuf,
    #[command(flatten)]
    model: ModelArgs,
    /// Replace a value of the settings, for example --set answers_per_question=4
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// The new folder: rows.jsonl, images/
    #[arg(long)]
    out: PathBuf,
}

/// Asks, scores, keeps, and says how many are left of what.
pub fn run(args: Args) -> anyhow::Result<()> {
    if args.out.exists() {
        return Err(failure(format!("{} is there already", args.out.display()), "choose another --out, or remove it"));
    }
    let text = String::from_utf8_lossy(&read_file(&args.settings)?).into_owned();
    let spec: CollectSpec = parse(&args.settings, &text, &args.set)?;
    spec.check()?;
    let (mut policy, prompter) = load::open(&args.model, Precision::Auto)?;
    let base = args.settings.parent().unwrap_or(Path::new(""));
    // Beside the rows, which appear in one step at the end: what was paid for survives a run that was stopped.
    let cache = args.out.with_extension("cache");
    let bar = ProgressBar::new(0);
    let mut progress = |done: usize, total: usize| {
        bar.set_length(total as u64);
        bar.set_position(done as u64);
    };
    let found = collect(&mut policy, &prompter, &spec, base, Some(cache), &mut progress)?;
    bar.finish_and_clear();
    println!("{:<16}{:>8}{:>8}{:>8}", "task", "asked", "good", "kept");
    for (task, count) in &found.counts {
        println!("{task:<16}{:>8}{:>8}{:>8}", count.asked, count.good, count.kept);
    }
    if found.num_unknown > 0 {
        println!("{} answers were left without a score", found.num_unknown);
    }
    if found.rows.is_empty() {
        return Err(failure(
            format!("no answer reached the threshold of {}", spec.threshold),
            "lower threshold, ask for more answers_per_question, or train the model further first",
        ));
    }
    data::make(&Dataset::from_rows(found.rows), &args.out)?;
    println!(
        "learn from them with: data.train = {:?}, target = {{ template = \"completion\" }}",
        args.out.display().to_string()
    );
    Ok(())
}

//! `foveate compare RUN RUN..`: what several runs reached on the same questions, with intervals of the differences.

use std::path::{Path, PathBuf};

use foveate_train::eval::records::{Prediction, clusters};
use foveate_train::eval::statistics::{paired_difference, wilson};
use foveate_train::report::page::percent;

use crate::failure::failure;

/// Arguments of `foveate compare`.
#[derive(clap::Args)]
pub struct Args {
    /// Folders of runs; the others are compared with the first
    #[arg(required = true)]
    runs: Vec<PathBuf>,
    /// Which evaluation: after, before, or step-NNNNNN
    #[arg(long, default_value = "after")]
    at: String,
}

/// Answers of one run to one suite, in the order of the questions.
type Answers = Vec<Prediction>;

/// Prints accuracy per run and suite, and the paired difference to the first run.
pub fn run(args: Args) -> anyhow::Result<()> {
    let first = suites(&args.runs[0], &args.at)?;
    for (suite, base) in &first {
        println!("{suite}");
        for (place, run) in args.runs.iter().enumerate() {
            let answers = if place == 0 { base.clone() } else { read(run, &args.at, suite)? };
            let right = answers.iter().filter(|answer| answer.correct).count();
            let share = wilson(right as u64, answers.len() as u64);
            let mut line = format!(
                "  {:<32}{:>8} [{:.1}, {:.1}]",
                run.display(),
                percent(share.mean),
                100.0 * share.low,
                100.0 * share.high
            );
            if place > 0 {
                line.push_str(&difference(base, &answers).map_or_else(
                    || "   other questions, no paired difference".to_string(),
                    |(mean, low, high)| format!("   {mean:+.1} points [{low:+.1}, {high:+.1}]"),
                ));
            }
            println!("{line}");
        }
    }
    println!(
        "intervals are 95 %: Wilson for shares, paired bootstrap over questions for differences (over pictures, where \
         questions share them)"
    );
    Ok(())
}

/// Points by which `other` is better than `base`; nothing if they were asked other questions.
fn difference(base: &Answers, other: &Answers) -> Option<(f64, f64, f64)> {
    if base.iter().map(|answer| &answer.id).ne(other.iter().map(|answer| &answer.id)) {
        return None;
    }
    let score =
        |answers: &Answers| answers.iter().map(|answer| f64::from(u8::from(answer.correct))).collect::<Vec<_>>();
    let estimate = paired_difference(&score(base), &score(other), clusters(base).as_deref(), 0)?;
    Some((100.0 * estimate.mean, 100.0 * estimate.low, 100.0 * estimate.high))
}

/// The suites of a run, by name.
fn suites(run: &Path, at: &str) -> anyhow::Result<Vec<(String, Answers)>> {
    let mut names: Vec<String> = std::fs::read_dir(run.join("predictions"))
        .into_iter()
        .flatten()
        .filter_map(|entry| {
            let name = entry.ok()?.file_name().to_string_lossy().into_owned();
            Some(name.strip_prefix(&format!("{at}-"))?.strip_suffix(".jsonl")?.to_string())
        })
        .collect();
    names.sort();
    if names.is_empty() {
        return Err(failure(
            format!("{} has no evaluation named {at}", run.display()),
            "name folders of finished runs, such as runs/quickstart",
        ));
    }
    names.into_iter().map(|name| read(run, at, &name).map(|answers| (name, answers))).collect()
}

fn read(run: &Path, at: &str, suite: &str) -> anyhow::Result<Answers> {
    let path = run.join("predictions").join(format!("{at}-{suite}.jsonl"));
    let text = std::fs::read_to_string(&path).map_err(|error| {
        failure(format!("{}: {error}", path.display()), "all runs must have been evaluated on the same suites")
    })?;
    let line = |(index, line): (usize, &str)| {
        serde_json::from_str(line).map_err(|error| {
            failure(format!("{}:{}: {error}", path.display(), index + 1), "the file was changed after the run wrote it")
        })
    };
    text.lines().enumerate().map(line).collect()
}

//! `foveate study`: runs the cells of a study with each seed and shows the table.

use std::path::PathBuf;
use std::process::ExitCode;

use foveate_kernels::{interrupt, isa};
use foveate_train::study::{self, Outcome, Progress};

use crate::train::Screen;

/// Arguments of `foveate study`.
#[derive(clap::Args)]
pub struct Args {
    /// The study, a TOML file; see recipes/studies/
    study: PathBuf,
    /// Its folder; what is done there is not done again [default: studies/<name of the study>]
    #[arg(long, value_name = "FOLDER")]
    out: Option<PathBuf>,
    /// Use these seeds in place of the study's, for a quick look
    #[arg(long, value_delimiter = ',')]
    seeds: Vec<u64>,
}

/// Runs what is not done and prints the table.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    isa::check()?;
    let mut spec = study::read(&args.study)?;
    if !args.seeds.is_empty() {
        spec.seeds = args.seeds.clone();
    }
    let out = args.out.clone().unwrap_or_else(|| PathBuf::from("studies").join(&spec.name));
    interrupt::install();
    let mut screen = Screen::new(0);
    let outcome = study::run(&args.study, &spec, &out, &mut |progress| match progress {
        Progress::Cell { cell, seed, index, total, num_steps } => {
            screen.finish();
            println!("run {index} of {total}: {cell}, seed {seed}");
            screen = Screen::new(num_steps);
        }
        Progress::Run(event) => screen.show(event),
        Progress::Sampling(done, total) => screen.tell(format!("collecting answers, {done} of {total} questions")),
    })?;
    screen.finish();
    match outcome {
        Outcome::Interrupted => {
            println!("stopped; the same command goes on");
            Ok(ExitCode::from(crate::train::INTERRUPTED))
        }
        Outcome::Finished { markdown, html } => {
            print!("{}", std::fs::read_to_string(&markdown)?);
            println!("\n{}\n{}", markdown.display(), html.display());
            Ok(ExitCode::SUCCESS)
        }
    }
}

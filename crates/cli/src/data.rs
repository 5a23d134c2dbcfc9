//! `foveate data make|show|convert|refine|audit`: rows on disk, rows to look at, rows rewritten, rows checked.

use std::path::{Path, PathBuf};

use clap::{Subcommand, ValueEnum};
use foveate_tasks::contact_sheet;
use foveate_train::checkpoint::durable::write_file;
use foveate_train::data::{self, Dataset, write::png};
use foveate_train::prompt::Frame;
use foveate_train::recipe::parse::{Wrapped, parse};
use foveate_train::reward::audit::audit as policies;
use foveate_train::reward::refiner::{Refiner, RefinerSpec};
use foveate_train::reward::remote::Surroundings;
use foveate_train::reward::remote::chat::ChatSpec;
use foveate_train::reward::spec::AccuracySpec;
use foveate_train::reward::{RewardSpec, Rewards, Unknown};
use indicatif::ProgressBar;

use crate::failure::failure;

/// Arguments of `foveate data`.
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Write rows of a source into a new folder: rows.jsonl and images/
    Make {
        /// A source such as '{ task = "charts", split = "ood", rows = 100 }'
        source: String,
        /// The new folder
        #[arg(long)]
        out: PathBuf,
        /// Seed of built-in worlds
        #[arg(long, default_value_t = 0)]
        seed: u64,
    },
    /// Write rows of a source in the form that other programs read
    Convert {
        /// A source such as '{ path = "train.json", images = "pictures" }', or a file of rows
        source: String,
        /// The new folder
        #[arg(long)]
        out: PathBuf,
        /// What is written
        #[arg(long)]
        to: FormArg,
        /// Seed of built-in worlds
        #[arg(long, default_value_t = 0)]
        seed: u64,
    },
    /// Draw the first rows of a source as one picture to look at
    Show {
        /// A source such as '{ task = "counting" }', or a file of rows
        source: String,
        /// The PNG file
        #[arg(long, default_value = "contact-sheet.png")]
        out: PathBuf,
        /// How many rows
        #[arg(long, default_value_t = 24)]
        rows: usize,
        /// Rows side by side
        #[arg(long, default_value_t = 4)]
        columns: usize,
        /// Seed of built-in worlds
        #[arg(long, default_value_t = 0)]
        seed: u64,
    },
    /// Write the rationales of a source anew, from facts, rationale and answer, into a new folder
    Refine {
        /// A source such as '{ task = "charts", rationale = "low", rows = 100 }', or a file of rows
        source: String,
        /// The new folder
        #[arg(long)]
        out: PathBuf,
        /// Template with {question}, {facts}, {rationale}, {answer}; for a language model a description of the form
        #[arg(long)]
        template: Option<String>,
        /// A language model that writes: '{ url = "http://127.0.0.1:8000/v1", model = "NAME" }'
        #[arg(long)]
        writer: Option<String>,
        /// Ask the language model for a list of what each picture shows first, and write from the list
        #[arg(long, requires = "writer")]
        elements: bool,
        /// Seed of built-in worlds
        #[arg(long, default_value_t = 0)]
        seed: u64,
    },
    /// Say what is in a source and what is wrong with it
    Audit {
        /// A source such as '{ task = "counting" }', or a file of rows
        source: String,
        /// A second source: rows that are in both are listed
        #[arg(long)]
        against: Option<String>,
        /// Seed of built-in worlds
        #[arg(long, default_value_t = 0)]
        seed: u64,
    },
}

/// Forms of files.
#[derive(Clone, Copy, ValueEnum)]
enum FormArg {
    /// Our own fields, one object a line
    Rows,
    /// OpenAI's messages, one object a line
    Messages,
    /// LLaVA's conversations, one JSON array
    Llava,
}

/// Does what was asked.
pub fn run(args: Args) -> anyhow::Result<()> {
    match args.command {
        Command::Make { source, out, seed } => {
            let rows = open(&source, seed)?;
            data::make(&rows, &out)?;
            println!("{} rows: {}", rows.len(), out.join("rows.jsonl").display());
        }
        Command::Convert { source, out, to, seed } => {
            let rows = open(&source, seed)?;
            let form = match to {
                FormArg::Rows => data::Form::Rows,
                FormArg::Messages => data::Form::Messages,
                FormArg::Llava => data::Form::Llava,
            };
            data::convert(&rows, &out, form)?;
            println!("{} rows: {}", rows.len(), out.join(form.file()).display());
        }
        Command::Show { source, out, rows, columns, seed } => {
            if rows == 0 || columns == 0 || rows > 400 {
                return Err(failure(
                    "--rows and --columns must be at least 1, and --rows at most 400",
                    "24 by 4 fit well",
                ));
            }
            let dataset = open(&source, seed)?;
            let shown: Vec<_> =
                (0..rows.min(dataset.len())).flat_map(|index| dataset.rows_at(index)).take(rows).collect();
            write_file(&out, &png(&contact_sheet(&shown, columns)))?;
            println!("{} rows: {}", shown.len(), out.display());
        }
        Command::Refine { source, out, template, writer, elements, seed } => {
            let writer = match writer {
                None => None,
                Some(text) => {
                    Some(parse::<Wrapped<ChatSpec>>(Path::new("writer"), &format!("value = {text}"), &[])?.value)
                }
            };
            if let Some(problem) = writer.as_ref().and_then(|chat| chat.check().err()) {
                return Err(failure(
                    problem,
                    "write --writer '{ url = \"http://127.0.0.1:8000/v1\", model = \"NAME\" }'",
                ));
            }
            refine(&open(&source, seed)?, &out, RefinerSpec { writer, template, elements, ..RefinerSpec::default() })?;
        }
        Command::Audit { source, against, seed } => {
            let dataset = open(&source, seed)?;
            println!("{}", data::audit(&dataset));
            for skipped in dataset.skipped() {
                println!("left out: {}", skipped.reason);
            }
            trivial(&dataset, seed)?;
            if let Some(other) = against {
                let overlap = data::overlap(&dataset, &open(&other, seed)?);
                println!("{} rows are in both", overlap.len());
                for pair in overlap.iter().take(20) {
                    let how = if pair.by_looks { "   (pictures that look the same)" } else { "" };
                    println!("  {} = {}{how}", pair.train, pair.test);
                }
            }
        }
    }
    Ok(())
}

/// Rows that trivial policies answer; more change little.
const AUDITED: usize = 500;

/// What answers that look at no picture would earn: the cheapest way to see a reward that pays for cheating.
fn trivial(dataset: &Dataset, seed: u64) -> anyhow::Result<()> {
    let rows: Vec<_> = (0..dataset.len().min(AUDITED)).map(|index| dataset.text_row(index)).collect();
    let accuracy = RewardSpec::Accuracy(AccuracySpec::default());
    let Ok(rewards) = Rewards::new(vec![accuracy], Unknown::Leave, 1) else { return Ok(()) };
    if let Some(problem) = rows.iter().find_map(|row| rewards.check_row(row, Frame::of(row, None)).err()) {
        println!("not scored: {problem}");
        return Ok(());
    }
    println!("answers without looking, first {} rows:", rows.len());
    for score in policies(&rows, &rewards, seed)? {
        let mark = if score.suspicious { "   more than half above random: look at it" } else { "" };
        println!("  {:<18}{:>6.1} %{mark}", score.policy, 100.0 * score.accuracy);
    }
    Ok(())
}

/// Writes every row with a new rationale. Rows that nothing is known about, or for which the language model failed, keep
/// theirs and are counted.
fn refine(dataset: &Dataset, out: &Path, spec: RefinerSpec) -> anyhow::Result<()> {
    let around = Surroundings { base: PathBuf::new(), folder: Some(out.with_extension("cache")) };
    let refiner = Refiner::new(&spec, &around)?;
    let mut rows: Vec<_> = (0..dataset.len()).flat_map(|index| dataset.rows_at(index)).collect();
    let template = spec.first_template();
    let (mut empty, mut failed, mut last) = (0, 0, None);
    let bar = ProgressBar::new(rows.len() as u64);
    for chunk in rows.chunks_mut(64) {
        let written = refiner.rationales(&chunk.iter().collect::<Vec<_>>(), &template);
        for (row, rationale) in chunk.iter_mut().zip(written) {
            match rationale {
                Ok(rationale) if rationale.trim().is_empty() => empty += 1,
                Ok(rationale) => row.rationale = rationale,
                Err(failure) => (failed, last) = (failed + 1, Some(failure)),
            }
        }
        bar.inc(chunk.len() as u64);
    }
    bar.finish_and_clear();
    let total = rows.len();
    if failed == total
        && let Some(last) = last
    {
        return Err(failure(format!("nothing could be refined: {}", last.detail), last.kind.hint()));
    }
    data::make(&Dataset::from_rows(rows), out)?;
    println!("{} of {total} rows refined: {}", total - empty - failed, out.join("rows.jsonl").display());
    if empty > 0 {
        println!("{empty} rows have neither facts nor rationale and are as they were");
    }
    if let Some(last) = last {
        println!("{failed} rows are as they were because the language model failed; the last time: {}", last.detail);
    }
    Ok(())
}

/// A source as it is written in recipes, or the path of a file.
pub fn open(text: &str, seed: u64) -> anyhow::Result<Dataset> {
    let sources = if text.trim_start().starts_with(['{', '[']) {
        parse::<Wrapped<data::Sources>>(Path::new("source"), &format!("value = {text}"), &[])?.value
    } else {
        data::Sources(vec![data::DataSource::file(text)])
    };
    Ok(data::open(&sources, Path::new(""), seed)?)
}

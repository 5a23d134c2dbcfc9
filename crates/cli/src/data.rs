//! `foveate data make|convert|show|audit`: rows on disk, rows to look at, rows checked.

use std::path::{Path, PathBuf};

use clap::{Subcommand, ValueEnum};
use foveate_tasks::contact_sheet;
use foveate_train::checkpoint::durable::write_file;
use foveate_train::data::{self, Dataset, write::png};
use foveate_train::recipe::parse::{Wrapped, parse};

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
        Command::Audit { source, against, seed } => {
            let dataset = open(&source, seed)?;
            println!("{}", data::audit(&dataset));
            for skipped in dataset.skipped() {
                println!("left out: {}", skipped.reason);
            }
            if let Some(other) = against {
                let overlap = data::overlap(&dataset, &open(&other, seed)?);
                println!("{} rows are in both", overlap.len());
                for pair in overlap.iter().take(20) {
                    println!("  {} = {}", pair.train, pair.test);
                }
            }
        }
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

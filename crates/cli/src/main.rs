//! The binary `foveate`: parse, resolve, match on the command, exit code.
//! Contains no logic of training; each command has a small file of its own.
//! Cost: none; everything expensive is behind a command.
#![forbid(unsafe_code)]

mod bench;
mod chat;
mod compare;
mod data;
mod doctor;
mod download;
mod eval;
mod failure;
mod generate;
mod inspect;
mod load;
mod model;
mod plan;
mod report;
mod sample;
mod score;
mod serve;
mod study;
mod train;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use foveate_train::hub;

/// Post-trains small vision-language models: supervised fine-tuning and reinforcement learning with verifiable rewards.
#[derive(Parser)]
#[command(name = "foveate", version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run a recipe: train, evaluate, report
    Train(train::Args),
    /// Run many recipes and compare them: cells, seeds, one table
    Study(study::Args),
    /// Keep a model's good answers as rows to learn from
    Sample(sample::Args),
    /// Score a model on questions
    Eval(eval::Args),
    /// Log-probabilities of given answers
    Score(score::Args),
    /// Answers to given conversations
    Generate(generate::Args),
    /// Talk with a model
    Chat(chat::Args),
    /// Answer clients in OpenAI's protocol
    Serve(serve::Args),
    /// Write report.html of a run anew
    Report(report::Args),
    /// Compare finished runs on the same questions
    Compare(compare::Args),
    /// Make, show and check data
    Data(data::Args),
    /// Look at a model, merge models
    Model(model::Args),
    /// Measure this machine and whole steps on it
    Bench(bench::Args),
    /// Memory that a model or a run will take
    Plan(plan::Args),
    /// Show what this machine offers
    Doctor(doctor::Args),
}

/// `foveate .. | head` closes our output early; printing then panics. That is no fault of ours and ends quietly, with the
/// exit code that the shell gives a program that a closed pipe has ended.
fn end_quietly_on_closed_pipes() {
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        let text = panic.payload().downcast_ref::<String>().map_or("", String::as_str);
        if text.starts_with("failed printing to std") && text.contains("Broken pipe") {
            std::process::exit(141);
        }
        usual(panic);
    }));
}

fn main() -> ExitCode {
    end_quietly_on_closed_pipes();
    hub::watch(download::show);
    let done = |outcome: anyhow::Result<()>| outcome.map(|()| ExitCode::SUCCESS);
    let outcome = match Cli::parse().command {
        Command::Train(args) => train::run(args),
        Command::Study(args) => study::run(args),
        Command::Sample(args) => done(sample::run(args)),
        Command::Eval(args) => done(eval::run(args)),
        Command::Score(args) => done(score::run(args)),
        Command::Generate(args) => done(generate::run(args)),
        Command::Chat(args) => done(chat::run(args)),
        Command::Serve(args) => done(serve::run(args)),
        Command::Report(args) => done(report::run(args)),
        Command::Compare(args) => done(compare::run(args)),
        Command::Data(args) => done(data::run(args)),
        Command::Model(args) => done(model::run(args)),
        Command::Bench(args) => done(bench::run(args)),
        Command::Plan(args) => done(plan::run(args)),
        Command::Doctor(args) => done(doctor::run(args)),
    };
    outcome.unwrap_or_else(|error| failure::tell(&error))
}

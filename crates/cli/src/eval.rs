//! `foveate eval`: scores a model on questions, greedily, and with several drawn answers each.

use std::path::{Path, PathBuf};

use foveate_model::Precision;
use foveate_train::ask::AskConfig;
use foveate_train::checkpoint::durable::write_with;
use foveate_train::eval::records::Evaluation;
use foveate_train::eval::statistics::Estimate;
use foveate_train::eval::{EvalConfig, SampledEval, score_suite};
use foveate_train::report::page::percent;
use foveate_train::rollout::SamplingConfig;
use foveate_train::{data, recipe};
use indicatif::ProgressBar;

use crate::failure::failure;
use crate::load::{self, ModelArgs};

/// Arguments of `foveate eval`.
#[derive(clap::Args)]
pub struct Args {
    /// A folder in Hugging Face layout, a folder with a PEFT adapter, or the name of a built-in model
    model: String,
    /// Questions: a recipe (its test suites), a file of rows, or a source such as '{ task = "counting", split = "id" }'
    #[arg(long)]
    data: Vec<String>,
    /// Longest answer in tokens
    #[arg(long, default_value_t = 128)]
    max_new_tokens: u32,
    /// Draw so many answers per question as well, for pass@k
    #[arg(long, default_value_t = 0)]
    answers: u32,
    /// Temperature of those draws
    #[arg(long, default_value_t = 1.0)]
    temperature: f32,
    /// The k of pass@k, for example 1,4,8; 1 and the number of answers if not given
    #[arg(long, value_delimiter = ',')]
    pass_at: Vec<u32>,
    /// Text put after each question
    #[arg(long, default_value = "")]
    suffix: String,
    /// Write every answer there, one JSON object a line
    #[arg(long)]
    output: Option<PathBuf>,
    #[command(flatten)]
    compute: load::ComputeArgs,
    /// Seed of built-in worlds
    #[arg(long, default_value_t = 0)]
    seed: u64,
    #[command(flatten)]
    images: load::ImageArgs,
}

/// Prints accuracy per suite and level with 95 % intervals, and pass@k where answers are drawn.
pub fn run(args: Args) -> anyhow::Result<()> {
    if args.data.is_empty() {
        return Err(failure(
            "no questions are given",
            "add --data '{ task = \"counting\", split = \"id\", rows = 200 }'",
        ));
    }
    let mut suites = Vec::new();
    for text in &args.data {
        suites.extend(suites_of(text, args.seed)?);
    }
    let model = ModelArgs { model: args.model.clone(), compute: args.compute, images: args.images.clone() };
    let (mut policy, prompter) = load::open(&model, Precision::Auto)?;
    let sampling = SamplingConfig { max_new_tokens: args.max_new_tokens, ..SamplingConfig::default() }.greedy();
    let pass_at = if args.pass_at.is_empty() { vec![1, args.answers] } else { args.pass_at.clone() };
    let sampled = SampledEval { answers: args.answers, temperature: args.temperature, pass_at };
    let config = EvalConfig { sampling, sampled: (args.answers > 0).then_some(sampled), ..EvalConfig::default() };
    if let Some(problem) = config.problem() {
        return Err(failure(problem, "write --answers 8 --pass-at 1,8, for example"));
    }
    let mut evaluation = Evaluation::default();
    let ask = AskConfig { suffix: args.suffix.clone(), ..AskConfig::default() };
    let mut answers = Vec::new();
    for (name, rows) in &suites {
        let bar = ProgressBar::new(rows.len() as u64);
        let mut progress = |done| bar.set_position(done as u64);
        let answered = score_suite(&mut policy, &prompter, rows, &ask, &config, args.seed, &mut progress)?;
        bar.finish_and_clear();
        let score = &answered.score;
        let [low, high] = score.interval;
        println!(
            "{name}: {} [{:.1}, {:.1}]  {} of {}, {} without a readable answer, {} cut off",
            percent(score.accuracy),
            100.0 * low,
            100.0 * high,
            score.num_correct,
            score.num_rows,
            percent(score.unreadable_fraction),
            percent(score.truncated_fraction)
        );
        for (level, score) in score.levels.iter().filter(|_| score.levels.len() > 1) {
            println!("  level {level}: {} ({} of {})", percent(score.accuracy), score.num_correct, score.num_rows);
        }
        let told = |what: &str, of: &Estimate| {
            let [mean, low, high] = [of.mean, of.low, of.high].map(|share| 100.0 * share);
            println!("  {what}: {mean:.1} [{low:.1}, {high:.1}]");
        };
        if let Some(graded) = &score.graded {
            told("mean score", graded);
        }
        if let Some(exact) = &score.exact_programs {
            told("exactly the right program", exact);
        }
        for (k, estimate) in score.sampled.iter().flat_map(|sampled| &sampled.pass_at) {
            told(&format!("pass@{k}"), estimate);
        }
        // Two sources without names are two suites.
        evaluation.suites.insert(format!("{name}-{}", evaluation.suites.len()), answered.score);
        answers.extend(answered.predictions);
        answers.extend(answered.sampled);
    }
    if let Some(mean) = evaluation.macro_average() {
        println!("mean over tasks, each the mean of its suites: {}", percent(mean));
    }
    if let Some(output) = &args.output {
        write_with(output, |writer| {
            answers.iter().try_for_each(|answer| {
                serde_json::to_writer(&mut *writer, answer)?;
                writer.write_all(b"\n")
            })
        })?;
    }
    Ok(())
}

/// The suites that one `--data` stands for.
fn suites_of(text: &str, seed: u64) -> anyhow::Result<Vec<(String, data::Dataset)>> {
    let path = Path::new(text);
    if path.extension().is_some_and(|extension| extension == "toml") {
        let raw = recipe::read(path, &[])?;
        let base = path.parent().unwrap_or(Path::new(""));
        let seed = raw.seed.unwrap_or(seed);
        let mut suites = Vec::new();
        for (name, sources) in &raw.data.test {
            suites.push((name.clone(), data::open(sources, base, seed)?));
        }
        if suites.is_empty() {
            return Err(failure(format!("{text} has no test suites"), "add [data.test] to it, or name a file of rows"));
        }
        return Ok(suites);
    }
    let name = if text.trim_start().starts_with(['{', '[']) { None } else { path.file_stem() };
    let name = name.map_or("data".to_string(), |stem| stem.to_string_lossy().into_owned());
    Ok(vec![(name, crate::data::open(text, seed)?)])
}

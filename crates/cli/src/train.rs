//! `foveate train RECIPE`: runs a recipe, shows how it goes, and says what came of it.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use foveate_kernels::{interrupt, isa};
use foveate_model::DeviceChoice;
use foveate_train::report::files::RunFiles;
use foveate_train::report::page::{duration, percent, remarks};
use foveate_train::session::Event;
use foveate_train::{recipe, run, train};
use indicatif::{ProgressBar, ProgressStyle};

/// Arguments of `foveate train`.
#[derive(clap::Args)]
pub struct Args {
    /// The recipe, a TOML file; see recipes/
    recipe: PathBuf,
    /// Replace a value of the recipe, for example --set stage.0.steps=50 --set seed=2
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Where it computes, in place of what the recipe says: auto, cpu or cuda:0
    #[arg(long)]
    device: Option<DeviceChoice>,
    /// Go on with an interrupted run
    #[arg(long)]
    resume: bool,
    /// Folder of the run [default: runs/<name of the recipe>]
    #[arg(long, value_name = "FOLDER")]
    out: Option<PathBuf>,
}

/// Exit code of a run that was stopped on request, as shells use it for Ctrl-C: what should follow a finished run does
/// not follow.
pub const INTERRUPTED: u8 = 130;

/// Resolves the recipe, trains, and prints the final table.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    isa::check()?;
    let mut set = args.set.clone();
    set.extend(args.device.map(set_device));
    let raw = recipe::read(&args.recipe, &set)?;
    let run = run::resolve(&args.recipe, raw)?;
    let folder = args.out.clone().unwrap_or_else(|| PathBuf::from("runs").join(&run.name));
    interrupt::install();
    let mut screen = Screen::new(run.num_steps());
    let began = Instant::now();
    let outcome = train::train(&run, &folder, args.resume, &mut |event| screen.show(event))?;
    screen.bar.finish_and_clear();
    if outcome.interrupted {
        println!("stopped after step {} of {}; everything is saved", outcome.step, run.num_steps());
        println!("go on with: {}", resume_command(&args));
        return Ok(ExitCode::from(INTERRUPTED));
    }
    summary(&RunFiles::read(&folder)?, began.elapsed());
    println!("report: {}", outcome.page.display());
    Ok(ExitCode::SUCCESS)
}

/// What `--device` means for a recipe.
pub fn set_device(device: DeviceChoice) -> String {
    format!("device={:?}", device.to_string())
}

/// The command that goes on with this run.
fn resume_command(args: &Args) -> String {
    let mut words = vec!["foveate train".to_string(), quoted(&args.recipe.display().to_string())];
    words.extend(args.set.iter().map(|set| format!("--set {}", quoted(set))));
    words.extend(args.device.iter().map(|device| format!("--device {device}")));
    words.extend(args.out.iter().map(|out| format!("--out {}", quoted(&out.display().to_string()))));
    words.push("--resume".to_string());
    words.join(" ")
}

/// A word as a shell takes it: tables and lists of settings need quotes.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:,@%+".contains(c);
    if word.chars().all(plain) { word.to_string() } else { format!("'{}'", word.replace('\'', r"'\''")) }
}

/// The progress bar and the lines above it.
pub struct Screen {
    bar: ProgressBar,
    /// A plain line now and then where there is no terminal.
    plain: Option<Instant>,
    num_steps: u64,
}

/// Time between plain lines.
const PLAIN_EVERY: Duration = Duration::from_secs(10);

impl Screen {
    /// For a run of so many steps.
    pub fn new(num_steps: u64) -> Self {
        let bar = ProgressBar::new(num_steps);
        bar.set_style(
            ProgressStyle::with_template("{bar:28.green} {pos}/{len} · {msg} · {eta} left")
                .expect("the template is constant"),
        );
        let plain = bar.is_hidden().then(Instant::now);
        Self { bar, plain, num_steps }
    }

    fn say(&self, line: String) {
        if self.plain.is_some() { println!("{line}") } else { self.bar.println(line) }
    }

    /// What happens where no step does.
    pub fn tell(&self, message: String) {
        self.bar.set_message(message);
    }

    /// Takes the bar away.
    pub fn finish(&self) {
        self.bar.finish_and_clear();
    }

    /// Shows what happened.
    pub fn show(&mut self, event: Event) {
        match event {
            Event::Started { model, operand, step } => {
                let parameters = model.num_parameters.iter().sum::<usize>() as f64 / 1e6;
                self.say(format!("{} with {parameters:.2} M parameters, computing in {operand}", model.family));
                if step > 0 {
                    self.say(format!("going on after step {step}"));
                    self.bar.set_position(step);
                    self.bar.reset_eta();
                }
            }
            Event::Stage { stage, .. } => self.say(format!("stage {}: {} steps", stage.name, stage.steps)),
            Event::Sampling { unfinished, total } => {
                self.bar.set_message(format!("sampling, {unfinished} of {total} left"))
            }
            Event::Scoring { suite, done, total } => self.bar.set_message(format!("evaluating {suite} {done}/{total}")),
            Event::Step(record) => {
                let get = |name: &str| record.metrics.get(name).copied();
                let mut parts = Vec::new();
                // What there is of worked examples and of the switch; steps without them would say 0 all the time.
                let some = |name: &str| get(name).filter(|value| *value != 0.0);
                parts.extend(some("update/loss_sft").map(|loss| format!("loss {loss:.3}")));
                parts.extend(get("reward/mean").map(|reward| format!("reward {reward:.2}")));
                parts.extend(get("reward/accuracy/mean").map(|share| format!("right {}", percent(share))));
                parts.extend(some("mode/memorise_fraction").map(|share| format!("memorised {}", percent(share))));
                parts.extend(get("time/tokens_per_sec").map(|speed| format!("{speed:.0} tokens/s")));
                let message = parts.join(" · ");
                self.bar.set_position(record.step);
                if self.plain.is_some_and(|last| last.elapsed() >= PLAIN_EVERY || record.step == 1) {
                    println!("step {}/{} · {message}", record.step, self.num_steps);
                    self.plain = Some(Instant::now());
                }
                self.bar.set_message(message);
            }
            Event::Evaluated(evaluation) => {
                for (suite, score) in &evaluation.suites {
                    self.say(format!(
                        "{} · {suite}: {} right ({} of {})",
                        evaluation.name,
                        percent(score.accuracy),
                        score.num_correct,
                        score.num_rows
                    ));
                }
            }
            Event::Checkpoint(_) => {}
            Event::Remark(text) => self.say(format!("note: {text}")),
        }
    }
}

/// Before and after, the share of groups by what they could teach, and speed.
fn summary(files: &RunFiles, elapsed: Duration) {
    println!();
    match files.before_and_after() {
        Some((before, after)) => {
            println!("{:<14}{:>24}{:>26}{:>10}", "accuracy", before.name, after.name, "change");
            for (suite, score) in &after.suites {
                let cell = |accuracy: f64, [low, high]: [f64; 2]| {
                    format!("{} [{:.1}, {:.1}]", percent(accuracy), 100.0 * low, 100.0 * high)
                };
                let old = before.suites.get(suite);
                println!(
                    "{suite:<14}{:>24}{:>26}{:>+10.1}",
                    old.map_or(String::new(), |old| cell(old.accuracy, old.interval)),
                    cell(score.accuracy, score.interval),
                    100.0 * (score.accuracy - old.map_or(0.0, |old| old.accuracy)),
                );
            }
        }
        None => {
            for score in files.scores.evaluations.iter().flat_map(|evaluation| &evaluation.suites) {
                println!("{:<14}{:>10}", score.0, percent(score.1.accuracy));
            }
        }
    }
    let groups = ["dead", "mixed", "all_correct"].map(|kind| (kind, format!("group/{kind}_fraction")));
    let words: Vec<String> = groups
        .iter()
        .filter_map(|(kind, metric)| {
            let (first, last) = files.first_and_last_tenth(metric)?;
            Some(format!("{} {} → {}", kind.replace('_', "-"), percent(first), percent(last)))
        })
        .collect();
    if !words.is_empty() {
        println!("groups        {}   (first and last tenth of the steps)", words.join(" · "));
    }
    if let Some((tokens_per_sec, _)) = files.speed() {
        println!("speed         {tokens_per_sec:.0} tokens per second, {} in all", duration(elapsed.as_secs_f64()));
    }
    for remark in remarks(files) {
        println!("note: {remark}");
    }
}

#[cfg(test)]
mod tests {
    use super::quoted;

    #[test]
    fn a_printed_command_can_be_run_as_it_stands() {
        assert_eq!(quoted("stage.0.steps=5"), "stage.0.steps=5");
        assert_eq!(quoted("stage.0.rule={ kl = 0.1 }"), "'stage.0.rule={ kl = 0.1 }'");
        assert_eq!(quoted("model='it'"), r"'model='\''it'\'''");
    }
}

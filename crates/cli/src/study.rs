//! `foveate study`: runs the cells of a study with each seed and shows the table. With `--jobs` several processes make
//! one run each; this one only hands out the runs and waits.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use foveate_kernels::{interrupt, isa};
use foveate_model::DeviceChoice;
use foveate_train::study::{self, Planned, Progress, Ran, StudySpec};

use crate::train::{INTERRUPTED, Screen, set_device};

/// How long runs in other processes get to write their last checkpoint after Ctrl-C.
const GRACE: Duration = Duration::from_secs(120);

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
    /// Make the runs of these cells only, and no table
    #[arg(long, value_delimiter = ',', value_name = "CELL")]
    cells: Vec<String>,
    /// Where they compute, in place of what recipes say: auto, cpu or cuda:0
    #[arg(long)]
    device: Option<DeviceChoice>,
    /// Runs at a time, each in a process with its share of the cores. Numbers do not change, and small models make
    /// better use of the cores so
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    jobs: u16,
}

/// Runs what is not done and prints the table.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    isa::check()?;
    let mut spec = study::read(&args.study)?;
    if !args.seeds.is_empty() {
        spec.seeds = args.seeds.clone();
    }
    spec.set.extend(args.device.map(set_device));
    study::check_cells(&args.study, &spec, &args.cells)?;
    let out = args.out.clone().unwrap_or_else(|| PathBuf::from("studies").join(&spec.name));
    interrupt::install();
    let wanted = |planned: &Planned| args.cells.is_empty() || args.cells.contains(&planned.cell.name);
    let runs: Vec<Planned> = study::runs(&spec).into_iter().filter(wanted).collect();
    let finished = match args.jobs {
        1 => one_by_one(&args, &spec, &out, &runs)?,
        jobs => Crowd { args: &args, out: &out, runs: &runs, jobs: jobs.into() }.run()?,
    };
    if !finished {
        println!("stopped; the same command goes on");
        return Ok(ExitCode::from(INTERRUPTED));
    }
    if args.cells.is_empty() {
        let written = study::write_table(&args.study, &spec, &out)?;
        print!("{}", std::fs::read_to_string(&written.markdown)?);
        println!("\n{}\n{}", written.markdown.display(), written.html.display());
    }
    Ok(ExitCode::SUCCESS)
}

fn one_by_one(args: &Args, spec: &StudySpec, out: &Path, runs: &[Planned]) -> anyhow::Result<bool> {
    let mut screen = Screen::new(0);
    for (index, planned) in runs.iter().enumerate() {
        let place = (index + 1, runs.len());
        let ran = study::run_one(&args.study, spec, *planned, out, place, &mut |progress| match progress {
            Progress::Cell { cell, seed, index, total, num_steps } => {
                screen.finish();
                println!("run {index} of {total}: {cell}, seed {seed}");
                screen = Screen::new(num_steps);
            }
            Progress::Run(event) => screen.show(event),
            Progress::Sampling(done, total) => screen.tell(format!("collecting answers, {done} of {total} questions")),
        })?;
        if ran == Ran::Interrupted {
            screen.finish();
            return Ok(false);
        }
    }
    screen.finish();
    Ok(true)
}

/// Runs in processes of their own.
struct Crowd<'a> {
    args: &'a Args,
    out: &'a Path,
    runs: &'a [Planned<'a>],
    jobs: usize,
}

struct Working {
    place: usize,
    child: Child,
    started: Instant,
}

impl Crowd<'_> {
    /// Hands out every run whose start is there. False if the person stopped it.
    fn run(&self) -> anyhow::Result<bool> {
        let mut waiting: Vec<usize> = (0..self.runs.len()).collect();
        let mut working: Vec<Working> = Vec::new();
        let (mut problem, mut stopped) = (None, None);
        loop {
            let may_start = problem.is_none() && !interrupt::requested();
            while may_start && working.len() < self.jobs {
                let Some(next) = waiting.iter().position(|place| self.is_ready(*place, &waiting, &working)) else {
                    break;
                };
                working.push(self.start(waiting.remove(next))?);
            }
            if working.is_empty() {
                break;
            }
            if interrupt::requested() {
                let since = *stopped.get_or_insert_with(Instant::now);
                if since.elapsed() > GRACE {
                    working.iter_mut().for_each(|one| drop(one.child.kill()));
                }
            }
            let mut index = 0;
            while index < working.len() {
                match working[index].child.try_wait()? {
                    None => index += 1,
                    Some(status) => {
                        let one = working.swap_remove(index);
                        let run = self.named(one.place);
                        if status.success() {
                            println!("done: {run}, after {} s", one.started.elapsed().as_secs());
                        } else if status.code() != Some(INTERRUPTED.into()) && !interrupt::requested() {
                            problem.get_or_insert(run);
                        }
                    }
                }
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        match problem {
            // Its own words stand above: it writes to the same terminal.
            Some(run) => anyhow::bail!("the run {run} failed; the others are kept, and the same command goes on"),
            None => Ok(waiting.is_empty() && !interrupt::requested()),
        }
    }

    /// Whether what the run starts from, if anything, is made.
    fn is_ready(&self, place: usize, waiting: &[usize], working: &[Working]) -> bool {
        let Planned { cell, seed } = self.runs[place];
        let start = |other: usize| {
            self.runs[other].seed == seed
                && cell.after.as_ref().is_some_and(|after| *after == self.runs[other].cell.name)
        };
        !waiting.iter().copied().chain(working.iter().map(|one| one.place)).any(start)
    }

    fn start(&self, place: usize) -> anyhow::Result<Working> {
        let Planned { cell, seed } = self.runs[place];
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("study").arg(&self.args.study).arg("--out").arg(self.out);
        command.args(["--cells", &cell.name, "--seeds", &seed.to_string()]);
        command.args(self.args.device.iter().flat_map(|device| ["--device".to_string(), device.to_string()]));
        command.env("RAYON_NUM_THREADS", (cores / self.jobs).max(1).to_string());
        command.stdin(Stdio::null()).stdout(Stdio::null());
        println!("run {} of {}: {}", place + 1, self.runs.len(), self.named(place));
        Ok(Working { place, child: command.spawn()?, started: Instant::now() })
    }

    fn named(&self, place: usize) -> String {
        format!("{}, seed {}", self.runs[place].cell.name, self.runs[place].seed)
    }
}

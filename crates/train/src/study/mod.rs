//! Many runs that differ in one thing each, and the table that compares them: cells times seeds, every number traceable
//! to a run's folder, resumable at any point. Knows recipes and runs; `table` knows numbers. Runs in several processes
//! are the command line's business: each makes one run, any of them may write the table.
//! Cost: that of the runs, one after the other.

pub mod table;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use foveate_model::{DeviceChoice, Precision};
use serde::{Deserialize, Serialize};

use crate::checkpoint::durable::{FileError, create_folder, read_file, write_file};
use crate::checkpoint::{CheckpointError, Checkpoints};
use crate::collect::{CollectError, CollectSpec, collect};
use crate::data::{self, DataError, Dataset};
use crate::error::TrainError;
use crate::eval::records::Scores;
use crate::prompt::Prompter;
use crate::recipe::parse::{RecipeError, parse};
use crate::recipe::{self, ModelRef};
use crate::run::{Run, lasting, resolve};
use crate::session::Event;
use crate::source;
use crate::train::train;

/// A study as it is typed.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StudySpec {
    /// Names the study's folder.
    pub name: String,
    /// One line above the table.
    pub title: String,
    /// What is asked and why, as Markdown.
    #[serde(default)]
    pub note: String,
    /// Seeds; every cell is run once with each. Three are the least that show how much chance there is.
    pub seeds: Vec<u64>,
    /// Recipe of cells that name none, relative to the study.
    #[serde(default)]
    pub recipe: Option<PathBuf>,
    /// `key=value` pairs for all cells.
    #[serde(default)]
    pub set: Vec<String>,
    /// The cells, in the order in which they are run and shown. The first one is what the others are compared with.
    pub cell: Vec<CellSpec>,
    /// What was claimed elsewhere, to be held against the numbers.
    #[serde(default)]
    pub claim: Vec<ClaimSpec>,
}

/// One line of the table.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CellSpec {
    /// Names its folder.
    pub name: String,
    /// What the table calls it; the name unless set.
    pub label: Option<String>,
    /// Its recipe, relative to the study.
    pub recipe: Option<PathBuf>,
    /// `key=value` pairs beside those of the study.
    pub set: Vec<String>,
    /// Starts from what this earlier cell left with the same seed.
    pub after: Option<String>,
    /// Settings of `foveate sample`, relative to the study: good answers of the model of `after` become `data.train`.
    pub sample: Option<PathBuf>,
    /// No run of its own: shows another evaluation of this cell's runs.
    pub of: Option<String>,
    /// Which evaluation is shown: `after` unless set.
    pub at: Option<String>,
}

/// A claim: one cell is better than another on a suite.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClaimSpec {
    /// In words, with its source.
    pub text: String,
    /// The cell that is said to be better.
    pub better: String,
    /// The cell that it is said to be better than.
    pub than: String,
    /// The suite.
    pub suite: String,
}

/// Why a study stopped.
#[derive(Debug, thiserror::Error)]
pub enum StudyError {
    /// The study's file cannot be used.
    #[error(transparent)]
    Recipe(#[from] RecipeError),
    /// A run stopped.
    #[error("cell {cell}, seed {seed}: {source}")]
    Run {
        /// The cell.
        cell: String,
        /// The seed.
        seed: u64,
        /// Why.
        source: Box<TrainError>,
    },
    /// Sampling for a cell stopped.
    #[error("cell {cell}, seed {seed}: {source}")]
    Collect {
        /// The cell.
        cell: String,
        /// The seed.
        seed: u64,
        /// Why.
        source: Box<CollectError>,
    },
    /// A cell was run with other settings than the study says now.
    #[error("{} was run with other settings than the study has now", .0.display())]
    Changed(PathBuf),
    /// A checkpoint cannot be read.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// Rows cannot be written.
    #[error(transparent)]
    Data(#[from] DataError),
    /// A file cannot be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// A run's folder does not hold what the table needs.
    #[error("{}: {problem}", path.display())]
    Result {
        /// Where.
        path: PathBuf,
        /// What is missing.
        problem: String,
    },
}

impl StudyError {
    /// What the person can do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            StudyError::Recipe(error) => error.hint.clone(),
            StudyError::Run { source, .. } => source.hint(),
            StudyError::Collect { source, .. } => source.hint(),
            StudyError::Changed(_) => Some("remove that folder to run the cell anew, or choose another --out".into()),
            StudyError::Checkpoint(error) => error.hint(),
            StudyError::Data(error) => error.hint(),
            StudyError::File(error) => error.hint(),
            StudyError::Result { .. } => Some("remove that folder to run the cell anew".into()),
        }
    }
}

/// What a study tells whoever watches it.
pub enum Progress<'a> {
    /// A run begins or goes on.
    Cell {
        /// Its cell.
        cell: &'a str,
        /// Its seed.
        seed: u64,
        /// Its place among all runs, from 1.
        index: usize,
        /// All runs.
        total: usize,
        /// Steps of the run.
        num_steps: u64,
    },
    /// Something happens in it.
    Run(Event<'a>),
    /// Answers are collected: questions done, of how many.
    Sampling(usize, usize),
}

/// Where the table is.
#[derive(Clone, Debug, PartialEq)]
pub struct Written {
    /// Markdown.
    pub markdown: PathBuf,
    /// The same as a page.
    pub html: PathBuf,
}

/// Reads and checks a study.
pub fn read(file: &Path) -> Result<StudySpec, StudyError> {
    let text = std::fs::read_to_string(file).map_err(|error| {
        RecipeError::new(
            file,
            format!("cannot be read: {error}"),
            "studies are TOML files; see recipes/studies".to_string(),
        )
    })?;
    let spec: StudySpec = parse(file, &text, &[])?;
    check(&spec).map_err(|message| {
        RecipeError::new(file, message, "docs/studies.md explains the file; recipes/studies holds examples".to_string())
    })?;
    Ok(spec)
}

fn check(spec: &StudySpec) -> Result<(), String> {
    let fine = |name: &str| !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || "-_".contains(c));
    if !fine(&spec.name) {
        return Err(format!("the name {:?} cannot name a folder", spec.name));
    }
    let mut seeds = spec.seeds.clone();
    seeds.sort_unstable();
    seeds.dedup();
    if seeds.is_empty() || seeds.len() != spec.seeds.len() {
        return Err("seeds must be a list of different numbers".into());
    }
    for (index, cell) in spec.cell.iter().enumerate() {
        let earlier = |name: &str| spec.cell[..index].iter().any(|other| other.name == name && other.of.is_none());
        if !fine(&cell.name) || spec.cell[..index].iter().any(|other| other.name == cell.name) {
            return Err(format!("the cell name {:?} is empty, not fit for a folder, or used twice", cell.name));
        }
        if let Some(name) = cell.after.as_ref().filter(|name| !earlier(name)) {
            return Err(format!("cell {}: {name:?} is no earlier cell with a run of its own", cell.name));
        }
        if let Some(name) = &cell.of
            && !spec.cell.iter().any(|other| other.name == *name && other.of.is_none())
        {
            return Err(format!("cell {}: {name:?} is no cell with a run of its own", cell.name));
        }
        let has_run = cell.recipe.is_some() || !cell.set.is_empty() || cell.after.is_some() || cell.sample.is_some();
        if cell.of.is_some() && has_run {
            return Err(format!("cell {} has `of` and settings of a run; one of them is too much", cell.name));
        }
        if cell.of.is_none() && cell.recipe.is_none() && spec.recipe.is_none() {
            return Err(format!("cell {} has no recipe, and neither has the study", cell.name));
        }
        if cell.sample.is_some() && cell.after.is_none() {
            return Err(format!("cell {} samples, but from no model: it needs `after`", cell.name));
        }
    }
    if spec.cell.is_empty() {
        return Err("there is no [[cell]]".into());
    }
    for claim in &spec.claim {
        for name in [&claim.better, &claim.than] {
            if !spec.cell.iter().any(|cell| cell.name == *name) {
                return Err(format!("the claim {:?} names no cell {name:?}", claim.text));
            }
        }
    }
    Ok(())
}

/// Folder of a cell's run.
pub fn run_folder(out: &Path, cell: &str, seed: u64) -> PathBuf {
    out.join("runs").join(cell).join(format!("seed-{seed}"))
}

/// Refuses names that no cell with runs of its own has.
pub fn check_cells(file: &Path, spec: &StudySpec, names: &[String]) -> Result<(), StudyError> {
    let known: Vec<&str> = spec.cell.iter().filter(|cell| cell.of.is_none()).map(|cell| cell.name.as_str()).collect();
    match names.iter().find(|name| !known.contains(&name.as_str())) {
        None => Ok(()),
        Some(name) => {
            let message = format!("there is no cell {name:?} with runs of its own");
            Err(RecipeError::new(file, message, format!("the cells are {}", known.join(", "))).into())
        }
    }
}

/// One run of a study.
#[derive(Clone, Copy, Debug)]
pub struct Planned<'a> {
    /// Its cell.
    pub cell: &'a CellSpec,
    /// Its seed.
    pub seed: u64,
}

/// All runs, in the order in which one process would make them: what a run starts from comes before it.
pub fn runs(spec: &StudySpec) -> Vec<Planned<'_>> {
    let own = || spec.cell.iter().filter(|cell| cell.of.is_none());
    spec.seeds.iter().flat_map(|seed| own().map(|cell| Planned { cell, seed: *seed })).collect()
}

/// What became of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ran {
    /// It was done before.
    Already,
    /// It is done now.
    Done,
    /// The person stopped it; it can be gone on with.
    Interrupted,
}

/// Makes one run, or what is missing of it. `index` and `total` only tell the watcher its place.
pub fn run_one(
    file: &Path,
    spec: &StudySpec,
    planned: Planned,
    out: &Path,
    (index, total): (usize, usize),
    watch: &mut dyn FnMut(Progress),
) -> Result<Ran, StudyError> {
    let Planned { cell, seed } = planned;
    let folder = run_folder(out, &cell.name, seed);
    let run = cell_run(file, spec, cell, seed, out, watch)?;
    if is_done(&run, &folder)? {
        return Ok(Ran::Already);
    }
    watch(Progress::Cell { cell: &cell.name, seed, index, total, num_steps: run.num_steps() });
    let resume = folder.join("recipe.toml").is_file();
    let outcome = train(&run, &folder, resume, &mut |event| watch(Progress::Run(event)));
    let failed = |source| StudyError::Run { cell: cell.name.clone(), seed, source: Box::new(source) };
    Ok(if outcome.map_err(failed)?.interrupted { Ran::Interrupted } else { Ran::Done })
}

/// Writes `study.md`, `study.html` and `study.json` of finished runs into `out`.
pub fn write_table(file: &Path, spec: &StudySpec, out: &Path) -> Result<Written, StudyError> {
    let table = table::Table::read(spec, out)?;
    let (markdown, html) = (out.join("study.md"), out.join("study.html"));
    create_folder(out)?;
    write_file(&markdown, table.markdown(&file.display().to_string()).as_bytes())?;
    write_file(&html, table.html(&file.display().to_string()).as_bytes())?;
    let text = serde_json::to_string_pretty(&table).expect("plain data always serialises");
    write_file(&out.join("study.json"), text.as_bytes())?;
    Ok(Written { markdown, html })
}

/// Recipe and `key=value` pairs of a cell, without what depends on earlier runs.
pub fn cell_recipe(file: &Path, spec: &StudySpec, cell: &CellSpec, seed: u64) -> (PathBuf, Vec<String>) {
    let base = file.parent().unwrap_or(Path::new(""));
    let recipe = base.join(cell.recipe.as_ref().or(spec.recipe.as_ref()).expect("checked when it was read"));
    let mut sets = vec![format!("seed={seed}")];
    sets.extend(spec.set.iter().cloned());
    sets.extend(cell.set.iter().cloned());
    (recipe, sets)
}

/// The resolved run of a cell and a seed; collects its data first if it asks for that.
fn cell_run(
    file: &Path,
    spec: &StudySpec,
    cell: &CellSpec,
    seed: u64,
    out: &Path,
    watch: &mut dyn FnMut(Progress),
) -> Result<Run, StudyError> {
    let (recipe, mut sets) = cell_recipe(file, spec, cell, seed);
    if let Some(settings) = &cell.sample {
        let base = file.parent().unwrap_or(Path::new(""));
        // Answers are drawn where the run will compute. A recipe that cannot be read is told below.
        let device = recipe::read(&recipe, &sets).ok().and_then(|raw| raw.device?.parse().ok()).unwrap_or_default();
        let rows = collected(&base.join(settings), cell, seed, device, out, watch)?;
        let source = BTreeMap::from([("path", absolute(&rows)?)]);
        sets.push(format!("data.train={}", inline(&source)));
    }
    let mut raw = recipe::read(&recipe, &sets)?;
    let failed = |source| StudyError::Run { cell: cell.name.clone(), seed, source: Box::new(source) };
    if let Some(after) = &cell.after {
        raw.model = ModelRef::Named(absolute(&left_by(&run_folder(out, after, seed))?)?);
    }
    resolve(&recipe, raw).map_err(failed)
}

/// Good answers of the model that a cell starts from, as rows on disk; made once.
fn collected(
    settings: &Path,
    cell: &CellSpec,
    seed: u64,
    device: DeviceChoice,
    out: &Path,
    watch: &mut dyn FnMut(Progress),
) -> Result<PathBuf, StudyError> {
    let folder = out.join("collected").join(&cell.name).join(format!("seed-{seed}"));
    if folder.join("rows.jsonl").is_file() {
        return Ok(folder);
    }
    let after = cell.after.as_deref().expect("checked when it was read");
    let model = left_by(&run_folder(out, after, seed))?;
    let text = read_file(settings)?;
    let mut spec: CollectSpec = parse(settings, &String::from_utf8_lossy(&text), &[])?;
    spec.seed = seed;
    let failed = |source| StudyError::Collect { cell: cell.name.clone(), seed, source: Box::new(source) };
    let problem = |problem: String| StudyError::Result { path: model.clone(), problem };
    let source =
        source::find(Path::new(""), &model.display().to_string()).map_err(|error| problem(error.to_string()))?;
    let policy = source.load(Precision::Auto).and_then(|policy| policy.merged()?.on(device, Precision::Auto));
    let mut policy = policy.map_err(|error| failed(error.into()))?;
    let prompter = Prompter::load(&source.folder).map_err(|error| problem(error.to_string()))?;
    let base = settings.parent().unwrap_or(Path::new(""));
    let cache = folder.with_extension("cache");
    let mut progress = |done, total| watch(Progress::Sampling(done, total));
    let found = collect(&mut policy, &prompter, &spec, base, Some(cache), &mut progress).map_err(failed)?;
    if found.rows.is_empty() {
        return Err(failed(CollectError::Settings("no answer reached the threshold".into())));
    }
    data::make(&Dataset::from_rows(found.rows), &folder)?;
    Ok(folder)
}

/// The newest checkpoint of a run.
fn left_by(run: &Path) -> Result<PathBuf, StudyError> {
    let (found, _) = Checkpoints::new(run, 1).newest()?;
    let problem = "it has no checkpoint to start from".to_string();
    found.map(|found| found.path).ok_or(StudyError::Result { path: run.to_path_buf(), problem })
}

fn absolute(path: &Path) -> Result<String, StudyError> {
    let path = std::path::absolute(path).map_err(FileError::new("find", path))?;
    Ok(path.display().to_string())
}

fn inline(source: &BTreeMap<&str, String>) -> String {
    let fields: Vec<String> =
        source.iter().map(|(key, value)| format!("{key} = {}", toml::Value::String(value.clone()))).collect();
    format!("{{ {} }}", fields.join(", "))
}

/// Whether a run was evaluated at its end, with these very settings.
fn is_done(run: &Run, folder: &Path) -> Result<bool, StudyError> {
    let recipe = folder.join("recipe.toml");
    if !recipe.is_file() {
        return Ok(false);
    }
    if lasting(&String::from_utf8_lossy(&read_file(&recipe)?)) != lasting(&run.to_toml()) {
        return Err(StudyError::Changed(folder.to_path_buf()));
    }
    let scores = folder.join("eval.json");
    if !scores.is_file() {
        return Ok(false);
    }
    let scores: Scores = serde_json::from_slice(&read_file(&scores)?)
        .map_err(|error| StudyError::Result { path: scores, problem: error.to_string() })?;
    Ok(scores.evaluations.iter().any(|evaluation| evaluation.name == "after"))
}

/// Where a number of the table comes from.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Source {
    /// The run's folder, relative to the study's.
    pub run: String,
    /// Its seed.
    pub seed: u64,
    /// Which evaluation of it.
    pub at: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(text: &str) -> String {
        let spec: StudySpec = toml::from_str(&format!("name = 's'\ntitle = 't'\n{text}")).expect("syntax");
        check(&spec).expect_err(text)
    }

    #[test]
    fn studies_that_cannot_be_run_are_refused() {
        for (text, told) in [
            ("seeds = []\ncell = []", "seeds"),
            ("seeds = [1, 1]\ncell = []", "seeds"),
            ("seeds = [1]\ncell = []", "no [[cell]]"),
            ("seeds = [1]\n[[cell]]\nname = 'a'", "no recipe"),
            ("seeds = [1]\nrecipe = 'r.toml'\ncell = [ { name = 'a' }, { name = 'a' } ]", "used twice"),
            ("seeds = [1]\nrecipe = 'r.toml'\ncell = [ { name = 'a', after = 'b' } ]", "no earlier cell"),
            ("seeds = [1]\nrecipe = 'r.toml'\ncell = [ { name = '../a' } ]", "not fit"),
            ("seeds = [1]\nrecipe = 'r.toml'\ncell = [ { name = 'a', sample = 'c.toml' } ]", "needs `after`"),
            (
                "seeds = [1]\nrecipe = 'r.toml'\ncell = [ { name = 'a' }, { name = 'b', of = 'a', set = ['x=1'] } ]",
                "too much",
            ),
            (
                "seeds = [1]\nrecipe = 'r.toml'\ncell = [ { name = 'a' } ]\n[[claim]]\ntext = 'c'\nbetter = 'a'\nthan = 'z'\nsuite = 'id'",
                "names no cell",
            ),
        ] {
            let message = refused(text);
            assert!(message.contains(told), "{message}");
        }
    }

    #[test]
    fn paths_survive_as_toml() {
        let source = BTreeMap::from([("path", "a \"b\"\\c".to_string())]);
        let table: toml::Table = toml::from_str(&format!("x = {}", inline(&source))).expect("TOML");
        assert_eq!(table["x"]["path"].as_str(), Some("a \"b\"\\c"));
    }
}

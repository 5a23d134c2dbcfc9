//! Opens what `config` describes: picks rows, derives their form, joins sources, and hands out row `i`.
//! Knows nothing of order; that is `questions`' work. Rows of worlds are drawn when asked for, rows of files are in
//! memory. Cost: opening a file reads it once; a world costs nothing until a row is asked for.

use std::collections::{BTreeMap, HashSet};
use std::path::Path;

use foveate_kernels::rng::Purpose;
use foveate_tasks::derive::derive;
use foveate_tasks::draws::Draws;
use foveate_tasks::{
    Answer, Format, PrimerSpec, Quality, Row, Split, World, WorldSpec, primer, row, row_without_images,
};
use rayon::prelude::*;

use super::audit::contradiction;
use super::config::{Amount, DataSource, RowFilter, Sources, Take};
use super::error::DataError;
use super::files::{self, Reading};
use super::hub_files::{self, Found};
use super::questions::Order;

/// All rows of one or several sources.
#[derive(Clone, Debug, Default)]
pub struct Dataset {
    parts: Vec<Part>,
    skipped: Vec<Skipped>,
    /// Which of the joined rows are used, in order; all if absent.
    picked: Option<Vec<u64>>,
}

/// A row that was left out, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Skipped {
    /// What is wrong, place included.
    pub reason: String,
}

#[derive(Clone, Debug)]
enum Part {
    World {
        spec: WorldSpec,
        seed: u64,
        picked: Vec<u64>,
    },
    /// One entry per picture; its rows are made together.
    Primer {
        spec: PrimerSpec,
        seed: u64,
        picked: Vec<u64>,
    },
    Rows(Vec<Row>),
}

impl Part {
    fn len(&self) -> usize {
        match self {
            Part::World { picked, .. } | Part::Primer { picked, .. } => picked.len(),
            Part::Rows(rows) => rows.len(),
        }
    }
}

/// What `random:` and derivation add to the key, so that they do not share draws with the order of questions.
const PICK_STREAM: u32 = 0x7069_636b;
const FILE_PART: u32 = 0x0066_696c;

/// Opens all sources. Paths are relative to `base`; `seed` serves the sources that name none.
pub fn open(sources: &Sources, base: &Path, seed: u64) -> Result<Dataset, DataError> {
    let mut dataset = Dataset::default();
    for source in &sources.0 {
        dataset.add(source, base, source.seed.unwrap_or(seed))?;
    }
    if dataset.is_empty() {
        let hint = "name at least one source, for example train = { task = \"counting\", rows = 1000 }";
        return Err(DataError::Empty { what: "the list of sources".into(), hint: hint.into() });
    }
    Ok(dataset)
}

impl Dataset {
    /// A data set of rows that are there already.
    pub fn from_rows(rows: Vec<Row>) -> Self {
        Self { parts: vec![Part::Rows(rows)], ..Self::default() }
    }

    /// Number of rows.
    pub fn len(&self) -> usize {
        self.picked.as_ref().map_or_else(|| self.num_joined(), Vec::len)
    }

    fn num_joined(&self) -> usize {
        self.parts.iter().map(Part::len).sum()
    }

    /// The rows that `skip` and `take` leave of all sources together.
    pub fn select(mut self, skip: Amount, take: Take, seed: u64) -> Result<Self, DataError> {
        let total = self.len();
        if skip.of(total) == 0 && take == Take::All {
            return Ok(self);
        }
        let chosen = pick(total, skip, take, seed);
        if chosen.is_empty() {
            let hint = format!("the stage's skip = {skip} and take = {take} leave none of {total} rows");
            return Err(DataError::Empty { what: "the stage's data".into(), hint });
        }
        let joined = |index: u64| self.picked.as_ref().map_or(index, |picked| picked[index as usize]);
        self.picked = Some(chosen.into_iter().map(joined).collect());
        Ok(self)
    }

    /// Whether there are no rows; never so after [`open`].
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Row `index`, with its images.
    pub fn row(&self, index: usize) -> Row {
        match self.find(index) {
            (Part::World { spec, seed, picked }, i) => row(spec, *seed, picked[i]),
            (Part::Primer { spec, seed, picked }, i) => primer(spec, *seed, picked[i]).swap_remove(0),
            (Part::Rows(rows), i) => rows[i].clone(),
        }
    }

    /// Row `index`; a world's row comes without its images, which makes it cheap.
    pub fn text_row(&self, index: usize) -> Row {
        match self.find(index) {
            (Part::World { spec, seed, picked }, i) => row_without_images(spec, *seed, picked[i]),
            (Part::Primer { .. }, _) => self.row(index),
            (Part::Rows(rows), i) => rows[i].clone(),
        }
    }

    /// All rows at `index`: one, or those that a primer makes about one picture and that share its drawing.
    pub fn rows_at(&self, index: usize) -> Vec<Row> {
        match self.find(index) {
            (Part::Primer { spec, seed, picked }, i) => primer(spec, *seed, picked[i]),
            _ => vec![self.row(index)],
        }
    }

    /// The rows that were left out.
    pub fn skipped(&self) -> &[Skipped] {
        &self.skipped
    }

    fn find(&self, index: usize) -> (&Part, usize) {
        let mut rest = self.picked.as_ref().map_or(index, |picked| picked[index] as usize);
        for part in &self.parts {
            if rest < part.len() {
                return (part, rest);
            }
            rest -= part.len();
        }
        panic!("row {index} was asked for, there are {}", self.len());
    }

    fn add(&mut self, source: &DataSource, base: &Path, seed: u64) -> Result<(), DataError> {
        match (source.task, &source.path) {
            (Some(_), None) => self.parts.push(open_world(source, seed)?),
            (None, Some(path)) => {
                let part = self.open_file(source, &base.join(path), base, seed)?;
                self.parts.push(part);
            }
            (Some(_), Some(path)) => {
                return Err(unfit(
                    format!("a source has both `task` and `path` ({})", path.display()),
                    "make two sources of it: train = [{ task = .. }, { path = .. }]",
                ));
            }
            (None, None) => {
                return Err(unfit(
                    "a source has neither `task` nor `path`",
                    "write { task = \"counting\", rows = 1000 } or { path = \"rows.jsonl\" }",
                ));
            }
        }
        Ok(())
    }

    fn open_file(&mut self, source: &DataSource, path: &Path, base: &Path, seed: u64) -> Result<Part, DataError> {
        let refused = [
            (source.rows.is_some(), "rows", "use take = \"first:N\" for a file"),
            (source.size.is_some(), "size", "a file's images have their own sizes"),
            (
                source.rationale.is_some_and(|quality| quality != Quality::None),
                "rationale",
                "a file's rationales are used as they are; only rationale = \"none\" is possible",
            ),
        ];
        if let Some((_, key, hint)) = refused.iter().find(|(given, _, _)| *given) {
            return Err(unfit(
                format!("`{key}` belongs to built-in worlds, not to the file {}", path.display()),
                *hint,
            ));
        }
        let found = hub_files::find(path, source.split.as_deref())?;
        let path = found.path();
        let folder = path.parent().unwrap_or(Path::new("")).to_path_buf();
        let reading = Reading {
            images: source.images.as_ref().map_or(folder, |images| base.join(images)),
            name: path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default(),
            path: path.to_path_buf(),
            answer_type: source.answer_type,
            on_bad_row: source.on_bad_row,
            fields: checked_fields(source)?,
        };
        let (mut rows, bad) = match &found {
            Found::Text(_) => files::read(&reading)?,
            Found::Parquet(_, parts) => files::read_parquet(&reading, parts)?,
        };
        let num_read = rows.len();
        self.skipped.extend(bad.iter().map(|error| Skipped { reason: error.to_string() }));
        rows.retain(|row| {
            source.split.as_ref().is_none_or(|split| *split == row.split)
                && source.levels.as_ref().is_none_or(|levels| levels.contains(&row.level))
                && source.filter.as_ref().is_none_or(|filter| filter.keeps(row))
        });
        let golds = Golds::of(&rows);
        let picked = pick(rows.len(), source.skip, source.take, seed);
        let mut rows = keep(rows, &picked);
        if source.rationale == Some(Quality::None) {
            rows.iter_mut().for_each(|row| row.rationale.clear());
        }
        if source.format != Format::Open {
            rows = self.derive_all(rows, source.format, &golds, seed);
        }
        if rows.is_empty() {
            let hint = match (num_read, bad.first()) {
                (0, Some(error)) => format!("all {} rows were skipped; the first: {error}", bad.len()),
                (0, None) => "the file is empty; each line must hold one row".into(),
                _ => format!("{num_read} rows were read, but split, levels, filter, skip, take or format leave none"),
            };
            return Err(DataError::Empty { what: path.display().to_string(), hint });
        }
        Ok(Part::Rows(rows))
    }

    /// Rows for which no wrong answer can be found are left out and listed, as methods.md 3.1 asks.
    fn derive_all(&mut self, rows: Vec<Row>, format: Format, golds: &Golds, seed: u64) -> Vec<Row> {
        let mut derived = Vec::with_capacity(rows.len());
        for open in rows {
            // Keyed by the place among the kept rows: the balance within neighbours stays exact.
            let index = derived.len() as u64;
            let candidates = golds.candidates(&open, seed, index);
            match derive(&open, format, &candidates, seed, FILE_PART, index) {
                Some(row) => derived.push(row),
                None => self.skipped.push(Skipped {
                    reason: format!("row {}: no plausible wrong answer for the format {}", open.id, format.name()),
                }),
            }
        }
        derived
    }
}

fn unfit(problem: impl Into<String>, hint: impl Into<String>) -> DataError {
    DataError::Source { problem: problem.into(), hint: hint.into() }
}

fn open_world(source: &DataSource, seed: u64) -> Result<Part, DataError> {
    let world = source.task.expect("the caller looked");
    if source.answer_type.is_some() || source.images.is_some() || !source.fields.is_empty() {
        return Err(unfit(
            format!("`answer_type`, `images` and `fields` belong to files, not to the world {}", world.name()),
            "leave them out",
        ));
    }
    let split = match source.split.as_deref() {
        None | Some("train") => Split::Train,
        Some("id") => Split::Id,
        Some("ood") => Split::Ood,
        Some(other) => {
            return Err(unfit(
                format!("the world {} has no split `{other}`", world.name()),
                "its splits are train, id (same distribution, other scenes) and ood (shifted)",
            ));
        }
    };
    let mut spec = WorldSpec::new(world, split);
    spec.format = source.format;
    if let Some(levels) = &source.levels
        && source.primer.is_none()
    {
        spec.levels = levels.clone();
    }
    if let Some(quality) = source.rationale {
        spec.rationale = quality;
    }
    if let Some(size) = source.size {
        spec.size = size;
    }
    spec.check()?;
    if let Some(rows_per_image) = source.primer {
        return open_primer(source, &spec, rows_per_image, seed);
    }
    if source.multi_step_share.is_some() {
        return Err(unfit("`multi_step_share` belongs to a primer", "add primer = 8, or leave it out"));
    }
    let rows = source.rows.unwrap_or(1000);
    if rows > u64::from(u32::MAX) {
        return Err(unfit(format!("{rows} rows are too many"), "a world gives up to 4294967295"));
    }
    let mut fit = if world == World::Structure { different(&spec, seed, rows) } else { (0..rows).collect() };
    if let Some(filter) = &source.filter {
        fit.retain(|index| filter.keeps(&row_without_images(&spec, seed, *index)));
    }
    let picked: Vec<u64> =
        pick(fit.len(), source.skip, source.take, seed).into_iter().map(|index| fit[index as usize]).collect();
    if picked.is_empty() {
        let hint = format!(
            "rows = {rows}, of which the filter leaves {}; skip = {}, take = {} leave none of those",
            fit.len(),
            source.skip,
            source.take
        );
        return Err(DataError::Empty { what: format!("the world {}", world.name()), hint });
    }
    Ok(Part::World { spec, seed, picked })
}

/// Indices of `rows` rows that ask different things or show different scenes: those from 0 on, but in the place of a row that
/// an earlier one asks already, one from behind the last. `structure` needs it, whose L shapes and Pythagorean triangles
/// are few; the scenes of the other worlds are so many that rows do not repeat.
/// Cost: every row once without its picture.
fn different(world: &WorldSpec, seed: u64, rows: u64) -> Vec<u64> {
    let open = WorldSpec { format: Format::Open, rationale: Quality::None, ..world.clone() };
    let key = |index: u64| {
        let row = row_without_images(&open, seed, index);
        (row.facts, row.question)
    };
    let keys: Vec<_> = (0..rows).into_par_iter().map(key).collect();
    let mut seen = HashSet::with_capacity(keys.len());
    let fresh: Vec<bool> = keys.into_iter().map(|key| seen.insert(key)).collect();
    let mut behind = rows..;
    let mut replaced = |index: u64| {
        // So many tries bound the time where a world has no more to give; the row comes twice then.
        behind.by_ref().take(REPLACEMENTS).find(|other| seen.insert(key(*other))).unwrap_or(index)
    };
    let all = fresh.into_iter().zip(0..rows);
    all.map(|(fresh, index)| if fresh { index } else { replaced(index) }).collect()
}

/// Rows that are looked at to replace one that comes twice.
const REPLACEMENTS: usize = 100;

/// Pre-training material: one entry per picture.
fn open_primer(source: &DataSource, world: &WorldSpec, rows_per_image: usize, seed: u64) -> Result<Part, DataError> {
    let share = source.multi_step_share.unwrap_or(0.05);
    if !(1..=64).contains(&rows_per_image) || !(0.0..=1.0).contains(&share) {
        return Err(unfit(
            format!("primer = {rows_per_image} with multi_step_share = {share} is out of range"),
            "1 to 64 rows about each picture, and a share from 0 to 1; primer = 8 is a good start",
        ));
    }
    let own = source.format != Format::Open || source.rationale.is_some() || source.filter.is_some();
    if own || world.split != Split::Train {
        return Err(unfit(
            "a primer has no split, format, filter or rationale of its own",
            "leave them out; its material comes from the scenes of `train`",
        ));
    }
    let pictures = source.rows.unwrap_or(1000).div_ceil(rows_per_image as u64).min(u64::from(u32::MAX));
    let picked = pick(pictures as usize, source.skip, source.take, seed);
    if picked.is_empty() {
        let hint = format!("skip = {}, take = {} leave none of {pictures} pictures", source.skip, source.take);
        return Err(DataError::Empty { what: format!("the primer of {}", world.world.name()), hint });
    }
    let mut spec = PrimerSpec::new(world.world);
    (spec.rows_per_image, spec.multi_step_share, spec.size) = (rows_per_image, share, world.size);
    if let Some(levels) = &source.levels {
        if levels.is_empty() || levels.iter().any(|level| *level > 3) {
            return Err(unfit(format!("levels = {levels:?} in a primer"), "a primer's levels are 0, 1, 2 and 3"));
        }
        spec.levels = levels.clone();
    }
    Ok(Part::Primer { spec, seed, picked })
}

impl RowFilter {
    /// Whether a row meets all conditions.
    pub fn keeps(&self, row: &Row) -> bool {
        (!self.consistent || contradiction(row).is_none())
            && (!self.rationale || !row.rationale.trim().is_empty())
            && (!self.facts || !row.facts.trim().is_empty())
            && (self.answers.is_empty() || self.answers.iter().any(|kind| kind == row.answer.kind()))
            && self.max_question_words.is_none_or(|most| row.question.split_whitespace().count() <= most)
    }
}

/// The fields that a source may rename.
const FIELDS: [&str; 12] = [
    "question",
    "answer",
    "images",
    "rationale",
    "facts",
    "choices",
    "id",
    "task",
    "split",
    "level",
    "messages",
    "conversations",
];

fn checked_fields(source: &DataSource) -> Result<BTreeMap<String, String>, DataError> {
    match source.fields.keys().find(|name| !FIELDS.contains(&name.as_str())) {
        Some(name) => Err(unfit(
            format!("`fields` renames to `{name}`, which no row has"),
            format!("ours come first, {{ question = \"prompt\" }}; ours are {}", FIELDS.join(", ")),
        )),
        None => Ok(source.fields.clone()),
    }
}

/// Indices after `skip` and `take`, ascending.
fn pick(total: usize, skip: Amount, take: Take, seed: u64) -> Vec<u64> {
    let start = skip.of(total);
    let rest = total - start;
    let range = match take {
        Take::All => start..total,
        Take::First(amount) => start..start + amount.of(rest),
        Take::End(amount) => total - amount.of(rest)..total,
        Take::Random(amount) => {
            let order = Order::shuffled(rest, seed, PICK_STREAM);
            let mut picked: Vec<u64> =
                (0..amount.of(rest) as u64).map(|position| (start + order.row_at(position)) as u64).collect();
            picked.sort_unstable();
            return picked;
        }
    };
    range.map(|index| index as u64).collect()
}

fn keep(rows: Vec<Row>, picked: &[u64]) -> Vec<Row> {
    let mut wanted = picked.iter().copied().peekable();
    let kept = |(index, row): (usize, Row)| wanted.next_if_eq(&(index as u64)).map(|_| row);
    rows.into_iter().enumerate().filter_map(kept).collect()
}

/// Right answers of a file by task and type: the wrong options of other rows.
struct Golds(BTreeMap<(String, &'static str), Vec<String>>);

/// So many other golds are looked at per row; more would make opening quadratic.
const CANDIDATES: usize = 48;

impl Golds {
    fn of(rows: &[Row]) -> Self {
        let mut golds: BTreeMap<(String, &'static str), Vec<String>> = BTreeMap::new();
        for row in rows {
            let texts = match &row.answer {
                Answer::Labels(labels) => labels.clone(),
                answer => vec![answer.text()],
            };
            golds.entry((row.task.clone(), row.answer.kind())).or_default().extend(texts);
        }
        for texts in golds.values_mut() {
            texts.sort_unstable();
            texts.dedup();
        }
        Self(golds)
    }

    fn candidates(&self, row: &Row, seed: u64, index: u64) -> Vec<String> {
        let Some(texts) = self.0.get(&(row.task.clone(), row.answer.kind())) else { return vec![] };
        if texts.len() <= CANDIDATES {
            return texts.clone();
        }
        let mut draws = Draws::new(seed, Purpose::Derivation, FILE_PART ^ 1, index);
        (0..CANDIDATES).map(|_| texts[draws.below(texts.len())].clone()).collect()
    }
}

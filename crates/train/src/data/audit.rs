//! Says what is in a data set and what is wrong with it: types, balance, duplicates, overlap between training and
//! test, rationales that contradict their answer, images that cannot be read.
//! Pictures are compared pixel by pixel, and by their looks from afar (`near`): resized or re-encoded ones are found.
//! Cost: decodes every picture once, in parallel; rows of worlds are compared by their facts instead.

use std::collections::{BTreeMap, HashMap};
use std::fmt;

use foveate_tasks::{Answer, ImageData, Row, Split, World};
use rayon::prelude::*;
use serde::Serialize;

use super::config::{DataSource, Sources};
use super::dataset::Dataset;
use super::near;

/// The findings about one data set.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Audit {
    /// Rows.
    pub num_rows: usize,
    /// Rows left out when it was opened.
    pub num_skipped: usize,
    /// Rows by type of answer.
    pub answer_types: BTreeMap<String, usize>,
    /// Rows by task.
    pub tasks: BTreeMap<String, usize>,
    /// Rows by split.
    pub splits: BTreeMap<String, usize>,
    /// Rows by difficulty level.
    pub levels: BTreeMap<u8, usize>,
    /// The most frequent answer and its share: what the best blind answerer scores.
    pub most_frequent: (String, f64),
    /// Share of yes among the yes/no answers; absent if there are none.
    pub yes_share: Option<f64>,
    /// Share of each letter among single-letter answers.
    pub letters: BTreeMap<String, f64>,
    /// Longest question and rationale, in words.
    pub longest_words: (usize, usize),
    /// Rows without rationale.
    pub num_without_rationale: usize,
    /// Ids of rows whose image cannot be read, with the reason.
    pub unreadable: Vec<(String, String)>,
    /// Pairs of ids with the same images and the same question.
    pub duplicates: Vec<(String, String)>,
    /// Pairs of ids whose pictures differ and look alike: resized, re-encoded or brightened.
    pub look_alikes: Vec<(String, String)>,
    /// Ids of rows whose rationale ends in another number than the answer, with that number.
    pub contradictions: Vec<(String, String)>,
}

/// A test row that is in the training set as well.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Overlap {
    /// Id in the training set.
    pub train: String,
    /// Id in the test set.
    pub test: String,
    /// The pictures are not the same to the pixel and look the same: resized, re-encoded or brightened.
    pub by_looks: bool,
}

/// Looks at every row.
pub fn audit(dataset: &Dataset) -> Audit {
    let rows: Vec<Row> = (0..dataset.len()).map(|index| dataset.text_row(index)).collect();
    let keys = keys(&rows);
    let mut audit = Audit { num_rows: rows.len(), num_skipped: dataset.skipped().len(), ..Audit::default() };
    let (mut answers, mut letters) = (BTreeMap::<String, usize>::new(), BTreeMap::<String, usize>::new());
    let (mut yes, mut yes_no) = (0, 0);
    let mut first_with = HashMap::new();
    for (row, key) in rows.iter().zip(keys) {
        *audit.answer_types.entry(row.answer.kind().into()).or_default() += 1;
        *audit.tasks.entry(row.task.clone()).or_default() += 1;
        *audit.splits.entry(row.split.clone()).or_default() += 1;
        *audit.levels.entry(row.level).or_default() += 1;
        *answers.entry(row.answer.text()).or_default() += 1;
        match &row.answer {
            Answer::YesNo(answer) => {
                yes_no += 1;
                yes += usize::from(*answer);
            }
            Answer::Choice(all) if all.len() == 1 => *letters.entry(all[0].clone()).or_default() += 1,
            _ => {}
        }
        let words = |text: &str| text.split_whitespace().count();
        audit.longest_words.0 = audit.longest_words.0.max(words(&row.question));
        audit.longest_words.1 = audit.longest_words.1.max(words(&row.rationale));
        audit.num_without_rationale += usize::from(row.rationale.is_empty());
        audit.contradictions.extend(contradiction(row).map(|number| (row.id.clone(), number)));
        match key {
            Err(reason) => audit.unreadable.push((row.id.clone(), reason)),
            Ok(key) => match first_with.entry(key) {
                std::collections::hash_map::Entry::Occupied(first) => {
                    audit.duplicates.push((String::clone(first.get()), row.id.clone()));
                }
                std::collections::hash_map::Entry::Vacant(place) => {
                    place.insert(row.id.clone());
                }
            },
        }
    }
    audit.look_alikes = look_alikes(&rows);
    let share = |count: usize, of: usize| count as f64 / of.max(1) as f64;
    // Of equally frequent answers the last by name: any fixed rule will do.
    if let Some((answer, count)) = answers.into_iter().max_by_key(|(_, count)| *count) {
        audit.most_frequent = (answer, share(count, rows.len()));
    }
    audit.yes_share = (yes_no > 0).then(|| share(yes, yes_no));
    let lettered: usize = letters.values().sum();
    audit.letters = letters.into_iter().map(|(letter, count)| (letter, share(count, lettered))).collect();
    audit
}

/// Pairs of rows whose first pictures look alike without being the same. Worlds draw every scene anew, and their scenes
/// are compared by facts already.
fn look_alikes(rows: &[Row]) -> Vec<(String, String)> {
    let looks: Vec<Option<(u64, near::Look)>> = rows
        .par_iter()
        .map(|row| {
            if is_of_world(row) {
                return None;
            }
            let picture = open_image(row.images.first()?).ok()?;
            Some((hash(picture.to_rgb8().as_raw()), near::look(&picture)))
        })
        .collect();
    // The same picture under several questions is looked at once.
    let mut seen = std::collections::HashSet::new();
    let distinct: Vec<Option<near::Look>> =
        looks.iter().map(|look| look.and_then(|(key, look)| seen.insert(key).then_some(look))).collect();
    let id = |index: usize| rows[index].id.clone();
    near::pairs(&distinct).into_iter().map(|(a, b)| (id(a), id(b))).collect()
}

/// Whether rows of the two could be the same at all. Splits of a world never share a scene, so only a file, or the same
/// split of the same world, needs a closer look.
pub fn may_overlap(train: &Sources, test: &Sources) -> bool {
    let split = |source: &DataSource| source.split.clone().unwrap_or_else(|| Split::Train.name().to_string());
    train.0.iter().any(|a| {
        test.0.iter().any(|b| a.task.is_none() || b.task.is_none() || (a.task == b.task && split(a) == split(b)))
    })
}

/// Test rows whose images and question are in the training set, whatever form the question has there; and rows whose
/// question and answer are there about pictures that look the same.
pub fn overlap(train: &Dataset, test: &Dataset) -> Vec<Overlap> {
    let rows = |dataset: &Dataset| -> Vec<Row> { (0..dataset.len()).map(|i| dataset.text_row(i)).collect() };
    let (train, test) = (rows(train), rows(test));
    let mut known = HashMap::new();
    for (row, key) in train.iter().zip(keys(&train)) {
        if let Ok(key) = key {
            known.entry(key).or_insert(&row.id);
        }
    }
    let same = |key: Result<Key, String>| -> Option<String> { Some(known.get(&key.ok()?)?.to_string()) };
    let same: Vec<Option<String>> = keys(&test).into_iter().map(same).collect();
    let rest: Vec<&Row> = test.iter().zip(&same).filter(|(_, same)| same.is_none()).map(|(row, _)| row).collect();
    let mut alike = overlap_by_looks(&train, &rest).into_iter();
    let mut found = Vec::new();
    for (row, same) in test.iter().zip(same) {
        let pair = match same {
            Some(train) => Some((train, false)),
            None => alike.next().expect("one entry per row that is not the same").map(|train| (train, true)),
        };
        found.extend(pair.map(|(train, by_looks)| Overlap { train, test: row.id.clone(), by_looks }));
    }
    found
}

/// For each test row, the training row with its question and answer whose pictures look the same, if there is one. Only
/// pictures under a question and answer that both sides have are looked at.
fn overlap_by_looks(train: &[Row], test: &[&Row]) -> Vec<Option<String>> {
    let asked = |row: &Row| (question_key(row), row.answer.text());
    let wanted: std::collections::HashSet<_> = test.iter().map(|row| asked(row)).collect();
    let candidates: Vec<&Row> = train.iter().filter(|row| wanted.contains(&asked(row))).collect();
    let mut known: HashMap<_, Vec<(&Row, Vec<near::Look>)>> = HashMap::new();
    let looked: Vec<_> = candidates.par_iter().map(|row| looks(row)).collect();
    for (row, looks) in candidates.into_iter().zip(looked) {
        if let Some(looks) = looks {
            known.entry(asked(row)).or_default().push((row, looks));
        }
    }
    let alike = |row: &&Row| {
        let others = known.get(&asked(row))?;
        let looks = looks(row)?;
        let alike = |(_, other): &&(&Row, Vec<near::Look>)| {
            other.len() == looks.len() && other.iter().zip(&looks).all(|(a, b)| a.is_like(b))
        };
        others.iter().find(alike).map(|(row, _)| row.id.clone())
    };
    test.par_iter().map(alike).collect()
}

/// What a row's pictures look like; nothing for rows of worlds, whose scenes are compared by their facts.
fn looks(row: &Row) -> Option<Vec<near::Look>> {
    if row.images.is_empty() || is_of_world(row) {
        return None;
    }
    row.images.iter().map(|image| Some(near::look(&open_image(image).ok()?))).collect()
}

/// Whether a world drew the row's pictures, now or before it was written to a file.
fn is_of_world(row: &Row) -> bool {
    let drawn = |image: &ImageData| matches!(image, ImageData::Drawn(_));
    row.images.iter().any(drawn) || World::ALL.iter().any(|world| world.name() == row.task)
}

/// What two equal rows share: their images and their question, normalised.
type Key = (Vec<u64>, String);

fn keys(rows: &[Row]) -> Vec<Result<Key, String>> {
    rows.par_iter().map(|row| Ok((image_keys(row)?, question_key(row)))).collect()
}

/// Letters and digits in lower case, single spaces; the proposed answer of a judge form left out.
fn question_key(row: &Row) -> String {
    let judged = row.meta.get("format").and_then(|format| format.as_str()) == Some("judge");
    let question = match row.question.rfind(" Is the answer ") {
        Some(end) if judged => &row.question[..end],
        _ => &row.question,
    };
    let kept = |c: char| if c.is_alphanumeric() || "+-*/=%".contains(c) { c } else { ' ' };
    let lower: String = question.to_lowercase().chars().map(kept).collect();
    lower.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn image_keys(row: &Row) -> Result<Vec<u64>, String> {
    // Equal facts of a world are equal scenes; this also finds a world's row again after `data make`.
    if !row.facts.is_empty() && World::ALL.iter().any(|world| world.name() == row.task) {
        return Ok(vec![hash(format!("{}\n{}", row.task, row.facts).as_bytes())]);
    }
    row.images.iter().map(image_key).collect()
}

fn image_key(image: &ImageData) -> Result<u64, String> {
    if let ImageData::Drawn(drawing) = image {
        return Ok(hash(&drawing.rgb) ^ u64::from(drawing.width));
    }
    let decoded = open_image(image)?.to_rgb8();
    Ok(hash(decoded.as_raw()) ^ u64::from(decoded.width()))
}

fn open_image(image: &ImageData) -> Result<image::DynamicImage, String> {
    match image {
        ImageData::Drawn(drawing) => {
            let rgb = image::RgbImage::from_raw(drawing.width, drawing.height, drawing.rgb.clone());
            rgb.map(image::DynamicImage::ImageRgb8).ok_or_else(|| "the drawing has another size than it says".into())
        }
        ImageData::Path(path) => image::open(path).map_err(|error| format!("{}: {error}", path.display())),
        ImageData::Encoded(bytes) => image::load_from_memory(bytes).map_err(|error| error.to_string()),
    }
}

/// 64-bit FNV-1a.
fn hash(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, &byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3))
}

/// The last number of the rationale, if the answer is a number and another one.
pub fn contradiction(row: &Row) -> Option<String> {
    let Answer::Number(gold) = &row.answer else { return None };
    let last = last_number(&row.rationale)?;
    let value = |text: &str| text.trim().trim_end_matches('%').replace(',', "").parse::<f64>().ok();
    let (gold, found) = (value(gold)?, value(&last)?);
    ((gold - found).abs() > 1e-9 * gold.abs().max(1.0)).then_some(last)
}

/// The last run of digits, with its sign, decimals and thousands commas.
fn last_number(text: &str) -> Option<String> {
    let end = text.rfind(|c: char| c.is_ascii_digit())? + 1;
    let inside = |c: char| c.is_ascii_digit() || c == '.' || c == ',';
    let start =
        text[..end].rfind(|c| !inside(c)).map_or(0, |at| at + text[at..].chars().next().map_or(1, char::len_utf8));
    let digits = text[start..end].trim_start_matches(['.', ',']);
    // A minus belongs to the number unless it stands between two operands.
    let before = text[..end - digits.len()].strip_suffix('-');
    let negative = before.is_some_and(|before| !before.trim_end().ends_with(|c: char| c.is_ascii_digit()));
    Some(if negative { format!("-{digits}") } else { digits.to_string() })
}

impl fmt::Display for Audit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let counts = |map: &BTreeMap<String, usize>| {
            map.iter()
                .map(|(name, count)| format!("{} {count}", if name.is_empty() { "(none)" } else { name }))
                .collect::<Vec<_>>()
                .join(", ")
        };
        let by_number = |pairs: Vec<(String, usize)>| counts(&pairs.into_iter().collect());
        writeln!(f, "rows            {} ({} skipped)", self.num_rows, self.num_skipped)?;
        writeln!(f, "answers         {}", counts(&self.answer_types))?;
        writeln!(f, "tasks           {}", counts(&self.tasks))?;
        writeln!(f, "splits          {}", counts(&self.splits))?;
        writeln!(f, "levels          {}", by_number(self.levels.iter().map(|(l, c)| (l.to_string(), *c)).collect()))?;
        writeln!(f, "longest         question {} words, rationale {}", self.longest_words.0, self.longest_words.1)?;
        writeln!(f, "no rationale    {}", self.num_without_rationale)?;
        writeln!(f, "always {:<8} scores {:.1} %", self.most_frequent.0, 100.0 * self.most_frequent.1)?;
        if let Some(share) = self.yes_share {
            writeln!(f, "yes             {:.1} % of the yes/no answers", 100.0 * share)?;
        }
        if !self.letters.is_empty() {
            let letters: Vec<String> =
                self.letters.iter().map(|(letter, share)| format!("{letter} {:.1} %", 100.0 * share)).collect();
            writeln!(f, "letters         {}", letters.join(", "))?;
        }
        findings(f, "unreadable images", &self.unreadable)?;
        findings(f, "duplicates", &self.duplicates)?;
        findings(f, "pictures that look alike", &self.look_alikes)?;
        findings(f, "rationale ends in another number", &self.contradictions)
    }
}

/// A count and the first ten cases.
fn findings(f: &mut fmt::Formatter<'_>, title: &str, cases: &[(String, String)]) -> fmt::Result {
    writeln!(f, "{title}: {}", cases.len())?;
    for (one, other) in cases.iter().take(10) {
        writeln!(f, "  {one}: {other}")?;
    }
    if cases.len() > 10 { writeln!(f, "  and {} more", cases.len() - 10) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_number_is_found_in_running_text() {
        let cases = [
            ("7 - 2 = 5.", Some("5")),
            ("so 1,200.5 in all", Some("1,200.5")),
            ("it is -3", Some("-3")),
            ("7 -3", Some("3")),
            ("about 3.", Some("3")),
            ("caf\u{e9}7", Some("7")),
            ("none", None),
        ];
        for (text, number) in cases {
            assert_eq!(last_number(text).as_deref(), number, "{text}");
        }
    }
}

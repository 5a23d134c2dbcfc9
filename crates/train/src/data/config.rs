//! What a recipe says about data. Plain settings; opening them is `dataset`'s work.
//! Cost: none.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use foveate_tasks::{Format, Quality, World};
use serde::de::value::{MapAccessDeserializer, SeqAccessDeserializer};
use serde::de::{self, Deserializer, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Serialize, Serializer};

use super::answer::AnswerType;

/// The table `[data]` of a recipe.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataConfig {
    /// What to learn from: a table, a list of tables (their rows are joined), or just the path of a file.
    pub train: Sources,
    /// What to score, by name: usually `id` (same distribution) and `ood` (shifted). 500 rows give an interval of
    /// about four points to either side; more rows narrow it by the square root.
    #[serde(default)]
    pub test: BTreeMap<String, Sources>,
}

/// One source or several whose rows are joined in order.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sources(pub Vec<DataSource>);

/// Where rows come from and which of them are used.
///
/// Either `task`, a built-in world, or `path`, a file; the settings of one are refused with the other.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataSource {
    /// A built-in world: `counting`, `charts`, `structure`, `transformation`, `location` or `naming`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task: Option<World>,
    /// A file: our JSONL, OpenAI-style `messages` JSONL, a LLaVA / ShareGPT JSON array, or Parquet. What a row is, is
    /// seen from its fields. Or a folder: one that `foveate data make` wrote, or Parquet files as the hub has them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<PathBuf>,
    /// How many rows a world makes; 1000 if not given. A reward run of 200 steps of 16 questions sees 3200.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rows: Option<u64>,
    /// How good a world's rationales are: `none`, `low`, `medium` (if not given) or `high`. For a file only `none` is
    /// possible; it drops the file's rationales.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rationale: Option<Quality>,
    /// Difficulty levels. A world draws each equally often, all three if not given; level n needs n steps. From a
    /// file, rows of other levels are left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub levels: Option<Vec<u8>>,
    /// A world's part: `train` (if not given), `id` or `ood`. From a file, rows of other splits are left out; Parquet
    /// files without a column `split` have the split that their name begins with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub split: Option<String>,
    /// In which form questions are put: `open`, `choice` or `judge`. The latter two are derived from open rows.
    #[serde(default)]
    pub format: Format,
    /// Width and height of a world's pictures in pixels, 128 if not given; match the model's resolution.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<u32>,
    /// Seed of the world, of `random:` and of derived forms; the run's seed if not given. Set it to hold the data
    /// fixed while the run's seed varies.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seed: Option<u64>,
    /// Which rows, after `skip`: `all`, `first:N`, `end:N`, `random:N`, or just `N`; each N may be a share, `25%`.
    #[serde(default)]
    pub take: Take,
    /// How many rows at the start are left out: `N` or `N%`.
    #[serde(default)]
    pub skip: Amount,
    /// Pre-training material about a world's pictures in place of its questions: so many rows about each picture
    /// (descriptions, counts, readings, one-step questions). They share the picture, so more rows cost little; 8 is a
    /// good start. Supervised stages take whole pictures: `questions_per_step` counts pictures then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub primer: Option<usize>,
    /// With `primer`: share of rows that are several-step questions with a worked rationale, 0.05 if not given. From
    /// about 0.2 on, little is left for reinforcement to teach.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub multi_step_share: Option<f64>,
    /// Type of the file's plain answers, where guessing it from their form would go wrong (text answers that look like
    /// numbers, for instance).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answer_type: Option<AnswerType>,
    /// Folder that the file's image paths start from; the file's own folder if not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub images: Option<PathBuf>,
    /// Our name of a field, and the name it has in the file: `{ question = "prompt", answer = "label" }`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub fields: BTreeMap<String, String>,
    /// Which rows are fit for use; applied before `skip` and `take`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub filter: Option<RowFilter>,
    /// What a row that cannot be used does: `error` stops before anything is trained, `skip` leaves it out; it is
    /// counted and listed then.
    #[serde(default)]
    pub on_bad_row: OnBadRow,
}

/// Conditions on a row. Every one that is given must hold.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RowFilter {
    /// The rationale must not end in another number than the answer. Rationales that a model wrote, or that were read
    /// off a chart, contradict their answer now and then; learning those teaches the error.
    pub consistent: bool,
    /// There must be a rationale.
    pub rationale: bool,
    /// There must be facts.
    pub facts: bool,
    /// The answer must be of one of these types: `number`, `text`, `member`, `choice`, `yes_no`, `labels`, `box`,
    /// `functions`, `expression`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub answers: Vec<String>,
    /// The question must not have more words than this.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_question_words: Option<usize>,
}

/// What a bad row does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnBadRow {
    /// Stop with a message that names it.
    #[default]
    Error,
    /// Leave it out, count it, list it.
    Skip,
}

impl DataSource {
    /// A file as it is.
    pub fn file(path: impl Into<PathBuf>) -> Self {
        Self { path: Some(path.into()), ..Self::default() }
    }

    /// `rows` rows of a world's split.
    pub fn world(task: World, split: &str, rows: u64) -> Self {
        Self { task: Some(task), split: Some(split.into()), rows: Some(rows), ..Self::default() }
    }
}

impl<'de> Deserialize<'de> for Sources {
    /// By hand instead of `untagged`, whose messages name neither key nor place.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct AnyForm;
        impl<'de> Visitor<'de> for AnyForm {
            type Value = Sources;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("a source like { task = \"counting\", rows = 1000 }, a list of sources, or a path")
            }

            fn visit_str<E: de::Error>(self, path: &str) -> Result<Sources, E> {
                Ok(Sources(vec![DataSource::file(path)]))
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Sources, A::Error> {
                Ok(Sources(vec![DataSource::deserialize(MapAccessDeserializer::new(map))?]))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<Sources, A::Error> {
                // Members may be paths as well.
                let members = Vec::<Sources>::deserialize(SeqAccessDeserializer::new(seq))?;
                Ok(Sources(members.into_iter().flat_map(|member| member.0).collect()))
            }
        }
        deserializer.deserialize_any(AnyForm)
    }
}

impl Serialize for Sources {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match &self.0[..] {
            [one] => one.serialize(serializer),
            many => many.serialize(serializer),
        }
    }
}

/// A number of rows or a share of them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Amount {
    /// So many.
    Rows(usize),
    /// So many of a hundred.
    Percent(f64),
}

/// Which rows of a source are used.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Take {
    /// All of them.
    #[default]
    All,
    /// The first ones.
    First(Amount),
    /// The last ones.
    End(Amount),
    /// Randomly chosen ones, in their order in the source.
    Random(Amount),
}

impl Default for Amount {
    fn default() -> Self {
        Amount::Rows(0)
    }
}

impl Amount {
    /// The number of rows out of `total`, never more.
    pub fn of(self, total: usize) -> usize {
        match self {
            Amount::Rows(rows) => rows.min(total),
            Amount::Percent(percent) => ((total as f64 * percent / 100.0).round() as usize).min(total),
        }
    }
}

impl fmt::Display for Amount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Amount::Rows(rows) => write!(f, "{rows}"),
            Amount::Percent(percent) => write!(f, "{percent}%"),
        }
    }
}

impl FromStr for Amount {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is neither a number of rows nor a share like 25%");
        match text.trim().strip_suffix('%') {
            None => text.trim().parse().map(Amount::Rows).map_err(|_| wrong()),
            Some(share) => match share.trim().parse::<f64>() {
                Ok(share) if (0.0..=100.0).contains(&share) => Ok(Amount::Percent(share)),
                _ => Err(wrong()),
            },
        }
    }
}

impl fmt::Display for Take {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Take::All => f.write_str("all"),
            Take::First(amount) => write!(f, "first:{amount}"),
            Take::End(amount) => write!(f, "end:{amount}"),
            Take::Random(amount) => write!(f, "random:{amount}"),
        }
    }
}

impl FromStr for Take {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once(':') {
            None if text.trim() == "all" => Ok(Take::All),
            None => text.parse().map(Take::First).map_err(|_| {
                format!("`{text}` is none of all, first:N, end:N, random:N, N or N% (N may be a share, 25%)")
            }),
            Some(("first", amount)) => amount.parse().map(Take::First),
            Some(("end", amount)) => amount.parse().map(Take::End),
            Some(("random", amount)) => amount.parse().map(Take::Random),
            Some((other, _)) => Err(format!("`{other}:` is none of first:, end:, random:")),
        }
    }
}

/// A value written as text or as a plain number.
struct TextOrNumber<T>(std::marker::PhantomData<T>, &'static str);

impl<T: FromStr<Err = String>> Visitor<'_> for TextOrNumber<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(self.1)
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
        text.parse().map_err(E::custom)
    }

    fn visit_i64<E: de::Error>(self, number: i64) -> Result<T, E> {
        number.to_string().parse().map_err(E::custom)
    }

    fn visit_u64<E: de::Error>(self, number: u64) -> Result<T, E> {
        number.to_string().parse().map_err(E::custom)
    }
}

impl<'de> Deserialize<'de> for Amount {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(TextOrNumber(std::marker::PhantomData, "a number of rows or a share like \"25%\""))
    }
}

impl<'de> Deserialize<'de> for Take {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(TextOrNumber(
            std::marker::PhantomData,
            "\"all\", \"first:N\", \"end:N\", \"random:N\" or a number of rows",
        ))
    }
}

impl Serialize for Amount {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl Serialize for Take {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<DataConfig, toml::de::Error> {
        toml::from_str(text)
    }

    #[test]
    fn every_form_of_a_source_is_read_and_written_back() {
        let config = read(
            r#"
            train = [ "a.jsonl", { task = "charts", rows = 40, rationale = "high", levels = [1, 2], take = "random:50%", skip = 3 } ]
            test = { id = { task = "charts", split = "id", rows = 5 }, ood = "b.jsonl" }
            "#,
        )
        .unwrap();
        assert_eq!(config.train.0.len(), 2);
        assert_eq!(config.train.0[1].take, Take::Random(Amount::Percent(50.0)));
        assert_eq!(config.train.0[1].skip, Amount::Rows(3));
        assert_eq!(config.test["ood"].0, [DataSource::file("b.jsonl")]);
        let again: DataConfig = toml::from_str(&toml::to_string(&config).unwrap()).unwrap();
        assert_eq!(again, config);
    }

    #[test]
    fn unknown_keys_and_values_are_named() {
        for (text, told) in [
            ("train = { tsak = \"charts\" }", "unknown field `tsak`"),
            ("train = { task = \"chart\" }", "unknown variant `chart`"),
            ("train = { path = \"a\", take = \"middle:3\" }", "`middle:` is none of"),
            ("train = { path = \"a\", take = \"first:many\" }", "`many` is neither"),
            ("train = { path = \"a\", skip = \"120%\" }", "`120%` is neither"),
            ("train = { path = \"a\", skip = -1 }", "`-1` is neither"),
            ("train = 3", "expected a source like"),
        ] {
            let error = read(text).unwrap_err().to_string();
            assert!(error.contains(told), "{error}");
        }
    }

    #[test]
    fn amounts_are_bounded_by_what_there_is() {
        assert_eq!(Amount::Rows(9).of(4), 4);
        assert_eq!(Amount::Percent(25.0).of(10), 3);
        assert_eq!("25".parse::<Take>().unwrap(), Take::First(Amount::Rows(25)));
    }
}

//! From (world, split, levels, seed, index) to a row: the one entrance to the built-in worlds.
//! Row `i` depends on nothing but its key, so any row can be made alone, in any order, on any thread.
//! Splits: `train` and `id` share one distribution and never a scene (the facts' fingerprint decides who owns it);
//! `ood` shifts the distribution as each world's `scene` documents.
//! Cost: about 0.5 ms per row, nearly all of it rendering.

use std::sync::Arc;

use foveate_kernels::rng::Purpose;
use serde::{Deserialize, Serialize};

use crate::ask::{Asked, Quality, scale_boxes};
use crate::canvas::Canvas;
use crate::draws::Draws;
use crate::row::{Drawing, ImageData, Row};
use crate::{charts, counting, derive, location, naming, structure, transformation};

/// A built-in world.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum World {
    /// Coloured shapes: count, add, remove, compare.
    Counting,
    /// Bar, line and pie charts: read, compare, calculate.
    Charts,
    /// Labelled figures: read, compare, calculate sides, angles and areas.
    Structure,
    /// Two pictures of a table: which function calls lead from one to the other.
    Transformation,
    /// Referring expressions: which box is meant.
    Location,
    /// Things: their names, as words and sets of words.
    Naming,
}

/// Which part of a world's distribution.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Split {
    /// What models learn from.
    #[default]
    Train,
    /// Same distribution as `train`, never the same scene.
    Id,
    /// A shifted distribution.
    Ood,
}

/// In which form a question is put.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Format {
    /// Free answer.
    #[default]
    Open,
    /// Multiple choice: the answer is a letter.
    Choice,
    /// Yes or no about a proposed answer.
    Judge,
}

/// Which rows to make.
#[derive(Clone, Debug, PartialEq)]
pub struct WorldSpec {
    /// The world.
    pub world: World,
    /// Part of its distribution.
    pub split: Split,
    /// Difficulty levels, each drawn equally often; 1 to 3, where level n asks for n steps.
    pub levels: Vec<u8>,
    /// How good the rationales are.
    pub rationale: Quality,
    /// Form of the question.
    pub format: Format,
    /// Width and height of the pictures in pixels; scenes are composed for 128.
    pub size: u32,
}

/// Why no rows can be made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WorldError {
    /// The spec names no level at all.
    #[error("no difficulty levels are given")]
    NoLevels,
    /// A level that worlds do not have.
    #[error("difficulty level {0} does not exist")]
    UnknownLevel(u8),
    /// A picture too small to be legible or too large to be meant.
    #[error("pictures of {0} x {0} pixels are out of range")]
    Size(u32),
}

impl WorldError {
    /// What to do about it.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::NoLevels | Self::UnknownLevel(_) => "levels are 1, 2 and 3, for example levels = [1, 2]",
            Self::Size(_) => "sizes from 64 to 2048 are possible; scenes are composed for 128",
        }
    }
}

impl World {
    /// All worlds.
    pub const ALL: &'static [World] =
        &[World::Counting, World::Charts, World::Structure, World::Transformation, World::Location, World::Naming];

    /// Name in recipes and rows.
    pub fn name(self) -> &'static str {
        match self {
            World::Counting => "counting",
            World::Charts => "charts",
            World::Structure => "structure",
            World::Transformation => "transformation",
            World::Location => "location",
            World::Naming => "naming",
        }
    }

    pub(crate) fn scene(self, split: Split, level: u8, draws: &mut Draws) -> Box<dyn Scene> {
        match self {
            World::Counting => Box::new(counting::scene::CountingScene::new(split, level, draws)),
            World::Charts => Box::new(charts::scene::Chart::new(split, level, draws)),
            World::Structure => Box::new(structure::scene::Figure::new(split, level, draws)),
            World::Transformation => Box::new(transformation::scene::Transformation::new(split, level, draws)),
            World::Location => Box::new(location::scene::LocationScene::new(split, level, draws)),
            World::Naming => Box::new(naming::scene::NamingScene::new(split, level, draws)),
        }
    }

    pub(crate) fn num_kinds(self, level: u8) -> usize {
        match self {
            World::Counting => counting::questions::num_kinds(level),
            World::Charts => charts::questions::num_kinds(level),
            World::Structure => structure::questions::num_kinds(level),
            World::Transformation => transformation::questions::num_kinds(level),
            World::Location => location::questions::num_kinds(level),
            World::Naming => naming::questions::num_kinds(level),
        }
    }

    /// Part of the random key. Published numbers: changing one changes every row of that world.
    fn key(self) -> u32 {
        match self {
            World::Counting => 1,
            World::Charts => 2,
            World::Structure => 3,
            World::Transformation => 4,
            World::Location => 5,
            World::Naming => 6,
        }
    }
}

impl Split {
    /// Name in recipes and rows.
    pub fn name(self) -> &'static str {
        match self {
            Split::Train => "train",
            Split::Id => "id",
            Split::Ood => "ood",
        }
    }

    fn key(self) -> u32 {
        match self {
            Split::Train => 1,
            Split::Id => 2,
            Split::Ood => 3,
        }
    }

    /// One scene in eight belongs to `id`, the rest to `train`; `ood` scenes are never in question.
    pub(crate) fn owns(self, facts: &str) -> bool {
        match self {
            Split::Train => !fingerprint(facts).is_multiple_of(8),
            Split::Id => fingerprint(facts).is_multiple_of(8),
            Split::Ood => true,
        }
    }
}

impl Format {
    /// Name in recipes and rows.
    pub fn name(self) -> &'static str {
        match self {
            Format::Open => "open",
            Format::Choice => "choice",
            Format::Judge => "judge",
        }
    }
}

/// What a world's scene can do: be drawn, be told, be asked about.
pub(crate) trait Scene {
    /// The pictures in the order in which questions refer to them, on canvases of 128 x 128 units.
    fn pictures(&self) -> Vec<Canvas>;
    /// Everything visible, in canonical form; equal facts mean equal scenes.
    fn facts(&self) -> String;
    /// A question of `level`'s kind number `kind`; a yes/no question should come out as `yes`.
    /// Nothing if this scene does not lend itself to it.
    fn ask(&self, level: u8, kind: usize, yes: bool, draws: &mut Draws) -> Option<Asked>;
    /// One-step questions and descriptions for pre-training.
    fn lessons(&self, draws: &mut Draws) -> Vec<Lesson>;
}

/// A question of pre-training and how much is thought before the answer.
pub(crate) struct Lesson {
    /// The question.
    pub asked: Asked,
    /// The thought before the answer line; if absent, the medium rationale.
    pub rationale: Option<String>,
}

impl Lesson {
    /// Answered at once.
    pub fn bare(asked: Asked) -> Self {
        Self { asked, rationale: Some(String::new()) }
    }

    /// Answered after a thought.
    pub fn told(asked: Asked) -> Self {
        Self { asked, rationale: None }
    }
}

/// 64-bit FNV-1a of the facts.
fn fingerprint(facts: &str) -> u64 {
    let hash = facts
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3));
    // The low bits of FNV-1a follow the last bytes closely; fold the high half in.
    hash ^ (hash >> 32)
}

impl WorldSpec {
    /// Open questions of a world's split at all levels, medium rationales, 128 pixels.
    pub fn new(world: World, split: Split) -> Self {
        Self { world, split, levels: vec![1, 2, 3], rationale: Quality::Medium, format: Format::Open, size: 128 }
    }

    /// Refuses what [`row`] cannot make.
    pub fn check(&self) -> Result<(), WorldError> {
        match self.levels.iter().find(|level| !(1..=3).contains(*level)) {
            _ if self.levels.is_empty() => Err(WorldError::NoLevels),
            Some(&level) => Err(WorldError::UnknownLevel(level)),
            None if !(64..=2048).contains(&self.size) => Err(WorldError::Size(self.size)),
            None => Ok(()),
        }
    }
}

/// Row `index` of a spec that passes [`WorldSpec::check`]; same arguments, same bytes.
pub fn row(spec: &WorldSpec, seed: u64, index: u64) -> Row {
    make(spec, seed, index, |scene| render(scene, spec.size))
}

/// The same row without its pictures, for statistics over many rows: about fifty times cheaper.
pub fn row_without_images(spec: &WorldSpec, seed: u64, index: u64) -> Row {
    make(spec, seed, index, |_| vec![])
}

fn make(spec: &WorldSpec, seed: u64, index: u64, images: impl Fn(&dyn Scene) -> Vec<ImageData>) -> Row {
    let (scene, asked, level) = ask(spec, seed, index);
    let asked = asked.scaled(scale(spec.size));
    // Wording has its own stream: the quality of rationales never changes scene or question.
    let mut draws = Draws::new(seed, Purpose::World, part(spec.world, spec.split, 2), index);
    let rationale = asked.rationale(spec.rationale, &mut draws);
    let id = format!("{}-{}-{seed}-{index}", spec.world.name(), spec.split.name());
    let open = assemble(&asked, rationale, spec, level, &*scene, id, images(&*scene));
    let part = part(spec.world, spec.split, 3);
    derive::derive(&open, spec.format, &asked.candidates, seed, part, index)
        .expect("worlds ask only questions for which wrong answers exist")
}

/// The scene and question behind a row, without drawing anything.
fn ask(spec: &WorldSpec, seed: u64, index: u64) -> (Box<dyn Scene>, Asked, u8) {
    let mut draws = Draws::new(seed, Purpose::World, part(spec.world, spec.split, 1), index);
    let level = draws.pick(&spec.levels);
    let yes = draws.percent(50);
    let mut kind = draws.below(spec.world.num_kinds(level));
    for attempt in 1u32.. {
        let scene = spec.world.scene(spec.split, level, &mut draws);
        if spec.split.owns(&scene.facts())
            && let Some(asked) = scene.ask(level, kind, yes, &mut draws)
        {
            return (scene, asked, level);
        }
        // Every kind succeeds within a few dozen scenes; this only bounds the time if a world grows a rare one.
        if attempt.is_multiple_of(1000) {
            kind = draws.below(spec.world.num_kinds(level));
        }
    }
    unreachable!("some kind of question fits some scene")
}

/// Pixels per unit in which scenes are composed.
pub(crate) fn scale(size: u32) -> f64 {
    f64::from(size) / 128.0
}

/// Part of the random key: world, split, and what is drawn.
pub(crate) fn part(world: World, split: Split, what: u32) -> u32 {
    world.key() << 16 | split.key() << 8 | what
}

pub(crate) fn render(scene: &dyn Scene, size: u32) -> Vec<ImageData> {
    let drawn = |canvas: &Canvas| -> Arc<Drawing> { Arc::new(canvas.draw_at(size, size)) };
    scene.pictures().iter().map(|canvas| ImageData::Drawn(drawn(canvas))).collect()
}

/// The open row of a question; boxes in `asked` are in pixels already.
pub(crate) fn assemble(
    asked: &Asked,
    rationale: String,
    spec: &WorldSpec,
    level: u8,
    scene: &dyn Scene,
    id: String,
    images: Vec<ImageData>,
) -> Row {
    let mut meta = serde_json::Map::new();
    meta.insert("kind".into(), asked.kind.into());
    meta.insert("steps".into(), asked.steps.into());
    Row {
        id,
        images,
        question: asked.question.clone(),
        answer: asked.answer.clone(),
        choices: vec![],
        rationale,
        facts: scale_boxes(&scene.facts(), scale(spec.size)),
        task: spec.world.name().to_string(),
        split: spec.split.name().to_string(),
        level,
        meta,
    }
}

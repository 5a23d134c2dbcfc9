//! Supervised material that gives a small model sight and the answer format: descriptions, counts, places, readings,
//! existence, one-step comparisons, plain arithmetic, and a few of the questions in the choice and judge forms.
//! The worlds' several-step questions are all but left out (`multi_step_share`): they are what post-training is for.
//! Scenes are those that `train` owns, so no `id` scene and no `ood` pair is ever seen here.
//! Cost: one rendering per image, shared by its rows.

use std::sync::Arc;

use foveate_kernels::rng::Purpose;

use crate::ask::{Asked, Quality, scale_boxes};
use crate::derive;
use crate::draws::Draws;
use crate::row::{Answer, ImageData, Row};
use crate::world::{self, Format, Lesson, Scene, Split, World, WorldSpec};

/// What the material is made of.
#[derive(Clone, Debug, PartialEq)]
pub struct PrimerSpec {
    /// The world whose scenes are shown.
    pub world: World,
    /// Questions per picture; the picture is encoded once for all of them, so more is cheaper per question.
    pub rows_per_image: usize,
    /// Share of rows that are several-step questions with a worked rationale. A little shows what such questions look
    /// like; from about 0.2 on, little is left for post-training to improve.
    pub multi_step_share: f64,
    /// Levels of the scenes, drawn equally often: 1 to 3 as in the worlds, and 0, one or two objects or entries. A model
    /// that starts blind learns to see far sooner when it first sees few things at a time.
    pub levels: Vec<u8>,
    /// Width and height of the pictures in pixels.
    pub size: u32,
}

impl PrimerSpec {
    /// Eight rows per picture of 128 pixels, one row in twenty with several steps.
    pub fn new(world: World) -> Self {
        Self { world, rows_per_image: 8, multi_step_share: 0.05, levels: vec![1, 2, 3], size: 128 }
    }
}

/// The text a model should write for a row: its rationale, if any, then the line `Answer: X`.
pub fn target(row: &Row) -> String {
    let answer = format!("Answer: {}", row.answer.text());
    if row.rationale.is_empty() { answer } else { format!("{}\n{answer}", row.rationale) }
}

/// The rows about picture `index`; all share one drawing. Same arguments, same bytes.
pub fn primer(spec: &PrimerSpec, seed: u64, index: u64) -> Vec<Row> {
    let mut draws = Draws::new(seed, Purpose::World, world::part(spec.world, Split::Train, 4), index);
    let (scene, level) = loop {
        let level = draws.pick(&spec.levels);
        let scene = spec.world.scene(Split::Train, level, &mut draws);
        if Split::Train.owns(&scene.facts()) {
            break (scene, level);
        }
    };
    let images = world::render(&*scene, spec.size);
    let maker = Maker { spec, seed, index, scene: &*scene, level, images };
    let mut lessons = scene.lessons(&mut draws);
    // The description comes first, always; which of the others are asked changes from picture to picture.
    let mut rest = lessons.split_off(1);
    draws.shuffle(&mut rest);
    lessons.extend(rest);
    let mut lessons = lessons.into_iter();

    let mut rows: Vec<Row> = Vec::with_capacity(spec.rows_per_image);
    for place in 0..spec.rows_per_image {
        let several_steps = draws.chance(spec.multi_step_share) && level > 1;
        let row = match place % 8 {
            _ if several_steps => maker.several_steps(place, &mut draws),
            1 => None,
            5 => maker.other_form(place, &mut draws),
            _ => lessons
                .find(|lesson| rows.iter().all(|row| row.question != lesson.asked.question))
                .map(|lesson| maker.plain(place, lesson, &mut draws)),
        };
        // Place 1, and whatever the scene leaves open.
        rows.push(row.unwrap_or_else(|| maker.arithmetic(place, &mut draws)));
    }
    rows
}

/// What all rows of one picture share.
struct Maker<'a> {
    spec: &'a PrimerSpec,
    seed: u64,
    index: u64,
    scene: &'a dyn Scene,
    level: u8,
    images: Vec<ImageData>,
}

impl Maker<'_> {
    fn row(&self, place: usize, asked: &Asked, rationale: String) -> Row {
        let id = format!("primer-{}-{}-{}-{place}", self.spec.world.name(), self.seed, self.index);
        let spec = WorldSpec { size: self.spec.size, ..WorldSpec::new(self.spec.world, Split::Train) };
        let images = self.images.iter().map(share).collect();
        world::assemble(asked, rationale, &spec, asked.steps, self.scene, id, images)
    }

    fn plain(&self, place: usize, lesson: Lesson, draws: &mut Draws) -> Row {
        let scale = world::scale(self.spec.size);
        let asked = lesson.asked.scaled(scale);
        let rationale = match lesson.rationale {
            Some(text) => scale_boxes(&text, scale),
            None => asked.rationale(Quality::Medium, draws),
        };
        self.row(place, &asked, rationale)
    }

    /// A question of the world, its boxes in pixels.
    fn ask(&self, level: u8, kind: usize, yes: bool, draws: &mut Draws) -> Option<Asked> {
        Some(self.scene.ask(level, kind, yes, draws)?.scaled(world::scale(self.spec.size)))
    }

    fn several_steps(&self, place: usize, draws: &mut Draws) -> Option<Row> {
        let kinds = self.spec.world.num_kinds(self.level);
        for _ in 0..8 {
            let (kind, yes) = (draws.below(kinds), draws.percent(50));
            if let Some(asked) = self.ask(self.level, kind, yes, draws) {
                let quality = draws.pick(&[Quality::Low, Quality::Medium, Quality::High]);
                let rationale = asked.rationale(quality, draws);
                return Some(self.row(place, &asked, rationale));
            }
        }
        None
    }

    /// A one-step question of the world as multiple choice or as judgement.
    fn other_form(&self, place: usize, draws: &mut Draws) -> Option<Row> {
        let kinds = self.spec.world.num_kinds(1);
        for _ in 0..16 {
            let (kind, yes) = (draws.below(kinds), draws.percent(50));
            let Some(asked) = self.ask(1, kind, yes, draws) else { continue };
            let rationale = asked.rationale(Quality::Medium, draws);
            let open = self.row(place, &asked, rationale);
            let format = draws.pick(&[Format::Choice, Format::Judge]);
            let part = world::part(self.spec.world, Split::Train, 5);
            if let Some(row) = derive::derive(&open, format, &asked.candidates, self.seed, part, self.index) {
                return Some(row);
            }
        }
        None
    }

    /// A sum, a difference, a half or a comparison in plain text; the picture does not matter.
    fn arithmetic(&self, place: usize, draws: &mut Draws) -> Row {
        let limit = draws.pick(&[9, 9, 15, 30]);
        let (a, b) = (draws.between(0, limit), draws.between(0, limit));
        let (high, low) = (a.max(b), a.min(b));
        let number = |value: i64| Answer::Number(value.to_string());
        let (question, answer, thought) = match draws.below(8) {
            0..=2 => (format!("What is {a} + {b}?"), number(a + b), format!("{a} + {b} = {}.", a + b)),
            3..=5 => {
                let rest = high - low;
                (format!("What is {high} - {low}?"), number(rest), format!("{high} - {low} = {rest}."))
            }
            6 => (format!("What is half of {}?", 2 * a), number(a), format!("Half of {} is {a}.", 2 * a)),
            _ => {
                let (word, holds) = if draws.percent(50) { ("more", a > b) } else { ("lower", a < b) };
                let thought = format!("{a} is {}{word} than {b}.", if holds { "" } else { "not " });
                (format!("Is {a} {word} than {b}?"), Answer::YesNo(holds), thought)
            }
        };
        let asked = Asked {
            kind: "arithmetic",
            steps: 1,
            question,
            answer,
            goal: "calculate".into(),
            seen: "",
            observations: vec![],
            reasoning: vec![],
            candidates: vec![],
        };
        let rationale = if draws.percent(70) { thought } else { String::new() };
        self.row(place, &asked, rationale)
    }
}

fn share(image: &ImageData) -> ImageData {
    match image {
        ImageData::Drawn(drawing) => ImageData::Drawn(Arc::clone(drawing)),
        other => other.clone(),
    }
}

//! Questions about a transformation: which calls lead from the first picture to the second, one to four of them.
//! Objects are named by number in the question, by their looks in the first picture. Cost: a few short strings.

use super::drawing;
use super::scene::{Change, Color, Material, Shape, Size, Solid, Transformation, View, place};
use crate::ask::{Asked, number, worded};
use crate::canvas::Canvas;
use crate::draws::Draws;
use crate::row::{Answer, Call};
use crate::world::{Lesson, Scene};

/// The functions and their values, for prompts: the questions themselves do not repeat them.
pub const RULES: &str = "Functions: change_size(object, value) with small, medium, large; change_color with yellow, \
    gray, cyan, blue, brown, green, red, purple; change_material with glass, metal, rubber; change_shape with cube, \
    sphere, cylinder; change_position with front, behind, left, right, front_left, front_right, behind_left, \
    behind_right.";

/// What is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// All calls.
    Program,
    /// The one call that concerns an object.
    OneObject,
}

/// The kinds of each level.
const LEVELS: [&[Kind]; 3] = [&[Kind::Program, Kind::OneObject], &[Kind::Program], &[Kind::Program]];

/// How many kinds of question a level has.
pub fn num_kinds(level: u8) -> usize {
    LEVELS[usize::from(level) - 1].len()
}

impl Scene for Transformation {
    fn pictures(&self) -> Vec<Canvas> {
        vec![drawing::canvas(&self.before, View::Front), drawing::canvas(&self.after, self.view)]
    }

    fn facts(&self) -> String {
        Transformation::facts(self)
    }

    fn ask(&self, level: u8, kind: usize, _yes: bool, draws: &mut Draws) -> Option<Asked> {
        match LEVELS[usize::from(level) - 1][kind] {
            // A lesson about a scene of a higher level has one step all the same.
            Kind::Program if level == 1 && self.changes.len() != 1 => None,
            Kind::Program => self.ask_program(draws),
            Kind::OneObject => self.ask_one_object(draws),
        }
    }

    fn lessons(&self, draws: &mut Draws) -> Vec<Lesson> {
        let mut lessons = vec![self.lesson_describe(draws)];
        lessons.extend((0..3).map(|_| Lesson::bare(self.lesson_what_is_at(draws))));
        lessons.extend((0..2).map(|_| Lesson::bare(self.lesson_attribute(draws))));
        lessons.push(Lesson::bare(self.lesson_where(draws)));
        lessons.push(self.lesson_changed(draws));
        lessons.extend(self.ask_one_object(draws).map(Lesson::told));
        lessons
    }
}

impl Transformation {
    /// `Objects: 0 small red glass cube, 1 large blue metal sphere.`
    fn objects(&self) -> String {
        let all: Vec<String> =
            self.before.iter().enumerate().map(|(id, solid)| format!("{id} {}", solid.phrase())).collect();
        format!("Objects: {}.", all.join(", "))
    }

    fn ask_program(&self, draws: &mut Draws) -> Option<Asked> {
        let calls = worded(
            draws,
            &[
                "Which calls turn the first picture into the second?".into(),
                "The second picture shows the objects later. Which calls were made?".into(),
            ],
        );
        self.ask_changes("program", format!("{} {calls}", self.objects()), &self.changes, draws)
    }

    fn ask_one_object(&self, draws: &mut Draws) -> Option<Asked> {
        let about = |id: usize| self.changes.iter().copied().filter(move |&(solid, _)| solid == id);
        let once: Vec<usize> = (0..self.before.len()).filter(|&id| about(id).count() == 1).collect();
        if once.is_empty() {
            return None;
        }
        let id = draws.pick(&once);
        let question = format!("{} Which call changed object {id}?", self.objects());
        self.ask_changes("one_object", question, &about(id).collect::<Vec<_>>(), draws)
    }

    fn ask_changes(
        &self,
        kind: &'static str,
        question: String,
        changes: &[(usize, Change)],
        draws: &mut Draws,
    ) -> Option<Asked> {
        if changes.is_empty() {
            return None;
        }
        let answer = Answer::Functions(changes.iter().map(|&(id, change)| call(id, change)).collect());
        let goal = if changes.len() == 1 { "find the call" } else { "find the calls" };
        let is = if changes.len() == 1 { "the call is" } else { "the calls are" };
        let reasoning = format!("{is} {}", answer.text());
        let mut asked = Asked::new(kind, changes.len() as u8, question, answer, goal.into());
        asked.observations = changes.iter().map(|&(id, _)| self.observed(id)).collect();
        asked.observations.dedup();
        asked.reasoning = vec![reasoning];
        asked.candidates = (0..12).map(|_| self.near_miss(changes, kind == "program", draws)).collect();
        // Calls in another order would be right as well; near misses are sorted like the answer.
        asked.candidates.retain(|other| *other != asked.answer.text());
        Some(asked)
    }

    /// `object 1 small red glass cube at the left and later large red glass cube at the left`: what to look for, where it
    /// is, and what is there. The call follows from the two.
    fn observed(&self, id: usize) -> String {
        let (before, after) = (self.before[id], self.after[id]);
        let told = |solid: Solid| format!("{} at the {}", solid.phrase(), place(solid.cell));
        format!("object {id} {} and later {}", told(before), told(after))
    }

    /// The program with one mistake: another value, another object, another function, a call too many or too few.
    fn near_miss(&self, changes: &[(usize, Change)], any_length: bool, draws: &mut Draws) -> String {
        let mut changes = changes.to_vec();
        let free = |changes: &[(usize, Change)], solid: usize, function: usize| {
            changes.iter().all(|&(other, change)| (other, change.order()) != (solid, function))
        };
        let i = draws.below(changes.len());
        let (id, change) = changes[i];
        // What the solid is like in the first picture; a call that changes nothing would not be plausible.
        let (other, function) = (draws.below(self.before.len()), draws.below(5));
        match draws.below(if any_length { 5 } else { 3 }) {
            0 => changes[i].1 = Change::of(self.before[id], change.order(), draws),
            1 if free(&changes, id, function) => changes[i].1 = Change::of(self.before[id], function, draws),
            3 if changes.len() > 1 => {
                changes.remove(i);
            }
            4 if changes.len() < 4 && free(&changes, other, function) => {
                changes.push((other, Change::of(self.before[other], function, draws)));
            }
            _ if free(&changes, other, change.order()) => {
                changes[i] = (other, Change::of(self.before[other], change.order(), draws));
            }
            _ => changes[i].1 = Change::of(self.before[id], change.order(), draws),
        }
        changes.sort_by_key(|&(solid, change)| (solid, change.order()));
        Answer::Functions(changes.into_iter().map(|(id, change)| call(id, change)).collect()).text()
    }
}

fn call(id: usize, change: Change) -> Call {
    Call { function: change.function().into(), object: id.to_string(), value: change.value().into() }
}

/// What only pre-training asks: seeing and naming in either picture.
impl Transformation {
    fn lesson_describe(&self, draws: &mut Draws) -> Lesson {
        let question = worded(
            draws,
            &[
                "Describe both pictures. How many objects are there?".into(),
                "Name all objects of both pictures and count them.".into(),
            ],
        );
        let answer = number(self.before.len() as i64);
        let asked = Asked::new("describe", 1, question, answer, "name all objects".into());
        Lesson { asked, rationale: Some(self.described(false)) }
    }

    /// One of the two pictures, with its name.
    fn picture(&self, draws: &mut Draws) -> (&'static str, &[Solid]) {
        if draws.percent(50) { ("first", &self.before) } else { ("second", &self.after) }
    }

    fn lesson_what_is_at(&self, draws: &mut Draws) -> Asked {
        let (name, solids) = self.picture(draws);
        // Now and then an empty place: the model must not invent objects.
        let cell = if draws.percent(75) { draws.pick(solids).cell } else { (draws.between(0, 2), draws.between(0, 2)) };
        let found = solids.iter().find(|solid| solid.cell == cell);
        let text = found.map_or("nothing".to_string(), Solid::phrase);
        let question = format!("What is at the {} in the {name} picture?", place(cell));
        Asked::new("at", 1, question, Answer::Text(text), format!("look at the {}", place(cell)))
    }

    fn lesson_attribute(&self, draws: &mut Draws) -> Asked {
        let (name, solids) = self.picture(draws);
        let solid = draws.pick(solids);
        let all = |words: Vec<&str>| words.into_iter().map(String::from).collect::<Vec<_>>();
        let (what, word, others) = match draws.below(4) {
            0 => ("size", solid.size.word(), all(Size::ALL.iter().map(|v| v.word()).collect())),
            1 => ("color", solid.color.word(), all(Color::ALL.iter().map(|v| v.word()).collect())),
            2 => ("material", solid.material.word(), all(Material::ALL.iter().map(|v| v.word()).collect())),
            _ => ("shape", solid.shape.word(), all(Shape::ALL.iter().map(|v| v.word()).collect())),
        };
        let place = place(solid.cell);
        let question = format!("What {what} is the object at the {place} in the {name} picture?");
        let goal = format!("find the {what} at the {place}");
        let mut asked = Asked::new("look", 1, question, Answer::Text(word.into()), goal);
        asked.candidates = others;
        asked
    }

    fn lesson_where(&self, draws: &mut Draws) -> Asked {
        let solid = draws.pick(&self.before);
        let question = format!("Where is the {} in the first picture?", solid.phrase());
        let goal = format!("find the {}", solid.phrase());
        Asked::new("where", 1, question, Answer::Text(place(solid.cell).into()), goal)
    }

    /// Is a cell the same in both pictures? Half of the time one is asked for that is not.
    fn lesson_changed(&self, draws: &mut Draws) -> Lesson {
        let at = |solids: &[Solid], cell| solids.iter().find(|solid| solid.cell == cell).copied();
        let cells = self.before.iter().chain(&self.after).map(|solid| solid.cell);
        let (same, other): (Vec<_>, Vec<_>) = cells.partition(|&cell| at(&self.before, cell) == at(&self.after, cell));
        let kept = other.is_empty() || (!same.is_empty() && draws.percent(50));
        let cell = draws.pick(if kept { &same } else { &other });
        let told = |solids| at(solids, cell).map_or("nothing".to_string(), |solid| solid.phrase());
        let question = format!("Are both pictures the same at the {}?", place(cell));
        let asked = Asked::new("same", 1, question, Answer::YesNo(kept), "compare both pictures".into());
        let rationale = format!("first picture: {}. second picture: {}.", told(&self.before), told(&self.after));
        Lesson { asked, rationale: Some(rationale) }
    }
}

//! Questions about a counting scene: one step (count, exist, look), two (add, remove, compare), three (both).
//! Everything is computed from the objects; the wording is regular so that a very small model can learn it.
//! Cost: a few passes over at most twelve objects.

use super::scene::{Color, CountingScene, Object, Shape, Size};
use crate::ask::{Asked, compared, number, worded};
use crate::canvas::Canvas;
use crate::draws::Draws;
use crate::row::Answer;
use crate::world::{Lesson, Scene};

/// What is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Count,
    Exist,
    Look,
    Add,
    Remove,
    More,
    Difference,
    Bring,
    RemoveTwo,
    RemoveThenCount,
    BringAndRemove,
    TogetherDifference,
    RemoveThenMore,
}

/// The kinds of each level; a kind named twice is drawn twice as often.
const LEVELS: [&[Kind]; 3] = [
    &[Kind::Count, Kind::Count, Kind::Exist, Kind::Look],
    &[Kind::Add, Kind::Remove, Kind::More, Kind::Difference, Kind::Bring],
    &[Kind::RemoveTwo, Kind::RemoveThenCount, Kind::BringAndRemove, Kind::TogetherDifference, Kind::RemoveThenMore],
];

/// How many kinds of question a level has.
pub fn num_kinds(level: u8) -> usize {
    LEVELS[usize::from(level) - 1].len()
}

/// Which objects are meant: all that agree with every given attribute.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Filter {
    pub(crate) size: Option<Size>,
    pub(crate) color: Option<Color>,
    pub(crate) shape: Option<Shape>,
}

impl Filter {
    pub(crate) fn matches(&self, object: &Object) -> bool {
        self.size.is_none_or(|size| size == object.size)
            && self.color.is_none_or(|color| color == object.color)
            && self.shape.is_none_or(|shape| shape == object.shape)
    }

    /// `small red circles`, `blue objects`.
    pub(crate) fn noun(&self, plural: bool) -> String {
        let mut words = Vec::new();
        words.extend(self.size.map(Size::word));
        words.extend(self.color.map(Color::word));
        let singular = self.shape.map_or("object", Shape::word);
        let ending = match (plural, singular.ends_with('s')) {
            (false, _) => "",
            (true, false) => "s",
            (true, true) => "es",
        };
        words.push(singular);
        words.join(" ") + ending
    }

    fn plural(&self) -> String {
        self.noun(true)
    }

    /// `1 circle`, `2 circles`, `0 circles`.
    fn counted(&self, count: i64) -> String {
        format!("{count} {}", self.noun(count != 1))
    }

    fn both(&self, other: &Filter) -> Filter {
        Filter { size: self.size.or(other.size), color: self.color.or(other.color), shape: self.shape.or(other.shape) }
    }
}

/// The attributes by which objects are told apart.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Dimension {
    Size,
    Color,
    Shape,
}

impl CountingScene {
    fn count(&self, filter: &Filter) -> i64 {
        self.objects.iter().filter(|object| filter.matches(object)).count() as i64
    }

    /// Filters by one attribute that match something here, in random order.
    fn present(&self, dimension: Dimension, draws: &mut Draws) -> Vec<Filter> {
        let mut filters: Vec<Filter> = all(dimension).into_iter().filter(|filter| self.count(filter) > 0).collect();
        draws.shuffle(&mut filters);
        filters
    }

    /// A filter whose count is drawn evenly from those that occur here, so that small counts do not dominate.
    fn even_filter(&self, zero_percent: usize, draws: &mut Draws) -> Filter {
        let mut filters = vec![Filter::default()];
        for dimension in [Dimension::Size, Dimension::Color, Dimension::Shape] {
            filters.extend(all(dimension));
        }
        let pairs = [
            (Dimension::Color, Dimension::Shape),
            (Dimension::Size, Dimension::Shape),
            (Dimension::Size, Dimension::Color),
        ];
        for (one, other) in pairs {
            for a in all(one) {
                // Absent pairs are many and look alike; those with a present part are the ones worth asking for.
                if self.count(&a) > 0 {
                    filters.extend(all(other).iter().map(|b| a.both(b)));
                }
            }
        }
        let counted: Vec<(i64, Filter)> = filters.into_iter().map(|filter| (self.count(&filter), filter)).collect();
        let mut counts: Vec<i64> = counted.iter().map(|&(count, _)| count).filter(|&count| count > 0).collect();
        counts.sort_unstable();
        counts.dedup();
        let wanted = if draws.percent(zero_percent) { 0 } else { draws.pick(&counts) };
        let fitting: Vec<Filter> =
            counted.into_iter().filter(|&(count, _)| count == wanted).map(|(_, filter)| filter).collect();
        if fitting.is_empty() { Filter::default() } else { draws.pick(&fitting) }
    }
}

fn all(dimension: Dimension) -> Vec<Filter> {
    match dimension {
        Dimension::Size => Size::ALL.iter().map(|&size| Filter { size: Some(size), ..Filter::default() }).collect(),
        Dimension::Color => {
            Color::ALL.iter().map(|&color| Filter { color: Some(color), ..Filter::default() }).collect()
        }
        Dimension::Shape => {
            Shape::ALL.iter().map(|&shape| Filter { shape: Some(shape), ..Filter::default() }).collect()
        }
    }
}

impl Scene for CountingScene {
    fn pictures(&self) -> Vec<Canvas> {
        vec![self.canvas()]
    }

    fn facts(&self) -> String {
        CountingScene::facts(self)
    }

    fn ask(&self, level: u8, kind: usize, yes: bool, draws: &mut Draws) -> Option<Asked> {
        match LEVELS[usize::from(level) - 1][kind] {
            Kind::Count => Some(self.ask_count(draws)),
            Kind::Exist => self.ask_exist(yes, draws),
            Kind::Look => self.ask_look(draws),
            Kind::Add => self.ask_add(draws),
            Kind::Remove => self.ask_remove(draws),
            Kind::More => self.ask_more(yes, draws),
            Kind::Difference => self.ask_difference(draws),
            Kind::Bring => self.ask_bring(draws),
            Kind::RemoveTwo => self.ask_remove_two(draws),
            Kind::RemoveThenCount => self.ask_remove_then_count(draws),
            Kind::BringAndRemove => self.ask_bring_and_remove(draws),
            Kind::TogetherDifference => self.ask_together_difference(draws),
            Kind::RemoveThenMore => self.ask_remove_then_more(yes, draws),
        }
    }

    fn lessons(&self, draws: &mut Draws) -> Vec<Lesson> {
        let mut lessons = vec![self.lesson_describe(draws)];
        lessons.extend((0..2).map(|_| self.lesson_count(draws)));
        let yes = draws.percent(50);
        lessons.extend(self.ask_exist(yes, draws).map(Lesson::told));
        lessons.extend((0..2).filter_map(|_| self.ask_look(draws)).map(Lesson::bare));
        lessons.push(Lesson::bare(self.lesson_what_is_at(draws)));
        lessons.extend(self.lesson_where(draws).map(Lesson::bare));
        lessons.push(Lesson::bare(self.lesson_which(draws)));
        lessons
    }
}

/// `Add` and `Remove` questions are about one attribute: colours and shapes more often than sizes.
fn some_dimension(draws: &mut Draws) -> Dimension {
    draws.pick(&[Dimension::Color, Dimension::Color, Dimension::Shape, Dimension::Shape, Dimension::Size])
}

impl CountingScene {
    fn asked(&self, kind: &'static str, steps: u8, question: String, answer: Answer, goal: String) -> Asked {
        Asked {
            kind,
            steps,
            question,
            answer,
            goal,
            seen: "I see",
            observations: vec![],
            reasoning: vec![],
            candidates: vec![],
        }
    }

    fn ask_count(&self, draws: &mut Draws) -> Asked {
        let filter = self.even_filter(12, draws);
        let (count, noun) = (self.count(&filter), filter.plural());
        let question = worded(draws, &[format!("How many {noun} are there?"), format!("Count the {noun}.")]);
        let mut asked = self.asked("count", 1, question, number(count), format!("count the {noun}"));
        asked.observations = vec![filter.counted(count)];
        asked.reasoning = vec![format!("the count is {count}")];
        asked
    }

    fn ask_exist(&self, yes: bool, draws: &mut Draws) -> Option<Asked> {
        // Colour and shape of a "no" both occur, only not together: the question cannot be answered by a glance.
        let colors = self.present(Dimension::Color, draws);
        let shapes = self.present(Dimension::Shape, draws);
        let pairs: Vec<Filter> = colors.iter().flat_map(|c| shapes.iter().map(|s| c.both(s))).collect();
        let fitting: Vec<Filter> = pairs.into_iter().filter(|pair| (self.count(pair) > 0) == yes).collect();
        if fitting.is_empty() {
            return None;
        }
        let filter = draws.pick(&fitting);
        let count = self.count(&filter);
        let question = format!("Is there a {}?", filter.noun(false));
        let mut asked =
            self.asked("exist", 1, question, Answer::YesNo(yes), format!("look for a {}", filter.noun(false)));
        asked.observations = vec![filter.counted(count)];
        asked.reasoning = vec![format!("the count is {}0", if yes { "more than " } else { "" })];
        Some(asked)
    }

    /// An object that is alone in its ninth of the picture.
    fn alone(&self, draws: &mut Draws) -> Option<Object> {
        let shared = |object: &Object| self.objects.iter().filter(|o| o.position() == object.position()).count() > 1;
        let alone: Vec<Object> = self.objects.iter().copied().filter(|object| !shared(object)).collect();
        if alone.is_empty() { None } else { Some(draws.pick(&alone)) }
    }

    fn ask_look(&self, draws: &mut Draws) -> Option<Asked> {
        let object = self.alone(draws)?;
        let color = draws.percent(50);
        let (what, word, others) = if color {
            ("color", object.color.word(), Color::ALL.iter().map(|c| c.word().to_string()).collect::<Vec<_>>())
        } else {
            ("shape", object.shape.word(), Shape::ALL.iter().map(|s| s.word().to_string()).collect())
        };
        let position = object.position();
        let question = format!("What {what} is the object at the {position}?");
        let goal = format!("find the {what} at the {position}");
        let mut asked = self.asked("look", 1, question, Answer::Text(word.to_string()), goal);
        asked.observations = vec![format!("a {} at the {position}", object.phrase())];
        asked.reasoning = vec![format!("the {what} is {word}")];
        asked.candidates = others;
        Some(asked)
    }

    fn ask_add(&self, draws: &mut Draws) -> Option<Asked> {
        let dimension = some_dimension(draws);
        let [a, b, ..] = self.present(dimension, draws)[..] else { return None };
        let (x, y) = (self.count(&a), self.count(&b));
        let (an, bn) = (a.plural(), b.plural());
        let question = worded(
            draws,
            &[
                format!("How many {an} and {bn} are there together?"),
                format!("What is the number of {an} plus the number of {bn}?"),
            ],
        );
        let mut asked = self.asked("add", 2, question, number(x + y), format!("add the {an} and the {bn}"));
        asked.observations = vec![a.counted(x), b.counted(y)];
        asked.reasoning = vec![format!("{x} + {y} = {}", x + y)];
        Some(asked)
    }

    fn ask_remove(&self, draws: &mut Draws) -> Option<Asked> {
        let dimension = some_dimension(draws);
        let filter = *self.present(dimension, draws).first()?;
        let (total, gone) = (self.objects.len() as i64, self.count(&filter));
        if gone == total {
            return None;
        }
        let noun = filter.plural();
        let question = worded(
            draws,
            &[
                format!("Remove all {noun}. How many objects are left?"),
                format!("How many objects are left if all {noun} are removed?"),
            ],
        );
        let mut asked = self.asked("remove", 2, question, number(total - gone), "count the objects left".into());
        asked.observations = vec![Filter::default().counted(total), filter.counted(gone)];
        asked.reasoning = vec![format!("{total} - {gone} = {}", total - gone)];
        Some(asked)
    }

    fn ask_more(&self, yes: bool, draws: &mut Draws) -> Option<Asked> {
        let dimension = some_dimension(draws);
        let [a, b, ..] = self.present(dimension, draws)[..] else { return None };
        let more = draws.percent(50);
        let (x, y) = (self.count(&a), self.count(&b));
        let holds = if more { x > y } else { x < y };
        // A tie is a "no" to both; it stays rarer than the plain cases.
        if holds != yes || (x == y && draws.percent(50)) {
            return None;
        }
        let word = if more { "more" } else { "fewer" };
        let (an, bn) = (a.plural(), b.plural());
        let question = format!("Are there {word} {an} than {bn}?");
        let mut asked = self.asked("more", 2, question, Answer::YesNo(yes), format!("compare the {an} and the {bn}"));
        asked.observations = vec![a.counted(x), b.counted(y)];
        asked.reasoning = vec![compared(x, y, word, yes)];
        Some(asked)
    }

    fn ask_difference(&self, draws: &mut Draws) -> Option<Asked> {
        let dimension = some_dimension(draws);
        let [a, b, ..] = self.present(dimension, draws)[..] else { return None };
        let (x, y) = (self.count(&a), self.count(&b));
        // A difference of one is the most frequent by far; half of those are passed over.
        if x <= y || (x - y == 1 && draws.percent(50)) {
            return None;
        }
        let (an, bn) = (a.plural(), b.plural());
        let question = format!("How many more {an} than {bn} are there?");
        let mut asked = self.asked("difference", 2, question, number(x - y), format!("compare the {an} and the {bn}"));
        asked.observations = vec![a.counted(x), b.counted(y)];
        asked.reasoning = vec![format!("{x} - {y} = {}", x - y)];
        Some(asked)
    }

    fn ask_bring(&self, draws: &mut Draws) -> Option<Asked> {
        let dimension = some_dimension(draws);
        let filter = *self.present(dimension, draws).first()?;
        let (count, new) = (self.count(&filter), draws.between(1, 5));
        let question = format!("Add {}. How many {} are there now?", filter.counted(new), filter.plural());
        let goal = format!("count the {} after adding {new}", filter.plural());
        let mut asked = self.asked("bring", 2, question, number(count + new), goal);
        asked.observations = vec![filter.counted(count)];
        asked.reasoning = vec![format!("{count} + {new} = {}", count + new)];
        Some(asked)
    }

    fn ask_remove_two(&self, draws: &mut Draws) -> Option<Asked> {
        let dimension = draws.pick(&[Dimension::Color, Dimension::Shape]);
        let [a, b, _, ..] = self.present(dimension, draws)[..] else { return None };
        let (total, x, y) = (self.objects.len() as i64, self.count(&a), self.count(&b));
        let question = format!("Remove all {} and all {}. How many objects are left?", a.plural(), b.plural());
        let answer = number(total - x - y);
        let mut asked = self.asked("remove_two", 3, question, answer, "count the objects left".into());
        asked.observations = vec![Filter::default().counted(total), a.counted(x), b.counted(y)];
        asked.reasoning =
            vec![format!("{total} - {x} = {}", total - x), format!("{} - {y} = {}", total - x, total - x - y)];
        Some(asked)
    }

    fn ask_remove_then_count(&self, draws: &mut Draws) -> Option<Asked> {
        let first = draws.pick(&[Dimension::Color, Dimension::Color, Dimension::Size]);
        let gone = *self.present(first, draws).first()?;
        let kept = *self.present(Dimension::Shape, draws).first()?;
        let (all, overlap) = (self.count(&kept), self.count(&gone.both(&kept)));
        if overlap == 0 || (all == overlap && draws.percent(70)) {
            return None;
        }
        let question = format!("Remove all {}. How many {} are left?", gone.plural(), kept.plural());
        let goal = format!("count the {} left", kept.plural());
        let mut asked = self.asked("remove_then_count", 3, question, number(all - overlap), goal);
        asked.observations = vec![kept.counted(all), gone.both(&kept).counted(overlap)];
        asked.reasoning = vec![format!("{all} - {overlap} = {}", all - overlap)];
        Some(asked)
    }

    fn ask_bring_and_remove(&self, draws: &mut Draws) -> Option<Asked> {
        let dimension = draws.pick(&[Dimension::Color, Dimension::Shape]);
        let [a, b, ..] = self.present(dimension, draws)[..] else { return None };
        let (total, new, gone) = (self.objects.len() as i64, draws.between(1, 4), self.count(&b));
        let left = total + new - gone;
        let question = format!("Add {} and remove all {}. How many objects are there now?", a.counted(new), b.plural());
        let mut asked = self.asked("bring_and_remove", 3, question, number(left), "count the objects left".into());
        asked.observations = vec![Filter::default().counted(total), b.counted(gone)];
        asked.reasoning =
            vec![format!("{total} + {new} = {}", total + new), format!("{} - {gone} = {left}", total + new)];
        Some(asked)
    }

    fn ask_together_difference(&self, draws: &mut Draws) -> Option<Asked> {
        let dimension = draws.pick(&[Dimension::Color, Dimension::Shape]);
        let [a, b, c, ..] = self.present(dimension, draws)[..] else { return None };
        let (x, y, z) = (self.count(&a), self.count(&b), self.count(&c));
        if x + y <= z {
            return None;
        }
        let (an, bn, cn) = (a.plural(), b.plural(), c.plural());
        let question = format!("How many more {an} and {bn} together than {cn} are there?");
        let goal = format!("compare the {an} and {bn} with the {cn}");
        let mut asked = self.asked("together_difference", 3, question, number(x + y - z), goal);
        asked.observations = vec![a.counted(x), b.counted(y), c.counted(z)];
        asked.reasoning = vec![format!("{x} + {y} = {}", x + y), format!("{} - {z} = {}", x + y, x + y - z)];
        Some(asked)
    }

    fn ask_remove_then_more(&self, yes: bool, draws: &mut Draws) -> Option<Asked> {
        let first = draws.pick(&[Dimension::Color, Dimension::Color, Dimension::Size]);
        let gone = *self.present(first, draws).first()?;
        let [a, b, ..] = self.present(Dimension::Shape, draws)[..] else { return None };
        let left = |shape: &Filter| self.count(shape) - self.count(&gone.both(shape));
        let (x, y) = (left(&a), left(&b));
        if (x > y) != yes || (x == y && draws.percent(60)) || self.count(&a) + self.count(&b) == x + y {
            return None;
        }
        let (an, bn) = (a.plural(), b.plural());
        let question = format!("Remove all {}. Are there more {an} than {bn} left?", gone.plural());
        let goal = format!("compare the {an} and {bn} left");
        let mut asked = self.asked("remove_then_more", 3, question, Answer::YesNo(yes), goal);
        asked.observations = vec![format!("{} left", a.counted(x)), format!("{} left", b.counted(y))];
        asked.reasoning = vec![compared(x, y, "more", yes)];
        Some(asked)
    }
}

/// What only pre-training asks: seeing and naming, without steps.
impl CountingScene {
    fn lesson_describe(&self, draws: &mut Draws) -> Lesson {
        let question = worded(
            draws,
            &[
                "Describe the picture. How many objects are there?".into(),
                "Name all objects from top left to bottom right and count them.".into(),
            ],
        );
        let answer = number(self.objects.len() as i64);
        let asked = self.asked("describe", 1, question, answer, "name all objects".into());
        Lesson { asked, rationale: Some(CountingScene::facts(self)) }
    }

    /// Counting, now and then by naming what is counted first.
    fn lesson_count(&self, draws: &mut Draws) -> Lesson {
        let filter = self.even_filter(10, draws);
        let (count, noun) = (self.count(&filter), filter.plural());
        let mut asked =
            self.asked("count", 1, format!("How many {noun} are there?"), number(count), format!("count the {noun}"));
        asked.observations = vec![filter.counted(count)];
        asked.reasoning = vec![format!("the count is {count}")];
        let named: Vec<String> =
            self.objects.iter().filter(|object| filter.matches(object)).map(Object::phrase).collect();
        if (1..=4).contains(&named.len()) && draws.percent(40) {
            let rationale = format!("I see a {}. The count is {count}.", named.join(", a "));
            Lesson { asked, rationale: Some(rationale) }
        } else {
            Lesson::told(asked)
        }
    }

    fn lesson_what_is_at(&self, draws: &mut Draws) -> Asked {
        // Empty places are asked for as well: the model must not invent objects.
        let position = draws.pick(&[
            "top left",
            "top",
            "top right",
            "left",
            "center",
            "right",
            "bottom left",
            "bottom",
            "bottom right",
        ]);
        let found: Vec<String> =
            self.objects.iter().filter(|object| object.position() == position).map(Object::phrase).collect();
        let text = if found.is_empty() { "nothing".to_string() } else { found.join(", ") };
        self.asked(
            "at",
            1,
            format!("What is at the {position}?"),
            Answer::Text(text),
            format!("look at the {position}"),
        )
    }

    fn lesson_where(&self, draws: &mut Draws) -> Option<Asked> {
        let same = |a: &Object, b: &Object| (a.color, a.shape, a.size) == (b.color, b.shape, b.size);
        let single: Vec<Object> = self
            .objects
            .iter()
            .copied()
            .filter(|object| self.objects.iter().filter(|other| same(object, other)).count() == 1)
            .collect();
        if single.is_empty() {
            return None;
        }
        let object = draws.pick(&single);
        let question = format!("Where is the {}?", object.phrase());
        let goal = format!("find the {}", object.phrase());
        Some(self.asked("where", 1, question, Answer::Text(object.position().to_string()), goal))
    }

    fn lesson_which(&self, draws: &mut Draws) -> Asked {
        let (dimension, what) = draws.pick(&[(Dimension::Color, "colors"), (Dimension::Shape, "shapes")]);
        let words: Vec<&str> = all(dimension)
            .iter()
            .filter(|filter| self.count(filter) > 0)
            .filter_map(|filter| filter.color.map(Color::word).or(filter.shape.map(Shape::word)))
            .collect();
        let answer = Answer::Text(words.join(", "));
        self.asked("which", 1, format!("Which {what} are there?"), answer, format!("name the {what}"))
    }
}

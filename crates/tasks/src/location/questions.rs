//! Referring expressions: by looks (one step), by an extreme or a neighbour (two), by order, two neighbours or an
//! extreme among neighbours (three). The answer is a box in pixels of the picture.
//! Nothing hangs by a pixel: where a comparison decides, centres lie at least `MARGIN` units apart.
//! Cost: a few passes over at most seven objects.

use super::scene::{LocationScene, extent};
use crate::ask::{Asked, number, worded};
use crate::canvas::Canvas;
use crate::counting::questions::Filter;
use crate::counting::scene::{Color, Object, Shape, Size};
use crate::draws::Draws;
use crate::row::Answer;
use crate::world::{Lesson, Scene};

/// Least distance between the centres of objects that a question tells apart by place.
const MARGIN: i64 = 8;

/// What is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Named,
    Extreme,
    Beside,
    Second,
    BesideBoth,
    ExtremeBeside,
    Nearest,
}

/// The kinds of each level.
const LEVELS: [&[Kind]; 3] = [
    &[Kind::Named],
    &[Kind::Extreme, Kind::Beside],
    &[Kind::Second, Kind::BesideBoth, Kind::ExtremeBeside, Kind::Nearest],
];

/// How many kinds of question a level has.
pub fn num_kinds(level: u8) -> usize {
    LEVELS[usize::from(level) - 1].len()
}

/// A side of the picture, or of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    Left,
    Right,
    Top,
    Bottom,
}

impl Side {
    const ALL: [Side; 4] = [Side::Left, Side::Right, Side::Top, Side::Bottom];

    /// How far an object is from this side; only differences mean anything.
    fn distance(self, object: &Object) -> i64 {
        match self {
            Side::Left => object.x,
            Side::Right => -object.x,
            Side::Top => object.y,
            Side::Bottom => -object.y,
        }
    }

    fn extreme(self) -> &'static str {
        ["leftmost", "rightmost", "highest", "lowest"][self as usize]
    }

    fn beside(self) -> &'static str {
        ["left of", "right of", "above", "below"][self as usize]
    }

    fn from(self) -> &'static str {
        ["from the left", "from the right", "from the top", "from the bottom"][self as usize]
    }
}

impl Scene for LocationScene {
    fn pictures(&self) -> Vec<Canvas> {
        vec![self.canvas()]
    }

    fn facts(&self) -> String {
        LocationScene::facts(self)
    }

    fn ask(&self, level: u8, kind: usize, _yes: bool, draws: &mut Draws) -> Option<Asked> {
        let mut attempt = || match LEVELS[usize::from(level) - 1][kind] {
            Kind::Named => self.ask_named(draws),
            Kind::Extreme => self.ask_extreme(draws),
            Kind::Beside => self.ask_beside(draws),
            Kind::Second => self.ask_second(draws),
            Kind::BesideBoth => self.ask_beside_both(draws),
            Kind::ExtremeBeside => self.ask_extreme_beside(draws),
            Kind::Nearest => self.ask_nearest(draws),
        };
        // Most words name nobody or too many; looking again is cheaper than another scene.
        (0..16).find_map(|_| attempt())
    }

    fn lessons(&self, draws: &mut Draws) -> Vec<Lesson> {
        let mut lessons = vec![self.lesson_describe(draws)];
        lessons.extend((0..3).filter_map(|_| self.ask_named(draws)).map(Lesson::bare));
        lessons.extend((0..2).map(|_| Lesson::bare(self.lesson_what_is_in(draws))));
        lessons.extend(self.ask_named(draws).map(Lesson::told));
        let yes = draws.percent(50);
        lessons.extend(self.lesson_is_beside(yes, draws).map(Lesson::bare));
        lessons.push(Lesson::bare(self.lesson_count(draws)));
        lessons
    }
}

/// `a large red circle at the top left`.
fn seen(object: &Object) -> String {
    format!("a {} at the {}", object.phrase(), object.position())
}

impl LocationScene {
    fn matching(&self, filter: &Filter) -> Vec<Object> {
        self.objects.iter().copied().filter(|object| filter.matches(object)).collect()
    }

    /// The question for the box of `target`, whom `expression` names.
    fn asked(&self, kind: &'static str, steps: u8, expression: String, target: &Object, draws: &mut Draws) -> Asked {
        let question =
            worded(draws, &[format!("Give the box of {expression}."), format!("Find the box of {expression}.")]);
        let answer = Answer::Box(extent(target));
        let reasoning = format!("the box is {}", answer.text());
        let mut asked = Asked::new(kind, steps, question, answer, format!("find {expression}"));
        asked.observations = vec![seen(target)];
        asked.reasoning = vec![reasoning];
        asked.candidates =
            self.objects.iter().filter(|object| *object != target).map(|o| Answer::Box(extent(o)).text()).collect();
        asked
    }

    /// An object and words that name no other.
    fn named(&self, draws: &mut Draws) -> Option<(Object, Filter)> {
        let object = draws.pick(&self.objects);
        let (size, color, shape) = (Some(object.size), Some(object.color), Some(object.shape));
        let filters: Vec<Filter> = [
            Filter { size: None, color, shape },
            Filter { size, color: None, shape },
            Filter { size, color, shape },
            Filter { size: None, color: None, shape },
            Filter { size: None, color, shape: None },
            Filter { size, color, shape: None },
        ]
        .into_iter()
        .filter(|filter| self.matching(filter).len() == 1)
        .collect();
        if filters.is_empty() { None } else { Some((object, draws.pick(&filters))) }
    }

    /// A word or two that several objects share.
    fn shared(&self, fewest: usize, draws: &mut Draws) -> Option<Filter> {
        let mut filters = vec![Filter::default()];
        filters.extend(Color::ALL.iter().map(|&color| Filter { color: Some(color), ..Filter::default() }));
        filters.extend(Shape::ALL.iter().map(|&shape| Filter { shape: Some(shape), ..Filter::default() }));
        filters.extend(Size::ALL.iter().map(|&size| Filter { size: Some(size), ..Filter::default() }));
        filters.retain(|filter| self.matching(filter).len() >= fewest);
        if filters.is_empty() { None } else { Some(draws.pick(&filters)) }
    }

    /// The objects in order of their distance from a side, if neighbours in that order are clearly apart up to
    /// the place `up_to`.
    fn ordered(mut objects: Vec<Object>, side: Side, up_to: usize) -> Option<Vec<Object>> {
        objects.sort_by_key(|object| side.distance(object));
        let apart = |pair: &[Object]| side.distance(&pair[1]) - side.distance(&pair[0]) >= MARGIN;
        objects.windows(2).take(up_to).all(apart).then_some(objects)
    }

    /// Those of `objects` that lie clearly to a side of `anchor`; nothing if it is unclear for one of them.
    fn beside(objects: &[Object], anchor: &Object, side: Side) -> Option<Vec<Object>> {
        let ahead = |object: &Object| side.distance(anchor) - side.distance(object);
        let clear = objects.iter().all(|object| ahead(object).abs() >= MARGIN);
        clear.then(|| objects.iter().copied().filter(|object| ahead(object) > 0).collect())
    }

    fn ask_named(&self, draws: &mut Draws) -> Option<Asked> {
        let (object, filter) = self.named(draws)?;
        Some(self.asked("named", 1, format!("the {}", filter.noun(false)), &object, draws))
    }

    fn ask_extreme(&self, draws: &mut Draws) -> Option<Asked> {
        let filter = self.shared(2, draws)?;
        let side = draws.pick(&Side::ALL);
        let order = Self::ordered(self.matching(&filter), side, 1)?;
        let expression = format!("the {} {}", side.extreme(), filter.noun(false));
        let mut asked = self.asked("extreme", 2, expression, &order[0], draws);
        asked.reasoning.insert(0, format!("it is the {} of {}", side.extreme(), order.len()));
        Some(asked)
    }

    fn ask_beside(&self, draws: &mut Draws) -> Option<Asked> {
        let (anchor, name) = self.named(draws)?;
        let filter = self.shared(2, draws)?;
        let side = draws.pick(&Side::ALL);
        let mut others = self.matching(&filter);
        others.retain(|object| *object != anchor);
        let [target] = Self::beside(&others, &anchor, side)?[..] else { return None };
        if others.len() < 2 {
            return None;
        }
        let (noun, beside, name) = (filter.noun(false), side.beside(), name.noun(false));
        let mut asked = self.asked("beside", 2, format!("the {noun} {beside} the {name}"), &target, draws);
        asked.observations.insert(0, seen(&anchor));
        Some(asked)
    }

    fn ask_second(&self, draws: &mut Draws) -> Option<Asked> {
        let filter = self.shared(3, draws)?;
        let side = draws.pick(&Side::ALL);
        let order = Self::ordered(self.matching(&filter), side, 2)?;
        let expression = format!("the second {} {}", filter.noun(false), side.from());
        let mut asked = self.asked("second", 3, expression, &order[1], draws);
        asked.observations.insert(0, seen(&order[0]));
        asked.reasoning.insert(0, format!("the {} comes first", order[0].phrase()));
        Some(asked)
    }

    fn ask_beside_both(&self, draws: &mut Draws) -> Option<Asked> {
        let (first, first_name) = self.named(draws)?;
        let (second, second_name) = self.named(draws)?;
        let filter = self.shared(2, draws)?;
        let (one, other) = (draws.pick(&[Side::Left, Side::Right]), draws.pick(&[Side::Top, Side::Bottom]));
        let mut others = self.matching(&filter);
        others.retain(|object| *object != first && *object != second);
        let (a, b) = (Self::beside(&others, &first, one)?, Self::beside(&others, &second, other)?);
        let both: Vec<Object> = a.iter().copied().filter(|object| b.contains(object)).collect();
        // One neighbour alone must leave it open.
        let [target] = both[..] else { return None };
        if first == second || a.len() < 2 || b.len() < 2 {
            return None;
        }
        let expression = format!(
            "the {} {} the {} and {} the {}",
            filter.noun(false),
            one.beside(),
            first_name.noun(false),
            other.beside(),
            second_name.noun(false)
        );
        let mut asked = self.asked("beside_both", 3, expression, &target, draws);
        asked.reasoning.insert(0, format!("{} fit the first part", a.len()));
        Some(asked)
    }

    fn ask_extreme_beside(&self, draws: &mut Draws) -> Option<Asked> {
        let (anchor, name) = self.named(draws)?;
        let filter = self.shared(2, draws)?;
        let (side, extreme) = (draws.pick(&Side::ALL), draws.pick(&Side::ALL));
        let mut others = self.matching(&filter);
        others.retain(|object| *object != anchor);
        let beside = Self::beside(&others, &anchor, side)?;
        let overall = Self::ordered(others, extreme, 1)?;
        let order = Self::ordered(beside, extreme, 1)?;
        // Somebody else would be the extreme without the neighbour.
        if order.len() < 2 || overall[0] == order[0] {
            return None;
        }
        let expression =
            format!("the {} {} {} the {}", extreme.extreme(), filter.noun(false), side.beside(), name.noun(false));
        let mut asked = self.asked("extreme_beside", 3, expression, &order[0], draws);
        asked.observations.insert(0, seen(&anchor));
        asked.reasoning.insert(0, format!("{} are {} it", order.len(), side.beside()));
        Some(asked)
    }

    fn ask_nearest(&self, draws: &mut Draws) -> Option<Asked> {
        let filter = self.shared(2, draws)?;
        let side = draws.pick(&Side::ALL);
        let anchor = Self::ordered(self.matching(&filter), side, 1)?[0];
        // In whole units, so that no rounding decides.
        let distance = |object: &Object| {
            let (right, down) = ((object.x - anchor.x) as f64, (object.y - anchor.y) as f64);
            right.hypot(down).round() as i64
        };
        let mut others: Vec<Object> = self.objects.iter().copied().filter(|object| *object != anchor).collect();
        others.sort_by_key(|object| distance(object));
        if others.len() < 2 || distance(&others[1]) - distance(&others[0]) < MARGIN {
            return None;
        }
        let expression = format!("the object nearest to the {} {}", side.extreme(), filter.noun(false));
        let mut asked = self.asked("nearest", 3, expression, &others[0], draws);
        asked.observations.insert(0, seen(&anchor));
        asked.reasoning.insert(0, format!("the {} is nearest to it", others[0].phrase()));
        Some(asked)
    }
}

/// What only pre-training asks: seeing and naming, without steps.
impl LocationScene {
    fn lesson_describe(&self, draws: &mut Draws) -> Lesson {
        let question = worded(
            draws,
            &[
                "Describe the picture with boxes. How many objects are there?".into(),
                "Name all objects with their boxes and count them.".into(),
            ],
        );
        let answer = number(self.objects.len() as i64);
        let asked = Asked::new("describe", 1, question, answer, "name all objects".into());
        Lesson { asked, rationale: Some(LocationScene::facts(self)) }
    }

    fn lesson_what_is_in(&self, draws: &mut Draws) -> Asked {
        let object = draws.pick(&self.objects);
        let question = format!("What is in the box {}?", Answer::Box(extent(&object)).text());
        Asked::new("inside", 1, question, Answer::Text(object.phrase()), "look into the box".into())
    }

    fn lesson_is_beside(&self, yes: bool, draws: &mut Draws) -> Option<Asked> {
        let ((a, first), (b, second)) = (self.named(draws)?, self.named(draws)?);
        let side = draws.pick(&Side::ALL);
        let ahead = side.distance(&b) - side.distance(&a);
        if a == b || ahead.abs() < MARGIN || (ahead > 0) != yes {
            return None;
        }
        let (a, b) = (first.noun(false), second.noun(false));
        let question = format!("Is the {a} {} the {b}?", side.beside());
        Some(Asked::new("is_beside", 1, question, Answer::YesNo(yes), format!("compare the {a} and the {b}")))
    }

    fn lesson_count(&self, draws: &mut Draws) -> Asked {
        let filter = self.shared(1, draws).unwrap_or_default();
        let question = format!("How many {} are there?", filter.noun(true));
        let count = number(self.matching(&filter).len() as i64);
        Asked::new("count", 1, question, count, format!("count the {}", filter.noun(true)))
    }
}

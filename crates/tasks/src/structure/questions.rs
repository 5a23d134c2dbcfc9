//! Questions about a figure: read or compare labels (one step), one calculation (two), several (three): sums of
//! angles, perimeters, areas, right triangles. Everything is computed from the labels.
//! Cost: a few short strings.

use super::drawing;
use super::scene::{Figure, Kind as Shape, LETTERS, Side};
use crate::ask::{Asked, compared, number, worded};
use crate::canvas::Canvas;
use crate::draws::Draws;
use crate::row::Answer;
use crate::world::{Lesson, Scene};

/// What is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    ReadSide,
    ReadAngle,
    Extreme,
    Longer,
    RightAt,
    OtherAngle,
    Area,
    SquarePerimeter,
    Difference,
    AreaMore,
    ThirdAngle,
    FourthAngle,
    EqualAngle,
    Perimeter,
    PerimeterMore,
    MissingSide,
    TriangleArea,
    Across,
    Leg,
    EllArea,
    EllPerimeter,
}

/// The kinds of each level; a kind named twice is drawn twice as often.
const LEVELS: [&[Kind]; 3] = [
    &[Kind::ReadSide, Kind::ReadSide, Kind::ReadAngle, Kind::Extreme, Kind::Longer, Kind::RightAt],
    &[Kind::OtherAngle, Kind::OtherAngle, Kind::Area, Kind::SquarePerimeter, Kind::Difference, Kind::AreaMore],
    &[
        Kind::ThirdAngle,
        Kind::FourthAngle,
        Kind::EqualAngle,
        Kind::Perimeter,
        Kind::Perimeter,
        Kind::PerimeterMore,
        Kind::MissingSide,
        Kind::TriangleArea,
        Kind::Across,
        Kind::Leg,
        Kind::EllArea,
        Kind::EllPerimeter,
    ],
];

/// How many kinds of question a level has.
pub fn num_kinds(level: u8) -> usize {
    LEVELS[usize::from(level) - 1].len()
}

impl Scene for Figure {
    fn pictures(&self) -> Vec<Canvas> {
        vec![drawing::canvas(self)]
    }

    fn facts(&self) -> String {
        Figure::facts(self)
    }

    fn ask(&self, level: u8, kind: usize, yes: bool, draws: &mut Draws) -> Option<Asked> {
        match LEVELS[usize::from(level) - 1][kind] {
            Kind::ReadSide => self.ask_read_side(draws),
            Kind::ReadAngle => self.ask_read_angle(draws),
            Kind::Extreme => self.ask_extreme(draws),
            Kind::Longer => self.ask_longer(yes, draws),
            Kind::RightAt => self.ask_right_at(),
            Kind::OtherAngle => self.ask_other_angle(),
            Kind::Area => self.ask_area(draws),
            Kind::SquarePerimeter => self.ask_square_perimeter(),
            Kind::Difference => self.ask_difference(draws),
            Kind::AreaMore => self.ask_area_more(yes, draws),
            Kind::ThirdAngle => self.ask_last_angle(Shape::TwoAngles, "third_angle", 180),
            Kind::FourthAngle => self.ask_last_angle(Shape::Quadrilateral, "fourth_angle", 360),
            Kind::EqualAngle => self.ask_equal_angle(),
            Kind::Perimeter => self.ask_perimeter(),
            Kind::PerimeterMore => self.ask_perimeter_more(yes, draws),
            Kind::MissingSide => self.ask_missing_side(),
            Kind::TriangleArea => self.ask_triangle_area(draws),
            Kind::Across => self.ask_across(),
            Kind::Leg => self.ask_leg(),
            Kind::EllArea => self.ask_ell_area(draws),
            Kind::EllPerimeter => self.ask_ell_perimeter(),
        }
    }

    fn lessons(&self, draws: &mut Draws) -> Vec<Lesson> {
        let mut lessons = vec![self.lesson_describe(draws)];
        lessons.extend((0..3).filter_map(|_| self.ask_read_side(draws)).map(Lesson::bare));
        lessons.extend((0..2).filter_map(|_| self.ask_read_angle(draws)).map(Lesson::bare));
        let yes = draws.percent(50);
        lessons.extend(self.ask_longer(yes, draws).map(Lesson::told));
        lessons.extend(self.ask_extreme(draws).map(Lesson::told));
        lessons.extend(self.ask_right_at().map(Lesson::bare));
        lessons.extend(self.lesson_letters().map(Lesson::bare));
        lessons.push(Lesson::bare(self.lesson_kind()));
        lessons.push(self.lesson_arithmetic(draws));
        lessons
    }
}

/// `EF 5`, as in the facts.
fn says(side: &Side) -> String {
    format!("{} {}", side.name, side.length)
}

impl Figure {
    fn asked(&self, kind: &'static str, steps: u8, question: String, answer: Answer, goal: String) -> Asked {
        let mut asked = Asked::new(kind, steps, question, answer, goal);
        // Stopping at a label is the most frequent mistake.
        let labels = self.sides.iter().map(|side| side.length).chain(self.angles.iter().map(|angle| angle.degrees));
        asked.candidates = labels.map(|value| value.to_string()).collect();
        asked
    }

    /// A calculation from all labels: what is to be found, the question around it, and the steps.
    fn calculated(
        &self,
        kind: &'static str,
        steps: u8,
        (question, goal): (String, &str),
        value: i64,
        told: Vec<String>,
    ) -> Asked {
        let mut asked = self.asked(kind, steps, question, number(value), format!("find {goal}"));
        asked.observations = self.observed();
        asked.reasoning = told;
        asked
    }

    /// All labels.
    fn observed(&self) -> Vec<String> {
        let angles = self.angles.iter().map(|angle| format!("angle {} {}", angle.name, angle.degrees));
        self.sides.iter().map(says).chain(angles).collect()
    }

    fn lengths(&self) -> Vec<i64> {
        self.sides.iter().map(|side| side.length).collect()
    }

    /// Sides that questions can name by their ends.
    fn named_sides(&self, count: usize, draws: &mut Draws) -> Vec<&Side> {
        if self.names.is_empty() {
            return vec![];
        }
        draws.sample(&self.sides.iter().collect::<Vec<_>>(), count)
    }

    fn ask_read_side(&self, draws: &mut Draws) -> Option<Asked> {
        let side = *self.named_sides(1, draws).first()?;
        let (name, length) = (&side.name, side.length);
        let question = worded(draws, &[format!("How long is {name}?"), format!("What is the length of {name}?")]);
        let mut asked = self.asked("read_side", 1, question, number(length), format!("read {name}"));
        asked.observations = vec![says(side)];
        asked.reasoning = vec![format!("the length is {length}")];
        Some(asked)
    }

    fn ask_read_angle(&self, draws: &mut Draws) -> Option<Asked> {
        let angle = draws.sample(&self.angles.iter().collect::<Vec<_>>(), 1).pop()?;
        let (name, degrees) = (&angle.name, angle.degrees);
        let question = format!("How large is the angle {name}?");
        let mut asked = self.asked("read_angle", 1, question, number(degrees), format!("read the angle {name}"));
        asked.observations = vec![format!("angle {name} {degrees}")];
        asked.reasoning = vec![format!("the angle is {degrees}")];
        Some(asked)
    }

    fn ask_extreme(&self, draws: &mut Draws) -> Option<Asked> {
        // Figures whose other sides are no longer or shorter than those with a label.
        if !matches!(self.kind, Shape::Sides | Shape::Rectangle) {
            return None;
        }
        let mut sides = self.named_sides(3, draws);
        sides.sort_by_key(|side| side.length);
        let (word, side) = if draws.percent(50) { ("shortest", sides[0]) } else { ("longest", sides[sides.len() - 1]) };
        let question = format!("How long is the {word} side?");
        let mut asked = self.asked("extreme", 1, question, number(side.length), format!("find the {word} side"));
        asked.observations = vec![says(side)];
        asked.reasoning = vec![format!("the {word} is {}", side.length)];
        Some(asked)
    }

    fn ask_longer(&self, yes: bool, draws: &mut Draws) -> Option<Asked> {
        let [a, b] = self.named_sides(2, draws)[..] else { return None };
        let longer = draws.percent(50);
        if (a.length > b.length) != (longer == yes) {
            return None;
        }
        let word = if longer { "longer" } else { "shorter" };
        let question = format!("Is {} {word} than {}?", a.name, b.name);
        let goal = format!("compare {} and {}", a.name, b.name);
        let mut asked = self.asked("longer", 1, question, Answer::YesNo(yes), goal);
        asked.observations = vec![says(a), says(b)];
        asked.reasoning = vec![compared(a.length, b.length, word, yes)];
        Some(asked)
    }

    fn ask_right_at(&self) -> Option<Asked> {
        let (_, corner, _) = self.right.filter(|_| self.names.len() == 3)?;
        let name = self.names[corner];
        let question = "Which corner has the right angle?".to_string();
        let mut asked = self.asked("right_at", 1, question, Answer::Text(name.into()), "find the right angle".into());
        asked.observations = vec![format!("right angle {name}")];
        asked.reasoning = vec![format!("the corner is {name}")];
        // The letters of the figure and two that are not there.
        let others = LETTERS.iter().filter(|letter| !self.names.contains(letter)).take(2);
        asked.candidates = self.names.iter().chain(others).map(|letter| letter.to_string()).collect();
        Some(asked)
    }

    fn ask_difference(&self, draws: &mut Draws) -> Option<Asked> {
        let mut pair = self.named_sides(2, draws);
        if pair.len() < 2 {
            return None;
        }
        pair.sort_by_key(|side| -side.length);
        let (a, b, rest) = (pair[0], pair[1], pair[0].length - pair[1].length);
        let question = format!("How much longer is {} than {}?", a.name, b.name);
        let goal = format!("compare {} and {}", a.name, b.name);
        let mut asked = self.asked("difference", 2, question, number(rest), goal);
        asked.observations = vec![says(a), says(b)];
        asked.reasoning = vec![format!("{} - {} = {rest}", a.length, b.length)];
        Some(asked)
    }

    /// The other one of two angles that make a line or a right angle together.
    fn ask_other_angle(&self) -> Option<Asked> {
        let whole = match self.kind {
            Shape::Line => 180,
            Shape::Corner => 90,
            _ => return None,
        };
        let (given, name) = (self.angles[0].degrees, self.angle_name(3, 1, 2));
        let question = format!("How large is the angle {name}?");
        let told = vec![format!("{whole} - {given} = {}", whole - given)];
        let goal = format!("the angle {name}");
        Some(self.calculated("other_angle", 2, (question, &goal), whole - given, told))
    }

    /// Area of a square or rectangle, with its one step.
    fn area(&self) -> Option<(i64, String)> {
        let (a, b) = match (self.kind, &self.lengths()[..]) {
            (Shape::Square, &[a]) => (a, a),
            (Shape::Rectangle, &[a, b]) => (a, b),
            _ => return None,
        };
        Some((a * b, format!("{a} * {b} = {}", a * b)))
    }

    fn ask_area(&self, draws: &mut Draws) -> Option<Asked> {
        let (area, told) = self.area()?;
        let question = worded(draws, &["What is the area?".into(), "How large is the area?".into()]);
        Some(self.calculated("area", 2, (question, "the area"), area, vec![told]))
    }

    fn ask_area_more(&self, yes: bool, draws: &mut Draws) -> Option<Asked> {
        let (area, told) = self.area()?;
        self.ask_more("area", 2, area, vec![told], yes, draws)
    }

    /// Is the area (or perimeter) more than a number close to it?
    fn ask_more(
        &self,
        what: &'static str,
        steps: u8,
        value: i64,
        mut told: Vec<String>,
        yes: bool,
        draws: &mut Draws,
    ) -> Option<Asked> {
        let apart = draws.between(1, (value / 4).max(3));
        let limit = if yes { value - apart } else { value + apart };
        told.push(compared(value, limit, "more", yes));
        let (question, goal) =
            (format!("Is the {what} more than {limit}?"), format!("compare the {what} with {limit}"));
        let kind = if what == "area" { "area_more" } else { "perimeter_more" };
        let mut asked = self.asked(kind, steps, question, Answer::YesNo(yes), goal);
        asked.observations = self.observed();
        asked.reasoning = told;
        (limit > 0).then_some(asked)
    }

    fn ask_square_perimeter(&self) -> Option<Asked> {
        let (Shape::Square, &[a]) = (self.kind, &self.lengths()[..]) else { return None };
        let question = ("What is the perimeter?".to_string(), "the perimeter");
        Some(self.calculated("square_perimeter", 2, question, 4 * a, vec![format!("4 * {a} = {}", 4 * a)]))
    }

    /// All angles but the last are given; together they have `whole` degrees.
    fn ask_last_angle(&self, shape: Shape, kind: &'static str, whole: i64) -> Option<Asked> {
        if self.kind != shape {
            return None;
        }
        let mut rest = whole;
        let mut told = Vec::new();
        for angle in &self.angles {
            told.push(format!("{rest} - {} = {}", angle.degrees, rest - angle.degrees));
            rest -= angle.degrees;
        }
        let name = self.names[self.angles.len()];
        let question = format!("How large is the angle {name}?");
        Some(self.calculated(kind, 3, (question, &format!("the angle {name}")), rest, told))
    }

    /// Two equal sides make two equal angles.
    fn ask_equal_angle(&self) -> Option<Asked> {
        let given = self.angles.first().filter(|_| self.kind == Shape::Isosceles)?;
        let (degrees, both) = (given.degrees, 180 - given.degrees);
        let mut told = vec![format!("180 - {degrees} = {both}")];
        // Points 0 and 1 are the ends of the base, 2 is the corner between the equal sides.
        let (name, value) = if given.corner == 2 {
            told.push(format!("half of {both} is {}", both / 2));
            (self.names[0], both / 2)
        } else {
            told.push(format!("{both} - {degrees} = {}", both - degrees));
            (self.names[2], both - degrees)
        };
        let question = format!("How large is the angle {name}?");
        Some(self.calculated("equal_angle", 3, (question, &format!("the angle {name}")), value, told))
    }

    /// Perimeter of a rectangle or of a triangle with all sides, with its steps.
    fn perimeter(&self) -> Option<(i64, Vec<String>)> {
        match (self.kind, &self.lengths()[..]) {
            (Shape::Rectangle, &[a, b]) => {
                let value = 2 * (a + b);
                Some((value, vec![format!("{a} + {b} = {}", a + b), format!("2 * {} = {value}", a + b)]))
            }
            (Shape::Sides, &[a, b, c]) => {
                let value = a + b + c;
                Some((value, vec![format!("{a} + {b} = {}", a + b), format!("{} + {c} = {value}", a + b)]))
            }
            _ => None,
        }
    }

    fn ask_perimeter(&self) -> Option<Asked> {
        let (value, told) = self.perimeter()?;
        Some(self.calculated("perimeter", 3, ("What is the perimeter?".into(), "the perimeter"), value, told))
    }

    fn ask_perimeter_more(&self, yes: bool, draws: &mut Draws) -> Option<Asked> {
        let (value, told) = self.perimeter()?;
        self.ask_more("perimeter", 3, value, told, yes, draws)
    }

    fn ask_missing_side(&self) -> Option<Asked> {
        let (Shape::TwoSides, &[a, b]) = (self.kind, &self.lengths()[..]) else { return None };
        let c = self.unlabelled?;
        let (sum, rest) = (a + b + c, b + c);
        let name = self.side_name(2, 0);
        let question = format!("The perimeter is {sum}. How long is {name}?");
        let told = vec![format!("{sum} - {a} = {rest}"), format!("{rest} - {b} = {c}")];
        Some(self.calculated("missing_side", 3, (question, &name), c, told))
    }

    fn ask_triangle_area(&self, draws: &mut Draws) -> Option<Asked> {
        let (Shape::Legs, &[a, b]) = (self.kind, &self.lengths()[..]) else { return None };
        let question = worded(draws, &["What is the area?".into(), "How large is the area?".into()]);
        let told = vec![format!("{a} * {b} = {}", a * b), format!("half of {} is {}", a * b, a * b / 2)];
        Some(self.calculated("triangle_area", 3, (question, "the area"), a * b / 2, told))
    }

    /// The side across the right angle, where it is a whole number.
    fn ask_across(&self) -> Option<Asked> {
        let (Shape::Legs, &[a, b]) = (self.kind, &self.lengths()[..]) else { return None };
        let squares = a * a + b * b;
        let side = (1..=40).find(|side| side * side == squares)?;
        let name = self.side_name(2, 0);
        let told = vec![
            format!("{a} * {a} = {}", a * a),
            format!("{b} * {b} = {}", b * b),
            format!("{} + {} = {squares}", a * a, b * b),
            format!("the root of {squares} is {side}"),
        ];
        Some(self.calculated("across", 3, (format!("How long is {name}?"), &name), side, told))
    }

    fn ask_leg(&self) -> Option<Asked> {
        let (Shape::LegAcross, &[a, c]) = (self.kind, &self.lengths()[..]) else { return None };
        let squares = c * c - a * a;
        let side = (1..=40).find(|side| side * side == squares)?;
        let name = self.side_name(0, 1);
        let told = vec![
            format!("{c} * {c} = {}", c * c),
            format!("{a} * {a} = {}", a * a),
            format!("{} - {} = {squares}", c * c, a * a),
            format!("the root of {squares} is {side}"),
        ];
        Some(self.calculated("leg", 3, (format!("How long is {name}?"), &name), side, told))
    }

    fn ask_ell_area(&self, draws: &mut Draws) -> Option<Asked> {
        let (Shape::Ell, &[width, height, top, right]) = (self.kind, &self.lengths()[..]) else { return None };
        let (rest, upright, lying) = (width - top, top * height, (width - top) * right);
        let question = worded(draws, &["What is the area?".into(), "How large is the area?".into()]);
        let told = vec![
            format!("{top} * {height} = {upright}"),
            format!("{width} - {top} = {rest}"),
            format!("{rest} * {right} = {lying}"),
            format!("{upright} + {lying} = {}", upright + lying),
        ];
        Some(self.calculated("ell_area", 3, (question, "the area"), upright + lying, told))
    }

    /// The same as around a rectangle of its width and height.
    fn ask_ell_perimeter(&self) -> Option<Asked> {
        let (Shape::Ell, &[width, height, ..]) = (self.kind, &self.lengths()[..]) else { return None };
        let (sum, question) = (width + height, "What is the perimeter?".to_string());
        let told = vec![format!("{width} + {height} = {sum}"), format!("2 * {sum} = {}", 2 * sum)];
        Some(self.calculated("ell_perimeter", 3, (question, "the perimeter"), 2 * sum, told))
    }
}

/// What only pre-training asks: reading everything, and plain products and differences.
impl Figure {
    fn lesson_describe(&self, draws: &mut Draws) -> Lesson {
        let question = worded(
            draws,
            &[
                "Describe the figure. How many numbers are there?".into(),
                "Read all numbers of the figure and count them.".into(),
            ],
        );
        let count = self.sides.len() + self.angles.len();
        let asked = self.asked("describe", 1, question, number(count as i64), "read the figure".into());
        Lesson { asked, rationale: Some(Figure::facts(self)) }
    }

    fn lesson_letters(&self) -> Option<Asked> {
        let answer = Answer::Text(self.names.join(", "));
        let question = "Which letters are there?".to_string();
        (!self.names.is_empty()).then(|| self.asked("letters", 1, question, answer, "read the letters".into()))
    }

    fn lesson_kind(&self) -> Asked {
        let answer = Answer::Text(self.kind.word().into());
        self.asked("kind", 1, "What kind of figure is this?".into(), answer, "name the figure".into())
    }

    /// What the primer's own sums leave out.
    fn lesson_arithmetic(&self, draws: &mut Draws) -> Lesson {
        let (question, value) = match draws.below(3) {
            0 => {
                let (a, b) = (draws.between(2, 12), draws.between(2, 12));
                (format!("What is {a} * {b}?"), a * b)
            }
            1 => {
                let (whole, a) = (draws.pick(&[90, 180, 180, 360]), draws.between(20, 80));
                (format!("What is {whole} - {a}?"), whole - a)
            }
            _ => {
                let a = draws.between(10, 90);
                (format!("What is half of {}?", 2 * a), a)
            }
        };
        let asked = self.asked("arithmetic", 1, question, number(value), "calculate".into());
        Lesson::bare(asked)
    }
}

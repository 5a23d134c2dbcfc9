//! Figures: lengths and angles by name, formulas by the word for the figure.

use super::{fit, yes_no};

struct Figure<'a> {
    word: &'a str,
    /// Everything that has a number, angles with the word in front.
    given: Vec<(&'a str, f64)>,
    right: Option<&'a str>,
    equal: Option<(&'a str, &'a str)>,
}

fn read(facts: &str) -> Figure<'_> {
    let facts = facts.strip_prefix("turned ").unwrap_or(facts).strip_suffix('.').expect("a full stop");
    let (head, list) = facts.split_once(": ").expect("figure: labels");
    let words = ["isosceles triangle", "right triangle", "triangle", "square", "rectangle", "quadrilateral", "line"];
    let word = words.iter().chain(&["right angle", "L shape"]).find(|word| head.starts_with(**word)).expect("a figure");
    let mut figure = Figure { word, given: vec![], right: None, equal: None };
    for label in list.split(", ") {
        if let Some(corner) = label.strip_prefix("right angle ") {
            figure.right = Some(corner);
        } else if let Some(f) = fit("{} and {} equal", label) {
            figure.equal = Some((f[0], f[1]));
        } else {
            let (name, value) = label.rsplit_once(' ').expect("name value");
            figure.given.push((name, value.parse().expect("a number")));
        }
    }
    figure
}

impl Figure<'_> {
    fn value(&self, name: &str) -> Option<f64> {
        self.given.iter().find(|(other, _)| *other == name).map(|&(_, value)| value)
    }

    fn lengths(&self) -> Vec<f64> {
        self.given.iter().filter(|(name, _)| !name.starts_with("angle")).map(|&(_, value)| value).collect()
    }

    fn area(&self) -> Option<f64> {
        match (self.word, &self.lengths()[..]) {
            ("square", [a]) => Some(a.powi(2)),
            ("rectangle", [a, b]) => Some(a * b),
            ("right triangle", [a, b]) => Some(a * b / 2.0),
            // The whole minus the corner that is missing.
            ("L shape", [w, h, top, right]) => Some(w * h - (w - top) * (h - right)),
            _ => None,
        }
    }

    fn perimeter(&self) -> Option<f64> {
        match (self.word, &self.lengths()[..]) {
            ("square", [a]) => Some(4.0 * a),
            ("rectangle", [a, b]) => Some(a + a + b + b),
            ("triangle", [a, b, c]) => Some(a + b + c),
            // Side by side around the L.
            ("L shape", [w, h, top, right]) => Some(w + right + (w - top) + (h - right) + top + h),
            _ => None,
        }
    }

    /// An angle without a label.
    fn angle(&self, name: &str) -> Option<f64> {
        let angles: Vec<(&str, f64)> =
            self.given.iter().filter_map(|(other, value)| Some((other.strip_prefix("angle ")?, *value))).collect();
        let sum: f64 = angles.iter().map(|(_, value)| value).sum();
        match (self.word, angles.len()) {
            ("line", 1) => Some(180.0 - sum),
            ("right angle", 1) => Some(90.0 - sum),
            ("triangle", 2) => Some(180.0 - sum),
            ("quadrilateral", 3) => Some(360.0 - sum),
            ("isosceles triangle", 1) => {
                let (one, other) = self.equal?;
                let apex = one.chars().find(|&letter| other.contains(letter))?.to_string();
                match (angles[0].0 == apex, name == apex) {
                    (true, false) => Some((180.0 - sum) / 2.0),
                    (false, true) => Some(180.0 - 2.0 * sum),
                    (false, false) => Some(sum),
                    (true, true) => None,
                }
            }
            _ => None,
        }
    }

    /// A side of a right triangle without a label.
    fn side(&self, name: &str) -> Option<f64> {
        let corner = self.right?;
        let squares: Vec<(bool, f64)> = self
            .given
            .iter()
            .filter(|(other, _)| !other.starts_with("angle"))
            .map(|(other, value)| (other.contains(corner), value * value))
            .collect();
        let [(first_leg, first), (second_leg, second)] = squares[..] else { return None };
        match (first_leg && second_leg, name.contains(corner)) {
            (true, false) => Some((first + second).sqrt()),
            (false, true) => Some((first - second).abs().sqrt()),
            _ => None,
        }
    }
}

pub fn solve(facts: &str, question: &str) -> Option<String> {
    let figure = read(facts);
    let whole = |value: f64| {
        assert!(value > 0.0 && value.fract() == 0.0, "{value}: {facts} {question}");
        Some(value.to_string())
    };
    if let Some(f) = fit("How long is the {} side?", question) {
        let lengths = figure.lengths();
        let pick = if f[0] == "longest" { f64::max } else { f64::min };
        return whole(lengths.into_iter().reduce(pick)?);
    }
    if let Some(f) = fit("The perimeter is {}. How long is {}?", question) {
        return whole(f[0].parse::<f64>().ok()? - figure.lengths().iter().sum::<f64>());
    }
    if let Some(f) = fit("How long is {}?", question).or(fit("What is the length of {}?", question)) {
        return whole(figure.value(f[0]).or_else(|| figure.side(f[0]).filter(|_| f[0].len() == 2))?);
    }
    if let Some(f) = fit("How large is the angle {}?", question) {
        if f[0].len() > 3 {
            return None;
        }
        return whole(figure.value(&format!("angle {}", f[0])).or_else(|| figure.angle(f[0]))?);
    }
    if question == "Which corner has the right angle?" {
        return figure.right.map(String::from);
    }
    if let Some(f) = fit("How much longer is {} than {}?", question) {
        return whole(figure.value(f[0])? - figure.value(f[1])?);
    }
    if let Some(f) = fit("Is the {} more than {}?", question) {
        let value = if f[0] == "area" { figure.area()? } else { figure.perimeter()? };
        return Some(yes_no(value > f[1].parse().ok()?));
    }
    if let Some(f) = fit("Is {} longer than {}?", question) {
        return Some(yes_no(figure.value(f[0])? > figure.value(f[1])?));
    }
    if let Some(f) = fit("Is {} shorter than {}?", question) {
        return Some(yes_no(figure.value(f[0])? < figure.value(f[1])?));
    }
    match question {
        "What is the area?" | "How large is the area?" => whole(figure.area()?),
        "What is the perimeter?" => whole(figure.perimeter()?),
        _ => None,
    }
}

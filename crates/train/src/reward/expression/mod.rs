//! Verifies mathematical expressions (methods 6.7): equal values count, equal spelling does not matter.
//! Never a substring rule, never true on an empty answer. Randomness: fixed sample points.
//! Cost: at most 10,000 steps; more is `Unparsable`, so hostile answers cost milliseconds.

use serde::{Deserialize, Serialize};

use foveate_kernels::rng::{Purpose, Stream};

use super::{Status, Verdict, extract};
use exact::{Rational, Surd};
use parse::{Function, Item, Node};

mod exact;
mod parse;

/// Options of the verifier `expression`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ExpressionOptions {
    /// Accepts the gold rounded to as many decimals as the answer has, at least two (`1.41` for `\sqrt{2}`).
    pub rounded: bool,
}

/// A parsed expression, ready to be compared.
#[derive(Clone, Debug, PartialEq)]
pub struct Expression {
    item: Item,
    /// Digits behind the point, if the text is a plain decimal.
    decimals: Option<u32>,
}

const STEPS: usize = 10_000;
const NUM_POINTS: u32 = 8;
const MIN_VALID_POINTS: usize = 5;

/// Reads an expression; `None` if it is outside the grammar, has no finite value or takes too long.
pub fn parse(text: &str, units: &[String]) -> Option<Expression> {
    let text = extract::answer(text, extract::Extract::Boxed, None).unwrap_or(text);
    let text = strip(text, units);
    let item = spread(parse::parse(&text)?);
    let mut budget = STEPS;
    finite(&item, &mut budget)?;
    let plain = text.trim().trim_start_matches('-');
    let decimals = plain
        .split_once('.')
        .filter(|(whole, fraction)| whole.bytes().chain(fraction.bytes()).all(|b| b.is_ascii_digit()))
        .map(|(_, fraction)| fraction.len() as u32);
    Some(Expression { item, decimals })
}

// Final punctuation and listed units behind the value.
fn strip(text: &str, units: &[String]) -> String {
    let mut text = text.trim().trim_end_matches('$').trim_end_matches('.').trim_end().to_string();
    if units.is_empty() {
        return text;
    }
    // "\text{ cm}" is "cm".
    let bare = text.trim_end_matches('}').trim_end().to_lowercase();
    for unit in units {
        let unit = unit.trim().to_lowercase();
        let found = [format!("{unit}s"), unit].into_iter().find(|u| !u.is_empty() && bare.ends_with(u.as_str()));
        let Some(found) = found else { continue };
        let head = &bare[..bare.len() - found.len()];
        if head.ends_with(|c: char| c.is_alphabetic()) || !text.is_char_boundary(head.len()) {
            continue;
        }
        let head = text[..head.len()].trim_end();
        let head = ["\\text{", "\\mathrm{", "\\mbox{"].iter().find_map(|c| head.strip_suffix(c)).unwrap_or(head);
        text = head.trim_end().to_string();
        break;
    }
    text
}

/// Scores `answer` against the parsed gold.
pub fn verify(answer: &str, gold: &Expression, options: &ExpressionOptions, units: &[String]) -> Verdict {
    let Some(answer_expression) = parse(answer, units) else { return Verdict::fail(Status::Unparsable) };
    let mut budget = STEPS;
    let Some(equal) = equal(&answer_expression.item, &gold.item, &mut budget) else {
        return Verdict::fail(Status::Unparsable);
    };
    let right = equal || (options.rounded && rounded_equal(&answer_expression, gold));
    Verdict::ok(f32::from(u8::from(right)), answer.trim())
}

/// Whether two texts are the same expression; false if either is none. Used where published code asks this of whole
/// completions.
pub fn same(a: &str, b: &str) -> bool {
    match (parse(a, &[]), parse(b, &[])) {
        (Some(a), Some(b)) => equal(&a.item, &b.item, &mut STEPS.clone()).unwrap_or(false),
        _ => false,
    }
}

fn rounded_equal(answer: &Expression, gold: &Expression) -> bool {
    let (Some(decimals @ 2..=12), Item::Scalar(answer), Item::Scalar(gold)) =
        (answer.decimals, &answer.item, &gold.item)
    else {
        return false;
    };
    if !variables(gold).is_empty() {
        return false;
    }
    let scale = 10f64.powi(decimals as i32);
    let mut budget = STEPS;
    match (value(answer, &[], &mut budget), value(gold, &[], &mut budget)) {
        (Some(a), Some(g)) => ((a * scale).round() - (g * scale).round()).abs() < 0.5,
        _ => false,
    }
}

// Replaces every scalar with a ± by the set of its two values.
fn spread(item: Item) -> Item {
    match item {
        Item::Scalar(node) if has_plus_minus(&node) => {
            Item::Set(vec![Item::Scalar(choose(&node, false)), Item::Scalar(choose(&node, true))])
        }
        Item::Set(items) => {
            // Sets inside sets (from ±, or unions of sets) are one set.
            let mut flat = Vec::new();
            for item in items.into_iter().map(spread) {
                match item {
                    Item::Set(inner) => flat.extend(inner),
                    other => flat.push(other),
                }
            }
            Item::Set(flat)
        }
        Item::Tuple { open, close, items } => {
            Item::Tuple { open, close, items: items.into_iter().map(spread).collect() }
        }
        // "x = ±3" is "x = 3 or x = -3".
        Item::Named(name, item) => match spread(*item) {
            Item::Set(items) => Item::Set(items.into_iter().map(|item| Item::Named(name, Box::new(item))).collect()),
            item => Item::Named(name, Box::new(item)),
        },
        other => other,
    }
}

fn has_plus_minus(node: &Node) -> bool {
    matches!(node, Node::PlusMinus(..)) || children(node).into_iter().any(has_plus_minus)
}

fn children(node: &Node) -> Vec<&Node> {
    match node {
        Node::Number(..) | Node::Pi | Node::E | Node::Variable(_) => vec![],
        Node::Negative(a) | Node::Root(_, a) | Node::Absolute(a) | Node::Function(_, a) => vec![a],
        Node::Add(a, b) | Node::Multiply(a, b) | Node::Divide(a, b) | Node::Power(a, b) | Node::PlusMinus(a, b) => {
            vec![a, b]
        }
    }
}

fn choose(node: &Node, minus: bool) -> Node {
    let go = |a: &Node| Box::new(choose(a, minus));
    match node {
        Node::PlusMinus(a, b) if minus => Node::Add(go(a), Box::new(Node::Negative(go(b)))),
        Node::PlusMinus(a, b) => Node::Add(go(a), go(b)),
        Node::Negative(a) => Node::Negative(go(a)),
        Node::Root(n, a) => Node::Root(*n, go(a)),
        Node::Absolute(a) => Node::Absolute(go(a)),
        Node::Function(f, a) => Node::Function(*f, go(a)),
        Node::Add(a, b) => Node::Add(go(a), go(b)),
        Node::Multiply(a, b) => Node::Multiply(go(a), go(b)),
        Node::Divide(a, b) => Node::Divide(go(a), go(b)),
        Node::Power(a, b) => Node::Power(go(a), go(b)),
        leaf => leaf.clone(),
    }
}

// Every scalar without variables must have a finite value.
fn finite(item: &Item, budget: &mut usize) -> Option<()> {
    match item {
        Item::Scalar(node) if variables(node).is_empty() => value(node, &[], budget)?.is_finite().then_some(()),
        Item::Scalar(_) | Item::Infinity { .. } => Some(()),
        Item::Named(_, item) => finite(item, budget),
        Item::Tuple { items, .. } | Item::Set(items) => items.iter().try_for_each(|item| finite(item, budget)),
    }
}

// `None`: out of budget.
fn equal(a: &Item, b: &Item, budget: &mut usize) -> Option<bool> {
    match (a, b) {
        (Item::Scalar(a), Item::Scalar(b)) => scalars_equal(a, b, budget),
        (Item::Infinity { negative: a }, Item::Infinity { negative: b }) => Some(a == b),
        // "x = 3" answers "3" and "x = 3", but not "y = 3".
        (Item::Named(a, _), Item::Named(b, _)) if a != b => Some(false),
        (Item::Named(_, a), Item::Named(_, b)) => equal(a, b, budget),
        (
            Item::Tuple { open: open_a, close: close_a, items: a },
            Item::Tuple { open: open_b, close: close_b, items: b },
        ) => {
            if open_a != open_b || close_a != close_b || a.len() != b.len() {
                return Some(false);
            }
            for (a, b) in a.iter().zip(b) {
                if !equal(a, b, budget)? {
                    return Some(false);
                }
            }
            Some(true)
        }
        (Item::Set(a), Item::Set(b)) => Some(contained(a, b, budget)? && contained(b, a, budget)?),
        (Item::Set(set), other) | (other, Item::Set(set)) => match set.as_slice() {
            [only] => equal(only, other, budget),
            _ => Some(false),
        },
        (Item::Named(_, item), other) | (other, Item::Named(_, item)) => equal(item, other, budget),
        _ => Some(false),
    }
}

fn contained(a: &[Item], b: &[Item], budget: &mut usize) -> Option<bool> {
    for item in a {
        let mut found = false;
        for other in b {
            if equal(item, other, budget)? {
                found = true;
                break;
            }
        }
        if !found {
            return Some(false);
        }
    }
    Some(true)
}

fn scalars_equal(a: &Node, b: &Node, budget: &mut usize) -> Option<bool> {
    let names = variables(a);
    if names != variables(b) {
        return Some(false);
    }
    if names.is_empty() {
        if let (Some(x), Some(y)) = (exact(a, budget), exact(b, budget)) {
            let whole = |s: &Surd| s.as_rational().is_some_and(|r| r.den == 1);
            // Whole numbers differ even where floats would call them close.
            if x == y || (whole(&x) && whole(&y)) {
                return Some(x == y);
            }
            let (x, y) = (value(a, &[], budget)?, value(b, &[], budget)?);
            return Some((x - y).abs() <= 1e-9 * x.abs().max(y.abs()));
        }
        let (x, y) = (value(a, &[], budget)?, value(b, &[], budget)?);
        // The constant is for round-off around 0, as in sin(pi).
        return Some((x - y).abs() <= 1e-9 * x.abs().max(y.abs()) + 1e-12);
    }
    let mut valid = 0;
    for point in 0..NUM_POINTS {
        let values: Vec<(char, f64)> = names.iter().map(|&name| (name, sample(name, point))).collect();
        let (x, y) = (value(a, &values, budget)?, value(b, &values, budget)?);
        if !x.is_finite() || !y.is_finite() {
            continue;
        }
        if (x - y).abs() > 1e-7 * x.abs().max(y.abs()) + 1e-12 {
            return Some(false);
        }
        valid += 1;
    }
    Some(valid >= MIN_VALID_POINTS)
}

// Mostly positive, so that roots and logarithms have values.
fn sample(name: char, point: u32) -> f64 {
    let stream = Stream::new(0, Purpose::Derivation, 0x6578_7072, name as u32, 0);
    let uniform = f64::from(stream.uniform(point));
    if point % 4 == 3 { -2.0 * uniform - 0.1 } else { 3.0 * uniform + 0.2 }
}

fn variables(node: &Node) -> Vec<char> {
    let mut names = Vec::new();
    let mut open = vec![node];
    while let Some(node) = open.pop() {
        if let Node::Variable(name) = node {
            names.push(*name);
        }
        open.extend(children(node));
    }
    names.sort_unstable();
    names.dedup();
    names
}

// Value in floating point (possibly infinite or NaN); `None`: out of budget.
fn value(node: &Node, variables: &[(char, f64)], budget: &mut usize) -> Option<f64> {
    *budget = budget.checked_sub(1)?;
    let mut go = |a: &Node| value(a, variables, budget);
    Some(match node {
        Node::Number(value, _) => *value,
        Node::Pi => std::f64::consts::PI,
        Node::E => std::f64::consts::E,
        Node::Variable(name) => variables.iter().find(|(n, _)| n == name).map_or(f64::NAN, |(_, value)| *value),
        Node::Negative(a) => -go(a)?,
        Node::Add(a, b) | Node::PlusMinus(a, b) => go(a)? + go(b)?,
        Node::Multiply(a, b) => go(a)? * go(b)?,
        Node::Divide(a, b) => go(a)? / go(b)?,
        Node::Power(a, b) => go(a)?.powf(go(b)?),
        Node::Root(2, a) => go(a)?.sqrt(),
        Node::Root(n, a) => {
            let inner = go(a)?;
            let root = inner.abs().powf(1.0 / f64::from(*n));
            if inner >= 0.0 {
                root
            } else if n % 2 == 1 {
                -root
            } else {
                f64::NAN
            }
        }
        Node::Absolute(a) => go(a)?.abs(),
        Node::Function(function, a) => {
            let x = go(a)?;
            match function {
                Function::Sin => x.sin(),
                Function::Cos => x.cos(),
                Function::Tan => x.tan(),
                Function::Ln => x.ln(),
                Function::Log => x.log10(),
                Function::Exp => x.exp(),
            }
        }
    })
}

// Exact value, where the expression has one that `Surd` can hold.
fn exact(node: &Node, budget: &mut usize) -> Option<Surd> {
    *budget = budget.checked_sub(1)?;
    let mut go = |a: &Node| exact(a, budget);
    match node {
        Node::Number(_, rational) => Some(Surd::rational((*rational)?)),
        Node::Negative(a) => Some(go(a)?.negate()),
        Node::Add(a, b) => go(a)?.add(&go(b)?),
        Node::Multiply(a, b) => go(a)?.mul(&go(b)?),
        Node::Divide(a, b) => go(a)?.mul(&go(b)?.reciprocal()?),
        Node::Power(a, b) => go(a)?.power(go(b)?.as_rational()?),
        Node::Root(n, a) => go(a)?.root(*n),
        Node::Absolute(a) => {
            let inner = go(a)?;
            let Rational { num, .. } = inner.as_rational()?;
            Some(if num < 0 { inner.negate() } else { inner })
        }
        Node::Pi | Node::E | Node::Variable(_) | Node::Function(..) | Node::PlusMinus(..) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn score(answer: &str, gold: &str) -> f32 {
        let gold = parse(gold, &["cm".into()]).unwrap_or_else(|| panic!("gold {gold:?}"));
        verify(answer, &gold, &ExpressionOptions::default(), &["cm".into()]).score
    }

    #[test]
    fn equal_values_in_other_spellings() {
        for (answer, gold) in [
            (r"\frac{1}{2}", "0.5"),
            (r"\frac12", "1/2"),
            (r"\dfrac{\sqrt{3}}{2}", "sqrt(3)/2"),
            (r"$\frac{2}{\sqrt{2}}$", r"\sqrt{2}"),
            (r"\boxed{3\pi}", "3π"),
            (r"\left(1, 2\right)", "(1,2)"),
            ("x = 5", "5"),
            (r"90^\circ", "90"),
            (r"90^{\circ}", "90°"),
            ("2x + 3", "3 + 2x"),
            ("(x+1)^2", "x^2 + 2x + 1"),
            (r"\{1, 2\}", r"\{2, 1\}"),
            ("1, 2", r"\{2,1\}"),
            (r"\pm 3", r"\{3, -3\}"),
            (r"2 \pm \sqrt{3}", r"2-\sqrt{3}, 2+\sqrt{3}"),
            ("[1, \\infty)", "[1,∞)"),
            (r"(-\infty, 0) \cup (1, 2)", r"(1,2) \cup (-\infty,0)"),
            ("1,000", "1000"),
            (r"1{,}000", "1000"),
            ("5 cm", "5"),
            (r"5\text{ cm}", "5"),
            ("|-3|", "3"),
            ("1½".replace('½', " 1/2").as_str(), "3/2"),
            (r"1\frac{1}{2}", "1.5"),
            ("2^10", "1024"),
            (r"\sqrt[3]{27}", "3"),
            ("50%", "0.5"),
            ("x = 1 or x = 2", "1, 2"),
            ("x = 3", "x = 3"),
            ("5", "y = 5"),
            (r"x = \pm 3", "x = 3, x = -3"),
            ("y = 2, x = 1", "x = 1, y = 2"),
            (r"x \in \{1, 2\}", r"\{1, 2\}"),
            (r"x = 10^{-13}", "0.0000000000001"),
            (r"\sqrt{2}^2 - 2", "0"),
            (r"\sin(\pi)", "0"),
            (r"\frac{1}{1+\sqrt{2}}", r"\sqrt{2}-1"),
            ("-2^2", "-4"),
        ] {
            assert_eq!(score(answer, gold), 1.0, "{answer} for {gold}");
        }
    }

    #[test]
    fn other_values_are_wrong() {
        for (answer, gold) in [
            ("10", "1"),
            ("1", "10"),
            ("x=12", "2"),
            ("(2,1)", "(1,2)"),
            ("(1,2)", "[1,2]"),
            ("1", r"\{1,2\}"),
            ("2x", "2y"),
            ("x^2", "2x"),
            ("1000000001", "1000000000"),
            ("0.333", "1/3"),
            ("", "1"),
            ("1 2", "2"),
            ("0", "1"),
            ("x = 3", "y = 3"),
            ("x = 1, y = 2", "x = 2, y = 1"),
            ("0", "10^{-13}"),
            ("5, 5", "5"),
            ("5 or 6", "5"),
            ("x = 5 = 6", "5"),
            (r"2 \cdot 10^{-9} x", r"10^{-9} x"),
            (r"\sqrt{x^2}", "x"),
        ] {
            assert_eq!(score(answer, gold), 0.0, "{answer} for {gold}");
        }
    }

    #[test]
    fn rounded_golds() {
        let gold = parse(r"\sqrt{2}", &[]).expect("gold");
        let rounded = ExpressionOptions { rounded: true };
        for (answer, want) in [("1.41", 1.0), ("1.414", 1.0), ("1.42", 0.0), ("1.4", 0.0), ("1", 0.0)] {
            assert_eq!(verify(answer, &gold, &rounded, &[]).score, want, "{answer}");
        }
    }

    #[test]
    fn hostile_expressions_end() {
        // The bound is one on steps; a way around it would take longer than anybody waits.
        let gold = parse("1", &[]).expect("gold");
        for text in [
            "9^9^9^9".to_string(),
            "(".repeat(4000),
            "[".repeat(2000) + &"]".repeat(2000),
            "-".repeat(4000),
            "1+".repeat(2000) + "1",
            r"\frac{1}{0}".to_string(),
            "{".repeat(40) + "1" + &"}".repeat(40),
            "((1,".repeat(500),
            "\\".to_string(),
            "^".to_string(),
            "|".repeat(1000),
            "1 2 3 4 5 6 7 8 9 10".to_string(),
            "nan".to_string(),
            "inf".to_string(),
            "sqrt(-1)".to_string(),
            "the answer is one".to_string(),
        ] {
            let verdict = verify(&text, &gold, &ExpressionOptions::default(), &[]);
            assert!(verdict.score == 0.0 || text.starts_with('{'), "{text:?}");
        }
        for text in ["9^9^9^9", r"\frac{1}{0}", "1 2 3", ""] {
            assert_eq!(verify(text, &gold, &ExpressionOptions::default(), &[]).status, Status::Unparsable, "{text}");
        }
    }
}

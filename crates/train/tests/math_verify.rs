//! How often the expression verifier agrees with the Python package math-verify, on committed pairs by kind
//! (`tools/fixture_math_verify.py`), and each disagreement by name: a new one fails the test.

use foveate_train::reward::clean::clean;
use foveate_train::reward::expression::{ExpressionOptions, parse, verify};
use serde::Deserialize;

#[derive(Deserialize)]
struct Fixture {
    pairs: Vec<Pair>,
}

#[derive(Deserialize)]
struct Pair {
    kind: String,
    gold: String,
    answer: String,
    math_verify: bool,
}

/// Where we differ, and why that stays.
const DISAGREEMENTS: [(&str, &str); 10] = [
    (
        "only theirs | percent | 50 | 50\\%",
        "a percentage is a hundredth: `verify.number` may accept both, an expression does not",
    ),
    ("only theirs | percent | 25 | 25%", "the same"),
    ("only ours | polynomial | x | 1x", "they read the answer as a number and a rest"),
    ("only theirs | unit | 5 | 5\\text{ cm}", "units must be listed in the row, else any word could follow"),
    ("only theirs | unit | 5 | 5 cm", "the same"),
    ("only theirs | unit | 12 | 12\\text{ square units}", "the same"),
    ("only theirs | unit | 10 | 10\\mathrm{~m}", "the same"),
    ("only ours | wrapping | 7 | \\boxed{6} or \\boxed{7}", "the last box is the answer"),
    ("only theirs | hostile | 6 | 3!", "there are no factorials in our grammar"),
    ("only theirs | hostile | 1 | 1_000", "they stop reading at the underscore"),
];

#[test]
fn agreement_with_math_verify() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures/math_verify/pairs.json");
    let text = std::fs::read_to_string(path).expect("the fixture is committed");
    let fixture: Fixture = serde_json::from_str(&text).expect("the fixture is JSON");
    let mut agree = 0;
    let mut found = Vec::new();
    for pair in &fixture.pairs {
        let ours = parse(&clean(&pair.gold), &[])
            .is_some_and(|gold| verify(&clean(&pair.answer), &gold, &ExpressionOptions::default(), &[]).score == 1.0);
        if ours == pair.math_verify {
            agree += 1;
        } else {
            let who = if ours { "only ours" } else { "only theirs" };
            found.push(format!("{who} | {} | {} | {}", pair.kind, pair.gold, pair.answer));
        }
    }
    let known: Vec<&str> = DISAGREEMENTS.iter().map(|(pair, _)| *pair).collect();
    assert_eq!(found, known, "{agree} of {} agree", fixture.pairs.len());
    assert_eq!((agree, fixture.pairs.len()), (151, 161), "docs/rewards.md states the rate");
}

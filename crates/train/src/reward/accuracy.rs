//! The reward `accuracy`: picks the verifier from the row's typed answer and applies it to the extracted answer.
//! Knows rows and completions, nothing of models. The same function scores training and evaluation.
//! Cost: one verifier per completion; golds are parsed once per group.

use std::collections::BTreeSet;

use foveate_tasks::row::{Answer, Call, Row};
use serde::{Deserialize, Serialize};

use super::boxes::{self, BoxOptions, Coords, Frame};
use super::choice::{self, ChoiceGold, ChoiceOptions};
use super::expression::{self, Expression, ExpressionOptions};
use super::extract::{self, Extract};
use super::functions::{self, CallWeights, FunctionOptions};
use super::labels::{self, LabelOptions};
use super::number::{self, Number, NumberOptions};
use super::text::{self, TextOptions};
use super::yes_no::{self, YesNoOptions};
use super::{Compat, RewardError, Status, Verdict, cosine};

/// Options of every verifier, by the type of the row's answer.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct VerifyOptions {
    /// Yes/no answers.
    pub yes_no: YesNoOptions,
    /// Option letters.
    pub choice: ChoiceOptions,
    /// Numbers.
    pub number: NumberOptions,
    /// Free texts.
    pub text: TextOptions,
    /// Sets of labels.
    pub labels: LabelOptions,
    /// Function calls.
    pub functions: FunctionOptions,
    /// Bounding boxes.
    #[serde(rename = "box")]
    pub boxes: BoxOptions,
    /// Mathematical expressions.
    pub expression: ExpressionOptions,
}

impl VerifyOptions {
    /// Refuses options that cannot mean anything.
    pub fn check(&self) -> Result<(), RewardError> {
        let refuse = |option: &'static str, why: &'static str| Err(RewardError::Option { option, why });
        let number = &self.number;
        if !(number.rel_tol >= 0.0 && number.abs_tol >= 0.0 && number.rel_tol < 1.0) {
            return refuse("verify.number", "tolerances must be at least 0, the relative one below 1");
        }
        if number.cosine.is_some_and(|[inner, outer]| !(inner >= 0.0 && inner < outer)) {
            return refuse("verify.number.cosine", "needs two numbers, the first at least 0 and below the second");
        }
        if !(0.0..1.0).contains(&self.boxes.threshold) {
            return refuse("verify.box.threshold", "must be at least 0 and below 1");
        }
        Ok(())
    }
}

/// A row's right answer, parsed once.
#[derive(Clone, Debug)]
pub struct Gold {
    value: GoldValue,
    text: String,
    units: Vec<String>,
}

#[derive(Clone, Debug)]
enum GoldValue {
    YesNo(bool),
    Choice(ChoiceGold),
    Number(Number),
    Texts(Vec<String>),
    Labels(BTreeSet<String>),
    Box {
        corners: [f64; 4],
        to_original: [f64; 2],
    },
    Functions(Vec<Call>),
    Expression(Box<Expression>),
    /// Published code compares texts only, and does not ask whether the gold parses.
    Published,
}

impl Gold {
    /// Parses the answer of `row`. `frame` is needed for boxes whose coordinates are not original pixels.
    pub fn new(
        row: &Row,
        options: &VerifyOptions,
        compat: Option<Compat>,
        frame: Option<Frame>,
    ) -> Result<Self, RewardError> {
        let text = row.answer.text();
        let bad = |why: &'static str| RewardError::Gold {
            row: row.id.clone(),
            kind: row.answer.kind(),
            text: text.clone(),
            why,
        };
        let units = units(row);
        let value = match &row.answer {
            Answer::YesNo(yes) => GoldValue::YesNo(*yes),
            Answer::Choice(letters) => GoldValue::Choice(
                ChoiceGold::new(letters, &row.choices).ok_or_else(|| bad("not letters of the row's options"))?,
            ),
            Answer::Number(_) | Answer::Expression(_) if compat.is_some() => GoldValue::Published,
            Answer::Number(written) => {
                let written = super::clean::clean(written);
                let number = number::parse(&written, &options.number, &units);
                GoldValue::Number(number.ok_or_else(|| bad("not a number; list its unit under `units`"))?)
            }
            Answer::Expression(written) => {
                let written = super::clean::clean(written);
                let parsed = expression::parse(&written, &units);
                GoldValue::Expression(Box::new(parsed.ok_or_else(|| bad("not an expression that can be compared"))?))
            }
            // Punctuation alone would never be equal to anything.
            Answer::Text(one) if !options.text.has_content(one) => return Err(bad("empty text")),
            Answer::Text(one) => GoldValue::Texts(vec![super::clean::clean(one)]),
            Answer::Member(many) => {
                let many: Vec<_> =
                    many.iter().map(|t| super::clean::clean(t)).filter(|t| options.text.has_content(t)).collect();
                if many.is_empty() {
                    return Err(bad("no accepted text"));
                }
                GoldValue::Texts(many)
            }
            Answer::Labels(labels) => {
                GoldValue::Labels(labels::gold(labels).ok_or_else(|| bad("no label left after normalising"))?)
            }
            Answer::Box(corners) => {
                if !boxes::valid(corners) {
                    return Err(bad("a box needs x1 < x2 and y1 < y2"));
                }
                let coords = if compat.is_some() { Coords::OriginalPixels } else { options.boxes.coords };
                let to_original = coords.to_original(frame).ok_or_else(|| bad("the size of its image is not known"))?;
                GoldValue::Box { corners: *corners, to_original }
            }
            Answer::Functions(calls) if calls.is_empty() => return Err(bad("no function call")),
            Answer::Functions(calls) => GoldValue::Functions(calls.clone()),
        };
        Ok(Self { value, text, units })
    }
}

// A row lists its units under `units`: one text or a list of texts.
fn units(row: &Row) -> Vec<String> {
    match row.meta.get("units").or_else(|| row.meta.get("unit")) {
        Some(serde_json::Value::String(unit)) => vec![unit.clone()],
        Some(serde_json::Value::Array(units)) => units.iter().filter_map(|u| u.as_str().map(str::to_string)).collect(),
        _ => Vec::new(),
    }
}

/// Scores a cleaned completion.
pub fn verify(
    completion: &str,
    gold: &Gold,
    extract: Extract,
    options: &VerifyOptions,
    compat: Option<Compat>,
) -> Verdict {
    match compat {
        None => match extract::answer(completion, extract, None) {
            Ok(answer) => verify_answer(answer, gold, options),
            Err(status) => Verdict::fail(status),
        },
        Some(Compat::Dyme) => dyme(completion, gold, options),
        Some(Compat::CurrReft) => curr_reft(completion, gold, options),
        Some(Compat::ReasonRft) => reason_rft(completion, gold, options),
    }
}

fn verify_answer(answer: &str, gold: &Gold, options: &VerifyOptions) -> Verdict {
    match &gold.value {
        GoldValue::YesNo(yes) => yes_no::verify(answer, *yes, &options.yes_no, None),
        GoldValue::Choice(letters) => choice::verify(answer, letters, &options.choice, None),
        GoldValue::Number(number) => number::verify(answer, *number, &options.number, &gold.units),
        GoldValue::Texts(texts) => text::verify(answer, texts, &options.text),
        GoldValue::Labels(set) => labels::verify(answer, set, &options.labels, None),
        GoldValue::Box { corners, to_original } => boxes::verify(answer, corners, &options.boxes, *to_original),
        GoldValue::Functions(calls) => functions::verify(answer, calls, &options.functions),
        GoldValue::Expression(expected) => expression::verify(answer, expected, &options.expression, &gold.units),
        // `Gold::new` makes this value for published rules only, which do not come here.
        GoldValue::Published => Verdict::fail(Status::Unparsable),
    }
}

fn equal_texts(answer: &str, gold: &str) -> Verdict {
    Verdict::ok(f32::from(u8::from(answer == gold)), answer)
}

// DyME (methods 2.5): relaxed equality of the text behind the flag; lists by membership.
fn dyme(completion: &str, gold: &Gold, options: &VerifyOptions) -> Verdict {
    let lower = completion.to_lowercase();
    let answer = match extract::answer(&lower, Extract::Flag, Some(Compat::Dyme)) {
        Ok(answer) => answer,
        Err(status) => return Verdict::fail(status),
    };
    match &gold.value {
        GoldValue::Texts(texts) if texts.len() > 1 => text::verify(answer, texts, &TextOptions::default()),
        _ => number::verify_relaxed_compat(answer, &gold.text, options.number.rel_tol, Compat::Dyme),
    }
}

// Curr-ReFT (methods 3.2).
fn curr_reft(completion: &str, gold: &Gold, options: &VerifyOptions) -> Verdict {
    let tagged = extract::tag_compat(completion);
    let compat = Some(Compat::CurrReft);
    let answer = tagged.unwrap_or(completion.trim());
    match (&gold.value, tagged) {
        (GoldValue::YesNo(yes), Some(answer)) => yes_no::verify(answer, *yes, &options.yes_no, compat),
        (GoldValue::YesNo(_), None) => Verdict::fail(Status::NoAnswer),
        (GoldValue::Choice(letters), Some(answer)) => choice::verify(answer, letters, &options.choice, compat),
        (GoldValue::Choice(_), None) => {
            Verdict::ok(f32::from(u8::from(expression::same(completion, &gold.text))), completion.trim())
        }
        (GoldValue::Labels(set), _) => labels::verify(answer, set, &options.labels, compat),
        (GoldValue::Box { corners, .. }, _) => boxes::verify_compat(answer, corners, Compat::CurrReft),
        _ => {
            // Equal letter strings count, both empty included; so does a substring, the empty one included.
            let letters = || tagged.is_some() && choice::read_compat(answer) == choice::read_compat(&gold.text);
            let part = || answer.contains(gold.text.as_str()) || gold.text.contains(answer);
            let right = expression::same(answer, &gold.text) || letters() || part();
            Verdict::ok(f32::from(u8::from(right)), answer)
        }
    }
}

// Reason-RFT (methods 4.2): equal strings inside the tag; without a tag symbolic equality of the whole text.
fn reason_rft(completion: &str, gold: &Gold, options: &VerifyOptions) -> Verdict {
    let tagged = extract::tag_compat(completion);
    let answer = tagged.unwrap_or(completion.trim());
    if let GoldValue::Functions(calls) = &gold.value {
        let options = FunctionOptions { weights: CallWeights::OnlyFull, repeat_factor: true };
        return functions::verify(answer, calls, &options);
    }
    if let Some([inner, outer]) = options.number.cosine
        && let (Ok(a), Ok(g)) = (answer.parse::<f64>(), gold.text.trim().parse::<f64>())
        && a.is_finite()
    {
        return Verdict::ok(cosine::score_compat(a, g, inner, outer) as f32, answer);
    }
    match tagged {
        Some(answer) => equal_texts(answer, gold.text.trim()),
        None => Verdict::ok(f32::from(u8::from(expression::same(completion, &gold.text))), answer),
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::row;
    use super::*;

    fn score(completion: &str, answer: Answer, compat: Option<Compat>) -> f32 {
        let options = VerifyOptions::default();
        let gold = Gold::new(&row(answer), &options, compat, None).expect("gold");
        verify(&super::super::clean::clean(completion), &gold, Extract::Tag, &options, compat).score
    }

    #[test]
    fn published_doors_stand_open_only_in_compat() {
        let number = || Answer::Number("5".into());
        // Curr-ReFT maths: any tagged answer without letters passes, and the empty one as well.
        for text in ["<answer>77</answer>", "<answer></answer>", "<answer>15</answer>"] {
            assert_eq!(score(text, number(), Some(Compat::CurrReft)), 1.0, "{text}");
            assert_eq!(score(text, number(), None), 0.0, "{text}");
        }
        assert_eq!(score("<answer>5.0</answer>", number(), Some(Compat::ReasonRft)), 0.0);
        assert_eq!(score("<answer>5.0</answer>", number(), None), 1.0);
        assert_eq!(score("5.0", number(), Some(Compat::ReasonRft)), 1.0);
        assert_eq!(score("5.0", number(), None), 0.0);
        assert_eq!(score("5", number(), Some(Compat::Dyme)), 1.0);
        assert_eq!(score("Answer: 5.0", number(), Some(Compat::Dyme)), 1.0);
        assert_eq!(score("x Answer: Red.", Answer::Text("red".into()), Some(Compat::Dyme)), 1.0);
        let member = || Answer::Member(vec!["cat".into(), "kitten".into()]);
        assert_eq!(score("Answer: Kitten", member(), Some(Compat::Dyme)), 1.0);
        assert_eq!(score("<answer>Kitten.</answer>", member(), None), 1.0);
    }

    #[test]
    fn golds_are_refused_when_their_own_verifier_cannot_read_them() {
        let options = VerifyOptions::default();
        for answer in [
            Answer::Number("five apples".into()),
            Answer::Expression("\\frac{1}{0}".into()),
            Answer::Text(" ".into()),
            Answer::Member(vec![]),
            Answer::Choice(vec!["Z".into()]),
            Answer::Labels(vec![]),
            Answer::Box([5.0, 5.0, 5.0, 6.0]),
            Answer::Functions(vec![]),
        ] {
            let error = Gold::new(&row(answer.clone()), &options, None, None);
            assert!(matches!(error, Err(RewardError::Gold { .. })), "{answer:?}");
        }
    }

    #[test]
    fn every_answer_type_accepts_its_own_gold() {
        let call = Call { function: "change_size".into(), object: "1".into(), value: "small".into() };
        for answer in [
            Answer::Number("40%".into()),
            Answer::Text("A red car".into()),
            Answer::Member(vec!["cat".into(), "kitten".into()]),
            Answer::Choice(vec!["A".into(), "C".into()]),
            Answer::YesNo(true),
            Answer::YesNo(false),
            Answer::Labels(vec!["traffic light".into(), "car".into()]),
            Answer::Box([1.0, 2.0, 30.5, 40.0]),
            Answer::Functions(vec![call]),
            Answer::Expression("\\frac{\\sqrt{3}}{2}".into()),
        ] {
            let text = format!("<think>t</think><answer>{}</answer>", answer.text());
            assert_eq!(score(&text, answer.clone(), None), 1.0, "{answer:?}");
            assert_eq!(score("", answer.clone(), None), 0.0, "{answer:?}");
            assert_eq!(score("<answer></answer>", answer, None), 0.0);
        }
    }
}

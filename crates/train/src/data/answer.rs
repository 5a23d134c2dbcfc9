//! From what a file says an answer is to a typed answer.
//! A typed object is taken at its word; a plain value is typed by declaration or by its form. What its own verifier
//! could never accept (letters without options, boxes inside out) is refused here, where file and line are known.
//! Cost: none worth naming.

use foveate_tasks::{Answer, Call};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::error::Problem;

/// Name of an answer's type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AnswerType {
    /// A number.
    Number,
    /// Free text.
    Text,
    /// Any of several accepted texts.
    Member,
    /// Option letters.
    Choice,
    /// Yes or no.
    YesNo,
    /// A set of labels.
    Labels,
    /// A box of four numbers.
    Box,
    /// A sequence of function calls.
    Functions,
    /// A mathematical expression.
    Expression,
}

impl AnswerType {
    /// The type called `name`.
    pub fn named(name: &str) -> Option<Self> {
        serde_json::from_value(Value::String(name.to_string())).ok()
    }
}

const TYPES: &str = "number, text, member, choice, yes_no, labels, box, functions, expression";

/// The typed answer of a row with the options `choices`.
pub fn typed(value: &Value, declared: Option<AnswerType>, choices: &[String]) -> Result<Answer, Problem> {
    let answer = match (value, declared) {
        (Value::Object(_), _) => serde_json::from_value(value.clone()).map_err(|error| {
            wrong(format!("{error}"), format!("write {{\"type\": \"number\", \"value\": \"3\"}}; types are {TYPES}"))
        })?,
        (value, Some(declared)) => as_declared(value, declared)?,
        (value, None) => inferred(value, choices)?,
    };
    check(&answer, choices)?;
    Ok(answer)
}

fn wrong(problem: impl Into<String>, hint: impl Into<String>) -> Problem {
    Problem::new("answer", problem, hint)
}

fn inferred(value: &Value, choices: &[String]) -> Result<Answer, Problem> {
    Ok(match value {
        Value::Bool(yes) => Answer::YesNo(*yes),
        Value::Number(number) => Answer::Number(number.to_string()),
        Value::String(text) => {
            let text = text.trim();
            if let (false, Some(letters)) = (choices.is_empty(), letters(text, choices.len())) {
                Answer::Choice(letters)
            } else if let Some(yes) = yes_no(text) {
                Answer::YesNo(yes)
            } else if is_number(text) {
                Answer::Number(text.to_string())
            } else if let Some(calls) = functions(text) {
                Answer::Functions(calls)
            } else {
                Answer::Text(text.to_string())
            }
        }
        Value::Array(items) if items.len() == 4 && items.iter().all(Value::is_number) => {
            as_declared(value, AnswerType::Box)?
        }
        Value::Array(items) if !items.is_empty() && items.iter().all(Value::is_string) => {
            as_declared(value, AnswerType::Labels)?
        }
        other => return Err(wrong(format!("{} is no answer", kind(other)), "write a string, a number, true or false")),
    })
}

fn as_declared(value: &Value, declared: AnswerType) -> Result<Answer, Problem> {
    let text = match value {
        Value::String(text) => Some(text.trim().to_string()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    };
    let list = || -> Option<Vec<String>> {
        match value {
            Value::Array(items) => items.iter().map(|item| item.as_str().map(|text| text.trim().to_string())).collect(),
            _ => text.as_ref().map(|text| split_list(text)),
        }
    };
    let answer = match declared {
        AnswerType::Number => text.filter(|text| is_number(text)).map(Answer::Number),
        AnswerType::Text => text.map(Answer::Text),
        AnswerType::Expression => text.map(Answer::Expression),
        AnswerType::Member => match value {
            // A single text may hold commas of its own.
            Value::Array(_) => list().map(Answer::Member),
            _ => text.map(|text| Answer::Member(vec![text])),
        },
        AnswerType::YesNo => value.as_bool().or(text.and_then(|text| yes_no(&text))).map(Answer::YesNo),
        AnswerType::Choice => list().and_then(|parts| letters(&parts.join(","), 26)).map(Answer::Choice),
        AnswerType::Labels => list().map(Answer::Labels),
        AnswerType::Box => numbers(value).map(Answer::Box),
        AnswerType::Functions => text.and_then(|text| functions(&text)).map(Answer::Functions),
    };
    answer.ok_or_else(|| {
        let name = serde_json::to_value(declared).ok().and_then(|name| name.as_str().map(String::from));
        let name = name.unwrap_or_default();
        wrong(
            format!("{} cannot be read as {name}", shown(value)),
            "correct the answer, or its type (answer_type in the row or in the recipe)",
        )
    })
}

/// Refuses answers that no completion could ever match.
fn check(answer: &Answer, choices: &[String]) -> Result<(), Problem> {
    let empty = |text: &String| text.trim().is_empty();
    match answer {
        Answer::Number(text) if !is_number(text) => Err(wrong(
            format!("`{text}` is no number"),
            "write digits, with at most one decimal point, or type it as text",
        )),
        Answer::Text(text) | Answer::Expression(text) if empty(text) => {
            Err(wrong("it is empty", "every row needs an answer"))
        }
        Answer::Member(texts) | Answer::Labels(texts) if texts.is_empty() || texts.iter().any(empty) => {
            Err(wrong("it holds nothing or an empty text", "list at least one text and no empty ones"))
        }
        Answer::Choice(letters) => {
            if choices.is_empty() {
                return Err(wrong(
                    "it names option letters, but the row has no `choices`",
                    "add the option texts as `choices`",
                ));
            }
            let valid = |letter: &String| letters_of(choices.len()).contains(letter);
            match letters.iter().find(|letter| !valid(letter)) {
                Some(letter) => Err(wrong(
                    format!("letter `{letter}` does not name one of the {} choices", choices.len()),
                    "the first choice is A, the second B, ...",
                )),
                None if letters.is_empty() => Err(wrong("it names no option", "give at least one letter")),
                None => Ok(()),
            }
        }
        Answer::Box([x1, y1, x2, y2]) => {
            let fine = [x1, y1, x2, y2].iter().all(|side| side.is_finite()) && x2 > x1 && y2 > y1;
            if fine { Ok(()) } else { Err(wrong("the box has no area", "write [left, top, right, bottom] in pixels")) }
        }
        Answer::Functions(calls) if calls.is_empty() => {
            Err(wrong("it holds no function call", "write change_color(0, red)"))
        }
        _ => Ok(()),
    }
}

fn letters_of(count: usize) -> Vec<String> {
    (0..count.min(26)).map(foveate_tasks::derive::letter).collect()
}

/// `B`, `(B)`, `A, C`: letters of the first `count` options, in order, or nothing.
fn letters(text: &str, count: usize) -> Option<Vec<String>> {
    let valid = letters_of(count);
    let parts = text.split([',', ';']).map(|part| part.trim().trim_start_matches('(').trim_end_matches([')', '.']));
    let letters: Vec<String> = parts.map(str::to_ascii_uppercase).collect();
    letters.iter().all(|letter| valid.contains(letter)).then_some(letters)
}

fn split_list(text: &str) -> Vec<String> {
    text.split([',', ';', '\n']).map(|part| part.trim().to_string()).filter(|part| !part.is_empty()).collect()
}

fn yes_no(text: &str) -> Option<bool> {
    match text.trim_end_matches('.').to_ascii_lowercase().as_str() {
        "yes" | "true" => Some(true),
        "no" | "false" => Some(false),
        _ => None,
    }
}

/// Digits with an optional sign, thousands commas, one decimal point, an exponent, a percent sign.
pub fn is_number(text: &str) -> bool {
    let text = text.trim();
    let text = text.strip_suffix('%').unwrap_or(text).trim_end();
    let plain = text.replace(',', "");
    let begins = plain.trim_start_matches(['-', '+', '.']).starts_with(|c: char| c.is_ascii_digit());
    begins && plain.parse::<f64>().is_ok_and(f64::is_finite)
}

fn numbers(value: &Value) -> Option<[f64; 4]> {
    let numbers: Option<Vec<f64>> = match value {
        Value::Array(items) => items.iter().map(Value::as_f64).collect(),
        Value::String(text) => {
            let inner = text.trim().trim_start_matches(['[', '(']).trim_end_matches([']', ')']);
            inner.split(',').map(|part| part.trim().parse().ok()).collect()
        }
        _ => None,
    };
    numbers.and_then(|numbers| numbers.try_into().ok())
}

/// `name(object, value), name(object, value)`, quotes around values allowed; nothing if anything else is in the text.
fn functions(text: &str) -> Option<Vec<Call>> {
    let word = |text: &str| {
        let text = text.trim().trim_matches(['\'', '"']);
        let fine = !text.is_empty() && text.chars().all(|c| c.is_alphanumeric() || c == '_' || c == '-');
        fine.then(|| text.to_string())
    };
    let mut calls = Vec::new();
    let mut rest = text.trim().trim_start_matches('[').trim_end_matches(']').trim();
    while !rest.is_empty() {
        let (function, after) = rest.split_once('(')?;
        let (inside, after) = after.split_once(')')?;
        let (object, value) = inside.split_once(',')?;
        calls.push(Call { function: word(function)?, object: word(object)?, value: word(value)? });
        rest = after.trim_start().trim_start_matches([',', ';']).trim_start();
    }
    (!calls.is_empty()).then_some(calls)
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true/false",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "this list",
        Value::Object(_) => "an object",
    }
}

/// The value as written, cut to a readable length.
fn shown(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(60) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn options() -> Vec<String> {
        ["cat", "dog", "owl"].map(String::from).to_vec()
    }

    #[test]
    fn plain_answers_are_typed_by_their_form() {
        let cases = [
            (json!(3), Answer::Number("3".into())),
            (json!(3.5), Answer::Number("3.5".into())),
            (json!("1,200"), Answer::Number("1,200".into())),
            (json!("40%"), Answer::Number("40%".into())),
            (json!(true), Answer::YesNo(true)),
            (json!("No"), Answer::YesNo(false)),
            (json!(" B "), Answer::Text("B".into())),
            (json!("May 3"), Answer::Text("May 3".into())),
            (json!("inf"), Answer::Text("inf".into())),
            (json!(["cat", "dog"]), Answer::Labels(vec!["cat".into(), "dog".into()])),
            (json!([1, 2, 3, 4.5]), Answer::Box([1.0, 2.0, 3.0, 4.5])),
            (json!({"type": "member", "value": ["a", "b"]}), Answer::Member(vec!["a".into(), "b".into()])),
        ];
        for (value, answer) in cases {
            assert_eq!(typed(&value, None, &[]), Ok(answer));
        }
        assert_eq!(typed(&json!("b"), None, &options()), Ok(Answer::Choice(vec!["B".into()])));
        assert_eq!(typed(&json!("(A), C"), None, &options()), Ok(Answer::Choice(vec!["A".into(), "C".into()])));
        assert_eq!(typed(&json!("dog"), None, &options()), Ok(Answer::Text("dog".into())));
        let calls = typed(&json!("change_color(0, 'red'), change_size(1,small)"), None, &[]).unwrap();
        assert_eq!(calls.text(), "change_color(0, red), change_size(1, small)");
    }

    #[test]
    fn a_declared_type_wins() {
        assert_eq!(typed(&json!("7"), Some(AnswerType::Text), &[]), Ok(Answer::Text("7".into())));
        assert_eq!(
            typed(&json!("a; b"), Some(AnswerType::Labels), &[]),
            Ok(Answer::Labels(vec!["a".into(), "b".into()]))
        );
        assert_eq!(typed(&json!("[1, 2, 3, 4]"), Some(AnswerType::Box), &[]), Ok(Answer::Box([1.0, 2.0, 3.0, 4.0])));
        assert_eq!(AnswerType::named("yes_no"), Some(AnswerType::YesNo));
        assert_eq!(AnswerType::named("yesno"), None);
    }

    #[test]
    fn answers_that_nothing_can_match_are_refused() {
        let cases = [
            (json!("many"), Some(AnswerType::Number)),
            (json!(""), None),
            (json!(null), None),
            (json!([]), None),
            (json!([1, "a"]), None),
            (json!({"type": "nummer", "value": "1"}), None),
            (json!({"type": "number", "value": "many"}), None),
            (json!({"type": "box", "value": [5, 5, 1, 9]}), None),
            (json!({"type": "choice", "value": ["D"]}), None),
            (json!("C"), Some(AnswerType::Choice)),
            (json!("x"), Some(AnswerType::Functions)),
        ];
        for (value, declared) in cases {
            let problem = typed(&value, declared, &[]).unwrap_err();
            assert_eq!(problem.field, "answer");
            assert!(!problem.hint.is_empty(), "{value}");
        }
        assert!(typed(&json!({"type": "choice", "value": ["D"]}), None, &options()).is_err());
    }
}

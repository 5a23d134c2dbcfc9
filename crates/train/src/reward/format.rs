//! Rewards for the shape of a completion (methods 6.13): tags, flag, box pattern. Never looks at what is right.
//! Cost: one pass.

use serde::{Deserialize, Serialize};

use super::Compat;
use super::boxes::lists;
use super::extract::{self, Extract};

/// Which tags a completion is made of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Form {
    /// `<think>…</think><answer>…</answer>`.
    #[default]
    ThinkAnswer,
    /// `<summary>`, `<caption>`, `<think>`, `<answer>`, in this order.
    Caption,
}

impl Form {
    fn names(self) -> &'static [&'static str] {
        match self {
            Form::ThinkAnswer => &["think", "answer"],
            Form::Caption => &["summary", "caption", "think", "answer"],
        }
    }
}

/// Whether the completion is exactly one block per tag, in order, with nothing but white space between.
/// Strict: each tag once, no empty block, white space around the whole does not count.
/// Compat: what the published full match accepts, repeated tags and empty blocks included.
pub fn tags(text: &str, form: Form, compat: Option<Compat>) -> bool {
    match compat {
        None => tags_strict(text, form.names()),
        Some(_) => tags_compat(text, form.names()),
    }
}

fn tags_strict(text: &str, names: &[&str]) -> bool {
    let mut rest = text.trim();
    for name in names {
        let (open, close) = (format!("<{name}>"), format!("</{name}>"));
        if text.matches(&open).count() != 1 || text.matches(&close).count() != 1 {
            return false;
        }
        let Some(behind) = rest.trim_start().strip_prefix(&open) else { return false };
        let Some((content, behind)) = behind.split_once(&close) else { return false };
        if content.trim().is_empty() || names.iter().any(|n| content.contains(&format!("<{n}>"))) {
            return false;
        }
        rest = behind;
    }
    rest.is_empty()
}

// The pattern `<a>.*?</a>\s*<b>.*?</b>` as a full match where `.` matches line ends: the text must begin with the
// first tag and end with the last closing tag; every border between two blocks is `</a>`, white space, `<b>`, each
// to the right of the one before. Lazy matching backtracks, so the leftmost borders decide whether one exists.
fn tags_compat(text: &str, names: &[&str]) -> bool {
    let (Some(first), Some(last)) = (names.first(), names.last()) else { return false };
    let Some(mut rest) = text.strip_prefix(&format!("<{first}>")) else { return false };
    for pair in names.windows(2) {
        let (close, open) = (format!("</{}>", pair[0]), format!("<{}>", pair[1]));
        let border = rest.match_indices(&close).find_map(|(at, _)| {
            let behind = rest[at + close.len()..].trim_start();
            behind.strip_prefix(&open)
        });
        match border {
            Some(behind) => rest = behind,
            None => return false,
        }
    }
    rest.ends_with(&format!("</{last}>"))
}

/// Settings of the flag format.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct FlagShape {
    /// Fewest characters of reasoning before the flag.
    pub min_think: usize,
    /// Most characters of the answer, if limited.
    pub max_answer_chars: Option<usize>,
}

/// Whether the completion is some reasoning, `Answer:` exactly once, and (strict) a non-empty answer.
pub fn flag(text: &str, shape: FlagShape, compat: Option<Compat>) -> bool {
    let thinking = extract::thinking(text, Extract::Flag);
    if extract::count_flags(text) != 1 || thinking.chars().count() < shape.min_think {
        return false;
    }
    let answer = extract::answer(text, Extract::Flag, compat);
    let short = |answer: &str| shape.max_answer_chars.is_none_or(|max| answer.chars().count() <= max);
    match (answer, compat) {
        (Ok(answer), _) => short(answer),
        (Err(_), Some(_)) => true,
        (Err(_), None) => false,
    }
}

/// Whether an answer holds a brace-wrapped list of four numbers. Compat: unsigned whole numbers only.
pub fn box_pattern(answer: &str, compat: Option<Compat>) -> bool {
    let Some((open, close)) = answer.find('{').zip(answer.rfind('}')) else { return false };
    if close < open {
        return false;
    }
    let inner = &answer[open + 1..close];
    match compat {
        None => lists(inner).into_iter().flatten().any(|list| list.len() == 4),
        Some(_) => inner.split('[').skip(1).filter_map(|part| part.split_once(']')).any(|(list, _)| {
            let numbers: Vec<&str> = list.split(',').map(str::trim_start).collect();
            numbers.len() == 4 && numbers.iter().all(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()))
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn golden_format_tags() {
        let one = "<think>a</think><answer>x</answer>";
        for (text, compat, strict) in [
            (one.to_string(), true, true),
            (format!("{one}<answer>y</answer>"), true, false),
            ("<think></think><answer></answer>".to_string(), true, false),
            (format!("{one}\n"), false, true),
            (String::new(), false, false),
            ("<think>a</think> b <answer>x</answer>".to_string(), false, false),
            ("<think>a</think>\n<answer>x".to_string(), false, false),
            ("<think><answer>5</answer></think><answer>x</answer>".to_string(), true, false),
            ("<answer>x</answer><think>a</think>".to_string(), false, false),
        ] {
            assert_eq!(tags(&text, Form::ThinkAnswer, Some(Compat::CurrReft)), compat, "compat {text:?}");
            assert_eq!(tags(&text, Form::ThinkAnswer, None), strict, "strict {text:?}");
        }
        let caption = "<summary>s</summary> <caption>c</caption>\n<think>t</think><answer>a</answer>";
        assert!(tags(caption, Form::Caption, None) && tags(caption, Form::Caption, Some(Compat::ReasonRft)));
        assert!(!tags(one, Form::Caption, None));
    }

    #[test]
    fn golden_format_box() {
        let compat = Some(Compat::CurrReft);
        for (text, published, strict) in [
            ("{\"bbox\": [1,2,3,4]}", true, true),
            ("[1,2,3,4]", false, false),
            ("yes", false, false),
            ("{[1.5,2,3,4]}", false, true),
            ("{[1,2,3]}", false, false),
            ("}[1,2,3,4]{", false, false),
        ] {
            assert_eq!(box_pattern(text, compat), published, "compat {text:?}");
            assert_eq!(box_pattern(text, None), strict, "strict {text:?}");
        }
    }

    #[test]
    fn flag_format() {
        let strict = FlagShape { min_think: 1, max_answer_chars: Some(20) };
        let loose = FlagShape { min_think: 0, max_answer_chars: None };
        assert!(flag("two and two\nAnswer: 4", strict, None));
        assert!(!flag("Answer: 4", strict, None));
        assert!(flag("Answer: 4", loose, Some(Compat::Dyme)));
        assert!(!flag("x Answer: 4 Answer: 5", strict, None));
        assert!(!flag("x Answer: ", strict, None));
        assert!(flag("x Answer: ", loose, Some(Compat::Dyme)));
        assert!(!flag("x Answer: this is far too long an answer", strict, None));
        assert!(!flag("", strict, None));
    }
}

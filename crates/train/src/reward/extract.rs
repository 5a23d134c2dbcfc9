//! Finds the final answer, and the thinking before it, in what a model wrote.
//! Knows tags and flags; does not judge what it finds. Works on text that went through `clean`.
//! Cost: a few linear passes over the completion, whatever it holds.

use serde::{Deserialize, Serialize};

use super::clean::{MAX_ANSWER_CHARS, find_ignore_case};
use super::{Compat, Status};

/// What announces the answer in plain prose; letters compare without case.
pub const FLAG: &str = "answer:";

/// Where the final answer stands in a completion.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Extract {
    /// After the last `Answer:`, on its first non-empty line. Cheap in tokens: the choice for very small models.
    #[default]
    Flag,
    /// Inside the only `<answer>…</answer>`.
    Tag,
    /// Inside the last balanced `\boxed{…}`, as mathematics models write it.
    Boxed,
    /// The last number anywhere. Generous: for scoring models that were never taught a format.
    LastNumber,
    /// The whole completion.
    Whole,
}

/// The answer as written, trimmed; `Err` says why there is none.
pub fn answer(text: &str, how: Extract, compat: Option<Compat>) -> Result<&str, Status> {
    let found = match (how, compat) {
        (Extract::Flag, Some(_)) => flag_compat(text),
        (Extract::Flag, None) => flag(text)?,
        (Extract::Tag, Some(_)) => tag_compat(text).unwrap_or(text.trim()),
        (Extract::Tag, None) => tag(text)?,
        (Extract::Boxed, _) => boxed(text).ok_or(Status::NoAnswer)?,
        (Extract::LastNumber, _) => last_number(text).ok_or(Status::NoAnswer)?,
        (Extract::Whole, _) => text.trim(),
    };
    if found.is_empty() {
        return Err(Status::NoAnswer);
    }
    if found.len() > MAX_ANSWER_CHARS && found.chars().nth(MAX_ANSWER_CHARS).is_some() {
        return Err(Status::Unparsable);
    }
    Ok(found)
}

/// The reasoning that stands before the answer; empty if there is none.
pub fn thinking(text: &str, how: Extract) -> &str {
    match how {
        Extract::Tag => {
            let start = text.find("<think>").map_or(0, |at| at + "<think>".len());
            let rest = &text[start..];
            let end = rest.find("</think>").or_else(|| rest.find("<answer>")).unwrap_or(rest.len());
            rest[..end].trim()
        }
        Extract::Boxed => match boxed_range(text) {
            Some((start, _)) => text[..start].trim(),
            None => text.trim(),
        },
        Extract::Flag => match find_ignore_case(text, FLAG, 0) {
            Some(at) => text[..at].trim(),
            None => text.trim(),
        },
        Extract::LastNumber | Extract::Whole => text.trim(),
    }
}

/// Number of times the flag occurs.
pub fn count_flags(text: &str) -> usize {
    flags(text).count()
}

fn flags(text: &str) -> impl Iterator<Item = usize> {
    let mut from = 0;
    std::iter::from_fn(move || {
        let at = find_ignore_case(text, FLAG, from)?;
        from = at + FLAG.len();
        Some(at)
    })
}

fn flag(text: &str) -> Result<&str, Status> {
    let at = flags(text).last().ok_or(Status::NoAnswer)?;
    let line = text[at + FLAG.len()..].lines().map(str::trim).find(|line| !line.is_empty());
    Ok(line.unwrap_or("").trim_end_matches('.').trim())
}

// As DyME's code has it: everything after the last flag, and without a flag the whole text.
fn flag_compat(text: &str) -> &str {
    let rest = flags(text).last().map_or(text, |at| &text[at + FLAG.len()..]);
    rest.trim().trim_end_matches('.').trim()
}

fn tag(text: &str) -> Result<&str, Status> {
    let only = |needle: &str| {
        let at = text.find(needle)?;
        (!text[at + needle.len()..].contains(needle)).then_some(at)
    };
    let (open, close) = only("<answer>").zip(only("</answer>")).ok_or(Status::NoAnswer)?;
    let start = open + "<answer>".len();
    // An answer inside the reasoning is part of the reasoning.
    let thinking_open = text[..open].rfind("<think>").is_some_and(|at| !text[at..open].contains("</think>"));
    if close < start || thinking_open || text[open..].contains("</think>") {
        return Err(Status::NoAnswer);
    }
    Ok(text[start..close].trim())
}

/// As the published code reads tags: the first closed one, else from an opening tag to the next or to the end.
pub(super) fn tag_compat(text: &str) -> Option<&str> {
    let start = text.find("<answer>")? + "<answer>".len();
    let rest = &text[start..];
    let end = rest.find("</answer>").or_else(|| rest.find("<answer>")).unwrap_or(rest.len());
    Some(rest[..end].trim())
}

fn boxed(text: &str) -> Option<&str> {
    boxed_range(text).map(|(start, end)| text[start + BOXED.len()..end].trim())
}

const BOXED: &str = "\\boxed{";

// The balanced `\boxed{…}` that opens last: (start of the command, position of its closing brace). One pass with a
// stack, so a megabyte of opening braces costs no more than a megabyte of letters.
fn boxed_range(text: &str) -> Option<(usize, usize)> {
    let bytes = text.as_bytes();
    let mut open: Vec<Option<usize>> = Vec::new();
    let mut best: Option<(usize, usize)> = None;
    let mut at = 0;
    while at < bytes.len() {
        if bytes[at..].starts_with(BOXED.as_bytes()) {
            open.push(Some(at));
            at += BOXED.len();
            continue;
        }
        match bytes[at] {
            b'\\' => at += 1, // an escaped brace opens nothing
            b'{' => open.push(None),
            b'}' => {
                if let Some(Some(start)) = open.pop()
                    && best.is_none_or(|(last, _)| start > last)
                {
                    best = Some((start, at));
                }
            }
            _ => {}
        }
        at += 1;
    }
    best
}

// Scans from the end: optional sign, digits with thousands groups, fraction, percent sign; not part of a word.
fn last_number(text: &str) -> Option<&str> {
    let bytes = text.as_bytes();
    let mut end = bytes.len();
    while end > 0 {
        if !bytes[end - 1].is_ascii_digit() {
            end -= 1;
            continue;
        }
        let mut start = end;
        while start > 0 && (bytes[start - 1].is_ascii_digit() || matches!(bytes[start - 1], b',' | b'.')) {
            start -= 1;
        }
        while !bytes[start].is_ascii_digit() {
            start += 1;
        }
        let before = text[..start].chars().next_back();
        if before.is_some_and(|c| c.is_alphabetic() || c == '_') {
            end = start;
            continue;
        }
        let signed = before == Some('-') && !text[..start - 1].ends_with(|c: char| c.is_alphanumeric());
        let stop = if bytes.get(end) == Some(&b'%') { end + 1 } else { end };
        return Some(&text[start - usize::from(signed)..stop]);
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strict(text: &str, how: Extract) -> Result<&str, Status> {
        answer(text, how, None)
    }

    #[test]
    fn tags_must_be_the_only_ones_and_outside_the_thinking() {
        assert_eq!(strict("<think>a</think><answer> x </answer>", Extract::Tag), Ok("x"));
        for text in [
            "",
            "<answer></answer>",
            "<answer>5",
            "<answer>5</answer><answer>6</answer>",
            "<think><answer>5</answer></think>",
            "<think><answer>5</answer>",
            "</answer>5<answer>",
            "<answer>5</answer></answer>",
        ] {
            assert_eq!(strict(text, Extract::Tag), Err(Status::NoAnswer), "{text:?}");
        }
    }

    #[test]
    fn tags_as_published() {
        let compat = |text| answer(text, Extract::Tag, Some(Compat::CurrReft));
        assert_eq!(compat("<answer>5</answer><answer>6</answer>"), Ok("5"));
        assert_eq!(compat("<answer>5<answer>6"), Ok("5"));
        assert_eq!(compat("so 5"), Ok("so 5"));
    }

    #[test]
    fn flags_read_one_line_after_the_last_one() {
        assert_eq!(strict("I think.\nAnswer: 12.\nmore", Extract::Flag), Ok("12"));
        assert_eq!(strict("answer: 1 Answer:\n\n 2..", Extract::Flag), Ok("2"));
        assert_eq!(strict("no flag 12", Extract::Flag), Err(Status::NoAnswer));
        assert_eq!(strict("Answer: \n ", Extract::Flag), Err(Status::NoAnswer));
        let compat = |text| answer(text, Extract::Flag, Some(Compat::Dyme));
        assert_eq!(compat("x Answer: 12\nmore."), Ok("12\nmore"));
        assert_eq!(compat("12"), Ok("12"));
    }

    #[test]
    fn boxes_and_numbers() {
        assert_eq!(strict(r"\boxed{1} then \boxed{\frac{1}{2}}", Extract::Boxed), Ok(r"\frac{1}{2}"));
        assert_eq!(strict(r"\boxed{1} then \boxed{2", Extract::Boxed), Ok("1"));
        assert_eq!(strict(r"\boxed{", Extract::Boxed), Err(Status::NoAnswer));
        assert_eq!(strict("from 3 to -1,204.5 units", Extract::LastNumber), Ok("-1,204.5"));
        assert_eq!(strict("about 40%, x12", Extract::LastNumber), Ok("40%"));
        assert_eq!(strict("2010-2014.", Extract::LastNumber), Ok("2014"));
        assert_eq!(strict("none", Extract::LastNumber), Err(Status::NoAnswer));
    }

    #[test]
    fn thinking_is_what_stands_before() {
        assert_eq!(thinking("a b\nAnswer: c answer: d", Extract::Flag), "a b");
        assert_eq!(thinking("<think> a </think><answer>x</answer>", Extract::Tag), "a");
        assert_eq!(thinking("just text", Extract::Flag), "just text");
    }

    #[test]
    fn long_answers_are_refused() {
        assert_eq!(strict(&"9".repeat(4097), Extract::Whole), Err(Status::Unparsable));
        assert!(strict(&"9".repeat(4096), Extract::Whole).is_ok());
    }
}

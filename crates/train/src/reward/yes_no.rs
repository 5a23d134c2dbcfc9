//! Verifies yes/no answers (methods 6.2).
//! Sees only the extracted answer. Cost: one pass.

use serde::{Deserialize, Serialize};

use super::clean::words;
use super::{Compat, Status, Verdict};

/// Options of the verifier `yes_no`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct YesNoOptions {
    /// How much prose around the word is accepted. `whole` unless the model cannot be taught to answer in one word.
    pub mode: YesNoMode,
}

/// How a yes/no answer is read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum YesNoMode {
    /// The answer is one word: yes, true, correct, no, false or incorrect.
    #[default]
    Whole,
    /// Prose is accepted if its yes/no words all say the same and nothing is negated.
    SinglePolarity,
}

/// Scores `answer` against `gold`.
pub fn verify(answer: &str, gold: bool, options: &YesNoOptions, compat: Option<Compat>) -> Verdict {
    let read = match (compat, options.mode) {
        (Some(_), _) => read_compat(answer).ok_or(Status::Unparsable),
        (None, YesNoMode::Whole) => read_whole(answer).ok_or(Status::Unparsable),
        (None, YesNoMode::SinglePolarity) => read_single_polarity(answer),
    };
    match read {
        Ok(yes) => Verdict::ok(f32::from(u8::from(yes == gold)), if yes { "yes" } else { "no" }),
        Err(status) => Verdict::fail(status),
    }
}

fn polarity(word: &str) -> Option<bool> {
    let word = word.to_lowercase();
    match word.as_str() {
        "yes" | "true" | "correct" => Some(true),
        "no" | "false" | "incorrect" => Some(false),
        _ => None,
    }
}

fn read_whole(answer: &str) -> Option<bool> {
    polarity(answer.trim_matches(|c: char| !c.is_alphanumeric()))
}

fn read_single_polarity(answer: &str) -> Result<bool, Status> {
    let negated = |word: &str| {
        let word = word.to_lowercase().replace('\u{2019}', "'");
        word == "not" || word.ends_with("n't")
    };
    if words(answer).any(negated) {
        return Err(Status::Ambiguous);
    }
    let mut found = words(answer).filter_map(polarity);
    let first = found.next().ok_or(Status::Unparsable)?;
    if found.all(|yes| yes == first) { Ok(first) } else { Err(Status::Ambiguous) }
}

// Curr-ReFT's code: any stand-alone positive word means yes, tested before the negative ones.
fn read_compat(answer: &str) -> Option<bool> {
    let found = |yes| answer.split(|c: char| !(c.is_alphanumeric() || c == '_')).any(|w| polarity(w) == Some(yes));
    if found(true) {
        Some(true)
    } else if found(false) {
        Some(false)
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(answer: &str, mode: YesNoMode, compat: Option<Compat>) -> Option<String> {
        verify(answer, true, &YesNoOptions { mode }, compat).answer
    }

    #[test]
    fn golden_yes_no() {
        let compat = Some(Compat::CurrReft);
        for (answer, published, strict) in [
            ("Yes.", Some("yes"), Some("yes")),
            ("yes or no", Some("yes"), None),
            ("incorrect", Some("no"), Some("no")),
            ("YES, it is not", Some("yes"), None),
            ("not correct", Some("yes"), None),
            ("untrue", None, None),
            ("", None, None),
        ] {
            assert_eq!(read(answer, YesNoMode::Whole, compat).as_deref(), published, "{answer:?} compat");
            assert_eq!(read(answer, YesNoMode::Whole, None).as_deref(), strict, "{answer:?} strict");
        }
    }

    #[test]
    fn single_polarity() {
        let verdict = |text| verify(text, true, &YesNoOptions { mode: YesNoMode::SinglePolarity }, None);
        assert_eq!(verdict("Yes, that is true.").score, 1.0);
        assert_eq!(verdict("yes or no").status, Status::Ambiguous);
        assert_eq!(verdict("it isn't true").status, Status::Ambiguous);
        assert_eq!(verdict("it is not").status, Status::Ambiguous);
        assert_eq!(verdict("untrue").status, Status::Unparsable);
        assert_eq!(verdict("No.").score, 0.0);
        assert_eq!(verdict("No.").status, Status::Ok);
    }
}

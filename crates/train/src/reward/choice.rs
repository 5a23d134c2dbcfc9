//! Verifies multiple-choice letters (methods 6.3).
//! Sees the extracted answer and the option texts. Cost: one pass.

use serde::{Deserialize, Serialize};

use super::clean::normalise;
use super::{Compat, Status, Verdict};

/// Options of the verifier `choice`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ChoiceOptions {
    /// Whether the order of several letters counts. Off: letters are a set.
    pub ordered: bool,
    /// Credit for incomplete answers to questions with several right letters.
    pub partial: Partial,
    /// Accepts letters without separators (`AC`). Off by default because words are made of letters too.
    pub glued: bool,
}

/// Credit for a partly right set of letters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Partial {
    /// All or nothing.
    #[default]
    None,
    /// 0.2 if some right letters are missing and none is wrong.
    Subset,
    /// 0.2 for any right letter. As published by others; it pays for selecting everything.
    Overlap,
}

/// The right letters and what the letters stand for.
#[derive(Clone, Debug, PartialEq)]
pub struct ChoiceGold {
    /// Right letters in the order given.
    pub letters: Vec<char>,
    /// Number of letters that exist (`A` is the first).
    pub num_letters: usize,
    /// Option texts; may be empty.
    pub options: Vec<String>,
}

impl ChoiceGold {
    /// From a row's letters and option texts; `None` if a letter is not one of the options'.
    pub fn new(letters: &[String], options: &[String]) -> Option<Self> {
        // Without option texts the letters A to E are taken to exist.
        let num_letters = if options.is_empty() { 5 } else { options.len().min(26) };
        let mut gold = Vec::new();
        for letter in letters {
            let mut chars = letter.trim().chars();
            let c = chars.next()?.to_ascii_uppercase();
            if chars.next().is_some() || !valid(c, num_letters) {
                return None;
            }
            if !gold.contains(&c) {
                gold.push(c);
            }
        }
        (!gold.is_empty()).then(|| Self { letters: gold, num_letters, options: options.to_vec() })
    }
}

fn valid(letter: char, num_letters: usize) -> bool {
    letter.is_ascii_uppercase() && ((letter as u8 - b'A') as usize) < num_letters
}

/// Scores `answer` against `gold`.
pub fn verify(answer: &str, gold: &ChoiceGold, options: &ChoiceOptions, compat: Option<Compat>) -> Verdict {
    if compat.is_some() {
        let read = read_compat(answer);
        let right = !read.is_empty() && read == gold.letters;
        return Verdict::ok(f32::from(u8::from(right)), join(&read));
    }
    let letters = match read(answer, gold, options) {
        Ok(letters) => letters,
        Err(status) => return Verdict::fail(status),
    };
    let score =
        if options.ordered { f32::from(u8::from(letters == gold.letters)) } else { score(&letters, gold, options) };
    Verdict::ok(score, join(&letters))
}

fn score(letters: &[char], gold: &ChoiceGold, options: &ChoiceOptions) -> f32 {
    let common = letters.iter().filter(|letter| gold.letters.contains(letter)).count();
    let (all_right, all_found) = (common == letters.len(), common == gold.letters.len());
    match options.partial {
        _ if all_right && all_found => 1.0,
        Partial::Subset if all_right => 0.2,
        Partial::Overlap if common > 0 => 0.2,
        _ => 0.0,
    }
}

fn join(letters: &[char]) -> String {
    letters.iter().map(char::to_string).collect::<Vec<_>>().join(",")
}

fn read(answer: &str, gold: &ChoiceGold, options: &ChoiceOptions) -> Result<Vec<char>, Status> {
    if let Some(letter) = letter_with_text(answer, gold) {
        return Ok(vec![letter]);
    }
    let mut letters = Vec::new();
    let parts = answer.split(|c: char| c == ',' || c.is_whitespace()).filter(|part| !part.is_empty());
    for part in parts {
        if part.eq_ignore_ascii_case("and") {
            continue;
        }
        let bare = part.strip_prefix('(').or_else(|| part.strip_prefix('[')).unwrap_or(part);
        let bare = bare.trim_end_matches(['.', ')', ']', ':']);
        let glued = options.glued && bare.len() > 1 && bare.chars().all(|c| c.is_ascii_alphabetic());
        if bare.len() != 1 && !glued {
            return Err(refuse(answer, gold));
        }
        for c in bare.chars() {
            let letter = c.to_ascii_uppercase();
            if !letter.is_ascii_uppercase() {
                return Err(refuse(answer, gold));
            }
            if !valid(letter, gold.num_letters) {
                return Err(Status::Unparsable);
            }
            if !letters.contains(&letter) {
                letters.push(letter);
            }
        }
    }
    if letters.is_empty() { Err(Status::NoAnswer) } else { Ok(letters) }
}

// `B. a dog` counts if option B says so.
fn letter_with_text(answer: &str, gold: &ChoiceGold) -> Option<char> {
    let answer = answer.trim().trim_start_matches('(');
    let letter = answer.chars().next()?;
    let text = answer[letter.len_utf8()..].strip_prefix([')', '.', ':'])?.trim_start_matches(['.', ':']);
    let index = (letter.to_ascii_uppercase() as usize).checked_sub('A' as usize)?;
    let option = gold.options.get(index)?;
    let text = normalise(text);
    (!text.is_empty() && text == normalise(option)).then_some(letter.to_ascii_uppercase())
}

// Prose that names several letters is a hedge; prose that names none holds no answer.
fn refuse(answer: &str, gold: &ChoiceGold) -> Status {
    let named = answer
        .split(|c: char| !c.is_alphanumeric())
        .filter(|word| word.len() == 1 && word.chars().all(|c| valid(c, gold.num_letters)))
        .count();
    match named {
        0 => Status::NoAnswer,
        1 => Status::Unparsable,
        _ => Status::Ambiguous,
    }
}

// Curr-ReFT's code: stand-alone letters A to E of the upper-cased text, in order of first appearance.
pub(super) fn read_compat(answer: &str) -> Vec<char> {
    let upper = answer.to_uppercase();
    let mut letters = Vec::new();
    for word in upper.split(|c: char| !(c.is_alphanumeric() || c == '_')) {
        if let [letter @ b'A'..=b'E'] = word.as_bytes()
            && !letters.contains(&(*letter as char))
        {
            letters.push(*letter as char);
        }
    }
    letters
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gold(letters: &str, options: &[&str]) -> ChoiceGold {
        let letters: Vec<String> = letters.chars().map(|c| c.to_string()).collect();
        let options: Vec<String> = options.iter().map(|o| o.to_string()).collect();
        ChoiceGold::new(&letters, &options).expect("letters of the options")
    }

    fn strict(answer: &str, gold: &ChoiceGold) -> Verdict {
        verify(answer, gold, &ChoiceOptions::default(), None)
    }

    #[test]
    fn golden_choice() {
        let dog = gold("B", &["a cat", "a dog", "a cow"]);
        assert_eq!(strict("(b)", &dog).answer.as_deref(), Some("B"));
        assert_eq!(strict("C, A", &dog).answer.as_deref(), Some("C,A"));
        assert_eq!(strict("B. a dog", &dog).score, 1.0);
        assert_eq!(strict("B. a cat", &dog).score, 0.0);
        assert_eq!(strict("F", &gold("A", &[])).status, Status::Unparsable);
        assert_eq!(read_compat("(b)"), ['B']);
        assert_eq!(read_compat("C, A"), ['C', 'A']);
        assert_eq!(read_compat("B. a dog"), ['B', 'A']);
        assert!(read_compat("F").is_empty());
    }

    #[test]
    fn adversarial_choice() {
        let two = gold("AC", &["w", "x", "y", "z"]);
        assert_eq!(strict("a red car", &two).status, Status::NoAnswer);
        assert_eq!(strict("Option A and not B", &two).status, Status::Ambiguous);
        assert_eq!(strict("A,B,C,D", &two).score, 0.0);
        assert_eq!(strict("C, A", &two).score, 1.0);
        assert_eq!(strict("A and C", &two).score, 1.0);
        assert_eq!(strict("(A) (C).", &two).score, 1.0);
        assert_eq!(strict("AC", &two).status, Status::NoAnswer);
        assert_eq!(strict("", &two).status, Status::NoAnswer);
        let with = |partial, glued| ChoiceOptions { partial, glued, ordered: false };
        assert_eq!(verify("A,B,C,D", &two, &with(Partial::Overlap, false), None).score, 0.2);
        assert_eq!(verify("A,B,C,D", &two, &with(Partial::Subset, false), None).score, 0.0);
        assert_eq!(verify("A", &two, &with(Partial::Subset, false), None).score, 0.2);
        assert_eq!(verify("AC", &two, &with(Partial::None, true), None).score, 1.0);
        let ordered = ChoiceOptions { ordered: true, ..Default::default() };
        assert_eq!(verify("C, A", &two, &ordered, None).score, 0.0);
        assert_eq!(verify("C, A", &two, &ChoiceOptions::default(), Some(Compat::CurrReft)).score, 0.0);
    }

    #[test]
    fn golds_must_exist() {
        assert!(ChoiceGold::new(&["D".into()], &["x".into(), "y".into()]).is_none());
        assert!(ChoiceGold::new(&["AB".into()], &[]).is_none());
        assert!(ChoiceGold::new(&[], &[]).is_none());
    }
}

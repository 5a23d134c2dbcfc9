//! Verifies free text (methods 6.8): equality after normalising, or membership in a list of accepted texts.
//! Never looks for substrings: "10" is not in "110". Cost: one pass.

use serde::{Deserialize, Serialize};

use super::Verdict;
use super::clean::normalise;

/// Options of the verifier `text`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TextOptions {
    /// How texts are compared.
    pub mode: TextMode,
    /// Drops the words a, an and the before comparing (in mode `normalised`).
    pub articles: bool,
}

impl TextOptions {
    /// Whether anything is left of a gold when it is compared.
    pub fn has_content(&self, gold: &str) -> bool {
        !form(gold, self).is_empty()
    }
}

/// How two texts are compared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TextMode {
    /// Case, spacing, wrapping quotes and trailing punctuation do not count.
    #[default]
    Normalised,
    /// Character by character after trimming.
    Exact,
}

/// Scores `answer`: 1 if it equals one of the accepted texts.
pub fn verify(answer: &str, accepted: &[String], options: &TextOptions) -> Verdict {
    let answer = form(answer, options);
    let right = !answer.is_empty() && accepted.iter().any(|gold| form(gold, options) == answer);
    Verdict::ok(f32::from(u8::from(right)), answer)
}

fn form(text: &str, options: &TextOptions) -> String {
    match options.mode {
        TextMode::Exact => text.trim().to_string(),
        TextMode::Normalised if options.articles => {
            normalise(text).split(' ').filter(|word| !matches!(*word, "a" | "an" | "the")).collect::<Vec<_>>().join(" ")
        }
        TextMode::Normalised => normalise(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_compare_as_a_whole() {
        let score = |answer: &str, golds: &[&str], options: &TextOptions| {
            let golds: Vec<String> = golds.iter().map(|g| g.to_string()).collect();
            verify(answer, &golds, options).score
        };
        let normalised = TextOptions::default();
        let exact = TextOptions { mode: TextMode::Exact, articles: false };
        let articles = TextOptions { mode: TextMode::Normalised, articles: true };
        assert_eq!(score("10", &["1"], &normalised), 0.0);
        assert_eq!(score("1", &["10"], &normalised), 0.0);
        assert_eq!(score("5.0", &["5"], &exact), 0.0);
        assert_eq!(score(" The  Dog. ", &["the dog"], &normalised), 1.0);
        assert_eq!(score(" The  Dog. ", &["the dog"], &exact), 0.0);
        assert_eq!(score("The dog", &["a dog"], &articles), 1.0);
        assert_eq!(score("cat", &["dog", "Cat!"], &normalised), 1.0);
        assert_eq!(score("", &[""], &normalised), 0.0);
    }
}

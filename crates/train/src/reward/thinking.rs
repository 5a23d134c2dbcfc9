//! Compares reasoning with a reference by the content words they share (methods 6.12, DyME's local thinking reward).
//! Knows English only: stop words and Porter2 stems. Cost: one stem per word.
//! Differs from DyME's code, which keeps lemmas of a tagger's choice: scores are labelled `thinking_f1/stem`.

use std::collections::{BTreeMap, BTreeSet};

use rust_stemmers::{Algorithm, Stemmer};

/// Version of the stop list below; scores are comparable only within a version.
pub const STOP_LIST_VERSION: u32 = 1;

/// Words that carry no content, sorted. The snowball project's English list, plus what a split at apostrophes leaves.
const STOP_WORDS: &[&str] = &[
    "a",
    "about",
    "above",
    "after",
    "again",
    "against",
    "all",
    "am",
    "an",
    "and",
    "any",
    "are",
    "aren't",
    "as",
    "at",
    "be",
    "because",
    "been",
    "before",
    "being",
    "below",
    "between",
    "both",
    "but",
    "by",
    "can",
    "can't",
    "cannot",
    "could",
    "couldn't",
    "did",
    "didn't",
    "do",
    "does",
    "doesn't",
    "doing",
    "don't",
    "down",
    "during",
    "each",
    "few",
    "for",
    "from",
    "further",
    "had",
    "hadn't",
    "has",
    "hasn't",
    "have",
    "haven't",
    "having",
    "he",
    "her",
    "here",
    "hers",
    "herself",
    "him",
    "himself",
    "his",
    "how",
    "i",
    "if",
    "in",
    "into",
    "is",
    "isn't",
    "it",
    "it's",
    "its",
    "itself",
    "just",
    "let's",
    "me",
    "more",
    "most",
    "mustn't",
    "my",
    "myself",
    "no",
    "nor",
    "not",
    "now",
    "of",
    "off",
    "on",
    "once",
    "only",
    "or",
    "other",
    "ought",
    "our",
    "ours",
    "ourselves",
    "out",
    "over",
    "own",
    "same",
    "shall",
    "shan't",
    "she",
    "should",
    "shouldn't",
    "so",
    "some",
    "such",
    "than",
    "that",
    "that's",
    "the",
    "their",
    "theirs",
    "them",
    "themselves",
    "then",
    "there",
    "there's",
    "these",
    "they",
    "this",
    "those",
    "through",
    "to",
    "too",
    "under",
    "until",
    "up",
    "very",
    "was",
    "wasn't",
    "we",
    "were",
    "weren't",
    "what",
    "what's",
    "when",
    "where",
    "which",
    "while",
    "who",
    "whom",
    "why",
    "will",
    "with",
    "won't",
    "would",
    "wouldn't",
    "you",
    "your",
    "yours",
    "yourself",
    "yourselves",
];

/// Words longer than this are compared as written: no English word is, and stemming them would only cost time.
const MAX_STEMMED_CHARS: usize = 40;

/// The content words of a text with their counts: lower case, stop words out, stems; numbers in one spelling.
pub fn content_words(text: &str) -> BTreeMap<String, u32> {
    let stemmer = Stemmer::create(Algorithm::English);
    let text = text.to_lowercase().replace('\u{2019}', "'");
    let mut counts = BTreeMap::new();
    let mut rest = text.as_str();
    while let Some(start) = rest.find(char::is_alphanumeric) {
        rest = &rest[start..];
        let (word, len) = if rest.as_bytes()[0].is_ascii_digit() {
            number(rest)
        } else {
            let len = rest.find(|c: char| !(c.is_alphabetic() || c == '\'')).unwrap_or(rest.len()).max(1);
            // `find` above starts at an alphanumeric character that may be no letter (other digits, numerals).
            let len =
                if rest.starts_with(char::is_alphabetic) { len } else { rest.chars().next().map_or(1, char::len_utf8) };
            (rest[..len].trim_end_matches('\'').to_string(), len)
        };
        rest = &rest[len..];
        if STOP_WORDS.binary_search(&word.as_str()).is_ok() {
            continue;
        }
        let word = word.strip_suffix("'s").unwrap_or(&word);
        if word.is_empty() {
            continue;
        }
        let stem = if word.is_ascii() && word.len() <= MAX_STEMMED_CHARS {
            stemmer.stem(word).into_owned()
        } else {
            word.to_string()
        };
        *counts.entry(stem).or_insert(0) += 1;
    }
    counts
}

// A number in one spelling ("1,000.0" and "1000" are the same word), and the bytes it takes.
fn number(text: &str) -> (String, usize) {
    let bytes = text.as_bytes();
    let mut end = 0;
    let mut seen_point = false;
    while end < bytes.len() {
        let next_is_digit = bytes.get(end + 1).is_some_and(u8::is_ascii_digit);
        match bytes[end] {
            b'0'..=b'9' => {}
            b',' if next_is_digit && !seen_point => {}
            b'.' if next_is_digit && !seen_point => seen_point = true,
            _ => break,
        }
        end += 1;
    }
    let plain = text[..end].replace(',', "");
    let word = match plain.parse::<f64>() {
        Ok(value) if plain.len() <= 15 => format!("{value}"),
        _ => plain,
    };
    (word, end)
}

/// F1 of two sets. `compat` adds 1e-6 to both denominators, as DyME's code does.
pub fn f1(words: &BTreeSet<&str>, reference: &BTreeSet<&str>, compat: bool) -> f64 {
    let common = words.intersection(reference).count() as f64;
    ratio(common, words.len() as f64, reference.len() as f64, compat)
}

/// F1 of two multisets: the token-level form of the paper.
pub fn f1_multiset(words: &BTreeMap<String, u32>, reference: &BTreeMap<String, u32>, compat: bool) -> f64 {
    let common: u32 = words.iter().map(|(word, n)| (*n).min(reference.get(word).copied().unwrap_or(0))).sum();
    let total = |counts: &BTreeMap<String, u32>| counts.values().sum::<u32>() as f64;
    ratio(f64::from(common), total(words), total(reference), compat)
}

fn ratio(common: f64, p: f64, r: f64, compat: bool) -> f64 {
    if p == 0.0 || r == 0.0 || common == 0.0 {
        return 0.0;
    }
    let eps = if compat { 1e-6 } else { 0.0 };
    let (precision, recall) = (common / (p + eps), common / (r + eps));
    2.0 * precision * recall / (precision + recall)
}

/// Score of `thinking` against `reference` (a rationale or facts); 0 if either has no content words.
pub fn score(thinking: &str, reference: &BTreeMap<String, u32>, multiset: bool, compat: bool) -> f32 {
    let words = content_words(thinking);
    if multiset {
        return f1_multiset(&words, reference, compat) as f32;
    }
    f1(&set(&words), &set(reference), compat) as f32
}

fn set(counts: &BTreeMap<String, u32>) -> BTreeSet<&str> {
    counts.keys().map(String::as_str).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn golden_thinking_f1() {
        let (p, r) = (BTreeSet::from(["a", "b", "c", "d"]), BTreeSet::from(["c", "d", "e", "f"]));
        assert_eq!(f1(&p, &r, false), 0.5);
        assert!((f1(&p, &r, true) - 0.49999988).abs() < 1e-8);
        assert_eq!(f1(&p, &p, false), 1.0);
        assert!((f1(&p, &p, true) - 0.99999975).abs() < 1e-8);
    }

    #[test]
    fn words_are_stemmed_and_numbers_spelled_one_way() {
        let words = content_words("The bars' heights are 1,000.0 and 40% — it's don't; counting 3 bars.");
        let words: Vec<_> = words.keys().map(String::as_str).collect();
        assert_eq!(words, ["1000", "3", "40", "bar", "count", "height"]);
        assert_eq!(score("Counted 1000", &content_words("counting 1,000"), false, false), 1.0);
    }

    #[test]
    fn copying_scores_one_and_silence_zero() {
        let rationale = "The blue bar is the tallest, so the answer is 12.";
        let reference = content_words(rationale);
        assert_eq!(score(rationale, &reference, false, false), 1.0);
        assert_eq!(score(rationale, &reference, true, false), 1.0);
        assert_eq!(score("", &reference, false, false), 0.0);
        assert_eq!(score("the of and", &reference, false, false), 0.0);
        assert_eq!(score(rationale, &content_words(""), false, false), 0.0);
        let repeated = format!("{} blue", "bar ".repeat(50));
        assert!(score(&repeated, &reference, true, false) < score(&repeated, &reference, false, false));
    }

    #[test]
    fn the_stop_list_is_sorted() {
        assert!(STOP_WORDS.is_sorted());
    }
}

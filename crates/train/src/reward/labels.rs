//! Verifies sets of labels (methods 6.9).
//! Sees the extracted answer. Cost: one pass and two small sets.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::clean::{normalise, unquote};
use super::{Compat, Status, Verdict};

/// Options of the verifier `labels`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LabelOptions {
    /// What a partly right set is worth.
    pub score: LabelScore,
}

/// What a partly right set is worth; p is the answer, g the gold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LabelScore {
    /// Common labels over all labels of either: `|p∩g| / |p∪g|`.
    #[default]
    Jaccard,
    /// All or nothing.
    Exact,
    /// `2|p∩g| / (|p|+|g|)`: gentler on missing labels.
    F1,
    /// 1 if equal, 0.2 if any label is common. As published by others; it pays for naming everything.
    Graded,
}

/// The labels written in `text`, normalised and without duplicates.
pub fn parse(text: &str) -> BTreeSet<String> {
    let text = text.trim();
    let inner = [('[', ']'), ('{', '}'), ('(', ')')]
        .iter()
        .find_map(|&(open, close)| text.strip_prefix(open)?.strip_suffix(close))
        .unwrap_or(text);
    inner
        .split([',', ';', '、', '，', '；', '\n'])
        .flat_map(split_and)
        .map(|label| normalise(unquote(label.trim())))
        .filter(|label| !label.is_empty())
        .collect()
}

// Splits at the word "and" between white space, without case.
fn split_and(part: &str) -> Vec<&str> {
    let mut labels = Vec::new();
    let mut from = 0;
    let mut at = 0;
    while let Some(found) = super::clean::find_ignore_case(part, " and ", at) {
        labels.push(&part[from..found]);
        from = found + " and ".len();
        at = from.saturating_sub(1); // the space behind may start the next " and "
    }
    labels.push(part.get(from..).unwrap_or(""));
    // "a, b, and c" leaves "and c" behind the comma.
    if let Some(first) = labels.first_mut()
        && let Some(rest) = first.trim_start().get(..4).filter(|head| head.eq_ignore_ascii_case("and "))
    {
        *first = &first.trim_start()[rest.len()..];
    }
    labels
}

// Curr-ReFT's code splits at white space too, and lists in brackets never match.
fn parse_compat(text: &str) -> BTreeSet<String> {
    if text.contains('[') {
        return BTreeSet::new();
    }
    text.split(|c: char| c.is_whitespace() || matches!(c, ',' | '，' | '、'))
        .map(|label| label.trim().to_lowercase())
        .filter(|label| !label.is_empty())
        .collect()
}

/// Scores `answer` against the gold labels (normalised by `parse` or `gold`).
pub fn verify(answer: &str, gold: &BTreeSet<String>, options: &LabelOptions, compat: Option<Compat>) -> Verdict {
    let (labels, gold) = match compat {
        Some(_) => {
            let gold = gold.iter().flat_map(|label| parse_compat(label)).collect();
            (parse_compat(answer), gold)
        }
        None => (parse(answer), gold.clone()),
    };
    if labels.is_empty() {
        return Verdict::fail(Status::NoAnswer);
    }
    let common = labels.intersection(&gold).count() as f32;
    let (p, g) = (labels.len() as f32, gold.len() as f32);
    let equal = common == p && common == g;
    let score = match options.score {
        LabelScore::Jaccard => common / (p + g - common),
        LabelScore::Exact => f32::from(u8::from(equal)),
        LabelScore::F1 => 2.0 * common / (p + g),
        LabelScore::Graded if equal => 1.0,
        LabelScore::Graded if common > 0.0 => 0.2,
        LabelScore::Graded => 0.0,
    };
    Verdict::ok(score, labels.into_iter().collect::<Vec<_>>().join(", "))
}

/// The gold as a set; `None` if no label is left after normalising.
pub fn gold(labels: &[String]) -> Option<BTreeSet<String>> {
    let gold: BTreeSet<String> =
        labels.iter().map(|label| normalise(label)).filter(|label| !label.is_empty()).collect();
    (!gold.is_empty()).then_some(gold)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn score(answer: &str, gold_labels: &[&str], score: LabelScore, compat: Option<Compat>) -> f32 {
        let golds: Vec<String> = gold_labels.iter().map(|l| l.to_string()).collect();
        verify(answer, &gold(&golds).expect("labels"), &LabelOptions { score }, compat).score
    }

    #[test]
    fn golden_labels() {
        let jaccard = LabelScore::Jaccard;
        assert_eq!(score("cat, dog", &["dog", "cat"], jaccard, None), 1.0);
        assert_eq!(score("cat", &["cat", "dog"], jaccard, None), 0.5);
        assert!((score("cat; car", &["cat", "dog"], jaccard, None) - 1.0 / 3.0).abs() < 1e-6);
        assert_eq!(score("cat", &["cat", "dog"], LabelScore::F1, None), 2.0 / 3.0);
        assert_eq!(score("cat", &["cat", "dog"], LabelScore::Graded, None), 0.2);
        assert_eq!(score("cat", &["cat", "dog"], LabelScore::Exact, None), 0.0);
    }

    #[test]
    fn adversarial_labels() {
        let jaccard = LabelScore::Jaccard;
        let compat = Some(Compat::CurrReft);
        assert_eq!(score("traffic light", &["traffic light"], jaccard, None), 1.0);
        assert_eq!(parse("traffic light").len(), 1);
        assert_eq!(parse_compat("traffic light").len(), 2);
        assert_eq!(score("[\"cat\", \"dog\"]", &["cat", "dog"], jaccard, None), 1.0);
        assert_eq!(score("[\"cat\", \"dog\"]", &["cat", "dog"], jaccard, compat), 0.0);
        let everything = (0..80).map(|i| format!("label {i}")).collect::<Vec<_>>().join(", ");
        assert!(score(&everything, &["label 3"], jaccard, None) < 0.02);
        assert_eq!(score(&everything, &["label 3"], LabelScore::Graded, None), 0.2);
        assert_eq!(score("", &["cat"], jaccard, None), 0.0);
        assert_eq!(score("cat, dog, and cow", &["cat", "dog", "cow"], jaccard, None), 1.0);
        assert_eq!(score("cat and dog AND cow", &["cat", "dog", "cow"], jaccard, None), 1.0);
        assert_eq!(score("sandbox", &["sandbox"], jaccard, None), 1.0);
    }
}

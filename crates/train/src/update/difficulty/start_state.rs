//! Reverse curriculum (R3, arXiv 2402.05808; methods 5.3): answers start part of the way through the reference
//! reasoning, first near its end, later from nothing. The given part is context, never trained.
//! Works on text; draws are keyed by question. Cost: none.

use foveate_kernels::rng::{Purpose, Stream};
use serde::{Deserialize, Serialize};

/// Where answers start. Off unless the recipe has the table.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct StartStateSpec {
    /// How the start is chosen.
    pub kind: StartKind,
    /// How the reference reasoning is cut into pieces.
    pub split: Split,
    /// `fraction`: number of pieces.
    pub pieces: Option<usize>,
}

/// How the start is chosen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StartKind {
    /// Always from nothing.
    #[default]
    None,
    /// All but the last piece is given at first; one piece fewer at a time as the stage goes on.
    Staged,
    /// Every number of pieces is equally likely at any time: R3 proper.
    Mixed,
}

/// How reasoning is cut into pieces.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Split {
    /// At line ends, the way reasoning in steps is written; at sentences if there is one line only.
    #[default]
    Step,
    /// At sentences.
    Sentence,
    /// At words, into pieces of equal length.
    Fraction,
}

/// Cuts a text into pieces; together they are the text.
pub fn pieces<'a>(text: &'a str, spec: &StartStateSpec) -> Vec<&'a str> {
    let text = text.trim();
    let cuts: Vec<usize> = match spec.split {
        Split::Step if text.contains('\n') => text.match_indices('\n').map(|(at, _)| at + 1).collect(),
        Split::Step | Split::Sentence => sentence_ends(text),
        Split::Fraction => {
            let words: Vec<usize> = text.match_indices(' ').map(|(at, _)| at + 1).collect();
            let count = spec.pieces.unwrap_or(4).max(1);
            (1..count).filter_map(|i| words.get((i * (words.len() + 1) / count).checked_sub(1)?).copied()).collect()
        }
    };
    let mut pieces = Vec::new();
    let mut from = 0;
    for cut in cuts.into_iter().chain([text.len()]) {
        if cut > from && !text[from..cut].trim().is_empty() {
            pieces.push(&text[from..cut]);
            from = cut;
        }
    }
    pieces
}

// Behind ". ", "! " or "? "; a decimal point has no space behind it.
fn sentence_ends(text: &str) -> Vec<usize> {
    let bytes = text.as_bytes();
    (1..bytes.len())
        .filter(|&at| bytes[at] == b' ' && matches!(bytes[at - 1], b'.' | b'!' | b'?'))
        .map(|at| at + 1)
        .collect()
}

/// The part of the reference reasoning that is given to all answers of a question; empty for a start from nothing.
/// `progress` is step / steps of the stage.
pub fn given_part(
    rationale: &str,
    spec: &StartStateSpec,
    progress: f64,
    seed: u64,
    step: u32,
    question: u32,
) -> String {
    let pieces = pieces(rationale, spec);
    let count = pieces.len();
    let given = match spec.kind {
        _ if count == 0 => 0,
        StartKind::None => 0,
        StartKind::Staged => {
            let removed = (progress.clamp(0.0, 1.0) * count as f64).floor() as usize;
            (count - 1).saturating_sub(removed)
        }
        StartKind::Mixed => Stream::new(seed, Purpose::Replay, step, question, 1).below(0, count as u32) as usize,
    };
    pieces[..given].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_make_up_the_text() {
        let steps = "There are 2.5 red parts.\nThere are 3 more.\nSo 5.5.";
        let spec = |split, pieces| StartStateSpec { kind: StartKind::Mixed, split, pieces };
        assert_eq!(pieces(steps, &spec(Split::Step, None)).len(), 3);
        let line = "There are 2.5 red parts. There are 3 more! So 5.5.";
        assert_eq!(pieces(line, &spec(Split::Step, None)).len(), 3);
        assert_eq!(pieces(line, &spec(Split::Sentence, None))[1], "There are 3 more! ");
        assert_eq!(pieces(line, &spec(Split::Fraction, Some(2))).len(), 2);
        for split in [Split::Step, Split::Sentence, Split::Fraction] {
            assert_eq!(pieces(line, &spec(split, Some(5))).concat(), line);
            assert!(pieces("", &spec(split, None)).is_empty());
            assert_eq!(pieces("word", &spec(split, Some(9))), ["word"]);
        }
    }

    #[test]
    fn the_start_moves_back() {
        let text = "One. Two. Three. Four.";
        let staged = StartStateSpec { kind: StartKind::Staged, split: Split::Sentence, pieces: None };
        let given = |progress| given_part(text, &staged, progress, 1, 0, 0);
        assert_eq!(
            (given(0.0), given(0.3), given(0.99)),
            ("One. Two. Three. ".into(), "One. Two. ".into(), String::new())
        );
        let mixed = StartStateSpec { kind: StartKind::Mixed, ..staged };
        let mut lengths = std::collections::BTreeSet::new();
        for question in 0..40 {
            let part = given_part(text, &mixed, 0.5, 1, 3, question);
            assert_eq!(part, given_part(text, &mixed, 0.9, 1, 3, question));
            assert!(text.starts_with(&part) && part.len() < text.len(), "the last piece is always the model's");
            lengths.insert(part.len());
        }
        assert_eq!(lengths.len(), 4);
        assert_eq!(given_part("", &mixed, 0.5, 1, 0, 0), "");
    }
}

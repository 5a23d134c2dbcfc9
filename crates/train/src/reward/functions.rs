//! Verifies sequences of function calls (methods 4.2, 6.10): the transformation questions of Reason-RFT.
//! Sees the extracted answer. Cost: four greedy passes over calls of the answer times calls of the gold.
//! Differs from the released code: one rule for training and test, and ties are broken by position, not by a set.

use foveate_tasks::row::Call;
use serde::{Deserialize, Serialize};

use super::{Status, Verdict};

/// Options of the verifier `functions`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FunctionOptions {
    /// What partly right calls are worth.
    pub weights: CallWeights,
    /// Scales the score by the share of distinct calls, so that repeating a call costs. Keep it on for training.
    pub repeat_factor: bool,
}

impl Default for FunctionOptions {
    fn default() -> Self {
        Self { weights: CallWeights::Partial, repeat_factor: true }
    }
}

/// What a call is worth: all equal / function and object / function and value / function alone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CallWeights {
    /// 1, 0.5, 0.5, 0.25: something to learn from at every step.
    #[default]
    Partial,
    /// 1, 0, 0, 0: as the released training code.
    OnlyFull,
    /// 1, -0.25, -0.25, -0.5: near misses cost. The only score of this program that may fall below 0.
    Penalty,
}

impl CallWeights {
    fn table(self) -> [f64; 4] {
        match self {
            CallWeights::Partial => [1.0, 0.5, 0.5, 0.25],
            CallWeights::OnlyFull => [1.0, 0.0, 0.0, 0.0],
            CallWeights::Penalty => [1.0, -0.25, -0.25, -0.5],
        }
    }
}

/// Every `name(object, value)` in the text, in lower case, the value with or without quotes.
pub fn parse(text: &str) -> Vec<Call> {
    let word = |c: char| c.is_alphanumeric() || c == '_' || c == '-';
    let mut calls = Vec::new();
    for (open, _) in text.match_indices('(') {
        let before = &text[..open];
        let start = before.char_indices().rev().take_while(|&(_, c)| word(c)).last().map(|(at, _)| at);
        let Some(start) = start else { continue };
        let Some(close) = text[open..].find(')') else { break };
        let Some((object, value)) = text[open + 1..open + close].split_once(',') else { continue };
        let strip = |part: &str| part.trim().trim_matches(['\'', '"']).to_lowercase();
        let (object, value) = (strip(object), strip(value));
        if !object.is_empty() && !value.is_empty() && object.chars().all(word) && value.chars().all(word) {
            calls.push(Call { function: before[start..].to_lowercase(), object, value });
        }
    }
    calls
}

/// Scores `answer` against the gold calls.
pub fn verify(answer: &str, gold: &[Call], options: &FunctionOptions) -> Verdict {
    let all = parse(answer);
    if all.is_empty() {
        return Verdict::fail(Status::NoAnswer);
    }
    let distinct = without_repeats(&all);
    let gold = without_repeats(gold);
    let matches = greedy_matches(&distinct, &gold);
    let weights = options.weights.table();
    let sum: f64 = (0..4).map(|pass| weights[pass] * matches[pass] as f64).sum();
    let share = if options.repeat_factor { distinct.len() as f64 / all.len() as f64 } else { 1.0 };
    let score = share * sum / distinct.len().max(gold.len()).max(1) as f64;
    let shown: Vec<String> = distinct.iter().map(|c| format!("{}({}, {})", c.function, c.object, c.value)).collect();
    Verdict::ok(score as f32, shown.join(", "))
}

/// Whether the distinct calls of the answer are exactly the gold's, in any order: the exact-program rate.
pub fn exact(answer: &str, gold: &[Call]) -> bool {
    let (answer, gold) = (without_repeats(&parse(answer)), without_repeats(gold));
    !gold.is_empty() && answer.len() == gold.len() && gold.iter().all(|call| answer.contains(call))
}

fn without_repeats(calls: &[Call]) -> Vec<Call> {
    let mut distinct: Vec<Call> = Vec::new();
    for call in calls {
        let call = Call {
            function: call.function.to_lowercase(),
            object: call.object.to_lowercase(),
            value: call.value.to_lowercase(),
        };
        if !distinct.contains(&call) {
            distinct.push(call);
        }
    }
    distinct
}

// Each pass pairs what the passes before left over, lowest answer index first, then lowest gold index.
fn greedy_matches(answer: &[Call], gold: &[Call]) -> [usize; 4] {
    let passes: [fn(&Call, &Call) -> bool; 4] = [
        |a, g| a == g,
        |a, g| a.function == g.function && a.object == g.object,
        |a, g| a.function == g.function && a.value == g.value,
        |a, g| a.function == g.function,
    ];
    let (mut answer_used, mut gold_used) = (vec![false; answer.len()], vec![false; gold.len()]);
    let mut matches = [0; 4];
    for (pass, equal) in passes.iter().enumerate() {
        for (i, call) in answer.iter().enumerate() {
            if answer_used[i] {
                continue;
            }
            if let Some(j) = (0..gold.len()).find(|&j| !gold_used[j] && equal(call, &gold[j])) {
                (answer_used[i], gold_used[j]) = (true, true);
                matches[pass] += 1;
            }
        }
    }
    matches
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scores(answer: &str, gold: &[Call]) -> [f32; 3] {
        [CallWeights::Partial, CallWeights::OnlyFull, CallWeights::Penalty]
            .map(|weights| verify(answer, gold, &FunctionOptions { weights, repeat_factor: true }).score)
    }

    #[test]
    fn golden_functions() {
        let gold = parse("change_color(0,red), change_size(1,small)");
        assert_eq!(gold.len(), 2);
        for (answer, want) in [
            ("change_size(1, small), change_color(0, 'red')", [1.0, 1.0, 1.0]),
            ("change_color(0,'red')", [0.5, 0.5, 0.5]),
            ("change_color(0,blue), change_size(2,small)", [0.5, 0.0, -0.25]),
            ("change_color(3,blue)", [0.125, 0.0, -0.25]),
            ("change_color(0,red), change_color(0,red)", [0.25, 0.25, 0.25]),
            ("change_color(0,red) change_size(1,small) jump(7,high) fly(8,far)", [0.5, 0.5, 0.5]),
        ] {
            assert_eq!(scores(answer, &gold), want, "{answer}");
        }
        let twice = "change_color(0,red), change_color(0,red)";
        let no_factor = FunctionOptions { repeat_factor: false, ..Default::default() };
        assert_eq!(verify(twice, &gold, &no_factor).score, 0.5);
    }

    #[test]
    fn adversarial_functions() {
        let gold = parse("change_color(0,red)");
        assert_eq!(verify("red", &gold, &FunctionOptions::default()).status, Status::NoAnswer);
        let twenty = (0..20).map(|i| format!("change_color({i}, red)")).collect::<Vec<_>>().join(", ");
        assert_eq!(verify(&twenty, &gold, &FunctionOptions::default()).score, 0.05);
        assert_eq!(verify("explode(0,red)", &gold, &FunctionOptions::default()).score, 0.0);
        assert!(exact("change_color(0,'red')", &gold));
        assert!(!exact("change_color(0,red), fly(1,up)", &gold));
        assert_eq!(verify("((((", &gold, &FunctionOptions::default()).status, Status::NoAnswer);
    }
}

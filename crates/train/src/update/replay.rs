//! Two memories of past steps. Selective sample replay (VL-Rethinker, arXiv 2504.08837; methods 5.6) trains again on
//! answers that had an advantage; the target queue (DyME's replay variant, methods 2.4) collects the targets of failed
//! questions until they fill a step. Both are part of a checkpoint. Cost: the stored tokens.

use std::collections::VecDeque;

use foveate_kernels::rng::{Purpose, Stream};
use serde::{Deserialize, Serialize};

/// Settings of `replay`. Off unless the recipe has the table.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ReplaySpec {
    /// Which memory.
    pub kind: ReplayKind,
    /// Answers are drawn in proportion to the size of their advantage to this power. 0 ignores it.
    pub alpha: f64,
    /// Answers kept, as a share of those sampled per step.
    pub capacity: f64,
    /// Answers trained per step, as a share of those sampled.
    pub target: f64,
}

impl ReplaySpec {
    /// Whether the settings make sense; the message says what does not.
    pub fn check(&self) -> Result<(), &'static str> {
        let share = |value: f64| value > 0.0 && value <= 100.0;
        if !(share(self.capacity) && share(self.target) && (0.0..=10.0).contains(&self.alpha)) {
            return Err("replay.capacity and replay.target are shares above 0, replay.alpha lies between 0 and 10");
        }
        Ok(())
    }
}

impl Default for ReplaySpec {
    fn default() -> Self {
        Self { kind: ReplayKind::Ssr, alpha: 1.0, capacity: 0.5, target: 0.5 }
    }
}

/// Which memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReplayKind {
    /// Selective sample replay.
    #[default]
    Ssr,
}

/// A past answer: enough to train on it again. Its ratio is real, because its log-probabilities are those of then.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Replayed {
    /// Index of its question in the dataset; the question is rendered again.
    pub question: u64,
    /// Tokens.
    pub ids: Vec<u32>,
    /// Log-probabilities when it was sampled.
    #[serde(with = "exact")]
    pub old_logprob: Vec<f32>,
    /// The part of the reference reasoning that the answer went on from; empty for a start from nothing.
    pub given: String,
    /// Advantage in its group.
    pub advantage: f64,
}

// f32 as f64 in JSON: the shortest decimal of an f32 need not be read back as the same f32.
mod exact {
    use serde::{Deserialize, Deserializer, Serializer};

    pub fn serialize<S: Serializer>(values: &[f32], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(values.iter().map(|value| f64::from(*value)))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<f32>, D::Error> {
        Ok(Vec::<f64>::deserialize(deserializer)?.into_iter().map(|value| value as f32).collect())
    }
}

/// Past answers with an advantage, oldest first.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ReplayBuffer {
    entries: VecDeque<Replayed>,
}

/// One answer chosen for training.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pick {
    /// Index among the answers of this step.
    Current(usize),
    /// Index in the buffer.
    Buffered(usize),
}

impl ReplayBuffer {
    /// Number of answers kept.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether nothing is kept.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// An answer of the buffer.
    pub fn get(&self, index: usize) -> Option<&Replayed> {
        self.entries.get(index)
    }

    /// Chooses the answers of a step: first those of this step with an advantage, then buffered ones, each set in
    /// proportion to the advantages' size and, unlike the released code, without drawing any twice.
    pub fn choose(&self, spec: &ReplaySpec, current: &[f64], seed: u64, step: u32) -> Vec<Pick> {
        let wanted = (spec.target * current.len() as f64).round() as usize;
        let mut picks: Vec<Pick> =
            weighted(current.iter().copied(), spec.alpha, seed, step, 0).into_iter().map(Pick::Current).collect();
        picks.truncate(wanted);
        let buffered = self.entries.iter().map(|entry| entry.advantage);
        let missing = wanted - picks.len();
        picks.extend(weighted(buffered, spec.alpha, seed, step, 1).into_iter().take(missing).map(Pick::Buffered));
        picks
    }

    /// Adds the step's answers that had an advantage; the oldest fall out beyond the capacity. `num_sampled` is the
    /// number of answers sampled per step.
    pub fn push(&mut self, spec: &ReplaySpec, answers: impl IntoIterator<Item = Replayed>, num_sampled: usize) {
        self.entries.extend(answers.into_iter().filter(|answer| answer.advantage != 0.0));
        let capacity = (spec.capacity * num_sampled as f64).round() as usize;
        while self.entries.len() > capacity {
            self.entries.pop_front();
        }
    }
}

// Indices of the non-zero advantages in the order of a weighted draw without replacement.
fn weighted(advantages: impl Iterator<Item = f64>, alpha: f64, seed: u64, step: u32, source: u32) -> Vec<usize> {
    let mut keys: Vec<(f64, usize)> = advantages
        .enumerate()
        .filter(|(_, advantage)| *advantage != 0.0)
        .map(|(index, advantage)| {
            let uniform = f64::from(Stream::new(seed, Purpose::Replay, step, index as u32, 2 + source).uniform(0));
            (uniform.max(1e-12).ln() / advantage.abs().powf(alpha), index)
        })
        .collect();
    keys.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
    keys.into_iter().map(|(_, index)| index).collect()
}

/// Questions whose target waits for a supervised step.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct TargetQueue {
    questions: VecDeque<u64>,
}

impl TargetQueue {
    /// Number of waiting targets.
    pub fn len(&self) -> usize {
        self.questions.len()
    }

    /// Whether none waits.
    pub fn is_empty(&self) -> bool {
        self.questions.is_empty()
    }

    /// Adds the question of a failed group.
    pub fn push(&mut self, question: u64) {
        self.questions.push_back(question);
    }

    /// The questions of a supervised step, once `budget` of them wait. `lossy` forgets the overflow, as released.
    pub fn take(&mut self, budget: usize, lossy: bool) -> Option<Vec<u64>> {
        if budget == 0 || self.questions.len() < budget {
            return None;
        }
        let step = self.questions.drain(..budget).collect();
        if lossy {
            self.questions.clear();
        }
        Some(step)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(question: u64, advantage: f64) -> Replayed {
        Replayed { question, ids: vec![1], old_logprob: vec![-1.0 / 3.0], given: String::new(), advantage }
    }

    #[test]
    fn current_answers_come_first_and_none_comes_twice() {
        let spec = ReplaySpec::default();
        let mut buffer = ReplayBuffer::default();
        buffer.push(&spec, (0..10).map(|q| answer(q, if q % 2 == 0 { 1.0 } else { 0.0 })), 8);
        assert_eq!(buffer.len(), 4, "only answers with an advantage, at most half a step");
        assert_eq!(buffer.get(0).map(|a| a.question), Some(2), "the oldest fell out");
        let picks = buffer.choose(&spec, &[0.0, 2.0, 0.0, -1.0, 0.0, 0.0, 0.0, 0.0], 3, 9);
        assert_eq!(picks.len(), 4);
        assert!(
            matches!(picks[..], [Pick::Current(_), Pick::Current(_), Pick::Buffered(a), Pick::Buffered(b)] if a != b)
        );
        assert_eq!(picks, buffer.choose(&spec, &[0.0, 2.0, 0.0, -1.0, 0.0, 0.0, 0.0, 0.0], 3, 9));
        let text = serde_json::to_string(&buffer).expect("plain data");
        assert_eq!(serde_json::from_str::<ReplayBuffer>(&text).expect("the same"), buffer);
        let empty = ReplayBuffer::default();
        assert_eq!(empty.choose(&spec, &[0.0; 8], 3, 9), []);
        assert_eq!(empty.choose(&spec, &[1.0; 8], 3, 9).len(), 4);
    }

    #[test]
    fn loud_answers_are_drawn_more_often() {
        let spec = ReplaySpec { target: 0.25, ..Default::default() };
        let empty = ReplayBuffer::default();
        let mut counts = [0; 4];
        for step in 0..400 {
            if let [Pick::Current(index)] = empty.choose(&spec, &[3.0, -1.0, 0.0, 0.5], 1, step)[..] {
                counts[index] += 1;
            }
        }
        assert!(counts[0] > 2 * counts[1] && counts[1] > counts[3] && counts[2] == 0, "{counts:?}");
    }

    #[test]
    fn the_queue_keeps_its_overflow() {
        let mut queue = TargetQueue::default();
        (0..5).for_each(|q| queue.push(q));
        assert_eq!(queue.take(6, false), None);
        assert_eq!(queue.take(3, false), Some(vec![0, 1, 2]));
        assert_eq!(queue.len(), 2);
        queue.push(9);
        assert_eq!(queue.take(2, true), Some(vec![3, 4]));
        assert!(queue.is_empty());
        assert_eq!(queue.take(0, false), None);
    }
}

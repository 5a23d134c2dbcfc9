//! Picks the next token from a row of logits.
//! Knows one row and one stream of random numbers; what it picks depends on nothing else.
//! Cost: a few passes over the vocabulary; sorting only when top-k, top-p or min-p is on.

use std::sync::Arc;

use foveate_kernels::cpu::head::{RowStatistics, Scaling};
use foveate_kernels::cpu::math;
use foveate_kernels::rng::Stream;

/// How answers are drawn.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplingSpec {
    /// Divides the logits; 0 means greedy.
    pub temperature: f32,
    /// Temperature that recorded log-probabilities and entropies refer to, where it is not that of the draw.
    pub logprob_temperature: Option<f32>,
    /// Keep the most probable tokens whose mass reaches this; 1 keeps all.
    pub top_p: f32,
    /// Keep this many most probable tokens; 0 keeps all.
    pub top_k: u32,
    /// Drop tokens less probable than this share of the most probable; 0 keeps all.
    pub min_p: f32,
    /// An answer is cut after this many tokens.
    pub max_new_tokens: u32,
    /// An answer ends with any of these.
    pub end_ids: Vec<u32>,
    /// Sorted ids that are never produced.
    pub banned: Arc<[u32]>,
}

impl SamplingSpec {
    /// One over the temperature of the draw (1 when greedy).
    pub fn inv_temperature(&self) -> f32 {
        if self.temperature > 0.0 { 1.0 / self.temperature } else { 1.0 }
    }

    /// One over the temperature that log-probabilities refer to.
    pub fn inv_logprob_temperature(&self) -> f32 {
        self.logprob_temperature.map_or(self.inv_temperature(), |temperature| 1.0 / temperature)
    }

    /// What happens to logits before their log-probabilities are recorded.
    pub fn scaling(&self) -> Scaling<'_> {
        Scaling { inv_temperature: self.inv_logprob_temperature(), banned: &self.banned }
    }
}

/// A picked token.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Picked {
    /// Its id.
    pub id: u32,
    /// Log-probability under the untruncated distribution at the temperature of log-probabilities.
    pub logprob: f32,
    /// Entropy of that distribution.
    pub entropy: f32,
    /// Log-probability under the distribution it was drawn from. The same number unless the draw was truncated or had a
    /// temperature of its own.
    pub drawn_logprob: f32,
}

/// Picks from one row `[V]`. `position` counts the answer's tokens.
pub fn pick(logits_v: &[f32], spec: &SamplingSpec, stream: &Stream, position: u32) -> Picked {
    pick_with(logits_v, &RowStatistics::new(logits_v, spec.scaling()), spec, stream, position)
}

/// [`pick`] where the row's statistics are known, at [`SamplingSpec::scaling`] or another scaling.
pub fn pick_with<'a>(
    logits_v: &[f32],
    statistics: &RowStatistics<'a>,
    spec: &'a SamplingSpec,
    stream: &Stream,
    position: u32,
) -> Picked {
    let recorded = statistics.at(logits_v, spec.scaling());
    let drawn = recorded.at(logits_v, Scaling { inv_temperature: spec.inv_temperature(), ..spec.scaling() });
    let mut drawn_logprob = None;
    let id = if spec.temperature > 0.0 {
        let truncated = spec.top_k > 0 || spec.top_p < 1.0 || spec.min_p > 0.0;
        let uniform = f64::from(stream.uniform(position));
        if truncated {
            let (id, logprob) = draw_truncated(logits_v, spec, uniform);
            drawn_logprob = Some(logprob);
            id
        } else {
            drawn.draw(logits_v, uniform)
        }
    } else {
        greedy(logits_v, &spec.banned)
    };
    let (logprob, entropy) = recorded.logprob(logits_v, id);
    let drawn_logprob =
        drawn_logprob.unwrap_or_else(|| match spec.inv_logprob_temperature() == spec.inv_temperature() {
            true => logprob,
            false => drawn.logprob(logits_v, id).0,
        });
    Picked { id, logprob, entropy, drawn_logprob }
}

/// The largest logit that is not banned; the lowest id among equals.
fn greedy(logits_v: &[f32], banned: &[u32]) -> u32 {
    let mut best = (f32::NEG_INFINITY, None);
    each_allowed(logits_v, banned, |id, logit| {
        if logit > best.0 || best.1.is_none() {
            best = (logit, Some(id));
        }
    });
    best.1.unwrap_or(0)
}

/// Calls `visit` for runs of ids between the banned ones, in order.
fn each_allowed(logits_v: &[f32], banned: &[u32], mut visit: impl FnMut(u32, f32)) {
    let mut start = 0;
    let ends = banned.iter().map(|id| *id as usize).filter(|id| *id < logits_v.len());
    for end in ends.chain([logits_v.len()]) {
        for (offset, logit) in logits_v[start.min(end)..end].iter().enumerate() {
            visit((start + offset) as u32, *logit);
        }
        start = end + 1;
    }
}

/// Inverse of the cumulative distribution over the tokens that top-k, top-p and min-p leave, most probable first. Gives
/// the token and its log-probability among them.
fn draw_truncated(logits_v: &[f32], spec: &SamplingSpec, uniform: f64) -> (u32, f32) {
    let mut ranked: Vec<(f32, u32)> = Vec::with_capacity(logits_v.len());
    each_allowed(logits_v, &spec.banned, |id, logit| ranked.push((logit, id)));
    ranked.sort_unstable_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
    let Some(&(max, first)) = ranked.first() else { return (0, 0.0) };
    if spec.top_k > 0 {
        ranked.truncate(spec.top_k as usize);
    }
    let inv_temperature = spec.inv_temperature();
    let masses: Vec<f64> =
        ranked.iter().map(|(logit, _)| f64::from(math::exp((logit - max) * inv_temperature))).collect();
    let total: f64 = masses.iter().sum();
    let mut kept = 0;
    let mut mass = 0.0;
    while kept < masses.len()
        && (kept == 0 || (mass < f64::from(spec.top_p) * total && masses[kept] >= f64::from(spec.min_p)))
    {
        mass += masses[kept];
        kept += 1;
    }
    let mut left = uniform * mass;
    for (own, (_, id)) in masses[..kept].iter().zip(&ranked) {
        left -= own;
        if left < 0.0 {
            return (*id, (own / mass).ln() as f32);
        }
    }
    let last = kept.saturating_sub(1);
    (ranked.get(last).map_or(first, |(_, id)| *id), (masses[last] / mass).ln() as f32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use foveate_kernels::rng::Purpose;

    fn spec() -> SamplingSpec {
        SamplingSpec {
            temperature: 1.0,
            logprob_temperature: None,
            top_p: 1.0,
            top_k: 0,
            min_p: 0.0,
            max_new_tokens: 8,
            end_ids: vec![],
            banned: Arc::from([2u32, 99]),
        }
    }

    fn counts(spec: &SamplingSpec, logits: &[f32], draws: u32) -> Vec<u32> {
        let mut counts = vec![0; logits.len()];
        for answer in 0..draws {
            let stream = Stream::new(3, Purpose::Sampling, 0, 0, answer);
            counts[pick(logits, spec, &stream, 0).id as usize] += 1;
        }
        counts
    }

    #[test]
    fn frequencies_follow_the_probabilities_and_banned_ids_never_come() {
        // Probabilities 1/7, 2/7, (banned), 4/7.
        let logits = [0.0, 2f32.ln(), 9.0, 4f32.ln()];
        let counts = counts(&spec(), &logits, 14_000);
        assert_eq!(counts[2], 0);
        for (id, want) in [(0, 2000.0), (1, 4000.0), (3, 8000.0)] {
            assert!((f64::from(counts[id]) - want).abs() < 250.0, "{counts:?}");
        }
    }

    #[test]
    fn truncation_keeps_what_it_says() {
        let logits = [0.0, 2f32.ln(), 9.0, 4f32.ln()];
        let top_k = counts(&SamplingSpec { top_k: 2, ..spec() }, &logits, 500);
        assert_eq!((top_k[0], top_k[2]), (0, 0));
        let top_p = counts(&SamplingSpec { top_p: 0.5, ..spec() }, &logits, 500);
        assert_eq!(top_p[3], 500);
        let min_p = counts(&SamplingSpec { min_p: 0.4, ..spec() }, &logits, 500);
        assert_eq!(min_p[0], 0);
        assert!(min_p[1] > 0);
    }

    #[test]
    fn greedy_takes_the_lowest_of_equals_and_the_logprob_ignores_truncation() {
        let logits = [1.0, 3.0, 9.0, 3.0];
        let stream = Stream::new(3, Purpose::Sampling, 0, 0, 0);
        let picked = pick(&logits, &SamplingSpec { temperature: 0.0, ..spec() }, &stream, 0);
        assert_eq!(picked.id, 1);
        let total: f32 = [1f32, 3.0, 3.0].iter().map(|z| z.exp()).sum();
        assert!((picked.logprob - (3.0 - total.ln())).abs() < 1e-5);
    }

    #[test]
    fn the_draw_and_the_record_may_have_temperatures_of_their_own() {
        let logits = [0.5f32, -1.0, 9.0, 2.0, 0.0];
        let log_softmax = |inv: f64, kept: &[usize], id: usize| {
            let total: f64 = kept.iter().map(|i| (f64::from(logits[*i]) * inv).exp()).sum();
            f64::from(logits[id]) * inv - total.ln()
        };
        let all = [0, 1, 3, 4];
        for answer in 0..20 {
            let stream = Stream::new(3, Purpose::Sampling, 0, 0, answer);
            let plain = SamplingSpec { temperature: 0.5, ..spec() };
            let same = pick(&logits, &plain, &stream, 0);
            assert_eq!(same.logprob, same.drawn_logprob);
            let other = SamplingSpec { logprob_temperature: Some(1.0), ..plain.clone() };
            let picked = pick(&logits, &other, &stream, 0);
            let id = picked.id as usize;
            assert_eq!((picked.id, picked.drawn_logprob), (same.id, same.logprob), "the draw is the same");
            assert!((f64::from(picked.logprob) - log_softmax(1.0, &all, id)).abs() < 1e-5);
            assert!((f64::from(picked.drawn_logprob) - log_softmax(2.0, &all, id)).abs() < 1e-5);
            let cut = pick(&logits, &SamplingSpec { top_k: 2, ..other }, &stream, 0);
            let id = cut.id as usize;
            assert!([0, 3].contains(&id));
            assert!((f64::from(cut.drawn_logprob) - log_softmax(2.0, &[0, 3], id)).abs() < 1e-5);
            assert!((f64::from(cut.logprob) - log_softmax(1.0, &all, id)).abs() < 1e-5);
        }
    }

    #[test]
    fn hostile_logits_do_not_panic() {
        for logits in [vec![f32::NAN; 5], vec![f32::NEG_INFINITY; 5], vec![f32::INFINITY; 5]] {
            for spec in [spec(), SamplingSpec { top_k: 3, ..spec() }, SamplingSpec { temperature: 0.0, ..spec() }] {
                let stream = Stream::new(3, Purpose::Sampling, 0, 0, 0);
                assert!((pick(&logits, &spec, &stream, 0).id as usize) < 5);
            }
        }
    }
}

//! Scores one group: first each completion alone, then the terms that look at the whole group, then gates and totals.
//! Order of completions is kept. Cost: the sum of the terms' costs.

use super::accuracy::{self, Gold};
use super::clean::clean;
use super::format::{self, FlagShape};
use super::spec::{Against, Gate, LengthUnit, RewardSpec};
use super::{Group, RewardError, Rewards, Scored, Status, Unknown, Verdict, extract, remote, terms, thinking};

/// A score above this is a success wherever a term asks only whether an answer is right.
const SUCCESS: f32 = 0.5;

pub(super) fn group(rewards: &Rewards, group: &Group<'_>, step: u64) -> Result<Vec<Scored>, RewardError> {
    let texts: Vec<String> = group.completions.iter().map(|c| clean(c.text)).collect();
    let verdicts = accuracy_verdicts(rewards, group, &texts)?;
    let accuracy: Vec<Option<f32>> = match &verdicts {
        Some(verdicts) => verdicts.iter().map(|verdict| Some(verdict.score)).collect(),
        None => vec![None; texts.len()],
    };
    let mut external = 0;
    let mut columns = Vec::with_capacity(rewards.specs.len());
    for spec in &rewards.specs {
        columns.push(term(spec, rewards, group, &texts, &accuracy, verdicts.as_deref(), step, &mut external));
    }
    let mut scored = Vec::with_capacity(texts.len());
    for index in 0..texts.len() {
        let mut parts: Vec<Option<f32>> = columns.iter().map(|column| column[index]).collect();
        for (part, spec) in parts.iter().zip(&rewards.specs) {
            if let Some(value) = part.filter(|value| !value.is_finite()) {
                let (row, name) = (group.row.id.clone(), spec.name().to_string());
                return Err(RewardError::NonFinite { row, name, value });
            }
        }
        apply_gates(&rewards.specs, &mut parts, accuracy[index]);
        let total = total(&rewards.specs, &parts, rewards.unknown);
        let verdict = verdicts.as_ref().map_or(Verdict::default(), |verdicts| verdicts[index].clone());
        scored.push(Scored { parts, total, accuracy: accuracy[index], verdict });
    }
    Ok(scored)
}

fn accuracy_verdicts(
    rewards: &Rewards,
    group: &Group<'_>,
    texts: &[String],
) -> Result<Option<Vec<Verdict>>, RewardError> {
    for spec in &rewards.specs {
        if let RewardSpec::Accuracy(spec) = spec {
            let gold = Gold::new(group.row, &spec.verify, spec.compat, group.frame)?;
            let verify = |text: &String| accuracy::verify(text, &gold, spec.extract, &spec.verify, spec.compat);
            return Ok(Some(texts.iter().map(verify).collect()));
        }
    }
    Ok(None)
}

// One value per completion.
fn term(
    spec: &RewardSpec,
    rewards: &Rewards,
    group: &Group<'_>,
    texts: &[String],
    accuracy: &[Option<f32>],
    verdicts: Option<&[Verdict]>,
    step: u64,
    external: &mut usize,
) -> Vec<Option<f32>> {
    let each = |value: &dyn Fn(&str) -> f32| texts.iter().map(|text| Some(value(text))).collect();
    let flag = |yes: bool| f32::from(u8::from(yes));
    let tokens = || group.completions.iter().map(|c| c.num_tokens);
    let correct = || accuracy.iter().map(|a| a.map(|a| a > SUCCESS));
    match spec {
        RewardSpec::Accuracy(_) => accuracy.to_vec(),
        RewardSpec::Parsable(s) => verdicts
            .unwrap_or_default()
            .iter()
            .map(|verdict| {
                let paid = verdict.status == Status::Ok && !(s.wrong_only && verdict.score > SUCCESS);
                Some(flag(paid))
            })
            .collect(),
        RewardSpec::FormatTags(s) => each(&|text| flag(format::tags(text, s.form, s.compat))),
        RewardSpec::FormatFlag(s) => {
            let min_think = s.min_think.unwrap_or(usize::from(s.compat.is_none()));
            let shape = FlagShape { min_think, max_answer_chars: s.max_answer_chars };
            each(&|text| flag(format::flag(text, shape, s.compat)))
        }
        RewardSpec::FormatBox(s) => each(&|text| {
            let answer = extract::answer(text, s.extract, s.compat);
            flag(answer.is_ok_and(|answer| format::box_pattern(answer, s.compat)))
        }),
        RewardSpec::ThinkingF1(s) => {
            let reference = match s.against {
                Against::Rationale => &group.row.rationale,
                Against::Facts => &group.row.facts,
                Against::Refined => group.refined.unwrap_or(&group.row.rationale),
            };
            let reference = thinking::content_words(&clean(reference));
            each(&|text| {
                thinking::score(extract::thinking(text, s.extract), &reference, s.multiset, s.compat.is_some())
            })
        }
        RewardSpec::Length(s) => {
            let lengths: Vec<usize> = match s.unit {
                LengthUnit::Characters => group.completions.iter().map(|c| c.text.chars().count()).collect(),
                LengthUnit::Tokens => tokens().collect(),
            };
            let scale = if step < s.start_step { 0.0 } else { s.scale };
            let values = terms::relative_length(&lengths, &correct().collect::<Vec<_>>());
            values.into_iter().map(|value| value.map(|value| scale * value)).collect()
        }
        RewardSpec::Steps(_) => each(&|text| terms::steps(text)),
        RewardSpec::Overlong(s) => {
            tokens().map(|n| Some(terms::overlong(n, rewards.max_new_tokens, s.buffer))).collect()
        }
        RewardSpec::Repetition(s) => texts
            .iter()
            .zip(correct())
            .map(|(text, correct)| match correct {
                Some(true) if s.wrong_only => Some(0.0),
                _ => Some(terms::repetition(text, s.words, s.scale)),
            })
            .collect(),
        RewardSpec::Dylr(s) => {
            let right: Vec<usize> = tokens().zip(correct()).filter(|(_, c)| *c == Some(true)).map(|(n, _)| n).collect();
            let mean = (!right.is_empty()).then(|| right.iter().sum::<usize>() as f64 / right.len() as f64);
            let target = mean.unwrap_or(rewards.max_new_tokens as f64);
            tokens()
                .zip(correct())
                .map(|(n, correct)| {
                    let correct = correct?;
                    Some(if s.compat {
                        terms::dynamic_length_compat(n, correct, mean)
                    } else {
                        terms::dynamic_length(n, target, s.min, s.max)
                    })
                })
                .collect()
        }
        RewardSpec::Checker(s) if s.judge.is_none() => {
            each(&|text| remote::judge::local(group.row, extract::thinking(text, s.extract), s))
        }
        RewardSpec::Checker(_) | RewardSpec::Judge(_) | RewardSpec::Process(_) | RewardSpec::Http(_) => {
            let index = *external;
            *external += 1;
            group.completions.iter().map(|c| c.external.get(index).copied().flatten()).collect()
        }
    }
}

fn apply_gates(specs: &[RewardSpec], parts: &mut [Option<f32>], accuracy: Option<f32>) {
    // Gates look at the values before any gate.
    let before = parts.to_vec();
    for (index, spec) in specs.iter().enumerate() {
        match spec.gate() {
            Gate::None => {}
            Gate::Format => {
                let shapeless = specs
                    .iter()
                    .zip(&before)
                    .enumerate()
                    .any(|(other, (s, value))| other != index && s.is_format() && *value == Some(0.0));
                if shapeless {
                    parts[index] = Some(0.0);
                }
            }
            Gate::Accuracy => parts[index] = parts[index].zip(accuracy).map(|(part, accuracy)| part * accuracy),
        }
    }
}

fn total(specs: &[RewardSpec], parts: &[Option<f32>], unknown: Unknown) -> Option<f32> {
    let leaves = match unknown {
        Unknown::Leave => parts.iter().any(Option::is_none),
        Unknown::IgnorePart => parts.iter().all(Option::is_none),
    };
    if leaves {
        return None;
    }
    // f64, so that the sum does not depend on how close the terms are in size.
    let sum: f64 = specs.iter().zip(parts).filter_map(|(s, p)| p.map(|p| f64::from(s.weight()) * f64::from(p))).sum();
    Some(sum as f32)
}

//! Looks at a stage's rows with the eyes of its rewards, selector and targets, before anything is trained: what could
//! only ever score zero, or would be asked for and is not there, is refused with a hint.
//! Cost: text of some hundred rows, and for own files one decode of every picture.

use foveate_tasks::row::Row;

use super::{Run, Stage};
use crate::data::{self, Dataset};
use crate::error::TrainError;
use crate::prompt::Frame;
use crate::reward::accuracy::VerifyOptions;
use crate::reward::spec::Against;
use crate::reward::{Completion, Group, RewardError, RewardSpec, Rewards};
use crate::update::selector::SelectorKind;

/// Rows that are looked at before a run starts; the rest is checked when it is used.
const CHECKED_ROWS: usize = 256;

/// A problem and what to do about it.
type Problem = (String, String);

/// Refuses what cannot work and gives remarks about what is odd.
pub fn stage(stage: &Stage, rewards: &Rewards, data: &Dataset) -> Result<Result<Vec<String>, Problem>, RewardError> {
    // Coordinates that refer to the picture need its size, and a world's picture has to be drawn for that.
    let sized = stage.target.coords.needs_frame()
        || stage.rewards.iter().any(|reward| match reward {
            RewardSpec::Accuracy(accuracy) => accuracy.verify.boxes.coords.needs_frame(),
            _ => false,
        });
    let places = 0..data.len().min(CHECKED_ROWS);
    let rows: Vec<Row> = places.map(|index| if sized { data.row(index) } else { data.text_row(index) }).collect();
    for row in &rows {
        // A gold that its verifier cannot read would score every answer zero.
        rewards.check_row(row, Frame::of(row, None))?;
    }
    let found = verifiers(stage, &rows).and_then(|()| material(stage, &rows));
    let mut remarks = match found {
        Ok(remarks) => remarks,
        Err(problem) => return Ok(Err(problem)),
    };
    if stage.selector.resolve().needs_targets() || stage.mix.is_some() {
        match targets(stage, rewards, &rows)? {
            Ok(found) => remarks.extend(found),
            Err(problem) => return Ok(Err(problem)),
        }
    }
    Ok(Ok(remarks))
}

/// Options of verifiers that no row's answer has a use for.
fn verifiers(stage: &Stage, rows: &[Row]) -> Result<(), Problem> {
    for reward in &stage.rewards {
        let RewardSpec::Accuracy(accuracy) = reward else { continue };
        let (set, default) = (&accuracy.verify, VerifyOptions::default());
        let options: [(&str, bool, &[&str]); 8] = [
            ("yes_no", set.yes_no != default.yes_no, &["yes_no"]),
            ("choice", set.choice != default.choice, &["choice"]),
            ("number", set.number != default.number, &["number"]),
            ("text", set.text != default.text, &["text", "member"]),
            ("labels", set.labels != default.labels, &["labels"]),
            ("functions", set.functions != default.functions, &["functions"]),
            ("box", set.boxes != default.boxes, &["box"]),
            ("expression", set.expression != default.expression, &["expression"]),
        ];
        for (name, is_set, kinds) in options {
            if is_set && !rows.iter().any(|row| kinds.contains(&row.answer.kind())) {
                let mut have: Vec<&str> = rows.iter().map(|row| row.answer.kind()).collect();
                have.sort_unstable();
                have.dedup();
                return Err((
                    format!("accuracy.verify.{name} is set, but its answers are of type {}", have.join(", ")),
                    format!("set verify.{} in place of it, or give the file an answer_type", have.join(" or verify.")),
                ));
            }
        }
    }
    Ok(())
}

/// Rationales and facts that something needs and no row has.
fn material(stage: &Stage, rows: &[Row]) -> Result<Vec<String>, Problem> {
    let count = |has: &dyn Fn(&Row) -> bool| rows.iter().filter(|row| has(row)).count();
    let rationales = count(&|row| !row.rationale.trim().is_empty());
    let facts = count(&|row| !row.facts.trim().is_empty());
    let switch = matches!(
        stage.selector.kind,
        SelectorKind::AnyCorrect | SelectorKind::Threshold | SelectorKind::Anneal | SelectorKind::Replay
    );
    let mut needs: Vec<(String, usize, &str)> = Vec::new();
    if switch && stage.target.has_rationale() && stage.refiner.is_none() {
        needs.push(("the selector memorises worked examples".into(), rationales, "rationale"));
    }
    if stage.start_state.is_some() {
        needs.push(("start_state gives the beginning of the rationale".into(), rationales, "rationale"));
    }
    if stage.refiner.is_some() {
        needs.push(("the refiner writes targets from facts or rationales".into(), rationales.max(facts), "facts"));
    }
    for reward in &stage.rewards {
        match reward {
            RewardSpec::ThinkingF1(s) if s.against == Against::Facts => {
                needs.push(("thinking_f1 compares with the facts".into(), facts, "facts"));
            }
            RewardSpec::ThinkingF1(_) => {
                needs.push(("thinking_f1 compares with the rationale".into(), rationales, "rationale"));
            }
            RewardSpec::Checker(s) if s.judge.is_none() => {
                let have = if s.against == Against::Facts { facts.max(rationales) } else { rationales };
                needs.push(("the checker compares with facts or rationale".into(), have, "rationale"));
            }
            _ => {}
        }
    }
    let mut remarks = Vec::new();
    for (why, have, what) in needs {
        if have == 0 {
            return Err((
                format!("{why}, and no row has any {what}"),
                "use rows that have it (worlds: rationale = \"medium\"), set target.template = \"answer\", or \
                 selector.kind = \"never\""
                    .to_string(),
            ));
        }
        if have < rows.len() {
            remarks.push(format!("{why}, and {} of {} rows have no {what}", rows.len() - have, rows.len()));
        }
    }
    Ok(remarks)
}

/// The targets must be right by the stage's own rewards: a target in another format would be taught and punished.
fn targets(stage: &Stage, rewards: &Rewards, rows: &[Row]) -> Result<Result<Vec<String>, Problem>, RewardError> {
    let texts: Vec<String> = rows.iter().map(|row| stage.target.text(row, None)).collect();
    let groups: Vec<Group> = rows
        .iter()
        .zip(&texts)
        .map(|(row, text)| Group {
            row,
            refined: None,
            frame: Frame::of(row, None),
            completions: vec![Completion { text, num_tokens: 1, ..Completion::default() }],
        })
        .collect();
    let scored = rewards.score(&groups, 0)?;
    let success = stage.selector.resolve().success.min(0.5) as f32;
    for ((row, text), scored) in rows.iter().zip(&texts).zip(&scored) {
        if scored[0].accuracy.is_some_and(|accuracy| accuracy <= success) {
            return Ok(Err((
                format!("the target of row {} would be scored as wrong: {:?}", row.id, shorten(text)),
                "target.template and the reward's extract must agree: cot or answer with \"flag\", tags with \"tag\", \
                 bare with \"whole\"; and target.coords with verify.box.coords"
                    .to_string(),
            )));
        }
    }
    let mut remarks = Vec::new();
    for (index, spec) in rewards.specs().iter().enumerate().filter(|(_, spec)| spec.is_format()) {
        let shaped = scored.iter().filter(|scored| scored[0].parts[index].is_some_and(|part| part > 0.0)).count();
        if shaped == 0 && stage.target.has_rationale() && rows.iter().any(|row| !row.rationale.trim().is_empty()) {
            return Ok(Err((
                format!("no target has the form that `{}` rewards: {:?}", spec.name(), shorten(&texts[0])),
                "use format_flag with target.template = \"cot\", format_tags with \"tags\", and its form = \"caption\" \
                 with \"caption\""
                    .to_string(),
            )));
        }
        if shaped < rows.len() {
            remarks.push(format!(
                "{} of {} targets earn nothing for `{}`",
                rows.len() - shaped,
                rows.len(),
                spec.name()
            ));
        }
    }
    Ok(Ok(remarks))
}

fn shorten(text: &str) -> String {
    match text.char_indices().nth(120) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_string(),
    }
}

/// Refuses test rows that are trained on.
pub fn overlaps(run: &Run) -> Result<(), TrainError> {
    if run.data.allow_overlap {
        return Ok(());
    }
    for (suite, sources) in &run.data.test {
        let test = || data::open(sources, &run.base, run.seed);
        for stage in &run.stage {
            let mut found = Vec::new();
            if data::may_overlap(&stage.data, sources) {
                found = data::overlap(&stage.open(&run.base, run.seed)?, &test()?);
            }
            // The worked examples of a mixture are learned too.
            let examples = stage.mix.as_ref().and_then(|mix| mix.data.as_ref());
            if let Some(examples) = examples.filter(|examples| data::may_overlap(examples, sources)) {
                found.extend(data::overlap(&data::open(examples, &run.base, run.seed)?, &test()?));
            }
            if let Some(first) = found.first() {
                return Err(TrainError::Overlap {
                    suite: suite.clone(),
                    stage: stage.name.clone(),
                    count: found.len(),
                    by_looks: found.iter().filter(|pair| pair.by_looks).count(),
                    row: first.test.clone(),
                });
            }
        }
    }
    Ok(())
}

//! The supervised loop: take rows, show the model what it should have said, learn, write down.
//! Knows the order of things; every part has its own room. Cost: one optimiser step over packed rows per step.

use std::collections::BTreeMap;
use std::sync::Arc;

use foveate_model::PromptInput;
use foveate_tasks::row::{ImageData, Row};
use rayon::prelude::*;

use crate::data::{Dataset, Order};
use crate::error::TrainError;
use crate::learn::learn;
use crate::prompt::{PromptError, Prompter};
use crate::rollout::{RowError, check_room};
use crate::run::Stage;
use crate::session::{Session, StageEnd};
use crate::update::PackOptions;
use crate::update::pack::{SupervisedRow, count_supervised, pack_supervised};

/// Runs the current stage from where it stands.
pub fn run_stage(session: &mut Session) -> Result<StageEnd, TrainError> {
    let stage = session.current();
    let rows = stage.open(&session.run.base, session.run.seed)?;
    let order = Order::shuffled(rows.len(), session.run.seed, session.stage as u32);
    let rule = stage.rule.resolve()?;
    let banned = Arc::from(session.prompter.banned_ids());
    // Targets have no length limit of their own; `constant_length` divides by the longest text the model knows.
    let options = PackOptions::new(&rule, session.prompter.max_tokens(), stage.tokens_per_batch, banned);
    let mut gradients = session.policy.new_gradients();

    loop {
        session.begin_step();
        let first = session.stage_step * u64::from(stage.questions_per_step);
        let end = first + u64::from(stage.questions_per_step);
        let places = (first..end).map(|position| order.row_at(position)).collect();
        let examples = lessons_at(&session.prompter, stage, &rows, places)?;
        session.controls.position = end;
        let supervised = supervised(&examples, stage);
        let counts = count_supervised(&supervised, rule.count);
        let batches = pack_supervised(&supervised, &counts, &options)?;
        let learned = learn(session, &batches, &rule, 0, &mut gradients)?;

        let metrics = BTreeMap::from([
            ("update/loss_sft".to_string(), learned.stats.loss_sft),
            ("update/num_sequences".to_string(), counts.num_sequences as f64),
            ("update/num_trained_tokens".to_string(), counts.num_tokens as f64),
            ("optim/gradient_norm".to_string(), learned.gradient_norm),
            ("optim/lr".to_string(), learned.lr),
        ]);
        if let Some(end) = session.end_step(metrics, learned.num_tokens)? {
            return Ok(end);
        }
    }
}

/// A question and the answer to be learned.
#[derive(Clone, Debug)]
pub struct Example {
    /// The rendered question.
    pub prompt: PromptInput,
    /// The answer, end token included.
    pub target: Vec<u32>,
}

/// The examples of some places of the data, in order.
pub fn lessons_at(
    prompter: &Prompter,
    stage: &Stage,
    rows: &Dataset,
    places: Vec<usize>,
) -> Result<Vec<Example>, RowError> {
    let examples = places
        .into_par_iter()
        .map(|place| lessons(prompter, stage, rows.rows_at(place)))
        // Collected first: which of several errors a parallel `collect` returns depends on timing.
        .collect::<Vec<_>>()
        .into_iter()
        .collect::<Result<Vec<_>, _>>()?;
    Ok(examples.concat())
}

/// Examples as packing takes them.
pub fn supervised<'e>(examples: &'e [Example], stage: &Stage) -> Vec<SupervisedRow<'e>> {
    let inv_temperature = 1.0 / stage.temperatures().target;
    examples
        .iter()
        .map(|example| SupervisedRow { prompt: &example.prompt, target: &example.target, weight: 1.0, inv_temperature })
        .collect()
}

/// The examples that one place of the data gives: a row, or all rows about one picture. Those share the picture's
/// tiles in memory, so that packing stores and encodes it once.
fn lessons(prompter: &Prompter, stage: &Stage, rows: Vec<Row>) -> Result<Vec<Example>, RowError> {
    let mut examples: Vec<Example> = Vec::with_capacity(rows.len());
    for (index, row) in rows.iter().enumerate() {
        let example = || -> Result<Example, PromptError> {
            let conversation = stage.prompt.conversation(row);
            let prompt = prompter.prompt(&conversation)?;
            let target = prompter.completion(&conversation, &stage.target.text(row, Some(&prompt)))?;
            check_room(prompter, &prompt, target.len())?;
            Ok(Example { prompt, target })
        };
        let mut example = example().map_err(|source| RowError { row: row.id.clone(), source })?;
        if index > 0 && same_images(&rows[index - 1], row) {
            example.prompt.tiles = examples[index - 1].prompt.tiles.clone();
        }
        examples.push(example);
    }
    Ok(examples)
}

/// Whether two rows show the very same drawings.
fn same_images(a: &Row, b: &Row) -> bool {
    a.images.len() == b.images.len()
        && a.images.iter().zip(&b.images).all(|pair| match pair {
            (ImageData::Drawn(a), ImageData::Drawn(b)) => Arc::ptr_eq(a, b),
            (ImageData::Encoded(a), ImageData::Encoded(b)) => Arc::ptr_eq(a, b),
            (ImageData::Path(a), ImageData::Path(b)) => a == b,
            _ => false,
        })
}

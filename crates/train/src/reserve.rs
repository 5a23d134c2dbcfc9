//! Memory on a GPU before a stage's first step: what the stage will ask of it, and the arena that is filled by that.
//! Knows stages, prompts and plans. Cost: rendering a few questions of the stage's data.

use foveate_model::plan_device::{DevicePlan, Load, Manner, STORE_BYTES};
use foveate_model::{ModelError, Policy};

use crate::data::Dataset;
use crate::error::TrainError;
use crate::memory::{MemoryConfig, Waits};
use crate::prompt::Prompter;
use crate::rollout::RowError;
use crate::run::Stage;

/// Questions that are rendered to learn how long they are.
const LOOKED_AT: usize = 8;

/// How a run learns, as far as memory goes.
pub fn manner(memory: &MemoryConfig) -> Manner {
    Manner { recompute: memory.recompute, moments_on_host: memory.optimiser == Waits::Host }
}

/// Means over some questions.
struct Typical {
    prompt: f64,
    target: f64,
    patches: f64,
}

fn typical(policy: &Policy, prompter: &Prompter, stage: &Stage, rows: &Dataset) -> Result<Typical, RowError> {
    let count = rows.len().min(LOOKED_AT);
    let mut sums = Typical { prompt: 0.0, target: 0.0, patches: 0.0 };
    for place in 0..count {
        let row = rows.row(place * rows.len() / count);
        let conversation = stage.prompt.conversation(&row);
        let rendered = prompter.prompt(&conversation).and_then(|prompt| {
            let target = prompter.completion(&conversation, &stage.target.text(&row, Some(&prompt)))?;
            Ok((prompt, target))
        });
        let (prompt, target) = rendered.map_err(|source| RowError { row: row.id.clone(), source })?;
        sums.prompt += prompt.ids.len() as f64;
        sums.target += target.len() as f64;
        sums.patches += policy.num_patches(prompt.tiles.iter().map(AsRef::as_ref)) as f64;
    }
    let count = count.max(1) as f64;
    Ok(Typical { prompt: sums.prompt / count, target: sums.target / count, patches: sums.patches / count })
}

/// What one step of the stage asks of the model, by its first questions and the lengths that the recipe allows.
pub fn load(policy: &Policy, prompter: &Prompter, stage: &Stage, rows: &Dataset) -> Result<Load, RowError> {
    let Typical { prompt, target, patches } = typical(policy, prompter, stage, rows)?;
    let supervised = stage.is_supervised();
    let answers = if supervised { 1.0 } else { f64::from(stage.answers_per_question) };
    let longest = f64::from(stage.sampling.max_new_tokens);
    // Answers end early as a rule; half their room is what is planned for.
    let answer = if supervised { target } else { longest / 2.0 };
    let tokens = (stage.tokens_per_batch as f64).max(prompt + answers * answer);
    let questions = (tokens / (prompt + answers * answer).max(1.0)).max(1.0).min(f64::from(stage.questions_per_step));
    // A step may be smaller than a batch could be.
    let tokens = tokens.min(questions * (prompt + answers * answer.max(target)));
    let stored = if supervised { 0.0 } else { f64::from(stage.questions_per_step) * (prompt + answers * longest) };
    let per_token = policy.description().cache_bytes_per_token.max(1);
    Ok(Load {
        tokens: tokens.ceil() as usize,
        patches: (questions * patches).ceil() as usize,
        trained: (questions * answers * answer).ceil() as usize,
        stored: (stored as usize).min(STORE_BYTES / per_token),
    })
}

/// Fills the arena with what the stage will ask of the device, a frozen model beside it included; says what that is. On
/// the CPU there is nothing to fill.
pub fn reserve(
    policy: &Policy,
    prompter: &Prompter,
    stage: &Stage,
    rows: &Dataset,
    memory: &MemoryConfig,
    has_frozen_model: bool,
) -> Result<Option<String>, TrainError> {
    let Some(device) = policy.device().filter(|_| memory.reserve) else { return Ok(None) };
    let plan = policy.device_plan(manner(memory));
    let load = load(policy, prompter, stage, rows)?;
    // It comes and goes if it waits on the host, and needs the same room while it is asked.
    let frozen = if has_frozen_model { plan.weights } else { 0 };
    let all = plan.to_learn(load) + frozen;
    device.reserve(all).map_err(ModelError::Gpu)?;
    Ok(Some(told(&plan, load, frozen, all, &device.name())))
}

fn told(plan: &DevicePlan, load: Load, frozen: usize, all: usize, device: &str) -> String {
    let mib = |bytes: usize| format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20));
    let frozen = if frozen > 0 { format!(", frozen model {}", mib(frozen)) } else { String::new() };
    format!(
        "memory on {device}: {} planned (weights {}, gradients {}, moments {}{frozen}; the rest for {} tokens and {} patches \
         at once)",
        mib(all),
        mib(plan.weights),
        mib(plan.gradients),
        mib(plan.moments),
        load.tokens,
        load.patches
    )
}

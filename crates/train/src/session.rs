//! One run in progress: its folder, its model, its optimiser, its logs, and where it stands.
//! Knows how a run begins, is written down, stops and goes on; knows nothing of how a step learns.
//! Cost: checkpoints; everything else is bookkeeping.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use foveate_kernels::{interrupt, isa};
use foveate_model::{ModelDescription, Policy, SaveType};
use serde::{Deserialize, Serialize};

use crate::adamw::AdamW;
use crate::builtin;
use crate::checkpoint::durable::{create_folder, read_file, write_file, write_with};
use crate::checkpoint::tensor_file::{self, Named};
use crate::checkpoint::{self, CheckpointError, Checkpoints, Found, State, WeightType, hugging_face};
use crate::data::{self, Dataset};
use crate::error::TrainError;
use crate::eval::records::{Evaluation, Scores};
use crate::eval::score_suite;
use crate::fresh;
use crate::prompt::Prompter;
use crate::recipe::{ModelRef, Reference};
use crate::report::records::StepRecord;
use crate::report::{Logs, page};
use crate::run::{Run, Stage, Start};
use crate::update::entropy::EntropyState;
use crate::update::statistics::RunningAccuracy;
use crate::update::{Rule, RuleStats};

/// What a run tells whoever watches it.
pub enum Event<'a> {
    /// The model is loaded.
    Started {
        /// The model in numbers.
        model: &'a ModelDescription,
        /// Number type of matrix operands.
        operand: &'static str,
        /// The step it goes on from; 0 for a new run.
        step: u64,
    },
    /// A stage begins or goes on.
    Stage {
        /// Its index.
        index: usize,
        /// The stage.
        stage: &'a Stage,
    },
    /// Answers are being drawn.
    Sampling {
        /// Answers that are not finished.
        unfinished: usize,
        /// All answers of the step.
        total: usize,
    },
    /// A step is done.
    Step(&'a StepRecord),
    /// A suite is being scored.
    Scoring {
        /// Its name.
        suite: &'a str,
        /// Questions answered.
        done: usize,
        /// All questions.
        total: usize,
    },
    /// An evaluation is done.
    Evaluated(&'a Evaluation),
    /// A checkpoint is written.
    Checkpoint(&'a Path),
    /// Something the person should know.
    Remark(String),
}

/// How a stage came to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StageEnd {
    /// All its steps are done.
    Finished,
    /// The person asked to stop; a checkpoint was written.
    Interrupted,
}

/// What a stage carries from step to step beside weights and moments; part of a checkpoint.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Controls {
    /// Strength of the KL term.
    pub beta: f64,
    /// Strength of the entropy term.
    pub entropy: EntropyState,
    /// Accuracy per question so far.
    pub accuracy: RunningAccuracy,
}

impl Controls {
    /// At the start of a stage.
    fn new(stage: &Stage) -> Self {
        Self { beta: stage.rule.kl.beta, entropy: stage.rule.entropy.start(), accuracy: RunningAccuracy::default() }
    }

    /// Moves the strengths after a step with these measurements over `samples` answers.
    pub fn after(&mut self, rule: &Rule, stats: &RuleStats, samples: u64) {
        if let Some(kl) = stats.mean_kl() {
            self.beta = rule.kl.beta_after(self.beta, kl, samples);
        }
        if let Some(entropy) = stats.mean_entropy() {
            self.entropy = self.entropy.after(&rule.entropy, entropy);
        }
    }
}

/// A run in progress.
pub struct Session<'a> {
    /// The resolved run.
    pub run: &'a Run,
    /// Its folder.
    pub folder: PathBuf,
    /// The model that learns.
    pub policy: Policy,
    /// From rows to tokens.
    pub prompter: Prompter,
    /// Moments and count of the running stage.
    pub optim: AdamW,
    /// Strengths that move, and what is known of the questions.
    pub controls: Controls,
    /// Index of the running stage.
    pub stage: usize,
    /// Steps done in it.
    pub stage_step: u64,
    /// Steps done over all stages.
    pub step: u64,
    /// Told what happens.
    pub watch: &'a mut dyn FnMut(Event),
    home: PathBuf,
    logs: Logs,
    scores: Scores,
    checkpoints: Checkpoints,
    checkpointed: Option<u64>,
    step_began: Instant,
}

/// Folder of a new model's text files inside a run's folder.
const NEW_MODEL: &str = "new-model";
/// Folder of the weights at the start of a stage, where a KL term needs them again after a resume.
const STAGE_START: &str = "stage-start";

impl<'a> Session<'a> {
    /// Begins the run in `folder`, or goes on with what is there.
    pub fn open(
        run: &'a Run,
        folder: &Path,
        resume: bool,
        watch: &'a mut dyn FnMut(Event),
    ) -> Result<Self, TrainError> {
        let checkpoints = Checkpoints::new(folder, run.checkpoint.keep_last);
        let found = if resume { Some(find_checkpoint(run, folder, &checkpoints, watch)?) } else { None };
        let found = match found {
            Some(found) => found,
            None => {
                claim(run, folder)?;
                None
            }
        };
        let home = model_home(run, folder)?;
        let prompter = Prompter::load(&home)?;
        let mut policy = base_policy(run, &home)?;
        let stage = found.as_ref().map_or(0, |found| found.state.stage);
        policy.set_trainable(run.stage[stage.min(run.stage.len() - 1)].train);
        let mut optim = AdamW::new(&policy);
        let state = found.as_ref().map(|found| &found.state);
        if let Some(found) = &found {
            restore(found, &mut policy, &mut optim)?;
        }
        let no_logs = BTreeMap::new();
        let logs = Logs::open(folder, state.map_or(&no_logs, |state| &state.logs))?;
        let scores = read_scores(folder, state.map_or(0, |state| state.step))?;
        let controls = match state {
            Some(state) => {
                serde_json::from_value(state.controls.clone()).map_err(|error| CheckpointError::Damaged {
                    path: found.as_ref().map_or_else(PathBuf::new, |found| found.path.clone()),
                    reason: format!("state.json: {error}"),
                })?
            }
            None => Controls::new(&run.stage[0]),
        };
        let session = Self {
            controls,
            run,
            folder: folder.to_path_buf(),
            policy,
            prompter,
            optim,
            stage,
            stage_step: state.map_or(0, |state| state.stage_step),
            step: state.map_or(0, |state| state.step),
            watch,
            home,
            logs,
            scores,
            checkpoints,
            checkpointed: state.map(|state| state.step),
            step_began: Instant::now(),
        };
        (session.watch)(Event::Started {
            model: &session.policy.description(),
            operand: session.policy.operand_name(),
            step: session.step,
        });
        Ok(session)
    }

    /// The running stage.
    pub fn current(&self) -> &'a Stage {
        &self.run.stage[self.stage]
    }

    /// Weights, trainable parts and optimiser of the stage that begins now. A stage that goes on after a resume has
    /// them already.
    pub fn begin_stage(&mut self) -> Result<(), TrainError> {
        let stage = self.current();
        if self.stage_step == 0 {
            match &stage.start {
                Start::Previous => {}
                Start::Base => {
                    let base = base_policy(self.run, &self.home)?;
                    self.policy.master_mut().copy_from_slice(base.master());
                }
                Start::Folder(folder) => {
                    let folder = self.run.base.join(folder);
                    let other = Policy::load(&folder, self.run.precision)?;
                    if other.master().len() != self.policy.master().len() {
                        return Err(CheckpointError::Damaged {
                            path: folder,
                            reason: "its model has another shape than the run's".into(),
                        }
                        .into());
                    }
                    self.policy.master_mut().copy_from_slice(other.master());
                }
            }
            self.policy.set_trainable(stage.train);
            self.optim = AdamW::new(&self.policy);
            self.controls = Controls::new(stage);
            if stage.needs_reference() && stage.reference == Reference::StageStart && self.stage > 0 {
                let place = self.folder.join(STAGE_START).join(&stage.name);
                create_folder(&place)?;
                let parameters = parameter_tensors(&self.policy, self.policy.master(), "");
                write_with(&place.join("weights.safetensors"), |writer| tensor_file::write(writer, &parameters))?;
            }
        }
        (self.watch)(Event::Stage { index: self.stage, stage });
        Ok(())
    }

    /// The frozen model of the stage's KL term, if it has one.
    pub fn reference(&self) -> Result<Option<Policy>, TrainError> {
        let stage = self.current();
        if !stage.needs_reference() {
            return Ok(None);
        }
        let mut reference = base_policy(self.run, &self.home)?;
        if stage.reference == Reference::StageStart {
            match &stage.start {
                Start::Folder(folder) => {
                    reference = Policy::load(&self.run.base.join(folder), self.run.precision)?;
                }
                Start::Previous if self.stage > 0 => {
                    let path = self.folder.join(STAGE_START).join(&stage.name).join("weights.safetensors");
                    let tensors = tensor_file::read(&path)?;
                    let infos: Vec<_> = reference.parameters().to_vec();
                    for info in infos {
                        let into = &mut reference.master_mut()[info.offset..info.offset + info.len];
                        tensor_file::restore(&tensors, &info.name, into, &path)?;
                    }
                }
                Start::Previous | Start::Base => {}
            }
        }
        Ok(Some(reference.copy_frozen()?))
    }

    /// Starts the clock of a step.
    pub fn begin_step(&mut self) {
        self.step_began = Instant::now();
    }

    /// Counts the step, writes it down, and makes the checkpoint and the evaluation that are due. `num_tokens` went
    /// through the model. Says whether the stage is at its end.
    pub fn end_step(
        &mut self,
        mut metrics: BTreeMap<String, f64>,
        num_tokens: usize,
    ) -> Result<Option<StageEnd>, TrainError> {
        self.step += 1;
        self.stage_step += 1;
        let secs = self.step_began.elapsed().as_secs_f64();
        metrics.insert("time/step_secs".into(), secs);
        metrics.insert("time/tokens_per_sec".into(), num_tokens as f64 / secs.max(1e-9));
        let stage = self.current();
        let record = StepRecord { step: self.step, stage: stage.name.clone(), metrics };
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |time| time.as_secs_f64());
        self.logs.step(&record, now)?;
        (self.watch)(Event::Step(&record));

        let every = self.run.eval.every;
        if every > 0 && self.step.is_multiple_of(every) && self.step < self.run.num_steps() {
            self.evaluate(&format!("step-{:06}", self.step))?;
        }
        let finished = self.stage_step >= stage.steps;
        let interrupted = interrupt::requested() && !finished;
        if finished || interrupted || self.step.is_multiple_of(self.run.checkpoint.every) {
            self.save()?;
        }
        Ok(match (finished, interrupted) {
            (true, _) => Some(StageEnd::Finished),
            (_, true) => Some(StageEnd::Interrupted),
            _ => None,
        })
    }

    /// The logs, for samples.
    pub fn logs(&mut self) -> &mut Logs {
        &mut self.logs
    }

    /// Writes a checkpoint of this moment, unless there is one.
    pub fn save(&mut self) -> Result<(), TrainError> {
        if self.checkpointed == Some(self.step) {
            return Ok(());
        }
        let state = State {
            format: checkpoint::FORMAT,
            recipe: self.run.fingerprint(),
            step: self.step,
            stage: self.stage,
            stage_step: self.stage_step,
            optimizer_step: self.optim.step,
            position: self.stage_step * u64::from(self.current().questions_per_step),
            controls: serde_json::to_value(&self.controls).expect("plain data always serialises"),
            logs: self.logs.sync()?,
            instruction_set: instruction_set(),
            files: BTreeMap::new(),
        };
        let dtype = match self.run.checkpoint.dtype {
            WeightType::F32 => SaveType::F32,
            WeightType::Bf16 => SaveType::Bf16,
            WeightType::F16 => SaveType::F16,
            WeightType::Auto if self.policy.operand_name() == "bf16" => SaveType::Bf16,
            WeightType::Auto => SaveType::F32,
        };
        let path = self.checkpoints.save(state, |folder| {
            write_model(&self.policy, &self.home, folder, dtype)?;
            let mut tensors = parameter_tensors(&self.policy, self.policy.master(), "master/");
            tensors.extend(trained_tensors(&self.policy, &self.optim.m, "m/"));
            tensors.extend(trained_tensors(&self.policy, &self.optim.v, "v/"));
            let path = folder.join("optimizer.safetensors");
            Ok(write_with(&path, |writer| tensor_file::write(writer, &tensors))?)
        })?;
        self.checkpointed = Some(self.step);
        (self.watch)(Event::Checkpoint(&path));
        Ok(())
    }

    /// Scores all suites under `name`, unless that was done before an interruption.
    pub fn evaluate(&mut self, name: &str) -> Result<(), TrainError> {
        if self.run.data.test.is_empty() || self.scores.evaluations.iter().any(|done| done.name == name) {
            return Ok(());
        }
        let mut evaluation = Evaluation { name: name.to_string(), step: self.step, ..Evaluation::default() };
        for (suite, sources) in &self.run.data.test {
            let rows = data::open(sources, &self.run.base, self.run.seed)?;
            let watch = &mut *self.watch;
            let total = rows.len();
            let mut progress = |done| watch(Event::Scoring { suite, done, total });
            let config = &self.run.eval;
            let ask = &self.run.prompt;
            let (score, predictions) =
                score_suite(&mut self.policy, &self.prompter, &rows, ask, config, self.run.seed, &mut progress)?;
            let folder = self.folder.join("predictions");
            create_folder(&folder)?;
            write_with(&folder.join(format!("{name}-{suite}.jsonl")), |writer| {
                predictions.iter().try_for_each(|prediction| {
                    serde_json::to_writer(&mut *writer, prediction)?;
                    writer.write_all(b"\n")
                })
            })?;
            evaluation.suites.insert(suite.clone(), score);
        }
        (self.watch)(Event::Evaluated(&evaluation));
        self.scores.evaluations.push(evaluation);
        let text = serde_json::to_string_pretty(&self.scores).expect("plain data always serialises");
        write_file(&self.folder.join("eval.json"), text.as_bytes())?;
        Ok(())
    }

    /// Writes the page and gives its path.
    pub fn write_page(&mut self) -> Result<PathBuf, TrainError> {
        Ok(page::write(&self.folder)?)
    }
}

/// Makes the folder of a new run; refuses one that holds anything of another.
fn claim(run: &Run, folder: &Path) -> Result<(), TrainError> {
    let occupied = ["recipe.toml", "metrics.jsonl", "checkpoints", "config.json"];
    if occupied.iter().any(|name| folder.join(name).exists()) {
        return Err(TrainError::Occupied(folder.to_path_buf()));
    }
    create_folder(folder)?;
    write_file(&folder.join("recipe.toml"), run.to_toml().as_bytes())?;
    Ok(())
}

/// The checkpoint that a resumed run goes on from; none if it was stopped before its first one.
fn find_checkpoint(
    run: &Run,
    folder: &Path,
    checkpoints: &Checkpoints,
    watch: &mut dyn FnMut(Event),
) -> Result<Option<Found>, TrainError> {
    let recipe = folder.join("recipe.toml");
    if !recipe.is_file() {
        return Err(TrainError::NothingToResume(folder.to_path_buf()));
    }
    let was = String::from_utf8_lossy(&read_file(&recipe)?).into_owned();
    let is = run.to_toml();
    if was != is {
        let difference = first_difference(&was, &is);
        return Err(TrainError::RecipeChanged { folder: folder.to_path_buf(), difference });
    }
    let (found, damaged) = checkpoints.newest()?;
    for error in damaged {
        watch(Event::Remark(format!("{error}; the checkpoint before it is used")));
    }
    if let Some(found) = &found {
        let is = instruction_set();
        if found.state.instruction_set != is {
            return Err(TrainError::OtherMachine { was: found.state.instruction_set.clone(), is });
        }
    }
    Ok(found)
}

/// The first line in which two texts differ, in words.
fn first_difference(was: &str, is: &str) -> String {
    let (mut old, mut new) = (was.lines(), is.lines());
    loop {
        match (old.next(), new.next()) {
            (Some(a), Some(b)) if a == b => {}
            (None, None) => return "only line ends differ".to_string(),
            (a, b) => {
                let word = |line: Option<&str>| line.map_or("nothing".to_string(), |line| format!("`{line}`"));
                return format!("it had {}, it now has {}", word(a), word(b));
            }
        }
    }
}

/// The names of the instruction paths that decide bits.
fn instruction_set() -> String {
    format!("{}/{}", isa::vector_isa().name(), isa::matmul_path().name())
}

/// The folder with the text files of the run's model; those of a new model are made on first use.
fn model_home(run: &Run, folder: &Path) -> Result<PathBuf, TrainError> {
    match &run.model {
        ModelRef::Named(name) => Ok(builtin::unpack(name)?.unwrap_or_else(|| run.base.join(name))),
        ModelRef::New { new } => {
            let home = folder.join(NEW_MODEL);
            // Written last, so its presence means that the folder is complete.
            if !home.join("complete").is_file() {
                let first = data::open(&run.stage[0].data, &run.base, run.seed)?;
                fresh::write(&home, new, texts(&first, &run.stage[0]).into_iter())?;
                write_file(&home.join("complete"), b"")?;
            }
            Ok(home)
        }
    }
}

/// Places of the data whose text a new tokenizer learns from.
const TOKENIZER_ROWS: usize = 4_000;

/// What a new tokenizer learns from: questions and targets, spaced as they will stand in a conversation. Rows are
/// taken at even distances, so that every source takes part.
fn texts(rows: &Dataset, stage: &Stage) -> Vec<String> {
    let count = rows.len().min(TOKENIZER_ROWS);
    let mut texts = Vec::with_capacity(2 * count);
    for place in 0..count {
        for row in rows.rows_at(place * rows.len() / count) {
            texts.push(format!("User:{}{}", foveate_tasks::derive::question_text(&row), stage.prompt.suffix));
            texts.push(format!("Assistant: {}", stage.target.text(&row)));
        }
    }
    texts
}

/// The model that the run starts from.
fn base_policy(run: &Run, home: &Path) -> Result<Policy, TrainError> {
    match &run.model {
        ModelRef::Named(_) => Ok(Policy::load(home, run.precision)?),
        ModelRef::New { .. } => {
            let path = home.join("config.json");
            let config = serde_json::from_slice(&read_file(&path)?)
                .map_err(|error| CheckpointError::Damaged { path, reason: error.to_string() })?;
            Ok(Policy::fresh(&config, run.seed, run.precision)?)
        }
    }
}

/// Writes a complete Hugging Face folder.
fn write_model(policy: &Policy, home: &Path, folder: &Path, dtype: SaveType) -> Result<(), CheckpointError> {
    policy.save_weights(folder, dtype).map_err(|error| CheckpointError::Weights(error.to_string()))?;
    let word = match dtype {
        SaveType::F32 => "float32",
        SaveType::Bf16 => "bfloat16",
        SaveType::F16 => "float16",
    };
    hugging_face::copy_side_files(home, folder, word)
}

/// All parameters of a flat buffer, by name.
fn parameter_tensors<'t>(policy: &Policy, flat: &'t [f32], prefix: &str) -> Vec<Named<'t>> {
    let named = |info: &foveate_model::ParamInfo| Named {
        name: format!("{prefix}{}", info.name),
        shape: info.shape.clone(),
        values: &flat[info.offset..info.offset + info.len],
    };
    policy.parameters().iter().map(named).collect()
}

/// The same without parameters that do not learn.
fn trained_tensors<'t>(policy: &Policy, flat: &'t [f32], prefix: &str) -> Vec<Named<'t>> {
    let all = parameter_tensors(policy, flat, prefix);
    all.into_iter().enumerate().filter(|(index, _)| policy.is_trainable(*index)).map(|(_, named)| named).collect()
}

/// Puts master weights, moments and counts of a checkpoint back.
fn restore(found: &Found, policy: &mut Policy, optim: &mut AdamW) -> Result<(), TrainError> {
    let path = found.path.join("optimizer.safetensors");
    let tensors = tensor_file::read(&path)?;
    let infos: Vec<_> = policy.parameters().to_vec();
    let learns: Vec<bool> = (0..infos.len()).map(|index| policy.is_trainable(index)).collect();
    for (info, learns) in infos.iter().zip(learns) {
        let range = info.offset..info.offset + info.len;
        let name = |prefix: &str| format!("{prefix}{}", info.name);
        tensor_file::restore(&tensors, &name("master/"), &mut policy.master_mut()[range.clone()], &path)?;
        if learns {
            tensor_file::restore(&tensors, &name("m/"), &mut optim.m[range.clone()], &path)?;
            tensor_file::restore(&tensors, &name("v/"), &mut optim.v[range], &path)?;
        }
    }
    optim.step = found.state.optimizer_step;
    Ok(())
}

/// Scores that were taken up to `step`; later ones are taken again.
fn read_scores(folder: &Path, step: u64) -> Result<Scores, TrainError> {
    let path = folder.join("eval.json");
    if !path.is_file() {
        return Ok(Scores::default());
    }
    let mut scores: Scores = serde_json::from_slice(&read_file(&path)?)
        .map_err(|error| CheckpointError::Damaged { path, reason: error.to_string() })?;
    scores.evaluations.retain(|evaluation| evaluation.step <= step && evaluation.name != "after");
    Ok(scores)
}

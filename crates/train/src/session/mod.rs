//! One run in progress: its folder, its model, its optimiser, its logs, and where it stands.
//! Knows how a run begins, is written down, stops and goes on; knows nothing of how a step learns.
//! Cost: checkpoints; everything else is bookkeeping.

mod folder;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use crate::adamw::AdamW;
use crate::checkpoint::durable::{create_folder, write_file, write_with};
use crate::checkpoint::tensor_file;
use crate::checkpoint::{self, CheckpointError, Checkpoints, State, WeightType};
use crate::controls::Controls;
use crate::data;
use crate::error::TrainError;
use crate::eval::records::{Evaluation, Scores};
use crate::eval::score_suite;
use crate::frozen::Frozen;
use crate::kept::{base_mark, kept_tensors, restore, restore_kept, trained_tensors, write_mark, write_model};
use crate::memory::Waits;
use crate::opening::{base_policy, model_home, open_folder};
use crate::prompt::Prompter;
use crate::recipe::Reference;
use crate::report::records::StepRecord;
use crate::report::{Logs, page};
use crate::reserve::reserve;
use crate::run::{Run, Stage, Start};
use crate::source::ModelSource;
use folder::{check_machine, claim, computed_with, find_checkpoint, read_scores, write_predictions};
use foveate_kernels::interrupt;
use foveate_model::{ModelDescription, Policy, SaveType, Trainable};

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
    /// The frozen model of the stage's KL term, while a stage has one.
    pub reference: Option<Frozen>,
    /// Index of the running stage.
    pub stage: usize,
    /// Steps done in it.
    pub stage_step: u64,
    /// Steps done over all stages.
    pub step: u64,
    /// Told what happens.
    pub watch: &'a mut dyn FnMut(Event),
    home: ModelSource,
    underneath: Option<u32>,
    logs: Logs,
    scores: Scores,
    checkpoints: Checkpoints,
    checkpointed: Option<u64>,
    /// The checkpoint that a resumed run goes on from.
    resumed: Option<PathBuf>,
    step_began: Instant,
}

/// Folder of the weights at the start of a stage, where a KL term needs them again after a resume.
const STAGE_START: &str = "stage-start";
/// Folder of the weights at the end of a stage that a later one starts from.
const STAGE_END: &str = "stage-end";
/// File of a checkpoint with the values of a reference that follows the weights.
const REFERENCE: &str = "reference.safetensors";

/// Where the values of a frozen model are.
enum Values {
    /// In the run's model.
    Base,
    /// Underneath the adapters.
    Underneath,
    /// In a file of this run.
    File(PathBuf),
    /// In a folder that the recipe names.
    Folder(PathBuf),
    /// Here and now: they are those of the model that learns.
    Current,
}

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
        let mut policy = base_policy(run, &home)?;
        let prompter = home.prompter(&policy)?;
        let underneath = base_mark(&policy);
        let stage = found.as_ref().map_or(0, |found| found.state.stage);
        policy.set_trainable(run.stage[stage.min(run.stage.len() - 1)].train);
        let mut optim = new_optimiser(run, &policy);
        let state = found.as_ref().map(|found| &found.state);
        if let Some(found) = &found {
            check_machine(&found.state.instruction_set, &policy, watch)?;
            restore(found, &mut policy, &mut optim, &home, underneath)?;
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
            underneath,
            logs,
            scores,
            checkpoints,
            checkpointed: state.map(|state| state.step),
            resumed: found.as_ref().map(|found| found.path.clone()),
            reference: None,
            step_began: Instant::now(),
        };
        (session.watch)(Event::Started {
            model: &session.policy.description(),
            operand: session.policy.operand_name(),
            step: session.step,
        });
        if session.policy.adapters().is_some() {
            let range = session.policy.weights().adapter_range();
            let millions = range.len() as f64 / 1e6;
            let count = session.policy.adapted_modules().len();
            (session.watch)(Event::Remark(format!("adapters on {count} matrices, {millions:.2} M parameters learn")));
        }
        for remark in &run.remarks {
            (session.watch)(Event::Remark(remark.clone()));
        }
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
        // That of the stage before gives its memory back first.
        self.reference = None;
        if self.stage_step == 0 {
            match &stage.start {
                Start::Previous => {}
                Start::Base if self.run.lora.is_some() => match &self.home.adapter {
                    None => self.policy.weights_mut().fill_adapters(self.run.seed),
                    Some(adapter) => self.policy.load_adapter(adapter)?,
                },
                Start::Base => {
                    let base = base_policy(self.run, &self.home)?;
                    self.policy.master_mut().copy_from_slice(base.master());
                }
                Start::Stage(name) => {
                    let path = self.kept(STAGE_END, name);
                    restore_kept(&mut self.policy, &path)?;
                }
                Start::Folder(folder) if self.run.lora.is_some() => {
                    self.policy.load_adapter(&self.run.base.join(folder))?;
                }
                Start::Folder(folder) => {
                    let other = open_folder(self.run, folder)?;
                    self.check_shape(&other, folder)?;
                    self.policy.master_mut().copy_from_slice(other.master());
                }
            }
            self.policy.set_trainable(stage.train);
            self.optim = new_optimiser(self.run, &self.policy);
            // Budgets are those of the run.
            let calls = std::mem::take(&mut self.controls.calls);
            self.controls = Controls { calls, ..Controls::new(stage) };
            if stage.needs_reference() && stage.reference == Reference::StageStart && self.stage > 0 {
                self.keep_weights(STAGE_START)?;
            }
        }
        (self.watch)(Event::Stage { index: self.stage, stage });
        self.reserve()
    }

    /// Takes the memory that the stage will need on a GPU.
    fn reserve(&mut self) -> Result<(), TrainError> {
        if self.policy.device().is_none() {
            return Ok(());
        }
        let stage = self.current();
        let rows = stage.open(&self.run.base, self.run.seed)?;
        let has_frozen_model = stage.needs_reference() && self.run.lora.is_none();
        let memory = &self.run.memory;
        if let Some(text) = reserve(&self.policy, &self.prompter, stage, &rows, memory, has_frozen_model)? {
            (self.watch)(Event::Remark(text));
        }
        Ok(())
    }

    /// Keeps the weights of a stage that is over, if a later one starts from them or is compared with them.
    pub fn end_stage(&mut self) -> Result<(), TrainError> {
        let name = &self.current().name;
        let wanted = |stage: &Stage| {
            matches!(&stage.start, Start::Stage(wanted) if wanted == name)
                || matches!(&stage.reference, Reference::Stage(wanted) if wanted == name)
        };
        if self.run.stage.iter().any(wanted) {
            self.keep_weights(STAGE_END)?;
        }
        Ok(())
    }

    /// Writes the weights of this moment under the name of the stage.
    fn keep_weights(&self, folder: &str) -> Result<(), TrainError> {
        self.policy.fetch()?;
        let place = self.folder.join(folder).join(&self.current().name);
        create_folder(&place)?;
        let parameters = kept_tensors(&self.policy, self.policy.master(), "");
        write_with(&place.join("weights.safetensors"), |writer| tensor_file::write(writer, &parameters))?;
        Ok(())
    }

    /// Loads the frozen model of the stage's KL term, if it has one.
    pub fn load_reference(&mut self) -> Result<(), TrainError> {
        let stage = self.current();
        if !stage.needs_reference() {
            return Ok(());
        }
        let values = self.values();
        if self.run.lora.is_some() {
            self.reference = Some(self.adapter_reference(values)?);
            return Ok(());
        }
        let mut model = match &values {
            Values::Folder(folder) => open_folder(self.run, folder)?,
            _ => base_policy(self.run, &self.home)?,
        };
        match values {
            Values::Base | Values::Underneath => {}
            Values::Folder(folder) => self.check_shape(&model, &folder)?,
            Values::File(path) => restore_kept(&mut model, &path)?,
            Values::Current => {
                self.policy.fetch()?;
                model.master_mut().copy_from_slice(self.policy.master());
            }
        }
        model.set_trainable(Trainable::NONE);
        self.reference = Some(Frozen::Model { model: Box::new(model), waits: self.run.memory.reference });
        Ok(())
    }

    /// Where the values of the stage's frozen model are.
    fn values(&self) -> Values {
        let stage = self.current();
        match (&stage.reference, &stage.start) {
            (Reference::Stage(name), _) => Values::File(self.kept(STAGE_END, name)),
            (Reference::Folder(folder), _) | (Reference::StageStart, Start::Folder(folder)) => {
                Values::Folder(folder.clone())
            }
            (Reference::Mean(_), _) => match &self.resumed {
                Some(checkpoint) if self.stage_step > 0 => Values::File(checkpoint.join(REFERENCE)),
                _ => Values::Current,
            },
            (Reference::StageStart, Start::Previous | Start::Stage(_)) if self.stage > 0 => {
                Values::File(self.kept(STAGE_START, &stage.name))
            }
            (Reference::AdapterOff, _) => Values::Underneath,
            (Reference::StageStart | Reference::Base | Reference::None, _) => Values::Base,
        }
    }

    /// The same where adapters learn: their values as they were, beside the weights that are there anyway.
    fn adapter_reference(&mut self, values: Values) -> Result<Frozen, TrainError> {
        let range = self.policy.weights().adapter_range();
        self.policy.fetch()?;
        let mut kept = self.policy.master()[range.clone()].to_vec();
        let adapter = match values {
            Values::Current => return Ok(Frozen::Adapters(kept)),
            Values::Underneath => return Ok(Frozen::Underneath),
            Values::File(path) => {
                let tensors = tensor_file::read(&path)?;
                for info in self.policy.parameters().iter().filter(|info| info.offset >= range.start) {
                    let first = info.offset - range.start;
                    tensor_file::restore(&tensors, &info.name, &mut kept[first..first + info.len], &path)?;
                }
                return Ok(Frozen::Adapters(kept));
            }
            Values::Folder(folder) => Some(self.run.base.join(folder)),
            Values::Base => self.home.adapter.clone(),
        };
        // Fresh adapters say nothing, so switching them off is the same and costs less.
        let Some(adapter) = adapter else { return Ok(Frozen::Underneath) };
        self.policy.load_adapter(&adapter)?;
        self.policy.weights_mut().swap_adapters(&mut kept);
        Ok(Frozen::Adapters(kept))
    }

    /// Lets a reference that is a running mean follow the weights that learn.
    pub fn follow(&mut self) -> Result<(), TrainError> {
        if let (Reference::Mean(keep), Some(reference)) = (&self.current().reference, &mut self.reference) {
            reference.follow(&self.policy, *keep)?;
        }
        Ok(())
    }

    /// Refuses a model in `folder` that the run's cannot be compared with.
    fn check_shape(&self, other: &Policy, folder: &Path) -> Result<(), TrainError> {
        let shapes = |policy: &Policy| -> Vec<(String, Vec<usize>)> {
            policy.parameters().iter().map(|info| (info.name.clone(), info.shape.clone())).collect()
        };
        match shapes(&self.policy) == shapes(other) {
            true => Ok(()),
            false => Err(TrainError::OtherModel(self.run.base.join(folder))),
        }
    }

    /// Where the weights at the start or end of a stage are kept.
    fn kept(&self, moment: &str, stage: &str) -> PathBuf {
        self.folder.join(moment).join(stage).join("weights.safetensors")
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
        if let (Some(until), Some(metric)) = (&stage.until, stage.watched_metric()) {
            if let Some(value) = metrics.get(metric) {
                self.controls.history.push_back(*value);
                while self.controls.history.len() > until.memory() {
                    self.controls.history.pop_front();
                }
            }
            if let Some(why) = until.reached(&self.controls.history, self.stage_step) {
                self.controls.ended = true;
                let text = format!("stage {} is over after {} steps: {metric}: {why}", stage.name, self.stage_step);
                (self.watch)(Event::Remark(text));
            }
        }
        let record = StepRecord { step: self.step, stage: stage.name.clone(), metrics };
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |time| time.as_secs_f64());
        self.logs.step(&record, now)?;
        (self.watch)(Event::Step(&record));

        let every = self.run.eval.every;
        if every > 0 && self.step.is_multiple_of(every) && self.step < self.run.num_steps() {
            self.evaluate(&format!("step-{:06}", self.step))?;
        }
        let finished = self.stage_step >= stage.steps || self.controls.ended;
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
            position: self.controls.position,
            controls: serde_json::to_value(&self.controls).expect("plain data always serialises"),
            logs: self.logs.sync()?,
            instruction_set: computed_with(&self.policy),
            files: BTreeMap::new(),
        };
        let dtype = match self.run.checkpoint.dtype {
            WeightType::F32 => SaveType::F32,
            WeightType::Bf16 => SaveType::Bf16,
            WeightType::F16 => SaveType::F16,
            WeightType::Auto if self.policy.operand_name() == "bf16" => SaveType::Bf16,
            WeightType::Auto => SaveType::F32,
        };
        self.policy.fetch()?;
        let [m, v] = self.optim.moments(&self.policy)?;
        let path = self.checkpoints.save(state, |folder| {
            write_model(&self.policy, &self.home, folder, dtype)?;
            write_mark(folder, self.underneath)?;
            let mut tensors = kept_tensors(&self.policy, self.policy.master(), "master/");
            tensors.extend(trained_tensors(&self.policy, &m, "m/"));
            tensors.extend(trained_tensors(&self.policy, &v, "v/"));
            let path = folder.join("optimizer.safetensors");
            write_with(&path, |writer| tensor_file::write(writer, &tensors))?;
            if let (Reference::Mean(_), Some(reference)) = (&self.current().reference, &self.reference) {
                let tensors = reference.tensors(&self.policy);
                write_with(&folder.join(REFERENCE), |writer| tensor_file::write(writer, &tensors))?;
            }
            Ok(())
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
            let answered =
                score_suite(&mut self.policy, &self.prompter, &rows, ask, config, self.run.seed, &mut progress)?;
            let folder = self.folder.join("predictions");
            write_predictions(&folder, &format!("{name}-{suite}.jsonl"), &answered.predictions)?;
            if !answered.sampled.is_empty() {
                write_predictions(&folder.join("sampled"), &format!("{name}-{suite}.jsonl"), &answered.sampled)?;
            }
            evaluation.suites.insert(suite.clone(), answered.score);
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

/// AdamW before its first step, its moments where the run wants them.
fn new_optimiser(run: &Run, policy: &Policy) -> AdamW {
    match run.memory.optimiser {
        Waits::Device => AdamW::new(policy),
        Waits::Host => AdamW::on_host(policy),
    }
}

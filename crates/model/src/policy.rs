//! A model that can be asked three things: how likely are these tokens, what is the gradient, and what would you say.
//! Knows families and the tape; knows no rewards and no rules beyond two numbers per token.
//! Cost: one forward pass to score, about three to learn; activations live in an arena that is reused.

use std::path::Path;
use std::rc::Rc;

use foveate_kernels::cpu::head::{self, HeadWeight, MassValues, Masses};
use foveate_kernels::isa;
use foveate_kernels::memory::Values;
use serde_json::Value;

use crate::adapters::AdapterSpec;
use crate::arena::{Arena, Buffer, Kind};
use crate::batch::{Derivatives, HeadOutput, Segment, TokenBatch};
use crate::error::ModelError;
use crate::families::Family;
use crate::families::decoder::Decoder;
use crate::gradients::Gradients;
use crate::on_device::DeviceWeights;
use crate::positions::Positions;
use crate::profile::timer;
use crate::safetensors_io::{self, SaveType};
use crate::tape::{Attend, Tape, Var, typed};
use crate::weights::{Layout, Naming, ParamInfo, Part, Trainable, Weights, stored_name};

/// Number type of matrix operands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// bf16 where the machine multiplies it fast, else f32.
    #[default]
    Auto,
    /// Everything in f32: the oracle.
    F32,
    /// bf16 operands, f32 sums, master weights and residual stream.
    Bf16,
}

impl Precision {
    pub(crate) fn operand(self) -> Kind {
        match self {
            Precision::F32 => Kind::F32,
            Precision::Bf16 => Kind::Bf16,
            Precision::Auto if isa::has_fast_bf16() => Kind::Bf16,
            Precision::Auto => Kind::F32,
        }
    }
}

/// What a model is, in numbers.
#[derive(Clone, Debug, serde::Serialize)]
pub struct ModelDescription {
    /// `model_type` of the configuration.
    pub family: &'static str,
    /// Parameters of the image tower, the connector and the decoder.
    pub num_parameters: [usize; 3],
    /// Blocks of the decoder.
    pub num_layers: usize,
    /// Width of the decoder.
    pub width: usize,
    /// Rows of the embedding.
    pub vocabulary: usize,
    /// Longest text that the model was made for.
    pub max_positions: usize,
    /// Side of a tile in pixels, if it sees and all tiles have one size.
    pub tile_side: Option<usize>,
    /// Tokens that one tile takes in a prompt; 0 if that depends on its size, or if it does not see.
    pub features_per_tile: usize,
    /// Side in pixels of what one image token stands for, if it sees.
    pub pixels_per_feature: Option<usize>,
    /// Bytes of keys and values that one token takes while sampling.
    pub cache_bytes_per_token: usize,
}

/// A model with its weights, ready to score, learn and sample.
pub struct Policy {
    family: Family,
    weights: Weights,
    arena: Arena,
    operand: Kind,
    recompute: bool,
    config: Value,
    adapters: Option<AdapterSpec>,
    naming: Naming,
}

impl Policy {
    /// Opens a folder in Hugging Face layout.
    pub fn load(dir: &Path, precision: Precision) -> Result<Policy, ModelError> {
        let path = dir.join("config.json");
        let text = std::fs::read_to_string(&path).map_err(|source| ModelError::File { path: path.clone(), source })?;
        let json: Value = serde_json::from_str(&text).map_err(|error| ModelError::Config {
            path: path.clone(),
            problem: error.to_string(),
            hint: "config.json must be a JSON object".into(),
        })?;
        if let Some(settings) = json.get("quantization_config").filter(|value| !value.is_null()) {
            let method = settings.get("quant_method").and_then(Value::as_str).unwrap_or("a method it does not name");
            return Err(ModelError::Config {
                path,
                problem: format!("the checkpoint is quantised ({method})"),
                hint: "take the checkpoint that it was made from: f32, f16 or bf16 weights in safetensors files".into(),
            });
        }
        let mut policy = Self::declare(&path, &json, precision)?;
        if policy.decoder().config.tied && safetensors_io::has_own_head(dir)? {
            // The configuration says tied, by default or by mistake; what is stored counts, as in transformers 5.
            let mut json = json;
            untie(&mut json);
            policy = Self::declare(&path, &json, precision)?;
        }
        policy.naming = safetensors_io::load(&mut policy.weights, dir, policy.family.namings)?;
        Ok(policy)
    }

    /// A new model with random weights; `config` is the content of a `config.json`.
    pub fn fresh(config: &Value, seed: u64, precision: Precision) -> Result<Policy, ModelError> {
        let mut policy = Self::declare(Path::new("config.json"), config, precision)?;
        policy.weights.fill_fresh(seed);
        Ok(policy)
    }

    fn declare(path: &Path, json: &Value, precision: Precision) -> Result<Policy, ModelError> {
        let mut layout = Layout::default();
        let family = Family::declare(&mut layout, path, json)?;
        Ok(Policy {
            naming: family.namings.first().copied().unwrap_or(&[]),
            family,
            weights: layout.build(),
            arena: Arena::default(),
            operand: precision.operand(),
            recompute: false,
            config: json.clone(),
            adapters: None,
        })
    }

    /// The same model with adapters; `make` extends the flat buffer.
    pub(crate) fn grow(self, family: Family, spec: AdapterSpec, make: impl FnOnce(Vec<f32>) -> Weights) -> Policy {
        let device = self.weights.device_weights().map(DeviceWeights::empty);
        let mut weights = make(self.weights.into_master());
        weights.set_device_weights(device);
        Policy { family, weights, adapters: Some(spec), ..self }
    }

    /// The same model without adapters; `make` cuts the flat buffer.
    pub(crate) fn shrink(self, family: Family, make: impl FnOnce(Vec<f32>) -> Weights) -> Policy {
        let device = self.weights.device_weights().map(DeviceWeights::empty);
        let mut weights = make(self.weights.into_master());
        weights.set_device_weights(device);
        Policy { family, weights, adapters: None, ..self }
    }

    /// What its adapters are, if it has any.
    pub fn adapters(&self) -> Option<&AdapterSpec> {
        self.adapters.as_ref()
    }

    /// Writes `model.safetensors` into `dir`, names spelled as in the checkpoint that was loaded.
    pub fn save_weights(&self, dir: &Path, dtype: SaveType) -> Result<(), ModelError> {
        safetensors_io::save(&self.weights, self.naming, &dir.join("model.safetensors"), dtype)
    }

    /// Keep only the inputs of blocks and run them again in the backward pass: less memory, a third more time.
    pub fn set_recompute(&mut self, recompute: bool) {
        self.recompute = recompute;
    }

    /// Names, shapes and places of the parameters.
    pub fn parameters(&self) -> &[ParamInfo] {
        self.weights.infos()
    }

    /// All parameters.
    pub fn weights(&self) -> &Weights {
        &self.weights
    }

    /// All parameters, to be changed.
    pub fn weights_mut(&mut self) -> &mut Weights {
        &mut self.weights
    }

    /// The flat f32 buffer.
    pub fn master(&self) -> &[f32] {
        self.weights.master()
    }

    /// The flat f32 buffer, to be changed.
    pub fn master_mut(&mut self) -> &mut [f32] {
        self.weights.master_mut()
    }

    /// Chooses which parts learn.
    pub fn set_trainable(&mut self, trainable: Trainable) {
        self.weights.set_trainable(trainable);
    }

    /// Whether parameter `index` learns.
    pub fn is_trainable(&self, index: usize) -> bool {
        self.weights.is_trainable(crate::weights::ParamId(index))
    }

    /// Length of the flat buffer.
    pub fn num_values(&self) -> usize {
        self.weights.num_values()
    }

    /// From the first value of the flat buffer that learns to behind the last.
    pub(crate) fn active(&self) -> std::ops::Range<usize> {
        let infos = self.weights.infos();
        let mut learns = (0..infos.len()).filter(|index| self.is_trainable(*index)).map(|index| &infos[index]);
        match (learns.next(), learns.next_back()) {
            (Some(first), Some(last)) => first.offset..last.offset + last.len,
            (Some(only), None) => only.offset..only.offset + only.len,
            _ => 0..0,
        }
    }

    /// Zeroed gradients.
    pub fn new_gradients(&self) -> Gradients {
        Gradients {
            flat: Values::zeroed(self.num_values()),
            active: self.active(),
            untouched: Vec::new(),
            on_device: None,
        }
    }

    /// The name of a parameter as the checkpoint that was loaded spells it.
    pub fn stored_name(&self, name: &str) -> String {
        stored_name(name, self.naming)
    }

    /// The language part.
    pub fn decoder(&self) -> &Decoder {
        &self.family.decoder
    }

    /// The family.
    pub fn family(&self) -> &Family {
        &self.family
    }

    /// Name of the operand type, as logged.
    pub fn operand_name(&self) -> &'static str {
        match self.operand {
            Kind::F32 => "f32",
            Kind::Bf16 => "bf16",
        }
    }

    /// Type of matrix operands.
    pub(crate) fn operand(&self) -> Kind {
        self.operand
    }

    pub(crate) fn set_operand(&mut self, operand: Kind) {
        self.operand = operand;
    }

    /// What the model is, in numbers.
    pub fn description(&self) -> ModelDescription {
        let config = &self.decoder().config;
        let mut num_parameters = [0; 3];
        for info in self.weights.infos() {
            let slot = match info.part {
                Part::Vision => 0,
                Part::Connector => 1,
                Part::Language => 2,
            };
            num_parameters[slot] += info.len;
        }
        let vision = self.family.vision.as_ref().map(|vision| vision.sizes());
        let value_bytes = if self.operand == Kind::Bf16 { 2 } else { 4 };
        ModelDescription {
            family: self.family.name,
            num_parameters,
            num_layers: config.num_layers,
            width: config.width,
            vocabulary: config.vocabulary,
            max_positions: config.max_positions,
            tile_side: vision.and_then(|sizes| sizes.tile_side),
            features_per_tile: vision.map_or(0, |sizes| sizes.features_per_tile),
            pixels_per_feature: vision.map(|sizes| sizes.pixels_per_feature),
            cache_bytes_per_token: 2 * config.num_layers * config.num_kv_heads * config.head_dim * value_bytes,
        }
    }

    /// The `config.json` that the model was made from.
    pub fn config(&self) -> &Value {
        &self.config
    }

    /// Refuses batches that contradict themselves or the model, before any kernel sees them.
    pub(crate) fn check(&self, input: &Packed) -> Result<(), ModelError> {
        let wrong = |problem: String| Err(ModelError::Batch { problem });
        let config = &self.decoder().config;
        let num_tokens = input.ids.len();
        if let Some(id) = input.ids.iter().find(|id| **id as usize >= config.vocabulary) {
            return wrong(format!("token id {id} is not below the vocabulary of {}", config.vocabulary));
        }
        if input.places.len() != num_tokens {
            return wrong(format!("{} positions for {num_tokens} tokens", input.places.len()));
        }
        if let Some(row) = input.placements.iter().find(|row| **row as usize >= num_tokens) {
            return wrong(format!("image feature placed at row {row} of {num_tokens}"));
        }
        let features = self.family.num_features(input.tiles).map_err(|problem| ModelError::Batch { problem })?;
        if features != input.placements.len() {
            return wrong(format!("{features} image features for {} placeholders", input.placements.len()));
        }
        Ok(())
    }

    /// Rotary positions of packed rows, and for each segment by how much the next token's position falls short of its
    /// place.
    pub(crate) fn positions(&self, input: &Packed, segments: &[Segment]) -> Result<(Positions, Vec<u32>), ModelError> {
        self.family
            .positions(input.places, segments, input.tiles, input.placements)
            .map_err(|problem| ModelError::Batch { problem })
    }

    /// The last residual stream of packed tokens.
    pub(crate) fn forward<'w>(
        &'w self,
        tape: &mut Tape<'w>,
        input: &Packed,
        positions: &Positions,
        attend: &Attend,
    ) -> Var {
        self.family.forward(tape, input.ids.into(), positions, input.tiles, input.placements.into(), attend)
    }

    /// Last norm of some rows of a residual stream.
    pub(crate) fn last_norm<'w>(&'w self, tape: &mut Tape<'w>, x: Var, rows: Rc<[u32]>) -> Var {
        let decoder = self.decoder();
        let gathered = tape.gather(x, rows, decoder.config.width);
        tape.rms_norm(gathered, decoder.norm, decoder.config.eps)
    }

    pub(crate) fn take_arena(&mut self) -> Arena {
        std::mem::take(&mut self.arena)
    }

    pub(crate) fn put_arena(&mut self, arena: Arena) {
        self.arena = arena;
    }

    fn head_forward(
        &self,
        x: &Buffer,
        batch: &TokenBatch,
        lse: &mut [f32],
        kept: Option<&mut Masses<'_>>,
    ) -> HeadOutput {
        let _timer = timer("head");
        let num = batch.target.len();
        let mut output = HeadOutput { logprob: vec![0.0; num], entropy: vec![0.0; num] };
        let decoder = self.decoder();
        let vocabulary = decoder.config.vocabulary;
        typed!(x, x => head::head_logprob(
            x,
            self.head_weight(false),
            vocabulary,
            &batch.target,
            &batch.inv_temperature,
            &batch.banned,
            &mut output.logprob,
            &mut output.entropy,
            lse,
            kept,
        ));
        output
    }

    pub(crate) fn head_weight(&self, backward: bool) -> HeadWeight<'_> {
        let head = self.decoder().head;
        match self.operand {
            Kind::F32 => HeadWeight::F32(self.weights.matrix(head)),
            Kind::Bf16 => {
                let forward = self.weights.packed_forward(head);
                // Only the backward pass reads the second packing; scoring passes the first in its place.
                let backward = if backward { self.weights.packed_backward(head) } else { forward };
                HeadWeight::Bf16 { forward, backward }
            }
        }
    }

    /// Log-probability and entropy of the trained tokens; nothing is learned.
    pub fn score(&mut self, batch: &TokenBatch) -> Result<HeadOutput, ModelError> {
        let input = Packed::of(batch);
        self.check(&input)?;
        self.check_trained(batch)?;
        let positions = self.positions(&input, &batch.segments)?.0;
        let arena = self.take_arena();
        let mut tape = Tape::new(&self.weights, arena, self.operand, false, false);
        let x = self.forward(&mut tape, &input, &positions, &Attend::Packed(batch.segments.clone().into()));
        let x = self.last_norm(&mut tape, x, batch.source.clone().into());
        if let Buffer::Device(x) = tape.value(x) {
            let output = self.head_on_device(x, batch)?.1;
            let arena = tape.into_arena();
            self.put_arena(arena);
            return Ok(output);
        }
        let mut lse = vec![0.0; batch.target.len()];
        let output = self.head_forward(tape.value(x), batch, &mut lse, None);
        let arena = tape.into_arena();
        self.put_arena(arena);
        Ok(output)
    }

    /// One forward and backward pass. `rule` sees log-probability and entropy of the trained tokens and answers with
    /// the loss's derivatives; parameter gradients are added to `gradients`.
    pub fn accumulate_gradients(
        &mut self,
        batch: &TokenBatch,
        gradients: &mut Gradients,
        rule: &mut dyn FnMut(&HeadOutput) -> Derivatives,
    ) -> Result<HeadOutput, ModelError> {
        let input = Packed::of(batch);
        self.check(&input)?;
        self.check_trained(batch)?;
        let positions = self.positions(&input, &batch.segments)?.0;
        let arena = self.take_arena();
        let mut tape = Tape::new(&self.weights, arena, self.operand, true, self.recompute);
        let x = self.forward(&mut tape, &input, &positions, &Attend::Packed(batch.segments.clone().into()));
        let x = self.last_norm(&mut tape, x, batch.source.clone().into());
        if let Buffer::Device(states) = tape.value(x) {
            let (columns, output) = self.head_on_device(states, batch)?;
            let derivatives = rule(&output);
            let d_x = self.head_backward_on_device(states, &columns, &derivatives, gradients);
            tape.seed(x, d_x);
            tape.backward(gradients);
            let arena = tape.into_arena();
            self.check_device()?;
            self.put_arena(arena);
            return Ok(output);
        }
        let decoder = self.decoder();
        let vocabulary = decoder.config.vocabulary;
        let mut lse = tape.arena().take_f32(batch.target.len());
        let num_kept = Masses::num_rows(batch.target.len(), vocabulary);
        let (num_masses, num_maxima) = Masses::lens(num_kept, vocabulary);
        let (mut masses, mut maxima) = (tape.arena().take(self.operand, num_masses), tape.arena().take_f32(num_maxima));
        let values = match &mut masses {
            Buffer::F32(values) => MassValues::F32(values),
            Buffer::Bf16(values) => MassValues::Bf16(values),
            Buffer::Device(_) => unreachable!("a model on a GPU went its way above"),
        };
        let mut kept = Masses::new(vocabulary, values, &mut maxima);
        let output = self.head_forward(tape.value(x), batch, &mut lse, Some(&mut kept));
        let derivatives = rule(&output);

        let head_timer = timer("head, backward");
        let mut d_x = {
            let (kind, len) = (tape.value(x).kind(), tape.value(x).len());
            tape.arena().take(kind, len)
        };
        let head = self.weights.linear(decoder.head);
        let d_weight = self
            .weights
            .linear_is_trainable(decoder.head)
            .then(|| gradients.part_or_fresh(head.offset..head.offset + head.n * head.k));
        crate::tape::same_type!((tape.value(x), x), (&mut d_x, d_x) => head::head_logprob_backward(
            x,
            self.head_weight(true),
            vocabulary,
            &batch.target,
            &batch.inv_temperature,
            &batch.banned,
            &lse,
            &output.entropy,
            &derivatives.by_logprob,
            &derivatives.by_entropy,
            Some(&kept),
            d_x,
            d_weight,
        ));
        drop(head_timer);
        tape.arena().give_f32(lse);
        tape.arena().give_f32(maxima);
        tape.arena().give(masses);
        tape.seed(x, d_x);
        tape.backward(gradients);
        gradients.settle();
        let arena = tape.into_arena();
        self.put_arena(arena);
        Ok(output)
    }

    fn check_trained(&self, batch: &TokenBatch) -> Result<(), ModelError> {
        let wrong = |problem: String| Err(ModelError::Batch { problem });
        let num = batch.target.len();
        if batch.source.len() != num || batch.inv_temperature.len() != num {
            return wrong(format!("{num} targets, {} sources", batch.source.len()));
        }
        if let Some(row) = batch.source.iter().find(|row| **row as usize >= batch.ids.len()) {
            return wrong(format!("a trained token is predicted by row {row} of {}", batch.ids.len()));
        }
        let vocabulary = self.decoder().config.vocabulary;
        if let Some(id) = batch.target.iter().find(|id| **id as usize >= vocabulary) {
            return wrong(format!("target {id} is not below the vocabulary of {vocabulary}"));
        }
        let mut at = 0;
        for (index, segment) in batch.segments.iter().enumerate() {
            if segment.start != at || segment.parent.is_some_and(|parent| parent as usize >= index) {
                return wrong(format!("segment {index} ({segment:?}) does not follow the one before it"));
            }
            at += segment.len;
        }
        if at as usize != batch.ids.len() {
            return wrong(format!("segments cover {at} of {} tokens", batch.ids.len()));
        }
        Ok(())
    }
}

/// Says in a configuration that the head is a matrix of its own.
pub(crate) fn untie(config: &mut Value) {
    for place in ["", "/text_config"] {
        if let Some(Value::Object(keys)) = config.pointer_mut(place) {
            keys.insert("tie_word_embeddings".into(), false.into());
        }
    }
}

/// The tensor side's view of packed tokens.
pub(crate) struct Packed<'a> {
    pub ids: &'a [u32],
    pub places: &'a [u32],
    pub tiles: &'a [std::sync::Arc<crate::batch::Tile>],
    pub placements: &'a [u32],
}

impl<'a> Packed<'a> {
    fn of(batch: &'a TokenBatch) -> Self {
        Self { ids: &batch.ids, places: &batch.positions, tiles: &batch.tiles, placements: &batch.placements }
    }
}

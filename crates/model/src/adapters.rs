//! Puts low-rank adapters beside the matrices of a loaded model, so that only they learn.
//! Knows names of modules; the arithmetic lives in `linear`, the files in `peft`. Cost: the flat parameter buffer
//! grows by `rank * (inputs + outputs)` values a matrix.
//!
//! LoRA: Hu et al. 2021, section 4.1. rsLoRA: Kalajdzievski 2023.

use std::path::Path;

use crate::error::ModelError;
use crate::families::Family;
use crate::policy::Policy;
use crate::weights::{Layout, LinearId, Part, Trainable};

/// Which matrices get adapters, and how large.
#[derive(Clone, Debug, PartialEq)]
pub struct AdapterSpec {
    /// Inner width. 8 to 64; more learns more and costs memory in proportion.
    pub rank: usize,
    /// The adapter's output is scaled by `alpha / rank` (or `alpha / sqrt(rank)`); twice the rank is usual.
    pub alpha: f32,
    /// Scale by the square root of the rank: keeps large ranks from learning too slowly.
    pub rank_stabilised: bool,
    /// Share of an adapter's inputs that is left out while learning.
    pub dropout: f32,
    /// Names of modules, whole or their last parts (`q_proj`, `mlp.down_proj`); empty means every matrix inside the
    /// blocks, and the connector.
    pub targets: Vec<String>,
    /// Parts of the model that get adapters.
    pub parts: Trainable,
}

impl AdapterSpec {
    /// The factor on an adapter's output.
    pub fn scale(&self) -> f32 {
        self.alpha / if self.rank_stabilised { (self.rank as f32).sqrt() } else { self.rank as f32 }
    }

    fn wants(&self, module: &str, part: Part) -> bool {
        if self.targets.is_empty() {
            // A connector has no blocks; whoever asks for it means all of it.
            return is_inside_block(module) || part == Part::Connector;
        }
        // As in PEFT: the whole name, or its end after a dot.
        let ends = |target: &String| module.strip_suffix(target.as_str()).is_some_and(|rest| rest.ends_with('.'));
        self.targets.iter().any(|target| module == target || ends(target))
    }
}

/// Whether a module belongs to a numbered block: `..layers.3..`, `..blocks.3..`, `..layer.3..`.
pub(crate) fn is_inside_block(module: &str) -> bool {
    block_of(module).is_some()
}

/// The numbered block that a module belongs to: its name up to the number.
pub(crate) fn block_of(module: &str) -> Option<&str> {
    let mut end = 0;
    let mut before = "";
    for word in module.split('.') {
        end += word.len();
        if ["layers", "blocks", "layer"].contains(&before) && word.bytes().all(|c| c.is_ascii_digit()) {
            return Some(&module[..end]);
        }
        before = word;
        end += 1;
    }
    None
}

impl Policy {
    /// The same model with adapters that start as nothing: the function does not change until they learn.
    pub fn with_adapters(self, spec: &AdapterSpec, seed: u64) -> Result<Policy, ModelError> {
        if spec.rank == 0 || !spec.alpha.is_finite() || !(0.0..1.0).contains(&spec.dropout) {
            return Err(wrong(format!("rank {}, alpha {}, dropout {}", spec.rank, spec.alpha, spec.dropout)));
        }
        if self.adapters().is_some() {
            return Err(wrong("the model has adapters already".into()));
        }
        let mut layout = Layout::default();
        let family = Family::declare(&mut layout, Path::new("config.json"), self.config())?;
        declare_adapters(&mut layout, family.decoder.head, spec)?;
        Ok(self.grow(family, spec.clone(), |master| {
            let num_base = master.len();
            let mut weights = layout.build_on(master);
            debug_assert_eq!(weights.adapter_range().start, num_base);
            weights.fill_adapters(seed);
            weights
        }))
    }

    /// Names of the modules that have adapters, in memory order.
    pub fn adapted_modules(&self) -> Vec<&str> {
        self.parameters().iter().filter_map(|info| info.name.strip_suffix(".lora_A.weight")).collect()
    }

    /// Adds the adapters into the matrices that they stand beside, and forgets them: a plain model again, with the
    /// same function up to rounding.
    pub fn merged(mut self) -> Result<Policy, ModelError> {
        if self.adapters().is_none() {
            return Ok(self);
        }
        self.weights_mut().merge_adapters();
        let mut layout = Layout::default();
        let family = Family::declare(&mut layout, Path::new("config.json"), self.config())?;
        let num_base = self.weights().adapter_range().start;
        Ok(self.shrink(family, |mut master| {
            master.truncate(num_base);
            layout.build_on(master)
        }))
    }
}

fn wrong(problem: String) -> ModelError {
    ModelError::Config {
        path: "lora".into(),
        problem,
        hint:
            "targets are names of modules, for instance q_proj, v_proj, gate_proj; rank is at least 1, dropout below 1"
                .into(),
    }
}

/// Declares the adapters behind everything that a family has declared. `head` gets none: it is multiplied apart from
/// the tape, in chunks of the vocabulary.
pub(crate) fn declare_adapters(layout: &mut Layout, head: LinearId, spec: &AdapterSpec) -> Result<(), ModelError> {
    let mut met = vec![false; spec.targets.len()];
    let mut found = 0;
    for (id, part) in layout.matrices() {
        if id == head || !spec.parts.includes(part) {
            continue;
        }
        for (name, first, rows) in layout.stacked(id) {
            let module = name.trim_end_matches(".weight");
            if !spec.wants(module, part) {
                continue;
            }
            for (met, target) in met.iter_mut().zip(&spec.targets) {
                *met |= module.ends_with(target.as_str());
            }
            layout.adapter(id, module, first, rows, spec.rank, spec.scale());
            found += 1;
        }
    }
    if let Some(unmet) = met.iter().position(|met| !met) {
        let target = &spec.targets[unmet];
        return Err(wrong(format!("no matrix is called {target:?} in the chosen parts of the model")));
    }
    if found == 0 {
        return Err(wrong("the chosen parts of the model have no matrices in blocks".into()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_whole_names_or_their_ends() {
        let spec = |targets: &[&str]| AdapterSpec {
            rank: 1,
            alpha: 1.0,
            rank_stabilised: false,
            dropout: 0.0,
            targets: targets.iter().map(|target| target.to_string()).collect(),
            parts: Trainable::ALL,
        };
        let module = "model.text_model.layers.0.self_attn.q_proj";
        for target in ["q_proj", "self_attn.q_proj", module] {
            assert!(spec(&[target]).wants(module, Part::Language), "{target}");
        }
        for target in ["proj", "layers", "k_proj", "text_model"] {
            assert!(!spec(&[target]).wants(module, Part::Language), "{target}");
        }
        assert!(spec(&[]).wants(module, Part::Language) && spec(&[]).wants("visual.blocks.11.mlp.fc1", Part::Vision));
        assert!(!spec(&[]).wants("visual.merger.mlp.0", Part::Vision));
        assert!(spec(&[]).wants("model.connector.modality_projection.proj", Part::Connector));
    }
}

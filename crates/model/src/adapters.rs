//! Puts low-rank adapters beside the matrices of a loaded model, so that only they learn.
//! Knows names of modules; the arithmetic lives in `linear`. Cost: a copy of the flat parameter buffer, once.
//!
//! LoRA: Hu et al. 2021, section 4.1. rsLoRA: Kalajdzievski 2023.

use std::path::Path;

use crate::error::ModelError;
use crate::policy::{Family, Policy};
use crate::weights::{Layout, Trainable};

/// Which matrices get adapters, and how large.
#[derive(Clone, Debug, PartialEq)]
pub struct AdapterSpec {
    /// Inner width. 8 to 64; more learns more and costs memory in proportion.
    pub rank: usize,
    /// The adapter's output is scaled by `alpha / rank` (or `alpha / sqrt(rank)`); twice the rank is usual.
    pub alpha: f32,
    /// Scale by the square root of the rank: keeps large ranks from learning too slowly.
    pub rank_stabilised: bool,
    /// Last names of modules (`q_proj`, `down_proj`); empty means every matrix inside the blocks.
    pub targets: Vec<String>,
    /// Parts of the model that get adapters.
    pub parts: Trainable,
}

impl Policy {
    /// The same model with adapters that start as nothing: the function does not change until they learn.
    pub fn with_adapters(self, spec: &AdapterSpec, seed: u64) -> Result<Policy, ModelError> {
        let mut layout = Layout::default();
        let family = Family::declare(&mut layout, Path::new("config.json"), self.config())?;
        let root = if spec.rank_stabilised { (spec.rank as f32).sqrt() } else { spec.rank as f32 };
        let mut found = 0;
        for (id, part) in layout.matrices() {
            if !spec.parts.includes(part) {
                continue;
            }
            for (name, first, rows) in layout.stacked(id) {
                let module = name.trim_end_matches(".weight");
                let last = module.rsplit('.').next().unwrap_or(module);
                let wanted = match spec.targets.as_slice() {
                    [] => module.contains("layers."),
                    targets => targets.iter().any(|target| target == last),
                };
                if wanted {
                    layout.adapter(id, module, first, rows, spec.rank, spec.alpha / root);
                    found += 1;
                }
            }
        }
        if found == 0 || spec.rank == 0 {
            return Err(ModelError::Config {
                path: "config.json".into(),
                problem: format!("no matrix is called {:?} in the chosen parts, or the rank is 0", spec.targets),
                hint: "targets are last names of modules, for instance q_proj, v_proj, gate_proj; rank is at least 1"
                    .into(),
            });
        }
        let mut weights = layout.build();
        weights.fill_fresh(seed);
        let base = self.weights().infos();
        assert!(base.iter().zip(weights.infos()).all(|(a, b)| a.offset == b.offset), "adapters come after the base");
        let num_base = self.master().len();
        weights.master_mut()[..num_base].copy_from_slice(self.master());
        Ok(self.replace(family, weights))
    }
}

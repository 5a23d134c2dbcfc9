//! The CUDA C sources and the kernels in them. Every source is compiled by itself, behind the prelude.
//! Knows names; compiles nothing. Cost: none.

/// One source, as compiled: attention on tensor cores is compiled once for each width of a head.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Module {
    /// Conversions, sums, columns, dropout.
    Elementwise,
    /// Norms, layer scale, sums over rows.
    Norm,
    /// Rows that move, rotation, folding, the store of keys and values.
    Rows,
    /// Activations.
    Activation,
    /// AdamW and the norm of the gradient.
    Optimiser,
    /// The head behind its product, and drawing.
    Head,
    /// Attention, a block a row.
    AttentionRows,
    /// Attention on tensor cores for heads of this width.
    AttentionTiles(u32),
}

/// Widths that [`Module::AttentionTiles`] is compiled for; narrower heads are filled up to the next.
pub const TILE_HEADS: [u32; 7] = [16, 32, 48, 64, 80, 96, 128];

const PRELUDE: &str = include_str!("source/prelude.cu");

impl Module {
    /// All of them.
    pub fn all() -> Vec<Module> {
        let mut all = vec![
            Module::Elementwise,
            Module::Norm,
            Module::Rows,
            Module::Activation,
            Module::Optimiser,
            Module::Head,
            Module::AttentionRows,
        ];
        all.extend(TILE_HEADS.map(Module::AttentionTiles));
        all
    }

    /// Name, unique among modules.
    pub fn name(self) -> String {
        match self {
            Module::Elementwise => "elementwise".into(),
            Module::Norm => "norm".into(),
            Module::Rows => "rows".into(),
            Module::Activation => "activation".into(),
            Module::Optimiser => "optimiser".into(),
            Module::Head => "head".into(),
            Module::AttentionRows => "attention_rows".into(),
            Module::AttentionTiles(head) => format!("attention_tiles_{head}"),
        }
    }

    fn body(self) -> &'static str {
        match self {
            Module::Elementwise => include_str!("source/elementwise.cu"),
            Module::Norm => include_str!("source/norm.cu"),
            Module::Rows => include_str!("source/rows.cu"),
            Module::Activation => include_str!("source/activation.cu"),
            Module::Optimiser => include_str!("source/optimiser.cu"),
            Module::Head => include_str!("source/head.cu"),
            Module::AttentionRows => include_str!("source/attention_rows.cu"),
            Module::AttentionTiles(_) => include_str!("source/attention_tiles.cu"),
        }
    }

    /// What the compiler gets.
    pub fn source(self) -> String {
        let define = match self {
            Module::AttentionTiles(head) => format!("#define HEAD {head}\n"),
            _ => String::new(),
        };
        format!("{define}{PRELUDE}\n{}", self.body())
    }

    /// Names of the kernels, read from the source.
    pub fn kernels(self) -> Vec<String> {
        let names = self.body().lines().filter_map(|line| {
            let rest = line.strip_prefix("KERNEL ")?;
            let name = match rest.strip_prefix("NAMED(") {
                Some(named) => named.split(',').next()?.to_string() + &self.head()?.to_string(),
                None => rest.split('(').next()?.to_string(),
            };
            Some(name)
        });
        names.collect()
    }

    fn head(self) -> Option<u32> {
        match self {
            Module::AttentionTiles(head) => Some(head),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kernel_has_a_name_of_its_own() {
        let mut names: Vec<String> = Module::all().into_iter().flat_map(Module::kernels).collect();
        assert!(names.contains(&"attention_tiles_keys_128".to_string()) && names.contains(&"pick".to_string()));
        let count = names.len();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), count);
    }
}

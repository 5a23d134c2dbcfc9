//! Opens a model for the commands that only ask it something.

use std::path::Path;

use clap::ValueEnum;
use foveate_kernels::isa;
use foveate_model::{DeviceChoice, Policy, Precision};
use foveate_train::prompt::{ImageLimits, Prompter};
use foveate_train::source;

/// Which model, and in which numbers.
#[derive(clap::Args)]
pub struct ModelArgs {
    /// A folder in Hugging Face layout, a hub id (ORG/NAME), a PEFT adapter, or the name of a built-in model
    #[arg(long)]
    pub model: String,
    /// Where and how it computes.
    #[command(flatten)]
    pub compute: ComputeArgs,
    /// Limits on pictures.
    #[command(flatten)]
    pub images: ImageArgs,
}

impl ModelArgs {
    /// The model as it is.
    pub fn named(model: String) -> Self {
        Self { model, compute: ComputeArgs::default(), images: ImageArgs::default() }
    }
}

/// Where a model computes, and in which numbers: the same words in every command.
#[derive(clap::Args, Clone, Copy, Default)]
pub struct ComputeArgs {
    /// Number type of matrix operands
    #[arg(long)]
    pub precision: Option<PrecisionArg>,
    /// Where it computes: auto, cpu or cuda:0
    #[arg(long, default_value = "auto")]
    pub device: DeviceChoice,
}

/// The limits of `[images]` in recipes.
#[derive(clap::Args, Clone, Default)]
pub struct ImageArgs {
    /// Qwen-VL: enlarge smaller pictures to so many pixels
    #[arg(long, value_name = "N")]
    min_pixels: Option<u64>,
    /// Qwen-VL: shrink larger pictures to so many pixels
    #[arg(long, value_name = "N")]
    max_pixels: Option<u64>,
    /// SmolVLM, Idefics3: scale the longer side of pictures to so many pixels
    #[arg(long, value_name = "N")]
    longest_edge: Option<u32>,
    /// SmolVLM, Idefics3: do not cut pictures into tiles
    #[arg(long)]
    no_split: bool,
    /// InternVL: most tiles of a picture
    #[arg(long, value_name = "N")]
    max_tiles: Option<usize>,
}

impl ImageArgs {
    fn limits(&self) -> ImageLimits {
        ImageLimits {
            min_pixels: self.min_pixels,
            max_pixels: self.max_pixels,
            longest_edge: self.longest_edge,
            split: self.no_split.then_some(false),
            max_tiles: self.max_tiles,
        }
    }
}

/// The same as in recipes.
#[derive(Clone, Copy, ValueEnum)]
pub enum PrecisionArg {
    /// bf16 where the machine multiplies it fast, else f32
    Auto,
    /// Everything in f32: the oracle
    F32,
    /// bf16 operands, f32 sums
    Bf16,
}

impl From<PrecisionArg> for Precision {
    fn from(precision: PrecisionArg) -> Self {
        match precision {
            PrecisionArg::Auto => Precision::Auto,
            PrecisionArg::F32 => Precision::F32,
            PrecisionArg::Bf16 => Precision::Bf16,
        }
    }
}

/// Loads model and prompter. `usual` is the precision if none was asked for.
pub fn open(args: &ModelArgs, usual: Precision) -> anyhow::Result<(Policy, Prompter)> {
    isa::check()?;
    let precision = args.compute.precision.map_or(usual, Precision::from);
    let source = source::find(Path::new(""), &args.model)?.with_images(&args.images.limits());
    // Asked first: a GPU that is not there should not cost the reading of weights.
    args.compute.device.open()?;
    let policy = source.load(precision)?.on(args.compute.device, precision)?;
    let prompter = source.prompter(&policy)?;
    Ok((policy, prompter))
}

//! `foveate model inspect`: what a checkpoint is, in numbers.

use std::path::Path;

use foveate_model::Precision;
use foveate_train::source;

use crate::load::{self, ModelArgs};
use crate::plan;

/// Arguments of `foveate model inspect`.
#[derive(clap::Args)]
pub struct Args {
    /// A folder in Hugging Face layout, a folder with a PEFT adapter, or the name of a built-in model
    model: String,
    /// List every tensor
    #[arg(long)]
    tensors: bool,
}

/// Prints a short table.
pub fn run(args: Args) -> anyhow::Result<()> {
    let (policy, prompter) = load::open(&ModelArgs::named(args.model.clone()), Precision::F32)?;
    let about = policy.description();
    let line = |name: &str, value: String| println!("{name:<22}{value}");
    line("family", about.family.to_string());
    let millions = |count: usize| format!("{:.2} M", count as f64 / 1e6);
    line("parameters", millions(about.num_parameters.iter().sum()));
    for (name, count) in ["  vision", "  connector", "  language"].iter().zip(about.num_parameters) {
        line(name, millions(count));
    }
    line("decoder", format!("{} layers, width {}", about.num_layers, about.width));
    line("vocabulary", about.vocabulary.to_string());
    line("positions", about.max_positions.to_string());
    match (about.tile_side, about.pixels_per_feature) {
        (Some(side), _) => line("tile", format!("{side} x {side} pixels, {} tokens", about.features_per_tile)),
        (None, Some(side)) => line("pictures", format!("of any size, a token for {side} x {side} pixels")),
        (None, None) => line("pictures", "none: it reads text".into()),
    }
    let token = |id: &u32| prompter.codec().token(*id).unwrap_or_default();
    line("ends an answer", prompter.end_ids().iter().map(token).collect::<Vec<_>>().join(" "));
    line("never sampled", format!("{} ids", prompter.banned_ids().len()));
    println!("memory");
    plan::of_model(&source::find(Path::new(""), &args.model)?.folder, Precision::Auto, 4096)?;
    if args.tensors {
        for info in policy.parameters() {
            println!("{:?} {} {:?}", info.part, info.name, info.shape);
        }
    }
    Ok(())
}

//! What the image towers of Qwen2-VL, Qwen2.5-VL and Qwen3-VL share: pictures of any size cut into patches, rotary
//! angles by row and column, attention within pictures.
//!
//! Quirks: the patches of one feature (2 x 2) lie one after the other, so that merging them is a matter of reading rows
//! four at a time; a still picture is a film of two equal frames, and a patch holds both: colour, frame, line, column;
//! the first half of a head's angles follows the row, the second the column.

use std::rc::Rc;
use std::sync::Arc;

use foveate_kernels::cpu::activation::Activation;
use foveate_kernels::cpu::attention::Heads;
use foveate_kernels::cpu::rope::RopeTable;
use foveate_kernels::element::Element;
use rayon::prelude::*;

use crate::batch::{Segment, Tile};
use crate::config::Keys;
use crate::error::ModelError;
use crate::families::VisionSizes;
use crate::tape::{Attend, Tape, Var, typed};
use crate::weights::{Fill, Layout, LinearId, Naming, ParamId, Part};

/// Names as `transformers` 5 spells them, and as the published Qwen2-VL and Qwen2.5-VL checkpoints do.
pub const NAMINGS: [Naming; 2] = [&[], &[("model.visual.", "visual."), ("model.language_model.", "model.")]];
/// Added to the variance or mean square in all three towers, whatever the configuration says.
pub const EPS: f32 = 1e-6;

/// Sizes of patches and heads.
#[derive(Clone, Debug)]
pub struct PatchConfig {
    /// Width of the residual stream.
    pub width: usize,
    /// Heads.
    pub num_heads: usize,
    /// Number of blocks.
    pub num_layers: usize,
    /// Side of a patch in pixels.
    pub side: usize,
    /// Side of a feature in patches.
    pub merge: usize,
    /// Frames of a patch.
    pub frames: usize,
    /// Base of the rotary frequencies.
    pub theta: f64,
}

/// Patches of some pictures in the order in which the tower reads them.
pub struct Patches {
    /// `[patches, 3 * frames * side * side]` as operand.
    pub columns: Var,
    /// Rotary angles of every patch.
    pub table: Rc<RopeTable>,
    /// One for each picture.
    pub pictures: Rc<[Segment]>,
    /// Row of patches of each packed patch, counted in its own picture.
    pub rows: Vec<u32>,
    /// Column likewise.
    pub patch_columns: Vec<u32>,
}

impl PatchConfig {
    /// Reads a `vision_config`; `width` is the key that holds the tower's width.
    pub fn read(vision: &Keys, width: &str, defaults: PatchConfig) -> Result<Self, ModelError> {
        let config = Self {
            width: vision.size(width, defaults.width)?,
            num_heads: vision.size("num_heads", defaults.num_heads)?,
            num_layers: vision.size("depth", defaults.num_layers)?,
            side: vision.size("patch_size", defaults.side)?,
            merge: vision.size("spatial_merge_size", defaults.merge)?,
            frames: vision.size("temporal_patch_size", defaults.frames)?,
            theta: vision.section("rope_parameters").number("rope_theta", defaults.theta)?,
        };
        // Old configurations say in_chans.
        let channels = vision.size("in_channels", vision.size("in_chans", 3)?)?;
        if channels != 3 || !config.width.is_multiple_of(4 * config.num_heads) {
            return Err(vision.problem(
                format!(
                    "width {} and {} heads do not fit together, or channels are not 3",
                    config.width, config.num_heads
                ),
                "the width must be a multiple of four times the number of heads",
            ));
        }
        Ok(config)
    }

    /// Values of one patch.
    pub fn patch_values(&self) -> usize {
        3 * self.frames * self.side * self.side
    }

    /// Width of a feature before it is mapped into the decoder.
    pub fn merged_width(&self) -> usize {
        self.width * self.merge * self.merge
    }

    /// Heads of the tower.
    pub fn heads(&self) -> Heads {
        let head_dim = self.width / self.num_heads;
        Heads {
            num_heads: self.num_heads,
            num_kv_heads: self.num_heads,
            head_dim,
            scale: 1.0 / (head_dim as f32).sqrt(),
            causal: false,
        }
    }

    /// Rows and columns of features of a picture.
    pub fn grid(&self, tile: &Tile) -> (u32, u32) {
        let side = (self.side * self.merge) as u32;
        (tile.height / side, tile.width / side)
    }

    /// Features of some pictures.
    pub fn num_features(&self, tiles: &[Arc<Tile>]) -> Result<usize, String> {
        let side = (self.side * self.merge) as u32;
        let fits = |pixels: u32| pixels > 0 && pixels.is_multiple_of(side);
        if let Some(tile) = tiles.iter().find(|tile| !fits(tile.height) || !fits(tile.width)) {
            return Err(format!(
                "a picture is {} x {} pixels, sides must be multiples of {side}",
                tile.width, tile.height
            ));
        }
        Ok(tiles.iter().map(|tile| self.grid(tile)).map(|(rows, columns)| (rows * columns) as usize).sum())
    }

    /// For descriptions.
    pub fn sizes(&self) -> VisionSizes {
        VisionSizes { tile_side: None, features_per_tile: 0, pixels_per_feature: self.side * self.merge }
    }

    /// The convolution that reads patches.
    pub fn declare_patch(&self, layout: &mut Layout, bias: bool) -> LinearId {
        let shape = vec![self.width, 3, self.frames, self.side, self.side];
        let names = [("model.visual.patch_embed.proj".to_string(), shape)];
        layout.linear_shaped(&names, self.patch_values(), bias, Part::Vision, 1.0)
    }

    /// Cuts pictures into patches. `units` lists row and column of every feature of each picture, in the order in which
    /// their patches are wanted.
    pub fn cut(&self, tape: &mut Tape, tiles: &[Arc<Tile>], units: &[Vec<(u32, u32)>]) -> Patches {
        let merge = self.merge as u32;
        let mut places: Vec<(&Tile, u32, u32)> = Vec::new();
        let mut pictures = Vec::with_capacity(tiles.len());
        for (tile, units) in tiles.iter().zip(units) {
            let start = places.len() as u32;
            for (row, column) in units {
                let patches = (0..merge).flat_map(|y| (0..merge).map(move |x| (row * merge + y, column * merge + x)));
                places.extend(patches.map(|(y, x)| (&**tile, y, x)));
            }
            pictures.push(Segment { start, len: places.len() as u32 - start, parent: None });
        }
        let values = self.patch_values();
        let operand = tape.operand();
        let mut columns = tape.arena().take(operand, places.len() * values);
        typed!(&mut columns, columns => {
            columns.par_chunks_exact_mut(values).zip(&places).for_each(|(out, (tile, y, x))| self.fill(tile, *y, *x, out))
        });
        let rows: Vec<u32> = places.iter().map(|place| place.1).collect();
        let patch_columns: Vec<u32> = places.iter().map(|place| place.2).collect();
        let head_dim = self.width / self.num_heads;
        let count = head_dim / 4;
        // Angles of one axis fill half of a head's pairs.
        let once = (0..count).map(|i| 1.0 / self.theta.powf((2 * i) as f64 / (head_dim / 2) as f64));
        let frequencies: Vec<f32> = once.clone().chain(once).map(|frequency| frequency as f32).collect();
        let axis_of: Vec<u8> = (0..2 * count).map(|i| (i >= count) as u8).collect();
        let table = RopeTable::axes(&[&rows, &patch_columns], &axis_of, head_dim, &frequencies);
        Patches {
            columns: tape.constant(columns),
            table: Rc::new(table),
            pictures: pictures.into(),
            rows,
            patch_columns,
        }
    }

    fn fill<E: Element>(&self, tile: &Tile, y: u32, x: u32, out: &mut [E]) {
        let (side, width, height) = (self.side, tile.width as usize, tile.height as usize);
        for (line, out) in out.chunks_exact_mut(side).enumerate() {
            let (colour, inside) = (line / (self.frames * side), line % side);
            let from = (colour * height + y as usize * side + inside) * width + x as usize * side;
            out.iter_mut().zip(&tile.pixels[from..from + side]).for_each(|(out, value)| *out = E::from_f32(*value));
        }
    }

    /// Row and column of every feature, from the top left on.
    pub fn in_order(&self, tile: &Tile) -> Vec<(u32, u32)> {
        let (rows, columns) = self.grid(tile);
        (0..rows).flat_map(|row| (0..columns).map(move |column| (row, column))).collect()
    }
}

/// What a block's feed-forward part is called and how it works.
#[derive(Clone, Copy)]
pub enum FeedForward {
    /// Up, activation, down; the names of both matrices.
    Plain([&'static str; 2]),
    /// Gate and up side by side, down; norms are root-mean-square then.
    Gated,
}

/// One block of the tower.
pub struct Block {
    norm_in: Norm,
    qkv: LinearId,
    out: LinearId,
    norm_mid: Norm,
    up: LinearId,
    down: LinearId,
    activation: Activation,
    /// Width of the gated feed-forward part; 0 for a plain one.
    gated: usize,
}

impl PatchConfig {
    /// Declares all blocks; `hidden` is the width of their feed-forward part.
    pub fn declare_blocks(
        &self,
        layout: &mut Layout,
        hidden: usize,
        activation: Activation,
        feed_forward: FeedForward,
    ) -> Vec<Rc<Block>> {
        let (width, part) = (self.width, Part::Vision);
        let gain_out = 1.0 / ((2 * self.num_layers) as f32).sqrt();
        let declare = |i| {
            let name = |tail: &str| format!("model.visual.blocks.{i}.{tail}");
            let (ups, down, gated) = match feed_forward {
                FeedForward::Plain([up, down]) => (vec![(name(up), hidden)], name(down), 0),
                FeedForward::Gated => {
                    let both = ["mlp.gate_proj", "mlp.up_proj"].map(|tail| (name(tail), hidden));
                    (both.to_vec(), name("mlp.down_proj"), hidden)
                }
            };
            let rms = gated > 0;
            Rc::new(Block {
                norm_in: Norm::declare(layout, &name("norm1"), width, rms, part),
                qkv: layout.linear(&[(name("attn.qkv"), 3 * width)], width, true, part, 1.0),
                out: layout.linear(&[(name("attn.proj"), width)], width, true, part, gain_out),
                norm_mid: Norm::declare(layout, &name("norm2"), width, rms, part),
                up: layout.linear(&ups, width, true, part, 1.0),
                down: layout.linear(&[(down, width)], hidden, true, part, gain_out),
                activation,
                gated,
            })
        };
        (0..self.num_layers).map(declare).collect()
    }

    /// One block over the patches; `within` are the segments that see each other.
    pub fn block<'w>(
        &self,
        tape: &mut Tape<'w>,
        block: &Rc<Block>,
        patches: &Patches,
        within: &Rc<[Segment]>,
        x: Var,
    ) -> Var {
        let (block, table, attend) = (block.clone(), patches.table.clone(), Attend::Packed(within.clone()));
        let (heads, width) = (self.heads(), self.width);
        tape.block(x, move |tape, x| {
            let h = block.norm_in.apply(tape, x);
            let qkv = tape.linear(h, block.qkv);
            let qkv = tape.rope(qkv, 3 * width, 2 * heads.num_heads, heads.head_dim, table.clone());
            let attended = tape.attention(qkv, heads, &attend, 0);
            let x = tape.linear_add(attended, block.out, x);
            let h = block.norm_mid.apply(tape, x);
            let h = tape.linear(h, block.up);
            let h = match block.gated {
                0 => tape.activation(h, block.activation),
                hidden => tape.gated(h, block.activation, hidden),
            };
            tape.linear_add(h, block.down, x)
        })
    }
}

/// A layer norm's weight and bias, or a root-mean-square norm's weight.
#[derive(Clone, Copy)]
pub enum Norm {
    /// With mean and bias.
    Layer(ParamId, ParamId),
    /// Without.
    Rms(ParamId),
}

impl Norm {
    /// Declares `name.weight` and, for layer norms, `name.bias`.
    pub fn declare(layout: &mut Layout, name: &str, width: usize, rms: bool, part: Part) -> Norm {
        let weight = layout.tensor(&format!("{name}.weight"), &[width], part, false, Fill::Constant(1.0));
        match rms {
            true => Norm::Rms(weight),
            false => {
                Norm::Layer(weight, layout.tensor(&format!("{name}.bias"), &[width], part, false, Fill::Constant(0.0)))
            }
        }
    }

    /// The norm of an f32 stream, as operand.
    pub fn apply(self, tape: &mut Tape, x: Var) -> Var {
        match self {
            Norm::Layer(weight, bias) => tape.layer_norm(x, weight, bias, EPS),
            Norm::Rms(weight) => tape.rms_norm(x, weight, EPS),
        }
    }
}

/// Norm and two products that turn the patches of a feature into one row of the decoder's width.
pub struct Merger {
    norm: Norm,
    up: LinearId,
    down: LinearId,
}

impl Merger {
    /// Declares it. `over` is the width that the norm sees: one patch, or all patches of a feature.
    pub fn declare(
        layout: &mut Layout,
        names: [&str; 3],
        config: &PatchConfig,
        over: usize,
        rms: bool,
        width_out: usize,
    ) -> Self {
        let part = Part::Connector;
        let inner = config.merged_width();
        let norm = Norm::declare(layout, names[0], over, rms, part);
        let up = layout.linear(&[(names[1].to_string(), inner)], inner, true, part, 1.0);
        let down = layout.linear(&[(names[2].to_string(), width_out)], inner, true, part, 1.0);
        Self { norm, up, down }
    }

    /// Patches to features in f32.
    pub fn forward(&self, tape: &mut Tape, x: Var) -> Var {
        let h = self.norm.apply(tape, x);
        let h = tape.linear(h, self.up);
        let h = tape.activation(h, Activation::GeluErf);
        tape.linear_f32(h, self.down)
    }
}

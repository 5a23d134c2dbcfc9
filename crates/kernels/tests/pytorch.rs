//! Every op, forward and backward, against the numbers that PyTorch gave (`fixtures/ops`, made by `tools/`).
//! f32 throughout. Cost: milliseconds.

use foveate_kernels::cpu::activation::{Activation, activation, activation_backward, gated, gated_backward};
use foveate_kernels::cpu::adamw::{adamw_step, sum_of_squares};
use foveate_kernels::cpu::attention::{Heads, Rows, attention, attention_backward};
use foveate_kernels::cpu::embed::{embed, embed_backward};
use foveate_kernels::cpu::interpolate::{Interpolation, interpolate_positions, interpolate_positions_backward};
use foveate_kernels::cpu::layer_scale::{layer_scale, layer_scale_backward};
use foveate_kernels::cpu::norm::{layer_norm, layer_norm_backward, rms_norm, rms_norm_backward};
use foveate_kernels::cpu::pixel_shuffle::{im2col, pixel_shuffle, pixel_shuffle_backward};
use foveate_kernels::cpu::rope::{RopeTable, rope};
use foveate_kernels::map::FileMap;
use foveate_kernels::segment::{Queries, Segment};
use safetensors::SafeTensors;

/// One fixture file.
struct Fixture {
    name: String,
    bytes: FileMap,
}

impl Fixture {
    fn open(name: &str) -> Self {
        let path = format!("{}/../../fixtures/ops/{name}.safetensors", env!("CARGO_MANIFEST_DIR"));
        Self { name: name.to_owned(), bytes: FileMap::open(path).expect("the fixture is committed") }
    }

    fn words(&self, tensor: &str) -> Vec<[u8; 4]> {
        let file = SafeTensors::deserialize(&self.bytes).expect("fixtures are valid");
        let view = file.tensor(tensor).unwrap_or_else(|error| panic!("{}: {tensor}: {error}", self.name));
        view.data().chunks_exact(4).map(|word| word.try_into().expect("chunks of four")).collect()
    }

    fn floats(&self, tensor: &str) -> Vec<f32> {
        self.words(tensor).into_iter().map(f32::from_le_bytes).collect()
    }

    fn integers(&self, tensor: &str) -> Vec<i32> {
        self.words(tensor).into_iter().map(i32::from_le_bytes).collect()
    }

    /// Holds `have` against the tensor: `tolerance` relative to the largest element.
    fn check(&self, tensor: &str, have: &[f32], tolerance: f32) {
        let want = self.floats(tensor);
        assert_eq!(have.len(), want.len(), "{}: length of {tensor}", self.name);
        let scale = want.iter().fold(1e-3f32, |most, value| most.max(value.abs()));
        for (index, (have, want)) in have.iter().zip(&want).enumerate() {
            let fine = (have - want).abs() <= tolerance * scale;
            assert!(fine, "{}: {tensor}[{index}] is {have}, PyTorch has {want}", self.name);
        }
    }
}

#[test]
fn norms() {
    let file = Fixture::open("rms_norm");
    let (x, w, dy) = (file.floats("x"), file.floats("w"), file.floats("dy"));
    let rows = x.len() / w.len();
    let (mut y, mut rstd) = (vec![0f32; x.len()], vec![0.0; rows]);
    rms_norm(&x, &w, 1e-5, &mut y, &mut rstd);
    file.check("y", &y, 1e-6);
    let (mut dx, mut dw) = (vec![0.0; x.len()], vec![0.0; w.len()]);
    rms_norm_backward(&dy, &x, &w, &rstd, &mut dx, Some(&mut dw));
    file.check("dx", &dx, 1e-6);
    file.check("dw", &dw, 1e-6);

    let file = Fixture::open("layer_norm");
    let (x, w, b, dy) = (file.floats("x"), file.floats("w"), file.floats("b"), file.floats("dy"));
    let (mut y, mut mean, mut rstd) = (vec![0f32; x.len()], vec![0.0; rows], vec![0.0; rows]);
    layer_norm(&x, &w, &b, 1e-6, &mut y, &mut mean, &mut rstd);
    file.check("y", &y, 1e-6);
    let (mut dx, mut dw, mut db) = (vec![0.0; x.len()], vec![0.0; w.len()], vec![0.0; w.len()]);
    layer_norm_backward(&dy, &x, &w, &mean, &rstd, &mut dx, Some(&mut dw), Some(&mut db));
    file.check("dx", &dx, 1e-6);
    file.check("dw", &dw, 1e-6);
    file.check("db", &db, 1e-6);
}

#[test]
fn layer_scales() {
    let file = Fixture::open("layer_scale");
    let (branch, scale, dy) = (file.floats("branch"), file.floats("scale"), file.floats("dy"));
    let mut y = file.floats("stream");
    layer_scale(&branch, &scale, &mut y);
    file.check("y", &y, 1e-6);
    file.check("dstream", &dy, 0.0);
    let (mut d_branch, mut d_scale) = (vec![0f32; branch.len()], vec![0.0; scale.len()]);
    layer_scale_backward(&dy, &branch, &scale, &mut d_branch, Some(&mut d_scale));
    file.check("dbranch", &d_branch, 1e-6);
    file.check("dscale", &d_scale, 1e-6);
}

#[test]
fn activations() {
    for (name, kind) in [
        ("gelu_erf", Activation::GeluErf),
        ("gelu_tanh", Activation::GeluTanh),
        ("quick_gelu", Activation::QuickGelu),
        ("relu", Activation::Relu),
        ("silu", Activation::Silu),
    ] {
        let file = Fixture::open(name);
        let (x, dy) = (file.floats("input"), file.floats("dy"));
        let (mut y, mut dx) = (vec![0f32; x.len()], vec![0f32; x.len()]);
        activation(kind, &x, &mut y);
        file.check("y", &y, 1e-6);
        activation_backward(kind, &dy, &x, &mut dx);
        file.check("dinput", &dx, 1e-6);
    }
    let file = Fixture::open("swiglu");
    let (gate_up, dy) = (file.floats("gate_up"), file.floats("dy"));
    let (mut y, mut d_gate_up) = (vec![0f32; dy.len()], vec![0f32; gate_up.len()]);
    gated(Activation::Silu, &gate_up, 24, &mut y);
    file.check("y", &y, 1e-6);
    gated_backward(Activation::Silu, &dy, &gate_up, 24, &mut d_gate_up);
    file.check("dgate_up", &d_gate_up, 1e-6);
}

#[test]
fn rotary_embedding() {
    for name in ["rope", "rope_llama3"] {
        let file = Fixture::open(name);
        let positions: Vec<u32> = file.integers("positions").iter().map(|&position| position as u32).collect();
        let table = RopeTable::one_axis(&positions, 16, &file.floats("inv_freq"));
        let mut x = file.floats("x");
        rope(&mut x, 48, 0, 3, 16, &table, false);
        file.check("y", &x, 1e-6);
        let mut dy = file.floats("dy");
        rope(&mut dy, 48, 0, 3, 16, &table, true);
        file.check("dx", &dy, 1e-6);
    }
}

#[test]
fn embedding() {
    let file = Fixture::open("embed");
    let ids: Vec<u32> = file.integers("ids").iter().map(|&id| id as u32).collect();
    let (table, dy) = (file.floats("table"), file.floats("dy"));
    let (mut y, mut dtable) = (vec![0.0; dy.len()], vec![0.0; table.len()]);
    embed(&ids, &table, 6, &mut y);
    file.check("y", &y, 0.0);
    embed_backward(&ids, &dy, 6, &mut dtable);
    file.check("dtable", &dtable, 1e-6);
}

#[test]
fn folding_and_cutting() {
    for (factor, side) in [(2, 4), (3, 6), (4, 8)] {
        let file = Fixture::open(&format!("pixel_shuffle_{factor}"));
        let x = file.floats("x");
        let (mut y, mut dx) = (vec![0f32; x.len()], vec![0f32; x.len()]);
        pixel_shuffle(&x, 2, side, side, 6, factor, &mut y);
        file.check("y", &y, 0.0);
        pixel_shuffle_backward(&file.floats("dy"), 2, side, side, 6, factor, &mut dx);
        file.check("dx", &dx, 0.0);
    }
    let file = Fixture::open("patch_embedding");
    let (pixels, w, b) = (file.floats("pixels"), file.floats("w"), file.floats("b"));
    let mut patches = vec![0f32; pixels.len()];
    im2col(&pixels, 3, 16, 24, 8, &mut patches);
    let product: Vec<f32> = patches
        .chunks_exact(192)
        .flat_map(|patch| {
            w.chunks_exact(192).zip(&b).map(|(w, b)| b + patch.iter().zip(w).map(|(a, b)| a * b).sum::<f32>())
        })
        .collect();
    file.check("y", &product, 1e-5);
}

#[test]
fn position_tables() {
    for (name, kind) in [
        ("bilinear", Interpolation::Bilinear),
        ("bicubic", Interpolation::Bicubic),
        ("bilinear_corners", Interpolation::BilinearLinspace),
    ] {
        for [h0, w0, h, w] in [[3, 4, 1, 11], [4, 4, 6, 9], [5, 7, 3, 2], [6, 6, 6, 6]] {
            let file = Fixture::open(&format!("interpolate_{name}_{h0}x{w0}_to_{h}x{w}"));
            let (table, dy) = (file.floats("table"), file.floats("dy"));
            let (mut y, mut dtable) = (vec![0.0; dy.len()], vec![0.0; table.len()]);
            interpolate_positions(&table, h0, w0, h, w, 5, kind, &mut y);
            file.check("y", &y, 2e-6);
            interpolate_positions_backward(&dy, h0, w0, h, w, 5, kind, &mut dtable);
            file.check("dtable", &dtable, 2e-6);
        }
    }
}

#[test]
fn optimiser() {
    let file = Fixture::open("adamw");
    let mut p = file.floats("p.0");
    let (mut m, mut v) = (vec![0.0; p.len()], vec![0.0; p.len()]);
    for step in 1..=5 {
        let g = file.floats(&format!("g.{step}"));
        adamw_step(&mut p, &g, &mut m, &mut v, 0.003, 0.9, 0.95, 1e-8, 0.1, step, 1.0);
        file.check(&format!("p.{step}"), &p, 1e-6);
        file.check(&format!("m.{step}"), &m, 1e-6);
        file.check(&format!("v.{step}"), &v, 1e-6);
    }
    let file = Fixture::open("clip");
    let squares: f64 = (0..3).map(|index| sum_of_squares(&file.floats(&format!("g.{index}")))).sum();
    file.check("norm", &[squares.sqrt() as f32], 1e-6);
}

#[test]
fn attention_over_segments() {
    for (name, causal) in [
        ("attention_causal", true),
        ("attention_full", false),
        ("attention_shared_prefix", true),
        ("attention_two_rows", true),
    ] {
        let file = Fixture::open(name);
        let sizes: Vec<usize> = file.integers("heads").iter().map(|&size| size as usize).collect();
        let heads = Heads {
            num_heads: sizes[0],
            num_kv_heads: sizes[1],
            head_dim: sizes[2],
            scale: (sizes[2] as f32).powf(-0.5),
            causal,
        };
        let segments: Vec<Segment> = file
            .integers("segments")
            .chunks_exact(3)
            .map(|s| Segment { start: s[0] as u32, len: s[1] as u32, parent: u32::try_from(s[2]).ok() })
            .collect();
        let (qkv, dy) = (file.floats("qkv"), file.floats("dy"));
        let stride = (sizes[0] + 2 * sizes[1]) * sizes[2];
        let view = |head: usize| Rows { data: &qkv[..], offset: head * sizes[2], stride, head: sizes[2] };
        let (q, k, v) = (view(0), view(sizes[0]), view(sizes[0] + sizes[1]));
        let (mut y, mut lse) = (vec![0f32; dy.len()], vec![0.0; dy.len() / sizes[2]]);
        attention(&heads, &Queries::whole(&segments), &segments, q, k, v, &mut y, &mut lse);
        file.check("y", &y, 2e-6);
        file.check("lse", &lse, 2e-6);
        let mut dqkv = vec![0f32; qkv.len()];
        attention_backward(&heads, &segments, &qkv, &y, &lse, &dy, None, &mut dqkv);
        file.check("dqkv", &dqkv, 2e-6);
    }
}

//! What the model tests share: reading fixtures, and packing prompts and answers by hand.
#![allow(dead_code)]

use std::path::PathBuf;
use std::sync::Arc;

use foveate_model::{Cuts, PromptInput, Segment, Tile, TokenBatch};
use safetensors::SafeTensors;
use serde_json::Value;

pub const MODELS: [&str; 14] = [
    "smolvlm",
    "smolvlm_nosplit",
    "smolvlm_v5",
    "idefics3",
    "llama",
    "qwen2",
    "qwen3",
    "qwen2_vl",
    "qwen2_5_vl",
    "qwen3_vl",
    "llava_onevision",
    "llava_onevision_v5",
    "internvl",
    "internvl_v5",
];

/// One checkpoint of each family, for what must hold in all of them; two where towers differ.
pub const FAMILIES: [&str; 11] = [
    "smolvlm",
    "llama",
    "qwen2",
    "qwen3",
    "qwen2_vl",
    "qwen2_5_vl",
    "qwen3_vl",
    "llava_onevision",
    "llava_onevision_v5",
    "internvl",
    "internvl_v5",
];

/// A line for the table of docs/checkpoints.md, which `tools/family_table.py` makes from the output of the tests.
pub fn measured(check: &str, model: &str, value: impl std::fmt::Display) {
    println!("measured | {check} | {model} | {value}");
}

/// Where the fixtures lie; a test binary that was carried to another machine is told by `FOVEATE_FIXTURES`.
pub fn fixtures() -> PathBuf {
    if let Some(folder) = std::env::var_os("FOVEATE_FIXTURES") {
        return folder.into();
    }
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../fixtures")
}

pub struct Parity {
    pub json: Value,
    bytes: Vec<u8>,
}

impl Parity {
    pub fn open(name: &str) -> Self {
        let dir = fixtures().join("parity");
        let text = std::fs::read_to_string(dir.join(format!("{name}.json"))).unwrap();
        Self {
            json: serde_json::from_str(&text).unwrap(),
            bytes: std::fs::read(dir.join(format!("{name}.safetensors"))).unwrap(),
        }
    }

    pub fn f32(&self, name: &str) -> Vec<f32> {
        let file = SafeTensors::deserialize(&self.bytes).unwrap();
        let view = file.tensor(name).unwrap();
        view.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
    }

    pub fn names(&self) -> Vec<String> {
        let file = SafeTensors::deserialize(&self.bytes).unwrap();
        file.names().into_iter().map(|name| name.to_string()).collect()
    }

    pub fn conversations(&self) -> Vec<String> {
        self.json["conversations"].as_object().unwrap().keys().cloned().collect()
    }

    pub fn prompt(&self, conversation: &str) -> PromptInput {
        let file = SafeTensors::deserialize(&self.bytes).unwrap();
        let entry = &self.json["conversations"][conversation];
        let mut tiles = Vec::new();
        // Tiles of one size in one tensor, or a tensor for each picture.
        let stacked = file.tensor(&format!("{conversation}.levels")).ok();
        let single = (0..).map_while(|i| file.tensor(&format!("{conversation}.levels.{i}")).ok());
        for levels in stacked.into_iter().chain(single) {
            let table = self.f32("pixel_table");
            let [height, width] = levels.shape()[levels.shape().len() - 2..] else { panic!("pixels have two axes") };
            for tile in levels.data().chunks_exact(3 * height * width) {
                let pixels =
                    tile.iter().enumerate().map(|(i, v)| table[i / (height * width) * 256 + *v as usize]).collect();
                let cuts = match entry["cuts"].get(tiles.len()).map(|cuts| cuts.is_null()) {
                    Some(false) => {
                        let [rows, columns, picture_height, picture_width] = ids(&entry["cuts"][tiles.len()])[..]
                        else {
                            panic!("cuts are rows, columns, height and width")
                        };
                        Some(Cuts { rows, columns, picture_height, picture_width })
                    }
                    _ => None,
                };
                tiles.push(Arc::new(Tile { cuts, ..Tile::new(height as u32, width as u32, pixels) }));
            }
        }
        PromptInput { ids: ids(&entry["prompt_ids"]), tiles, placements: ids(&entry["placements"]) }
    }

    /// Ids that end an answer.
    pub fn end_ids(&self) -> Vec<u32> {
        match &self.json["tokens"]["end"] {
            list @ Value::Array(_) => ids(list),
            single => vec![single.as_u64().unwrap() as u32],
        }
    }

    pub fn completion(&self, conversation: &str) -> Vec<u32> {
        ids(&self.json["conversations"][conversation]["completion_ids"])
    }
}

pub fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|v| v.as_u64().unwrap() as u32).collect()
}

pub fn floats(value: &Value) -> Vec<f32> {
    value.as_array().unwrap().iter().map(|v| v.as_f64().unwrap() as f32).collect()
}

/// Groups of (prompt, answers) packed with or without a shared prefix. Rows of an answer leave out its last token.
pub fn pack(groups: &[(&PromptInput, Vec<Vec<u32>>)], share: bool) -> TokenBatch {
    let mut batch = TokenBatch { banned: Arc::from([]), ..TokenBatch::default() };
    for (prompt, answers) in groups {
        let mut parent = None;
        for (index, answer) in answers.iter().enumerate() {
            if index == 0 || !share {
                let start = batch.ids.len() as u32;
                parent = Some(batch.segments.len() as u32);
                batch.segments.push(Segment { start, len: prompt.ids.len() as u32, parent: None });
                batch.ids.extend(&prompt.ids);
                batch.positions.extend(0..prompt.ids.len() as u32);
                batch.placements.extend(prompt.placements.iter().map(|row| row + start));
                batch.tiles.extend(prompt.tiles.iter().cloned());
            }
            let parent_segment = batch.segments[parent.unwrap() as usize];
            let start = batch.ids.len() as u32;
            let num_rows = answer.len() as u32 - 1;
            batch.segments.push(Segment { start, len: num_rows, parent });
            batch.ids.extend(&answer[..answer.len() - 1]);
            batch.positions.extend((0..num_rows).map(|i| parent_segment.len + i));
            let first = batch.target.len() as u32;
            batch.source.push(parent_segment.start + parent_segment.len - 1);
            batch.source.extend(start..start + num_rows);
            batch.target.extend(answer);
            batch.sequences.push(first..batch.target.len() as u32);
        }
    }
    batch.inv_temperature = vec![1.0; batch.target.len()];
    batch
}

/// Largest difference, relative to `1 + |b|`.
pub fn gap(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs() / (1.0 + b.abs())).fold(0.0, f32::max)
}

//! Architectures of published small models, by name, for timing without their weights.
//! Knows numbers of configurations only. Cost: none.

use serde_json::{Value, json};

/// A named architecture.
pub struct Shape {
    /// As typed.
    pub name: &'static str,
    /// What it is.
    pub about: &'static str,
    /// The content of its `config.json`.
    pub config: Value,
}

fn smollm2_135m(vocabulary: usize) -> Value {
    json!({
        "model_type": "llama", "vocab_size": vocabulary, "hidden_size": 576, "intermediate_size": 1536,
        "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3, "rms_norm_eps": 1e-5,
        "rope_theta": 100000.0, "max_position_embeddings": 8192, "tie_word_embeddings": true,
    })
}

fn siglip_base() -> Value {
    json!({
        "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
        "image_size": 512, "patch_size": 16,
    })
}

/// All shapes.
pub fn all() -> Vec<Shape> {
    let small_text = json!({
        "vocab_size": 512, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1,
        "num_attention_heads": 1, "num_key_value_heads": 1,
    });
    vec![
        Shape { name: "smollm2-135m", about: "Llama, 30 layers of 576, vocabulary 49152", config: smollm2_135m(49152) },
        Shape {
            name: "smolvlm-256m",
            about: "SigLIP-base at 512 pixels and SmolLM2-135M",
            config: json!({
                "model_type": "smolvlm", "scale_factor": 4, "tie_word_embeddings": false, "image_token_id": 49190,
                "text_config": smollm2_135m(49280), "vision_config": siglip_base(),
            }),
        },
        Shape {
            name: "siglip-base",
            about: "SigLIP-base at 512 pixels before a decoder of one small layer",
            config: json!({
                "model_type": "smolvlm", "scale_factor": 4, "tie_word_embeddings": true, "image_token_id": 511,
                "text_config": small_text, "vision_config": siglip_base(),
            }),
        },
        Shape {
            name: "minnow-like",
            about: "the shape of the built-in model",
            config: json!({
                "model_type": "smolvlm", "scale_factor": 2, "tie_word_embeddings": true, "image_token_id": 5,
                "text_config": {
                    "vocab_size": 1000, "hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 5,
                    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 2048,
                },
                "vision_config": {
                    "hidden_size": 192, "intermediate_size": 768, "num_hidden_layers": 4, "num_attention_heads": 3,
                    "image_size": 128, "patch_size": 16,
                },
            }),
        },
    ]
}

/// The shape called `name`.
pub fn find(name: &str) -> Option<Shape> {
    all().into_iter().find(|shape| shape.name == name)
}

"""Random tiny checkpoints of Qwen's vision-language families: see fixture_families.py."""

import json
from pathlib import Path

import numpy as np
import torch
from fixture_families import TURNS, qwen_tokenizer, text_config, with_system, write_folder
from fixture_models import start, write_json
from transformers import Qwen2_5_VLProcessor, Qwen2VLProcessor, Qwen3VLProcessor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor
from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor
from transformers.models.qwen3_vl.video_processing_qwen3_vl import Qwen3VLVideoProcessor

MEAN = [0.48145466, 0.4578275, 0.40821073]
DEVIATION = [0.26862954, 0.26130258, 0.27577711]
HALF = [0.5, 0.5, 0.5]
OLD_NAMES = [("model.visual.", "visual."), ("model.language_model.", "model.")]


def image_tokens(tokenizer) -> dict:
    ids = tokenizer.token_to_id
    return {
        "image_token_id": ids("<|image_pad|>"),
        "video_token_id": ids("<|video_pad|>"),
        "vision_end_token_id": ids("<|vision_end|>"),
        "vision_start_token_id": ids("<|vision_start|>"),
    }


def write_preprocessor(folder: Path, kind: str, mean, deviation, size: dict, patch: int) -> None:
    write_json(
        folder / "preprocessor_config.json",
        {
            "do_convert_rgb": True,
            "do_normalize": True,
            "do_rescale": True,
            "do_resize": True,
            "image_mean": mean,
            "image_processor_type": kind,
            "image_std": deviation,
            "merge_size": 2,
            "patch_size": patch,
            "processor_class": "Qwen2VLProcessor",
            "resample": 3,
            "rescale_factor": 0.00392156862745098,
            "temporal_patch_size": 2,
            **size,
        },
    )


def make_qwen2_vl(folder: Path) -> None:
    """After Qwen2-VL-2B-Instruct: flat configuration, old names, rope type mrope, tied."""
    start(folder)
    tokenizer = qwen_tokenizer()
    config = {
        "architectures": ["Qwen2VLForConditionalGeneration"],
        "attention_dropout": 0.0,
        "max_window_layers": 2,
        "model_type": "qwen2_vl",
        "rope_scaling": {"mrope_section": [1, 2, 1], "type": "mrope"},
        "sliding_window": 32768,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "use_sliding_window": False,
        "vision_config": {
            "depth": 2,
            "embed_dim": 32,
            "hidden_size": 32,
            "in_chans": 3,
            "mlp_ratio": 2,
            "model_type": "qwen2_vl",
            "num_heads": 2,
            "patch_size": 4,
            "spatial_merge_size": 2,
            "spatial_patch_size": 4,
            "temporal_patch_size": 2,
        },
        **image_tokens(tokenizer),
        **text_config(tokenizer),
    }
    write_folder(folder, tokenizer, config, with_system(TURNS, True), 211, torch.bfloat16, rename=OLD_NAMES)
    bounds = {"max_pixels": 2304, "min_pixels": 256, "size": {"max_pixels": 2304, "min_pixels": 256}}
    write_preprocessor(folder, "Qwen2VLImageProcessor", MEAN, DEVIATION, bounds, 4)


def make_qwen2_5_vl(folder: Path) -> None:
    """After Qwen2.5-VL-3B-Instruct: windows, two shards, old names, not tied."""
    start(folder)
    tokenizer = qwen_tokenizer()
    config = {
        "architectures": ["Qwen2_5_VLForConditionalGeneration"],
        "attention_dropout": 0.0,
        "max_window_layers": 2,
        "model_type": "qwen2_5_vl",
        "rope_scaling": {"mrope_section": [2, 1, 1], "rope_type": "default", "type": "default"},
        "sliding_window": 32768,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "use_sliding_window": False,
        "vision_config": {
            "depth": 3,
            "fullatt_block_indexes": [1],
            "hidden_act": "silu",
            "hidden_size": 32,
            "in_chans": 3,
            "intermediate_size": 56,
            "model_type": "qwen2_5_vl",
            "num_heads": 2,
            "out_hidden_size": 32,
            "patch_size": 4,
            "spatial_merge_size": 2,
            "spatial_patch_size": 4,
            "temporal_patch_size": 2,
            "tokens_per_second": 2,
            # Two features a side; most pictures have an odd number of them.
            "window_size": 16,
        },
        **image_tokens(tokenizer),
        **text_config(tokenizer),
    }
    template = with_system(TURNS, True)
    write_folder(folder, tokenizer, config, template, 212, torch.bfloat16, rename=OLD_NAMES, num_shards=2)
    bounds = {"max_pixels": 2304, "min_pixels": 256}
    write_preprocessor(folder, "Qwen2VLImageProcessor", MEAN, DEVIATION, bounds, 4)


def make_qwen3_vl(folder: Path) -> None:
    """After Qwen3-VL-2B-Instruct: features of two depths, position table, interleaved axes, torch's resizing."""
    start(folder)
    tokenizer = qwen_tokenizer()
    text = text_config(tokenizer, rope_theta=5000000)
    config = {
        "architectures": ["Qwen3VLForConditionalGeneration"],
        "model_type": "qwen3_vl",
        "text_config": {
            "attention_bias": False,
            "attention_dropout": 0.0,
            "dtype": "bfloat16",
            "head_dim": 16,
            "model_type": "qwen3_vl_text",
            "rope_scaling": {"mrope_interleaved": True, "mrope_section": [4, 2, 2], "rope_type": "default"},
            "tie_word_embeddings": True,
            **text,
            "num_hidden_layers": 3,
        },
        "tie_word_embeddings": True,
        "vision_config": {
            "deepstack_visual_indexes": [0, 2],
            "depth": 3,
            "hidden_act": "gelu_pytorch_tanh",
            "hidden_size": 32,
            "in_channels": 3,
            "initializer_range": 0.02,
            "intermediate_size": 56,
            "model_type": "qwen3_vl",
            "num_heads": 2,
            # 5 x 5 places, read at grids of other sizes.
            "num_position_embeddings": 25,
            "out_hidden_size": 32,
            "patch_size": 4,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
        },
        **image_tokens(tokenizer),
    }
    write_folder(folder, tokenizer, config, with_system(TURNS, False), 213, torch.bfloat16, jinja=True)
    size = {"size": {"longest_edge": 2304, "shortest_edge": 256}}
    write_preprocessor(folder, "Qwen2VLImageProcessorFast", HALF, HALF, size, 4)


QWEN_MAKERS = {"qwen2_vl": make_qwen2_vl, "qwen2_5_vl": make_qwen2_5_vl, "qwen3_vl": make_qwen3_vl}


def load_processor(folder: Path, tokenizer):
    """The processor that a folder names: Pillow's resizing, or torch's where the name ends in Fast."""
    config = json.loads((folder / "config.json").read_text())
    kind = json.loads((folder / "preprocessor_config.json").read_text())["image_processor_type"]
    image = (Qwen2VLImageProcessor if kind.endswith("Fast") else Qwen2VLImageProcessorPil).from_pretrained(folder)
    processors = {
        "qwen2_vl": (Qwen2VLProcessor, Qwen2VLVideoProcessor),
        "qwen2_5_vl": (Qwen2_5_VLProcessor, Qwen2VLVideoProcessor),
        "qwen3_vl": (Qwen3VLProcessor, Qwen3VLVideoProcessor),
    }
    whole, video = processors[config["model_type"]]
    return whole(image, tokenizer, video(), chat_template=tokenizer.chat_template)


def level_table(processor) -> np.ndarray:
    """The normalised value of every 8-bit level, per channel, rounded where the Pillow processor rounds."""
    settings = processor.image_processor
    levels = (np.arange(256, dtype=np.float64) * settings.rescale_factor).astype(np.float32)
    mean = np.array(settings.image_mean, dtype=np.float32)[:, None]
    deviation = np.array(settings.image_std, dtype=np.float32)[:, None]
    return (levels[None] - mean) / deviation


def levels_of(processor, table: np.ndarray, extra: dict) -> list:
    """The 8-bit pictures behind the processor's patches."""
    settings = processor.image_processor
    patch, merge, frames = settings.patch_size, settings.merge_size, settings.temporal_patch_size
    values = extra["pixel_values"].numpy()
    pictures, start = [], 0
    for _, rows, columns in extra["image_grid_thw"].tolist():
        patches = values[start : start + rows * columns]
        start += rows * columns
        patches = patches.reshape(rows // merge, columns // merge, merge, merge, 3, frames, patch, patch)
        assert np.array_equal(patches[:, :, :, :, :, 0], patches[:, :, :, :, :, 1])
        pixels = patches[:, :, :, :, :, 0].transpose(4, 0, 2, 5, 1, 3, 6)
        pixels = pixels.reshape(3, rows * patch, columns * patch)
        levels = np.stack([np.abs(pixels[c][..., None] - table[c]).argmin(-1) for c in range(3)]).astype(np.uint8)
        restored = np.stack([table[c][levels[c]] for c in range(3)])
        assert np.abs(restored - pixels).max() < 1e-6, "levels do not restore the pixels"
        pictures.append(levels)
    return pictures

"""Random tiny checkpoints of LLaVA-OneVision and InternVL, and how these families cut pictures.

The folders are written as the published ones are (old tensor names, f16 or bf16) or as transformers 5 saves them.
"""

import json
import math
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    AutoModelForImageTextToText,
    InternVLConfig,
    InternVLForConditionalGeneration,
    InternVLProcessor,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    LlavaOnevisionProcessor,
    PreTrainedTokenizerFast,
)
from transformers.image_processing_utils import get_patch_output_size, select_best_resolution
from transformers.models.got_ocr2.image_processing_got_ocr2 import GotOcr2ImageProcessor
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import (
    GotOcr2ImageProcessorPil,
    get_optimal_tiled_canvas,
)
from transformers.models.internvl.video_processing_internvl import InternVLVideoProcessor
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import LlavaOnevisionImageProcessorPil
from transformers.models.llava_onevision.modeling_llava_onevision import unpad_image
from transformers.models.llava_onevision.video_processing_llava_onevision import LlavaOnevisionVideoProcessor

from fixture_families import greedy, mean_nll, score
from fixture_models import corpus, draw_weights, start, tokenizer_config, write_json
from fixture_parity import ADAMW, CONVERSATIONS, NUM_STEPS, with_pictures
from fixture_qwen import level_table

# The picture is cut, and its grid of features resampled.
TOWER_GRADIENT_OF = "one_image"

QWEN_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN_SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
QWEN_NAMES = dict(bos_token=None, eos_token="<|im_end|>", pad_token="<|endoftext|>")
MEAN, DEVIATION = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]

# Pictures of a turn before its text, and answers that begin with a line break the generation prompt does not end on.
TEMPLATE_LLAVA = (
    "{% for turn in messages %}{{ '<|im_start|>' ~ turn['role'] ~ ' ' }}"
    "{%- for part in turn['content'] | selectattr('type', 'equalto', 'image') -%}{{ '<image>' }}{%- endfor -%}"
    "{%- for part in turn['content'] | selectattr('type', 'equalto', 'text') -%}"
    "{%- if turn['role'] == 'assistant' -%}{%- generation -%}{{ '\\n' ~ part['text'] }}{%- endgeneration -%}"
    "{%- else -%}{{ '\\n' ~ part['text'] }}{%- endif -%}{%- endfor -%}{{ '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
TEMPLATE_INTERNVL = (
    "{% for turn in messages %}{{ '<|im_start|>' ~ turn.role ~ '\\n' }}"
    "{% if turn.content is string %}{{ turn.content }}{% else %}{% for part in turn.content %}"
    "{% if part.type == 'image' %}{{ '<IMG_CONTEXT>\\n' }}{% elif part.type == 'text' %}{{ part.text }}{% endif %}"
    "{% endfor %}{% endif %}{{ '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def qwen_tokenizer(more: list[str], num_merges: int = 110) -> Tokenizer:
    """Byte-level BPE in the shape of Qwen2's: NFC first, digits one by one, special tokens behind the vocabulary."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False),
        ]
    )
    tokenizer.train_from_iterator(
        corpus() + ["\n\n"] * 50,
        trainers.BpeTrainer(
            vocab_size=256 + num_merges,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in QWEN_SPECIALS + more])
    return tokenizer


def text_config(tokenizer: Tokenizer, model_type: str = "qwen2", **more) -> dict:
    return {
        "hidden_size": 32,
        "intermediate_size": 48,
        "max_position_embeddings": 4096,
        "model_type": model_type,
        "num_attention_heads": 2,
        "num_hidden_layers": 2,
        "num_key_value_heads": 1,
        "rms_norm_eps": 1e-6,
        # Padded, as published vocabularies are.
        "vocab_size": (tokenizer.get_vocab_size() // 16 + 1) * 16,
        **more,
    }


def grids(tile: int, count: int) -> list[list[int]]:
    return [[row * tile, column * tile] for row in range(1, count + 1) for column in range(1, count + 1)]


def published_name(name: str) -> str:
    """As transformers 4 spelled the tensors of both families."""
    if name.startswith("lm_head."):
        return f"language_model.{name}"
    name = name.removeprefix("model.")
    if name.startswith("language_model."):
        name = name.replace("language_model.", "language_model.model.", 1)
    return name


def save_old(model, folder: Path, dtype: torch.dtype, rename) -> None:
    tied = model.config.tie_word_embeddings
    state = {
        rename(name): value.to(dtype).contiguous()
        for name, value in model.state_dict().items()
        if not (tied and name == "lm_head.weight")
    }
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


def save_tokenizer(tokenizer: Tokenizer, folder: Path, **names) -> None:
    tokenizer.save(str(folder / "tokenizer.json"))
    config = tokenizer_config(tokenizer, "Qwen2Tokenizer", **QWEN_NAMES, **names)
    write_json(folder / "tokenizer_config.json", config)


def generation_config(tokenizer: Tokenizer) -> dict:
    ids = tokenizer.token_to_id
    return {
        "bos_token_id": ids("<|endoftext|>"),
        "eos_token_id": [ids("<|im_end|>"), ids("<|endoftext|>")],
        "pad_token_id": ids("<|endoftext|>"),
        "transformers_version": "4.45.0",
    }


def make_llava_onevision(folder: Path) -> None:
    """After llava-onevision-qwen2-0.5b-ov-hf: f16, old names, tied in text_config alone, a tile of 7 * 4 + 2 pixels."""
    start(folder)
    tokenizer = qwen_tokenizer(["<image>", "<video>"])
    ids = tokenizer.token_to_id
    tile = 30
    config = {
        "architectures": ["LlavaOnevisionForConditionalGeneration"],
        "ignore_index": -100,
        "image_grid_pinpoints": grids(tile, 3),
        "image_token_index": ids("<image>"),
        "model_type": "llava_onevision",
        "projector_hidden_act": "gelu",
        "text_config": text_config(
            tokenizer, max_window_layers=24, rope_theta=1000000.0, tie_word_embeddings=True, use_sliding_window=False
        ),
        "tie_word_embeddings": False,
        "torch_dtype": "float16",
        "transformers_version": "4.45.0",
        "use_image_newline_parameter": True,
        "video_token_index": ids("<video>"),
        # Published ones say anyres_max_9; four tiles' worth is passed by smaller pictures.
        "vision_aspect_ratio": "anyres_max_4",
        "vision_config": {
            "hidden_size": 32,
            "image_size": tile,
            "intermediate_size": 48,
            "model_type": "siglip_vision_model",
            "num_attention_heads": 2,
            "num_hidden_layers": 2,
            "patch_size": 7,
            "vision_use_head": False,
        },
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "full",
    }
    write_json(folder / "config.json", config)
    model = LlavaOnevisionForConditionalGeneration(LlavaOnevisionConfig.from_dict(config))
    draw_weights(model, 201)
    save_old(
        model,
        folder,
        torch.float16,
        lambda name: published_name(name).replace("vision_tower.", "vision_tower.vision_model.", 1),
    )
    save_tokenizer(tokenizer, folder, processor_class="LlavaOnevisionProcessor")
    write_json(folder / "chat_template.json", {"chat_template": TEMPLATE_LLAVA})
    write_json(
        folder / "preprocessor_config.json",
        {
            "do_convert_rgb": True,
            "do_normalize": True,
            "do_pad": True,
            "do_rescale": True,
            "do_resize": True,
            "image_grid_pinpoints": grids(tile, 3),
            "image_mean": [0.5, 0.5, 0.5],
            "image_processor_type": "LlavaOnevisionImageProcessor",
            "image_std": [0.5, 0.5, 0.5],
            "processor_class": "LlavaOnevisionProcessor",
            "resample": 3,
            "rescale_factor": 0.00392156862745098,
            "size": {"height": tile, "width": tile},
        },
    )
    write_json(
        folder / "processor_config.json",
        {
            "image_token": "<image>",
            "num_image_tokens": 16,
            "processor_class": "LlavaOnevisionProcessor",
            "video_token": "<video>",
            "vision_aspect_ratio": "anyres_max_4",
            "vision_feature_select_strategy": "full",
        },
    )
    write_json(folder / "generation_config.json", generation_config(tokenizer))


def make_llava_onevision_v5(folder: Path) -> None:
    """Saved by transformers 5: untied, an earlier hidden state is read, a pooling head that nothing reads."""
    start(folder)
    raw = qwen_tokenizer(["<image>", "<video>"])
    ids = raw.token_to_id
    tile = 32
    config = LlavaOnevisionConfig(
        image_grid_pinpoints=grids(tile, 3),
        image_token_index=ids("<image>"),
        video_token_index=ids("<video>"),
        multimodal_projector_bias=False,
        text_config=text_config(raw, rope_parameters={"rope_type": "default", "rope_theta": 1000000.0}),
        vision_config=dict(
            model_type="siglip_vision_model",
            hidden_size=32,
            image_size=tile,
            intermediate_size=40,
            num_attention_heads=2,
            num_hidden_layers=3,
            patch_size=8,
            vision_use_head=True,
        ),
        vision_feature_layer=-2,
    )
    model = LlavaOnevisionForConditionalGeneration(config)
    draw_weights(model, 202)
    model.to(torch.bfloat16)
    for name, value in generation_config(raw).items():
        if name.endswith("_id"):
            setattr(model.generation_config, name, value)
    model.save_pretrained(folder)
    image = LlavaOnevisionImageProcessorPil(
        image_grid_pinpoints=grids(tile, 3), image_mean=MEAN, image_std=DEVIATION, size={"height": tile, "width": tile}
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, model_max_length=4096, **QWEN_NAMES)
    processor = LlavaOnevisionProcessor(
        image,
        tokenizer,
        LlavaOnevisionVideoProcessor(),
        num_image_tokens=16,
        vision_feature_select_strategy="full",
        chat_template=TEMPLATE_LLAVA,
    )
    processor.save_pretrained(folder)


INTERNVL_TOKENS = dict(
    context_image_token="<IMG_CONTEXT>", end_image_token="</img>", start_image_token="<img>", video_token="<video>"
)
INTERNVL_SPECIALS = ["<img>", "</img>", "<IMG_CONTEXT>", "<quad>", "</quad>", "<video>"]


def make_internvl(folder: Path) -> None:
    """After InternVL3-1B-hf: bf16, old names, a head of its own beside a root that says nothing about tying."""
    start(folder)
    tokenizer = qwen_tokenizer(INTERNVL_SPECIALS)
    ids = tokenizer.token_to_id
    tile = 32
    config = {
        "architectures": ["InternVLForConditionalGeneration"],
        "downsample_ratio": 0.5,
        "image_seq_length": 4,
        "image_token_id": ids("<IMG_CONTEXT>"),
        "model_type": "internvl",
        "projector_hidden_act": "gelu",
        "text_config": text_config(
            tokenizer,
            bos_token_id=ids("<|endoftext|>"),
            eos_token_id=ids("<|im_end|>"),
            rope_scaling=None,
            rope_theta=1000000.0,
            tie_word_embeddings=False,
            torch_dtype="bfloat16",
        ),
        "torch_dtype": "bfloat16",
        "transformers_version": "4.52.0",
        "vision_config": {
            "attention_bias": True,
            "hidden_act": "gelu",
            "hidden_size": 32,
            "image_size": [tile, tile],
            "intermediate_size": 48,
            "layer_norm_eps": 1e-06,
            "layer_scale_init_value": 0.1,
            "model_type": "internvl_vision",
            "norm_type": "layer_norm",
            "num_attention_heads": 2,
            "num_channels": 3,
            "num_hidden_layers": 2,
            "patch_size": [8, 8],
            "use_absolute_position_embeddings": True,
            "use_mask_token": False,
            "use_mean_pooling": True,
            "use_qk_norm": False,
        },
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "default",
    }
    write_json(folder / "config.json", config)
    model = InternVLForConditionalGeneration(InternVLConfig.from_dict(config | {"tie_word_embeddings": False}))
    draw_weights(model, 203)
    save_old(model, folder, torch.bfloat16, published_name)
    save_tokenizer(
        tokenizer, folder, processor_class="InternVLProcessor", extra_special_tokens=INTERNVL_TOKENS, **INTERNVL_TOKENS
    )
    (folder / "chat_template.jinja").write_text(TEMPLATE_INTERNVL)
    write_json(
        folder / "preprocessor_config.json",
        {
            "crop_size": None,
            "crop_to_patches": False,
            "data_format": "channels_first",
            "default_to_square": True,
            "do_center_crop": None,
            "do_convert_rgb": True,
            "do_normalize": True,
            "do_rescale": True,
            "do_resize": True,
            "image_mean": MEAN,
            "image_processor_type": "GotOcr2ImageProcessorFast",
            "image_std": DEVIATION,
            "max_patches": 12,
            "min_patches": 1,
            "processor_class": "InternVLProcessor",
            "resample": 3,
            "rescale_factor": 0.00392156862745098,
            "size": {"height": tile, "width": tile},
        },
    )
    write_json(folder / "processor_config.json", {"image_seq_length": 4, "processor_class": "InternVLProcessor"})
    write_json(folder / "generation_config.json", generation_config(tokenizer))


def make_internvl_v5(folder: Path) -> None:
    """Saved by transformers 5: Llama decoder, tied, a tower with normed queries, root-mean-square norms and a last norm."""
    start(folder)
    raw = qwen_tokenizer(INTERNVL_SPECIALS)
    ids = raw.token_to_id
    tile = 32
    config = InternVLConfig(
        image_token_id=ids("<IMG_CONTEXT>"),
        image_seq_length=4,
        tie_word_embeddings=True,
        text_config=text_config(
            raw, "llama", head_dim=16, rope_parameters={"rope_type": "default", "rope_theta": 10000.0}
        ),
        vision_config=dict(
            hidden_size=32,
            image_size=[tile, tile],
            intermediate_size=40,
            norm_type="rms_norm",
            num_attention_heads=4,
            num_hidden_layers=2,
            patch_size=[8, 8],
            use_mask_token=True,
            use_mean_pooling=False,
            use_qk_norm=True,
        ),
    )
    model = InternVLForConditionalGeneration(config)
    draw_weights(model, 204)
    model.to(torch.bfloat16)
    for name, value in generation_config(raw).items():
        if name.endswith("_id"):
            setattr(model.generation_config, name, value)
    model.save_pretrained(folder)
    image = GotOcr2ImageProcessorPil(
        size={"height": tile, "width": tile}, image_mean=MEAN, image_std=DEVIATION, max_patches=6, min_patches=2
    )
    names = dict(QWEN_NAMES, extra_special_tokens=INTERNVL_TOKENS)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, model_max_length=4096, **names)
    processor = InternVLProcessor(
        image, tokenizer, InternVLVideoProcessor(), image_seq_length=4, chat_template=TEMPLATE_INTERNVL
    )
    processor.save_pretrained(folder)


TOWERS = {
    "llava_onevision": make_llava_onevision,
    "llava_onevision_v5": make_llava_onevision_v5,
    "internvl": make_internvl,
    "internvl_v5": make_internvl_v5,
}


def tower_processor(folder: Path, template: str):
    """The processor that a folder names: Pillow's resampling, or torch's where the name ends in Fast."""
    model_type = json.loads((folder / "config.json").read_text())["model_type"]
    settings = json.loads((folder / "processor_config.json").read_text())
    if model_type == "llava_onevision":
        return LlavaOnevisionProcessor(
            LlavaOnevisionImageProcessorPil.from_pretrained(folder),
            PreTrainedTokenizerFast.from_pretrained(folder),
            LlavaOnevisionVideoProcessor(),
            num_image_tokens=settings["num_image_tokens"],
            vision_feature_select_strategy="full",
            chat_template=template,
            vision_aspect_ratio=settings.get("vision_aspect_ratio", "anyres_max_9"),
        )
    own = folder / "preprocessor_config.json"
    fast = own.exists() and json.loads(own.read_text())["image_processor_type"].endswith("Fast")
    return InternVLProcessor(
        (GotOcr2ImageProcessor if fast else GotOcr2ImageProcessorPil).from_pretrained(folder),
        PreTrainedTokenizerFast.from_pretrained(folder, extra_special_tokens=INTERNVL_TOKENS),
        InternVLVideoProcessor(),
        image_seq_length=settings["image_seq_length"],
        chat_template=template,
    )


# ----- what transformers makes of them -----


def load_tower(folder: Path):
    """Model and processor of a folder."""
    jinja = folder / "chat_template.jinja"
    template = jinja.read_text() if jinja.exists() else json.loads((folder / "chat_template.json").read_text())[
        "chat_template"
    ]
    model, info = AutoModelForImageTextToText.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    problems = {key: value for key, value in info.items() if value}
    assert not problems, problems
    return model.eval(), tower_processor(folder, template)


def encode(processor, messages: list, pictures: Path) -> dict:
    """Prompt and completion of a conversation, by the rules of fixture_parity."""
    tokenizer = processor.tokenizer
    end = tokenizer.eos_token
    render = lambda turns, prompt: processor.apply_chat_template(turns, tokenize=False, add_generation_prompt=prompt)
    prompt_text, full_text = render(messages[:-1], True), render(messages, False)
    if full_text.startswith(prompt_text):
        rest = full_text[len(prompt_text) :]
        completion_text = rest[: rest.index(end) + len(end)]
    else:
        # The template writes answers and generation prompts differently: the bare text counts.
        completion_text = "".join(part["text"] for part in messages[-1]["content"]) + end
    images = with_pictures(messages, pictures)
    inputs = processor(text=[prompt_text], images=[images] if images else None, return_tensors="pt")
    return {
        "prompt_text": prompt_text,
        "completion_text": completion_text,
        "prompt_ids": inputs["input_ids"][0],
        "completion_ids": torch.tensor(tokenizer(completion_text, add_special_tokens=False)["input_ids"]),
        "extra": {
            key: inputs[key] for key in ("pixel_values", "image_sizes", "batch_num_images") if key in inputs
        },
    }


def tiles_and_cuts(model, extra: dict) -> tuple[np.ndarray, list]:
    """Pixel values of all tiles in order, and for each the grid that begins with it, if one does."""
    pixels = extra["pixel_values"].numpy()
    if model.config.model_type == "internvl":
        return pixels, [None] * len(pixels)
    tiles, cuts = [], []
    side = model.config.vision_config.image_size
    for image, size in zip(pixels, extra["image_sizes"].tolist()):
        if len(pixels) > 1:
            tiles.append(image[:1])
            cuts.append(None)
            continue
        height, width = select_best_resolution(tuple(size), model.config.image_grid_pinpoints)
        rows, columns = height // side, width // side
        tiles.append(image[: 1 + rows * columns])
        cuts += [[rows, columns, *size]] + [None] * (rows * columns)
    return np.concatenate(tiles), cuts


def make_tower_parity(name: str, models_folder: Path, pictures: Path, out: Path) -> None:
    torch.manual_seed(0)
    model, processor = load_tower(models_folder / name)
    image_token = model.config.image_token_id
    table = level_table(processor)
    tensors, samples, report = {"pixel_table": torch.from_numpy(table.copy())}, {}, {}
    for key, messages in CONVERSATIONS.items():
        sample = samples[key] = encode(processor, messages, pictures)
        with torch.no_grad():
            logprob, entropy = score(model, sample)
            tokens, gap = greedy(model, sample)
        entry = report[key] = {
            "messages": messages,
            "prompt_text": sample["prompt_text"],
            "completion_text": sample["completion_text"],
            "prompt_ids": sample["prompt_ids"].tolist(),
            "completion_ids": sample["completion_ids"].tolist(),
            "placements": (sample["prompt_ids"] == image_token).nonzero()[:, 0].tolist(),
            "num_tiles": 0,
            "cuts": [],
            "logprobs": logprob.tolist(),
            "entropy": entropy.tolist(),
            "greedy_ids": tokens,
            "greedy_smallest_gap": gap,
        }
        if sample["extra"]:
            pixels, entry["cuts"] = tiles_and_cuts(model, sample["extra"])
            levels = np.stack(
                [np.abs(pixels[:, c, ..., None] - table[c]).argmin(-1) for c in range(3)], axis=1
            ).astype(np.uint8)
            restored = np.stack([table[c][levels[:, c]] for c in range(3)], axis=1)
            # The processor that works in torch rescales and normalises in one step, which rounds once less.
            assert np.abs(restored - pixels).max() < 1e-6, "levels do not restore the pixels"
            tensors[f"{key}.levels"] = torch.from_numpy(levels)
            entry["num_tiles"] = len(levels)

    (-score(model, samples[TOWER_GRADIENT_OF])[0].mean()).backward()
    squares = 0.0
    for parameter_name, parameter in model.named_parameters():
        gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        tensors[f"gradient.{parameter_name}"] = gradient.contiguous()
        squares += float(gradient.double().square().sum())

    # Ten full-batch AdamW steps from the stored weights; the loss before each step, and after the last.
    model = load_tower(models_folder / name)[0]
    optimizer = torch.optim.AdamW(model.parameters(), **ADAMW)
    losses = []
    for _ in range(NUM_STEPS):
        optimizer.zero_grad()
        loss = mean_nll(model, samples)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    with torch.no_grad():
        losses.append(float(mean_nll(model, samples)))

    result = {
        "model": name,
        "tokens": {"image": image_token, "end": model.generation_config.eos_token_id},
        "conversations": report,
        "gradient": {"of": TOWER_GRADIENT_OF, "loss": "mean NLL over its completion", "norm": squares**0.5},
        "adamw": {**ADAMW, "losses": losses},
    }
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{name}.json").write_text(json.dumps(result, ensure_ascii=False, indent=1) + "\n")
    save_file(tensors, out / f"{name}.safetensors")


# ----- how pictures are cut -----

SIZES = [
    (1, 1), (1, 200), (200, 1), (1, 5000), (3, 2), (80, 120), (91, 37), (203, 301), (64, 64), (384, 384), (385, 384),
    (448, 448), (447, 449), (500, 333), (640, 480), (480, 640), (720, 1280), (1080, 1920), (1920, 1080), (2160, 3840),
    (768, 768), (769, 768), (1152, 384), (2304, 2304), (2305, 2303), (3000, 100), (100, 3000), (997, 991), (1000, 3001),
    (27, 1000), (1333, 1000), (224, 672), (672, 224), (896, 448), (448, 896), (1344, 448), (300, 900), (10, 23),
]  # fmt: skip


def llava_case(height: int, width: int, tile: int, side: int, max_tiles: int) -> dict:
    """Everything that follows from a size, each number from the function of transformers that decides it."""
    pinpoints = grids(tile, 6)
    best = select_best_resolution((height, width), pinpoints)
    image = np.zeros((3, height, width), dtype=np.uint8)
    fitted = get_patch_output_size(image, best, input_data_format="channels_first")
    rows, columns = best[0] // tile, best[1] // tile
    grid = torch.arange(rows * side * columns * side).view(1, rows * side, columns * side)
    shown = unpad_image(grid, (height, width))
    first = int(shown[0, 0, 0]) if shown.numel() else None
    if first is not None:
        top, left = divmod(first, columns * side)
    else:
        # Nothing is left of a picture that is flatter than half a feature.
        top, left = (rows * side // 2, 0) if shown.shape[1] == 0 else (0, columns * side // 2)
    target = list(shown.shape[1:])
    ratio = math.sqrt(target[0] * target[1] / (max_tiles * side**2))
    if ratio > 1.1:
        target = [int(target[0] // ratio), int(target[1] // ratio)]
    processor = LlavaOnevisionProcessor.__new__(LlavaOnevisionProcessor)
    processor.num_image_tokens = side * side
    processor.vision_aspect_ratio = f"anyres_max_{max_tiles}"
    processor.image_processor = LlavaOnevisionImageProcessorPil(image_grid_pinpoints=pinpoints)
    return {
        "height": height,
        "width": width,
        "tile": tile,
        "side": side,
        "max_tiles": max_tiles,
        "rows": rows,
        "columns": columns,
        "fitted_height": fitted[0],
        "fitted_width": fitted[1],
        "window": [top, left, *shown.shape[1:], *target],
        "features": processor._get_number_of_features(height, width, tile, tile),
    }


def make_tiles(folder: Path) -> None:
    """Grids and feature counts of many sizes; tests of the arithmetic read them."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(9)
    sizes = SIZES + [tuple(int(x) for x in np.exp(random.uniform(1.5, 8.0, 2))) for _ in range(60)]
    llava, internvl = [], []
    for height, width in sizes:
        for tile, side, max_tiles in ((384, 27, 9), (30, 4, 4), (58, 8, 9)):
            llava.append(llava_case(height, width, tile, side, max_tiles))
        for tile, low, high in ((448, 1, 12), (32, 1, 12), (448, 2, 6)):
            columns, rows = get_optimal_tiled_canvas((height, width), (tile, tile), low, high)
            internvl.append(
                dict(height=height, width=width, tile=tile, min_tiles=low, max_tiles=high, rows=rows, columns=columns)
            )
    for name, cases in (("llava_onevision", llava), ("internvl", internvl)):
        lines = ",\n".join(json.dumps(case, separators=(",", ":")) for case in cases)
        (folder / f"{name}.json").write_text(f'{{"cases": [\n{lines}\n]}}\n')

"""Random tiny checkpoints with the file layout of published ones.

Each folder is what a user would point foveate at: config, weights, tokenizer, processor and chat template, written in
the way that family and that version of transformers writes them. Weights are drawn wider than a fresh initialisation,
so that every part of the model matters to the logits.
"""

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    Idefics3Processor,
    PreTrainedTokenizerFast,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
    SmolVLMProcessor,
)
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil
from transformers.models.smolvlm.video_processing_smolvlm import SmolVLMVideoProcessor

# Special tokens of the SmolLM2 tokenizer, at the beginning of its vocabulary.
SMOLLM_SPECIALS = (
    "<|endoftext|> <|im_start|> <|im_end|> <repo_name> <reponame> <file_sep> <filename> <gh_stars> <issue_start> "
    "<issue_comment> <issue_closed> <jupyter_start> <jupyter_text> <jupyter_code> <jupyter_output> <jupyter_script> "
    "<empty_output>"
).split()
ROW_COL = [f"<row_{row}_col_{col}>" for row in range(1, 7) for col in range(1, 7)]
LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

# Three wordings that render the same form: <|im_start|>User:<image>text<end_of_utterance>\nAssistant:
TEMPLATE_PLAIN = """\
<|im_start|>{% for turn in messages %}
{% set parts = turn['content'] %}
{{ turn['role'] | capitalize }}:{% if not (parts[0]['type'] == 'image') %}{{ ' ' }}{% endif %}
{% for part in parts %}
    {% if part['type'] == 'image' %}
{{ '<image>' }}
    {%- elif part['type'] == 'text' %}
{{ part['text'] }}
    {%- endif %}
{%- endfor %}
{{ '<end_of_utterance>\\n' }}
{%- endfor %}
{% if add_generation_prompt %}
{{ 'Assistant:' }}
{%- endif %}
"""
TEMPLATE_GENERATION = """\
{%- set state = namespace(first=true) -%}
{%- for message in messages -%}
    {%- if state.first -%}{{ '<|im_start|>' }}{%- set state.first = false -%}{%- endif -%}
    {{- message.role.capitalize() ~ ':' -}}
    {%- if message.content is string -%}
        {{- ' ' ~ message.content -}}
    {%- else -%}
        {%- if message.content and message.content[0].type != 'image' -%}{{ ' ' }}{%- endif -%}
        {%- if message.role == 'assistant' -%}
            {%- generation -%}
                {%- for part in message.content if part.type == 'text' -%}{{ part.text }}{%- endfor -%}
            {%- endgeneration -%}
        {%- else -%}
            {%- for part in message.content -%}
                {{- '<image>' if part.type == 'image' or 'image' in part else part.text -}}
            {%- endfor -%}
        {%- endif -%}
    {%- endif -%}
    {{- '<end_of_utterance>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ 'Assistant:' }}{%- endif -%}
"""
TEMPLATE_ONE_LINE = (
    "{{ bos_token }}{% for m in messages %}{{ m['role'].capitalize() }}"
    "{% if m['content'][0]['type'] == 'image' %}{{ ':' }}{% else %}{{ ': ' }}{% endif %}"
    "{% for p in m['content'] %}{% if p['type'] == 'text' %}{{ p['text'] }}"
    "{% elif p['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}<end_of_utterance>\n{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)


def corpus() -> list[str]:
    """Sentences that the tiny tokenizers are trained on."""
    colours = "red blue green yellow black white".split()
    shapes = "circle square triangle star bar line".split()
    lines = []
    for index, colour in enumerate(colours):
        for shape in shapes:
            lines += [
                f"How many {colour} {shape}s are there?",
                f"There are {index + 2} {colour} {shape}s in the picture.\n\nAnswer: {index + 2}",
                f"Is the {shape} {colour}? Answer with yes or no. The {shape} is {colour}, so yes.",
                f"Which {shape} is larger, the first or the second? Explain it.\nThe second {shape} is larger.",
                "User: Assistant: System: Let us count them. First 12, then 37, in total 49.\n\n",
            ]
    return lines


def smollm_tokenizer(num_merges: int = 150) -> Tokenizer:
    """Byte-level BPE in the shape of SmolVLM's: digits one by one, markers as single special tokens."""
    tokenizer = Tokenizer(models.BPE())
    # Trained without the Digits step on purpose: merges with digits exist but must never be used, so an implementation
    # that loses Digits gives other ids.
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.train_from_iterator(
        corpus() + ["\n\n"] * 50,
        trainers.BpeTrainer(
            vocab_size=len(SMOLLM_SPECIALS) + 256 + num_merges,
            special_tokens=SMOLLM_SPECIALS,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=True, use_regex=True),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(
        [
            AddedToken(token, normalized=False, special=True)
            for token in ["<global-img>", *ROW_COL, "<fake_token_around_image>", "<image>"]
            + [f"<|reserved_special_token_{i}|>" for i in range(3)]
            + ["<end_of_utterance>"]
        ]
    )
    return tokenizer


def llama3_tokenizer(num_merges: int = 150) -> Tokenizer:
    """Byte-level BPE in the shape of Idefics3's: row markers are plain text, the post-processor adds BOS."""
    tokenizer = Tokenizer(models.BPE(ignore_merges=True))
    split = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(LLAMA3_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=True, use_regex=False),
        ]
    )
    tokenizer.pre_tokenizer = split
    tokenizer.train_from_iterator(
        corpus() + ["\n\n"] * 50,
        trainers.BpeTrainer(
            vocab_size=256 + num_merges,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    tokenizer.decoder = decoders.ByteLevel()
    specials = ["<|begin_of_text|>", "<|end_of_text|>", "<|reserved_special_token_0|>", "<|eot_id|>"]
    tokenizer.add_special_tokens(
        [
            AddedToken(token, normalized=False, special=True)
            for token in [*specials, "<fake_token_around_image>", "<image>", "<end_of_utterance>"]
        ]
    )
    bos = "<|begin_of_text|>"
    tokenizer.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=True),
            processors.TemplateProcessing(
                single=f"{bos} $A",
                pair=f"{bos} $A {bos} $B:1",
                special_tokens=[(bos, tokenizer.token_to_id(bos))],
            ),
        ]
    )
    return tokenizer


def write_json(path: Path, value) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def draw_weights(model: torch.nn.Module, seed: int) -> None:
    """Random weights with norms near one and biases that are not zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if "norm" in name and name.endswith("weight"):
                parameter.copy_(1.0 + 0.1 * noise)
            elif name.endswith("bias"):
                parameter.copy_(0.05 * noise)
            elif "position_embedding" in name:
                parameter.copy_(0.3 * noise)
            elif "embed_tokens" in name:
                # A tied table is the head as well; wide rows would make the model repeat its input.
                tied = model.config.tie_word_embeddings
                parameter.copy_((0.2 if tied else 0.5) * noise)
            elif "lm_head" in name:
                parameter.copy_(0.3 * noise)
            else:
                fan_in = parameter[0].numel()
                parameter.copy_(noise / fan_in**0.5)


def tokenizer_config(tokenizer: Tokenizer, tokenizer_class: str, **names) -> dict:
    decoder = {
        str(index): {
            "content": token.content,
            "lstrip": token.lstrip,
            "normalized": token.normalized,
            "rstrip": token.rstrip,
            "single_word": token.single_word,
            "special": token.special,
        }
        for index, token in sorted(tokenizer.get_added_tokens_decoder().items())
    }
    return {
        "add_prefix_space": False,
        "added_tokens_decoder": decoder,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 2048,
        "tokenizer_class": tokenizer_class,
        **names,
    }


SMOL_NAMES = dict(
    bos_token="<|im_start|>", eos_token="<end_of_utterance>", pad_token="<|im_end|>", unk_token="<|endoftext|>"
)
HALF = [0.5, 0.5, 0.5]


def preprocessor(kind: str, tile: int, longest: int, split: bool, processor_class: str) -> dict:
    return {
        "do_convert_rgb": True,
        "do_image_splitting": split,
        "do_normalize": True,
        "do_pad": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": HALF,
        "image_processor_type": kind,
        "image_std": HALF,
        "max_image_size": {"longest_edge": tile},
        "processor_class": processor_class,
        "resample": 1,
        "rescale_factor": 0.00392156862745098,
        "size": {"longest_edge": longest},
    }


def start(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)


def make_smolvlm(folder: Path) -> None:
    """After SmolVLM2-256M/500M: splitting on, bf16, untied head, three query heads per key/value head."""
    start(folder)
    tokenizer = smollm_tokenizer()
    ids = tokenizer.token_to_id
    config = {
        "architectures": ["SmolVLMForConditionalGeneration"],
        "image_token_id": ids("<image>"),
        "model_type": "smolvlm",
        "pad_token_id": 128002,
        "scale_factor": 2,
        "text_config": {
            "architectures": ["VLlama3ForCausalLM"],
            "head_dim": 16,
            "hidden_size": 48,
            "intermediate_size": 96,
            "max_position_embeddings": 2048,
            "model_type": "llama",
            "num_attention_heads": 3,
            "num_hidden_layers": 2,
            "num_key_value_heads": 1,
            "pad_token_id": ids("<|im_end|>"),
            "pixel_shuffle_factor": 2,
            "qk_layer_norms": False,
            "rms_norm_eps": 1e-05,
            "rope_interleaved": False,
            "rope_theta": 100000,
            "torch_dtype": "bfloat16",
            "use_resampler": False,
            "vocab_size": tokenizer.get_vocab_size(),
        },
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.47.1",
        "use_cache": False,
        "vision_config": {
            "hidden_size": 32,
            "image_size": 32,
            "intermediate_size": 64,
            "max_image_size": {"longest_edge": 32},
            "model_type": "smolvlm_vision",
            "num_attention_heads": 2,
            "num_hidden_layers": 2,
            "patch_size": 8,
            "size": {"longest_edge": 96},
            "tie_word_embeddings": False,
            "use_base_siglip": False,
        },
        "vocab_size": tokenizer.get_vocab_size(),
    }
    write_json(folder / "config.json", config)
    model = SmolVLMForConditionalGeneration(SmolVLMConfig.from_dict(config))
    draw_weights(model, 101)
    state = {name: value.to(torch.bfloat16).contiguous() for name, value in model.state_dict().items()}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    tokenizer.save(str(folder / "tokenizer.json"))
    names = dict(SMOL_NAMES, processor_class="SmolVLMProcessor", legacy=False, truncation_side="left")
    write_json(folder / "tokenizer_config.json", tokenizer_config(tokenizer, "GPT2Tokenizer", **names))
    extra = ["<fake_token_around_image>", "<image>", "<end_of_utterance>"]
    write_json(folder / "special_tokens_map.json", {"additional_special_tokens": extra, **SMOL_NAMES})
    write_json(folder / "chat_template.json", {"chat_template": TEMPLATE_PLAIN})
    image = preprocessor("SmolVLMImageProcessor", 32, 96, True, "SmolVLMProcessor")
    image["video_sampling"] = {"fps": 1, "max_frames": 64, "video_size": {"longest_edge": 32}}
    write_json(folder / "preprocessor_config.json", image)
    write_json(folder / "processor_config.json", {"image_seq_len": 4, "processor_class": "SmolVLMProcessor"})
    write_json(
        folder / "generation_config.json",
        {
            "_from_model_config": True,
            "bos_token_id": ids("<|im_start|>"),
            "eos_token_id": ids("<end_of_utterance>"),
            "pad_token_id": ids("<|im_end|>"),
            "transformers_version": "4.47.1",
        },
    )


def make_smolvlm_nosplit(folder: Path) -> None:
    """After SmolVLM-256M-Instruct: SmolVLM tokenizer around model_type idefics3, no splitting, tied at the root."""
    start(folder)
    tokenizer = smollm_tokenizer()
    ids = tokenizer.token_to_id
    config = {
        "architectures": ["Idefics3ForConditionalGeneration"],
        "image_token_id": ids("<image>"),
        "model_type": "idefics3",
        "scale_factor": 4,
        # head_dim, rms_norm_eps and max_position_embeddings are left to transformers' defaults.
        "text_config": {
            "hidden_size": 48,
            "intermediate_size": 96,
            "model_type": "llama",
            "num_attention_heads": 3,
            "num_hidden_layers": 2,
            "num_key_value_heads": 3,
            "rope_theta": 100000,
            "vocab_size": tokenizer.get_vocab_size(),
        },
        "tie_word_embeddings": True,
        "torch_dtype": "float32",
        "transformers_version": "4.46.0",
        "vision_config": {
            "hidden_size": 32,
            "image_size": 64,
            "intermediate_size": 64,
            "model_type": "idefics3_vision",
            "num_attention_heads": 2,
            "num_hidden_layers": 2,
            "patch_size": 8,
        },
    }
    write_json(folder / "config.json", config)
    model = Idefics3ForConditionalGeneration(Idefics3Config.from_dict(config))
    assert model.config.text_config.rms_norm_eps == 1e-6, "default of a missing rms_norm_eps"
    draw_weights(model, 102)
    state = {name: value.contiguous() for name, value in model.state_dict().items() if name != "lm_head.weight"}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    tokenizer.save(str(folder / "tokenizer.json"))
    names = dict(SMOL_NAMES, processor_class="Idefics3Processor", legacy=False, truncation_side="left")
    write_json(folder / "tokenizer_config.json", tokenizer_config(tokenizer, "GPT2Tokenizer", **names))
    extra = ["<fake_token_around_image>", "<image>", "<end_of_utterance>"]
    write_json(folder / "special_tokens_map.json", {"additional_special_tokens": extra, **SMOL_NAMES})
    (folder / "chat_template.jinja").write_text(TEMPLATE_GENERATION)
    image = preprocessor("Idefics3ImageProcessor", 64, 128, False, "Idefics3Processor")
    write_json(folder / "preprocessor_config.json", image)
    write_json(folder / "processor_config.json", {"image_seq_len": 4, "processor_class": "Idefics3Processor"})
    write_json(
        folder / "generation_config.json",
        {
            "_from_model_config": True,
            "bos_token_id": ids("<|im_start|>"),
            "eos_token_id": [ids("<end_of_utterance>")],
            "pad_token_id": ids("<|im_end|>"),
            "transformers_version": "4.46.0",
        },
    )


def make_smolvlm_v5(folder: Path) -> None:
    """A checkpoint saved by transformers 5 itself: rope_parameters, dtype, everything of the processor in one file."""
    start(folder)
    raw = smollm_tokenizer()
    ids = raw.token_to_id
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, model_max_length=2048, **SMOL_NAMES)
    config = SmolVLMConfig(
        image_token_id=ids("<image>"),
        scale_factor=2,
        tie_word_embeddings=False,
        text_config=dict(
            model_type="llama",
            head_dim=16,
            hidden_size=48,
            intermediate_size=80,
            max_position_embeddings=2048,
            num_attention_heads=4,
            num_hidden_layers=3,
            num_key_value_heads=2,
            pad_token_id=ids("<|im_end|>"),
            rms_norm_eps=1e-5,
            rope_parameters={"rope_type": "default", "rope_theta": 100000.0},
            # More rows than the tokenizer has tokens, as padded vocabularies have.
            vocab_size=(raw.get_vocab_size() // 16 + 1) * 16,
        ),
        vision_config=dict(
            hidden_size=32,
            image_size=32,
            intermediate_size=48,
            num_attention_heads=2,
            num_hidden_layers=2,
            patch_size=8,
        ),
    )
    model = SmolVLMForConditionalGeneration(config)
    draw_weights(model, 103)
    model.to(torch.bfloat16)
    model.generation_config.eos_token_id = ids("<end_of_utterance>")
    model.generation_config.bos_token_id = ids("<|im_start|>")
    model.generation_config.pad_token_id = ids("<|im_end|>")
    model.save_pretrained(folder)
    image = SmolVLMImageProcessorPil(
        do_image_splitting=True,
        image_mean=HALF,
        image_std=HALF,
        max_image_size={"longest_edge": 32},
        size={"longest_edge": 64},
        resample=1,
    )
    video = SmolVLMVideoProcessor(
        size={"longest_edge": 64},
        max_image_size={"longest_edge": 32},
        video_sampling={"fps": 1, "max_frames": 64, "video_size": {"longest_edge": 32}},
    )
    processor = SmolVLMProcessor(
        image, tokenizer, video, image_seq_len=4, chat_template=TEMPLATE_GENERATION
    )
    processor.save_pretrained(folder)


def make_idefics3(folder: Path) -> None:
    """After Idefics3-8B-Llama3: llama3 rope scaling, BOS from the post-processor, two shards."""
    start(folder)
    tokenizer = llama3_tokenizer()
    ids = tokenizer.token_to_id
    config = {
        "architectures": ["Idefics3ForConditionalGeneration"],
        "image_token_id": ids("<image>"),
        "model_type": "idefics3",
        "pad_token_id": 128002,
        "scale_factor": 2,
        "text_config": {
            "_name_or_path": "None",
            "attention_bias": False,
            "hidden_size": 48,
            "intermediate_size": 96,
            "max_position_embeddings": 4096,
            "mlp_bias": False,
            "model_type": "llama",
            "num_attention_heads": 3,
            "num_hidden_layers": 2,
            "num_key_value_heads": 1,
            "pad_token_id": 2,
            "rms_norm_eps": 1e-05,
            "rope_scaling": {
                "factor": 8.0,
                "high_freq_factor": 4.0,
                "low_freq_factor": 1.0,
                # Small, so that all three branches of the scaling are taken at head_dim 16.
                "original_max_position_embeddings": 256,
                "rope_type": "llama3",
            },
            "rope_theta": 10000.0,
            "torch_dtype": "bfloat16",
            "vocab_size": tokenizer.get_vocab_size(),
        },
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.44.0",
        "use_cache": True,
        "vision_config": {
            "hidden_size": 32,
            "image_size": 56,
            "intermediate_size": 64,
            "model_type": "idefics3_vision",
            "num_attention_heads": 2,
            "num_hidden_layers": 2,
            "patch_size": 14,
        },
    }
    write_json(folder / "config.json", config)
    model = Idefics3ForConditionalGeneration(Idefics3Config.from_dict(config))
    draw_weights(model, 104)
    state = {name: value.to(torch.bfloat16).contiguous() for name, value in model.state_dict().items()}
    shards = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    # Interleaved on purpose: a layer's tensors may lie in different files.
    where = {name: shards[index % 2] for index, name in enumerate(sorted(state))}
    for shard in shards:
        part = {name: value for name, value in state.items() if where[name] == shard}
        save_file(part, folder / shard, metadata={"format": "pt"})
    size = sum(value.numel() * value.element_size() for value in state.values())
    write_json(folder / "model.safetensors.index.json", {"metadata": {"total_size": size}, "weight_map": where})
    tokenizer.save(str(folder / "tokenizer.json"))
    names = dict(bos_token="<|begin_of_text|>", eos_token="<|end_of_text|>", pad_token="<|end_of_text|>")
    write_json(
        folder / "tokenizer_config.json",
        tokenizer_config(tokenizer, "PreTrainedTokenizerFast", processor_class="Idefics3Processor", **names),
    )
    extra = ["<fake_token_around_image>", "<image>", "<end_of_utterance>"]
    write_json(folder / "special_tokens_map.json", {"additional_special_tokens": extra, **names})
    write_json(folder / "chat_template.json", {"chat_template": TEMPLATE_ONE_LINE})
    image = preprocessor("Idefics3ImageProcessor", 56, 112, True, "Idefics3Processor")
    write_json(folder / "preprocessor_config.json", image)
    write_json(folder / "processor_config.json", {"image_seq_len": 4, "processor_class": "Idefics3Processor"})
    write_json(
        folder / "generation_config.json",
        {
            "_from_model_config": True,
            "bos_token_id": ids("<|begin_of_text|>"),
            "eos_token_id": [ids("<|end_of_text|>"), ids("<end_of_utterance>")],
            "pad_token_id": ids("<|end_of_text|>"),
            "transformers_version": "4.44.0",
        },
    )


MAKERS = {
    "smolvlm": make_smolvlm,
    "smolvlm_nosplit": make_smolvlm_nosplit,
    "smolvlm_v5": make_smolvlm_v5,
    "idefics3": make_idefics3,
}


def load_processor(folder: Path):
    """The processor of a folder, with tokenizer.json as the truth.

    AutoProcessor rebuilds GPT2Tokenizer for model_type idefics3 and loses the Digits step, so the tokenizer is loaded
    as it stands in the file.
    """
    model_type = json.loads((folder / "config.json").read_text())["model_type"]
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    settings = json.loads((folder / "processor_config.json").read_text())
    if (folder / "chat_template.jinja").exists():
        template = (folder / "chat_template.jinja").read_text()
    else:
        template = json.loads((folder / "chat_template.json").read_text())["chat_template"]
    kwargs = dict(image_seq_len=settings["image_seq_len"], chat_template=template)
    if model_type == "smolvlm":
        image = SmolVLMImageProcessorPil.from_pretrained(folder)
        video = SmolVLMVideoProcessor.from_pretrained(folder)
        return SmolVLMProcessor(image, tokenizer, video, **kwargs)
    image = Idefics3ImageProcessorPil.from_pretrained(folder)
    return Idefics3Processor(image, tokenizer, **kwargs)

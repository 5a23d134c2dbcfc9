"""Random tiny checkpoints of the text families and of Qwen's vision-language families, and what transformers makes of
them. File layouts, key names and quirks are those of published checkpoints; weights, words and templates are ours.

The parity files hold the same things as those of fixture_parity.py, smaller: no logits, no image features, and pictures
as `CONVERSATION.levels.N`, the 8-bit value before normalising of every pixel that picture N was resized to.
"""

import json
import unicodedata
from pathlib import Path

import numpy as np
import torch
from fixture_models import corpus, draw_weights, smollm_tokenizer, start, tokenizer_config, write_json
from fixture_parity import ADAMW, CONVERSATIONS, GRADIENT_OF, NUM_GREEDY, NUM_STEPS, assistant, text, user, with_pictures
from safetensors.torch import save_file
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, PreTrainedTokenizerFast

QWEN_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN_SPECIALS = (
    "<|endoftext|> <|im_start|> <|im_end|> <|object_ref_start|> <|object_ref_end|> <|box_start|> <|box_end|> "
    "<|quad_start|> <|quad_end|> <|vision_start|> <|vision_end|> <|vision_pad|> <|image_pad|> <|video_pad|>"
).split()
# Added, but not special: they are ordinary text to whoever strips special tokens.
QWEN_PLAIN = "<tool_call> </tool_call> <think> </think>".split()

TURNS = """\
{%- for message in messages %}
    {%- if loop.first and message.role != 'system' and SYSTEM %}
        {{- '<|im_start|>system\\nAnswer in few words.<|im_end|>\\n' }}
    {%- endif %}
    {{- '<|im_start|>' + message.role + '\\n' }}
    {%- if message.content is string %}
        {{- message.content }}
    {%- else %}
        {%- for part in message.content %}
            {%- if part.type == 'image' or 'image' in part %}
                {{- '<|vision_start|><|image_pad|><|vision_end|>' }}
            {%- elif 'text' in part %}
                {{- part.text }}
            {%- endif %}
        {%- endfor %}
    {%- endif %}
    {{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""
TEXT_TURNS = (
    "{% for m in messages %}{% if loop.first and messages[0]['role'] != 'system' and SYSTEM %}"
    "{{ '<|im_start|>system\nAnswer in few words.<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def with_system(template: str, on: bool) -> str:
    return template.replace("SYSTEM", "true" if on else "false")


def qwen_tokenizer(num_merges: int = 120) -> Tokenizer:
    """Byte-level BPE in the shape of Qwen's: NFC, one digit a piece, added tokens after the vocabulary."""
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
            vocab_size=256 + num_merges, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
        ),
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in QWEN_SPECIALS])
    tokenizer.add_tokens([AddedToken(token, normalized=False, special=False) for token in QWEN_PLAIN])
    return tokenizer


def text_config(tokenizer: Tokenizer, **changes) -> dict:
    """A decoder of the smallest size in which every number differs from its neighbours."""
    return {
        "hidden_act": "silu",
        "hidden_size": 32,
        "intermediate_size": 72,
        "max_position_embeddings": 2048,
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-06,
        "rope_theta": 1000000.0,
        "vocab_size": (tokenizer.get_vocab_size() // 16 + 1) * 16,
        **changes,
    }


def write_folder(folder, tokenizer, config, template, seed, dtype, rename=(), num_shards=1, names=None, jinja=False):
    """Config, random weights under the names that `rename` spells, tokenizer and template."""
    write_json(folder / "config.json", config)
    parsed = AutoConfig.from_pretrained(folder)
    auto = AutoModelForImageTextToText if "vision_config" in config else AutoModelForCausalLM
    model = auto.from_config(parsed)
    draw_weights(model, seed)
    state = {}
    tied = model.config.tie_word_embeddings or config.get("tie_word_embeddings")
    for name, value in model.state_dict().items():
        if tied and name == "lm_head.weight":
            continue
        for ours, theirs in rename:
            if name.startswith(ours):
                name = theirs + name[len(ours) :]
                break
        state[name] = value.to(dtype).contiguous()
    if num_shards == 1:
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    else:
        shards = [f"model-{i + 1:05}-of-{num_shards:05}.safetensors" for i in range(num_shards)]
        # Interleaved on purpose: a layer's tensors may lie in different files.
        where = {name: shards[index % num_shards] for index, name in enumerate(sorted(state))}
        for shard in shards:
            part = {name: value for name, value in state.items() if where[name] == shard}
            save_file(part, folder / shard, metadata={"format": "pt"})
        size = sum(value.numel() * value.element_size() for value in state.values())
        write_json(folder / "model.safetensors.index.json", {"metadata": {"total_size": size}, "weight_map": where})
    tokenizer.save(str(folder / "tokenizer.json"))
    names = names or dict(bos_token=None, eos_token="<|im_end|>", pad_token="<|endoftext|>", unk_token=None)
    settings = tokenizer_config(tokenizer, "Qwen2Tokenizer", **names)
    if jinja:
        (folder / "chat_template.jinja").write_text(template)
    else:
        settings["chat_template"] = template
    write_json(folder / "tokenizer_config.json", settings)
    ids = tokenizer.token_to_id
    ends = [ids("<|im_end|>"), ids("<|endoftext|>")]
    write_json(folder / "generation_config.json", {"eos_token_id": ends, "pad_token_id": ends[1]})


def make_llama(folder: Path) -> None:
    """After SmolLM2-135M-Instruct: tied, one file, no normaliser, template in tokenizer_config."""
    start(folder)
    tokenizer = smollm_tokenizer()
    config = {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "eos_token_id": 2,
        "mlp_bias": False,
        "model_type": "llama",
        "rope_interleaved": False,
        "rope_scaling": None,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        **text_config(tokenizer, rms_norm_eps=1e-05, rope_theta=100000),
    }
    names = dict(
        bos_token="<|im_start|>", eos_token="<|im_end|>", pad_token="<|im_end|>", unk_token="<|endoftext|>"
    )
    template = with_system(TEXT_TURNS, True)
    write_folder(folder, tokenizer, config, template, 201, torch.bfloat16, names=names)


def make_qwen2(folder: Path) -> None:
    """After Qwen2.5-0.5B-Instruct: biases on query, key and value, default system turn, more rows than tokens."""
    start(folder)
    tokenizer = qwen_tokenizer()
    config = {
        "architectures": ["Qwen2ForCausalLM"],
        "attention_dropout": 0.0,
        "max_window_layers": 2,
        "model_type": "qwen2",
        "sliding_window": 32768,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "use_sliding_window": False,
        **text_config(tokenizer),
    }
    write_folder(folder, tokenizer, config, with_system(TEXT_TURNS, True), 202, torch.bfloat16)


def make_qwen3(folder: Path) -> None:
    """After Qwen3-0.6B: head_dim larger than width / heads, norms of heads, tied, no default system turn."""
    start(folder)
    tokenizer = qwen_tokenizer()
    config = {
        "architectures": ["Qwen3ForCausalLM"],
        "attention_bias": False,
        "head_dim": 16,
        "max_window_layers": 2,
        "model_type": "qwen3",
        "rope_scaling": None,
        "sliding_window": None,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "use_sliding_window": False,
        **text_config(tokenizer),
    }
    write_folder(folder, tokenizer, config, with_system(TEXT_TURNS, False), 203, torch.bfloat16)


TEXT_MAKERS = {"llama": make_llama, "qwen2": make_qwen2, "qwen3": make_qwen3}

TEXT_CONVERSATIONS = {
    "question": [user(text("How many red circles are there?")), assistant("There are 3.")],
    "system": CONVERSATIONS["text_only"],
    "multi_turn": [
        user(text("Is the circle red?")),
        assistant("yes"),
        user(text("And how many triangles? Look again:  12 or 37?\n\n")),
        assistant("The second.\n\nIt has 12 lines, so the answer is 37."),
    ],
    # Decomposed: NFC puts the letters together.
    "composed": [user(text(unicodedata.normalize("NFD", "Déjà vu für élan?"))), assistant("Là.")],
}


def render(tokenizer, messages: list, prompt: bool, with_parts: bool) -> str:
    if not with_parts:
        words = lambda message: "".join(part["text"] for part in message["content"])
        messages = [{"role": message["role"], "content": words(message)} for message in messages]
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt)


def load_family(folder: Path):
    """Model, tokenizer, processor (None for text models) of a folder."""
    config = json.loads((folder / "config.json").read_text())
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    auto = AutoModelForImageTextToText if "vision_config" in config else AutoModelForCausalLM
    model, info = auto.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    problems = {key: value for key, value in info.items() if value}
    assert not problems, problems
    processor = None
    if "vision_config" in config:
        from fixture_qwen import load_processor

        processor = load_processor(folder, tokenizer)
    return model.eval(), tokenizer, processor


def encode(tokenizer, processor, messages: list, pictures: Path) -> dict:
    """Prompt and completion of a conversation, by the rules of fixture_parity."""
    end = tokenizer.eos_token
    prompt_text = render(tokenizer, messages[:-1], True, processor is not None)
    full_text = render(tokenizer, messages, False, processor is not None)
    assert full_text.startswith(prompt_text), (full_text, prompt_text)
    rest = full_text[len(prompt_text) :]
    completion_text = rest[: rest.index(end) + len(end)]
    extra = {}
    if processor is None:
        ids = tokenizer(prompt_text, add_special_tokens=False, return_tensors="pt")["input_ids"][0]
    else:
        images = with_pictures(messages, pictures)
        inputs = processor(text=[prompt_text], images=images or None, return_tensors="pt")
        ids = inputs["input_ids"][0]
        extra = {key: value for key, value in inputs.items() if key not in ("input_ids", "attention_mask")}
    return {
        "prompt_text": prompt_text,
        "completion_text": completion_text,
        "prompt_ids": ids,
        "completion_ids": torch.tensor(tokenizer(completion_text, add_special_tokens=False)["input_ids"]),
        "extra": extra,
    }


def score(model, sample: dict):
    """Log-probability and entropy of every completion token."""
    ids = torch.cat([sample["prompt_ids"], sample["completion_ids"]])[None]
    extra = dict(sample["extra"])
    if "mm_token_type_ids" in extra:
        kinds = torch.zeros_like(ids)
        kinds[:, : len(sample["prompt_ids"])] = extra["mm_token_type_ids"]
        extra["mm_token_type_ids"] = kinds
    logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), **extra).logits[0].float()
    rows = torch.log_softmax(logits[len(sample["prompt_ids"]) - 1 : -1], dim=-1)
    logprob = rows.gather(1, sample["completion_ids"][:, None])[:, 0]
    return logprob, -(rows.exp() * rows).sum(-1)


def greedy(model, sample: dict):
    """Greedy continuation and the smallest gap between the best and the second-best logit on the way."""
    ids = sample["prompt_ids"][None]
    out = model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        max_new_tokens=NUM_GREEDY,
        return_dict_in_generate=True,
        output_logits=True,
        **sample["extra"],
    )
    gaps = [float(-torch.diff(step[0].topk(2).values)) for step in out.logits]
    return out.sequences[0, ids.shape[1] :].tolist(), min(gaps)


def mean_nll(model, samples: dict) -> torch.Tensor:
    scored = [score(model, sample)[0] for sample in samples.values()]
    return -torch.cat(scored).mean()


def make_family_parity(name: str, models_folder: Path, pictures: Path, out: Path) -> None:
    torch.manual_seed(0)
    folder = models_folder / name
    model, tokenizer, processor = load_family(folder)
    conversations = TEXT_CONVERSATIONS if processor is None else CONVERSATIONS
    gradient_of = "multi_turn" if processor is None else GRADIENT_OF
    tensors, samples, report = {}, {}, {}
    image_token = None
    if processor is not None:
        from fixture_qwen import level_table, levels_of

        image_token = model.config.image_token_id
        table = level_table(processor)
        tensors["pixel_table"] = torch.from_numpy(table.copy())
    for key, messages in conversations.items():
        sample = samples[key] = encode(tokenizer, processor, messages, pictures)
        with torch.no_grad():
            logprob, entropy = score(model, sample)
            tokens, gap = greedy(model, sample)
        entry = report[key] = {
            "messages": messages,
            "prompt_text": sample["prompt_text"],
            "completion_text": sample["completion_text"],
            "prompt_ids": sample["prompt_ids"].tolist(),
            "completion_ids": sample["completion_ids"].tolist(),
            "placements": [],
            "num_tiles": 0,
            "logprobs": logprob.tolist(),
            "entropy": entropy.tolist(),
            "greedy_ids": tokens,
            "greedy_smallest_gap": gap,
        }
        if "pixel_values" in sample["extra"]:
            entry["placements"] = (sample["prompt_ids"] == image_token).nonzero()[:, 0].tolist()
            for index, levels in enumerate(levels_of(processor, table, sample["extra"])):
                tensors[f"{key}.levels.{index}"] = torch.from_numpy(np.ascontiguousarray(levels))
                entry["num_tiles"] += 1

    (-score(model, samples[gradient_of])[0].mean()).backward()
    squares = 0.0
    for parameter_name, parameter in model.named_parameters():
        gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        tensors[f"gradient.{parameter_name}"] = gradient.contiguous()
        squares += float(gradient.double().square().sum())

    # Ten full-batch AdamW steps from the stored weights; the loss before each step, and after the last.
    model = load_family(folder)[0]
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
        "gradient": {"of": gradient_of, "loss": "mean NLL over its completion", "norm": squares**0.5},
        "adamw": {**ADAMW, "losses": losses},
    }
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{name}.json").write_text(json.dumps(result, ensure_ascii=False, indent=1) + "\n")
    save_file(tensors, out / f"{name}.safetensors")

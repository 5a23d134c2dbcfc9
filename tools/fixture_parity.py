"""What transformers makes of a checkpoint: ids, pixels, log-probabilities, greedy answers, gradients, training losses.

All numbers are float32 on the CPU, eager attention, weights widened from the file's type. What counts as prompt and
completion: the prompt is the template over all messages but the last, with the generation prompt, expanded by the
processor; the completion is what the template renders after it, cut after the end token, tokenized on its own without
automatically added special tokens.
"""

import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from transformers import AutoModelForImageTextToText

from fixture_models import load_processor

END = "<end_of_utterance>"
NUM_GREEDY = 20
ADAMW = dict(lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01)
NUM_STEPS = 10


def image(name: str) -> dict:
    return {"type": "image", "image": name}


def text(value: str) -> dict:
    return {"type": "text", "text": value}


def user(*parts: dict) -> dict:
    return {"role": "user", "content": list(parts)}


def assistant(value: str) -> dict:
    return {"role": "assistant", "content": [text(value)]}


CONVERSATIONS = {
    "one_image": [user(image("scene.png"), text("How many red circles are there?")), assistant("There are 3.")],
    "two_images": [
        user(image("square.png"), image("tall.png"), text("Which one is larger? Explain it.")),
        assistant("The second.\n\nIt has 12 lines, so the answer is 37."),
    ],
    "multi_turn": [
        user(image("scene.png"), text("Is the circle red?")),
        assistant("yes"),
        user(text("And how many triangles? Look again: "), image("square.png"), text(" 12 or 37?")),
        assistant("49"),
    ],
    "text_only": [
        {"role": "system", "content": [text("Let us count.")]},
        user(text("Name a colour.\n Déjà vu — 日本 🙂  2026")),
        assistant("blue"),
    ],
    "line": [user(image("line.png"), text("How many bars?")), assistant("Answer: 12")],
    "speck": [user(text("The picture: "), image("speck.png"), text("\nWhat is it?")), assistant("white")],
    "large": [user(image("large.png"), text("Count the stars.")), assistant("First 12, then 37, in total 49.")],
    "glass": [user(image("glass.png"), text("What colour?")), assistant("Green, yellow and white.")],
}
GRADIENT_OF = "two_images"


def with_pictures(messages: list, pictures: Path) -> list:
    """The pictures of a conversation, in order."""
    return [
        Image.open(pictures / part["image"])
        for message in messages
        for part in message["content"]
        if part["type"] == "image"
    ]


def encode(processor, messages: list, pictures: Path) -> dict:
    """Prompt and completion of a conversation."""
    render = lambda turns, prompt: processor.apply_chat_template(turns, tokenize=False, add_generation_prompt=prompt)
    prompt_text = render(messages[:-1], True)
    full_text = render(messages, False)
    assert full_text.startswith(prompt_text), (full_text, prompt_text)
    rest = full_text[len(prompt_text) :]
    completion_text = rest[: rest.index(END) + len(END)]
    images = with_pictures(messages, pictures)
    tokenizer = processor.tokenizer
    # The template writes BOS where there is one; the post-processor must not add another.
    bos = tokenizer.bos_token
    add_special = not (bos and prompt_text.startswith(bos))
    kwargs = dict(text=[prompt_text], return_tensors="pt", add_special_tokens=add_special)
    inputs = processor(images=[images], **kwargs) if images else processor(**kwargs)
    completion_ids = tokenizer(completion_text, add_special_tokens=False)["input_ids"]
    return {
        "prompt_text": prompt_text,
        "completion_text": completion_text,
        "prompt_ids": inputs["input_ids"][0],
        "completion_ids": torch.tensor(completion_ids),
        "pixel_values": inputs.get("pixel_values"),
        "pixel_attention_mask": inputs.get("pixel_attention_mask"),
    }


def pixel_inputs(sample: dict) -> dict:
    if sample["pixel_values"] is None:
        return {}
    return {"pixel_values": sample["pixel_values"], "pixel_attention_mask": sample["pixel_attention_mask"]}


def score(model, sample: dict):
    """Log-probability and entropy of every completion token, and all logits."""
    ids = torch.cat([sample["prompt_ids"], sample["completion_ids"]])[None]
    logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), **pixel_inputs(sample)).logits[0].float()
    start = len(sample["prompt_ids"])
    rows = torch.log_softmax(logits[start - 1 : -1], dim=-1)
    logprob = rows.gather(1, sample["completion_ids"][:, None])[:, 0]
    entropy = -(rows.exp() * rows).sum(-1)
    return logprob, entropy, logits


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
        **pixel_inputs(sample),
    )
    tokens = out.sequences[0, ids.shape[1] :].tolist()
    gaps = [float(-torch.diff(step[0].topk(2).values)) for step in out.logits]
    return tokens, min(gaps)


def load_model(folder: Path):
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    return model.eval()


def mean_nll(model, samples: dict) -> torch.Tensor:
    """Mean negative log-probability over all completion tokens of all conversations: one global denominator."""
    total, count = 0.0, 0
    for sample in samples.values():
        logprob, _, _ = score(model, sample)
        total = total - logprob.sum()
        count += len(logprob)
    return total / count


def level_table(processor) -> np.ndarray:
    """The processor's normalised value of every 8-bit level, per channel."""
    settings = processor.image_processor
    levels = np.arange(256, dtype=np.uint8)[None, None].repeat(3, axis=0)
    rescaled = settings.rescale(levels, settings.rescale_factor)
    return settings.normalize(rescaled, settings.image_mean, settings.image_std)[:, 0, :].astype(np.float32)


def make_parity(name: str, models: Path, pictures: Path, out: Path) -> None:
    torch.manual_seed(0)
    folder = models / name
    processor = load_processor(folder)
    model = load_model(folder)
    table = level_table(processor)
    tensors = {"pixel_table": torch.from_numpy(table.copy())}
    samples, report = {}, {}
    for key, messages in CONVERSATIONS.items():
        sample = samples[key] = encode(processor, messages, pictures)
        with torch.no_grad():
            logprob, entropy, logits = score(model, sample)
            tokens, gap = greedy(model, sample)
        image_token = model.config.image_token_id
        placements = (sample["prompt_ids"] == image_token).nonzero()[:, 0].tolist()
        entry = report[key] = {
            "messages": messages,
            "prompt_text": sample["prompt_text"],
            "completion_text": sample["completion_text"],
            "prompt_ids": sample["prompt_ids"].tolist(),
            "completion_ids": sample["completion_ids"].tolist(),
            "placements": placements,
            "num_tiles": 0,
            "logprobs": logprob.tolist(),
            "entropy": entropy.tolist(),
            "mean_nll": float(-logprob.detach().mean()),
            "greedy_ids": tokens,
            "greedy_smallest_gap": gap,
        }
        # Logits that predict the first completion token, and those after the last one.
        tensors[f"{key}.prompt_logits"] = logits[len(sample["prompt_ids"]) - 1].contiguous()
        tensors[f"{key}.last_logits"] = logits[-1].contiguous()
        if sample["pixel_values"] is not None:
            pixels = sample["pixel_values"][0].numpy()
            # Every pixel is one of 256 levels per channel; storing the level loses nothing.
            levels = np.stack(
                [np.searchsorted(table[c], pixels[:, c].ravel()).reshape(pixels[:, c].shape) for c in range(3)], axis=1
            ).astype(np.uint8)
            restored = np.stack([table[c][levels[:, c]] for c in range(3)], axis=1)
            assert np.array_equal(restored, pixels), "levels do not restore the pixels"
            assert bool(sample["pixel_attention_mask"].all()), "padded tiles are not expected here"
            tensors[f"{key}.levels"] = torch.from_numpy(levels)
            entry["num_tiles"] = len(levels)
            with torch.no_grad():
                features = model.model.get_image_features(**pixel_inputs(sample)).pooler_output
            tensors[f"{key}.image_features"] = torch.cat(list(features)).contiguous()

    logprob, _, _ = score(model, samples[GRADIENT_OF])
    (-logprob.mean()).backward()
    squares = 0.0
    for parameter_name, parameter in model.named_parameters():
        gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        tensors[f"gradient.{parameter_name}"] = gradient.contiguous()
        squares += float(gradient.double().square().sum())

    # Ten full-batch AdamW steps from the stored weights; the loss before each step, and after the last.
    model = load_model(folder)
    optimizer = torch.optim.AdamW(model.parameters(), **ADAMW)
    losses, norms, after_one = [], [], {}
    for step in range(NUM_STEPS):
        optimizer.zero_grad()
        loss = mean_nll(model, samples)
        loss.backward()
        norms.append(float(torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])))
        optimizer.step()
        losses.append(float(loss.detach()))
        if step == 0:
            with torch.no_grad():
                after_one = {key: float(-score(model, sample)[0].mean()) for key, sample in samples.items()}
    with torch.no_grad():
        losses.append(float(mean_nll(model, samples)))

    result = {
        "model": name,
        "tokens": {"image": model.config.image_token_id, "end": processor.tokenizer.convert_tokens_to_ids(END)},
        "conversations": report,
        "gradient": {"of": GRADIENT_OF, "loss": "mean NLL over its completion", "norm": squares**0.5},
        "adamw": {
            **ADAMW,
            "loss": "sum of NLL over all completion tokens of all conversations, divided by their number",
            "losses": losses,
            "gradient_norms": norms,
            "mean_nll_after_one_step": after_one,
        },
    }
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{name}.json").write_text(json.dumps(result, ensure_ascii=False, indent=1) + "\n")
    save_file(tensors, out / f"{name}.safetensors")

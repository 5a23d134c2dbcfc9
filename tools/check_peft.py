"""Loads an adapter that Foveate saved with PEFT and compares its log-probabilities with Foveate's.

    python tools/check_peft.py path/to/foveate BASE_FOLDER ..

BASE_FOLDER is a small model in Hugging Face layout whose family Foveate knows (fixtures/models/smolvlm, say). For each
the script learns an adapter for a few steps, asks `foveate score` for log-probabilities with the adapter beside the
weights, loads the same folder with `peft`, scores the same tokens with PyTorch in float32, and demands 1e-4. All parts
have adapters, those that see as well; their rows hold pictures, and PEFT must know every tensor by its name. Then the
other way round: an adapter made by PEFT is scored by Foveate. Merged weights must agree as well.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile

import torch
from PIL import Image
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

RECIPE = """
name = "peft"
seed = 1
precision = "f32"
model = "{base}"
[lora]
rank = 4
alpha = 12.0
rank_stabilised = {stabilised}
vision = {vision}
connector = {vision}
[data]
train = {{ path = "rows.jsonl" }}
[eval]
before = false
after = false
[[stage]]
name = "examples"
rule = {{ kind = "sft" }}
questions_per_step = 2
steps = 3
optim = {{ lr = 0.02, warmup = 0 }}
"""

CONVERSATIONS = [
    [{"role": "user", "content": "How many apples are there?"}, {"role": "assistant", "content": "Answer: 3"}],
    [{"role": "user", "content": "Name a colour."}, {"role": "assistant", "content": "Blue, I think."}],
]


def run(*words, cwd):
    """A command that must succeed."""
    done = subprocess.run([str(word) for word in words], cwd=cwd, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{words}: {done.stdout}{done.stderr}")


def score(binary, model, here):
    """Rows of `foveate score`."""
    run(binary, "score", "--model", model, "--input", here / "c.jsonl", "--output", here / "s.jsonl", cwd=here)
    return [json.loads(line) for line in open(here / "s.jsonl")]


def largest_gap(model, rows):
    """Largest difference of a token's log-probability."""
    gap = 0.0
    for row in rows:
        ids = torch.tensor([row["prompt_ids"] + row["completion_ids"]])
        with torch.no_grad():
            logprobs = torch.log_softmax(model(input_ids=ids).logits.float(), -1)
        first = len(row["prompt_ids"])
        for place, (token, told) in enumerate(zip(row["completion_ids"], row["logprobs"])):
            gap = max(gap, abs(logprobs[0, first + place - 1, token].item() - told))
    return gap


def fresh(base):
    """The base model in PyTorch."""
    sees = hasattr(AutoConfig.from_pretrained(base), "vision_config")
    auto = AutoModelForImageTextToText if sees else AutoModelForCausalLM
    return auto.from_pretrained(base, dtype=torch.float32).eval()


def check(binary, base):
    """Compares both ways; gives the largest differences as text, or ends the program."""
    binary, base = binary.resolve(), base.resolve()
    sees = hasattr(AutoConfig.from_pretrained(base), "vision_config")
    with tempfile.TemporaryDirectory() as folder:
        here = pathlib.Path(folder)
        (here / "c.jsonl").write_text("".join(json.dumps({"messages": m}) + "\n" for m in CONVERSATIONS))
        rows = [{"id": str(i), "question": f"What is {i} + 1?", "answer": i + 1} for i in range(6)]
        if sees:
            for i, row in enumerate(rows):
                Image.new("RGB", (40 + 9 * i, 30), (30 * i, 90, 200 - 20 * i)).save(here / f"{i}.png")
                row["image"] = f"{i}.png"
        (here / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        before = largest_gap(fresh(base), score(binary, base, here))
        assert before < 1e-4, f"the base model differs by {before}"
        worst = 0.0
        for stabilised in ["false", "true"]:
            recipe = RECIPE.format(base=base, stabilised=stabilised, vision=str(sees).lower())
            (here / "r.toml").write_text(recipe)
            run(binary, "train", "r.toml", "--out", f"run-{stabilised}", cwd=here)
            adapter = here / f"run-{stabilised}/checkpoints/step-000003"
            told = score(binary, adapter, here)
            loaded = PeftModel.from_pretrained(fresh(base), adapter).eval()
            tensors = load_file(adapter / "adapter_model.safetensors")
            there = {name.replace(".default", "") for name, _ in loaded.named_parameters() if "lora_" in name}
            assert set(tensors) == there, f"PEFT has other tensors: {sorted(set(tensors) ^ there)[:4]}"
            still = [name for name, tensor in tensors.items() if "lora_B" in name and not tensor.any()]
            assert not still, f"never learned: {still[:4]}"
            beside = largest_gap(loaded, told)
            moved = largest_gap(fresh(base), told)
            merged = here / f"merged-{stabilised}"
            run(binary, "model", "merge", adapter, "--out", merged, "--dtype", "f32", cwd=here)
            plain = largest_gap(fresh(merged), told)
            assert beside < 1e-4 and plain < 1e-4 and moved > 1e-3, (beside, plain, moved)
            worst = max(worst, beside, plain)
        torch.manual_seed(0)
        made = get_peft_model(fresh(base), LoraConfig(r=3, lora_alpha=7, target_modules=["q_proj", "down_proj"]))
        for name, parameter in made.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.1)
        made.base_model.model.config._name_or_path = str(base)
        made.peft_config["default"].base_model_name_or_path = str(base)
        made.save_pretrained(here / "from-peft")
        gap = largest_gap(made.eval(), score(binary, here / "from-peft", here))
        assert gap < 1e-4, f"an adapter made by PEFT differs by {gap}"
        return f"{max(worst, gap):.0e}, {len(tensors)} tensors"


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("binary", type=pathlib.Path)
    parser.add_argument("base", type=pathlib.Path, nargs="+")
    arguments = parser.parse_args()
    for base in arguments.base:
        print(f"{base.name}: {check(arguments.binary, base)}", flush=True)


if __name__ == "__main__":
    main()

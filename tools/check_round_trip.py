"""Weights on a round trip: Foveate saves a model, `transformers` loads and saves that, Foveate loads and saves it again.

    python tools/check_round_trip.py path/to/foveate MODEL_FOLDER ..

MODEL_FOLDER is a model in Hugging Face layout (fixtures/models/smolvlm, say, or what tools/smollm2.py makes). Demands that
no byte of a weight changes on the way, and that Foveate scores the same tokens with the same log-probabilities, bit for
bit, before and after. Names may change: `transformers` writes those of its own version. Tokenizers may change too: that of
SmolVLM 1 loses the step that cuts numbers into digits, and then the model is scored with the one that it had.
"""

import hashlib
import json
import pathlib
import shutil
import subprocess
import sys
import tempfile

import torch
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, AutoProcessor, AutoTokenizer

CONVERSATION = [
    {"role": "user", "content": "How many apples are there?"},
    {"role": "assistant", "content": "There are 3."},
]


def run(*words):
    """A command that must succeed."""
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{words}: {done.stdout}{done.stderr}")


def resave(binary, model, out):
    """The whole of a model and nothing of another one."""
    run(binary, "model", "merge", model, model, "--weights", "1,0", "--dtype", "f32", "--out", out)


def tensors(folder):
    """Shape, type and content of every tensor, each once: a tied head may be stored or not."""
    found = set()
    for path in folder.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            for name in file.keys():
                tensor = file.get_tensor(name)
                content = hashlib.sha256(tensor.contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()
                found.add((tuple(tensor.shape), str(tensor.dtype), content))
    return found


def score(binary, model, here):
    """Log-probabilities of the answer."""
    (here / "c.jsonl").write_text(json.dumps({"messages": CONVERSATION}) + "\n")
    run(binary, "score", "--model", model, "--input", here / "c.jsonl", "--output", here / "s.jsonl")
    row = json.loads((here / "s.jsonl").read_text())
    return row["prompt_ids"], row["completion_ids"], row["logprobs"]


def check(binary, model):
    """What was equal, as text, or the end of the program."""
    sees = hasattr(AutoConfig.from_pretrained(model), "vision_config")
    with tempfile.TemporaryDirectory() as folder:
        here = pathlib.Path(folder)
        ours, theirs, again = here / "ours", here / "theirs", here / "again"
        resave(binary, model, ours)
        auto = AutoModelForImageTextToText if sees else AutoModelForCausalLM
        auto.from_pretrained(ours, dtype=torch.float32).save_pretrained(theirs)
        (AutoProcessor if sees else AutoTokenizer).from_pretrained(ours).save_pretrained(theirs)
        resave(binary, theirs, again)
        first, last = tensors(ours), tensors(again)
        assert first == last, f"{model.name}: {len(first ^ last)} tensors differ: {sorted(first ^ last)[:3]}"
        before, after = score(binary, ours, here), score(binary, again, here)
        changed = before[:2] != after[:2]
        if changed:
            shutil.copy(ours / "tokenizer.json", again / "tokenizer.json")
            after = score(binary, again, here)
        assert before == after, f"{model.name}: log-probabilities differ"
        note = "; with its own tokenizer: the one that came back makes other tokens" if changed else ""
        return f"{len(first)} tensors, byte for byte{note}"


def main():
    binary = pathlib.Path(sys.argv[1]).resolve()
    for word in sys.argv[2:]:
        model = pathlib.Path(word).resolve()
        print(f"{model.name}: {check(binary, model)}", flush=True)


if __name__ == "__main__":
    main()

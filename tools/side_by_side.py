#!/usr/bin/env python3
"""Foveate beside PyTorch, transformers and trl: the same shapes, weights, threads and machine, turn by turn.

    python tools/side_by_side.py --foveate target/release/foveate [--only train-16,sample-32] [--write docs/performance.md]

Needs torch, transformers, and for the last case trl and datasets, in the Python that runs it; nothing else in the
repository does. Each case keeps one PyTorch process alive with everything loaded; turns alternate between it and
Foveate, and the table gives medians and the median of the ratios pair by pair. PyTorch gets its best chance: every
setting listed for a case is tried and the fastest counts.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# What is wanted of a case.
FLOORS = {
    "train-4": "2.5x", "train-16": "3x", "train-16-f32": "1.3x", "sample-32": "5x", "sample-1": "2x", "tower": "2x",
    "group": "3.5x", "threads-train": "1.8x", "threads-sample": "1.8x", "memory": "8 GiB", "grpo": "10x",
}
MARKS = ("<!-- side by side: begin -->", "<!-- side by side: end -->")


# ---------------------------------------------------------------------------------------------- the PyTorch side


def torch_setting(name):
    import torch

    dtype = torch.float32 if "f32" in name else torch.bfloat16
    return dtype, "autocast" in name, "compile" in name


def torch_train(folder, setting, rows, tokens):
    import torch
    from transformers import AutoModelForCausalLM

    dtype, autocast, compiled = torch_setting(setting)
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32 if autocast else dtype, attn_implementation="sdpa"
    )
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    ids = torch.randint(0, model.config.vocab_size, (rows, tokens))
    forward = torch.compile(model) if compiled else model

    def step():
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            loss = forward(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    return step


def torch_sample(folder, setting, sequences, prompt, tokens):
    import torch
    from transformers import AutoModelForCausalLM

    dtype, _, _ = torch_setting(setting)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="sdpa").eval()
    ids = torch.randint(0, model.config.vocab_size, (sequences, prompt))
    cache = {"cache_implementation": "static"} if "static" in setting else {}

    def step():
        with torch.inference_mode():
            out = model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                do_sample=True,
                top_k=0,
                min_new_tokens=tokens,
                max_new_tokens=tokens,
                pad_token_id=0,
                **cache,
            )
        assert out.shape[1] == prompt + tokens

    return step


def torch_tower(setting):
    import torch
    from transformers import SiglipVisionConfig, SiglipVisionModel

    dtype, autocast, compiled = torch_setting(setting)
    config = SiglipVisionConfig(
        hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12, image_size=512,
        patch_size=16, attn_implementation="sdpa",
    )
    # The pooling head is no part of a vision-language model.
    config.vision_use_head = False
    model = SiglipVisionModel(config)
    model = model if autocast else model.to(dtype)
    model.train()
    forward = torch.compile(model) if compiled else model
    pixels = torch.rand(1, 3, 512, 512, dtype=torch.float32 if autocast else dtype)

    def step():
        model.zero_grad(set_to_none=True)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            out = forward(pixel_values=pixels).last_hidden_state
        out.float().square().mean().backward()

    return step


def serve_torch(argv):
    """A child process: loads, warms up, then runs one step per line of input and prints its seconds."""
    spec = json.loads(argv)
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    torch.set_num_threads(spec["threads"])
    torch.manual_seed(0)
    make = {"train": torch_train, "sample": torch_sample, "tower": torch_tower}[spec["work"]]
    step = make(**spec["args"])
    step()
    step()
    print("ready", flush=True)
    for _ in sys.stdin:
        start = time.perf_counter()
        step()
        print(time.perf_counter() - start, flush=True)


class Torch:
    def __init__(self, work, threads, env=None, **args):
        spec = json.dumps({"work": work, "threads": threads, "args": args})
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--serve", spec], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={**os.environ, **(env or {})},
        )
        while True:
            line = self.process.stdout.readline()
            if line.strip() == "ready":
                break
            if not line:
                raise RuntimeError(f"PyTorch could not run {work} {args}")

    def turn(self):
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return float(self.process.stdout.readline())

    def close(self):
        self.process.stdin.close()
        self.process.wait()


# ---------------------------------------------------------------------------------------------- the Foveate side


class Foveate:
    def __init__(self, binary, threads, *args, env=None):
        self.command = [binary, "bench", *map(str, args), "--json", "--rounds", "2", "--threads", str(threads)]
        self.env = {**os.environ, **(env or {})}
        self.peak_gib = 0.0

    def turn(self):
        out = subprocess.run(self.command, env=self.env, capture_output=True, text=True, check=True).stdout
        result = json.loads(out)
        self.peak_gib = max(self.peak_gib, result["peak_memory_gib"] or 0.0)
        return min(result["seconds"])

    def close(self):
        pass


# ---------------------------------------------------------------------------------------------- cases


def alternate(one, other, rounds):
    """Seconds of both, turn by turn; both have warmed up before they take the time."""
    pairs = [(one.turn(), other.turn()) for _ in range(rounds)]
    one.close()
    other.close()
    return pairs


def summary(pairs):
    mine = statistics.median(a for a, _ in pairs)
    theirs = statistics.median(b for _, b in pairs)
    return mine, theirs, statistics.median(b / a for a, b in pairs)


def against_torch(foveate, work, threads, settings, rounds, env=None, **args):
    best = None
    for setting in settings:
        try:
            torch_side = Torch(work, threads, env, setting=setting, **args)
        except RuntimeError as error:
            print(f"  {setting}: {error}", file=sys.stderr)
            continue
        pairs = alternate(foveate, torch_side, rounds)
        mine, theirs, ratio = summary(pairs)
        print(f"  {setting}: {mine * 1e3:.0f} ms against {theirs * 1e3:.0f} ms, {ratio:.2f}x", file=sys.stderr)
        if best is None or theirs < best[1]:
            best = (mine, theirs, ratio, setting)
    if best is None:
        sys.exit(f"PyTorch could run none of {settings} for {work}")
    return best


def llama_folder(where):
    """The shape of SmolLM2-135M with random weights, saved by transformers."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = where / "llama-135m"
    if not folder.exists():
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9,
            num_key_value_heads=3, max_position_embeddings=8192, rms_norm_eps=1e-5, tie_word_embeddings=True,
        )
        LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    return str(folder)


def trl_steps(model, rows, threads, steps, where):
    """Seconds of optimiser steps of trl's GRPO trainer, and the mean length of its answers."""
    code = r"""
import json, sys, time, torch
from datasets import Dataset, Image
from transformers import TrainerCallback
from trl import GRPOConfig, GRPOTrainer
spec = json.loads(sys.argv[1])
torch.set_num_threads(spec["threads"])
lines = [json.loads(line) for line in open(spec["rows"])]
rows = [{"prompt": [{"role": "user", "content": line["question"]}], "image": line["image"], "answer": line["answer"]}
        for line in lines]
data = Dataset.from_list(rows).cast_column("image", Image())
def accuracy(completions, answer, **_):
    texts = [c[0]["content"] if isinstance(c, list) else c for c in completions]
    return [float(t.strip().endswith(f"Answer: {a}")) for t, a in zip(texts, answer)]
class Clock(TrainerCallback):
    def __init__(self): self.seconds, self.lengths = [], []
    def on_step_begin(self, *_, **__): self.start = time.perf_counter()
    def on_step_end(self, *_, **__): self.seconds.append(time.perf_counter() - self.start)
    def on_log(self, args, state, control, logs=None, **_):
        if logs and "completions/mean_length" in logs: self.lengths.append(logs["completions/mean_length"])
clock = Clock()
config = GRPOConfig(output_dir=spec["out"], per_device_train_batch_size=128, num_generations=8,
    max_completion_length=96, learning_rate=1.5e-4, temperature=1.0, beta=0.0, max_steps=spec["steps"],
    logging_steps=1, save_strategy="no", report_to=[], use_cpu=True, bf16=spec["bf16"], gradient_checkpointing=False)
trainer = GRPOTrainer(model=spec["model"], reward_funcs=accuracy, args=config, train_dataset=data, callbacks=[clock])
trainer.train()
print("RESULT " + json.dumps({"seconds": clock.seconds, "lengths": clock.lengths}))
"""
    results = []
    for bf16 in (False, True):
        spec = json.dumps({"model": model, "rows": str(rows), "threads": threads, "steps": steps, "bf16": bf16,
                           "out": str(where / "trl")})
        done = subprocess.run([sys.executable, "-c", code, spec], capture_output=True, text=True)
        line = next((line for line in done.stdout.splitlines() if line.startswith("RESULT ")), None)
        if line is None:
            print(done.stderr[-2000:], file=sys.stderr)
            continue
        result = json.loads(line[len("RESULT "):])
        results.append((statistics.median(result["seconds"][1:]), statistics.mean(result["lengths"]), bf16))
    return min(results) if results else None


def grpo_case(binary, threads, steps, where):
    data = where / "counting"
    if not data.exists():
        subprocess.run([binary, "data", "make", "{ task = \"counting\", levels = [2], rows = 64 }", "--out", str(data)], check=True)
    rows = where / "rows.jsonl"
    source = next(data.glob("*.jsonl"))
    with open(rows, "w") as out:
        for line in open(source):
            row = json.loads(line)
            image = row["images"][0] if "images" in row else row["image"]
            answer = row["answer"]
            answer = answer.get("value", answer.get("text")) if isinstance(answer, dict) else answer
            out.write(json.dumps({"question": row["question"], "image": str(data / image), "answer": str(answer)}) + "\n")
    recipe = where / "grpo.toml"
    recipe.write_text(f"""
name = "side-by-side"
model = "minnow"
[data]
train = {{ path = "{source}" }}
[[stage]]
name = "grpo"
questions_per_step = 16
answers_per_question = 8
steps = {steps}
sampling = {{ temperature = 1.0, max_new_tokens = 96 }}
rewards = [ {{ kind = "accuracy" }} ]
selector = {{ kind = "never" }}
rule = {{ kind = "grpo", kl = 0.0 }}
optim = {{ lr = 1.5e-4, schedule = "constant" }}
""")
    run = where / f"run-{time.time_ns()}"
    env = {**os.environ, "RAYON_NUM_THREADS": str(threads)}
    subprocess.run([binary, "train", str(recipe), "--out", str(run)], check=True, env=env, capture_output=True)
    steps_seen = [json.loads(line) for line in open(run / "metrics.jsonl")]
    seconds = [line["time/step_secs"] for line in steps_seen if "time/step_secs" in line]
    lengths = [line["rollout/length_mean"] for line in steps_seen if "rollout/length_mean" in line]
    weights = max((run / "checkpoints").iterdir()) if (run / "checkpoints").exists() else None
    return statistics.median(seconds[1:]), statistics.mean(lengths) if lengths else float("nan"), rows, weights


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--foveate", default=str(ROOT / "target/release/foveate"))
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", default="")
    parser.add_argument("--compile", action="store_true", help="try torch.compile too; minutes per case")
    parser.add_argument("--settings", default="", help="PyTorch settings of training and tower instead of all, with commas")
    parser.add_argument("--write", type=Path, help="put the table between the marks of this file")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        return serve_torch(args.serve)
    where = Path(tempfile.mkdtemp(prefix="side-by-side-"))
    wanted = set(args.only.split(",")) - {""}
    threads, rounds = args.threads, args.rounds
    binary = str(Path(args.foveate).resolve())
    train_settings = ["bf16", "bf16 autocast"] + (["bf16 compile"] if args.compile else [])
    if args.settings:
        train_settings = args.settings.split(",")
    table = []

    def case(name):
        chosen = not wanted or name in wanted
        if chosen:
            print(name, file=sys.stderr)
        return chosen

    def row(name, work, other, mine, theirs, ratio):
        floor = FLOORS.get(name, "")
        table.append((work, other, f"{mine * 1e3:.0f} ms", f"{theirs * 1e3:.0f} ms", f"**{ratio:.2f}x**", floor))

    def train(name, rows, precision, settings, env=None, torch_env=None, label=""):
        if case(name):
            folder = llama_folder(where)
            foveate = Foveate(binary, threads, "train", "--model", folder, "--rows", rows, "--tokens", 256,
                              "--precision", precision, env=env)
            mine, theirs, ratio, setting = against_torch(
                foveate, "train", threads, settings, rounds, torch_env, folder=folder, rows=rows, tokens=256)
            row(name, f"training step, 135M, {rows} x 256 tokens, {precision}{label}", f"transformers {setting}", mine,
                theirs, ratio)

    def sample(name, sequences, env=None, label=""):
        if case(name):
            folder = llama_folder(where)
            foveate = Foveate(binary, threads, "sample", "--model", folder, "--sequences", sequences, "--precision",
                              "bf16", env=env)
            mine, theirs, ratio, setting = against_torch(
                foveate, "sample", threads, ["bf16", "bf16 static"], rounds, folder=folder, sequences=sequences,
                prompt=64, tokens=64)
            row(name, f"sampling, 135M, {sequences} x 64 + 64 tokens{label}", f"generate {setting}", mine, theirs, ratio)

    train("train-4", 4, "bf16", train_settings)
    train("train-16", 16, "bf16", train_settings)
    train("train-16-f32", 16, "f32", ["f32"])
    sample("sample-32", 32)
    sample("sample-1", 1)
    if case("tower"):
        foveate = Foveate(binary, threads, "tower", "--precision", "bf16")
        mine, theirs, ratio, setting = against_torch(foveate, "tower", threads, train_settings, rounds)
        row("tower", "SigLIP-base forward and backward, one picture of 512 pixels", f"transformers {setting}", mine, theirs, ratio)
    if case("group"):
        shared = Foveate(binary, threads, "group", "--prompt", 1100, "--tokens", 110)
        separate = Foveate(binary, threads, "group", "--prompt", 1100, "--tokens", 110, "--separate", "--recompute")
        row("group", "group update, SmolVLM-256M, prompt 1100, 8 answers of 110", "our own separate rows",
            *summary(alternate(shared, separate, rounds)))
    for name, work in (("threads-train", ["train"]), ("threads-sample", ["sample"])):
        if case(name) and threads > 1:
            row(name, f"{work[0]}, 135M, {threads} threads", "1 thread", *summary(alternate(
                Foveate(binary, threads, *work), Foveate(binary, 1, *work), rounds)))
    if case("memory"):
        foveate = Foveate(binary, threads, "group", "--prompt", 1100, "--tokens", 128, "--images", 17, "--recompute")
        foveate.turn()
        table.append(("peak memory, full fine-tuning of SmolVLM-256M, 17 tiles, 8 x 128 answers, blocks recomputed", "-",
                      f"{foveate.peak_gib:.2f} GiB", "-", "-", FLOORS["memory"]))
    if case("grpo"):
        mine, length, rows, weights = grpo_case(binary, threads, 8, where)
        minnow = ROOT / "assets/minnow"
        theirs = trl_steps(str(minnow), rows, threads, 4, where)
        if theirs:
            seconds, their_length, bf16 = theirs
            row("grpo", f"GRPO step on Minnow, 16 x 8 answers (mean length {length:.0f} and {their_length:.0f} tokens)",
                f"trl.GRPOTrainer {'bf16' if bf16 else 'f32'}", mine, seconds, seconds / mine)
    # A machine without AMX, as far as this one can play it: both sides do without.
    env, torch_env = {"FOVEATE_MATMUL": "avx512bf16"}, {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_BF16"}
    train("train-4-avx512", 4, "bf16", ["bf16"], env, torch_env, ", both without AMX")
    train("train-4-f32-avx512", 4, "f32", ["f32"], env, torch_env, ", both without AMX")

    import torch
    import transformers

    cpu = next((line.split(":")[1].strip() for line in open("/proc/cpuinfo") if "model name" in line), "?")
    text = [f"{cpu}, {threads} threads, torch {torch.__version__}, transformers {transformers.__version__}, "
            f"Python {platform.python_version()}; medians of {rounds} turns.", "",
            "| work | against | Foveate | other | ratio | floor |", "|---|---|---|---|---|---|"]
    text += ["| " + " | ".join(cells) + " |" for cells in table]
    print("\n".join(text))
    if args.write:
        page = args.write.read_text()
        head, rest = page.split(MARKS[0])
        _, tail = rest.split(MARKS[1])
        args.write.write_text(head + MARKS[0] + "\n" + "\n".join(text) + "\n" + MARKS[1] + tail)


if __name__ == "__main__":
    main()

"""Writes fixtures/trl/losses.json and advantages.json: what TRL's trainers make of small made-up batches.

TRL's own `_compute_loss` runs here, with log-probabilities and entropies given in place of a model; what stands in the
middle of its long methods (advantages, the correction for another sampler) is cut out of its source and run as it is.
Everything is in f64; inputs are multiples of 1/64, so that f32 holds them exactly.
Needs: pip install trl. Run from the repository root: python tools/fixture_trl.py
"""

import importlib.metadata
import inspect
import json
import math
import pathlib
import random
import textwrap
from collections import defaultdict
from types import SimpleNamespace

import torch
from trl import GRPOTrainer, RLOOTrainer
from trl.experimental.gmpo import GMPOTrainer
from trl.trainer.utils import nanstd

LENGTHS = [5, 2, 4, 1, 3, 5]
MAX_LEN = 8
NARROW = {"epsilon_low": 3e-4, "epsilon_high": 4e-4}

# name, loss_type, settings of TRL, the same as a rule of ours
CASES = [
    ("grpo", "grpo", {}, "kind = 'grpo'"),
    ("grpo with KL", "grpo", {"beta": 0.04}, "kind = 'grpo'\nkl = 0.04"),
    ("grpo with corrected KL", "grpo", {"beta": 0.04, "use_bias_correction_kl": True},
     "kind = 'grpo'\nkl = { beta = 0.04, estimator = 'k3_corrected' }"),
    ("grpo with delta", "grpo", {"delta": 1.5}, "kind = 'grpo'\ndual_clip = 1.5"),
    ("gspo", "grpo", {"level": "sequence", **NARROW}, "kind = 'gspo'\nclip = [3e-4, 4e-4]"),
    ("bnpo", "bnpo", {}, "kind = 'bnpo'"),
    ("dr_grpo", "dr_grpo", {}, "kind = 'dr_grpo'"),
    ("dapo", "dapo", {"epsilon_high": 0.28}, "kind = 'dapo'"),
    ("dapo with KL", "dapo", {"epsilon_high": 0.28, "beta": 0.1}, "kind = 'dapo'\nkl = 0.1"),
    ("cispo", "cispo", {"epsilon_high": 1.25}, "kind = 'cispo'\ncap = 1.25"),
    ("sapo", "sapo", {}, "kind = 'sapo'"),
    ("luspo", "luspo", {"level": "sequence", "epsilon_low": 2e-3, "epsilon_high": 2.5e-3}, "kind = 'luspo'"),
    ("vespo", "vespo", {}, "kind = 'vespo'"),
    ("entropy bonus", "dapo", {"epsilon_high": 0.28, "entropy": 0.01}, "kind = 'dapo'\nentropy = 0.01"),
    ("gmpo", "gmpo", {"epsilon_low": 0.2, "epsilon_high": 0.1}, "kind = 'gmpo'\nclip = [0.2, 0.1]"),
    ("gmpo with KL", "gmpo", {"epsilon_low": 0.4, "epsilon_high": 0.4, "beta": 0.04}, "kind = 'gmpo'\nkl = 0.04"),
    ("drifted answers left out", "grpo", {"off_policy": 0.05}, "kind = 'grpo'\nmask = { off_policy = 0.05 }"),
    ("uncertain tokens alone", "dapo", {"epsilon_high": 0.28, "uncertain": 0.5}, "kind = 'dapo'\nmask = { top_entropy = 0.5 }"),
    ("other sampler, tokens cut", "grpo", {"mismatch": ("token_truncate", None, 1.25)},
     "kind = 'grpo'\nmismatch = { mode = 'token_truncate', max = 1.25 }"),
    ("other sampler, tokens masked", "dapo", {"epsilon_high": 0.28, "mismatch": ("token_mask", 0.8, 1.25), "beta": 0.04},
     "kind = 'dapo'\nkl = 0.04\nmismatch = { mode = 'token_mask', min = 0.8, max = 1.25 }"),
    ("other sampler, answers cut", "grpo", {"mismatch": ("sequence_truncate", None, 1.25)},
     "kind = 'grpo'\nmismatch = { mode = 'sequence_truncate', max = 1.25 }"),
    ("other sampler, answers masked", "cispo", {"epsilon_high": 1.25, "mismatch": ("sequence_mask", 0.5, 1.5)},
     "kind = 'cispo'\ncap = 1.25\nmismatch = { mode = 'sequence_mask', min = 0.5, max = 1.5 }"),
    ("vespo, other sampler, tokens cut", "vespo", {"mismatch": ("token_truncate", None, 1.25)},
     "kind = 'vespo'\nmismatch = { mode = 'token_truncate', max = 1.25 }"),
]

# name, trainer, settings of TRL, the same as an advantage of ours
ADVANTAGES = [
    ("grpo", "grpo", {"scale_rewards": "group"}, ""),
    ("dr_grpo", "grpo", {"scale_rewards": "none"}, "scale = 'none'"),
    ("batch deviation", "grpo", {"scale_rewards": "batch"}, "scale = 'batch_std'"),
    ("gdpo", "grpo", {"multi_objective_aggregation": "normalize_then_sum"}, "combine = 'normalise_first'"),
    ("rloo", "rloo", {}, "baseline = 'leave_one_out'\nscale = 'none'"),
]


def grid(value: float) -> float:
    return round(value * 64) / 64


def batch(seed: int) -> dict:
    draw = random.Random(seed)
    rows = []
    for length in LENGTHS:
        logprob = [grid(-draw.uniform(0.1, 3.0)) for _ in range(length)]
        rows.append({
            "logprob": logprob,
            "old_logprob": [grid(value + draw.gauss(0, 0.25)) for value in logprob],
            "ref_logprob": [grid(value + draw.gauss(0, 0.4)) for value in logprob],
            "entropy": [grid(draw.uniform(0.1, 2.0)) for _ in range(length)],
            # Without an advantage an answer is not packed at all.
            "advantage": grid(draw.uniform(-2.0, 2.0)) or 0.5,
        })
    # Drawn apart, so that the rows before are what they were.
    draw = random.Random(1000 + seed)
    for row in rows:
        row["sampler_logprob"] = [grid(value + draw.gauss(0, 0.2)) for value in row["old_logprob"]]
    return {"rows": rows}


def excerpt(method, first: str, last: str) -> str:
    """The lines of a method from the one that begins with `first` up to the one before `last`."""
    lines = inspect.getsource(method).splitlines()
    start = next(i for i, line in enumerate(lines) if line.strip().startswith(first))
    end = next(i for i, line in enumerate(lines) if i > start and line.strip().startswith(last))
    return textwrap.dedent("\n".join(lines[start:end]))


def correction(mode: str, low, high: float, rows: list, mask: torch.Tensor) -> torch.Tensor:
    lines = excerpt(GRPOTrainer._generate_and_score_completions, "per_token_logps_diff = (", "# Compute the per-token log")
    trainer = SimpleNamespace(
        vllm_importance_sampling_mode=mode, vllm_importance_sampling_clip_min=low, vllm_importance_sampling_clip_max=high
    )
    names = {
        "torch": torch, "math": math, "self": trainer, "mask": mask, "old_per_token_logps": padded(rows, "old_logprob"),
        "sampling_per_token_logps": padded(rows, "sampler_logprob"),
    }
    exec(lines, names)
    return names["vllm_importance_sampling_ratio"]


def advantages(index: int, name: str, trainer: str, settings: dict, ours: str) -> dict:
    draw = random.Random(2000 + index)
    size, weights = 4, [1.0, 0.5]
    rewards = [[grid(draw.uniform(-1.0, 2.0)), float(draw.random() < 0.5)] for _ in range(3 * size)]
    if trainer == "grpo":
        rewards[5] = [math.nan, math.nan]
    method = GRPOTrainer._generate_and_score_completions
    first = "unscorable_mask = torch"
    if trainer == "rloo":
        method, first = RLOOTrainer._generate_and_score_completions, "unscorable_mask = torch"
    lines = excerpt(method, first, "# Slice to keep only the local part")
    own = SimpleNamespace(
        multi_objective_aggregation=settings.get("multi_objective_aggregation", "sum_then_normalize"),
        scale_rewards=settings.get("scale_rewards", "group"), reward_weights=torch.tensor(weights, dtype=torch.float64),
        reward_funcs=weights, normalize_advantages=False, reward_clip_range=None, beta=0.0, num_generations=size,
    )
    names = {
        "torch": torch, "nanstd": nanstd, "self": own, "device": "cpu", "num_generations": size, "mode": "train",
        "rewards_per_func": torch.tensor(rewards, dtype=torch.float64),
    }
    exec(lines, names)
    shown = [[None if math.isnan(value) else value for value in row] for row in rewards]
    return {"name": name, "advantage": ours, "size": size, "weights": weights, "rewards": shown,
            "advantages": names["advantages"].tolist()}


def padded(rows: list, column: str) -> torch.Tensor:
    width = max(LENGTHS)
    return torch.tensor([row[column] + [0.0] * (width - len(row[column])) for row in rows], dtype=torch.float64)


def trl(loss_type: str, settings: dict, rows: list) -> dict:
    logprob = padded(rows, "logprob").requires_grad_()
    entropy = padded(rows, "entropy").requires_grad_()
    mask = torch.tensor([[1] * len(row["logprob"]) + [0] * (max(LENGTHS) - len(row["logprob"])) for row in rows])
    accelerator = SimpleNamespace(
        num_processes=1, sync_gradients=True, gather=lambda x: x, reduce=lambda x, reduction: x, gather_for_metrics=lambda x: x,
        pad_across_processes=lambda x, **_: x,
    )
    args = SimpleNamespace(
        delta=settings.get("delta"), use_bias_correction_kl=settings.get("use_bias_correction_kl", False),
        sapo_temperature_pos=1.0, sapo_temperature_neg=1.05, vespo_k_pos=2.0, vespo_lambda_pos=3.0, vespo_k_neg=3.0,
        vespo_lambda_neg=2.0, steps_per_generation=1,
    )
    trainer = SimpleNamespace(
        _get_per_token_logps_and_entropies=lambda *_, **__: (logprob, entropy, None), aux_loss_enabled=False,
        top_entropy_quantile=settings.get("uncertain", 1.0), off_policy_mask_threshold=settings.get("off_policy"),
        importance_sampling_level=settings.get("level", "token"),
        beta=settings.get("beta", 0.0), loss_type=loss_type, epsilon_low=settings.get("epsilon_low", 0.2),
        epsilon_high=settings.get("epsilon_high", 0.2), use_vllm="mismatch" in settings,
        vllm_importance_sampling_correction="mismatch" in settings,
        model=SimpleNamespace(training=True), current_gradient_accumulation_steps=1, max_completion_length=MAX_LEN,
        accelerator=accelerator, args=args, _entropy_bonus_enabled="entropy" in settings, use_adaptive_entropy=False,
        entropy_coef=settings.get("entropy", 0.0), _metrics=defaultdict(lambda: defaultdict(list)),
        get_gamma_weights=GRPOTrainer.get_gamma_weights, get_off_policy_mask=GRPOTrainer.get_off_policy_mask,
    )
    trainer.get_high_entropy_mask = lambda *given: GRPOTrainer.get_high_entropy_mask(trainer, *given)
    inputs = {
        "prompt_ids": torch.zeros(len(rows), 1, dtype=torch.long), "prompt_mask": torch.ones(len(rows), 1, dtype=torch.long),
        "completion_ids": torch.zeros_like(mask), "completion_mask": mask,
        "advantages": torch.tensor([row["advantage"] for row in rows], dtype=torch.float64),
        "old_per_token_logps": padded(rows, "old_logprob"), "ref_per_token_logps": padded(rows, "ref_logprob"),
        "num_items_in_batch": mask.sum(),
    }
    if "mismatch" in settings:
        inputs["importance_sampling_ratio"] = correction(*settings["mismatch"], rows, mask)
    kind = GMPOTrainer if loss_type == "gmpo" else GRPOTrainer
    loss = kind._compute_loss(trainer, None, inputs)
    loss.backward()
    zeros = torch.zeros_like(logprob)
    column = lambda grad: [(zeros if grad is None else grad)[i, : len(row["logprob"])].tolist() for i, row in enumerate(rows)]
    return {"loss": loss.item(), "by_logprob": column(logprob.grad), "by_entropy": column(entropy.grad)}


def main() -> None:
    cases = []
    for index, (name, loss_type, settings, rule) in enumerate(CASES):
        made = batch(index)
        cases.append({"name": name, "rule": rule, **made, **trl(loss_type, settings, made["rows"])})
    version = importlib.metadata.version("trl")
    write("losses.json", {"trl": version, "max_len": MAX_LEN, "cases": cases})
    cases = [advantages(index, *case) for index, case in enumerate(ADVANTAGES)]
    write("advantages.json", {"trl": version, "cases": cases})


def write(name: str, fixture: dict) -> None:
    out = pathlib.Path("fixtures/trl") / name
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(fixture, indent=1) + "\n")
    print(f"{len(fixture['cases'])} cases: {out}")


if __name__ == "__main__":
    main()

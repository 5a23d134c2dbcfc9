"""Writes fixtures/trl/losses.json: loss and gradient of TRL's GRPOTrainer on small made-up batches, by loss type.

TRL's own `_compute_loss` runs here, with log-probabilities and entropies given in place of a model. Everything is in
f64; inputs are multiples of 1/64, so that f32 holds them exactly.
Needs: pip install trl. Run from the repository root: python tools/fixture_trl.py
"""

import importlib.metadata
import json
import pathlib
import random
from collections import defaultdict
from types import SimpleNamespace

import torch
from trl import GRPOTrainer

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
            "advantage": grid(draw.uniform(-2.0, 2.0)),
        })
    return {"rows": rows}


def padded(rows: list, column: str) -> torch.Tensor:
    width = max(LENGTHS)
    return torch.tensor([row[column] + [0.0] * (width - len(row[column])) for row in rows], dtype=torch.float64)


def trl(loss_type: str, settings: dict, rows: list) -> dict:
    logprob = padded(rows, "logprob").requires_grad_()
    entropy = padded(rows, "entropy").requires_grad_()
    mask = torch.tensor([[1] * len(row["logprob"]) + [0] * (max(LENGTHS) - len(row["logprob"])) for row in rows])
    accelerator = SimpleNamespace(
        num_processes=1, sync_gradients=True, gather=lambda x: x, reduce=lambda x, reduction: x, gather_for_metrics=lambda x: x
    )
    args = SimpleNamespace(
        delta=settings.get("delta"), use_bias_correction_kl=settings.get("use_bias_correction_kl", False),
        sapo_temperature_pos=1.0, sapo_temperature_neg=1.05, vespo_k_pos=2.0, vespo_lambda_pos=3.0, vespo_k_neg=3.0,
        vespo_lambda_neg=2.0, steps_per_generation=1,
    )
    trainer = SimpleNamespace(
        _get_per_token_logps_and_entropies=lambda *_, **__: (logprob, entropy, None), aux_loss_enabled=False,
        top_entropy_quantile=1.0, off_policy_mask_threshold=None, importance_sampling_level=settings.get("level", "token"),
        beta=settings.get("beta", 0.0), loss_type=loss_type, epsilon_low=settings.get("epsilon_low", 0.2),
        epsilon_high=settings.get("epsilon_high", 0.2), use_vllm=False, vllm_importance_sampling_correction=False,
        model=SimpleNamespace(training=True), current_gradient_accumulation_steps=1, max_completion_length=MAX_LEN,
        accelerator=accelerator, args=args, _entropy_bonus_enabled="entropy" in settings, use_adaptive_entropy=False,
        entropy_coef=settings.get("entropy", 0.0), _metrics=defaultdict(lambda: defaultdict(list)),
        get_gamma_weights=GRPOTrainer.get_gamma_weights,
    )
    inputs = {
        "prompt_ids": torch.zeros(len(rows), 1, dtype=torch.long), "prompt_mask": torch.ones(len(rows), 1, dtype=torch.long),
        "completion_ids": torch.zeros_like(mask), "completion_mask": mask,
        "advantages": torch.tensor([row["advantage"] for row in rows], dtype=torch.float64),
        "old_per_token_logps": padded(rows, "old_logprob"), "ref_per_token_logps": padded(rows, "ref_logprob"),
        "num_items_in_batch": mask.sum(),
    }
    loss = GRPOTrainer._compute_loss(trainer, None, inputs)
    loss.backward()
    zeros = torch.zeros_like(logprob)
    column = lambda grad: [(zeros if grad is None else grad)[i, : len(row["logprob"])].tolist() for i, row in enumerate(rows)]
    return {"loss": loss.item(), "by_logprob": column(logprob.grad), "by_entropy": column(entropy.grad)}


def main() -> None:
    cases = []
    for index, (name, loss_type, settings, rule) in enumerate(CASES):
        made = batch(index)
        cases.append({"name": name, "rule": rule, **made, **trl(loss_type, settings, made["rows"])})
    out = pathlib.Path("fixtures/trl/losses.json")
    out.parent.mkdir(parents=True, exist_ok=True)
    fixture = {"trl": importlib.metadata.version("trl"), "max_len": MAX_LEN, "cases": cases}
    out.write_text(json.dumps(fixture, indent=1) + "\n")
    print(f"{len(cases)} cases: {out}")


if __name__ == "__main__":
    main()

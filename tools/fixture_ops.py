"""Forward and backward of every op as PyTorch computes it in float32, on small and awkward shapes.

One file per op. Names: inputs as they are called in the kernels, `y` the result, `dy` the incoming gradient, `dX` the
gradient of input X. Activations are row-major [tokens, width].
"""

import json
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from transformers import LlamaConfig
from transformers.activations import ACT2FN
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb
from transformers.models.smolvlm.configuration_smolvlm import SmolVLMVisionConfig
from transformers.models.smolvlm.modeling_smolvlm import SmolVLMConnector, SmolVLMVisionEmbeddings


class Ops:
    """Collects tensors of one op and writes them to one file."""

    def __init__(self, folder: Path, seed: int):
        self.folder = folder
        self.generator = torch.Generator().manual_seed(seed)

    def draw(self, *shape, scale=1.0, shift=0.0) -> torch.Tensor:
        return torch.randn(shape, generator=self.generator) * scale + shift

    def integers(self, high: int, *shape) -> torch.Tensor:
        return torch.randint(0, high, shape, generator=self.generator)

    def save(self, name: str, tensors: dict, note: str = "") -> None:
        plain = {key: value.detach().clone().contiguous() for key, value in tensors.items()}
        for key, value in plain.items():
            if value.dtype == torch.int64:
                plain[key] = value.to(torch.int32)
        save_file(plain, self.folder / f"{name}.safetensors", metadata={"note": note})

    def pair(self, function, inputs: dict, dy=None) -> dict:
        """Runs a function of named tensors and its backward."""
        leaves = {name: value.clone().requires_grad_() for name, value in inputs.items()}
        y = function(**leaves)
        dy = self.draw(*y.shape) if dy is None else dy
        y.backward(dy)
        result = {**inputs, "y": y, "dy": dy}
        return result | {f"d{name}": leaf.grad for name, leaf in leaves.items()}


def norms(ops: Ops) -> None:
    x = ops.draw(7, 48, scale=2.0, shift=0.3)
    w = ops.draw(48, scale=0.2, shift=1.0)
    rms = lambda x, w: w * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5))
    ops.save("rms_norm", ops.pair(rms, {"x": x, "w": w}), "eps 1e-5")
    b = ops.draw(48, scale=0.2)
    layer = lambda x, w, b: F.layer_norm(x, (48,), w, b, 1e-6)
    ops.save("layer_norm", ops.pair(layer, {"x": x, "w": w, "b": b}), "eps 1e-6")


def linear(ops: Ops) -> None:
    inputs = {"x": ops.draw(5, 24), "w": ops.draw(10, 24), "b": ops.draw(10)}
    ops.save("linear", ops.pair(lambda x, w, b: F.linear(x, w, b), inputs), "y = x wT + b")


def rope(ops: Ops) -> None:
    """Llama's rotation, plain and with the llama3 scaling of the frequencies."""
    positions = torch.tensor([0, 1, 2, 5, 17, 300, 2047])
    plain = dict(rope_type="default", rope_theta=10000.0)
    scaled = dict(
        rope_type="llama3",
        rope_theta=500000.0,
        factor=8.0,
        low_freq_factor=1.0,
        high_freq_factor=4.0,
        original_max_position_embeddings=256,
    )
    for name, parameters in {"rope": plain, "rope_llama3": scaled}.items():
        config = LlamaConfig(
            hidden_size=48, num_attention_heads=3, head_dim=16, max_position_embeddings=4096, rope_parameters=parameters
        )
        embedding = LlamaRotaryEmbedding(config)

        def rotate(x):
            rows = x.view(1, -1, 3, 16).transpose(1, 2)
            cos, sin = embedding(rows, positions[None])
            out, _ = apply_rotary_pos_emb(rows, rows, cos, sin)
            return out.transpose(1, 2).reshape(-1, 48)

        tensors = ops.pair(rotate, {"x": ops.draw(len(positions), 48)})
        tensors |= {"positions": positions, "inv_freq": embedding.inv_freq}
        ops.save(name, tensors, json.dumps(parameters))


def attention(ops: Ops) -> None:
    """Segments as masks. `segments` rows: start, length, parent (-1: none)."""
    cases = {
        "attention_causal": (True, [(0, 13, -1)], 3, 1, 16),
        "attention_two_rows": (True, [(0, 9, -1), (9, 6, -1)], 4, 2, 8),
        "attention_shared_prefix": (True, [(0, 9, -1), (9, 4, 0), (13, 5, 0), (18, 1, 0), (19, 3, 2)], 6, 2, 16),
        "attention_full": (False, [(0, 7, -1), (7, 12, -1)], 2, 2, 16),
    }
    for name, (causal, segments, num_heads, num_kv_heads, d) in cases.items():
        t = sum(length for _, length, _ in segments)
        allowed = torch.zeros(t, t, dtype=torch.bool)
        for start, length, parent in segments:
            rows = slice(start, start + length)
            own = torch.ones(length, length, dtype=torch.bool)
            allowed[rows, rows] = own.tril() if causal else own
            while parent >= 0:
                parent_start, parent_length, parent = segments[parent]
                allowed[rows, parent_start : parent_start + parent_length] = True
        bias = torch.zeros(t, t).masked_fill(~allowed, float("-inf"))
        lse = {}

        def attend(qkv):
            q, k, v = qkv.split([num_heads * d, num_kv_heads * d, num_kv_heads * d], dim=1)
            q = q.view(t, num_heads, d).transpose(0, 1)
            k, v = (z.view(t, num_kv_heads, d).transpose(0, 1) for z in (k, v))
            k, v = (z.repeat_interleave(num_heads // num_kv_heads, dim=0) for z in (k, v))
            scores = q @ k.transpose(1, 2) * d**-0.5 + bias
            lse["lse"] = scores.logsumexp(-1).transpose(0, 1)
            return (scores.softmax(-1) @ v).transpose(0, 1).reshape(t, num_heads * d)

        tensors = ops.pair(attend, {"qkv": ops.draw(t, (num_heads + 2 * num_kv_heads) * d)})
        heads = torch.tensor([num_heads, num_kv_heads, d])
        tensors |= {**lse, "segments": torch.tensor(segments), "heads": heads}
        ops.save(name, tensors, f"causal {causal}; qkv fused [T, (Hq + 2 Hkv) d]; scale d^-0.5; lse [T, Hq]")


def activations(ops: Ops) -> None:
    x = torch.cat([ops.draw(58, scale=2.0), torch.tensor([0.0, -0.0, 1e-3, -12.0, 12.0, 40.0, -40.0])])
    names = dict(gelu_tanh="gelu_pytorch_tanh", gelu_erf="gelu", quick_gelu="quick_gelu", silu="silu", relu="relu")
    for name, known_as in names.items():
        ops.save(name, ops.pair(ACT2FN[known_as], {"input": x}), "element by element")

    def swiglu(gate_up):
        gate, up = gate_up.chunk(2, dim=1)
        return F.silu(gate) * up

    ops.save("swiglu", ops.pair(swiglu, {"gate_up": ops.draw(5, 2 * 24)}), "gate first, then up")


def images(ops: Ops) -> None:
    for factor, side in ((2, 4), (4, 8), (3, 6)):
        shuffle = lambda x: SmolVLMConnector.pixel_shuffle(None, x.view(2, side * side, 6), factor).reshape(
            -1, 6 * factor * factor
        )
        tensors = ops.pair(shuffle, {"x": ops.draw(2 * side * side, 6)})
        ops.save(f"pixel_shuffle_{factor}", tensors, f"2 tiles of {side} x {side}, width 6, factor {factor}")

    conv = lambda pixels, w, b: F.conv2d(pixels[None], w, b, stride=8)[0].flatten(1).T
    inputs = {"pixels": ops.draw(3, 16, 24), "w": ops.draw(10, 3, 8, 8, scale=0.1), "b": ops.draw(10)}
    ops.save("patch_embedding", ops.pair(conv, inputs), "patch 8; rows are patches, row by row")

    for name, options in {
        "bilinear": dict(mode="bilinear", align_corners=False),
        "bilinear_corners": dict(mode="bilinear", align_corners=True),
        "bicubic": dict(mode="bicubic", align_corners=False),
    }.items():
        for h0, w0, h, w in ((4, 4, 6, 9), (5, 7, 3, 2), (6, 6, 6, 6), (3, 4, 1, 11)):
            resize = lambda table: F.interpolate(
                table.view(1, h0, w0, 5).permute(0, 3, 1, 2), (h, w), **options
            )[0].permute(1, 2, 0).reshape(h * w, 5)
            tensors = ops.pair(resize, {"table": ops.draw(h0 * w0, 5)})
            ops.save(f"interpolate_{name}_{h0}x{w0}_to_{h}x{w}", tensors, "rows are table positions, width 5")


def position_ids(folder: Path) -> None:
    """Rows of the position table that SmolVLM / Idefics3 give to the patches along one side of a full tile.

    They go through float32 comparisons and are not 0..n-1 for every n.
    """
    result = {}
    for side in range(1, 65):
        config = SmolVLMVisionConfig(hidden_size=4, num_attention_heads=1, image_size=side * 2, patch_size=2)
        embeddings = SmolVLMVisionEmbeddings(config)
        with torch.no_grad():
            embeddings.patch_embedding.weight.zero_()
            embeddings.patch_embedding.bias.zero_()
            embeddings.position_embedding.weight[:, 0] = torch.arange(side * side, dtype=torch.float32)
            mask = torch.ones(1, side, side, dtype=torch.bool)
            rows = embeddings(torch.zeros(1, 3, side * 2, side * 2), mask)[0, :, 0].round().long()
        columns = rows.view(side, side)[0].tolist()
        assert rows.view(side, side)[:, 0].tolist() == [column * side for column in columns]
        result[side] = columns
    (folder / "position_ids.json").write_text(json.dumps(result, separators=(",", ":")) + "\n")


def embedding(ops: Ops) -> None:
    ids = torch.tensor([3, 0, 3, 8, 3, 1, 0])
    tensors = ops.pair(lambda table: F.embedding(ids, table), {"table": ops.draw(9, 6)})
    ops.save("embed", tensors | {"ids": ids}, "ids repeat")


def head(ops: Ops) -> None:
    r, d, v = 6, 24, 301
    x, w = ops.draw(r, d), ops.draw(v, d, scale=0.5)
    targets = ops.integers(v, r)
    inv_temperature = torch.tensor([1.0, 1.0, 1.25, 2.0, 0.5, 1.0])
    banned = torch.tensor([0, 7, 150, 300])
    targets = torch.where(torch.isin(targets, banned), targets - 1 + 2 * (targets == 0), targets)
    by_logprob, by_entropy = ops.draw(r), ops.draw(r)
    for name, ban in (("head", False), ("head_banned", True)):
        x_leaf, w_leaf = x.clone().requires_grad_(), w.clone().requires_grad_()
        logits = (x_leaf @ w_leaf.T) * inv_temperature[:, None]
        if ban:
            mask = torch.zeros(v, dtype=torch.bool)
            mask[banned] = True
            logits = logits.masked_fill(mask, float("-inf"))
        lse = logits.logsumexp(-1)
        logprob = logits.gather(1, targets[:, None])[:, 0] - lse
        p = logits.softmax(-1)
        entropy = lse - (p * logits.masked_fill(logits == float("-inf"), 0.0)).sum(-1)
        (by_logprob * logprob + by_entropy * entropy).sum().backward()
        ops.save(
            name,
            dict(
                x=x, w=w, targets=targets, inv_temperature=inv_temperature, banned=banned, logprob=logprob,
                entropy=entropy, lse=lse, by_logprob=by_logprob, by_entropy=by_entropy, dx=x_leaf.grad, dw=w_leaf.grad,
            ),
            "logits = x wT * inv_temperature" + ("; banned ids are minus infinity" if ban else "; nothing is banned"),
        )


def optimizer(ops: Ops) -> None:
    """AdamW over five steps, and gradient clipping."""
    parameter = torch.nn.Parameter(ops.draw(37))
    settings = dict(lr=3e-3, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)
    adamw = torch.optim.AdamW([parameter], **settings)
    tensors = {"p.0": parameter.detach().clone()}
    for step in range(1, 6):
        # Scales over eight orders of magnitude: eps matters for the smallest.
        gradient = ops.draw(37) * torch.logspace(-9, 0, 37)
        parameter.grad = gradient.clone()
        adamw.step()
        state = adamw.state[parameter]
        tensors |= {
            f"g.{step}": gradient,
            f"p.{step}": parameter.detach().clone(),
            f"m.{step}": state["exp_avg"].clone(),
            f"v.{step}": state["exp_avg_sq"].clone(),
        }
    ops.save("adamw", tensors, json.dumps(settings))

    parts = [torch.nn.Parameter(torch.zeros(n)) for n in (5, 11, 3)]
    tensors = {}
    for index, part in enumerate(parts):
        part.grad = ops.draw(*part.shape, scale=3.0)
        tensors[f"g.{index}"] = part.grad.clone()
    tensors["norm"] = torch.nn.utils.clip_grad_norm_(parts, 1.0).reshape(1)
    tensors |= {f"clipped.{index}": part.grad for index, part in enumerate(parts)}
    ops.save("clip", tensors, "max_norm 1.0; torch divides by norm + 1e-6")


def layer_scale(ops: Ops) -> None:
    inputs = {"branch": ops.draw(7, 48), "scale": ops.draw(48, scale=0.3), "stream": ops.draw(7, 48)}
    ops.save("layer_scale", ops.pair(lambda branch, scale, stream: scale * branch + stream, inputs), "row by row")


def make_ops(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for index, make in enumerate(
        [norms, linear, rope, attention, activations, images, embedding, head, optimizer, layer_scale]
    ):
        make(Ops(folder, 1000 + index))
    position_ids(folder)

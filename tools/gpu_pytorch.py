"""PyTorch's side of tools/gpu_checks.sh: training and generation at the shape of SmolLM2-135M, bf16, SDPA, fused AdamW.

Random weights, so nothing is downloaded. Prints rows of a table. Needs torch with CUDA and transformers.
"""
import time

import torch
import transformers
from transformers import LlamaConfig, LlamaForCausalLM

CONFIG = dict(vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9,
              num_key_value_heads=3, max_position_embeddings=8192, tie_word_embeddings=True)


def median(step, rounds=5):
    step()
    times = []
    for _ in range(rounds):
        torch.cuda.synchronize()
        start = time.perf_counter()
        step()
        torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return sorted(times)[len(times) // 2]


def model():
    torch.manual_seed(0)
    built = LlamaForCausalLM._from_config(LlamaConfig(**CONFIG), attn_implementation="sdpa")
    return built.to("cuda")


def train(rows, tokens, together):
    # f32 master weights with bf16 autocast: the same bargain as here.
    net = model().train()
    optim = torch.optim.AdamW(net.parameters(), lr=1e-5, fused=True)
    ids = torch.randint(0, CONFIG["vocab_size"], (rows, tokens), device="cuda")

    def step():
        optim.zero_grad(set_to_none=True)
        for first in range(0, rows, together):
            part = ids[first:first + together]
            with torch.autocast("cuda", torch.bfloat16):
                loss = net(part, labels=part).loss * (len(part) / rows)
            loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optim.step()

    return rows * tokens / median(step)


def sample(sequences, prompt, new):
    net = model().to(torch.bfloat16).eval()
    ids = torch.randint(0, CONFIG["vocab_size"], (sequences, prompt), device="cuda")

    def step():
        with torch.inference_mode():
            net.generate(ids, attention_mask=torch.ones_like(ids), do_sample=True, max_new_tokens=new,
                         min_new_tokens=new, pad_token_id=0)

    return sequences * new / median(step, 3)


if __name__ == "__main__":
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}, {torch.cuda.get_device_name(0)}"
    print(f"| PyTorch: {versions} | | |")
    print(f"| PyTorch, train 16 x 256, 8 together | {train(16, 256, 8):.0f} tokens/s | |")
    for sequences in (64, 1):
        print(f"| PyTorch, generate, {sequences} sequences | {sample(sequences, 64, 64):.0f} tokens/s | |")

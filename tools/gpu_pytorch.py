"""PyTorch's side of tools/gpu_checks.sh: training and generation at the shape of SmolLM2-135M, bf16, SDPA, fused AdamW.

Random weights, so nothing is downloaded. Prints rows of a table. Needs torch and transformers; `--device cpu --tiny` shows
in a minute that it works where there is no GPU, and measures nothing worth comparing.
"""
import argparse
import time

import torch
import transformers
from transformers import LlamaConfig, LlamaForCausalLM

CONFIG = dict(vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9,
              num_key_value_heads=3, max_position_embeddings=8192, tie_word_embeddings=True)
TINY = dict(CONFIG, vocab_size=512, hidden_size=96, intermediate_size=128, num_hidden_layers=2, num_attention_heads=3,
            num_key_value_heads=1)


class Bench:
    def __init__(self, device, tiny):
        self.device, self.config = device, TINY if tiny else CONFIG

    def wait(self):
        if self.device == "cuda":
            torch.cuda.synchronize()

    def median(self, step, rounds=5):
        step()
        times = []
        for _ in range(rounds):
            self.wait()
            start = time.perf_counter()
            step()
            self.wait()
            times.append(time.perf_counter() - start)
        return sorted(times)[len(times) // 2]

    def model(self):
        torch.manual_seed(0)
        return LlamaForCausalLM._from_config(LlamaConfig(**self.config), attn_implementation="sdpa").to(self.device)

    def ids(self, rows, tokens):
        return torch.randint(0, self.config["vocab_size"], (rows, tokens), device=self.device)

    def train(self, rows, tokens, together):
        # f32 master weights with bf16 autocast: the same bargain as here.
        net = self.model().train()
        optim = torch.optim.AdamW(net.parameters(), lr=1e-5, fused=True)
        ids = self.ids(rows, tokens)

        def step():
            optim.zero_grad(set_to_none=True)
            for first in range(0, rows, together):
                part = ids[first:first + together]
                with torch.autocast(self.device, torch.bfloat16):
                    loss = net(part, labels=part).loss * (len(part) / rows)
                loss.backward()
            torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optim.step()

        return rows * tokens / self.median(step)

    def sample(self, sequences, prompt, new):
        net = self.model().to(torch.bfloat16).eval()
        ids = self.ids(sequences, prompt)

        def step():
            with torch.inference_mode():
                net.generate(ids, attention_mask=torch.ones_like(ids), do_sample=True, max_new_tokens=new,
                             min_new_tokens=new, pad_token_id=0)

        return sequences * new / self.median(step, 3)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--tiny", action="store_true")
    args = parser.parse_args()
    bench = Bench(args.device, args.tiny)
    name = torch.cuda.get_device_name(0) if args.device == "cuda" else "CPU"
    print(f"| PyTorch: torch {torch.__version__}, transformers {transformers.__version__}, {name} | | |")
    print(f"| PyTorch, train 16 x 256, 8 together | {bench.train(16, 256, 8):.0f} tokens/s | |")
    for sequences in (64, 1):
        print(f"| PyTorch, generate, {sequences} sequences | {bench.sample(sequences, 64, 64):.0f} tokens/s | |")

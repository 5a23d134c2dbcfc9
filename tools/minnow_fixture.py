"""What transformers makes of the built-in model: `python tools/minnow_fixture.py [assets/minnow]`.

Loads the folder through AutoProcessor and AutoModelForImageTextToText, as a user would, and writes
fixtures/minnow/parity.json: prompt ids, log-probabilities and entropy of an answer, and a greedy continuation, for the
questions in fixtures/minnow/rows.jsonl (the rows of `foveate score`; their pictures lie beside the file). The Rust
test that reads it is crates/train/tests/minnow.rs. Run it again whenever the model is made anew.
"""

import json
import sys
from pathlib import Path

import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

sys.path.insert(0, str(Path(__file__).parent))
from fixture_parity import encode, greedy, score

ROOT = Path(__file__).parent.parent


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "assets" / "minnow"
    pictures = ROOT / "fixtures" / "minnow"
    processor = AutoProcessor.from_pretrained(folder, use_fast=False)
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    model.eval()
    out = []
    for line in (pictures / "rows.jsonl").read_text().splitlines():
        sample = encode(processor, json.loads(line)["messages"], pictures)
        with torch.no_grad():
            logprob, entropy, _ = score(model, sample)
            tokens, gap = greedy(model, sample)
        out.append(
            {
                "prompt_ids": sample["prompt_ids"].tolist(),
                "completion_ids": sample["completion_ids"].tolist(),
                "logprobs": logprob.tolist(),
                "entropy": entropy.tolist(),
                "greedy_ids": tokens,
                "greedy_smallest_gap": gap,
            }
        )
        print(processor.tokenizer.decode(tokens))
    (pictures / "parity.json").write_text(json.dumps(out, indent=1) + "\n")


if __name__ == "__main__":
    main()

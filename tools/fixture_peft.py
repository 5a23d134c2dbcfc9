"""Names of the matrices that PEFT can put adapters beside, for every tiny checkpoint (`fixtures/peft/modules.json`).

    python tools/fixture_peft.py
"""

import json
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

FIXTURES = Path(__file__).parent.parent / "fixtures"


def main():
    found = {}
    for folder in sorted((FIXTURES / "models").iterdir()):
        sees = hasattr(AutoConfig.from_pretrained(folder), "vision_config")
        model = (AutoModelForImageTextToText if sees else AutoModelForCausalLM).from_pretrained(folder)
        found[folder.name] = [name for name, part in model.named_modules() if isinstance(part, torch.nn.Linear)]
    out = FIXTURES / "peft" / "modules.json"
    out.parent.mkdir(exist_ok=True)
    lines = [f"  {json.dumps(name)}: {json.dumps(modules)}" for name, modules in found.items()]
    out.write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main()

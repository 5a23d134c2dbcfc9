"""Makes every committed fixture anew: `python tools/make_fixtures.py [PART ..]`, parts: models parity families towers
ops pictures templates.

Python is the oracle here and nowhere else: building, testing and running foveate never calls it. Needs torch,
torchvision, transformers, tokenizers, safetensors, pillow, numpy and num2words in the versions of
fixtures/VERSIONS.json, which this script writes. Seeds are fixed; running it again in the same environment gives the
same files.
"""

import importlib.metadata
import json
import platform
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
FIXTURES = Path(__file__).parent.parent / "fixtures"
PACKAGES = "torch torchvision transformers tokenizers safetensors pillow numpy jinja2 num2words".split()


def main() -> None:
    wanted = set(sys.argv[1:])
    chosen = lambda part: not wanted or part in wanted
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    FIXTURES.mkdir(exist_ok=True)
    if chosen("models"):
        from fixture_models import MAKERS
        from fixture_pictures import make_pictures

        make_pictures(FIXTURES / "images")
        for name, make in MAKERS.items():
            make(FIXTURES / "models" / name)
            print("model", name)
    if chosen("parity"):
        from fixture_models import MAKERS
        from fixture_parity import make_parity

        for name in MAKERS:
            make_parity(name, FIXTURES / "models", FIXTURES / "images", FIXTURES / "parity")
            print("parity", name)
    if chosen("families"):
        from fixture_families import TEXT_MAKERS, make_family_parity
        from fixture_qwen import QWEN_MAKERS

        for name, make in (TEXT_MAKERS | QWEN_MAKERS).items():
            make(FIXTURES / "models" / name)
            make_family_parity(name, FIXTURES / "models", FIXTURES / "images", FIXTURES / "parity")
            print("family", name)
    if chosen("towers"):
        from fixture_towers import TOWERS, make_tiles, make_tower_parity

        for name, make in TOWERS.items():
            make(FIXTURES / "models" / name)
            make_tower_parity(name, FIXTURES / "models", FIXTURES / "images", FIXTURES / "parity")
            print("tower", name)
        make_tiles(FIXTURES / "tiles")
    if chosen("ops"):
        from fixture_ops import make_ops

        make_ops(FIXTURES / "ops")
    if chosen("pictures"):
        from fixture_images import make_decode, make_resize

        make_resize(FIXTURES / "resize")
        make_decode(FIXTURES / "decode")
    if chosen("templates"):
        from fixture_templates import make_templates

        make_templates(FIXTURES / "templates")
    versions = {"python": platform.python_version()}
    versions |= {package: importlib.metadata.version(package) for package in PACKAGES}
    (FIXTURES / "VERSIONS.json").write_text(json.dumps(versions, indent=2) + "\n")


if __name__ == "__main__":
    main()

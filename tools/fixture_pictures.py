"""Draws the small pictures that parity fixtures look at. Deterministic; every picture is a PNG of a few kilobytes.

Smooth colours plus hard edges: resampling filters differ most at edges, and a smooth ground keeps the files small.
"""

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw


def _scene(width: int, height: int, seed: int) -> Image.Image:
    """A colour gradient with a few discs and bars on it."""
    draw_random = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    ground = np.stack(
        [
            255 * x / max(width - 1, 1),
            255 * y / max(height - 1, 1),
            127 + 127 * np.sin((x + y) / 9.0 + seed),
        ],
        axis=-1,
    )
    image = Image.fromarray(ground.astype(np.uint8), "RGB")
    pen = ImageDraw.Draw(image)
    for _ in range(5):
        colour = tuple(int(c) for c in draw_random.integers(0, 256, 3))
        cx, cy = draw_random.integers(0, width), draw_random.integers(0, height)
        r = int(draw_random.integers(1, max(2, min(width, height) // 3)))
        if draw_random.random() < 0.5:
            pen.ellipse([cx - r, cy - r, cx + r, cy + r], fill=colour)
        else:
            pen.rectangle([cx - r, cy - r // 2, cx + r, cy + r // 2], fill=colour)
    return image


def make_pictures(folder: Path) -> None:
    """Writes the pictures used by the parity conversations."""
    folder.mkdir(parents=True, exist_ok=True)
    _scene(120, 80, 1).save(folder / "scene.png", optimize=True)
    _scene(37, 91, 2).save(folder / "tall.png", optimize=True)
    _scene(200, 1, 3).save(folder / "line.png", optimize=True)
    _scene(3, 2, 4).save(folder / "speck.png", optimize=True)
    _scene(301, 203, 5).save(folder / "large.png", optimize=True)
    _scene(64, 64, 6).save(folder / "square.png", optimize=True)
    # Half transparent: transformers 5.23 blends it onto white.
    rgba = _scene(41, 29, 7).convert("RGBA")
    alpha = np.tile(np.linspace(0, 255, 41).astype(np.uint8), (29, 1))
    rgba.putalpha(Image.fromarray(alpha, "L"))
    rgba.save(folder / "glass.png", optimize=True)

"""Resized and decoded pictures: what Pillow and torchvision make of bytes."""

import io
import json
import struct
import zlib
from pathlib import Path

import numpy as np
import torch
import torchvision.transforms.v2.functional as tvF
from PIL import Image, ImageOps
from safetensors.numpy import save_file
from transformers.image_transforms import convert_to_rgb

# height, width of the source; height, width asked for
RESIZES = [
    ((13, 17), (13, 17)),
    ((13, 17), (29, 31)),
    ((40, 31), (7, 9)),
    ((40, 31), (64, 11)),
    ((9, 64), (32, 32)),
    ((1, 40), (8, 24)),
    ((33, 1), (16, 5)),
    ((2, 3), (40, 37)),
    ((61, 47), (1, 1)),
    ((61, 47), (61, 20)),
    ((61, 47), (20, 47)),
    # From 13.0 on Pillow resamples vertically first where the height loses more than twice what the width does.
    ((61, 47), (20, 60)),
    ((91, 37), (64, 26)),
    ((40, 31), (20, 21)),
    ((40, 31), (19, 21)),
]
FILTERS = {
    "lanczos": Image.Resampling.LANCZOS,
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
}


def sources() -> dict:
    """Noise (every rounding is exercised) with hard black and white edges (clamping is)."""
    random = np.random.default_rng(77)
    result = {}
    for height, width in sorted({source for source, _ in RESIZES}):
        pixels = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
        pixels[: height // 2, : width // 2] = np.where(pixels[: height // 2, : width // 2] > 127, 255, 0)
        result[(height, width)] = pixels
    return result


def make_resize(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {}
    pixels = sources()
    for (height, width), source in pixels.items():
        tensors[f"source.{height}x{width}"] = source
    for (h0, w0), (h, w) in RESIZES:
        source = pixels[(h0, w0)]
        case = f"{h0}x{w0}.{h}x{w}"
        for name, kind in FILTERS.items():
            tensors[f"pillow.{name}.{case}"] = np.asarray(Image.fromarray(source).resize((w, h), kind))
        if min(h0, w0, h, w) == 1:
            continue  # torch 2.11 stops with an internal assertion here
        planes = torch.from_numpy(source).permute(2, 0, 1).contiguous()[None]
        for name in ("bicubic", "bilinear"):
            mode = tvF.InterpolationMode(name)
            resized = tvF.resize(planes, [h, w], interpolation=mode, antialias=True)
            tensors[f"torch.{name}.{case}"] = resized[0].permute(1, 2, 0).contiguous().numpy()
    save_file(tensors, folder / "resize.safetensors", metadata={"note": "KIND.FILTER.SOURCE.TARGET, height x width"})


def png16(levels: np.ndarray) -> bytes:
    """A 16-bit PNG (grey or colour), which Pillow itself does not write for colour."""
    height, width, channels = levels.shape
    colour_type = {1: 0, 2: 4, 3: 2, 4: 6}[channels]

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = b"".join(b"\0" + levels[row].astype(">u2").tobytes() for row in range(height))
    header = struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0)
    signature = b"\x89PNG\r\n\x1a\n"
    return signature + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows, 9)) + chunk(b"IEND", b"")


def make_decode(folder: Path) -> None:
    """Encoded files of many kinds and the upright RGB that transformers' processor sees."""
    folder.mkdir(parents=True, exist_ok=True)
    y, x = np.mgrid[0:12, 0:18]
    rgb = np.stack([x * 14, y * 21, (x * y) % 256], axis=-1).astype(np.uint8)
    alpha = ((x * 15) % 256).astype(np.uint8)
    colour = Image.fromarray(rgb)
    grey = colour.convert("L")
    rgba = Image.fromarray(np.dstack([rgb, alpha]))
    palette = colour.quantize(16)
    files = {}

    def add(name: str, image: Image.Image, **options) -> None:
        buffer = io.BytesIO()
        image.save(buffer, format={"jpg": "JPEG", "png": "PNG", "webp": "WEBP"}[name.split(".")[-1]], **options)
        files[name] = buffer.getvalue()

    add("rgb.png", colour)
    add("grey.png", grey)
    add("bit.png", grey.convert("1"))
    add("grey_alpha.png", Image.merge("LA", [grey, Image.fromarray(alpha)]))
    add("rgba.png", rgba)
    add("palette.png", palette)
    add("palette_transparent.png", palette, transparency=3)
    add("colour_key.png", colour, transparency=(14, 21, 1))
    add("grey_key.png", grey, transparency=int(np.asarray(grey)[3, 3]))
    add("lossless.webp", colour, lossless=True)
    add("alpha.webp", rgba, lossless=True, exact=True)
    smooth = Image.fromarray(np.stack([x * 6 + 60, y * 9 + 40, x * 3 + y * 3 + 50], axis=-1).astype(np.uint8))
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        add(f"turned_{orientation}.jpg", smooth, quality=95, subsampling=0, exif=exif)
    add("grey.jpg", smooth.convert("L"), quality=95)
    # Levels inverted, as Adobe writes them and Pillow too.
    add("cmyk.jpg", smooth.convert("CMYK"), quality=95)
    exif = Image.Exif()
    exif[0x0112] = 6
    add("turned_6.png", colour, exif=exif)
    add("turned_6.webp", colour, lossless=True, exif=exif)

    tensors = {}
    for name, data in files.items():
        upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
        tensors[name] = convert_to_rgb(upright, return_numpy=True)
    # 16 bits: the high byte, as Pillow reads 16-bit colour. Of 16-bit grey Pillow makes white (it clips at 255), which
    # nobody wants; foveate takes the high byte there too.
    wide = np.random.default_rng(5).integers(0, 65536, (7, 5, 4))
    for name, levels in {"grey16.png": wide[..., :1], "rgb16.png": wide[..., :3]}.items():
        files[name] = png16(levels)
        tensors[name] = np.ascontiguousarray(np.broadcast_to(levels >> 8, (7, 5, 3))).astype(np.uint8)
    opened = np.asarray(Image.open(io.BytesIO(files["rgb16.png"])).convert("RGB"))
    assert np.array_equal(opened, tensors["rgb16.png"])
    files["rgba16.png"] = png16(wide)
    tensors["rgba16.png"] = convert_to_rgb(Image.open(io.BytesIO(files["rgba16.png"])), return_numpy=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    save_file(tensors, folder / "decoded.safetensors")

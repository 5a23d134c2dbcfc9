"""Parquet fixtures (`fixtures/parquet`): small data sets as the `datasets` library and `pyarrow` write them, in every
compression and encoding that Foveate reads, and what is in them (`expected.json`).

    python tools/fixture_parquet.py
"""

import io
import json
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

OUT = Path(__file__).parent.parent / "fixtures" / "parquet"


def picture(i, kind="PNG"):
    """A small picture as a file's bytes."""
    image = Image.new("RGB", (6 + i % 3, 5), (40 * i % 256, 20, 255 - 30 * i % 256))
    out = io.BytesIO()
    image.save(out, kind)
    return out.getvalue()


def shown(value):
    """JSON, bytes as hexadecimal digits."""
    if isinstance(value, bytes):
        return {"bytes": value.hex()}
    if isinstance(value, list):
        return [shown(entry) for entry in value]
    if isinstance(value, dict):
        return {key: shown(entry) for key, entry in value.items()}
    return value


def image_data(splits):
    """A hub data set with an image column: struct<bytes, path>, as `push_to_hub` writes it."""
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "problem": datasets.Value("string"),
            "solution": datasets.Value("string"),
            "label": datasets.ClassLabel(names=["cat", "dog", "bird"]),
        }
    )
    for split, count in splits.items():
        rows = {
            "image": [{"bytes": picture(i), "path": f"{i}.png"} for i in range(count)],
            "problem": [f"How many legs has picture {i} of {split}?" for i in range(count)],
            "solution": [f"<answer> {i + 2} </answer>" for i in range(count)],
            "label": [i % 3 for i in range(count)],
        }
        data = datasets.Dataset.from_dict(rows, features=features)
        folder = OUT / "images" / "data"
        folder.mkdir(parents=True, exist_ok=True)
        for shard in range(2 if split == "train" else 1):
            shards = 2 if split == "train" else 1
            part = data.shard(shards, shard, contiguous=True)
            part.to_parquet(folder / f"{split}-{shard:05d}-of-{shards:05d}.parquet")


def message_data():
    """`messages` with parts, pictures in a list beside them: what vision trainers of `trl` read."""
    part = {"type": datasets.Value("string"), "text": datasets.Value("string")}
    features = datasets.Features(
        {
            "messages": [{"role": datasets.Value("string"), "content": [part]}],
            "images": datasets.Sequence(datasets.Image()),
        }
    )
    rows = {"messages": [], "images": []}
    for i in range(3):
        asked = [{"type": "image", "text": None}] * (i + 1) + [{"type": "text", "text": f"What is shown, {i}?"}]
        rows["messages"].append(
            [
                {"role": "user", "content": asked},
                {"role": "assistant", "content": [{"type": "text", "text": f"Thing {i}."}]},
                {"role": "user", "content": [{"type": "text", "text": "Again?"}]},
                {"role": "assistant", "content": [{"type": "text", "text": f"Still thing {i}."}]},
            ]
        )
        rows["images"].append([{"bytes": picture(i + j, "JPEG"), "path": None} for j in range(i + 1)])
    (OUT / "messages").mkdir(parents=True, exist_ok=True)
    datasets.Dataset.from_dict(rows, features=features).to_parquet(OUT / "messages" / "train.parquet")


def table(count):
    """Columns of many kinds, with gaps, empty lists and nesting."""
    gap = lambda i, value: None if i % 5 == 3 else value
    return pa.table(
        {
            "text": pa.array([gap(i, f"row {i % 7} ü") for i in range(count)]),
            "whole": pa.array([gap(i, i * i - 50) for i in range(count)], pa.int64()),
            "small": pa.array([gap(i, i % 100 - 50) for i in range(count)], pa.int8()),
            "unsigned": pa.array([2**32 - 1 - i for i in range(count)], pa.uint32()),
            "real": pa.array([gap(i, i / 8 - 3) for i in range(count)], pa.float64()),
            "half": pa.array([i / 4 for i in range(count)], pa.float32()),
            "yes": pa.array([gap(i, i % 3 == 0) for i in range(count)], pa.bool_()),
            "always": pa.array([i for i in range(count)], pa.int32()),
            "bytes": pa.array([b"\xff\xfe" + bytes([i % 256]) for i in range(count)], pa.binary()),
            "words": pa.array([gap(i, [f"w{j}" if j != 1 else None for j in range(i % 4)]) for i in range(count)]),
            "nested": pa.array([[[i, j], [], None][: i % 4] for i, j in zip(range(count), range(count))]),
            "parts": pa.array([gap(i, {"a": i, "b": gap(i + 1, {"c": str(i)})}) for i in range(count)]),
            "turns": pa.array([[{"role": "user", "content": [{"t": str(j), "n": None}]} for j in range(i % 3)] for i in range(count)]),
        }
    )


def kinds():
    """The same table in each compression, page version and encoding."""
    folder = OUT / "kinds"
    folder.mkdir(parents=True, exist_ok=True)
    rows = table(60)
    common = {"row_group_size": 25}
    for name, settings in {
        "snappy": {"compression": "snappy"},
        "none": {"compression": "none", "use_dictionary": False},
        "gzip": {"compression": "gzip"},
        "zstd": {"compression": "zstd", "data_page_version": "2.0"},
        "lz4": {"compression": "lz4"},
        "pages": {"compression": "snappy", "data_page_size": 64, "write_batch_size": 8, "data_page_version": "2.0"},
        "deltas": {
            "compression": "none",
            "use_dictionary": False,
            "column_encoding": {
                "text": "DELTA_BYTE_ARRAY",
                "whole": "DELTA_BINARY_PACKED",
                "small": "DELTA_BINARY_PACKED",
                "unsigned": "DELTA_BINARY_PACKED",
                "real": "BYTE_STREAM_SPLIT",
                "bytes": "DELTA_LENGTH_BYTE_ARRAY",
                "yes": "RLE",
            },
        },
    }.items():
        pq.write_table(rows, folder / f"{name}.parquet", **common, **settings)
    pq.write_table(table(3).select(["text"]), folder / "brotli.parquet", compression="brotli")
    shown_rows = [shown(row) for row in rows.to_pylist()]
    (folder / "expected.json").write_text(json.dumps(shown_rows, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    image_data({"train": 5, "test": 2})
    message_data()
    kinds()
    print("versions: datasets", datasets.__version__, "pyarrow", pa.__version__)

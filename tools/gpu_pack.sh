#!/usr/bin/env bash
# Packs what tools/gpu_checks.sh needs into the folder gpu-pack: the program and three test binaries, stripped. Run it on a
# machine with Rust; the GPU machine then needs neither Rust nor network.
set -euo pipefail
cd "$(dirname "$0")/.."
out=gpu-pack
rm -rf "$out"
mkdir -p "$out"
cargo build --release
cp "${CARGO_TARGET_DIR:-target}/release/foveate" "$out/"
built=$(cargo test --no-run --message-format=json -p foveate-kernels --test cuda --test nvrtc; \
        cargo test --no-run --message-format=json -p foveate-model --test device)
for name in cuda nvrtc device; do
  path=$(grep "\"name\":\"$name\"" <<<"$built" | grep -o '"executable":"[^"]*"' | tail -1 | cut -d'"' -f4)
  cp "$path" "$out/test_$name"
done
strip "$out"/*
du -sh "$out"

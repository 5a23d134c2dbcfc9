#!/usr/bin/env bash
# Packs what tools/gpu_checks.sh needs into the folder gpu-pack: the program and five test binaries, stripped. Run it on a
# machine with Rust; the GPU machine then needs neither Rust nor network, and a C library no older than this machine's.
set -euo pipefail
cd "$(dirname "$0")/.."
out=gpu-pack
rm -rf "$out"
mkdir -p "$out"
# Cargo says where things lie: a target folder may be named in a configuration file too.
path_of() { grep -o '"executable":"[^"]*"' | tail -1 | cut -d'"' -f4; }
cp "$(cargo build --release --message-format=json -p foveate-cli | path_of)" "$out/foveate"
pack() { cp "$(cargo test --no-run --message-format=json -p "$1" --test "$2" | path_of)" "$out/test_$2"; }
pack foveate-kernels nvrtc
pack foveate-kernels cuda
pack foveate-model device
pack foveate-model steps
pack foveate-train runs_on_device
strip "$out"/*
du -sh "$out"

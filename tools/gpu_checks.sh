#!/usr/bin/env bash
# Every check of the GPU path, on a machine with an NVIDIA GPU, from what tools/gpu_pack.sh has packed; prints one table.
#   tools/gpu_checks.sh [FOLDER FOR LOGS]       STEPS=20 shortens the runs on Minnow
# Needs a driver, NVRTC and cuBLASLt (a CUDA toolkit, or the wheels that PyTorch brings along); for the comparison python3
# with torch and transformers; compute-sanitizer if there is one. Goes on after a failure: the table says which. Without a
# GPU the table says so in every line, and the exit code is 2.
set -uo pipefail
cd "$(dirname "$0")/.."
logs=${1:-${OUT:-gpu-logs}}
mkdir -p "$logs"
pack=$PWD/gpu-pack
export FOVEATE_FIXTURES=$PWD/fixtures FOVEATE_KERNEL_CACHE=${FOVEATE_KERNEL_CACHE:-$logs/kernels}
# The emulator would only cost time here.
export CXX=/nonexistent
table=$logs/table.md
printf '| check | result | seconds |\n|---|---|---|\n' >"$table"

# check NAME COMMAND..: runs it, keeps its output, notes how it ended and its last line that says RESULT.
check() {
  local name=$1 start rc said
  shift
  if [ -n "$none" ]; then
    printf '| %s | %s | |\n' "$name" "$none" | tee -a "$table"
    return
  fi
  local log="$logs/$(tr -c 'a-z0-9\n' '_' <<<"${name,,}").log"
  start=$(date +%s)
  timeout "${LIMIT:-300}" "$@" >"$log" 2>&1
  rc=$?
  said=$(grep -a '^RESULT ' "$log" | tail -1 | cut -c8-)
  if [ $rc -eq 0 ]; then said="ok ${said}"; else said="FAILED ($rc) ${said}"; tail -5 "$log"; fi
  printf '| %s | %s | %s |\n' "$name" "$said" "$(($(date +%s) - start))" | tee -a "$table"
}

# Why nothing can be checked, if so.
none=
if ! "$pack/foveate" doctor >"$logs/doctor.txt" 2>&1; then
  none="the program does not start here"
elif ! grep -q '^gpu  ' "$logs/doctor.txt"; then
  none="no GPU"
fi
cat "$logs/doctor.txt"

LIMIT=500 check "kernels compile" "$pack/test_nvrtc" --nocapture
check "ops, f32 and bf16" "$pack/test_cuda" --nocapture --test-threads=1
check "families, f32, bf16, adapters, sampling, memory over 1000 passes" "$pack/test_device" --nocapture --test-threads=1
check "recorded steps of decoding, equal to launched ones" "$pack/test_steps" --nocapture --test-threads=1
check "whole runs: optimiser, resume, CPU to GPU and back" "$pack/test_runs_on_device" --nocapture --test-threads=1
if sanitizer=$(command -v compute-sanitizer || ls /usr/local/cuda/bin/compute-sanitizer 2>/dev/null); then
  LIMIT=500 check "compute-sanitizer, ops" "$sanitizer" --error-exitcode 9 "$pack/test_cuda" --test-threads=1
else
  echo "| compute-sanitizer, ops | not on this machine | |" | tee -a "$table"
fi

# GRPO on Minnow: the rewards of the GPU run follow those of the CPU run. Same questions and draws; sums are in another
# order, so answers part ways at some point, and the curves are compared in blocks of steps.
steps=${STEPS:-60}
set_steps=(--set "stage.0.steps=$steps")
for device in cpu cuda:0; do
  run="$logs/minnow-${device%%:*}"
  rm -rf "$run"
  check "GRPO on Minnow, $steps steps, $device" \
    "$pack/foveate" train recipes/quickstart.toml --device "$device" "${set_steps[@]}" --out "$run"
done
check "reward curves, cpu and cuda" python3 - "$logs/minnow-cpu/metrics.jsonl" "$logs/minnow-cuda/metrics.jsonl" <<'PY'
import json, sys
curves = [[json.loads(line) for line in open(path)] for path in sys.argv[1:]]
rewards = [[step["reward/mean"] for step in curve if "reward/mean" in step] for curve in curves]
count = min(map(len, rewards))
assert count > 0, "no rewards"
block = max(1, count // 6)
pairs = [[sum(curve[at:at + block]) / block for curve in rewards] for at in range(0, count - block + 1, block)]
worst = max(abs(a - b) for a, b in pairs)
print("RESULT worst difference of blocks of", block, "steps:", round(worst, 3),
      " ".join(f"{a:.2f}/{b:.2f}" for a, b in pairs))
assert worst < 0.15
PY

# Drawing is timed with recorded steps and with steps launched afresh: two medians in one line.
for case in "train --model smollm2-135m --rows 16 --tokens 256" "train --model smolvlm-256m --rows 16 --tokens 256" \
            "group --model smolvlm-256m --images 1" "group --model smolvlm-256m --images 1 --separate" \
            "sample --model smollm2-135m --sequences 64" "sample --model smollm2-135m --sequences 1" \
            "tower --model siglip-base --images 8"; do
  # shellcheck disable=SC2086 # words of a case
  check "bench $case" bash -c "'$pack/foveate' bench $case --device cuda:0 --precision bf16 --json |
    sed 's/^/RESULT /'"
done
if python3 -c 'import torch, transformers; assert torch.cuda.is_available()' 2>/dev/null; then
  check "PyTorch, the same shapes" python3 tools/gpu_pytorch.py
  grep -a '^|' "$logs/pytorch__the_same_shapes.log" >>"$table"
else
  echo "| PyTorch | not on this machine | |" | tee -a "$table"
fi
echo
cat "$table"
if [ -n "$none" ]; then exit 2; fi

#!/bin/sh
# Type-checks the engine with the feature `cuda`, kernels included, on a machine that needs no GPU.
#
#     testnet/interop/check-cuda.sh [--node]
#
# The CUDA compiler comes from PyPI into a virtual environment below cargo's target directory, some 500 MB. Six minutes
# on two cores the first time, most of them for candle's kernels. With --node also the node that is built with it.
# What this cannot show is that a kernel runs: a node finds that out for itself before it offers a GPU (`allmend doctor`).
set -eu

here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
cd "$root"

packages="-p allmend-engine"
features="allmend-engine/cuda"
case "${1-}" in
    --node) packages="-p allmend-engine -p allmend-node" features="allmend-engine/cuda,allmend-node/cuda" ;;
    "") ;;
    *) echo "usage: check-cuda.sh [--node]" >&2; exit 2 ;;
esac

target=$(cargo metadata --no-deps --offline --format-version 1 |
    python3 -c 'import json, sys; print(json.load(sys.stdin)["target_directory"])')
venv="$target/interop/venv-cuda"
log="$target/interop/check-cuda.log"
mkdir -p "$target/interop"

if ! [ -x "$venv/bin/python" ]; then
    python3 -m venv "$venv"
fi
# cudarc 0.19 knows CUDA up to 13.0.
echo "check-cuda: the CUDA 13.0 compiler from PyPI …" >&2
if ! "$venv/bin/python" -m pip install --quiet \
    'nvidia-cuda-nvcc==13.0.*' 'nvidia-cuda-runtime==13.0.*' 'nvidia-cuda-cccl==13.0.*' \
    'nvidia-cuda-crt==13.0.*' 'nvidia-nvvm==13.0.*' >"$log" 2>&1; then
    tail -n 15 "$log" >&2
    echo "error: the CUDA compiler cannot be had from PyPI here; see $log" >&2
    exit 2
fi
cuda=$(find "$venv/lib" -type d -path '*/site-packages/nvidia/cu13' | head -n 1)
if ! [ -x "$cuda/bin/nvcc" ]; then
    echo "error: no nvcc in $venv" >&2
    exit 2
fi

# 8.0 is the oldest generation that candle's bfloat16 kernels take; any will do for checking.
export CUDA_HOME="$cuda" CUDA_PATH="$cuda" CUDA_COMPUTE_CAP="${CUDA_COMPUTE_CAP-80}"
export PATH="$cuda/bin:$PATH"
nvcc --version | tail -n 2 >&2
echo "check-cuda: cargo check --features $features …" >&2
# shellcheck disable=SC2086 # Several words on purpose.
cargo check $packages --features "$features"
echo "check-cuda: the engine type-checks with CUDA" >&2

#!/usr/bin/env bash
# Assembles NVIDIA's compiler from Python wheels: needs neither their installer nor a GPU, nor administrator's rights.
# Then: CUDA_HOME=FOLDER cargo build --release --features cuda
# Only nvcc and its headers are here: nothing of CUDA is linked, so no library is needed.
set -euo pipefail

folder=${1:?usage: kernels/toolkit.sh FOLDER}
requirements=$(cd "$(dirname "$0")" && pwd)/toolkit-requirements.txt
if cmp --silent "$requirements" "$folder/requirements.txt"; then
    echo "$folder is up to date"
    exit 0
fi
mkdir -p "$(dirname "$folder")"
new=$(mktemp -d "$folder.XXXXXX")
trap 'rm -rf "$new"' EXIT
python3 -m pip install --quiet --disable-pip-version-check --root-user-action=ignore --no-deps --no-compile \
    --no-cache-dir --only-binary=:all: --require-hashes --target "$new/wheels" -r "$requirements"
toolkit=$new/wheels/nvidia/cu13
rm -rf "$toolkit/lib"
# Wheels do not keep the permission to execute.
chmod +x "$toolkit"/bin/* "$toolkit"/nvvm/bin/*
"$toolkit/bin/nvcc" --version | tail -n 2
cp "$requirements" "$toolkit/requirements.txt"
rm -rf "$folder"
mv "$toolkit" "$folder"

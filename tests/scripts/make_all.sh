#!/bin/sh
# Makes every fixture: make_all.sh PYTHON MODEL.gguf FOLDER (FOLDER is made: the model as sharded bf16).
set -eu
python=$1 gguf=$2 folder=$3
scripts=$(dirname "$0")
fixtures=$scripts/../fixtures
export HF_HUB_OFFLINE=1 PYTHONDONTWRITEBYTECODE=1
"$python" "$scripts/make_golden.py" "$fixtures/golden"
"$python" "$scripts/make_embeddings.py" "$fixtures/golden"
"$python" "$scripts/make_gguf.py" "$fixtures/gguf"
"$python" "$scripts/make_quantized.py" "$fixtures/quantized"
"$python" "$scripts/make_quants.py" "$fixtures/quants"
"$python" "$scripts/make_smollm2_folder.py" "$gguf" "$folder"
"$python" "$scripts/make_smollm2.py" "$gguf" "$fixtures/smollm2/chats.json"
"$python" "$scripts/make_smollm2.py" "$folder" "$fixtures/smollm2/chats_bf16.json"

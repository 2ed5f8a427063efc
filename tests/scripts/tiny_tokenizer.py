"""A byte-level BPE of 320 ids for the tiny models: 256 bytes, 56 merges, 8 special tokens.

Knows no model. The merges are learnt from a fixed text, so the same script gives the same tokenizer.
"""

import json
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from tokenizers.pre_tokenizers import ByteLevel

VOCAB_SIZE = 320
SPECIAL_TOKENS = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|eot_id|>",
    "<|pad|>",
    "<|unused|>",
]
FIRST_SPECIAL = VOCAB_SIZE - len(SPECIAL_TOKENS)
BOS = FIRST_SPECIAL  # <|endoftext|>
EOS = FIRST_SPECIAL + 2  # <|im_end|>

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

CORPUS = """A candle is protected from the wind and shared by a lantern. The wind rises at night and the
lantern stands in the window; the house is warm, the table is set, and the others are on their way. There is
a light in the window, there is a hand at the door, and there is time for a story while the kettle sings."""


def byte_alphabet():
    """The 256 characters that stand for bytes, in byte order, as GPT-2 numbers them."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    characters, moved = {}, 0
    for byte in range(256):
        if byte in printable:
            characters[byte] = chr(byte)
        else:
            characters[byte] = chr(256 + moved)
            moved += 1
    return [characters[byte] for byte in range(256)]


def learn_merges(count):
    """The `count` most frequent merges of CORPUS, as pairs; ties go to the pair that sorts first."""
    split = ByteLevel(add_prefix_space=False, use_regex=True)
    words = [list(word) for word, _ in split.pre_tokenize_str(CORPUS)]
    merges = []
    while len(merges) < count:
        pairs = {}
        for word in words:
            for pair in zip(word, word[1:]):
                pairs[pair] = pairs.get(pair, 0) + 1
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        words = [merge(word, best) for word in words]
    return merges


def merge(word, pair):
    """`word` with every occurrence of `pair` joined."""
    joined, i = [], 0
    while i < len(word):
        if tuple(word[i : i + 2]) == pair:
            joined.append(word[i] + word[i + 1])
            i += 2
        else:
            joined.append(word[i])
            i += 1
    return joined


def vocabulary():
    """(tokens in id order, merges as pairs). The last eight tokens are the special ones."""
    merges = learn_merges(FIRST_SPECIAL - 256)
    tokens = byte_alphabet() + [left + right for left, right in merges] + SPECIAL_TOKENS
    assert len(tokens) == len(set(tokens)) == VOCAB_SIZE
    return tokens, merges


def build():
    """The tokenizer itself."""
    tokens, merges = vocabulary()
    regular = {token: i for i, token in enumerate(tokens[:FIRST_SPECIAL])}
    tokenizer = Tokenizer(models.BPE(vocab=regular, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(SPECIAL_TOKENS)
    assert [tokenizer.token_to_id(token) for token in tokens] == list(range(VOCAB_SIZE))
    return tokenizer


def save(folder):
    """Writes tokenizer.json and tokenizer_config.json (with the chat template) into `folder`."""
    folder = Path(folder)
    build().save(str(folder / "tokenizer.json"))
    config = {
        "add_bos_token": False,
        "bos_token": SPECIAL_TOKENS[0],
        "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "eos_token": SPECIAL_TOKENS[2],
        "model_max_length": 256,
        "pad_token": SPECIAL_TOKENS[6],
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")

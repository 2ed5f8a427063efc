"""Makes tests/fixtures/tokenizer/real.json: what Hugging Face `tokenizers` makes of a corpus with real tokenizers.

    pip install tokenizers==0.23.3
    python tests/scripts/make_real_tokenizers.py FOLDER        (the folder of fetch_tokenizers.sh)

`texts`: the corpus. `long`: texts too long to write out, each `{before, repeat, count, after}`.
`tokenizers`: by name, `ids` of each text without special tokens, `decoded` where the text does not come back as it
was, `framed` (the ids of "a" with special tokens), and of each long text `{count, first, last, hash}`, where the hash
is FNV-1a over the ids as 32 bits.
"""

import json
import pathlib
import random
import sys

import tokenizers

NAMES = ["llama2", "llama3_1", "qwen3", "deepseek_v3"]
OUT = pathlib.Path(__file__).parent.parent / "fixtures" / "tokenizer" / "real.json"
CODE = pathlib.Path(__file__).read_text().split('"""')[2][:700]
TEXTS = [
    "", " ", "  ", "a", " a", "a ", "\n", "\n\n\n", "\r\n\r\n x", "\t\t  \t x\t", "   \n   \n  y  \n",
    "Hello, world!  How's it going?  I'LL say: DON'T.\n\nWe've   three   spaces.",
    "東京タワーは高い。私は学生です。カタカナ、ひらがな、漢字、半角ｶﾅ、全角ＡＢＣ１２３！",
    "你好，世界！今天天气很好，我们去公园散步吧。中文English混排123，「引号」《书名》…… 〇々龥龦",
    "안녕하세요 세계! 한국어 토크나이저 시험 각\u1100\u1161\u11a8",
    "🙂👩‍👩‍👧‍👦👍🏽🇨🇭🏳️‍🌈 ☃️ text 🤷🏻‍♀️🤷🏻‍♀️ end❤️",
    "e\u0301 é n\u0303 ñ A\u030a \u212b \u2126 ﬁ ﬀ ½ ² ① Ⅷ q\u0307\u0323 q\u0323\u0307 Ǆ İ ı ſ ẞ",
    "z̸̢̛͚a̴̡͝l̵͎̿g̶̗̈o̷ text",
    "مرحبا بالعالم، كيف حالك؟ ١٢٣٤٥ الْحَمْدُ لِلّٰهِ",
    "שלום עולם, מה שלומך? בְּרֵאשִׁית בָּרָא",
    "สวัสดีชาวโลก ภาษาไทยไม่มีช่องว่าง ๑๒๓", "नमस्ते दुनिया, हिन्दी में परीक्षण १२३ क्षत्रिय", "ལྷ་ས་ ᚠᛇᚻ 𝔘𝔫𝔦 𝟘𝟙𝟚 𐍈 𒀀",
    "Ελλάδα έγινε ΌΧΙ; Москва и Київ, Їжак; Straße, naïve café, Türkçe İstanbul, Việt Nam tiếng",
    "1 12 123 1234 12345 123456 1234567 12345678901234567890 3.14159 1,000,000.00 0x1F 1e-10 १२३४५ ⅓¼ 10²",
    "fn main() {\n    let x: Vec<u32> = (0..10).map(|i| i << 2).collect();\n\tprintln!(\"{:?}\", x);\n}\n",
    "<div class=\"a b\">&nbsp;&amp;</div><!-- c --><script>a&&b||!c?d:e;</script>", CODE,
    "https://example.org/a/b?c=d&e=f#g user@example.org C:\\dir\\file.txt ~/.bashrc $HOME `ls -la` %20",
    "'s 't 'RE 'Ve I'm we’re it’s 'LL'D ''s 'ſ 'S\u0301", "!!!???...,,,;;;---___===+++***///\\\\\\|||~~~^^^$$$£££€€€°°°",
    " \u00a0\u00a0x\u2003y\u2009z\u200bw\u3000v\u2028u\u2029t\u0085s\ufeffr\u180e", "\x00\x01\x02\x07\x1b[31mred\x1b[0m\x7f\x80\x9f",
    "\ufffd\ufffe\uffff \U0010ffff \ue000 \U000e0001", "a" * 300, "ab" * 200, "=" * 130 + "\n" + "-" * 81, " " * 200 + "x", "\n" * 50 + " " * 33 + "\n\t" * 9,
    "一" * 70, "🙂" * 40, "9" * 100, "\u0301" * 20, "ÀÉ" * 30,
    "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n<tool_call>{}</tool_call>",
    "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|> <|eot_id |> <|python_tag|>x",
    "<｜begin▁of▁sentence｜><｜User｜>Hi<｜Assistant｜><think>x</think><｜end▁of▁sentence｜> <｜fim▁hole｜><｜tool▁calls▁begin｜>",
    "<s> a</s><unk> <s><s>b <0x41> ▁ ▁▁a Ġ Ċ [INST] x [/INST] <<SYS>>", "a <|endoftext|> b<|endoftext|>c  <|im_end|>  d\n<|im_end|>\n",
]
LONG = [
    {"before": "", "repeat": "a", "count": 1_000_000, "after": ""},
    {"before": "", "repeat": " ", "count": 1_000_000, "after": ""},
    {"before": "x", "repeat": " ", "count": 2_000_000, "after": "y 123"},
    {"before": "x", "repeat": "\n", "count": 1_000_000, "after": "y 123"},
    {"before": "x", "repeat": " \n", "count": 1_000_000, "after": " y 123"},
    {"before": "x", "repeat": "\u3000\t", "count": 700_000, "after": "y 123"},
    {"before": "", "repeat": "字", "count": 300_000, "after": " y 123"},
    {"before": "", "repeat": "=", "count": 1_000_000, "after": "\ny 123"},
    {"before": "", "repeat": "the cat ", "count": 100_000, "after": ""},
]


def noise():
    """Bytes at random, read as UTF-8 with U+FFFD for what is none; and characters at random from all planes."""
    source = random.Random(4)
    for length in (40, 200, 400):
        yield bytes(source.randrange(256) for _ in range(length)).decode(errors="replace")
    for top in (0x250, 0x3000, 0x20000):
        points = (source.randrange(top) for _ in range(300))
        yield "".join(chr(point) for point in points if not 0xD800 <= point < 0xE000)
    for _ in range(6):
        yield "".join(source.choice("aZé字 \n\t\r.'1９!-_\u0301🙂سש　") for _ in range(200))


def fnv(ids):
    """FNV-1a over the ids, four bytes each, little end first."""
    value = 0xCBF29CE484222325
    for number in ids:
        for byte in number.to_bytes(4, "little"):
            value = (value ^ byte) * 0x100000001B3 & 0xFFFFFFFFFFFFFFFF
    return f"{value:016x}"


def expected(tokenizer, texts):
    """What one tokenizer makes of everything."""
    encode = lambda text: tokenizer.encode(text, add_special_tokens=False).ids
    ids = [encode(text) for text in texts]
    decoded = {}
    for at, text in enumerate(texts):
        back = tokenizer.decode(ids[at], skip_special_tokens=False)
        if back != text:
            decoded[str(at)] = back
    long = []
    for spec in LONG:
        found = encode(spec["before"] + spec["repeat"] * spec["count"] + spec["after"])
        long.append({"count": len(found), "first": found[:4], "last": found[-4:], "hash": fnv(found)})
    return {"ids": ids, "decoded": decoded, "framed": tokenizer.encode("a").ids, "long": long}


def main():
    folder = pathlib.Path(sys.argv[1])
    texts = TEXTS + list(noise())
    found = {}
    for name in NAMES:
        found[name] = expected(tokenizers.Tokenizer.from_file(str(folder / name / "tokenizer.json")), texts)
        print(name, sum(map(len, found[name]["ids"])), "tokens", flush=True)
    lines = [f"  {json.dumps(name)}: {json.dumps(value, separators=(',', ':'))}" for name, value in found.items()]
    head = f'{{"texts": {json.dumps(texts)},\n "long": {json.dumps(LONG)},\n "tokenizers": {{\n'
    OUT.write_text(head + ",\n".join(lines) + "\n}}\n")


if __name__ == "__main__":
    main()

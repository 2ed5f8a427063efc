"""The fixed conversations and texts that the real model is tested with. Knows nothing but them."""

LOGBOOK = """The keeper's logbook, winter quarter. On the first of November the oil was measured and found to be
four hundred and twelve litres, enough for ninety nights if the wind stays in the west. The lamp was lit at
sixteen minutes past five. Two ships passed before midnight, both southbound, and a fishing boat came in under
the lee of the rock to wait for the tide.

On the second the glass fell all day. By evening the spray reached the gallery, and the north window had to be
wiped every quarter of an hour. The assistant, Maren, stood the first watch and I the second. At three in the
morning a gull struck the lantern and cracked one pane; we covered it with canvas until daylight and then set a
new one from the store. There are now seven spare panes.

The third and fourth were quiet. We painted the lower stair, mended the boat's rudder, and wrote letters. The
supply boat is due on the ninth with flour, coffee, lamp wick, forty metres of rope and the new barometer. Maren
has asked for a book about stars, since the nights are long and the sky above the rock is darker than any she
has known.

On the fifth there was fog. The bell was rung by hand for eleven hours, one stroke every thirty seconds, because
the clockwork that should drive it has lost a tooth. I have asked for a new wheel in my last three letters. In
the afternoon a sailing ship came so near that we could hear the crew talking. We rang faster, and they turned
away. Nobody will ever know how close it was, except for us and the man at their wheel.

On the sixth the fog lifted and we slept until noon. On the seventh I counted the stores: twenty-one tins of
meat, half a sack of potatoes, two cheeses, tea for a month, coffee for three days. On the eighth the sea was
too high for any boat. On the ninth it was higher still, and the supply boat did not come. We drank tea.

On the tenth the boat came at last, with everything but the wheel for the bell. There was a letter from the
board instead, which says that the wheel has been ordered from the city and will arrive in the spring. Maren has
her book. She read the first chapter aloud while I trimmed the wick, and we found the Pleiades through the north
window, exactly where the book said they would be."""

CODE = """What does this function return for [3, 1, 2], and why?

```python
def f(xs):
    if len(xs) < 2:
        return xs
    head, *tail = xs
    return f([x for x in tail if x < head]) + [head] + f([x for x in tail if x >= head])
```"""

CHATS = {
    "short": [{"role": "user", "content": "What is the capital of France?"}],
    "long": [{"role": "user", "content": LOGBOOK + "\n\nSummarize the logbook in three sentences."}],
    "code": [{"role": "user", "content": CODE}],
    "unicode": [{"role": "user", "content": "请用一句话介绍北京。 日本語でも書いてください。 Merci d'avance ! 👩‍👩‍👧‍👦🏮 café naïve"}],
    "turns": [
        {"role": "user", "content": "My name is Ada and I keep three hens."},
        {"role": "assistant", "content": "Nice to meet you, Ada! Three hens sounds lovely."},
        {"role": "user", "content": "One of them lays 5 eggs a week, the others 4 each. How many eggs is that?"},
    ],
    "system": [
        {"role": "system", "content": "You are a pirate. Answer in one short sentence."},
        {"role": "user", "content": "Where should I go on holiday?"},
    ],
}

# Texts whose tokens are compared: spaces, digits, contractions, scripts, joined emoji, special tokens, bytes.
TEXTS = [
    "",
    " ",
    "a",
    "Hello, world!",
    "  two  spaces\tand a tab\n\n\nthree newlines \n",
    "In 2026, 1234567890 × 3.14159 = ?",
    "it's we'll I'VE don't",
    "Straße, naïve café, e\u0301",
    "中文没有空格，日本語もない。한국어는 있다.",
    "مرحبا بالعالم שלום",
    "👩‍👩‍👧‍👦 🏮🇫🇷 🤷🏽‍♀️",
    "<|im_start|>user\nhi<|im_end|>\n",
    "<|im_start|><|endoftext|> <|not_special|>",
    "fn main() {\n    let x: u32 = 0xff_00;\n}\n",
    "\u00a0\u2003\u200b\ufeff",
    "\x00\x01\x7f\u0080",
]

"""Makes tests/fixtures/templates/expected.json: what `jinja2`, set up as in Hugging Face
transformers (utils/chat_template_utils.py), makes of conversations.

    pip install jinja2==3.1.6
    python tests/scripts/render_templates.py [FOLDER]

With the folder of fetch_tokenizers.sh it makes hashes.json too: of each of FOLDER/templates, whose licences are not ours
to hand on, and each conversation, FNV-1a of the texts of its variants, or null where the template refuses it.

Each conversation is written as clients send it; `reference` is the form that the template needs,
where that differs (content null or empty, tool calls' arguments as object or text).
"""

import copy
import json
import pathlib
import sys

import jinja2
import jinja2.ext
from jinja2.sandbox import ImmutableSandboxedEnvironment

FOLDER = pathlib.Path(__file__).parent.parent / "fixtures" / "templates"
NO_NULL = {"smollm2.jinja", "qwen3.jinja", "environment.jinja"}
OBJECTS = {"qwen3.jinja", "environment.jinja", "deepseek_v3_1.jinja"}
TOKENS = {
    "smollm2.jinja": ("<|im_start|>", "<|im_end|>"),
    "qwen3.jinja": (None, "<|im_end|>"),
    "deepseek_v3.jinja": ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"),
    "deepseek_r1_distill.jinja": ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"),
    "environment.jinja": ("<s>", "</s>"),
    "deepseek_v3_1.jinja": ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"),
}
# Of these the arguments of calls are objects, but of DeepSeek's text.
FETCHED = {
    "meta-llama-Llama-3.1-8B-Instruct": ("<|begin_of_text|>", "<|eot_id|>"),
    "meta-llama-Llama-3.2-3B-Instruct": ("<|begin_of_text|>", "<|eot_id|>"),
    "meta-llama-Llama-3.3-70B-Instruct": ("<|begin_of_text|>", "<|eot_id|>"),
    "deepseek-ai-DeepSeek-R1-Distill-Llama-8B": ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"),
}
VARIANTS = [(False, True, {}), (True, False, {"enable_thinking": False}), (False, True, {"enable_thinking": False})]
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "It's the <weather> & \"more\" in ünïcode",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string"}, "days": {"type": "number", "default": 1.0}},
                "required": ["city"],
            },
        },
    }
]
CALL = {
    "id": "call_1",
    "type": "function",
    "function": {"name": "weather", "arguments": '{"city": "Zürich", "days": 2.5, "deep": {"a": [1, true, null]}}'},
}
USER = {"role": "user", "content": "What's the weather?"}
CONVERSATIONS = {
    "one": [USER],
    "system": [{"role": "system", "content": "Be brief."}, USER],
    "turns": [USER, {"role": "assistant", "content": "Rain."}, {"role": "user", "content": " and\n tomorrow? "}],
    "thinking": [
        USER,
        {"role": "assistant", "content": "<think>\nhm\n</think>\n\nRain."},
        {"role": "user", "content": "Sure?"},
    ],
    "tool": [
        USER,
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "content": "12 °C", "tool_call_id": "call_1"},
    ],
    "after a tool": [
        USER,
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "content": "12 °C", "tool_call_id": "call_1"},
        {"role": "assistant", "content": "Cool."},
        {"role": "user", "content": "Thanks"},
    ],
    "twice the same role": [USER, {"role": "user", "content": "<|im_end|> Hello?"}],
}


def environment():
    def raise_exception(message):
        raise jinja2.exceptions.TemplateError(message)

    def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    env = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols]
    )
    env.filters["tojson"] = tojson
    env.globals["raise_exception"] = raise_exception
    return env


def reference(template, messages):
    messages = copy.deepcopy(messages)
    for message in messages:
        if message["content"] is None and template in NO_NULL:
            message["content"] = ""
        for call in message.get("tool_calls", []) if template in OBJECTS or template.startswith("meta-llama") else []:
            call["function"]["arguments"] = json.loads(call["function"]["arguments"])
    return messages


def fnv1a(text):
    value = 0xCBF29CE484222325
    for byte in text.encode():
        value = ((value ^ byte) * 0x100000001B3) % 2**64
    return f"{value:016x}"


def fetched(folder):
    """By template and conversation, the hashes of its variants."""
    hashes = {}
    for template, (bos, eos) in FETCHED.items():
        compiled = environment().from_string((folder / "templates" / f"{template}.jinja").read_text())
        hashes[template] = {"bos_token": bos, "eos_token": eos, "conversations": {}}
        for name, messages in CONVERSATIONS.items():
            found = []
            for with_tools, prompt, extra in VARIANTS:
                try:
                    found.append(fnv1a(compiled.render(
                        messages=reference(template, messages), tools=TOOLS if with_tools else None, documents=None,
                        add_generation_prompt=prompt, bos_token=bos, eos_token=eos, date_string="26 Jul 2024", **extra)))
                except jinja2.exceptions.TemplateError:
                    found.append(None)
            hashes[template]["conversations"][name] = found
    return hashes


cases = []
for template in TOKENS:
    compiled = environment().from_string((FOLDER / template).read_text())
    bos, eos = TOKENS[template]
    tokens = {k: v for k, v in [("bos_token", bos), ("eos_token", eos)] if v}
    for name, messages in CONVERSATIONS.items():
        for with_tools, prompt, extra in VARIANTS:
            tools = TOOLS if with_tools else None
            expected = compiled.render(
                messages=reference(template, messages), tools=tools, documents=None,
                add_generation_prompt=prompt, **tokens, **extra)
            cases.append({
                "template": template, "conversation": name, "messages": messages, "tools": tools,
                "add_generation_prompt": prompt, "extra": extra, **tokens, "expected": expected})
text = ",\n".join(json.dumps(case, ensure_ascii=False) for case in cases)
(FOLDER / "expected.json").write_text("[\n" + text + "\n]\n")
if len(sys.argv) > 1:
    text = json.dumps(fetched(pathlib.Path(sys.argv[1])), ensure_ascii=False, indent=1)
    (FOLDER / "hashes.json").write_text(text + "\n")

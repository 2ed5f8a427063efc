"""Makes tests/fixtures/templates/expected.json: what `jinja2`, set up as in Hugging Face
transformers (utils/chat_template_utils.py), makes of conversations.

    pip install jinja2==3.1.6
    python tests/scripts/render_templates.py

Each conversation is written as clients send it; `reference` is the form that the template needs,
where that differs (content null or empty, tool calls' arguments as object or text).
"""

import copy
import json
import pathlib

import jinja2
import jinja2.ext
from jinja2.sandbox import ImmutableSandboxedEnvironment

FOLDER = pathlib.Path(__file__).parent.parent / "fixtures" / "templates"
NO_NULL = {"smollm2.jinja", "qwen3.jinja", "environment.jinja"}
OBJECTS = {"qwen3.jinja", "environment.jinja"}
TOKENS = {
    "smollm2.jinja": ("<|im_start|>", "<|im_end|>"),
    "qwen3.jinja": (None, "<|im_end|>"),
    "deepseek_v3.jinja": ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"),
    "deepseek_r1_distill.jinja": ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"),
    "environment.jinja": ("<s>", "</s>"),
}
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
        for call in message.get("tool_calls", []) if template in OBJECTS else []:
            call["function"]["arguments"] = json.loads(call["function"]["arguments"])
    return messages


cases = []
for template in TOKENS:
    compiled = environment().from_string((FOLDER / template).read_text())
    bos, eos = TOKENS[template]
    tokens = {k: v for k, v in [("bos_token", bos), ("eos_token", eos)] if v}
    for name, messages in CONVERSATIONS.items():
        for tools, prompt, extra in [(None, True, {}), (TOOLS, False, {"enable_thinking": False}),
                                     (None, True, {"enable_thinking": False})]:
            expected = compiled.render(
                messages=reference(template, messages), tools=tools, documents=None,
                add_generation_prompt=prompt, **tokens, **extra)
            cases.append({
                "template": template, "conversation": name, "messages": messages, "tools": tools,
                "add_generation_prompt": prompt, "extra": extra, **tokens, "expected": expected})
text = ",\n".join(json.dumps(case, ensure_ascii=False) for case in cases)
(FOLDER / "expected.json").write_text("[\n" + text + "\n]\n")

"""Calls that a model makes by itself, in pieces: what is written beforehand comes whole, so the default model's weights make
them here, under a template that knows tools and after calls of the same kind.

Takes the folder that LANTERN_TEST_FOLDER names (`tests/scripts/make_smollm2_folder.py` makes it).
"""

import contextlib
import json
import os
import tempfile
from pathlib import Path

import anthropic
import openai

import tiny_model
from server import Server

PARAMETERS = {
    "type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}, "required": ["city", "days"],
}
TOOL = {"name": "weather", "description": "The weather of a place.", "parameters": PARAMETERS}
BEFORE = [("Paris", 3, "Sunny."), ("Oslo", 2, "Snow."), ("Berlin", 4, "Rain."), ("Madrid", 6, "Wind.")]
ROME = {"city": "Rome", "days": 5}


def question(city, days):
    return {"role": "user", "content": f"The weather in {city} for {days} days?"}


def conversation(called, answered):
    """Questions, each but the last with a call, its result and an answer; `called` and `answered` write call and result."""
    for number, (city, days, weather) in enumerate(BEFORE):
        yield question(city, days)
        yield called(f"call_{number}", {"city": city, "days": days})
        yield answered(f"call_{number}", weather)
        yield {"role": "assistant", "content": weather}
    yield question(**ROME)


def chats_tell_the_arguments_in_pieces(server, model):
    def called(call, arguments):
        function = {"name": "weather", "arguments": json.dumps(arguments)}
        return {"role": "assistant", "content": None, "tool_calls": [{"id": call, "type": "function", "function": function}]}

    def answered(call, weather):
        return {"role": "tool", "tool_call_id": call, "content": weather}

    client = openai.OpenAI(base_url=server.url + "/v1", api_key="any", max_retries=0)
    asked = {
        "model": model, "messages": list(conversation(called, answered)), "tool_choice": "auto", "temperature": 0,
        "tools": [{"type": "function", "function": TOOL}], "max_tokens": 80,
    }
    names, pieces, texts, ends = [], [], [], []
    for chunk in client.chat.completions.create(**asked, stream=True):
        (choice,) = chunk.choices
        texts.append(choice.delta.content or "")
        ends.append(choice.finish_reason)
        for call in choice.delta.tool_calls or []:
            names.append(call.function.name)
            pieces.append(call.function.arguments)
    assert [name for name in names if name] == ["weather"], names
    assert sum(map(bool, pieces)) > 1 and json.loads("".join(pieces)) == ROME, pieces
    assert "".join(texts) == "" and [end for end in ends if end] == ["tool_calls"], (texts, ends)

    message = client.chat.completions.create(**asked).choices[0].message
    (call,) = message.tool_calls
    assert call.function.arguments == "".join(pieces) and not message.content, message


def responses_tell_the_arguments_in_pieces(server, model):
    def called(call, arguments):
        return {"type": "function_call", "call_id": call, "name": "weather", "arguments": json.dumps(arguments)}

    def answered(call, weather):
        return {"type": "function_call_output", "call_id": call, "output": weather}

    client = openai.OpenAI(base_url=server.url + "/v1", api_key="any", max_retries=0)
    with client.responses.stream(
        model=model, input=list(conversation(called, answered)), tool_choice="auto", temperature=0, max_output_tokens=80,
        tools=[{"type": "function", "strict": False, **TOOL}],
    ) as stream:
        events = list(stream)
        (call,) = stream.get_final_response().output
    deltas = [event.delta for event in events if event.type == "response.function_call_arguments.delta"]
    assert sum(map(bool, deltas)) > 1 and "".join(deltas) == call.arguments, (deltas, call)
    (done,) = [event.arguments for event in events if event.type == "response.function_call_arguments.done"]
    assert done == call.arguments and (call.name, json.loads(done)) == ("weather", ROME), call


def messages_tell_the_input_in_pieces(server, model):
    def called(call, arguments):
        return {"role": "assistant", "content": [{"type": "tool_use", "id": call, "name": "weather", "input": arguments}]}

    def answered(call, weather):
        return {"role": "user", "content": [{"type": "tool_result", "tool_use_id": call, "content": weather}]}

    client = anthropic.Anthropic(base_url=server.url, api_key="any", max_retries=0)
    tool = {"name": "weather", "description": TOOL["description"], "input_schema": PARAMETERS}
    with client.messages.stream(
        model=model, max_tokens=80, tools=[tool], tool_choice={"type": "auto"},
        messages=list(conversation(called, answered)), extra_body={"temperature": 0},
    ) as stream:
        deltas = [event.delta for event in stream if event.type == "content_block_delta"]
        message = stream.get_final_message()
    assert {delta.type for delta in deltas} == {"input_json_delta"}, deltas
    pieces = [delta.partial_json for delta in deltas]
    assert sum(map(bool, pieces)) > 1 and json.loads("".join(pieces)) == ROME, pieces
    (call,) = message.content
    assert message.stop_reason == "tool_use" and (call.name, call.input) == ("weather", ROME), message


@contextlib.contextmanager
def serving(binary, source):
    """The binary with the model of a folder, under a template that knows tools and by the name `told`."""
    with tempfile.TemporaryDirectory() as folder:
        told = Path(folder) / "told"
        told.mkdir()
        for file in source.iterdir():
            (told / file.name).symlink_to(file.resolve())
        (told / "chat_template.jinja").write_text(tiny_model.TEMPLATE)
        server = Server(binary, str(told))
        try:
            yield server
        finally:
            server.stop()


CASES = [
    chats_tell_the_arguments_in_pieces, responses_tell_the_arguments_in_pieces, messages_tell_the_input_in_pieces,
]


def cases(server, _):
    with serving(server.binary, Path(os.environ["LANTERN_TEST_FOLDER"])) as told:
        for case in CASES:
            yield case, (told, "told")

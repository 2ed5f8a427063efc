"""Calls of tools by the clients for Python and JavaScript (node/calls.mjs), and the second turn of a long conversation.

The answers of the model are written here, since the default model calls no tools. Takes the tokenizer of the folder that
LANTERN_TEST_FOLDER names (`tests/scripts/make_smollm2_folder.py` makes one).
"""

import json
import os
import subprocess
from pathlib import Path

import anthropic
import ollama
import openai
from langchain_core.messages import HumanMessage, ToolMessage
from langchain_ollama import ChatOllama
from langchain_openai import ChatOpenAI

import tiny_model
from cases_node import FOLDER, node
from server import Readings

QUESTION, SECRET = "What does marker-7.txt say?", "the lantern burns at dusk"
ANSWER = f"It says: {SECRET}."
TEXT, TOOL, ARGUMENTS = "I look.", "read", {"path": "marker-7.txt", "lines": [1, 2], "as": 'größe "7"'}
CALL = json.dumps({"name": TOOL, "arguments": ARGUMENTS}, ensure_ascii=False)
ASKED = {"role": "user", "content": QUESTION}
PARAMETERS = {
    "type": "object",
    "properties": {
        "path": {"type": "string"},
        "lines": {"type": "array", "items": {"$ref": "#/$defs/line"}},
        "as": {"type": "string"},
    },
    "required": ["path"],
    "$defs": {"line": {"type": "integer"}},
}
TOOLS = [{"type": "function", "function": {"name": TOOL, "description": "Reads a file.", "parameters": PARAMETERS}}]


def is_the_call(name, arguments):
    assert name == TOOL, name
    assert (json.loads(arguments) if isinstance(arguments, str) else arguments) == ARGUMENTS, arguments


def every_call_of_node(server, model):
    told = {"question": QUESTION, "secret": SECRET, "answer": ANSWER, "text": TEXT, "tool": TOOL, "arguments": ARGUMENTS}
    subprocess.run([node(), "calls.mjs", server.url, model, json.dumps(told)], cwd=FOLDER, check=True, timeout=120)


def openai_calls_whole_and_streamed(server, model):
    client = openai.OpenAI(base_url=server.url + "/v1", api_key="any", max_retries=0)

    def chat(messages):
        return client.chat.completions.create(model=model, tools=TOOLS, messages=messages).choices[0].message

    def streamed(messages):
        with client.chat.completions.stream(model=model, tools=TOOLS, messages=messages) as stream:
            stream.until_done()
            return stream.get_final_completion().choices[0].message

    for ask in (chat, streamed):
        message = ask([ASKED])
        assert message.content == TEXT and len(message.tool_calls) == 1, message
        call = message.tool_calls[0]
        is_the_call(call.function.name, call.function.arguments)
        said = {"role": "assistant", "content": TEXT, "tool_calls": [call.model_dump(include={"id", "type", "function"})]}
        second = ask([ASKED, said, {"role": "tool", "tool_call_id": call.id, "content": SECRET}])
        assert second.content == ANSWER and not second.tool_calls, second


def openai_responses_call_and_go_on(server, model):
    client = openai.OpenAI(base_url=server.url + "/v1", api_key="any", max_retries=0)
    tools = [{"type": "function", "strict": False, **TOOLS[0]["function"]}]
    first = client.responses.create(model=model, tools=tools, input=QUESTION)
    call = next(item for item in first.output if item.type == "function_call")
    is_the_call(call.name, call.arguments)
    result = {"type": "function_call_output", "call_id": call.call_id, "output": SECRET}
    second = client.responses.create(model=model, tools=tools, previous_response_id=first.id, input=[result])
    assert second.output_text == ANSWER, second


def anthropic_calls_whole_and_streamed(server, model):
    client = anthropic.Anthropic(base_url=server.url, api_key="any", max_retries=0)
    tools = [{"name": TOOL, "description": "Reads a file.", "input_schema": PARAMETERS}]

    def chat(messages):
        return client.messages.create(model=model, max_tokens=200, tools=tools, messages=messages)

    def streamed(messages):
        with client.messages.stream(model=model, max_tokens=200, tools=tools, messages=messages) as stream:
            return stream.get_final_message()

    for ask in (chat, streamed):
        first = ask([ASKED])
        assert first.stop_reason == "tool_use", first
        text, call = first.content
        assert text.text == TEXT, first
        is_the_call(call.name, call.input)
        result = {"type": "tool_result", "tool_use_id": call.id, "content": SECRET}
        second = ask([ASKED, {"role": "assistant", "content": first.content}, {"role": "user", "content": [result]}])
        assert second.stop_reason == "end_turn" and second.content[0].text == ANSWER, second


def ollama_calls_whole_and_in_lines(server, model):
    client = ollama.Client(host=server.url)
    for stream in (False, True):
        def chat(messages):
            reply = client.chat(model=model, tools=TOOLS, messages=messages, stream=stream)
            parts = list(reply) if stream else [reply]
            calls = [call for part in parts for call in part.message.tool_calls or []]
            return "".join(part.message.content or "" for part in parts), calls

        text, calls = chat([ASKED])
        assert text == TEXT and len(calls) == 1, (text, calls)
        is_the_call(calls[0].function.name, dict(calls[0].function.arguments))
        said = {"role": "assistant", "content": text, "tool_calls": calls}
        assert chat([ASKED, said, {"role": "tool", "tool_name": TOOL, "content": SECRET}]) == (ANSWER, [])


def langchain_binds_tools(server, model):
    for chat in (
        ChatOpenAI(model=model, base_url=server.url + "/v1", api_key="none"),
        ChatOllama(model=model, base_url=server.url),
    ):
        bound = chat.bind_tools(TOOLS)
        for ask in (bound.invoke, lambda messages: sum_of(bound.stream(messages))):
            first = ask([HumanMessage(QUESTION)])
            assert len(first.tool_calls) == 1, first
            is_the_call(first.tool_calls[0]["name"], first.tool_calls[0]["args"])
            result = ToolMessage(SECRET, tool_call_id=first.tool_calls[0]["id"], name=TOOL)
            second = ask([HumanMessage(QUESTION), first, result])
            assert second.content == ANSWER and not second.tool_calls, second


def sum_of(chunks):
    first, *others = chunks
    for chunk in others:
        first += chunk
    return first


POINT = {"type": "object", "properties": {"x": {"enum": [1, 2]}}, "required": ["x"], "additionalProperties": False}
GO = {
    "type": "object", "properties": {"at": {"$ref": "#/$defs/point"}}, "required": ["at"],
    "additionalProperties": False, "$defs": {"point": POINT},
}
GO_TOOLS = [{"type": "function", "function": {"name": "go", "parameters": GO}}]
# No answer is written for this: the model's noise is held to the schema, references within it too.
GO_ASKED = [{"role": "user", "content": "Go on."}]


def is_a_way_to_go(name, arguments):
    assert name == "go" and json.loads(arguments)["at"]["x"] in (1, 2), (name, arguments)


def a_call_is_forced_and_fits_its_schema(server, model):
    """White space, with which noise fills the places where JSON allows it, ends within the grammar's limit."""
    client = openai.OpenAI(base_url=server.url + "/v1", api_key="any", max_retries=0)
    for choice in ("required", {"type": "function", "function": {"name": "go"}}):
        answer = client.chat.completions.create(
            model=model, tools=GO_TOOLS, tool_choice=choice, seed=7, max_tokens=4000, messages=GO_ASKED
        )
        call = answer.choices[0].message.tool_calls[0]
        is_a_way_to_go(call.function.name, call.function.arguments)


def arguments_of_a_forced_call_come_in_deltas(server, model):
    """In several, by OpenAI's chats and responses and by Anthropic's messages, that are the whole call's together."""
    client = openai.OpenAI(base_url=server.url + "/v1", api_key="any", max_retries=0)
    forced = {
        "model": model, "tools": GO_TOOLS, "tool_choice": "required", "messages": GO_ASKED, "seed": 7, "max_tokens": 200,
        "logit_bias": without_blanks(),
    }
    whole = client.chat.completions.create(**forced).choices[0].message.tool_calls[0].function
    name, pieces, ids = "", [], set()
    for chunk in client.chat.completions.create(stream=True, **forced):
        for call in chunk.choices[0].delta.tool_calls or []:
            ids |= {call.id} - {None}
            name += call.function.name or ""
            pieces.append(call.function.arguments)
    assert len(ids) == 1 and pieces[0] == "" and len(pieces) > 2, pieces
    assert (name, "".join(pieces)) == (whole.name, whole.arguments), (pieces, whole)
    is_a_way_to_go(name, "".join(pieces))
    with client.chat.completions.stream(**forced) as stream:
        deltas = [event for event in stream if event.type == "tool_calls.function.arguments.delta"]
        done = stream.get_final_completion().choices[0].message.tool_calls[0].function
    assert len(deltas) > 1 and done.arguments == whole.arguments, (deltas, done)

    tools = [{"type": "function", "strict": False, **GO_TOOLS[0]["function"]}]
    alone = {"tool_choice": "required", "parallel_tool_calls": False}
    with client.responses.stream(model=model, tools=tools, input="Go on.", **alone) as stream:
        deltas = [event.delta for event in stream if event.type == "response.function_call_arguments.delta"]
        (call,) = stream.get_final_response().output
    is_a_way_to_go(call.name, call.arguments)
    assert len(deltas) > 1 and "".join(deltas) == call.arguments, deltas

    client = anthropic.Anthropic(base_url=server.url, api_key="any", max_retries=0)
    tools = [{"name": "go", "input_schema": GO}]
    alone = {"type": "any", "disable_parallel_tool_use": True}
    with client.messages.stream(
        model=model, max_tokens=4000, tools=tools, tool_choice=alone, messages=GO_ASKED
    ) as stream:
        deltas = [event.partial_json for event in stream if event.type == "input_json"]
        message = stream.get_final_message()
    (call,) = message.content
    assert message.stop_reason == "tool_use", message
    is_a_way_to_go(call.name, json.dumps(call.input))
    assert len(deltas) > 1 and json.loads("".join(deltas)) == call.input, deltas


def without_blanks():
    """A bias against all tokens of white space, with which noise would fill the places where JSON allows it."""
    tokenizer = json.loads((Path(os.environ["LANTERN_TEST_FOLDER"]) / "tokenizer.json").read_text())
    blanks = set("ĠĊĉč")  # as byte-level vocabularies write a space, a line's end, a tab and a carriage return
    return {str(token): -100 for piece, token in tokenizer["model"]["vocab"].items() if set(piece) <= blanks}


def a_long_conversation_goes_on_from_the_cache(server, model):
    """The second turn of 15,000 tokens: 95 % of it from the prefix cache, its first token after a tenth of the time."""
    client = openai.OpenAI(base_url=server.url + "/v1", api_key="any", max_retries=0)
    system = " ".join(f"Rule {number}: lanterns are lit at dusk." for number in range(1_260))
    messages = [{"role": "system", "content": system}, {"role": "user", "content": "Once upon a time."}]
    readings = Readings(server)

    def turn():
        answer = client.chat.completions.create(model=model, messages=messages, max_tokens=8, temperature=0)
        messages.append({"role": "assistant", "content": answer.choices[0].message.content})
        return readings.since()

    *_, first_seconds = turn()
    messages.append({"role": "user", "content": "And then?"})
    queries, hits, tokens, seconds = turn()
    assert tokens > 15_000, tokens
    assert hits / queries >= 0.95, f"{hits} of {queries} tokens were in the prefix cache"
    assert seconds <= first_seconds / 10, f"first token after {seconds} s, and {first_seconds} s in the first turn"


CASES = [
    every_call_of_node, openai_calls_whole_and_streamed, openai_responses_call_and_go_on,
    anthropic_calls_whole_and_streamed, ollama_calls_whole_and_in_lines, langchain_binds_tools,
    a_call_is_forced_and_fits_its_schema, arguments_of_a_forced_call_come_in_deltas,
    a_long_conversation_goes_on_from_the_cache,
]


def cases(server, _):
    answers = {QUESTION: f"{TEXT}\n<tool_call>\n{CALL}\n</tool_call>", SECRET: ANSWER}
    with tiny_model.serving(server.binary, Path(os.environ["LANTERN_TEST_FOLDER"]), answers) as tiny:
        for case in CASES:
            yield case, (tiny, "tiny")

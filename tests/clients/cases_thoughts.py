"""Thoughts by the clients for Python, under Qwen3's own template: whole, streamed, switched off, and sent back.

The answers of the model are written here, since the default model does not think. Takes the tokenizer of the folder that
LANTERN_TEST_FOLDER names (`tests/scripts/make_smollm2_folder.py` makes one).
"""

import os
from itertools import groupby
from pathlib import Path

import anthropic
import ollama
import openai
from langchain_ollama import ChatOllama

import tiny_model

TEMPLATE = Path(__file__).parent.parent / "fixtures" / "templates" / "qwen3.jinja"
QUESTION, THOUGHTS, ANSWER = "When are lanterns lit?", "Lanterns are for the dark.\nIt is dark from dusk on.", "At dusk."
AGAIN, SECOND = "And put out?", "At dawn."
# How the template closes thoughts before they begin: it was told that there are to be none.
REFUSED, AT_ONCE = "<think>\n\n</think>\n\n", "At dusk, without a thought."
ASKED = [{"role": "user", "content": QUESTION}]


def thoughts_by_openai_chats(client, model, _):
    whole = client.chat.completions.create(model=model, messages=ASKED)
    message = whole.choices[0].message
    assert (message.reasoning_content, message.content) == (THOUGHTS, ANSWER), message
    thought = whole.usage.completion_tokens_details.reasoning_tokens
    assert 10 < thought < whole.usage.completion_tokens - 2, whole.usage

    deltas, usage = [], None
    for chunk in client.chat.completions.create(
        model=model, messages=ASKED, stream=True, stream_options={"include_usage": True}
    ):
        usage = chunk.usage or usage
        for choice in chunk.choices:
            deltas.append((getattr(choice.delta, "reasoning_content", None), choice.delta.content))
    thoughts, texts = [one for one, _ in deltas if one], [one for _, one in deltas if one]
    assert len(thoughts) > 2 and ("".join(thoughts), "".join(texts)) == (THOUGHTS, ANSWER), deltas
    order = [kind for kind, _ in groupby("thought" if thought else "text" for thought, text in deltas if thought or text)]
    assert order == ["thought", "text"], deltas
    assert usage.completion_tokens_details.reasoning_tokens == thought, usage

    none = client.chat.completions.create(model=model, messages=ASKED, reasoning_effort="none")
    message = none.choices[0].message
    assert message.content == AT_ONCE and getattr(message, "reasoning_content", None) is None, message
    assert none.usage.completion_tokens_details.reasoning_tokens == 0, none.usage


def thoughts_by_openai_responses(client, model, _):
    whole = client.responses.create(model=model, input=QUESTION)
    reasoning, message = whole.output
    assert (reasoning.type, message.type) == ("reasoning", "message"), whole
    assert [part.text for part in reasoning.content] == [THOUGHTS] and whole.output_text == ANSWER, whole
    thought = whole.usage.output_tokens_details.reasoning_tokens
    assert 10 < thought < whole.usage.output_tokens - 2, whole.usage

    with client.responses.stream(model=model, input=QUESTION) as stream:
        events = list(stream)
        final = stream.get_final_response()
    deltas = [event.delta for event in events if event.type == "response.reasoning_text.delta"]
    assert len(deltas) > 2 and "".join(deltas) == THOUGHTS, deltas
    assert [event.text for event in events if event.type == "response.reasoning_text.done"] == [THOUGHTS]
    kinds = [event.type for event in events]
    assert kinds.index("response.reasoning_text.done") < kinds.index("response.output_text.delta"), kinds
    assert [item.type for item in final.output] == ["reasoning", "message"] and final.output_text == ANSWER, final
    assert final.output[0].content[0].text == THOUGHTS, final
    assert final.usage.output_tokens_details.reasoning_tokens == thought, final.usage

    none = client.responses.create(model=model, input=QUESTION, reasoning={"effort": "none"})
    assert [item.type for item in none.output] == ["message"] and none.output_text == AT_ONCE, none
    assert none.usage.output_tokens_details.reasoning_tokens == 0, none.usage

    # The items go back as they came.
    history = [*ASKED, *(item.model_dump(exclude_none=True) for item in whole.output)]
    second = client.responses.create(model=model, input=[*history, {"role": "user", "content": AGAIN}])
    assert second.output_text == SECOND, second


def thoughts_by_anthropic_messages(_, model, url):
    client = anthropic.Anthropic(base_url=url, api_key="any", max_retries=0)
    asked = {"model": model, "max_tokens": 2000, "messages": ASKED}
    thinking = {"type": "enabled", "budget_tokens": 1024}
    whole = client.messages.create(**asked, thinking=thinking)
    thoughts, text = whole.content
    assert (thoughts.type, thoughts.thinking) == ("thinking", THOUGHTS) and isinstance(thoughts.signature, str), whole
    assert (text.type, text.text, whole.stop_reason) == ("text", ANSWER, "end_turn"), whole
    assert 10 < whole.usage.output_tokens_details.thinking_tokens < whole.usage.output_tokens - 2, whole.usage

    with client.messages.stream(**asked, thinking=thinking) as stream:
        events = [event for event in stream if event.type.startswith("content_block_")]
        final = stream.get_final_message()
    told = [(event.index, event.delta.type if event.type == "content_block_delta" else event.type) for event in events]
    assert [one for one, _ in groupby(told)] == [
        (0, "content_block_start"), (0, "thinking_delta"), (0, "signature_delta"), (0, "content_block_stop"),
        (1, "content_block_start"), (1, "text_delta"), (1, "content_block_stop"),
    ], told
    deltas = [event.delta.thinking for event in events if (event.index, event.type) == (0, "content_block_delta")
              and event.delta.type == "thinking_delta"]
    assert len(deltas) > 2 and "".join(deltas) == THOUGHTS, deltas
    assert [block.model_dump() for block in final.content] == [block.model_dump() for block in whole.content], final
    assert final.usage.output_tokens_details == whole.usage.output_tokens_details, final.usage

    for off in ({}, {"thinking": {"type": "disabled"}}):
        none = client.messages.create(**asked, **off)
        assert [(block.type, block.text) for block in none.content] == [("text", AT_ONCE)], none

    # The blocks go back as they came.
    asked["messages"] = [*ASKED, {"role": "assistant", "content": whole.content}, {"role": "user", "content": AGAIN}]
    second = client.messages.create(**asked, thinking=thinking)
    assert second.content[-1].text == SECOND, second


def thoughts_by_ollama(_, model, url):
    client = ollama.Client(host=url)
    assert "thinking" in client.show(model).capabilities
    for stream in (False, True):
        def chat(**asked):
            reply = client.chat(model=model, messages=ASKED, stream=stream, **asked)
            return [part.message for part in (reply if stream else [reply])]

        def joined(messages):
            return "".join(one.thinking or "" for one in messages), "".join(one.content or "" for one in messages)

        messages = chat(think=True)
        assert joined(messages) == (THOUGHTS, ANSWER), messages
        assert not stream or sum(bool(one.thinking) for one in messages) > 2, messages
        messages = chat(think=False)
        assert joined(messages) == ("", AT_ONCE) and all(one.thinking is None for one in messages), messages
    generated = client.generate(model=model, prompt=QUESTION, think=True)
    assert (generated.thinking, generated.response) == (THOUGHTS, ANSWER), generated


def thoughts_by_langchain(_, model, url):
    for thinks, expected in [(True, (THOUGHTS, ANSWER)), (False, (None, AT_ONCE))]:
        chat = ChatOllama(model=model, base_url=url, reasoning=thinks)
        first, *others = chat.stream(QUESTION)
        for chunk in others:
            first += chunk
        for message in (chat.invoke(QUESTION), first):
            assert (message.additional_kwargs.get("reasoning_content"), message.content) == expected, message


CASES = [
    thoughts_by_openai_chats, thoughts_by_openai_responses, thoughts_by_anthropic_messages, thoughts_by_ollama,
    thoughts_by_langchain,
]


def cases(server, _):
    answers = {QUESTION: f"<think>\n{THOUGHTS}\n</think>\n\n{ANSWER}", AGAIN: SECOND, REFUSED: AT_ONCE}
    folder = Path(os.environ["LANTERN_TEST_FOLDER"])
    with tiny_model.serving(server.binary, folder, answers, template=TEMPLATE.read_text()) as tiny:
        client = openai.OpenAI(base_url=tiny.url + "/v1", api_key="any", max_retries=0)
        for case in CASES:
            yield case, (client, "tiny", tiny.url)

"""The `anthropic` client: messages, whole and streamed, token counts, models, errors."""

import anthropic

QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
# Later versions of the client have no parameter for it; the API has.
GREEDY = {"temperature": 0}


def message_answers(client, model):
    answer = client.messages.create(model=model, max_tokens=40, messages=QUESTION, extra_body=GREEDY)
    assert "Paris" in answer.content[0].text and answer.role == "assistant", answer
    assert answer.stop_reason in ("end_turn", "max_tokens") and answer.usage.output_tokens > 0
    return answer


def stream_equals_the_whole(client, model):
    whole = message_answers(client, model)
    with client.messages.stream(model=model, max_tokens=40, messages=QUESTION, extra_body=GREEDY) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert text == whole.content[0].text and final.content[0].text == text
    assert final.stop_reason == whole.stop_reason and final.usage.output_tokens == whole.usage.output_tokens


def system_and_stop_sequences(client, model):
    answer = client.messages.create(
        model=model,
        max_tokens=60,
        system=[{"type": "text", "text": "You count.", "cache_control": {"type": "ephemeral"}}],
        messages=[{"role": "user", "content": "Count to ten: 1, 2, 3, 4"}, {"role": "assistant", "content": "5, 6,"}],
        stop_sequences=["8"],
        extra_body=GREEDY,
    )
    assert answer.stop_reason == "stop_sequence" and answer.stop_sequence == "8", answer


def tokens_are_counted(client, model):
    counted = client.messages.count_tokens(model=model, messages=QUESTION).input_tokens
    answer = message_answers(client, model)
    assert counted == answer.usage.input_tokens + answer.usage.cache_read_input_tokens, (counted, answer.usage)


def models_are_listed(client, model):
    assert model in [entry.id for entry in client.models.list()]
    assert client.models.retrieve(model).type == "model"


def errors_have_their_types(client, model):
    for kind, request in [
        (anthropic.NotFoundError, {"model": "nobody"}),
        (anthropic.BadRequestError, {"extra_body": {"temperature": -1}}),
        (anthropic.BadRequestError, {"messages": [{"role": "user", "content": "word " * 20000}]}),
    ]:
        try:
            client.messages.create(**({"model": model, "max_tokens": 5, "messages": QUESTION} | request))
        except kind as error:
            assert error.body["type"] == "error" and error.body["error"]["message"], error.body
        else:
            raise AssertionError(f"{kind.__name__} was not raised")


def cases(server, model):
    client = anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0)
    tests = [
        message_answers,
        stream_equals_the_whole,
        system_and_stop_sequences,
        tokens_are_counted,
        models_are_listed,
        errors_have_their_types,
    ]
    return [(test, (client, model)) for test in tests]

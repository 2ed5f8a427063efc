"""The `openai` client: chat, stream, completions, models, errors, cancel."""

import time

import openai


def chat_answers(client, model):
    answer = client.chat.completions.create(
        model=model, messages=[{"role": "user", "content": "What is the capital of France?"}], temperature=0, max_tokens=40
    )
    choice = answer.choices[0]
    assert "Paris" in choice.message.content, choice.message.content
    assert choice.finish_reason in ("stop", "length")
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    return choice.message.content


def stream_equals_the_whole(client, model):
    whole = chat_answers(client, model)
    stream = client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": "What is the capital of France?"}],
        temperature=0,
        max_tokens=40,
        stream=True,
        stream_options={"include_usage": True},
    )
    text, reasons, usage = "", [], None
    for chunk in stream:
        usage = chunk.usage or usage
        for choice in chunk.choices:
            text += choice.delta.content or ""
            if choice.finish_reason:
                reasons.append(choice.finish_reason)
    assert text == whole, (text, whole)
    assert len(reasons) == 1 and usage.completion_tokens > 0
    assert usage.prompt_tokens_details.cached_tokens > 0, "the same prompt again hits the prefix cache"


def choices_and_seeds(client, model):
    def sample(seed):
        answer = client.chat.completions.create(
            model=model,
            messages=[{"role": "user", "content": "Invent a name for a cat."}],
            n=3,
            seed=seed,
            temperature=1.0,
            max_tokens=12,
        )
        return [choice.message.content for choice in answer.choices]

    first, again, other = sample(7), sample(7), sample(8)
    assert first == again, (first, again)
    assert len(set(first)) > 1 and first != other, (first, other)


def logprobs_are_sane(client, model):
    answer = client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": "Say yes."}],
        temperature=0,
        max_tokens=4,
        logprobs=True,
        top_logprobs=5,
    )
    for entry in answer.choices[0].logprobs.content:
        assert entry.logprob <= 0 and len(entry.top_logprobs) == 5
        assert entry.top_logprobs[0].token == entry.token, "greedy takes the likeliest"


def completions_of_every_prompt_form(client, model):
    one = client.completions.create(model=model, prompt="The capital of France is", max_tokens=5, temperature=0)
    assert "Paris" in one.choices[0].text, one.choices[0].text
    two = client.completions.create(model=model, prompt=["One, two,", "Monday, Tuesday,"], max_tokens=4, temperature=0)
    assert [choice.index for choice in two.choices] == [0, 1]
    tokens = client.completions.create(
        model=model, prompt=[[1, 4093, 198]], echo=True, logprobs=1, max_tokens=1, temperature=0
    )
    found = tokens.choices[0].logprobs.token_logprobs
    assert len(found) == 4 and found[0] is None and all(value <= 0 for value in found[1:]), found


def stop_strings_end_the_text(client, model):
    whole = client.completions.create(model=model, prompt="1, 2, 3, 4,", max_tokens=20, temperature=0).choices[0].text
    cut = client.completions.create(model=model, prompt="1, 2, 3, 4,", max_tokens=20, temperature=0, stop=["7"])
    assert cut.choices[0].text == whole.split("7")[0] and cut.choices[0].finish_reason == "stop", (whole, cut)


def responses_go_on_from_each_other(client, model):
    first = client.responses.create(model=model, input="What is the capital of France?", temperature=0, max_output_tokens=40)
    assert "Paris" in first.output_text and first.usage.output_tokens > 0, first
    assert client.responses.retrieve(first.id).output_text == first.output_text
    second = client.responses.create(
        model=model, input="And of Italy?", previous_response_id=first.id, temperature=0, max_output_tokens=40
    )
    assert second.usage.input_tokens > first.usage.total_tokens, (first.usage, second.usage)
    with client.responses.stream(
        model=model, input="What is the capital of France?", temperature=0, max_output_tokens=40
    ) as stream:
        deltas = "".join(event.delta for event in stream if event.type == "response.output_text.delta")
        assert deltas == stream.get_final_response().output_text == first.output_text


def models_are_listed(client, model):
    assert model in [entry.id for entry in client.models.list()]
    assert client.models.retrieve(model).id == model


def errors_have_their_types(client, model):
    def refused(kind, **request):
        try:
            client.chat.completions.create(**({"model": model, "messages": [{"role": "user", "content": "x"}]} | request))
        except kind as error:
            return error
        raise AssertionError(f"{kind.__name__} was not raised")

    assert "nobody" in str(refused(openai.NotFoundError, model="nobody"))
    assert "temperature" in str(refused(openai.BadRequestError, temperature=-1))
    long = refused(openai.BadRequestError, messages=[{"role": "user", "content": "word " * 20000}])
    assert long.code == "context_length_exceeded" and "200" in str(long) and "8192" in str(long), str(long)


def a_client_that_leaves_is_cancelled(client, model, server):
    stream = client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": "Count to a thousand."}],
        stream=True,
        max_tokens=4000,
        extra_body={"ignore_eos": True},
    )
    next(iter(stream))
    assert server.metric("vllm:num_requests_running") >= 1
    stream.close()
    deadline = time.monotonic() + 10
    while server.metric("vllm:num_requests_running") > 0:
        assert time.monotonic() < deadline, "the request goes on without its client"
        time.sleep(0.05)


def cases(server, model):
    client = openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0)
    at_root = openai.OpenAI(base_url=server.url, api_key="none", max_retries=0)
    return [
        (chat_answers, (client, model)),
        (chat_answers, (at_root, model)),
        (stream_equals_the_whole, (client, model)),
        (choices_and_seeds, (client, model)),
        (logprobs_are_sane, (client, model)),
        (completions_of_every_prompt_form, (client, model)),
        (stop_strings_end_the_text, (client, model)),
        (responses_go_on_from_each_other, (client, model)),
        (models_are_listed, (client, model)),
        (errors_have_their_types, (client, model)),
        (a_client_that_leaves_is_cancelled, (client, model, server)),
    ]

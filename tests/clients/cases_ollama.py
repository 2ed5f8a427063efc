"""The `ollama` client: chat, generate, what is said of models, errors."""

import ollama

QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
GREEDY = {"temperature": 0, "num_predict": 40}


def chat_answers(client, model):
    answer = client.chat(model=model, messages=QUESTION, options=GREEDY)
    assert "Paris" in answer.message.content, answer
    assert answer.done and answer.done_reason in ("stop", "length") and answer.eval_count > 0
    assert answer.total_duration >= answer.eval_duration > 0
    return answer


def stream_equals_the_whole(client, model):
    whole = chat_answers(client, model)
    chunks = list(client.chat(model=model, messages=QUESTION, options=GREEDY, stream=True))
    assert "".join(chunk.message.content for chunk in chunks) == whole.message.content
    assert [chunk.done for chunk in chunks].count(True) == 1 and chunks[-1].eval_count == whole.eval_count


def generate_answers(client, model):
    answer = client.generate(model=model, prompt="What is the capital of France?", options=GREEDY)
    assert "Paris" in answer.response, answer
    raw = client.generate(model=model, prompt="The capital of France is", raw=True, options=GREEDY | {"num_predict": 5})
    assert "Paris" in raw.response and raw.eval_count == 5, raw
    assert client.generate(model=model).done_reason == "load"


def seeds_decide(client, model):
    def sample(seed):
        options = {"seed": seed, "temperature": 1.0, "num_predict": 12}
        return client.generate(model=model, prompt="Invent a name for a cat.", options=options).response

    assert sample(7) == sample(7) != sample(8)


def models_are_described(client, model):
    assert model in [entry.model for entry in client.list().models]
    shown = client.show(model)
    assert shown.modelinfo["llama.context_length"] == 8192 and "completion" in shown.capabilities, shown
    running = client.ps().models[0]
    assert running.model == model and running.context_length == 8192, running


def errors_tell_why(client, model):
    def refused(status, **request):
        try:
            client.chat(**({"model": model, "messages": QUESTION} | request))
        except ollama.ResponseError as error:
            assert error.status_code == status, error
            return error.error
        raise AssertionError("it was taken")

    assert "nobody" in refused(404, model="nobody")
    small = refused(400, options={"num_ctx": 16})
    assert "16" in small and "nothing was cut" in small, small


def cases(server, model):
    client = ollama.Client(host=server.url)
    tests = [chat_answers, stream_equals_the_whole, generate_answers, seeds_decide, models_are_described, errors_tell_why]
    return [(test, (client, model)) for test in tests]

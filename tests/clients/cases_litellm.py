"""`litellm`: its OpenAI, Ollama and Anthropic providers."""

import os

# Its list of prices is of no use here.
os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"

import litellm

QUESTION = [{"role": "user", "content": "What is the capital of France?"}]


def answers(model, base_url):
    request = {"model": model, "messages": QUESTION, "api_base": base_url, "api_key": "none"}
    request |= {"temperature": 0, "max_tokens": 40}
    whole = litellm.completion(**request).choices[0].message.content
    assert "Paris" in whole, whole
    chunks = litellm.completion(**request, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == whole


def cases(server, model):
    return [
        (answers, (f"openai/{model}", server.url + "/v1")),
        (answers, (f"ollama_chat/{model}", server.url)),
        (answers, (f"anthropic/{model}", server.url)),
    ]

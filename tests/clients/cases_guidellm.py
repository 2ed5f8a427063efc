"""`guidellm` measures the program with ten requests: chats, completions and responses.

    python3 -m venv VENV
    VENV/bin/pip install --no-deps --only-binary=:all: --require-hashes -r tests/clients/requirements-guidellm.txt
    LANTERN_TEST_FOLDER=FOLDER VENV/bin/python tests/clients/run.py target/release/lantern guidellm

Takes the tokenizer of the folder that LANTERN_TEST_FOLDER names (`tests/scripts/make_smollm2_folder.py` makes one).
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

REQUESTS, PROMPT_TOKENS, TOKENS = 10, 32, 8


def every_request_is_completed(server, model, path):
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "report.json"
        command = [
            Path(sys.executable).with_name("guidellm"), "run", "--disable-console",
            "--backend", f"kind=openai_http,target={server.url},model={model},request_format={path}",
            "--profile", "kind=concurrent,streams=2", "--constraint", f"kind=max_requests,count={REQUESTS}",
            "--tokenizer", f"kind=huggingface_auto,model={os.environ['LANTERN_TEST_FOLDER']}",
            "--data", f"kind=synthetic_text,prompt_tokens={PROMPT_TOKENS},output_tokens={TOKENS}",
            "--output", f"kind=json,path={output}",
        ]
        environment = {**os.environ, "HF_HOME": folder, "HF_HUB_OFFLINE": "1"}
        done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stdout + done.stderr
        (benchmark,) = json.loads(output.read_text())["benchmarks"]
    totals = benchmark["metrics"]["request_totals"]
    assert totals == {"successful": REQUESTS, "errored": 0, "incomplete": 0, "total": REQUESTS}, totals
    for request in benchmark["requests"]["successful"]:
        # It asks for `ignore_eos`; the template's own tokens come on top of the prompt's.
        assert request["output_tokens"] == TOKENS and request["prompt_tokens"] >= PROMPT_TOKENS, request
        assert request["output"] and request["time_to_first_token_ms"] > 0, request


def cases(server, model):
    for path in ["/v1/chat/completions", "/v1/completions", "/v1/responses"]:
        yield every_request_is_completed, (server, model, path)

"""`aiperf` measures the program with ten requests of each kind that it knows, and reads /metrics beside.

    python3 -m venv VENV
    VENV/bin/pip install --no-deps --only-binary=:all: --require-hashes -r tests/clients/requirements-aiperf.txt
    LANTERN_TEST_FOLDER=FOLDER VENV/bin/python tests/clients/run.py target/release/lantern aiperf

Takes the tokenizer of the folder that LANTERN_TEST_FOLDER names (`tests/scripts/make_smollm2_folder.py` makes one). Offline,
aiperf takes no folder for a tokenizer, but what the Hugging Face cache holds; one is made here.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

REQUESTS, PROMPT_TOKENS, TOKENS = 10, 32, 8


def cache(folder):
    """A Hugging Face cache with the tokenizer, as `lantern/tokenizer`."""
    repository, source = folder / "hub" / "models--lantern--tokenizer", Path(os.environ["LANTERN_TEST_FOLDER"])
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("1")
    (repository / "snapshots" / "1").mkdir(parents=True)
    for name in ["tokenizer.json", "tokenizer_config.json"]:
        shutil.copy(source / name, repository / "snapshots" / "1" / name)


def every_request_is_completed(server, model, kind):
    answers = kind != "embeddings"
    # It reads none of embeddings, nor of the event `response.incomplete`, with which responses end at their limit.
    reads_usage = kind not in ("embeddings", "responses")
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        cache(folder / "cache")
        command = [
            Path(sys.executable).with_name("aiperf"), "profile", "--model", model, "--url", server.url,
            "--endpoint-type", kind, "--tokenizer", "lantern/tokenizer", "--request-count", str(REQUESTS),
            "--concurrency", "2", "--isl", str(PROMPT_TOKENS), "--ui", "none", "--no-gpu-telemetry",
            "--output-artifact-dir", folder / "out",
        ]
        if answers:
            command += ["--streaming", "--osl", str(TOKENS), "--extra-inputs", "ignore_eos:true"]
        if reads_usage:
            command += ["--use-server-token-count"]
        environment = {**os.environ, "HF_HOME": str(folder / "cache"), "HF_HUB_OFFLINE": "1"}
        done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stdout + done.stderr
        report = json.loads((folder / "out" / "profile_export_aiperf.json").read_text())
        metrics = json.loads((folder / "out" / "server_metrics_export.json").read_text())
    assert report["request_count"]["avg"] == REQUESTS and report["request_error_rate"]["avg"] == 0, report
    assert report["error_summary"] == [] and report["is_complete"] and not report["was_cancelled"], report
    if answers:
        assert report["time_to_first_token"]["min"] > 0 and report["inter_token_latency"]["min"] > 0, report
    if reads_usage:
        # The template's own tokens come on top of the prompt's.
        assert report["usage_prompt_tokens"]["min"] >= PROMPT_TOKENS, report
        assert report["total_usage_completion_tokens"]["avg"] == REQUESTS * TOKENS, report
    assert metrics["summary"]["endpoints_successful"] == [server.url + "/metrics"], metrics["summary"]
    assert "vllm:request_success" in metrics["metrics"], list(metrics["metrics"])


def cases(server, model):
    for kind in ["chat", "completions", "responses", "messages", "embeddings"]:
        yield every_request_is_completed, (server, model, kind)

"""The `llm` command, by the configuration file that its guide describes."""

import os
import pathlib
import subprocess
import sys
import tempfile


def answers(server, model):
    with tempfile.TemporaryDirectory() as folder:
        entry = f"- model_id: lantern\n  model_name: {model}\n  api_base: {server.url}/v1\n"
        pathlib.Path(folder, "extra-openai-models.yaml").write_text(entry)
        command = [str(pathlib.Path(sys.executable).parent / "llm"), "-m", "lantern", "-o", "temperature", "0"]
        environment = os.environ | {"LLM_USER_PATH": folder, "LLM_LANTERN_KEY": "none", "OPENAI_API_KEY": "none"}
        run = subprocess.run(
            [*command, "What is the capital of France?"], capture_output=True, text=True, timeout=120, env=environment
        )
    assert run.returncode == 0 and "Paris" in run.stdout, run


def cases(server, model):
    return [(answers, (server, model))]

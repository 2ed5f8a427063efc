"""`lm-eval` with a task that needs no download: prompts as tokens, `echo` and `logprobs`. Any model knows these facts.

Takes the tokenizer of the folder that LANTERN_TEST_FOLDER names (`tests/scripts/make_smollm2_folder.py` makes one).
"""

import os
import re
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parent / "lm_eval" / "run.sh"


def every_fact_is_known(server, model):
    # Beside this Python stands its lm_eval.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        [SCRIPT, server.url, model, os.environ["LANTERN_TEST_FOLDER"]], env={**os.environ, "PATH": path},
        capture_output=True, text=True, timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    accuracy = re.search(r"\|acc +\|↑ +\| *([0-9.]+)\|", done.stdout)
    assert accuracy and float(accuracy.group(1)) == 1, done.stdout


def cases(server, model):
    yield every_fact_is_known, (server, model)

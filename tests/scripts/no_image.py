"""A GPU that the build has no kernels for: doctor says so, `serve` takes the CPU and says why, `--device cuda` is an error.

    python3 tests/scripts/no_image.py BINARY MODEL

Needs an NVIDIA GPU, and a binary without code for it: `tests/gpu.sh variants FOLDER` builds one for compute capability 12.0.
"""

import json
import subprocess
import sys
import urllib.request
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "clients"))
from server import Server

REASON = "this build has no kernel image for"


def run(*command):
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    return done.returncode, done.stdout, done.stderr


def main():
    binary, model = sys.argv[1:]
    code, report, errors = run(binary, "doctor", "--offline")
    assert code == 0, errors
    assert REASON in report and "CPU" in report, report
    server = Server(binary, model)
    with urllib.request.urlopen(server.url + "/health", timeout=5) as response:
        health = json.load(response)
    body = json.dumps({"model": health["model"], "prompt": "One, two,", "max_tokens": 3, "temperature": 0})
    request = urllib.request.Request(
        server.url + "/v1/completions", body.encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as response:
        answer = json.load(response)
    server.stop()
    print("device:", health["device"])
    print("because", health["device_reason"])
    assert health["device"].startswith("CPU") and REASON in health["device_reason"], health
    assert answer["usage"]["completion_tokens"] == 3, answer
    code, _, errors = run(binary, "serve", model, "--port", "0", "--device", "cuda")
    print("--device cuda:", code, errors.strip().splitlines()[-1:])
    assert code != 0 and "`cuda` was asked for" in errors and REASON in errors, (code, errors)


main()

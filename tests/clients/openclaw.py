"""Runs turns of OpenClaw against the real binary, with the providers of the README's guide.

    python tests/clients/tiny_model.py FOLDER_WITH_A_TOKENIZER TINY
    python tests/clients/openclaw.py target/release/lantern TINY OPENCLAW

OPENCLAW is its script (node_modules/.bin/openclaw), which `node` on the PATH runs. Each provider gets a tool to call, its
result back, and a second turn that must come from the prefix cache. What the model says is written here beforehand; all
else is real. Takes port 11434, as the guide does.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from server import Server

PORT = 11434
SECRET = "the lantern burns at dusk"
CALL = '<tool_call>\n{"name": "read", "arguments": {"path": "marker-7.txt"}}\n</tool_call>'
SCRIPT = [
    {"after": "What does marker-7.txt say?", "say": CALL},
    {"after": SECRET, "say": f"It says: {SECRET}."},
    {"after": "And in one word?", "say": "Dusk."},
]
PROVIDERS = {
    "completions at the root": {"baseUrl": f"http://localhost:{PORT}", "api": "openai-completions"},
    "completions below /v1": {"baseUrl": f"http://127.0.0.1:{PORT}/v1", "api": "openai-completions"},
    "ollama": {"baseUrl": f"http://localhost:{PORT}", "api": "ollama"},
}


def config(provider):
    model = {
        "id": "tiny", "name": "tiny", "reasoning": False, "input": ["text"], "contextWindow": 32_768, "maxTokens": 2048,
        "cost": {"input": 0, "output": 0, "cacheRead": 0, "cacheWrite": 0},
    }
    return {
        "models": {"providers": {"ollama": {**provider, "apiKey": "ollama-local", "models": [model]}}},
        "agents": {"defaults": {"model": {"primary": "ollama/tiny"}}},
    }


def turn(openclaw, home, message):
    """One turn; what OpenClaw printed of it."""
    environment = {
        **os.environ, "HOME": str(home), "OPENCLAW_STATE_DIR": str(home),
        "OPENCLAW_CONFIG_PATH": str(home / "openclaw.json"),
    }
    arguments = ["agent", "--local", "--agent", "main", "--session-id", "t1", "--message", message, "--json"]
    done = subprocess.run(
        ["node", openclaw, *arguments, "--timeout", "120"], env=environment, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


class Readings:
    """Counters of the server, and what has been added to them since."""

    NAMES = ["vllm:prefix_cache_queries_total", "vllm:prefix_cache_hits_total", "vllm:prompt_tokens_total",
             "vllm:time_to_first_token_seconds_sum"]

    def __init__(self, server):
        self.server = server
        self.before = self.now()

    def now(self):
        return [self.server.metric(name) for name in self.NAMES]

    def since(self):
        after = self.now()
        added = [now - before for before, now in zip(self.before, after)]
        self.before = after
        return added


def check(name, provider, binary, model, openclaw, folder):
    home = folder / name.replace(" ", "-").replace("/", "")
    (home / "workspace").mkdir(parents=True)
    (home / "workspace" / "marker-7.txt").write_text(SECRET + "\n")
    (home / "openclaw.json").write_text(json.dumps(config(provider)))
    script = folder / "script.json"
    script.write_text(json.dumps(SCRIPT))
    server = Server(binary, str(model), "--scripted", str(script), port=PORT)
    try:
        readings = Readings(server)
        told = turn(openclaw, home, "What does marker-7.txt say?")
        assert f"It says: {SECRET}." in told, told[-2000:]
        *_, first_seconds = readings.since()
        told = turn(openclaw, home, "And in one word?")
        assert "Dusk." in told, told[-2000:]
        queries, hits, tokens, seconds = readings.since()
        print(f"{name}: a call and its answer; second turn of {tokens:.0f} tokens, {hits / queries:.1%} from the cache, "
              f"first token after {seconds:.2f} s (first turn: {first_seconds:.2f} s)", flush=True)
        assert hits / queries >= 0.95, "too little of the second turn was in the prefix cache"
        assert seconds <= first_seconds / 10, "the second turn is slow to begin"
    finally:
        server.stop()


def main():
    binary, model, openclaw = sys.argv[1:]
    with tempfile.TemporaryDirectory() as folder:
        for name, provider in PROVIDERS.items():
            check(name, provider, binary, Path(model).resolve(), openclaw, Path(folder))


main()

"""Runs turns of agents against the real binary: OpenClaw with each provider of the README's guide, and codex.

    npm install openclaw@2026.9.6 @openai/codex@0.169.0    # wants node 24.16 or newer
    python tests/clients/tiny_model.py FOLDER_WITH_A_TOKENIZER TINY
    python tests/clients/agents.py target/release/lantern TINY node_modules/.bin [openclaw] [codex]

In each a tool is called, its result comes back and is answered; OpenClaw's second turn must come from the prefix cache.
What the model says is written here beforehand; all else is real. Takes port 11434, as the guide does.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import tiny_model
from server import Readings, Server

PORT = 11434
SECRET = "the lantern burns at dusk"
QUESTION, AGAIN = "What does marker-7.txt say?", "And in one word?"
ANSWER, DUSK = f"It says: {SECRET}.", "Dusk."
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


def script(folder, tool, arguments):
    """Written answers: the call of a tool, what is made of its result, and a second answer."""
    call = json.dumps({"name": tool, "arguments": arguments})
    return tiny_model.script(folder, {QUESTION: f"<tool_call>\n{call}\n</tool_call>", SECRET: ANSWER, AGAIN: DUSK})


def turn(openclaw, home, message):
    """One turn; what OpenClaw printed of it."""
    environment = {
        **os.environ, "HOME": str(home), "OPENCLAW_STATE_DIR": str(home),
        "OPENCLAW_CONFIG_PATH": str(home / "openclaw.json"),
    }
    arguments = ["agent", "--local", "--agent", "main", "--session-id", "t1", "--message", message, "--json"]
    done = subprocess.run(
        ["node", str(openclaw), *arguments, "--timeout", "120"], env=environment, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def check(name, provider, binary, model, openclaw, folder):
    home = folder / name.replace(" ", "-").replace("/", "")
    (home / "workspace").mkdir(parents=True)
    (home / "workspace" / "marker-7.txt").write_text(SECRET + "\n")
    (home / "openclaw.json").write_text(json.dumps(config(provider)))
    server = Server(binary, model, *script(folder, "read", {"path": "marker-7.txt"}), port=PORT)
    try:
        readings = Readings(server)
        told = turn(openclaw, home, QUESTION)
        assert ANSWER in told, told[-2000:]
        *_, first_seconds = readings.since()
        told = turn(openclaw, home, AGAIN)
        assert DUSK in told, told[-2000:]
        queries, hits, tokens, seconds = readings.since()
        print(f"{name}: a call and its answer; second turn of {tokens:.0f} tokens, {hits / queries:.1%} from the cache, "
              f"first token after {seconds:.2f} s (first turn: {first_seconds:.2f} s)", flush=True)
        assert hits / queries >= 0.95, "too little of the second turn was in the prefix cache"
        assert seconds <= first_seconds / 10, "the second turn is slow to begin"
    finally:
        server.stop()


def openclaw(binary, model, programs, folder):
    for name, provider in PROVIDERS.items():
        check(f"openclaw, {name}", provider, binary, model, programs / "openclaw", folder)


def codex(binary, model, programs, folder):
    home = folder / "codex"
    (home / "project").mkdir(parents=True)
    (home / "project" / "marker-7.txt").write_text(SECRET + "\n")
    provider = f'name = "Lantern"\nbase_url = "http://127.0.0.1:{PORT}/v1"\nwire_api = "responses"\n'
    before = 'model = "tiny"\nmodel_provider = "lantern"\n'
    (home / "config.toml").write_text(f"{before}[model_providers.lantern]\n{provider}")
    server = Server(binary, model, *script(folder, "exec_command", {"cmd": "cat marker-7.txt"}), port=PORT)
    try:
        done = subprocess.run(
            ["node", str(programs / "codex"), "exec", "--skip-git-repo-check", QUESTION], cwd=home / "project",
            env={**os.environ, "CODEX_HOME": str(home)}, stdin=subprocess.DEVNULL, capture_output=True, text=True,
            timeout=240,
        )
        assert done.returncode == 0 and ANSWER in done.stdout, done.stdout + done.stderr[-2000:]
        print("codex: a call and its answer", flush=True)
    finally:
        server.stop()


def main():
    binary, model, programs, *names = sys.argv[1:]
    with tempfile.TemporaryDirectory() as folder:
        for name in names or ["openclaw", "codex"]:
            {"openclaw": openclaw, "codex": codex}[name](binary, model, Path(programs).resolve(), Path(folder))


main()

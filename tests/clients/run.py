"""Drives the real binary with the clients that people use.

    python tests/clients/run.py target/release/lantern openai ollama anthropic langchain llm node calls

Each name is a module `cases_NAME` beside this file. Starts the server on a free port of this machine with the default
model, and ends it with SIGTERM.
"""

import importlib
import sys
import traceback

from server import Server

MODEL = "smollm2:135m"


def main():
    binary, names = sys.argv[1], sys.argv[2:]
    server = Server(binary)
    failed, ran = 0, 0
    try:
        for name in names:
            for case, arguments in importlib.import_module(f"cases_{name}").cases(server, MODEL):
                ran += 1
                try:
                    case(*arguments)
                    print(f"ok      {name}: {case.__name__}")
                except Exception:
                    failed += 1
                    print(f"FAILED  {name}: {case.__name__}")
                    traceback.print_exc()
    finally:
        server.stop()
    print(f"{ran - failed} of {ran} passed")
    sys.exit(1 if failed or not ran else 0)


main()

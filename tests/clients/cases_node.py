"""The clients for JavaScript, `openai` and `ollama`: node/clients.mjs, over packages locked by hash, Node.js among them."""

import functools
import subprocess
from pathlib import Path

FOLDER = Path(__file__).parent / "node"


@functools.cache
def node():
    """The program that runs JavaScript, with the clients beside it."""
    subprocess.run(["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--silent"], cwd=FOLDER, check=True)
    return FOLDER / "node_modules" / ".bin" / "node"


def every_case_of_node(server, model):
    subprocess.run([node(), "clients.mjs", server.url, model], cwd=FOLDER, check=True, timeout=300)


def cases(server, model):
    yield every_case_of_node, (server, model)

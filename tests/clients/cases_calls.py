"""Calls of tools by the clients for JavaScript, `openai` and `ollama`: node/calls.mjs, whose model's answers are written
here, since the default model calls no tools.

Takes the tokenizer of the folder that LANTERN_TEST_FOLDER names (`tests/scripts/make_smollm2_folder.py` makes one).
"""

import json
import os
import subprocess
from pathlib import Path

import tiny_model
from cases_node import FOLDER, node

QUESTION, SECRET = "What does marker-7.txt say?", "the lantern burns at dusk"
ANSWER = f"It says: {SECRET}."
TOOL, ARGUMENTS = "read", {"path": "marker-7.txt", "lines": [1, 2], "as": 'größe "7"'}
CALL = json.dumps({"name": TOOL, "arguments": ARGUMENTS}, ensure_ascii=False)


def every_call_of_node(binary):
    answers = {QUESTION: f"I look.\n<tool_call>\n{CALL}\n</tool_call>", SECRET: ANSWER}
    told = {"question": QUESTION, "secret": SECRET, "answer": ANSWER, "text": "I look.", "tool": TOOL, "arguments": ARGUMENTS}
    with tiny_model.serving(binary, Path(os.environ["LANTERN_TEST_FOLDER"]), answers) as server:
        subprocess.run([node(), "calls.mjs", server.url, "tiny", json.dumps(told)], cwd=FOLDER, check=True, timeout=120)


def cases(server, model):
    yield every_call_of_node, (server.binary,)

"""The `ollama` client brings models from a registry on this machine, uses and deletes them.

The registry speaks the protocol of Ollama's: a manifest by name and tag, and blobs by their SHA-256.
"""

import contextlib
import hashlib
import json
import tempfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import ollama

from server import Server

GGUF = Path(__file__).parent.parent / "fixtures" / "gguf"
WEIGHTS, LICENSE = (GGUF / "llama3_q8_0" / "model.gguf").read_bytes(), b"For tests."
NAME, DAMAGED = "pulled:1b", "damaged:1b"
QUESTION = [{"role": "user", "content": "Hello!"}]


def digest(content):
    return "sha256:" + hashlib.sha256(content).hexdigest()


class Registry(ThreadingHTTPServer):
    """Two models, the second with other weights than its manifest says. The first answer with weights breaks off."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Answer)
        self.files, self.ranges = {}, []
        damaged = WEIGHTS[:-1] + bytes([WEIGHTS[-1] ^ 1])
        for name, weights, sent in [("pulled", WEIGHTS, WEIGHTS), ("damaged", damaged, WEIGHTS)]:
            layers = []
            for kind, content, blob in [("model", weights, sent), ("license", LICENSE, LICENSE)]:
                media_type = f"application/vnd.ollama.image.{kind}"
                layers.append({"mediaType": media_type, "digest": digest(content), "size": len(content)})
                self.files[f"/v2/library/{name}/blobs/{digest(content)}"] = blob
            self.files[f"/v2/library/{name}/manifests/1b"] = json.dumps({"schemaVersion": 2, "layers": layers}).encode()
        self.url = f"http://127.0.0.1:{self.server_port}"


class Answer(BaseHTTPRequestHandler):
    def do_GET(self):
        content, start = self.server.files.get(self.path), 0
        if content is None:
            return self.send_error(404)
        asked = self.headers.get("range")
        if asked:
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
        self.send_response(206 if asked else 200)
        if asked:
            self.send_header("content-range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("content-length", str(len(content) - start))
        self.end_headers()
        sent = content[start:]
        if content is WEIGHTS:
            self.server.ranges.append(asked)
            if len(self.server.ranges) == 1:
                sent = sent[: len(sent) // 2]
        self.wfile.write(sent)

    def log_message(self, *_):
        pass


def names(client):
    return [entry.model for entry in client.list().models]


def refused(ask):
    try:
        ask()
    except ollama.ResponseError as error:
        return error
    raise AssertionError("it was taken")


def a_model_is_pulled_used_and_deleted(client, registry, store):
    assert NAME not in names(client) and refused(lambda: client.show(NAME)).status_code == 404
    lines = list(client.pull(NAME, stream=True))
    assert (lines[0].status, lines[-1].status) == ("pulling manifest", "success"), lines
    # The half that had come was not sent again.
    assert registry.ranges == [None, f"bytes={len(WEIGHTS) // 2}-"], registry.ranges
    for content in (WEIGHTS, LICENSE):
        told = [line for line in lines if line.digest == digest(content)]
        assert {line.total for line in told} == {len(content)}, lines
        done = [line.completed for line in told]
        assert done[0] == 0 and done == sorted(done) and done[-1] == len(content), lines

    (entry,) = [entry for entry in client.list().models if entry.model == NAME]
    assert len(WEIGHTS) <= entry.size <= len(WEIGHTS) + len(LICENSE), entry
    shown = client.show(NAME)
    assert shown.modelinfo["general.architecture"] == "llama" and "completion" in shown.capabilities, shown
    answer = client.chat(model=NAME, messages=QUESTION, options={"num_predict": 4})
    assert answer.model == NAME and answer.eval_count > 0, answer
    assert NAME in [running.model for running in client.ps().models]

    client.delete(NAME)
    assert NAME not in names(client) and refused(lambda: client.show(NAME)).status_code == 404
    assert refused(lambda: client.chat(model=NAME, messages=QUESTION)).status_code == 404
    assert not list(store.rglob("*.gguf"))


def a_damaged_model_is_refused(client, _, store):
    """Streamed, where an error is a line, and whole, where it is the status."""
    error = refused(lambda: list(client.pull(DAMAGED, stream=True))).error
    assert "sha-256" in error.lower() or "checksum" in error.lower(), error
    assert refused(lambda: client.pull(DAMAGED)).status_code == 502
    assert DAMAGED not in names(client) and refused(lambda: client.show(DAMAGED)).status_code == 404
    assert refused(lambda: client.chat(model=DAMAGED, messages=QUESTION)).status_code == 404
    sizes = [path.stat().st_size for path in store.rglob("*") if path.is_file()]
    assert len(WEIGHTS) not in sizes, sizes


def what_the_registry_lacks_is_not_found(client, _registry, _store):
    assert refused(lambda: client.pull("nobody:1b")).status_code == 404
    assert "nobody" in refused(lambda: list(client.pull("nobody:1b", stream=True))).error


@contextlib.contextmanager
def serving():
    registry = Registry()
    threading.Thread(target=registry.serve_forever, daemon=True).start()
    try:
        yield registry
    finally:
        registry.shutdown()
        registry.server_close()


CASES = [a_model_is_pulled_used_and_deleted, a_damaged_model_is_refused, what_the_registry_lacks_is_not_found]


def cases(server, _):
    with tempfile.TemporaryDirectory() as folder, serving() as registry:
        # Other weights are served beside; nothing is in the store.
        other = str(GGUF / "qwen2_q4_1" / "model.gguf")
        puller = Server(server.binary, other, "--models-dir", folder, "--ollama-registry", registry.url)
        try:
            client = ollama.Client(host=puller.url)
            for case in CASES:
                yield case, (client, registry, Path(folder))
        finally:
            puller.stop()

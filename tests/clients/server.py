"""Starts and ends the binary under test."""

import signal
import socket
import subprocess
import time
import urllib.request

START_SECONDS = 120


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


class Server:
    """The binary, serving the default model on a free port of this machine unless it is told otherwise."""

    def __init__(self, binary, *arguments, port=None):
        self.binary = binary
        self.port = port or free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.process = subprocess.Popen([binary, "serve", "--port", str(self.port), "--log", "warn", *arguments])
        deadline = time.monotonic() + START_SECONDS
        while not self.healthy():
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the server did not start: exit code {self.process.poll()}")
            time.sleep(0.1)

    def healthy(self):
        try:
            with urllib.request.urlopen(self.url + "/health", timeout=5) as response:
                return response.status == 200
        except OSError:
            return False

    def metric(self, name):
        """The value of a metric without labels but the model's, from /metrics."""
        with urllib.request.urlopen(self.url + "/metrics", timeout=5) as response:
            for line in response.read().decode().splitlines():
                if line.startswith((name + "{", name + " ")):
                    return float(line.rsplit(" ", 1)[1])
        raise AssertionError(f"/metrics has no {name}")

    def resident_bytes(self):
        with open(f"/proc/{self.process.pid}/status") as status:
            for line in status:
                if line.startswith("VmRSS:"):
                    return int(line.split()[1]) * 1024
        raise AssertionError("no VmRSS")

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(timeout=60) == 0, "SIGTERM is an orderly end"


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

"""A GPU that fails in the middle of an answer: the client is told, /health says 503 and why, the process leaves with 70.

    python3 tests/scripts/dying_gpu.py target/release/lantern MODEL

Needs an NVIDIA GPU and a C compiler. The driver's library is the machine's own, but for one function: a graph is refused
once a certain file is there.
"""

import http.client
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "clients"))
from server import Server

EXIT_CODE = 70
PATIENCE_SECONDS = 60

# CUDA_ERROR_LAUNCH_FAILED, which a kernel's bad access becomes.
STAND_IN = """\
#include <dlfcn.h>
#include <unistd.h>

int cuGraphLaunch(void *graph, void *stream) {
    static int (*real)(void *, void *);
    if (access(FAULT, F_OK) == 0) return 719;
    if (!real) real = (int (*)(void *, void *))dlsym(dlopen(REAL, RTLD_NOW), "cuGraphLaunch");
    return real(graph, stream);
}
"""


def real_driver():
    """Where the loader finds the driver's library."""
    for line in subprocess.run(["ldconfig", "-p"], capture_output=True, text=True, check=True).stdout.splitlines():
        if "libcuda.so.1 " in line and "x86-64" in line:
            return line.split("=> ")[1]
    raise SystemExit("no NVIDIA driver here")


def install(folder, fault):
    """A libcuda.so.1 in `folder` that needs the real one, by its path, for all names but its own."""
    real, empty = real_driver(), folder / "empty.so"
    source = folder / "stand_in.c"
    source.write_text(STAND_IN)
    (folder / "empty.c").write_text("")
    subprocess.run(["cc", "-shared", "-o", empty, folder / "empty.c", f"-Wl,-soname,{real}"], check=True)
    defines = [f'-DFAULT="{fault}"', f'-DREAL="{real}"']
    for name in ["libcuda.so.1", "libcuda.so"]:
        subprocess.run(
            ["cc", "-shared", "-fPIC", *defines, "-o", folder / name, source, "-Wl,--no-as-needed", empty, "-ldl"],
            check=True,
        )


def ask(server, model, results, fault):
    """Streams a long answer, and makes the GPU fail after a few of its events."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    body = {"model": model, "prompt": "One, two,", "max_tokens": 8000, "ignore_eos": True, "stream": True}
    connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
    response = connection.getresponse()
    assert response.status == 200, response.read()
    for line in response:
        if line.startswith(b"data: "):
            results.append(line[6:].decode().strip())
        if len(results) == 5:
            fault.touch()


def main():
    binary, model = sys.argv[1:]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        fault = folder / "fault"
        install(folder, fault)
        os.environ["LD_LIBRARY_PATH"] = name
        server = Server(binary, model, "--device", "cuda")
        events, unhealthy = [], []
        with urllib.request.urlopen(server.url + "/health", timeout=5) as response:
            served = json.load(response)["model"]
        stream = threading.Thread(target=ask, args=(server, served, events, fault))
        stream.start()
        deadline = time.monotonic() + PATIENCE_SECONDS
        while server.process.poll() is None:
            if time.monotonic() > deadline:
                server.process.kill()
            try:
                connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=5)
                connection.request("GET", "/health")
                response = connection.getresponse()
                text = response.read().decode()
                if response.status != 200 and not unhealthy:
                    unhealthy.append((response.status, text))
            except OSError:
                pass
            time.sleep(0.005)
        stream.join()
        code = server.process.wait()
    print("last events:", *events[-2:], sep="\n  ")
    print("health:", *unhealthy)
    print("exit code:", code)
    assert any("error" in json.loads(event) for event in events[-2:] if event != "[DONE]"), "the client was not told"
    assert unhealthy and unhealthy[0][0] == 503 and "CUDA_ERROR_LAUNCH_FAILED" in unhealthy[0][1], unhealthy
    assert code == EXIT_CODE, code


main()

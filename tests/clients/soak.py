"""64 clients at once for a minute: every answer equals the one that its prompt gets alone, no block is leaked, and
memory stays flat.

    python tests/clients/soak.py target/release/lantern [SECONDS]

Needs Python alone. Half of the clients stream; every eighth request is broken off after its first bytes.
"""

import http.client
import json
import sys
import threading
import time
import urllib.request

from server import Server

CLIENTS = 64
# Answers of 24 tokens: some 40 bytes each, so that a minute holds many of them.
MAX_TOKENS = 24
SUBJECTS = ["rivers", "bread", "the moon", "chess", "whales", "glass", "rust", "a candle"]
VERBS = ["Describe", "Explain", "Praise", "Sell me", "Translate into French:", "Write a line about"]
PROMPTS = [f"{verb} {subject}." for verb in VERBS for subject in SUBJECTS]


def body(prompt, stream):
    return json.dumps(
        {
            "messages": [{"role": "user", "content": prompt}],
            "model": MODEL,
            "temperature": 0,
            "max_tokens": MAX_TOKENS,
            "stream": stream,
        }
    )


def post(server, prompt, stream):
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=120)
    connection.request("POST", "/v1/chat/completions", body(prompt, stream), {"Content-Type": "application/json"})
    response = connection.getresponse()
    assert response.status == 200, (response.status, response.read())
    return connection, response


def ask(server, prompt, stream):
    connection, response = post(server, prompt, stream)
    try:
        if not stream:
            return json.loads(response.read())["choices"][0]["message"]["content"]
        text = ""
        for line in response.read().decode().splitlines():
            if line.startswith("data: {"):
                for choice in json.loads(line[6:])["choices"]:
                    text += choice["delta"].get("content") or ""
        return text
    finally:
        connection.close()


def leave(server, prompt):
    connection, response = post(server, prompt, True)
    response.read(16)
    connection.close()


def client(server, number, until, alone, faults, counts):
    turn = 0
    while time.monotonic() < until and not faults:
        prompt = PROMPTS[(number * 7 + turn * 5) % len(PROMPTS)]
        turn += 1
        try:
            if (number + turn) % 8 == 0:
                leave(server, prompt)
                continue
            answer = ask(server, prompt, stream=number % 2 == 0)
            counts[number] += 1
            if answer != alone[prompt]:
                faults.append(f"{prompt!r} got {answer!r} and alone {alone[prompt]!r}")
        except Exception as error:
            faults.append(f"{prompt!r}: {type(error).__name__}: {error}")


def run(server, seconds, alone):
    faults, counts = [], [0] * CLIENTS
    until = time.monotonic() + seconds
    threads = [
        threading.Thread(target=client, args=(server, number, until, alone, faults, counts)) for number in range(CLIENTS)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not faults, faults[:3]
    return sum(counts)


def main():
    global MODEL
    seconds = float(sys.argv[2]) if len(sys.argv) > 2 else 60.0
    server = Server(sys.argv[1])
    with urllib.request.urlopen(server.url + "/v1/models") as response:
        MODEL = json.load(response)["data"][0]["id"]
    alone = {prompt: ask(server, prompt, False) for prompt in PROMPTS}
    # The first round touches the memory that steps of 64 rows need.
    warm = run(server, seconds / 4, alone)
    before = server.resident_bytes()
    answers = run(server, seconds * 3 / 4, alone)
    after = server.resident_bytes()
    deadline = time.monotonic() + 10
    while server.metric("vllm:num_requests_running") > 0 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert server.metric("vllm:num_requests_running") == 0 and server.metric("vllm:num_requests_waiting") == 0
    assert server.metric("vllm:kv_cache_usage_perc") == 0, "blocks are leaked"
    kv_growth = 64 << 20  # freed blocks keep their content, so the cache fills; its pages count as they are first used
    assert after - before < kv_growth, f"memory grew from {before} to {after} bytes"
    server.stop()
    print(f"{warm + answers} answers, each as alone; resident memory {before >> 20} MiB, then {after >> 20} MiB")
    print("1 passed, 0 failed")


main()

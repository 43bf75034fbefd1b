"""Many clients at once, some of whom hang up or talk nonsense: every answer is the one of its seed.

    load.py INFER MODEL [SECONDS]
"""

import http.client
import json
import random
import sys
import threading
import time
import urllib.parse

from server import serve

CLIENTS = 64
# The server's own limit for a text: how fast the machine is decides nothing.
PATIENCE = 600
WORDS = "It was the best of times, and the captain spoke to the children of Israel".split()


def requests():
    """Requests that differ in all that a request can differ in."""
    dice = random.Random(1)
    for seed in range(60):
        length = dice.choice([1, 3, 14, 60, 400])
        prompt = " ".join(dice.choice(WORDS) for _ in range(length))
        # Any ids, which may well end inside a character.
        ids = [dice.randrange(1, 4000) for _ in range(length)]
        prompts = [prompt, ids, prompt, [prompt, "Once"], prompt, prompt, [ids, [5, 6]], [prompt]]
        body = {"prompt": prompts[seed % len(prompts)], "seed": seed}
        body["max_tokens"] = dice.choice([1, 8, 30, 80])
        body["temperature"] = dice.choice([0, 0.7, 1, 1.3])
        if seed % 3 == 0:
            body |= {"top_p": 0.9, "top_k": 50, "repetition_penalty": 1.1}
        if seed % 6 == 1:
            body["min_p"] = 0.05
        if seed % 4 == 0:
            body["stop"] = [" the", "."]
        if seed % 5 == 0:
            body |= {"logprobs": 2, "echo": True}
        if seed % 7 == 0:
            body["n"] = 3
        yield body


NONSENSE = [
    b"",
    b"{",
    b"\xff\xfe\x00",
    b"[" * 5000,
    b'{"prompt": "\xc3"}',
    b'{"prompt": [1, 99999999]}',
    b'{"prompt": [-1]}',
    b'{"temperature": "hot"}',
    b'{"max_tokens": 1e99}',
    b'{"n": 100000}',
    b'{"promt": "x"}',
    # Of ids alone it would be too long for a teacher, and a prompt like any other for a student.
    b'{"prompt": [' + b"5," * 5000 + b'"five"]}',
    b'{"stop": [""]}',
    b'{"prompt": null, "logprobs": -1}',
]


class Client(threading.Thread):
    """One client, until its time is over or something is wrong."""

    def __init__(self, number, url, expected, until):
        super().__init__(daemon=True)
        self.dice = random.Random(number)
        self.address = urllib.parse.urlparse(url).netloc
        self.expected = expected
        self.until = until
        self.counts = dict.fromkeys(("whole", "streamed", "left", "nonsense", "full"), 0)
        self.wrong = None

    def run(self):
        try:
            while time.monotonic() < self.until and self.wrong is None:
                self.once()
        except Exception as error:
            self.wrong = f"{type(error).__name__}: {error}"

    def once(self):
        act = self.dice.choices(
            [self.whole, self.stream, self.leave, self.talk_nonsense], [10, 5, 3, 2]
        )[0]
        act()

    def post(self, body):
        connection = http.client.HTTPConnection(self.address, timeout=PATIENCE)
        headers = {"Content-Type": "application/json"}
        connection.request("POST", "/v1/completions", body, headers)
        return connection, connection.getresponse()

    def ask(self, **more):
        """Some request's response and what it must be; asks again while the queue is full."""
        index = self.dice.randrange(len(self.expected))
        body, expected = self.expected[index]
        while True:
            connection, response = self.post(json.dumps(body | more))
            if response.status != 429:
                return connection, response, expected
            assert response.getheader("Retry-After") == "1"
            response.read()
            connection.close()
            self.counts["full"] += 1
            time.sleep(self.dice.random() / 4)

    def whole(self):
        connection, response, expected = self.ask()
        answer = json.load(response)
        connection.close()
        self.same(response.status, essence_of(answer), expected)
        self.counts["whole"] += 1

    def stream(self):
        options = {"include_usage": True}
        connection, response, expected = self.ask(stream=True, stream_options=options)
        nothing = {"text": "", "logprobs": None, "finish_reason": None}
        answer = {"choices": [dict(nothing) for _ in expected["choices"]], "usage": None}
        for event in events(response):
            answer["usage"] = event.get("usage")
            for choice in event["choices"]:
                merge(answer["choices"][choice["index"]], choice)
        connection.close()
        self.same(response.status, answer, expected)
        self.counts["streamed"] += 1

    def leave(self):
        """Hangs up: in the middle of the body, before the answer, or in the middle of it."""
        how = self.dice.randrange(3)
        connection = http.client.HTTPConnection(self.address, timeout=PATIENCE)
        body = json.dumps({"prompt": "Once", "max_tokens": 500, "stream": how == 2})
        connection.putrequest("POST", "/v1/completions")
        connection.putheader("Content-Type", "application/json")
        connection.putheader("Content-Length", str(len(body)))
        connection.endheaders()
        connection.send(body[: 20 if how == 0 else None].encode())
        if how == 2:
            connection.getresponse().read(self.dice.randrange(1, 4000))
        connection.close()
        self.counts["left"] += 1

    def talk_nonsense(self):
        connection, response = self.post(self.dice.choice(NONSENSE))
        error = json.load(response)["error"]
        connection.close()
        if response.status not in (400, 429) or not error["message"]:
            self.wrong = f"nonsense got {response.status}: {error}"
        self.counts["nonsense"] += 1

    def same(self, status, actual, expected):
        if status != 200 or actual != expected:
            self.wrong = f"status {status}\n  {actual}\ninstead of\n  {expected}"


def events(response):
    for line in response:
        line = line.decode().strip()
        if line == "data: [DONE]":
            return
        if line:
            yield json.loads(line.removeprefix("data: "))
    raise AssertionError("a stream has ended early")


def merge(choice, piece):
    assert choice["finish_reason"] is None, "something follows the end"
    choice["text"] += piece["text"]
    choice["finish_reason"] = piece["finish_reason"]
    if piece["logprobs"] is not None:
        so_far = choice["logprobs"] or dict.fromkeys(piece["logprobs"], [])
        choice["logprobs"] = {key: so_far[key] + piece["logprobs"][key] for key in so_far}


def essence_of(answer):
    """All but what differs from one answer to the next."""
    keys = ("text", "logprobs", "finish_reason")
    choices = [{key: choice[key] for key in keys} for choice in answer["choices"]]
    return {"choices": choices, "usage": answer["usage"]}


def alone(url, bodies):
    """Each request's answer when there is no other."""
    for body in bodies:
        client = Client(0, url, [(body, None)], 0)
        connection, response, _ = client.ask()
        yield body, essence_of(json.load(response))
        connection.close()


def main(infer, model, seconds="120"):
    seconds = float(seconds)
    # Fewer places than clients, so that some find the queue full.
    with serve(infer, model, "--slots", "24", "--queue", "24") as server:
        at_start = server.resident_bytes()
        expected = list(alone(server.url, requests()))
        began = time.monotonic()
        clients = [Client(i, server.url, expected, began + seconds) for i in range(CLIENTS)]
        for client in clients:
            client.start()
        memory = []
        while any(client.is_alive() for client in clients):
            time.sleep(min(1, seconds / 20))
            memory.append(server.resident_bytes())
        for client in clients:
            assert client.wrong is None, client.wrong
        deadline = time.monotonic() + 60
        while server.metric("infer_sequences_running") and time.monotonic() < deadline:
            time.sleep(0.1)
        assert server.metric("infer_sequences_running") == 0, "a sequence stays for ever"
        counts = {key: sum(client.counts[key] for client in clients) for key in clients[0].counts}
        assert counts["whole"] and counts["streamed"], "nothing was compared"
        tokens = server.metric("infer_generated_tokens_total")
        # The first quarter is for buffers to reach their sizes.
        quarters = [max(memory[i * len(memory) // 4 :][: len(memory) // 4 or 1]) for i in range(4)]
        mib = [round(it / 2**20, 1) for it in (at_start, *quarters, server.resident_bytes())]
        print(f"load: {counts}, {tokens / (time.monotonic() - began):.0f} tokens/s")
        print(f"memory in MiB at the start, by quarters at most, and at the end: {mib}")
        assert quarters[3] < 1.1 * quarters[1] + 2**22, "memory grows"
        assert list(alone(server.url, requests())) == expected, "it is not as it was before"
    print("load: ok")


if __name__ == "__main__":
    main(*sys.argv[1:])

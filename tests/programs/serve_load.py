"""Load on serve: python3 serve_load.py PROGRAM [SECONDS [CLIENTS [FLAGS...]]]. Clients ask, read, and break off at random."""
import json
import os
import random
import socket
import sys
import threading
import time

from serve_client import Server

PROGRAM = sys.argv[1]
SECONDS = float(sys.argv[2]) if len(sys.argv) > 2 else 10
CLIENTS = int(sys.argv[3]) if len(sys.argv) > 3 else 200
SLOW = float(os.environ.get("SERVE_TEST_SLOW", "1"))  # above 1: a build with a sanitizer, which keeps freed memory
FLAGS = sys.argv[4:] or ["--slots", "64"]
PROMPTS = ["ROMEO:\n", "JULIET:\nO ", "First Citizen:\nBefore we proceed any further, hear me speak.\n" * 4, "x"]


class Client:
    """Asks again and again on a connection of its own, until the time is over."""

    def __init__(self, server, number, end):
        self.server, self.end, self.random = server, end, random.Random(number)
        self.first_tokens, self.answers, self.aborts, self.tokens, self.busy, self.problems = [], 0, 0, 0, 0, []
        self.socket = None

    def run(self):
        time.sleep(self.random.random())
        try:
            while time.monotonic() < self.end:
                self.ask()
        except Exception as error:  # seen by the main thread
            self.problems.append(repr(error))
        self.close()

    def close(self):
        if self.socket is not None:
            self.socket.close()
        self.socket = None

    def ask(self):
        stream = self.random.random() < 0.8
        fields = {"prompt": self.random.choice(PROMPTS), "max_tokens": self.random.randint(1, 200), "temperature": 0.9,
                  "stream": stream}
        if self.random.random() < 0.1:
            fields["n"] = 3
        if self.random.random() < 0.1:
            fields["logprobs"] = 3
        if self.random.random() < 0.1:
            fields["session"] = f"s{self.random.randint(0, 10**9)}"
            fields.pop("n", None)
        if self.socket is None:
            self.socket = socket.create_connection(("127.0.0.1", self.server.port), 300)
        body = json.dumps(fields).encode()
        begin = time.monotonic()
        self.socket.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        aborts_at = self.random.randint(0, 5) if self.random.random() < 0.3 else None
        self.read(begin, stream, aborts_at)

    def read(self, begin, stream, aborts_at):
        answer, reads = b"", 0
        while True:
            if aborts_at is not None and reads == aborts_at:
                self.aborts += 1
                return self.close()
            part = self.socket.recv(1 << 16)
            reads += 1
            if not part:
                raise ConnectionError(f"closed after {answer[-200:]!r}")
            answer += part
            if stream and b"data: " in answer and begin is not None:
                self.first_tokens.append(time.monotonic() - begin)
                begin = None
            if self.is_complete(answer):
                break
        status = answer[9:12]
        if status == b"429":
            self.busy += 1
            time.sleep(0.2)
        elif status != b"200" or b'"error"' in answer or (stream and not answer.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")):
            raise ValueError(f"{answer[:300]!r} ... {answer[-100:]!r}")
        self.answers += 1
        if b"Connection: close" in answer:
            self.close()

    @staticmethod
    def is_complete(answer):
        head, found, body = answer.partition(b"\r\n\r\n")
        if not found:
            return False
        if b"chunked" in head:
            return body.endswith(b"\r\n0\r\n\r\n")
        return len(body) == int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])


def run_clients(server, seconds, seed):
    clients = [Client(server, seed + i, time.monotonic() + seconds) for i in range(CLIENTS)]
    threads = [threading.Thread(target=client.run) for client in clients]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    problems = [problem for client in clients for problem in client.problems]
    assert not problems, (len(problems), problems[:3])
    return clients


def main():
    threading.stack_size(256 << 10)
    with Server(PROGRAM, *FLAGS, "--session-mb", "16", "--prefix-cache-mb", "16") as server:
        run_clients(server, SECONDS * 0.4, 0)
        server.wait_until_idle(60)
        before = server.resident_megabytes()
        names = ("process_cpu_seconds_total", "connection_cpu_seconds_total", "callback_cpu_seconds_total", "generated_tokens_total")
        start = {name: server.metric(name) for name in names}
        clients = run_clients(server, SECONDS * 0.6, CLIENTS)
        server.wait_until_idle(60)
        used = {name: server.metric(name) - start[name] for name in names}
        after = server.resident_megabytes()
        first = sorted(x for client in clients for x in client.first_tokens)
        outside = (used["connection_cpu_seconds_total"] + used["callback_cpu_seconds_total"]) / used["process_cpu_seconds_total"]
        print(f"{CLIENTS} clients, {SECONDS * 0.6:.0f} s: {sum(c.answers for c in clients)} answers, "
              f"{sum(c.aborts for c in clients)} aborted, {sum(c.busy for c in clients)} refused as too many waited; "
              f"{used['generated_tokens_total'] / (SECONDS * 0.6):.0f} tokens/s")
        print(f"first token: median {first[len(first) // 2]:.3f} s, p99 {first[len(first) * 99 // 100]:.3f} s, most {first[-1]:.3f} s")
        print(f"processor time: {used['process_cpu_seconds_total']:.1f} s, outside of the model {100 * outside:.1f} % "
              f"(connections {used['connection_cpu_seconds_total']:.2f} s, callbacks {used['callback_cpu_seconds_total']:.2f} s)")
        print(f"resident: {before:.0f} MB before, {after:.0f} MB after")
        assert sum(c.answers for c in clients) > CLIENTS / 2 and sum(c.aborts for c in clients) > 0
        assert SLOW > 1 or after <= before * 1.15 + 24, "memory grows"
        end, left = time.monotonic() + 10, 2.0
        while left > 1 and time.monotonic() < end:  # 1 is that which asks
            time.sleep(0.1)
            left = server.metric("connections")
        assert left == 1, "connections are left open"
        assert server.text(prompt="ROMEO:\n")


if __name__ == "__main__":
    if not hasattr(os, "fork"):
        print("skipped: needs POSIX")
    else:
        main()

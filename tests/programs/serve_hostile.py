"""What serve does with clients that mean no good, or break: python3 serve_hostile.py PROGRAM. Each test_* is a test."""
import gzip
import json
import os
import re
import resource
import select
import socket
import subprocess
import sys
import time

from serve_client import Server, read_all, request_of, run_tests

PROGRAM = sys.argv[1]
SLOW = float(os.environ.get("SERVE_TEST_SLOW", "1"))  # how many times as slow as usual this build is


def test_hostile_clients(server):
    with server.socket() as client:  # a body of 100 MB
        client.sendall(b"POST /v1/completions HTTP/1.1\r\nContent-Length: 104857600\r\n\r\n")
        for _ in range(100):
            client.sendall(b" " * (1 << 20))
        answer = read_all(client)
        assert answer.startswith(b"HTTP/1.1 413 ") and b"request_too_large" in answer, answer[:200]
    for beginning, part, expected in ((b"POST /v1/completions HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n", b"10000\r\n" + b" " * 65536 + b"\r\n", b"413"),
                                      (b"POST /v1/completions HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n", b"1" * 65536, b"413"),
                                      (b"GET /health HTTP/1.1\r\n", b"X-Header: value\r\n" * 1000, b"431"),
                                      (b"GET /health HTTP/1.1\r\nX: ", b"x" * 65536, b"431"),
                                      (b"GET /", b"x" * 65536, b"431")):
        with server.socket() as client:  # that does not end
            client.sendall(beginning)
            try:
                for _ in range(1000):
                    client.sendall(part)
            except OSError:
                pass
            answer = read_all(client)
            assert answer == b"" or answer.startswith(b"HTTP/1.1 " + expected), (beginning, answer[:200])
    for text in (b"\r\n\r\n", b"nonsense\r\n\r\n", b"GET / HTTP/9\r\n\r\n", b"\0" * 100 + b"\r\n\r\n", b"GET /%zz%00 HTTP/1.1\r\n\r\n",
                 b"POST /tokenize HTTP/1.1\r\nContent-Length: x\r\n\r\n", b"POST /tokenize HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
                 b"GET /" + b"a" * 8000 + b" HTTP/1.1\r\n\r\n", b"GET / HTTP/1.1\r\nRange: bytes=" + b"1-2," * 1500 + b"\r\n\r\n",
                 b"POST /tokenize HTTP/1.1\r\nContent-Encoding: gzip\r\nContent-Length: 4\r\n\r\nabcd",
                 b"POST /tokenize HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"):
        with server.socket() as client:
            client.sendall(text)
            client.shutdown(socket.SHUT_WR)
            answer = read_all(client)
            assert answer == b"" or answer.startswith(b"HTTP/1.1 4") or text.startswith(b"GET / "), (text[:60], answer[:200])
    assert server.text(prompt="ROMEO:\n")  # it goes on


def test_half_open_connections_and_slow_readers(server):
    silent = [server.socket() for _ in range(40)]
    for client in silent[:20]:
        client.sendall(b"POST /v1/completions HTTP/1.1\r\nContent-Le")
    slow = []
    for _ in range(4):
        client = socket.socket()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(("127.0.0.1", server.port))
        body = json.dumps({"prompt": "x", "max_tokens": 4096, "logprobs": 20, "stream": True}).encode()
        client.sendall(b"POST /v1/completions HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        slow.append(client)
    begin = time.monotonic()
    for _ in range(5):
        assert server.text(prompt="ROMEO:\n")
    assert time.monotonic() - begin < 10 * SLOW
    for client in silent + slow:
        client.close()
    server.wait_until_idle(60 * SLOW)


def text_seconds(server, count=5):
    """How long others wait for some text."""
    begin = time.monotonic()
    for _ in range(count):
        assert server.text(prompt="ROMEO:\n")
    return time.monotonic() - begin


def test_silent_connections_cost_no_thread(server):
    silent = [server.socket() for _ in range(450)]
    for client in silent[150:]:
        client.sendall(b"POST /v1/completions HTTP/1.1\r\nContent-Le")
    assert text_seconds(server) < 4 * SLOW
    silent += [server.socket() for _ in range(250)]  # more than are held: the oldest are closed
    assert text_seconds(server) < 4 * SLOW
    assert silent[0].recv(1) == b""
    silent[-1].sendall(b"GET /health HTTP/1.1\r\n\r\n")
    assert silent[-1].recv(12) == b"HTTP/1.1 200"
    for client in silent:
        client.close()


def test_slow_bodies_do_not_hold_all_threads(server):
    slow = [server.socket() for _ in range(300)]
    for client in slow:
        client.sendall(b"POST /v1/completions HTTP/1.1\r\nContent-Length: 99\r\n\r\n{")
    assert text_seconds(server, 1) < 15 * SLOW
    ready, _, _ = select.select(slow, [], [], 30 * SLOW)  # as many as others needed
    answer = ready[0].recv(12)
    assert answer == b"HTTP/1.1 408", answer
    for client in slow:
        client.close()


def test_a_body_that_is_refused_is_no_request(server):
    for path, headers in (("/v1/nothing", b""), ("/health", b""), ("/v1/completions", b"Transfer-Encoding: chunked\r\n")):
        with server.socket() as client:
            client.sendall(request_of({"prompt": "x", "max_tokens": 1}))
            answer = b""
            while not answer.endswith(b"}"):
                answer += client.recv(1 << 16)
            client.sendall(request_of(b"GET /v1/models HTTP/1.1\r\n\r\n", path, headers=headers))
            answer = read_all(client)
            assert re.match(rb"HTTP/1.1 40[045] ", answer) and answer.count(b"HTTP/1.1 ") == 1, answer


def test_bodies_that_expand(server):
    bomb = gzip.compress(b" " * (300 << 20))
    before = server.resident_megabytes("VmHWM")
    for method, path, expected in (("POST", "/v1/completions", 413), ("DELETE", "/v1/sessions/x", 404)):
        assert server.ask(method, path, bomb, {"Content-Encoding": "gzip"})[0] == expected
    assert SLOW > 1 or server.resident_megabytes("VmHWM") < before + 100


def test_answers_that_would_be_too_large(server):
    for fields in ({"n": 64, "max_tokens": 4096, "logprobs": 20}, {"prompt": "x" * 10**6, "n": 64, "echo": True, "logprobs": 0}):
        assert server.refused(400, {"prompt": "x", **fields})["code"] == "answer_too_large"


def test_several_requests_at_once_on_a_connection(server):
    with server.socket() as client:
        client.sendall(request_of({"prompt": "ROMEO:", "max_tokens": 3}) * 3 + b"GET /health HTTP/1.1\r\nConnection: close\r\n\r\n")
        answer = read_all(client)
        assert answer.count(b"HTTP/1.1 200 OK") == 4 and answer.endswith(b'{"status":"ok"}'), answer
    for piece in (b"GET /health HTTP/1.1\r\nConnection: close\r\n\r\n", request_of({"prompt": "x"}, headers=b"Connection: close\r\n")):
        with server.socket() as client:  # byte by byte
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for i in range(len(piece)):
                client.sendall(piece[i:i + 1])
            assert read_all(client).startswith(b"HTTP/1.1 200")


def test_bodies_that_wait_for_leave(server):
    head, _, body = request_of({"prompt": "x", "max_tokens": 3}, headers=b"Expect: 100-continue\r\n").partition(b"\r\n\r\n")
    with server.socket() as client:
        client.sendall(head + b"\r\n\r\n")
        assert client.recv(25) == b"HTTP/1.1 100 Continue\r\n\r\n"
        client.sendall(body)
        assert client.recv(15) == b"HTTP/1.1 200 OK"
    with server.socket() as client:
        client.sendall(head.replace(b"Content-Length: ", b"Content-Length: 9999999") + b"\r\n\r\n")
        assert read_all(client).startswith(b"HTTP/1.1 413 ")


def test_streams_of_http_1_0(server):
    with server.socket() as client:
        client.sendall(request_of({"prompt": "x", "stream": True, "max_tokens": 5}, version="1.0"))
        head, _, body = read_all(client).partition(b"\r\n\r\n")
        assert b"chunked" not in head and body.startswith(b"data: {") and body.endswith(b"\n\ndata: [DONE]\n\n"), (head, body)


def test_disconnects_behind_more_bytes(server):
    before = server.metric("disconnects_total")
    with server.socket() as client:
        client.sendall(request_of({"prompt": "x", "max_tokens": 4096, "n": 16, "ignore_eos": True}) + b"GET /health")
        server.wait_until(lambda: server.metric("answers_running") > 0, 10 * SLOW)
    server.wait_until(lambda: server.metric("disconnects_total") > before, 10 * SLOW)
    server.wait_until_idle(10 * SLOW)


def test_seeds(server):
    for seed in (0, -5, 2**63, 2**64 - 1, -2**63, 9.223372036854775808e18):
        fields = dict(prompt="ROMEO:\n", temperature=1, seed=seed)
        assert server.text(**fields) == server.text(**fields)
    for seed in (1e300, -1e19, 2.0**64, 1.5):
        server.refused(400, {"prompt": "x", "seed": seed}, "seed")


def test_too_many_requests():
    with Server(PROGRAM, "--connections", "2", "--max-seconds", "3") as server:
        clients = [server.socket() for _ in range(80)]
        for client in clients:
            client.sendall(request_of({"prompt": "x", "max_tokens": 4096, "stream": True, "ignore_eos": True}))
        answer = read_all(clients[-1])
        assert answer.startswith(b"HTTP/1.1 429 ") and b'"type":"rate_limit_error"' in answer, answer
        assert server.process.poll() is None
        for client in clients:
            client.close()
        server.wait_until(lambda: server.ask("GET", "/health")[0] == 200, 20 * SLOW)
        server.wait_until_idle(30 * SLOW)
        assert server.text(prompt="ROMEO:\n")


def test_prompts_that_take_too_long():
    with Server(PROGRAM, "--max-seconds", "0.2") as server:
        fields = {"prompt": "x" * 10**6, "max_tokens": 1}
        assert server.refused(429, fields)["code"] == "timeout"
        text = server.ask("POST", "/v1/completions", json.dumps({**fields, "stream": True}))[2]
        assert b'"code":"timeout"' in text and b'"length"' not in text, text


def test_a_port_is_for_one_server():
    with Server(PROGRAM) as server:
        second = subprocess.run([PROGRAM, "--port", str(server.port), "--threads", "1"], capture_output=True, text=True,
                                timeout=60 * SLOW, check=False)
        assert second.returncode == 1 and "--port" in second.stderr, second
    second = subprocess.run([PROGRAM, "--api-key", ""], capture_output=True, text=True, timeout=60 * SLOW, check=False)
    assert second.returncode == 2 and "--api-key" in second.stderr, second


def test_ends_at_once_and_whatever_clients_do():
    for _ in range(5):
        with Server(PROGRAM) as server:
            server.signal()
            assert server.process.wait(20 * SLOW) == 0
    with Server(PROGRAM, "--drain-seconds", "1") as server:
        clients = [server.socket() for _ in range(4)]  # silent; with half a head; with half a body; which does not read
        clients[1].sendall(b"GET /")
        clients[2].sendall(b"POST /v1/completions HTTP/1.1\r\nContent-Length: 99\r\n\r\n{")
        clients[3].setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        clients[3].sendall(request_of({"prompt": "x", "max_tokens": 4096, "logprobs": 20, "stream": True}))
        server.wait_until(lambda: server.metric("answers_total") + server.metric("answers_running") > 0, 10 * SLOW)
        begin = time.monotonic()
        server.signal()
        assert server.process.wait(20 * SLOW) == 0 and time.monotonic() - begin < 8 * SLOW
        for client in clients:
            client.close()


if __name__ == "__main__":
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)  # some tests need 750 files
    if 0 <= soft < 1024:
        resource.setrlimit(resource.RLIMIT_NOFILE, (1024 if hard < 0 else min(1024, hard), hard))
    run_tests(globals(), PROGRAM, ("--slots", "8"), sys.argv[2:], SLOW)

"""What the tests of serve share: a server that is started and stopped, and clients."""
import http.client
import json
import os
import signal
import socket
import subprocess
import time


class Server:
    """serve on a port of its choice: with Server(program, "--slots", "4") as server: ..."""

    def __init__(self, program, *flags):
        self.process = subprocess.Popen([program, "--port", "0", "--threads", "1", *flags], stdout=subprocess.PIPE,
                                        text=True)
        line = self.process.stdout.readline()
        assert line.startswith("serving "), f"serve {flags} printed {line!r}"
        self.port = int(line.rsplit(":", 1)[1])

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        if kind is not None:
            self.process.kill()
            self.process.wait()
            return
        status = self.stop()
        assert status == 0, f"serve ended with {status}"

    def signal(self):
        self.process.send_signal(signal.SIGTERM)

    def stop(self):
        if self.process.poll() is None:
            self.signal()
        try:
            return self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise

    def connection(self, timeout=60):
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)

    def socket(self, timeout=30):
        return socket.create_connection(("127.0.0.1", self.port), timeout)

    def ask(self, method, path, body=None, headers=None):
        """Status, headers and body of an answer."""
        connection = self.connection()
        try:
            connection.request(method, path, body, headers or {})
            answer = connection.getresponse()
            return answer.status, dict(answer.getheaders()), answer.read()
        finally:
            connection.close()

    def post(self, path, fields, headers=None):
        """Status and JSON of an answer."""
        body = fields if isinstance(fields, (bytes, str)) else json.dumps(fields)
        status, _, text = self.ask("POST", path, body, headers)
        return status, json.loads(text)

    def complete(self, **fields):
        status, answer = self.post("/v1/completions", {"temperature": 0, "max_tokens": 16, **fields})
        assert status == 200, (status, answer)
        return answer

    def text(self, **fields):
        return self.complete(**fields)["choices"][0]["text"]

    def refused(self, status, fields, mention="", path="/v1/completions", headers=None):
        """Checks that a request is refused with this status, and a message that has these words."""
        found, answer = self.post(path, fields, headers)
        error = answer.get("error", {})
        assert found == status and set(error) == {"message", "type", "param", "code"}, (found, answer)
        assert mention in error["message"], (mention, error["message"])
        return error

    def events(self, path, fields):
        """The events of a stream, which must end in [DONE]."""
        body = json.dumps({"temperature": 0, **fields, "stream": True})
        status, headers, text = self.ask("POST", path, body)
        assert status == 200 and headers["Content-Type"] == "text/event-stream", (status, headers, text)
        parts = text.decode().split("\n\n")
        assert parts[-2:] == ["data: [DONE]", ""], parts[-2:]
        return [json.loads(part.removeprefix("data: ")) for part in parts[:-2]]

    def metric(self, name, headers=None):
        _, _, text = self.ask("GET", "/metrics", headers=headers)
        for line in text.decode().splitlines():
            if line.startswith(f"minimamba_{name} "):
                return float(line.split()[1])
        raise KeyError(name)

    def wait_until(self, condition, seconds=20):
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, f"not so within {seconds} s"
            time.sleep(0.02)

    def wait_until_idle(self, seconds=20, headers=None):
        self.wait_until(lambda: self.metric("answers_running", headers) + self.metric("answers_waiting", headers) == 0, seconds)

    def resident_megabytes(self, name="VmRSS"):
        """0 where /proc is missing. VmHWM: the most so far."""
        path = f"/proc/{self.process.pid}/status"
        if not os.path.exists(path):
            return 0
        with open(path, encoding="utf-8") as lines:
            return next(int(line.split()[1]) for line in lines if line.startswith(name)) / 1000


def request_of(fields, path="/v1/completions", version="1.1", headers=b""):
    """The bytes of a POST request."""
    body = fields if isinstance(fields, bytes) else json.dumps(fields).encode()
    return b"POST %s HTTP/%s\r\n%sContent-Length: %d\r\n\r\n%s" % (path.encode(), version.encode(), headers, len(body), body)


def run_tests(functions, program, flags, wanted, slow=1):
    """Runs the functions named test_*: those with a parameter on one server, which must be idle at the end."""
    tests = [(name, test) for name, test in functions.items() if name.startswith("test_") and (not wanted or name in wanted)]
    begin = time.monotonic()

    def run(name, test, *server):
        test(*server)
        print(f"{name} {time.monotonic() - begin:.1f} s", flush=True)

    with Server(program, *flags) as server:
        for name, test in tests:
            if test.__code__.co_argcount == 1:
                run(name, test, server)
        server.wait_until_idle(20 * slow)
    for name, test in tests:
        if test.__code__.co_argcount == 0:
            run(name, test)


def read_all(connection):
    """What a socket still gives, until its end or a reset."""
    text = b""
    try:
        while part := connection.recv(1 << 16):
            text += part
    except (ConnectionError, socket.timeout):
        pass
    return text

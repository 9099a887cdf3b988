"""What serve answers: python3 serve.py PROGRAM MODEL WORK, where MODEL is the model that ships. Each test_* is a test."""
import json
import os
import shutil
import socket
import sys
import threading
import time

from serve_client import Server, read_all, request_of, run_tests

PROGRAM, MODEL, WORK = sys.argv[1:4]
SLOW = float(os.environ.get("SERVE_TEST_SLOW", "1"))  # how many times as slow as usual this build is


def test_completions(server):
    plain = server.complete(prompt="ROMEO:\n", max_tokens=40)
    choice = plain["choices"][0]
    assert plain["object"] == "text_completion" and plain["model"] == "shakespeare", plain
    assert len(choice["text"]) == 40 and choice["finish_reason"] == "length" and choice["logprobs"] is None, choice
    assert plain["usage"]["prompt_tokens"] == 7 and plain["usage"]["completion_tokens"] == 40, plain["usage"]
    assert server.text(prompt=list(b"ROMEO:\n"), max_tokens=40) == choice["text"]
    both = server.complete(prompt=["ROMEO:\n", "JULIET:\n"], max_tokens=40)["choices"]
    assert [one["index"] for one in both] == [0, 1] and both[0]["text"] == choice["text"]
    ids = server.complete(prompt=[list(b"ROMEO:\n"), list(b"JULIET:\n")], max_tokens=40)["choices"]
    assert [one["text"] for one in ids] == [one["text"] for one in both]
    assert server.complete(prompt="", max_tokens=3)["usage"]["prompt_tokens"] == 1
    sampled = dict(prompt="ROMEO:\n", temperature=0.9, top_p=0.95, presence_penalty=0.2, frequency_penalty=0.1, seed=7)
    assert server.text(**sampled) == server.text(**sampled)
    assert server.text(**sampled) != server.text(**{**sampled, "seed": 8})
    assert server.text(prompt="ROMEO:\n", logit_bias=None, suffix=None, tools=None, user="me")


def test_several_answers(server):
    fields = dict(prompt=["ROMEO:\nI", "JULIET:\nO"], temperature=1, seed=3, max_tokens=12)
    names = ("answers_total", "generated_tokens_total")
    before = [server.metric(name) for name in names]
    several = server.complete(**fields, n=3)["choices"]
    assert [server.metric(name) - x for name, x in zip(names, before)] == [6, 72]  # not what reads the prompts
    assert [one["index"] for one in several] == list(range(6))
    for prompt in range(2):  # number i is what the seed 3 + i gives alone
        for i in range(3):
            alone = server.text(prompt=fields["prompt"][prompt], temperature=1, seed=3 + i, max_tokens=12)
            assert several[3 * prompt + i]["text"] == alone
    best = server.complete(**{**fields, "prompt": "ROMEO:\nI"}, n=1, best_of=4, logprobs=0)
    assert best["usage"]["completion_tokens"] == 48, best["usage"]
    all_four = server.complete(**{**fields, "prompt": "ROMEO:\nI"}, n=4, logprobs=0)["choices"]
    mean = [sum(one["logprobs"]["token_logprobs"]) for one in all_four]
    assert best["choices"][0]["text"] == all_four[mean.index(max(mean))]["text"]


def test_logprobs_and_echo(server):
    first = server.complete(prompt="ROMEO:\n", max_tokens=5, logprobs=3)["choices"][0]
    parts = first["logprobs"]
    assert "".join(parts["tokens"]) == first["text"] and parts["text_offset"] == [0, 1, 2, 3, 4]
    for token, value, top in zip(parts["tokens"], parts["token_logprobs"], parts["top_logprobs"]):
        assert len(top) == 3 and max(top, key=top.get) == token and top[token] == value  # greedy
    echo = server.complete(prompt="ROMEO:\n" + first["text"], max_tokens=0, echo=True, logprobs=3)["choices"][0]
    assert echo["text"] == "ROMEO:\n" + first["text"] and echo["logprobs"]["token_logprobs"][0] is None
    assert echo["logprobs"]["text_offset"] == list(range(12)) and echo["logprobs"]["top_logprobs"][0] is None
    for a, b in zip(echo["logprobs"]["token_logprobs"][7:], parts["token_logprobs"]):
        assert abs(a - b) < 1e-5, (a, b)
    more = server.complete(prompt="ROMEO:\n", max_tokens=5, echo=True, logprobs=0, n=2)["choices"]
    assert [one["text"] for one in more] == ["ROMEO:\n" + first["text"]] * 2
    assert more[0]["logprobs"]["token_logprobs"][7:] == parts["token_logprobs"]
    streamed = server.events("/v1/completions", dict(prompt="ROMEO:\n", max_tokens=5, echo=True, logprobs=0))
    assert "".join(one["choices"][0]["text"] for one in streamed) == "ROMEO:\n" + first["text"]
    offsets = [x for one in streamed for x in one["choices"][0]["logprobs"]["text_offset"]]
    assert offsets == list(range(12)), offsets


def test_stop_strings(server):
    text = server.text(prompt="ROMEO:\n", max_tokens=60)
    for stop in (text[20:24], [text[30:40], text[20:24], "no such text"], text[:1]):
        shortest = min(text.find(one) for one in ([stop] if isinstance(stop, str) else stop) if one in text)
        for fields in (dict(), dict(logprobs=0)):
            choice = server.complete(prompt="ROMEO:\n", max_tokens=60, stop=stop, **fields)["choices"][0]
            assert choice["text"] == text[:shortest] and choice["finish_reason"] == "stop", choice
            if fields:
                assert "".join(choice["logprobs"]["tokens"]) == choice["text"]
        events = server.events("/v1/completions", dict(prompt="ROMEO:\n", max_tokens=60, stop=stop))
        assert "".join(one["choices"][0]["text"] for one in events) == text[:shortest]
        assert events[-1]["choices"][0]["finish_reason"] == "stop"


def test_streams(server):
    text = server.text(prompt="ROMEO:\n", max_tokens=50)
    events = server.events("/v1/completions", dict(prompt="ROMEO:\n", max_tokens=50, stream_options={"include_usage": True}))
    assert "".join(one["choices"][0]["text"] for one in events[:-1]) == text
    assert events[-1]["choices"] == [] and events[-1]["usage"]["total_tokens"] == 57 and events[0]["usage"] is None
    several = server.events("/v1/completions", dict(prompt=["A", "B"], n=2, max_tokens=9))
    for index in range(4):
        mine = [one["choices"][0] for one in several if one["choices"][0]["index"] == index]
        assert len("".join(one["text"] for one in mine)) == 9 and mine[-1]["finish_reason"] == "length"
    events = server.events("/v1/completions", dict(prompt="A", n=8, max_tokens=200))
    assert SLOW > 1 or len(events) < 800  # tokens share events


def test_utf8_is_never_split(server):
    """The model rarely writes other than ASCII: bytes that are no characters come out as U+FFFD, and never as JSON that cannot be read."""
    for seed in range(3):
        fields = dict(prompt="ROM\u00c9O \U0001f600", temperature=2, seed=seed, max_tokens=200)
        whole = server.text(**fields)
        events = server.events("/v1/completions", fields)
        assert "".join(one["choices"][0]["text"] for one in events) == whole


def test_chat(server):
    fields = dict(messages=[{"role": "system", "content": "Be brief."},
                            {"role": "user", "content": [{"type": "text", "text": "Who "}, {"type": "text", "text": "are you?"}]}],
                  temperature=0, max_completion_tokens=24)
    status, answer = server.post("/v1/chat/completions", {**fields, "logprobs": True, "top_logprobs": 2})
    assert status == 200 and answer["object"] == "chat.completion", answer
    message = answer["choices"][0]["message"]
    assert message["role"] == "assistant" and len(message["content"]) == 24, message
    prompt = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWho are you?<|im_end|>\n<|im_start|>assistant\n"
    assert answer["usage"]["prompt_tokens"] == len(prompt)
    assert server.text(prompt=prompt, max_tokens=24) == message["content"]
    content = answer["choices"][0]["logprobs"]["content"]
    assert "".join(one["token"] for one in content) == message["content"] and len(content[0]["top_logprobs"]) == 2
    assert content[0]["bytes"] == list(content[0]["token"].encode())
    events = server.events("/v1/chat/completions", {**fields, "max_tokens": 5})
    assert events[0]["object"] == "chat.completion.chunk" and events[0]["choices"][0]["delta"]["role"] == "assistant"
    assert "".join(one["choices"][0]["delta"].get("content", "") for one in events) == message["content"]
    assert events[-1]["choices"][0]["finish_reason"] == "length"


def test_sessions_equal_one_long_prompt(server):
    turns, said = ["ROMEO:\nWhat", "\nJULIET:\n", "", "\nROMEO:\nAy"], ""
    for turn in turns:
        long = server.text(prompt=said + turn, max_tokens=12)
        answer = server.complete(prompt=turn, max_tokens=12, session="lovers")
        assert answer["choices"][0]["text"] == long
        said += turn + long
        assert answer["session"] == {"id": "lovers", "tokens": len(said)}, answer["session"]
        assert answer["usage"]["prompt_tokens"] <= len(turn) + 1  # a turn costs what is new
    messages = []
    for turn in ("Hello", "And you?", "Why?"):
        messages.append({"role": "user", "content": turn})
        _, long = server.post("/v1/chat/completions", {"messages": messages, "temperature": 0, "max_tokens": 10})
        _, short = server.post("/v1/chat/completions", {"messages": messages[-1:], "temperature": 0, "max_tokens": 10,
                                                        "session": "chat"})
        assert short["choices"][0] == long["choices"][0], (short, long)
        messages.append(long["choices"][0]["message"] | {"refusal": None})
        messages[-1].pop("refusal")
    assert server.ask("DELETE", "/v1/sessions/chat")[0] == 200
    assert server.ask("DELETE", "/v1/sessions/chat")[0] == 404
    server.refused(400, {"prompt": "x", "session": "../x"}, "session")
    server.refused(400, {"prompt": "x", "session": "x", "n": 2}, "one answer")


def test_a_session_is_used_by_one_request(server):
    fields = {"prompt": "x", "session": "busy", "max_tokens": 4096, "ignore_eos": True, "stream": True}
    with server.socket() as client:
        client.sendall(request_of(fields))
        assert client.recv(12) == b"HTTP/1.1 200"
        for _ in range(2):
            assert server.refused(409, {"prompt": "y", "session": "busy"})["code"] == "session_in_use"
        assert server.ask("DELETE", "/v1/sessions/busy")[0] == 200
    server.wait_until(lambda: server.post("/v1/completions", {"prompt": "y", "session": "busy"})[0] == 200, 10 * SLOW)
    assert server.complete(prompt="z", session="busy")["session"]["tokens"] == 34  # as if the first had not been
    assert server.ask("DELETE", "/v1/sessions/busy")[0] == 200


def test_other_paths(server):
    assert server.post("/tokenize", {"prompt": "ROMEO"}) == (200, {"count": 5, "tokens": list(b"ROMEO")})
    assert server.post("/detokenize", {"tokens": list(b"ROMEO")}) == (200, {"prompt": "ROMEO"})
    assert server.post("/detokenize", {"tokens": [256]})[0] == 400
    assert json.loads(server.ask("GET", "/health")[2]) == {"status": "ok"}
    assert json.loads(server.ask("GET", "/v1/models")[2])["data"][0]["id"] == "shakespeare"
    assert json.loads(server.ask("GET", "/v1/models/shakespeare")[2])["object"] == "model"
    assert server.metric("generated_tokens_total") > 0 and server.metric("first_token_seconds_count") > 0
    status, headers, text = server.ask("GET", "/")
    assert status == 200 and headers["Content-Type"].startswith("text/html") and b"http" not in text.replace(b"http-equiv", b"")
    assert server.ask("HEAD", "/health")[0] == 200


def test_errors(server):
    for field in ("suffix", "logit_bias", "tools", "unknown"):
        assert server.refused(400, {"prompt": "x", field: {"a": 1}}, field)["param"] == field
    for field, value in (("temperature", 3), ("top_p", -1), ("n", 0), ("n", 1.5), ("max_tokens", -1), ("stop", [""]),
                         ("logprobs", 21), ("seed", "x"), ("best_of", 1000), ("stream", 1), ("prompt", []), ("prompt", [1, "x"]),
                         ("prompt", [999]), ("prompt", [[1.5]]), ("stop", 5), ("stop", ["x"] * 5000), ("echo", 2),
                         ("stream_options", {"include_usage": True}), ("max_tokens", 10**9)):
        server.refused(400, {"prompt": "x", field: value})
    server.refused(404, {"prompt": "x", "model": "gpt"}, "shakespeare")
    server.refused(400, {"messages": []}, path="/v1/chat/completions")
    server.refused(400, {"messages": [{"role": "tool", "content": "x"}]}, "role", path="/v1/chat/completions")
    server.refused(400, {"messages": [{"role": "user", "content": "x"}], "functions": []}, "functions", path="/v1/chat/completions")
    server.refused(404, {}, path="/v1/nothing")
    server.refused(405, {}, path="/v1/models")
    assert server.ask("GET", "/v1/completions")[0] == 405 and server.ask("OPTIONS", "/v1/completions")[1]["Allow"] == "POST"
    for body in (b"", b"{", b"[]", b"null", b'{"prompt":"x"', b'{"prompt":"\xff"}', b'{"prompt":"x"} y', b"[" * 5_000_000, b'{"a":1,"a":2}',
                 b'{"prompt":"\0"}', b'{"prompt":' + b"[" * 30 + b"]" * 30 + b"}", b"\xef\xbb\xbf\xff"):
        server.refused(400, body)
    status, _, text = server.ask("POST", "/v1/completions", "--x\r\n\r\n--x--", {"Content-Type": "multipart/form-data; boundary=x"})
    assert status == 400 and "error" in json.loads(text), text


def test_cancellation(server):
    for stream in (True, False):
        before = server.metric("disconnects_total")
        with server.socket() as client:
            body = json.dumps({"prompt": "x", "max_tokens": 4096, "n": 8, "stream": stream, "ignore_eos": True}).encode()
            client.sendall(b"POST /v1/completions HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
            if stream:
                assert client.recv(100).startswith(b"HTTP/1.1 200")
            server.wait_until(lambda: server.metric("answers_running") > 0, 10 * SLOW)
        generated = server.metric("generated_tokens_total")
        server.wait_until_idle(10 * SLOW)
        assert server.metric("generated_tokens_total") - generated < 8 * 4096
        if not stream:
            server.wait_until(lambda: server.metric("disconnects_total") > before, 10 * SLOW)


def test_limits():
    folder = os.path.join(WORK, "sessions")
    flags = ("--slots", "1", "--max-waiting", "2", "--max-prompt-tokens", "1000", "--api-key", "secret", "--connections", "8",
             "--session-mb", "1", "--session-folder", folder, "--name", "own", "--max-body-mb", "1")
    key = {"Authorization": "Bearer secret"}

    def say(server, session, prompt):
        fields = {"prompt": prompt, "session": session, "max_tokens": 8, "temperature": 0}
        status, answer = server.post("/v1/completions", fields, key)
        assert status == 200, answer
        return answer["choices"][0]["text"]

    with Server(PROGRAM, *flags) as server:
        for headers in ({}, {"Authorization": "Bearer wrong!"}, {"Authorization": "secret"}):
            assert server.refused(401, {"prompt": "x"}, headers=headers)["code"] == "invalid_api_key"
        assert server.ask("GET", "/health")[0] == 200 and server.ask("GET", "/metrics")[0] == 401
        server.refused(400, {"prompt": "x" * 1001}, "1001 tokens", headers=key)
        server.refused(413, {"prompt": "x" * (1 << 20)}, headers=key)
        clients = [server.socket() for _ in range(7)]  # one runs, two wait, and the others are refused
        body = json.dumps({"prompt": "x", "max_tokens": 4096, "stream": True}).encode()
        for client in clients:
            client.sendall(b"POST /v1/completions HTTP/1.1\r\nAuthorization: Bearer secret\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        status = [client.recv(12)[9:] for client in clients]
        assert 0 < status.count(b"200") < 7 and set(status) == {b"200", b"429"}, status
        for client in clients:
            client.close()
        server.wait_until_idle(20 * SLOW, key)
        first = {i: say(server, f"s{i}", f"ROMEO:\n{i}") for i in range(12)}  # more than fit in memory
        assert os.path.exists(os.path.join(folder, "s0.state"))
        second = {i: say(server, f"s{i}", "") for i in range(12)}
        for i in range(12):
            assert first[i] + second[i] == say(server, "", f"ROMEO:\n{i}") + say(server, "", f"ROMEO:\n{i}{first[i]}")
    with Server(PROGRAM, *flags) as server:  # as if it had never ended
        for i in range(12):
            assert say(server, f"s{i}", "") == say(server, "", f"ROMEO:\n{i}{first[i]}{second[i]}")
        with open(os.path.join(folder, "bad.state"), "w", encoding="utf-8") as file:
            file.write("no state")
        assert server.refused(500, {"prompt": "x", "session": "bad"}, headers=key)["code"] == "session_unreadable"
        assert server.ask("DELETE", "/v1/sessions/bad", headers=key)[0] == 200 and say(server, "bad", "x")
    with Server(PROGRAM, "--max-seconds", "0.5", "--max-choices", "200", "--slots", "2") as server:
        answer = server.complete(prompt="x", n=100, max_tokens=4096)
        assert {one["finish_reason"] for one in answer["choices"]} == {"length"}, answer["usage"]
        assert answer["usage"]["completion_tokens"] < 100 * 4096
        events = server.events("/v1/completions", {"prompt": "x", "n": 100, "max_tokens": 4096})
        assert sum(one["choices"][0]["finish_reason"] == "length" for one in events) == 100
        server.wait_until_idle()
    with Server(PROGRAM, "--session-mb", "0") as server:
        assert server.complete(prompt="x", session="s")
        assert server.refused(404, {"prompt": "x", "session": "s"})["code"] == "session_dropped"


def test_draining():
    with Server(PROGRAM) as server:
        connection = server.connection()
        connection.request("POST", "/v1/completions", json.dumps({"prompt": "x", "max_tokens": 2000, "stream": True}))
        answer = connection.getresponse()
        assert answer.read(5) == b"data:"
        idle = server.socket()
        server.signal()
        assert answer.read().endswith(b"data: [DONE]\n\n")  # the answer is finished
        connection.close()
        assert server.process.wait(20 * SLOW) == 0
        idle.close()


def test_draining_finishes_those_that_wait():
    with Server(PROGRAM, "--slots", "1") as server:
        clients = [server.socket(60 * SLOW) for _ in range(4)]
        for client in clients:
            client.sendall(request_of({"prompt": "x", "max_tokens": 1000, "stream": True, "ignore_eos": True}))
        server.wait_until(lambda: server.metric("answers_running") + server.metric("answers_waiting") == 4, 10 * SLOW)
        server.signal()
        for client in clients:
            assert read_all(client).endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")
        assert server.process.wait(20 * SLOW) == 0


def main():
    shutil.rmtree(WORK, ignore_errors=True)
    os.makedirs(WORK)
    run_tests(globals(), PROGRAM, ("--chat-template", "chatml", "--slots", "8"), sys.argv[4:], SLOW)


main()

"""The judge `endpoint` against a server on loopback: with failures, slow answers and nonsense."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from minimind_dpo.evaluation.judges.chat_client import ChatClient
from minimind_dpo.evaluation.judges.endpoint import REQUEST, EndpointJudge, _read, read_request
from minimind_dpo.evaluation.options import EndpointOptions, EvaluateOptions, JudgeOptions
from minimind_dpo.evaluation.options import judge_problems as problems_of
from minimind_dpo.options.problem import ConfigError

from .planted import asked, silent, written

Reply = tuple[int, dict[str, str], bytes]
COUNT = 12
PROMPTS = [asked(f"What is {n}?", n) for n in range(COUNT)]
GOOD = [written(f"good {n}") for n in range(COUNT)]
POOR = [written(f"poor {n}") for n in range(COUNT)]
ASKED = "messages: [{role: user, content: '{prompt}{answer_a}{answer_b}'}]"
KEY = "sk-very-secret-1234567890"


def said(text: str | None, status: int = 200) -> Reply:
    reply = {"choices": [{"message": {"role": "assistant", "content": text}}]}
    return status, {}, json.dumps(reply).encode()


def honest(text: str) -> Reply:
    """Prefers what is good, wherever it stands."""
    a, b = text.split("<A>")[1].split("<B>")
    if ("good" in a) == ("good" in b):
        return said("As good. [[C]]")
    return said("It is good. [[A]]" if "good" in a else "It is good. [[B]]")


class Server:
    """A chat endpoint.

    Attributes:
        reply: Makes a reply of the text that is asked.
        seen: Requests: headers and body of each.
        most: Most requests that were there at once.
    """

    def __init__(self) -> None:
        self.reply: Callable[[str], Reply] = honest
        self.seen: list[tuple[dict[str, str], dict[str, Any]]] = []
        self.now = self.most = 0
        self.lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with outer.lock:
                    outer.seen.append((dict(self.headers), body))
                    outer.now += 1
                    outer.most = max(outer.most, outer.now)
                try:
                    status, headers, content = outer.reply(body["messages"][-1]["content"])
                    if self.path != "/v1/chat/completions":
                        status, headers, content = 404, {}, b"no such path"
                    self.send_response(status)
                    for name, value in headers.items():
                        self.send_header(name, value)
                    self.send_header("Content-Length", str(len(content)))
                    self.end_headers()
                    self.wfile.write(content)
                except OSError:
                    pass  # who asked has gone
                finally:
                    with outer.lock:
                        outer.now -= 1

            def log_message(self, *arguments: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"
        self.thread = threading.Thread(target=self.http.serve_forever, args=(0.01,))
        self.thread.start()

    def close(self) -> None:
        self.http.shutdown()
        self.thread.join()
        self.http.server_close()


@pytest.fixture
def server() -> Iterator[Server]:
    one = Server()
    yield one
    one.close()


@pytest.fixture
def make(server: Server, tmp_path: Path) -> Callable[..., EndpointJudge]:
    def judge(bar: Any = silent, **options: Any) -> EndpointJudge:
        settings = {"url": server.url, "model": "m", "retries": 2, "timeout": 5.0, **options}
        chosen = EndpointOptions(**settings)
        return EndpointJudge(chosen, ChatClient(chosen, tmp_path / "cache", pause=0.001), bar)

    return judge


Make = Callable[..., EndpointJudge]


def test_both_orders_are_asked_and_the_better_answer_wins_on_either_side(
    server: Server, make: Make
) -> None:
    judge = make()
    assert judge.compare(PROMPTS, GOOD, POOR).tolist() == [1.0] * COUNT
    assert len(server.seen) == 2 * COUNT
    assert judge.compare(PROMPTS, POOR, GOOD).tolist() == [-1.0] * COUNT
    assert judge.compare(PROMPTS, GOOD, [*GOOD[1:], GOOD[0]]).tolist() == [0.0] * COUNT
    before = len(server.seen)
    assert judge.compare(PROMPTS, GOOD, GOOD).tolist() == [0.0] * COUNT
    assert len(server.seen) == before  # answers alike are not asked about
    assert judge.trust.words == "what m prefers, asked in both orders"


def test_a_judge_that_goes_by_the_place_of_an_answer_prefers_neither(
    server: Server, make: Make
) -> None:
    server.reply = lambda text: said("[[A]]")
    judge = make()
    assert judge.compare(PROMPTS, GOOD, POOR).tolist() == [0.0] * COUNT
    assert f"({COUNT} of {COUNT} were decided otherwise with the answers swapped)" in (
        judge.trust.words
    )
    assert judge.trust.can_judge


def test_no_question_is_asked_twice_and_another_request_is_another_question(
    server: Server, make: Make, tmp_path: Path
) -> None:
    make().compare(PROMPTS, GOOD, POOR)
    assert make().compare(PROMPTS, GOOD, POOR).tolist() == [1.0] * COUNT
    assert make().compare(PROMPTS, POOR, GOOD).tolist() == [-1.0] * COUNT
    assert len(server.seen) == 2 * COUNT
    make(model="other").compare(PROMPTS[:1], GOOD[:1], POOR[:1])
    assert len(server.seen) == 2 * COUNT + 2
    assert len(list((tmp_path / "cache").glob("*/*.json"))) == 2 * COUNT + 2


def test_failures_that_pass_are_tried_again(server: Server, make: Make) -> None:
    """Each question meets a server that is busy, one of them then one that is slow as well."""
    count: dict[str, int] = {}

    def reply(text: str) -> Reply:
        with server.lock:
            count[text] = count.get(text, 0) + 1
        if count[text] == 1:
            return 429, {"Retry-After": "0"}, b"busy"
        if count[text] == 2 and "What is 3?" in text:
            time.sleep(3)
        return honest(text)

    server.reply = reply
    judge = make(timeout=1.5, retries=9)
    assert judge.compare(PROMPTS, GOOD, POOR).tolist() == [1.0] * COUNT
    assert len(count) == 2 * COUNT
    assert min(count.values()) == 2
    assert all(tries >= 3 for text, tries in count.items() if "What is 3?" in text)


def test_requests_run_at_once_and_no_more_than_asked(server: Server, make: Make) -> None:
    def reply(text: str) -> Reply:
        time.sleep(0.05)
        return honest(text)

    server.reply = reply
    make(concurrency=3).compare(PROMPTS, GOOD, POOR)
    assert server.most == 3


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        (said("What a lovely day."), "the reply names neither answer"),
        (said(""), "it was empty"),
        (said(None), "it was empty"),
        ((200, {}, b"<html>"), "sent no chat reply (it begins '<html>')"),
        ((200, {}, b'{"choices": []}'), "sent no chat reply"),
        ((400, {}, b"too long"), "HTTP 400 from"),
        ((500, {}, b"out of memory"), "out of memory"),
    ],
)
def test_replies_that_do_not_count_are_counted_and_too_many_end_the_judging(
    server: Server, make: Make, bad: Reply, why: str
) -> None:
    for count in (2, 3):  # 2 of 12 are 17%, 3 are 25%
        places = [f"What is {n}?" for n in range(count)]

        def reply(text: str, places: list[str] = places) -> Reply:
            return bad if any(place in text for place in places) else honest(text)

        server.reply = reply
        judge = make(concurrency=1, model=f"m{count}")
        got = judge.compare(PROMPTS[::-1], GOOD[::-1], POOR[::-1])
        assert np.isnan(got).tolist() == [False] * (COUNT - count) + [True] * count
        told = f"{count} of {COUNT} comparisons got no reply that counts, mostly: "
        assert told in (judge.trust.words if count == 2 else judge.trust.unable)
        assert why in (judge.trust.words if count == 2 else judge.trust.unable)
        assert judge.trust.can_judge == (count == 2)


def test_a_server_that_is_away_is_given_up_soon(server: Server, make: Make) -> None:
    server.reply = lambda text: (503, {}, b"loading")
    judge = make(concurrency=1, retries=0)
    many = 40
    got = judge.compare(PROMPTS * many, GOOD * many, POOR * many)
    assert np.isnan(got).all()
    assert judge.trust.unable.endswith("/v1/chat/completions: loading")
    assert len(server.seen) == 8


def test_a_wrong_address_or_model_is_found_before_training(server: Server, make: Make) -> None:
    make().probe()
    make().probe()
    assert len(server.seen) == 2  # what is on disk proves nothing
    with pytest.raises(ConfigError, match=r"judge.endpoint.url=.*: gives no answer: HTTP 404 from"):
        make(url=f"{server.url}/wrong").probe()
    with pytest.raises(ConfigError, match=r"gives no answer: .*[Rr]efused"):
        make(url="http://127.0.0.1:9/v1").probe()


def test_the_key_is_in_a_header_and_nowhere_else(
    server: Server, make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even where the server says it back."""
    monkeypatch.setenv("MY_KEY", KEY)
    judge = make(key_env="MY_KEY", retries=0)
    judge.compare(PROMPTS[:1], GOOD[:1], POOR[:1])
    assert all(head["Authorization"] == f"Bearer {KEY}" for head, _ in server.seen)
    assert not any(KEY in json.dumps(body) for _, body in server.seen)
    files = [path.read_text(encoding="utf-8") for path in (tmp_path / "cache").glob("*/*.json")]
    assert len(files) == 2
    assert not any(KEY in text for text in files)
    for bad in (
        (401, {}, f"Incorrect key {KEY}".encode()),
        (200, {}, f"your key: {KEY}".encode()),
    ):
        server.reply = lambda text, bad=bad: bad  # type: ignore[misc]
        judge.compare(PROMPTS[1:], GOOD[1:], POOR[1:])
        assert KEY not in judge.trust.unable
        assert "***" in judge.trust.unable
    make().compare(PROMPTS[1:2], GOOD[1:2], POOR[1:2])
    assert "Authorization" not in server.seen[-1][0]


def test_a_redirect_does_not_take_the_key_elsewhere(
    server: Server, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_KEY", KEY)
    other = Server()
    try:
        location = {"Location": f"{other.url}/chat/completions"}
        server.reply = lambda text: (307, location, b"")
        judge = make(key_env="MY_KEY")
        assert np.isnan(judge.compare(PROMPTS[:1], GOOD[:1], POOR[:1])).all()
        assert "HTTP 307" in judge.trust.unable
        assert other.seen == []
    finally:
        other.close()


def test_a_request_of_one_s_own_is_sent_as_it_is(
    server: Server, make: Make, tmp_path: Path
) -> None:
    file = tmp_path / "request.yaml"
    file.write_text(
        "messages:\n"
        "  - {role: system, content: You judge.}\n"
        "  - {role: user, content: '{prompt} <A>{answer_a} <B>{answer_b}'}\n"
        "temperature: 0.5\n"
        "chat_template_kwargs: {enable_thinking: false}\n",
        encoding="utf-8",
    )
    judge = make(request=str(file))
    tricky = [written("good {prompt} {answer_b} \\1")]
    assert judge.compare(PROMPTS[:1], tricky, POOR[:1]).tolist() == [1.0]
    bodies = sorted((body for _, body in server.seen), key=str)
    assert bodies[0] == {
        "model": "m",
        "messages": [
            {"role": "system", "content": "You judge."},
            {"role": "user", "content": "What is 0? <A>good {prompt} {answer_b} \\1 <B>poor 0"},
        ],
        "temperature": 0.5,
        "chat_template_kwargs": {"enable_thinking": False},
    }


def test_judging_ends_when_the_run_is_to_stop(server: Server, make: Make) -> None:
    class StopError(Exception):
        pass

    def reply(text: str) -> Reply:
        return (503, {"Retry-After": "60"}, b"") if "What is 9?" in text else honest(text)

    server.reply = reply

    class Bar:
        def __init__(self, title: str, total: int, noun: str) -> None:
            self.done = 0

        def __enter__(self) -> Callable[[int], None]:
            return self.advance

        def __exit__(self, *error: Any) -> None:
            pass

        def advance(self, count: int) -> None:
            self.done += count
            if self.done == 4:
                raise StopError

    start = time.monotonic()
    with pytest.raises(StopError):
        make(bar=Bar).compare(PROMPTS, GOOD, POOR)
    assert time.monotonic() - start < 30  # a pause of 60 s is not waited for


@pytest.mark.parametrize(
    ("reply", "preference"),
    [
        ("[[A]]", 1.0),
        ("A is shorter than [[B]], but\n\n**[[ a ]]**", 1.0),
        ("<think>[[A]] or so</think> [[B]]", -1.0),
        ("[[C]]", 0.0),
        ("[[tie]]", 0.0),
        (" **B**.", -1.0),
        ("Tie", 0.0),
        ("A good answer", None),
        ("Both", None),
        ("", None),
        ("<think>[[A]]</think>", None),
        ("[[D]]", None),
    ],
)
def test_a_reply_counts_by_its_last_mark_or_as_a_letter_alone(
    reply: str, preference: float | None
) -> None:
    got = _read(reply)
    assert np.isnan(got.preference) if preference is None else got.preference == preference
    assert bool(got.why) == (preference is None)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("temperature: 0", "has no list of messages"),
        ("[1, 2]", "has no list of messages"),
        ("messages: [{role: user, content: '{prompt} {answer_a}'}]", r"has no \{answer_b\} in its"),
        (
            "stream: true\nmessages: [{role: user, content: '{prompt}{answer_a}{answer_b}'}]",
            "is no request that can be sent. Replies are read whole",
        ),
        (f"model: other\n{ASKED}", "names a model, as judge.endpoint.model does. Leave model out"),
        (f"{ASKED}\nuser: 2024-05-01", "holds what JSON cannot say .*date is not JSON"),
        (f'{ASKED}\nuser: "\\ud800"', "holds what JSON cannot say .*surrogates not allowed"),
        (f"{ASKED}\ntemperature: .nan", "holds what JSON cannot say"),
        (f"{ASKED}\nuser: 2024-15-01", "cannot be read: month must be in 1..12"),
        ("messages: [", "cannot be read"),
        (None, "cannot be read: .*No such file"),
    ],
)
def test_what_is_no_request_is_refused(tmp_path: Path, content: str | None, why: str) -> None:
    path = tmp_path / "request.yaml"
    if content is not None:
        path.write_text(content, encoding="utf-8")
    with pytest.raises(ConfigError, match=f"judge.endpoint.request=.*{why}"):
        read_request(str(path))
    assert read_request(None) == REQUEST


@pytest.mark.parametrize(
    "url", ["127.0.0.1:8000", "ftp://x/v1", "http://user:key@host/v1", "http://"]
)
def test_an_address_has_no_key_in_it(url: str) -> None:
    from minimind_dpo.options.limits import limit_problems

    (problem,) = limit_problems(EndpointOptions(url=url, model="m"), "judge.endpoint.")
    assert "must be an address such as http://127.0.0.1:8000/v1" in str(problem)


def test_a_key_given_in_place_of_its_variable_is_not_shown() -> None:
    options = JudgeOptions("endpoint", endpoint=EndpointOptions("http://x/v1", "m", KEY))
    (problem,) = problems_of(options, EvaluateOptions())
    assert "judge.endpoint.key_env: names a variable that is not set" in str(problem)
    assert KEY not in str(problem)


@pytest.mark.parametrize("break_", ["\n", "\r", "\x00", "\u2028", "é"])
def test_a_key_that_no_header_can_carry_is_refused_without_showing_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, break_: str
) -> None:
    monkeypatch.setattr("os.environ", {"MY_KEY": f"{KEY}{break_}X-Other: {KEY}"})
    endpoint = EndpointOptions("http://127.0.0.1:9/v1", "m", "MY_KEY", retries=0)
    (problem,) = problems_of(JudgeOptions("endpoint", endpoint=endpoint), EvaluateOptions())
    assert "judge.endpoint.key_env: names a variable that holds a line break" in str(problem)
    assert KEY not in str(problem)
    with pytest.raises(ConfigError) as caught:
        ChatClient(endpoint, tmp_path)
    assert KEY not in str(caught.value)

"""The judge `endpoint`: a chat model behind an OpenAI-compatible address compares two answers.

vLLM, the server of llama.cpp and most services speak this. Each comparison is asked in both orders;
where they disagree it is a tie, since a judge that goes by the place of an answer has no opinion
on it. A request is a file that can be changed (`judge.endpoint.request`):

    messages:                        # {prompt}, {answer_a} and {answer_b} are put in
      - {role: user, content: "…"}
    temperature: 0                   # this and all else is sent as it is, beside the model

A reply counts by its last [[A]], [[B]] or [[C]] (a tie), or is that letter alone; what stands in
<think> is left out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import yaml

from minimind_dpo.evaluation.answers import Answer, Bar, Prompt, alike
from minimind_dpo.evaluation.judges.chat_client import ChatClient, RequestError, as_json
from minimind_dpo.evaluation.judges.judge import Trust, read_file
from minimind_dpo.evaluation.options import EndpointOptions
from minimind_dpo.evaluation.text import Text, join
from minimind_dpo.options.problem import ConfigError, Problem

REQUEST_KEY: Final = "judge.endpoint.request"
PLACES: Final = ("{prompt}", "{answer_a}", "{answer_b}")
MOST_UNREAD: Final = 0.2
"""Share of comparisons without a reply that counts, above which the judge cannot judge."""

REQUEST: Final[dict[str, Any]] = {
    "messages": [
        {
            "role": "user",
            "content": "Below are a prompt and two answers to it, A and B. Which answer is better? "
            "Look at whether it is correct, helpful, clear and in the language of the prompt. "
            "Neither its length nor its place says anything. Give one sentence of reasons, then "
            "end with [[A]] if A is better, [[B]] if B is better, or [[C]] if they are as good.\n\n"
            "<prompt>\n{prompt}\n</prompt>\n\n<A>\n{answer_a}\n</A>\n\n<B>\n{answer_b}\n</B>",
        }
    ],
    "temperature": 0,
    "max_tokens": 1024,
}
"""What is sent where no file says otherwise; beside it, the model."""

_MARK: Final = re.compile(r"\[\[\s*(A|B|C|tie)\s*\]\]", re.IGNORECASE)
_ALONE: Final = re.compile(r"[\s*_`\"'(\[]*(A|B|C|tie)[\s*_`\"'.)\]]*", re.IGNORECASE)
_THOUGHT: Final = re.compile(r"<think>.*?</think>", re.DOTALL)
_PREFERENCES: Final = {"a": 1.0, "b": -1.0, "c": 0.0, "tie": 0.0}


@dataclass(frozen=True, slots=True)
class _Reply:
    """What came of one request: a preference for A, and why there is none where there is none."""

    preference: float
    why: str = ""


class EndpointJudge:
    """Asks a chat model which answer is better.

    Args:
        options: Where it is, and how it is asked.
        client: Sends requests.
        bar: Makes progress bars.

    Raises:
        ConfigError: The request's file is none.
    """

    name = "endpoint"
    tokens_ahead = 0  # none on this machine

    def __init__(self, options: EndpointOptions, client: ChatClient, bar: Bar) -> None:
        self.options = options
        self._words = Text(
            f"what {options.model} prefers, asked in both orders",
            f"{options.model} 的偏好，两种顺序各问一次",
        )
        self.trust = Trust(self._words)
        self._request = read_request(options.request)
        self._client = client
        self._bar = bar

    def probe(self) -> None:
        """Ask one easy question, so that a wrong address, key or model is found at once.

        Raises:
            ConfigError: The server does not answer it.
        """
        try:
            self._client.try_out(self._body("What is 2 plus 2?", "It is 4.", "Bananas."))
        except RequestError as error:
            fix = "Start the server before the run, or leave the judge out and judge later."
            raise ConfigError(
                [Problem("judge.endpoint.url", f"gives no answer: {error}", fix, self.options.url)]
            ) from None

    def compare(
        self, prompts: Sequence[Prompt], first: Sequence[Answer], second: Sequence[Answer]
    ) -> np.ndarray:
        """1, -1, or 0 where the orders disagree or the answers are alike; NaN without a reply."""
        pairs = list(zip(prompts, first, second, strict=True))
        asked = np.flatnonzero(~alike(first, second)).tolist()
        bodies = []
        for prompt, a, b in (pairs[i] for i in asked):
            text = prompt.conversation
            bodies += [self._body(text, a.text, b.text), self._body(text, b.text, a.text)]
        with self._bar("Judging", len(bodies), "requests") as advance:
            replies = [
                _Reply(np.nan, str(reply)) if isinstance(reply, RequestError) else _read(reply)
                for reply in self._client.ask_all(bodies, advance)
            ]
        preferences = np.zeros(len(pairs))
        forward = np.array([reply.preference for reply in replies[::2]])
        backward = -np.array([reply.preference for reply in replies[1::2]])
        both = ~np.isnan(forward + backward)
        agreed = np.where(forward == backward, forward, 0.0)
        preferences[asked] = np.where(both, agreed, np.nan)
        self.trust = self._trust(replies, int((both & (forward != backward)).sum()), len(asked))
        return preferences

    def _trust(self, replies: Sequence[_Reply], disagreed: int, asked: int) -> Trust:
        words = self._words
        if disagreed:
            swapped = Text(
                f" ({disagreed} of {asked} were decided otherwise with the answers swapped)",
                f"（{asked} 次比较中有 {disagreed} 次在交换回答后结论不同）",
            )
            words = join([words, swapped])
        reasons = [reply.why for reply in replies if reply.why]
        pairs = zip(replies[::2], replies[1::2], strict=True)
        unread = sum(bool(one.why or other.why) for one, other in pairs)
        if unread:
            most = max(set(reasons), key=reasons.count)
            told = Text(
                f"{unread} of {asked} comparisons got no reply that counts, mostly: {most}",
                f"{asked} 次比较中有 {unread} 次没有得到有效回复，主要原因：{most}",
            )
            if unread > MOST_UNREAD * asked:
                return Trust(words, unable=told)
            words = join([words, told], "; ", "；")
        return Trust(words)

    def _body(self, prompt: str, a: str, b: str) -> dict[str, Any]:
        texts = dict(zip(PLACES, (prompt, a, b), strict=True))
        filled = _filled(self._request, texts)
        return {"model": self.options.model, **filled}


def _filled(node: Any, texts: Mapping[str, str]) -> Any:
    """A request with the texts in their places; what they hold is not looked into again."""
    if isinstance(node, str):
        return re.sub("|".join(map(re.escape, texts)), lambda match: texts[match[0]], node)
    if isinstance(node, list):
        return [_filled(item, texts) for item in node]
    if isinstance(node, dict):
        return {key: _filled(item, texts) for key, item in node.items()}
    return node


def _read(reply: str) -> _Reply:
    """The last mark of a reply, or the letter that it is."""
    text = _THOUGHT.sub("", reply)
    marks = _MARK.findall(text)
    alone = _ALONE.fullmatch(text)
    if not marks and alone is None:
        return _Reply(np.nan, "the reply names neither answer" if text.strip() else "it was empty")
    return _Reply(_PREFERENCES[(marks[-1] if marks else alone[1]).lower()])  # type: ignore[index]


def read_request(path: str | None) -> dict[str, Any]:
    """A request from its file; the package's own without one.

    Raises:
        ConfigError: It cannot be read or sent, has no messages, or lacks a place of a text.
    """
    if path is None:
        return REQUEST
    content = read_file(path, REQUEST_KEY, yaml.safe_load)
    messages = content.get("messages") if isinstance(content, dict) else None
    if not isinstance(messages, list) or not messages:
        fix = "It is a YAML or JSON file of a request: messages, and what else is to be sent."
        raise ConfigError([Problem(REQUEST_KEY, "has no list of messages", fix, path)])
    missing = [place for place in PLACES if place not in str(messages)]
    if missing:
        why = f"has no {' and no '.join(missing)} in its messages"
        raise ConfigError([Problem(REQUEST_KEY, why, value=path)])
    if "model" in content:
        why = "names a model, as judge.endpoint.model does"
        raise ConfigError([Problem(REQUEST_KEY, why, "Leave model out of it.", path)])
    if not all(isinstance(key, str) for key in content) or content.get("stream"):
        fix = "Replies are read whole: leave stream out."
        raise ConfigError([Problem(REQUEST_KEY, "is no request that can be sent", fix, path)])
    try:
        as_json(content)
    except (TypeError, ValueError) as error:
        why, fix = f"holds what JSON cannot say ({error})", "Put a date into quotes."
        raise ConfigError([Problem(REQUEST_KEY, why, fix, path)]) from error
    return content

"""Requests to an OpenAI-compatible chat endpoint: several at once, tried again, kept on disk.

A key comes from an environment variable alone. It goes into a header and nowhere else: redirects,
which would carry it to another host, are not followed, and it is struck out of what is told.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import random
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any, Final

from minimind_dpo.disk import write_text
from minimind_dpo.evaluation.options import EndpointOptions, endpoint_key

_AGAIN: Final = (408, 409, 425, 429, 500, 502, 503, 504, 529)
"""HTTP statuses after which the same request may succeed."""
_LONGEST_PAUSE: Final = 60.0
_MOST_BYTES: Final = 16 << 20
_FAILURES: Final = 8
"""Requests that fail, none having succeeded, before the rest fail without being sent."""


class RequestError(Exception):
    """A request that failed for good: why, in words that hold no key."""


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *arguments: Any, **keywords: Any) -> None:
        """Follow none: the status is told as an error."""


class ChatClient:
    """Sends chat requests.

    Args:
        options: Where to, how often and how many at once.
        cache: Folder of replies, each named by the digest of its request.
        pause: Seconds before the first repetition; they double with each.

    Raises:
        ConfigError: The variable of the key holds none that can be sent.
    """

    def __init__(self, options: EndpointOptions, cache: Path, pause: float = 1.0) -> None:
        self.url = f"{str(options.url).rstrip('/')}/chat/completions"
        self._options = options
        self._cache = cache
        self._pause = pause
        self._key = endpoint_key(options.key_env)
        self._opener = urllib.request.build_opener(_NoRedirect)
        self._ended = threading.Event()
        self._failures = 0
        self._newest = ""
        self._answered = False

    def ask_all(
        self, bodies: Sequence[Mapping[str, Any]], advance: Callable[[int], None]
    ) -> list[str | RequestError]:
        """The reply to each request, or why there is none.

        Args:
            bodies: Requests.
            advance: Called with 1 for each that is done; what it raises ends all of them.
        """
        self._ended.clear()
        self._failures, self._answered = 0, False
        executor = ThreadPoolExecutor(self._options.concurrency)
        futures: dict[Future[str], int] = {
            executor.submit(self.ask, body): place for place, body in enumerate(bodies)
        }
        replies: list[str | RequestError] = [RequestError("it was not asked")] * len(bodies)
        try:
            for future in as_completed(futures):
                error = future.exception()
                if error is not None and not isinstance(error, RequestError):
                    raise error
                replies[futures[future]] = error or future.result()
                advance(1)
        finally:
            self._ended.set()  # no pause goes on
            executor.shutdown(wait=True, cancel_futures=True)
        return replies

    def try_out(self, body: Mapping[str, Any]) -> str:
        """The reply to a request that is sent whatever is on disk, and once more at most.

        Raises:
            RequestError: There is none.
        """
        return self._tried(as_json(body), min(1, self._options.retries))

    def ask(self, body: Mapping[str, Any]) -> str:
        """The text of one reply, from disk where this request was answered before.

        Raises:
            RequestError: There is none.
        """
        content = as_json(body)
        digest = hashlib.sha256(f"{self.url}\n".encode() + content).hexdigest()
        path = self._cache / digest[:2] / f"{digest}.json"
        if path.is_file():
            return str(json.loads(path.read_text(encoding="utf-8"))["reply"])
        if self._failures >= _FAILURES and not self._answered:
            raise RequestError(self._newest)
        try:
            reply = self._tried(content, self._options.retries)
        except RequestError as error:
            self._failures, self._newest = self._failures + 1, str(error)
            raise
        self._answered = True
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps({"reply": reply}, ensure_ascii=False))
        return reply

    def _tried(self, content: bytes, retries: int) -> str:
        for attempt in range(retries + 1):
            try:
                return self._sent(content)
            except urllib.error.HTTPError as error:
                why, wait = self._told(error), error.headers.get("Retry-After", "")
                again = error.code in _AGAIN
            except (OSError, http.client.HTTPException) as error:
                reason = getattr(error, "reason", error)
                why, wait, again = self._without_key(str(reason) or type(error).__name__), "", True
            except ValueError as error:
                raise RequestError(f"{self.url} sent no chat reply ({error})") from None
            pause = float(wait) if wait.isdigit() else self._pause * 2**attempt
            pause *= 1 + 0.25 * random.random()  # so that all do not come back at once
            last = not again or attempt == retries
            if last or self._ended.wait(min(pause, _LONGEST_PAUSE)):
                break
        raise RequestError(why)

    def _sent(self, content: bytes) -> str:
        """One attempt.

        Raises:
            ValueError: What came back is no chat reply.
        """
        headers = {"Content-Type": "application/json", "User-Agent": "minimind_dpo"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        request = urllib.request.Request(self.url, content, headers)
        with self._opener.open(request, timeout=self._options.timeout) as response:
            raw = response.read(_MOST_BYTES)
        try:
            message = json.loads(raw)["choices"][0]["message"]
            return str(message["content"] or "")
        except (LookupError, TypeError, ValueError):
            start = self._without_key(raw[:80].decode("utf-8", "replace"))
            raise ValueError(f"it begins {start!r}") from None

    def _told(self, error: urllib.error.HTTPError) -> str:
        """Status and what the server says of it."""
        try:
            text = error.read(2000).decode("utf-8", "replace")
        except (OSError, http.client.HTTPException):
            text = ""
        says = " ".join(text.split())[:300]
        return self._without_key(
            f"HTTP {error.code} from {self.url}" + (f": {says}" if says else "")
        )

    def _without_key(self, text: str) -> str:
        return text.replace(self._key, "***") if self._key else text


def as_json(body: Mapping[str, Any]) -> bytes:
    """A request as it is sent.

    Raises:
        TypeError, ValueError: It holds what JSON, or UTF-8, cannot say.
    """
    return json.dumps(body, ensure_ascii=False, sort_keys=True, allow_nan=False).encode()

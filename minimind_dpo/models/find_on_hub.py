"""Models named on the Hugging Face hub: whether it can be reached is asked once, and briefly.

Its own client tries again for minutes and prints a line each time. Without it, a model that was
fetched before is taken from the cache, and said to be.
"""

from __future__ import annotations

import functools
import logging
import queue
import threading
from pathlib import Path

from huggingface_hub import constants, get_session, try_to_load_from_cache

from minimind_dpo.models.errors import CheckpointError

log = logging.getLogger(__name__)

PATIENCE = 5.0
"""Seconds to wait for a first answer of the hub."""

_FILES = ("config.json", "tokenizer_config.json", "tokenizer.json")


@functools.lru_cache
def find_on_hub(name: str, key: str) -> Path | str:
    """The name, where the hub can be asked for it; else the folder that caches what it gave before.

    Raises:
        CheckpointError: The hub cannot be reached, and the cache does not hold it.
    """
    why = why_unreachable(constants.ENDPOINT)
    if why is None:
        return name
    cached = [try_to_load_from_cache(name, file) for file in _FILES]
    folders = [Path(path).parent for path in cached if isinstance(path, str)]
    if folders:
        log.warning("%s=%s is taken from the cache, %s: %s", key, name, folders[0], why)
        return folders[0]
    raise CheckpointError(
        f"{key}={name}: there is no such file or folder in {Path.cwd()}, the cache "
        f"{constants.HF_HUB_CACHE} does not hold a hub's model of this name, and {why}. Check the "
        f"spelling of a local path. Or download the model elsewhere and give its folder: "
        f"{key}=FOLDER. Or name a mirror: HF_ENDPOINT=https://hf-mirror.com in the environment. "
        f"Or fetch it from ModelScope: {key}=modelscope:{name}"
    )


@functools.lru_cache
def why_unreachable(endpoint: str) -> str | None:
    """Why the hub gives no answer; None where it gives one, whatever it is."""
    if constants.HF_HUB_OFFLINE:
        return "the hub is not asked, since HF_HUB_OFFLINE is set in the environment"
    answer: queue.SimpleQueue[str | None] = queue.SimpleQueue()

    def ask() -> None:
        try:
            get_session().head(endpoint, timeout=PATIENCE)
        except Exception as error:  # every HTTP client has failures of its own
            answer.put(f"{error}" or type(error).__name__)
        else:
            answer.put(None)

    # In a thread, since looking up a name in the network knows no time limit.
    threading.Thread(target=ask, daemon=True, name="ask-hub").start()
    try:
        why = answer.get(timeout=PATIENCE + 1)
    except queue.Empty:
        why = "no answer"
    return None if why is None else f"the hub {endpoint} cannot be reached ({why})"

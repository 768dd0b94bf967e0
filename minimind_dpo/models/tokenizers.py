"""Finding the tokenizer of a model, and the tokens that begin, end and pad its turns."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Any, Literal

from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from minimind_dpo.models.errors import CheckpointError, reason
from minimind_dpo.models.hub import quiet
from minimind_dpo.models.locate import TOKENIZER_FILES, locate, with_base
from minimind_dpo.models.minimind.folder import is_minimind

log = logging.getLogger(__name__)

_END_OF_TURN = ("<|im_end|>", "<|eot_id|>", "<end_of_turn>", "<turn|>", "<|END_OF_TURN_TOKEN|>")


def need_tokenizer(
    path: str | Path, tokenizer: str | Path | None, trust_remote_code: bool = False
) -> PreTrainedTokenizerBase:
    """The tokenizer of a model that is not loaded; as `find_tokenizer`, but there has to be one."""
    result = find_tokenizer(with_base(path, None)[0], tokenizer, trust_remote_code)
    if result is None:
        raise no_tokenizer(path)
    return result


def no_tokenizer(path: str | Path) -> CheckpointError:
    """The error where a tokenizer is needed, none is named, and none lies beside the model."""
    layout = ", nor in ../model" if Path(path).is_file() else ""
    return CheckpointError(
        f"no tokenizer lies beside {path}{layout}. Set model.tokenizer to a folder with "
        "tokenizer.json and tokenizer_config.json, or to a hub name"
    )


def find_tokenizer(
    source: Path | str,
    tokenizer: str | Path | PreTrainedTokenizerBase | Literal[False] | None,
    trust_remote_code: bool = False,
) -> PreTrainedTokenizerBase | None:
    """The tokenizer that was named, or else the one beside the model or, of a file, in `../model`.

    Args:
        source: Existing file or folder of the model, or its hub name.
        tokenizer: As `load_model` takes it.
        trust_remote_code: Let a hub tokenizer run the Python code that comes with it.

    Returns:
        None where the caller asked for none, or a local model names none and has none beside it.

    Raises:
        CheckpointError: It does not exist or cannot be read.
    """
    if tokenizer is False:
        return None
    if isinstance(tokenizer, PreTrainedTokenizerBase):
        return tokenizer
    if tokenizer is not None:
        place = locate(tokenizer, "model.tokenizer")
        if isinstance(place, Path) and not _holds_tokenizer(place):
            raise CheckpointError(
                f"model.tokenizer={tokenizer} is not a folder that holds a tokenizer "
                f"({', '.join(TOKENIZER_FILES)})"
            )
        tokenizer = _load(place, "model.tokenizer", trust_remote_code)
        if isinstance(source, Path) and source.is_dir() and _holds_tokenizer(source):
            _check_agrees(tokenizer, source, trust_remote_code)
        return tokenizer
    beside = source if isinstance(source, str) else _place_beside(source)
    return None if beside is None else _load(beside, "model.path", trust_remote_code)


def _place_beside(source: Path) -> Path | None:
    """The folder with the tokenizer of a local model that names none."""
    if source.is_dir():
        places = [source]
    else:  # in MiniMind's own layout a file is out/full_sft_768.pth, and the tokenizer in model/
        folder = source.absolute().parent
        places = [folder, folder.parent / "model", folder.parent / "model" / "minimind_tokenizer"]
    place = next((place for place in places if _holds_tokenizer(place)), None)
    if place is not None and place != places[0]:
        log.info("Tokenizer: %s", place)
    return place


def _holds_tokenizer(folder: Path) -> bool:
    return folder.is_dir() and any((folder / name).is_file() for name in TOKENIZER_FILES)


def _load(source: Path | str, key: str, trust_remote_code: bool) -> PreTrainedTokenizerBase:
    try:
        tokenizer = _read(source, trust_remote_code)
        tokenizer("a")  # settings that do not fit the vocabulary fail here, not as they are read
    except BaseException as error:  # nearly anything; a panic of Rust's is no Exception
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise  # the run is to stop
        raise CheckpointError(
            f"{key}={source}: its tokenizer cannot be loaded: {reason(error)}. Set model.tokenizer "
            "to a folder with tokenizer.json and tokenizer_config.json, or to a hub name"
        ) from error
    return tokenizer


def _read(source: Path | str, trust_remote_code: bool) -> PreTrainedTokenizerBase:
    # The code of a folder in MiniMind's own form is that of its model; its tokenizer has none.
    trusted = trust_remote_code and not is_minimind(source)
    with quiet(), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # about older fields in its config.json
        return AutoTokenizer.from_pretrained(source, trust_remote_code=trusted)


def _check_agrees(
    tokenizer: PreTrainedTokenizerBase, folder: Path, trust_remote_code: bool
) -> None:
    """Refuse a tokenizer that numbers special tokens otherwise than the model's own."""
    try:
        model_tokenizer = _read(folder, trust_remote_code)
    except Exception as error:  # as for the one that was named
        log.warning(
            "Whether model.tokenizer numbers the special tokens as the tokenizer in %s does is not "
            "known, since that one cannot be loaded: %s.",
            folder,
            reason(error),
        )
        return
    vocabulary, numbers = model_tokenizer.get_vocab(), tokenizer.get_vocab()
    changes = [
        f"{token} is {numbers[token]} and was {vocabulary[token]}"
        for token in tokenizer.all_special_tokens
        if token in numbers and vocabulary.get(token, numbers[token]) != numbers[token]
    ]
    if changes:
        raise CheckpointError(
            f"model.tokenizer numbers special tokens otherwise than the tokenizer in {folder}, "
            f"which the model was trained with: {', '.join(changes)}. Leave model.tokenizer out"
        )


def check_vocabulary(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel, path: str) -> None:
    """Refuse a tokenizer whose ids the model's embedding does not have.

    A special token that only the tokenizer's settings name, and that ends no turn and pads
    nothing, is let through with a line in the log: transformers gives it a number of its own after
    the vocabulary. (minimind-v-learn's settings say `<|endoftext|>`, its vocabulary `<endoftext>`.)

    Args:
        tokenizer: The tokenizer.
        model: The model; one without weights does.
        path: What names the model, for messages.

    Raises:
        CheckpointError: The tokenizer is larger than the embedding.
    """
    embedding: Any = model.get_input_embeddings()
    rows = embedding.weight.shape[0]
    beyond = {token: id for token, id in tokenizer.get_vocab().items() if id >= rows}
    ids_in_use = {end_of_turn_id(tokenizer), tokenizer.eos_token_id, tokenizer.bos_token_id}
    ids_in_use.add(tokenizer.pad_token_id)
    if not beyond:
        return
    specials = set(tokenizer.all_special_tokens)
    if len(beyond) > len(tokenizer.special_tokens_map) or any(
        token not in specials or id in ids_in_use for token, id in beyond.items()
    ):
        largest = max(beyond, key=lambda token: beyond[token])
        raise CheckpointError(
            f"the tokenizer has {len(tokenizer)} tokens, but the embedding of {path} has {rows} "
            f"rows (token {largest!r} is number {beyond[largest]}): they do not belong together. "
            "Set model.tokenizer to the one the model was trained with"
        )
    if model.device.type == "meta":
        return  # told when the weights are loaded
    log.warning(
        "The tokenizer names special token(s) that its vocabulary lacks: %s; the model has no row "
        "for them (%d rows). They are never used unless text that spells them is parsed.",
        ", ".join(f"{token} ({id})" for token, id in beyond.items()),
        rows,
    )


def end_of_turn_id(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Id of the token that ends a turn: a known one that the chat template writes, else eos."""
    template = tokenizer.chat_template
    text = template if isinstance(template, str) else ""
    vocabulary = tokenizer.get_vocab()
    for token in _END_OF_TURN:
        if token in vocabulary and token in text:
            return vocabulary[token]
    return tokenizer.eos_token_id


def set_special_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Tell a native model how its turns begin and end, so that generating from it stops.

    NOTE: the padding token goes to the generation settings alone; in the model's configuration it
    would take the gradient away from that token's embedding when the export is trained on.
    """
    tokens: dict[str, Any] = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": end_of_turn_id(tokenizer),
    }
    for name, value in tokens.items():
        setattr(model.config, name, value)
        setattr(model.generation_config, name, value)
    model.generation_config.pad_token_id = tokenizer.pad_token_id

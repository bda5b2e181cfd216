"""The tokenizer files of a Hugging Face model directory, and transformers tokenizers, as backends of `Tokenizer`.

1. tokenizer.json is the tokenizer as it was trained; it is read unchanged.
2. Tokens that tokenizer_config.json (or, in older checkpoints, special_tokens_map.json) declares in addition are added,
   as transformers adds them.
3. BOS, EOS and padding tokens are those of these files, or else those of the model's configuration.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from interp.arguments import shown
from interp.errors import InterpError, WeightsError
from interp.files.foreign_files import entry, read_json, refuse_pointer

if TYPE_CHECKING:
    import tokenizers

SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
MAX_UNUSED_IDS = 2**20  # ids below the largest that no token has; published vocabularies leave a few thousand
OWN_FILE = "interp_tokenizer.json"  # what `interp.save` keeps of a tokenizer beside its tokenizer.json
OWN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
OTHER_FILES = ("vocab.json", "vocab.txt", "tokenizer.model", "spiece.model", "tiktoken.model", "tekken.json")
ADDED_TOKEN_FIELDS = ("content", "single_word", "lstrip", "rstrip", "normalized", "special")


@contextmanager
def refused(what: str, kind: type[InterpError]) -> Iterator[None]:
    """Turn what a tokenizer raises into an error of the class `kind` that begins with `what`.

    The Rust library raises bare exceptions, and where it panics a `PanicException`, which is not an `Exception` and
    cannot be imported from any module.
    """
    try:
        yield
    except InterpError:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise kind(f"{what}: {shown_error(error)}") from error


def has_rust_tokenizer(folder: Path) -> bool:
    """Whether the directory holds a tokenizer.json, which needs no transformers."""
    return os.path.isfile(folder / "tokenizer.json")  # False also for a name that no file can have


def has_other_tokenizer(folder: Path) -> bool:
    """Whether the directory holds tokenizer files of another kind, which transformers converts."""
    return any(os.path.isfile(folder / name) for name in OTHER_FILES)


def read(folder: Path) -> tuple[tokenizers.Tokenizer, dict[str, Any]]:
    """The Rust tokenizer of a directory, and the keyword arguments of `Tokenizer` that its other files give.

    Raises:
        WeightsError: a file that is damaged.
    """
    import tokenizers

    file = folder / "tokenizer.json"
    refuse_pointer(file)
    with refused(f"{file} is not a readable tokenizer", WeightsError):
        backend = tokenizers.Tokenizer.from_file(str(file))
    _refuse_far_ids(backend, file)
    if (folder / OWN_FILE).is_file():
        return backend, _own_settings(backend, folder / OWN_FILE)
    config = folder / "tokenizer_config.json"
    settings = _optional(config)
    if "added_tokens_decoder" not in settings:
        settings |= _optional(folder / "special_tokens_map.json")
    with refused(f"{config} declares tokens that {file.name} cannot take", WeightsError):
        _add_declared_tokens(backend, settings, config)
        names = ("bos_token", "eos_token", "pad_token")
        arguments: dict[str, Any] = {f"{name}_id": _special_id(backend, settings, folder, name) for name in names}
    split = bool(entry(settings, "split_special_tokens", bool, file=config))
    further = _further_ends(backend, folder, arguments["eos_token_id"])
    return backend, arguments | {"split_special_tokens": split, "further_eos_token_ids": further}


def shown_error(error: BaseException) -> str:
    """The first line of a library's message, or the name of its error."""
    line = (str(error).strip() or type(error).__name__).splitlines()[0]
    return line if len(line) <= 300 else line[:297] + "..."


def auto_tokenizer(folder: Path) -> Any:
    """The tokenizer that transformers reads from a directory, without a network.

    Raises:
        WeightsError: transformers cannot read it.
    """
    from transformers import AutoTokenizer

    for name in OTHER_FILES:
        if (folder / name).is_file():
            refuse_pointer(folder / name)
    with refused(f"the tokenizer in {folder} cannot be read by transformers", WeightsError):
        return AutoTokenizer.from_pretrained(str(folder), local_files_only=True)


def backend_of(tokenizer: Any) -> Any:
    """A copy of the Rust tokenizer inside a transformers tokenizer; without one, a `CalledBackend` around it."""
    import tokenizers

    rust: Any = getattr(tokenizer, "backend_tokenizer", None)
    try:
        with refused("the tokenizer cannot be copied", WeightsError):
            return tokenizers.Tokenizer.from_str(rust.to_str())
    except WeightsError:  # no Rust tokenizer, or one with parts written in Python
        return CalledBackend(tokenizer)


class CalledBackend:
    """A transformers tokenizer without a Rust backend, under the method names of one.

    Marian's has two sides: one SentencePiece model cuts what an encoder reads, another what a decoder writes, and each
    may have a vocabulary of its own.

    Args:
        tokenizer: the transformers tokenizer.
        target: cut text as the decoder's.
    """

    target = False  # a default, because pickles of earlier versions lack it

    def __init__(self, tokenizer: Any, *, target: bool = False) -> None:
        self.tokenizer = tokenizer
        self.target = target
        self.encode_special_tokens = False

    def of_target(self) -> CalledBackend | None:
        """The same tokenizer, cutting text as the decoder's; None where it cuts all text alike, or does so already."""
        return CalledBackend(self.tokenizer, target=True) if self._two_models and not self.target else None

    def encode(self, text: str, add_special_tokens: bool = True) -> SimpleNamespace:
        """An object whose `ids` are those of `text`."""
        given = {"text_target" if self.target else "text": text}
        return SimpleNamespace(ids=list(self.tokenizer(**given, add_special_tokens=add_special_tokens)["input_ids"]))

    def decode(self, ids: list[int], skip_special_tokens: bool = False) -> str:
        """The text of `ids`, spaces as they are."""
        if not self._two_vocabularies:
            return self.tokenizer.decode(
                ids, skip_special_tokens=skip_special_tokens, clean_up_tokenization_spaces=False
            )
        left_out = self.tokenizer.all_special_tokens if skip_special_tokens else []
        tokens = [self.id_to_token(id_) or "" for id_ in ids]
        return self.tokenizer.convert_tokens_to_string([token for token in tokens if token not in left_out])

    def id_to_token(self, id_: int) -> str | None:
        """The vocabulary entry of an id."""
        return self._entries.get(id_) if self._two_vocabularies else self.tokenizer.convert_ids_to_tokens(id_)

    def token_to_id(self, token: str) -> int | None:
        """The id of a vocabulary entry."""
        return self.get_vocab().get(token)

    def get_vocab(self, with_added_tokens: bool = True) -> dict[str, int]:
        """The vocabulary."""
        if not (self.target and self._two_vocabularies):
            return self.tokenizer.get_vocab()
        own: dict[str, int] = self.tokenizer.target_encoder
        taken = set(own.values())
        added = self.tokenizer.added_tokens_encoder.items()
        return own | {token: id_ for token, id_ in added if token not in own and id_ not in taken}

    def get_vocab_size(self, with_added_tokens: bool = True) -> int:
        """The number of entries."""
        if self.target and self._two_vocabularies:
            return len(self.get_vocab() if with_added_tokens else self.tokenizer.target_encoder)
        return len(self.tokenizer) if with_added_tokens else self.tokenizer.vocab_size

    def to_str(self) -> str:
        """What determines the ids, as far as it can be seen from outside."""
        content = {"class": type(self.tokenizer).__name__, "vocab": self.get_vocab()}
        if (target := self.of_target()) is not None:
            content["target"] = json.loads(target.to_str())
        if self._two_models:
            model = self.tokenizer.spm_target if self.target else self.tokenizer.spm_source
            content["model"] = hashlib.sha256(model.serialized_model_proto()).hexdigest()
        return json.dumps(content)

    @property
    def _two_models(self) -> bool:
        return hasattr(self.tokenizer, "spm_target")

    @property
    def _two_vocabularies(self) -> bool:
        return self._two_models and self.tokenizer.separate_vocabs

    @cached_property
    def _entries(self) -> dict[int, str]:
        """Id -> entry of this side's vocabulary: transformers has one reading of an id, whatever the side."""
        return {id_: token for token, id_ in self.get_vocab().items()}

    def no_padding(self) -> None:
        """Nothing to do: every call encodes without it."""

    def no_truncation(self) -> None:
        """Nothing to do: every call encodes without it."""


def _refuse_far_ids(backend: tokenizers.Tokenizer, file: Path) -> None:
    """Refuse ids far beyond the number of tokens: the library would count up to the largest, for minutes."""
    vocab = backend.get_vocab(with_added_tokens=True)
    last = max(vocab, key=lambda token: vocab[token], default=None)
    if last is not None and vocab[last] > len(vocab) + MAX_UNUSED_IDS:
        raise WeightsError(f"{file} gives {shown(last)} the id {vocab[last]}, in a vocabulary of {len(vocab)} tokens")


def _own_settings(backend: tokenizers.Tokenizer, file: Path) -> dict[str, Any]:
    content = read_json(file)
    ids = {name: entry(content, name, int, file=file) for name in OWN_IDS}
    for name, id_ in ids.items():
        if id_ is not None and not (0 <= id_ < 2**31 and backend.id_to_token(id_) is not None):
            raise WeightsError(f"{file}: {name} must be the id of a token, not {shown(id_)}")
    further = _ids_in(file, "further_eos_token_ids")
    split = bool(entry(content, "split_special_tokens", bool, file=file))
    return ids | {"split_special_tokens": split, "further_eos_token_ids": further}


def _optional(file: Path) -> dict[str, Any]:
    return read_json(file) if file.is_file() else {}


def _content(token: Any, file: Path) -> str | None:
    content = token.get("content") if isinstance(token, dict) else token
    if content is None or isinstance(content, str):
        return content
    raise WeightsError(f"{file}: a token must be text, or an object with the text as 'content', not {shown(token)}")


def _added(token: Any, file: Path) -> tokenizers.AddedToken:
    import tokenizers

    if _content(token, file) is None or not isinstance(token, dict):
        raise WeightsError(
            f"{file}: a token of added_tokens_decoder must be an object with 'content', not {shown(token)}"
        )
    for name in ADDED_TOKEN_FIELDS[1:]:
        entry(token, name, bool, file=file)
    return tokenizers.AddedToken(
        **{field: token[field] for field in ADDED_TOKEN_FIELDS if token.get(field) is not None}
    )


def _number_of(id_: str, file: Path) -> int:
    if not (id_.isdecimal() and len(id_) < 12):
        raise WeightsError(f"{file}: added_tokens_decoder must have token ids as its keys, not {shown(id_)}")
    return int(id_)


def _add_declared_tokens(backend: tokenizers.Tokenizer, settings: dict[str, Any], file: Path) -> None:
    """Add the tokens of the settings that are missing in tokenizer.json or described differently there."""
    import tokenizers

    present = backend.get_added_tokens_decoder().values()
    described = {repr(token) for token in present}
    decoder = entry(settings, "added_tokens_decoder", dict, file=file) or {}
    declared = sorted(decoder.items(), key=lambda item: _number_of(item[0], file))
    wanted = [_added(token, file) for _, token in declared]
    wanted = [token for token in wanted if repr(token) not in described]
    known = {token.content for token in present} | {token.content for token in wanted}
    names = ("extra_special_tokens", "additional_special_tokens")
    first, second = (entry(settings, name, list, dict, file=file) for name in names)
    extra = first or second or []
    extra = extra.values() if isinstance(extra, dict) else extra
    for token in [*(settings.get(name) for name in SPECIAL_TOKENS), *extra]:
        content = _content(token, file)
        if content is not None and content not in known:
            wanted.append(tokenizers.AddedToken(content, special=True))
            known.add(content)
    backend.add_tokens(wanted)


def _special_id(backend: tokenizers.Tokenizer, settings: dict[str, Any], folder: Path, name: str) -> int | None:
    if name in settings:
        content = _content(settings[name], folder / "tokenizer_config.json")
        return None if content is None else backend.token_to_id(content)
    for file in ("config.json", "generation_config.json"):
        ids = _special_among(backend, _ids_in(folder / file, f"{name}_id")[:1])
        if ids:
            return ids[0]
    return None


def _further_ends(backend: tokenizers.Tokenizer, folder: Path, eos: int | None) -> tuple[int, ...]:
    """Ids that end a text besides the end-of-sequence token: `eos_token_id` may be a list (as for Llama 3)."""
    ids = [id_ for file in ("config.json", "generation_config.json") for id_ in _ids_in(folder / file, "eos_token_id")]
    return tuple(id_ for id_ in dict.fromkeys(_special_among(backend, ids)) if id_ != eos)


def _ids_in(file: Path, name: str) -> list[int]:
    """The token ids in an entry of a configuration, which may be one id or a list."""
    value = entry(_optional(file), name, int, list, file=file)
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if not all(type(id_) is int for id_ in ids):
        raise WeightsError(f"{file}: {name} must be a token id or a list of them, not {shown(value)}")
    return ids


def _special_among(backend: tokenizers.Tokenizer, ids: list[int]) -> list[int]:
    # Configurations carry default ids of other models: trust only an id that this tokenizer marks as special.
    added = backend.get_added_tokens_decoder()
    return [id_ for id_ in ids if id_ in added and added[id_].special]

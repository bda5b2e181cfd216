"""Text to token ids and back, and token labels for the axes of figures.

1. A `Tokenizer` wraps the Rust tokenizer that a checkpoint ships (tokenizer.json, the metadata of a GGUF file, or a
   transformers tokenizer in memory); all ids come from it.
2. `encode` adds what that tokenizer adds by itself (a BOS for Llama, nothing for GPT-2), unless `prepend_bos` says
   otherwise.
3. Some tokenizers put a space before every text (SentencePiece: Llama 2, Mistral, Phi-3). A word then has one token at
   the beginning of a text and another within it. `within` gives the tokens of a text within running text, `following`
   those after another text: an answer is the token that follows its prompt.
4. `labels` names positions, such as `9: John`.
5. A tokenizer of translations (Marian) cuts what is read and what is written by two models; `of_decoder` is the second.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

from interp.arguments import checked, flag, shown, whole_number
from interp.errors import ConfigError, PromptError, WeightsError
from interp.text import tokenizer_files
from interp.text.characters import visible_token
from interp.text.padding import MOST_ID, whole_ids

if TYPE_CHECKING:
    import tokenizers

META_SPACE = "\u2581"
BEFORE = ("\n", ",", ".", "x", "q", "1")  # candidates to put before a text, so that it is read as running text


@final
class Tokenizer:
    """A model's own tokenizer: text to ids, ids to text.

    Build one with `from_directory` or `from_transformers`; `interp.load` does so. It can be pickled and copied.

    Args:
        backend: the Rust `tokenizers.Tokenizer` that does the work.
        bos_token_id: the id that begins a text, or None where the model has none; the same for `eos` and `pad`.
        name: where it came from, for provenance.
        split_special_tokens: split special tokens that are written in the text into pieces (transformers' option).
        further_eos_token_ids: more ids that end a text, where a model has several.
    """

    further_eos_token_ids: tuple[int, ...] = ()  # a default, because pickles of earlier versions lack it

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        *,
        bos_token_id: int | None = None,
        eos_token_id: int | None = None,
        pad_token_id: int | None = None,
        name: str = "tokenizer",
        split_special_tokens: bool = False,
        further_eos_token_ids: Iterable[int] = (),
    ) -> None:
        self.backend = backend
        self.bos_token_id = bos_token_id
        self.eos_token_id = eos_token_id
        self.pad_token_id = pad_token_id
        self.name = name
        self.split_special_tokens = split_special_tokens
        self.further_eos_token_ids = tuple(further_eos_token_ids)
        self._settle()

    @classmethod
    @checked
    def from_directory(cls, path: str | Path) -> Tokenizer | None:
        """The tokenizer of a Hugging Face model directory, or None when it holds no tokenizer file.

        tokenizer.json is read directly; tokenizer files of other kinds are read by transformers.

        Raises:
            WeightsError: a tokenizer file that cannot be read.
        """
        folder = Path(path)
        if tokenizer_files.has_rust_tokenizer(folder):
            backend, settings = tokenizer_files.read(folder)
            with tokenizer_files.refused(f"{folder / 'tokenizer.json'} cannot encode a text", WeightsError):
                return cls(backend, name=str(folder), **settings)
        if tokenizer_files.has_other_tokenizer(folder):
            return cls.from_transformers(tokenizer_files.auto_tokenizer(folder))
        return None

    @classmethod
    def from_transformers(cls, tokenizer: Any) -> Tokenizer:
        """A copy of a transformers tokenizer in memory, with exactly its ids.

        Raises:
            ConfigError: something else.
            WeightsError: a tokenizer that does not work.
        """
        if not all(hasattr(tokenizer, name) for name in tokenizer_files.OWN_IDS):
            raise ConfigError(f"tokenizer must be a tokenizer of transformers, not {shown(tokenizer)}")
        return cls(
            tokenizer_files.backend_of(tokenizer),
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            name=str(getattr(tokenizer, "name_or_path", "") or type(tokenizer).__name__),
            split_special_tokens=bool(getattr(tokenizer, "split_special_tokens", False)),
        )

    def encode(self, text: str, *, prepend_bos: bool | None = None) -> list[int]:
        """The token ids of `text`, as transformers gives them for this tokenizer; [] for an empty text.

        Args:
            text: any text; special tokens written in it, such as `<|endoftext|>`, become their ids.
            prepend_bos: None adds what the model's own tokenizer adds; True puts exactly one BOS in front, even if
                the text already begins with one; False adds none.

        Raises:
            PromptError: `text` is not a str, or a BOS is asked for and the tokenizer has none.
        """
        text = _checked(text)
        if prepend_bos is None:
            return self._encode(text, add_special_tokens=True)
        prepend_bos = flag("prepend_bos", prepend_bos)
        ids = self._encode(text) + self._suffix
        if not prepend_bos:
            return ids
        if self.bos_token_id is None:
            raise PromptError(f"tokenizer {self.name!r} has no BOS token; leave out prepend_bos=True")
        return ids if ids[:1] == [self.bos_token_id] else [self.bos_token_id, *ids]

    def decode(self, ids: Iterable[int], skip_special_tokens: bool = False) -> str:
        """The text of `ids`, without any cleaning up of spaces.

        Raises:
            PromptError: an id that is negative or not an integer.
        """
        ids = whole_ids(ids)
        with tokenizer_files.refused(f"tokenizer {self.name!r} cannot decode {ids!r:.80}", PromptError):
            return self.backend.decode(ids, skip_special_tokens=skip_special_tokens)

    def str_tokens(self, ids: Iterable[int]) -> list[str]:
        """The text of each id within running text, with the space that belongs to it: " the" is not "the".

        An id that is only part of a character gives the replacement character (see `token_bytes`).
        """
        return [self._spelled(id_) for id_ in whole_ids(ids)]

    def _spelled(self, id_: int) -> str:
        text = self.decode([id_])
        if not (self.id_to_token(id_) or "").startswith(META_SPACE):
            return text
        twice = self.decode([id_, id_])  # a SentencePiece decoder drops the space of the first token alone
        return twice[len(text) :] if twice.startswith(text) else text

    def token_bytes(self, ids: Iterable[int]) -> list[bytes]:
        """The UTF-8 bytes of each id, also where they are only part of a character."""
        ids = whole_ids(ids)
        return [_bytes_of(self.id_to_token(id_), text) for id_, text in zip(ids, self.str_tokens(ids), strict=True)]

    def labels(self, ids: Iterable[int]) -> list[str]:
        """Axis labels such as `9: John` for the positions of `ids`; see the function `labels`."""
        return labels(self.token_bytes(ids))

    def at_start(self, text: str) -> list[int]:
        """The ids of `text` at the beginning of a text, without added special tokens."""
        return self._encode(_checked(text))

    def following(self, text: str, rest: str) -> list[int] | None:
        """The ids of `rest` right after `text`; None if `text` itself has other ids in the longer text.

        Special tokens are not added.
        """
        ids, longer = self.at_start(text), self.at_start(text + _checked(rest, "the rest of a text"))
        return longer[len(ids) :] if longer[: len(ids)] == ids else None

    def within(self, text: str) -> list[int]:
        """The ids of `text` within running text, without added special tokens."""
        text = _checked(text)
        ids = self.following(self._before, text) if self._before else None
        return self.at_start(text) if ids is None else ids

    def single_id(self, text: str) -> int | None:
        """The id of `text` if it is exactly one token within running text; else None."""
        ids = self.within(text)
        return ids[0] if len(ids) == 1 else None

    def is_unknown(self, id_: int, text: str) -> bool:
        """Whether the id of `text` is the tokenizer's token for unknown words.

        Raises:
            PromptError: no id, or no text.
        """
        unknown = getattr(getattr(self.backend, "model", None), "unk_token", None) or "<unk>"
        found, text = self.id_to_token(id_), _checked(text)
        return found == unknown != text.strip()

    def n_before(self, ids: Sequence[int], text: str) -> int | None:
        """How many ids come before those of `text`, such as a BOS; None if its own ids are not among `ids`.

        Raises:
            PromptError: no ids, or no text.
        """
        bare, given = self.at_start(text), whole_ids(ids)
        return next((at for at in range(len(given) - len(bare) + 1) if given[at : at + len(bare)] == bare), None)

    def id_to_token(self, id_: int) -> str | None:
        """The entry of the vocabulary with this id, in the vocabulary's own spelling; None if there is none.

        Raises:
            PromptError: no whole number from 0 on.
        """
        return self.backend.id_to_token(whole_number("a token id", id_, least=0, most=MOST_ID, refuse=PromptError))

    def token_to_id(self, token: str) -> int | None:
        """The id of an entry in the vocabulary's own spelling; None if there is none.

        Raises:
            PromptError: no text.
        """
        return self.backend.token_to_id(_checked(token, "a token"))

    def get_vocab(self) -> dict[str, int]:
        """Every entry of the vocabulary, added tokens included, in the vocabulary's own spelling."""
        return self.backend.get_vocab(with_added_tokens=True)

    def digest(self) -> str:
        """SHA-256, in hex, of everything that determines the ids; equal for tokenizers that behave alike."""
        content = json.loads(self.backend.to_str())
        content["interp"] = [self.bos_token_id, self.eos_token_id, self.pad_token_id, self.split_special_tokens]
        canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        return hashlib.sha256(canonical.encode("utf-8", "surrogatepass")).hexdigest()

    @property
    def of_decoder(self) -> Tokenizer:
        """The tokenizer of what a decoder writes, as transformers cuts `text_target`; this one where there is one only.

        Its special tokens have the ids of the decoder's vocabulary.
        """
        return self._other_side or self

    @cached_property
    def _other_side(self) -> Tokenizer | None:
        backend = self.backend.of_target() if isinstance(self.backend, tokenizer_files.CalledBackend) else None
        if backend is None:
            return None
        tokens = {name: getattr(self, name.removesuffix("_id")) for name in tokenizer_files.OWN_IDS}
        ids = {name: None if token is None else backend.token_to_id(token) for name, token in tokens.items()}
        name = f"{self.name} (decoder)"
        return Tokenizer(backend, **ids, name=name, split_special_tokens=self.split_special_tokens)

    @property
    def bos_token(self) -> str | None:
        """The text of the BOS token."""
        return None if self.bos_token_id is None else self.id_to_token(self.bos_token_id)

    @property
    def eos_token(self) -> str | None:
        """The text of the EOS token."""
        return None if self.eos_token_id is None else self.id_to_token(self.eos_token_id)

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """Every id that ends a text, the tokenizer's own first."""
        return (() if self.eos_token_id is None else (self.eos_token_id,)) + self.further_eos_token_ids

    @property
    def pad_token(self) -> str | None:
        """The text of the padding token."""
        return None if self.pad_token_id is None else self.id_to_token(self.pad_token_id)

    @property
    def vocab_size(self) -> int:
        """The number of entries without added tokens, as in transformers; `len` counts all."""
        return self.backend.get_vocab_size(with_added_tokens=False)

    def __len__(self) -> int:
        return self.backend.get_vocab_size(with_added_tokens=True)

    def __bool__(self) -> bool:
        return True

    def __repr__(self) -> str:
        return f"Tokenizer({self.name!r}, {len(self)} tokens, bos={self.bos_token!r}, eos={self.eos_token!r})"

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._settle()

    def _settle(self) -> None:
        """Set what neither a tokenizer.json nor a pickle fixes: no padding, no truncation, special tokens as chosen."""
        self.backend.no_padding()
        self.backend.no_truncation()
        self.backend.encode_special_tokens = self.split_special_tokens
        try:
            bare, whole = self._encode("a"), self._encode("a", add_special_tokens=True)
            before = self.n_before(whole, "a")
            # A few tokenizers add an EOS after every text; `prepend_bos` decides about the front only.
            self._suffix = [] if before is None else whole[before + len(bare) :]
            # If "a" has the same id within a text as at its beginning, nothing needs to be put before it.
            usable = [one for one in BEFORE if self.decode(self._encode(one)).endswith(one)]
            self._before = next((one for one in usable if self.following(one, "a") not in (None, bare)), "")
        except PromptError as error:
            raise WeightsError(f"the tokenizer does not work: {error}") from error

    def _encode(self, text: str, *, add_special_tokens: bool = False) -> list[int]:
        with tokenizer_files.refused(f"tokenizer {self.name!r} cannot encode {text!r:.80}", PromptError):
            return list(self.backend.encode(text, add_special_tokens=add_special_tokens).ids)


def labels(tokens: Sequence[str | bytes]) -> list[str]:
    r"""Axis labels for the positions of a prompt: `position: token`, with invisible characters made visible.

    One space before a word is left out, other spaces are `·`; a newline is `⏎`, a tab `⇥`; if the tokens are given as
    bytes, bytes of an incomplete character are hex, as `<F0>`; characters without a shape are `<U+200B>`.

    >>> labels(["When", " John", "  ", "\n", b"\xf0\x9f", ""])
    ['0: When', '1: John', '2: ··', '3: ⏎', '4: <F0><9F>', '5: ∅']
    """
    texts = [token.decode("utf-8", "surrogateescape") if isinstance(token, bytes) else token for token in tokens]
    return [f"{position}: {visible_token(text)}" for position, text in enumerate(texts)]


def _checked(text: object, what: str = "a prompt") -> str:
    """`text` as Rust takes it: a str whose surrogate pairs are joined."""
    if not isinstance(text, str):
        raise PromptError(f"{what} must be a str, not {type(text).__name__}")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        try:
            return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le")
        except UnicodeDecodeError:
            lone = f"U+{ord(text[error.start]):04X} at position {error.start}"
            raise PromptError(f"{what} cannot hold half a surrogate pair, which is not a character: {lone}") from None
    return text


def _byte_alphabet() -> dict[str, int]:
    """The character that byte-level vocabularies write for each byte (Radford et al. 2019, released encoder.py)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}


BYTE_ALPHABET = _byte_alphabet()


def _bytes_of(token: str | None, text: str) -> bytes:
    if token is None or "\ufffd" not in text:
        return text.encode("utf-8")
    if fallback := re.fullmatch(r"<0x([0-9A-Fa-f]{2})>", token):
        return bytes.fromhex(fallback[1])
    if all(character in BYTE_ALPHABET for character in token):
        return bytes(BYTE_ALPHABET[character] for character in token)
    return text.encode("utf-8")

"""`PromptPairs`: clean and corrupt prompts that differ in one respect, their answers, and the positions of their roles.

1. A pair is two prompts of equal length that can be compared position by position, and two answers: the `right` answer
of the clean prompt and the `wrong` one that it is compared with, or several of each (`interp.prompts.answers`).
2. Pairs of different lengths are padded on the right, and `mask` is True at real tokens, so that position p is the p-th
token of the prompt in every pair.
3. A role is a name for a position by what the token does there (the subject, the end). It may be at another position in
every pair.
"""

from __future__ import annotations

import dataclasses
import html
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from torch import Tensor

from interp.arguments import NO_LISTS, as_index, checked, device_of, is_whole, plain, shown
from interp.encoder_decoder.model import EncoderDecoder
from interp.errors import PromptError, unknown
from interp.prompts import answers as answers_of
from interp.prompts import pair_checks as pairing
from interp.prompts.answers import AnswerSets, NoAnswers, no_answers
from interp.prompts.examples import examples
from interp.prompts.pair_checks import MASK, Roles
from interp.prompts.pair_files import SavedPairs
from interp.sites import Site
from interp.text.padding import pad
from interp.text.tokenizer import labels

if TYPE_CHECKING:
    import pandas as pd

    from interp.hooked.model import HookedModel

TENSORS = ("clean", "corrupt", "mask")
TUPLES = ("roles", "clean_texts", "corrupt_texts", "str_tokens", "corrupt_str_tokens")


@dataclass(frozen=True, eq=False, repr=False)
class PromptPairs(SavedPairs):
    """n pairs of prompts; make them with `from_text`, `from_tokens` or a task of `interp.tasks`.

    Attributes:
        clean: token ids [n, pos] int64, padded on the right.
        corrupt: the same for the corrupt prompts; each is as long as its clean prompt.
        mask: [n, pos] bool, True at real tokens of both.
        answers: ids [n, 2] of the clean prompt's right answer and of the wrong one. Pairs that were made without have
            a stand-in, which refuses to be used (`has_answers`).
        roles: for each pair, role -> position from the start of the real prompt. Where one is called "MASK", the
            answer is read there: it is the token that an encoder predicts in place of its mask.
        clean_texts, corrupt_texts: the prompts as text.
        str_tokens, corrupt_str_tokens: the tokens of each prompt as text, without padding.
        name: the task's name, or `custom`.
        notes: how the pairs were made (seed, templates, what was left out), in plain JSON values.
        answer_sets: for each pair the ids of all its right and of all its wrong answers, including those of `answers`;
            () if every pair has one of each. Metrics measure all of them: see `interp.metrics`.
        encoder: for a model with an encoder and a decoder the pairs that the encoder reads; `clean` and `corrupt` are
            then what the decoder continues. None for all other models.

    Raises:
        PromptError: shapes, lengths, answers or role positions that contradict each other; the message names the pair.
    """

    clean: Tensor
    corrupt: Tensor
    mask: Tensor
    answers: Tensor
    roles: tuple[dict[str, int], ...]
    clean_texts: tuple[str, ...]
    corrupt_texts: tuple[str, ...]
    str_tokens: tuple[tuple[str, ...], ...]
    corrupt_str_tokens: tuple[tuple[str, ...], ...]
    name: str = "custom"
    notes: dict[str, Any] = field(default_factory=dict)
    answer_sets: AnswerSets = ()
    encoder: PromptPairs | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.name, str):
            raise PromptError(f"name must be text, not {shown(self.name)}")
        if not isinstance(self.notes, Mapping):
            raise PromptError(f"notes must be a mapping, not {shown(self.notes)}")
        object.__setattr__(self, "notes", dict(self.notes))
        self._check_shapes()
        self._check_each_pair()
        if self.has_answers or self.answer_sets:
            object.__setattr__(self, "answer_sets", answers_of.check_answer_sets(self.answer_sets, self.answers))
        if not isinstance(self.encoder, PromptPairs | None):
            raise PromptError(f"encoder must be PromptPairs or None, not {shown(self.encoder)}")
        if self.encoder is not None and len(self.encoder) != len(self):
            raise PromptError(f"the encoder has {len(self.encoder)} pairs and the decoder {len(self)}: give as many")

    def _check_shapes(self) -> None:
        shape = list(self.clean.shape)
        if len(shape) != 2 or 0 in shape:
            raise PromptError(f"clean must be token ids [n, pos] of at least one pair, not {shape}")
        n = shape[0]
        for what in ("clean", "corrupt", *(["answers"] if self.has_answers else [])):
            if getattr(self, what).is_floating_point() or getattr(self, what).dtype == torch.bool:
                raise PromptError(f"{what} must be integers, not {getattr(self, what).dtype}")
        for what in TENSORS:
            if list(getattr(self, what).shape) != shape:
                raise PromptError(f"{what} is {list(getattr(self, what).shape)}, expected the shape of clean, {shape}")
        if (
            self.mask.dtype != torch.bool
            or not bool(self.mask[:, 0].all())
            or bool((self.mask[:, 1:] > self.mask[:, :-1]).any())
        ):
            raise PromptError("mask must be bool: True at the tokens of each prompt, then False at the padding")
        if self.has_answers and list(self.answers.shape) != [n, 2]:
            raise PromptError(
                f"answers is {list(self.answers.shape)}, expected [{n}, 2]: right and wrong for each pair"
            )
        for what in TUPLES:
            if len(getattr(self, what)) != n:
                raise PromptError(f"{what} has {len(getattr(self, what))} entries, expected one for each of {n} pairs")

    def _check_each_pair(self) -> None:
        for at, (right, wrong) in enumerate(self.answers.tolist() if self.has_answers else []):
            if right == wrong:
                raise PromptError(f"pair {at}: the right and the wrong answer are the same token, id {right}")
        for at, length in enumerate(self.lengths.tolist()):
            for what in ("str_tokens", "corrupt_str_tokens"):
                if len(getattr(self, what)[at]) != length:
                    raise PromptError(f"pair {at}: {what} names {len(getattr(self, what)[at])} tokens of {length}")
            for role, position in self.roles[at].items():
                if not is_whole(position) or not 0 <= position < length:
                    raise PromptError(f"pair {at}: role {role!r} is at {position}, but positions are 0 to {length - 1}")

    @classmethod
    @checked
    def from_text(
        cls,
        model: HookedModel,
        clean: str | Sequence[str],
        corrupt: str | Sequence[str] | None = None,
        *,
        answers: Sequence[Any] | None = None,
        roles: Roles | Sequence[Roles] | None = None,
        prepend_bos: bool | None = None,
        decoder: str | Sequence[str] | None = None,
        name: str = "custom",
        notes: Mapping[str, Any] | None = None,
    ) -> Self:
        """Pairs of prompts from text, tokenized by `model`'s tokenizer.

        Args:
            model: its tokenizer reads the prompts, its context length and vocabulary limit them.
            clean: one prompt, or several.
            corrupt: as many; None uses the clean prompts again, for studies without a contrast.
            answers: `(right, wrong)` for each pair, each an id or the text of the token that follows the clean prompt
                (mind the leading space), or a list of several: `([" Paris", " Lyon"], " Berlin")`; for one pair it may
                stand alone, outside a list. None is for prompts to look at, or for metrics that need no answers, such
                as "kl" and "loss"; what needs them says so.
            roles: role -> position for each pair, or one mapping for all. A position is a number (negative: from the
                end) or the text of a token that occurs once in the clean prompt: `{"IO": " Mary", "END": -1}`. Of an
                `interp.Encoder` the role "MASK" is the masked token of the prompt, unless given.
            prepend_bos: as in `model.to_tokens`.
            decoder: for a model with an encoder and a decoder, whose encoder reads `clean` and `corrupt`: what the
                decoder continues on both sides, one text or one for each pair, after its start token; the answers
                follow it. None is the start token alone.
            name: a name for tables and files.
            notes: how the pairs were made, to be kept with them.

        Raises:
            PromptError: counts that differ, an empty or too long prompt, a pair of unequal lengths, an answer that is
                not one token, equal answers, a role that is not in its prompt; the message names the pair, counted
                from 0.
        """
        clean_texts = [clean] if isinstance(clean, str) else list(clean)
        corrupt_texts = clean_texts if corrupt is None else [corrupt] if isinstance(corrupt, str) else list(corrupt)
        rows, corrupt_rows = (
            pairing.encode_prompts(model, texts, prepend_bos) for texts in (clean_texts, corrupt_texts)
        )
        tokenizer = model.tokenizer
        assert tokenizer is not None  # encode_prompts refuses
        prefixes = pairing.decoder_rows(model, decoder, len(rows))
        shown, corrupt_shown = ([tuple(tokenizer.str_tokens(row)) for row in side] for side in (rows, corrupt_rows))
        pairing.check_rows(rows, corrupt_rows, shown, corrupt_shown)
        pairs = cls.from_tokens(
            rows,
            corrupt_rows,
            answers=None
            if answers is None
            else answers_of.answer_ids(
                answers,
                len(rows),
                model,
                clean_texts if prefixes is None else pairing.decoder_texts(decoder, len(rows)),
            ),
            roles=pairing.with_masks(model, rows, pairing.role_positions(roles, rows, tokenizer, clean_texts)),
            pad_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else (tokenizer.eos_token_id or 0),
            name=name,
            notes=notes,
        )
        pairs = dataclasses.replace(
            pairs,
            clean_texts=tuple(clean_texts),
            corrupt_texts=tuple(corrupt_texts),
            str_tokens=tuple(shown),
            corrupt_str_tokens=tuple(corrupt_shown),
        )
        if prefixes is None:
            return pairs
        assert model.answer_tokenizer is not None
        own = tuple(tuple(model.answer_tokenizer.str_tokens(row)) for row in prefixes)
        return dataclasses.replace(pairs._continued_by(prefixes), str_tokens=own, corrupt_str_tokens=own)

    @classmethod
    def from_tokens(
        cls,
        clean: Sequence[Sequence[int]] | Tensor,
        corrupt: Sequence[Sequence[int]] | Tensor | None = None,
        *,
        answers: Sequence[Any] | Tensor | None = None,
        roles: Roles | Sequence[Roles] | None = None,
        pad_id: int = 0,
        mask: Any = None,
        decoder: Sequence[Sequence[int]] | Tensor | None = None,
        name: str = "custom",
        notes: Mapping[str, Any] | None = None,
    ) -> Self:
        """Pairs of prompts from token ids, for models without a tokenizer; tokens are labelled by their ids.

        Args:
            clean: ids of each prompt, of any length; a padded tensor [n, pos] needs its `mask`.
            corrupt: as in `from_text`, as ids.
            answers: ids `(right, wrong)` for each pair, each one or a list of several; or None, as in `from_text`.
            roles: as in `from_text`, positions only, from the start of the real prompt.
            pad_id: the id that pads the shorter prompts.
            mask: for tensors that are padded on either side, [n, pos], True or 1 at real tokens, as
                `model.to_batch(texts)` returns it.
            decoder: for a model with an encoder and a decoder, whose encoder reads `clean` and `corrupt`: the ids that
                the decoder continues on both sides, for each pair, beginning with the start token.
            name: as in `from_text`.
            notes: as in `from_text`.

        Raises:
            PromptError: as in `from_text`, and for a padded tensor without its mask.

        >>> pairs = PromptPairs.from_tokens([[5, 6, 7], [5, 8]], [[5, 9, 7], [5, 6]], answers=[(1, 2), (3, 4)])
        >>> pairs.lengths.tolist(), pairs.labels(1)
        ([3, 2], ['0: 5', '1: 8'])
        """
        rows = pairing.real_rows(clean, mask, "clean")
        corrupt_rows = rows if corrupt is None else pairing.real_rows(corrupt, mask, "corrupt")
        shown, corrupt_shown = (
            tuple(tuple(str(token) for token in row) for row in side) for side in (rows, corrupt_rows)
        )
        pairing.check_rows(rows, corrupt_rows, shown, corrupt_shown)
        tokens, real = pad(rows, pad_id)
        none = answers is None or isinstance(answers, NoAnswers)
        sets = () if none else answers_of.answer_ids(answers, len(rows), None)
        pairs = cls(
            clean=tokens,
            corrupt=pad(corrupt_rows, pad_id)[0],
            mask=real,
            answers=no_answers() if none else torch.tensor([(right[0], wrong[0]) for right, wrong in sets]),
            roles=pairing.role_positions(roles, rows, None),
            clean_texts=tuple(map(" ".join, shown)),
            corrupt_texts=tuple(map(" ".join, corrupt_shown)),
            str_tokens=shown,
            corrupt_str_tokens=corrupt_shown,
            name=name,
            notes={} if notes is None else notes,  # type: ignore[arg-type]
            answer_sets=sets,
        )
        return pairs if decoder is None else pairs._continued_by(pairing.real_rows(decoder, None, "decoder"))

    def _continued_by(self, prefixes: Sequence[Sequence[int]]) -> Self:
        """Pairs whose decoder continues these ids, on both sides, while the encoder reads the prompts of these."""
        pairs = type(self).from_tokens(prefixes, answers=self.answers, name=self.name, notes=self.notes)
        return dataclasses.replace(pairs, answer_sets=self.answer_sets, encoder=self)

    def inputs(self, side: str) -> dict[str, Any]:
        """What a forward of one side, "clean" or "corrupt", takes: `model(**pairs.inputs("clean"))`.

        Raises:
            UnknownName: another side.
        """
        pairing.check_side(side)
        own = {"input": getattr(self, side), "attention_mask": self.attention_mask}
        if self.encoder is None:
            return own
        return {
            **self.encoder.inputs(side),
            "decoder_input": own["input"],
            "decoder_attention_mask": own["attention_mask"],
        }

    @property
    def has_answers(self) -> bool:
        """Whether the pairs were made with answers."""
        return not isinstance(self.answers, NoAnswers)

    @property
    def contrast(self) -> bool:
        """Whether any clean prompt differs from its corrupt one."""
        own = not torch.equal(self.clean, self.corrupt)
        return own or (self.encoder is not None and self.encoder.contrast)

    def at(self, site: Site) -> PromptPairs:
        """The pairs whose positions are those of a site: where there are two prompts, those of its stack."""
        return self.encoder if self.encoder is not None and site.rows_in == "encoder" else self

    def masks(self, site: Site) -> tuple[Tensor, Tensor]:
        """True at real tokens [n, pos], at the positions of a site and at those of its keys."""
        rows = self.at(site).mask
        return rows, self.encoder.mask if self.encoder is not None and site.cross else rows

    @cached_property
    def answer_table(self) -> Tensor:
        """All answers of each pair [n, 2, most], padded with -1; [n, 2, 1] if every pair has one of each."""
        return answers_of.answer_table(self.answer_sets, self.answers)

    @property
    def attention_mask(self) -> Tensor | None:
        """`mask` as a forward takes it: None if no pair is padded."""
        return None if bool(self.mask.all()) else self.mask

    @property
    def last(self) -> Tensor:
        """The position of each pair's last real token [n]."""
        return self.lengths - 1

    @property
    def read_at(self) -> Tensor:
        """The position of each pair where its answer is read [n]: its role "MASK", or else the last real token."""
        if not any(MASK in of_pair for of_pair in self.roles):
            return self.last
        places = [of_pair.get(MASK, end) for of_pair, end in zip(self.roles, self.last.tolist(), strict=True)]
        return torch.tensor(places, device=self.mask.device)

    @property
    def answer_place(self) -> int | str:
        """The same as `positions` takes it: the role "MASK" if every pair has it, or else -1."""
        return MASK if MASK in self.role_names else -1

    @property
    def role_names(self) -> tuple[str, ...]:
        """The roles that every pair has, in the order of the first."""
        return tuple(role for role in self.roles[0] if all(role in of_pair for of_pair in self.roles))

    @checked
    def role_positions(self, role: str) -> Tensor:
        """The position of a role in each pair [n].

        Raises:
            UnknownName: a role that no pair has.
            PromptError: a role that some pair does not have.
        """
        known = dict.fromkeys(name for of_pair in self.roles for name in of_pair)
        if role not in known:
            raise unknown("role", role, known)
        for at, of_pair in enumerate(self.roles):
            if role not in of_pair:
                others = f", only {', '.join(map(repr, of_pair))}" if of_pair else ", and no other"
                raise PromptError(f"pair {at} has no role {role!r}{others}")
        return torch.tensor([of_pair[role] for of_pair in self.roles], device=self.clean.device)

    def positions(self, index: int | str | slice | Sequence[int] | Tensor | np.ndarray[Any, Any] | None) -> Tensor:
        """The positions that an index selects in every prompt [n, how many].

        Args:
            index: positions from the start of the real prompt, or -1, -2, ... from its end; a slice, or None for all,
                if it selects equally many in every prompt; or a role.

        Raises:
            PromptError: a position outside some prompt, a role that some pair does not have.
        """
        if isinstance(index, str):
            return self.role_positions(index)[:, None]
        places = as_index("pos", index, also=", or a role of the prompts")
        if places is None or isinstance(places, slice):
            each = [range(length)[places or slice(None)] for length in self.lengths.tolist()]
            if len({len(one) for one in each}) > 1 or not each[0]:
                counts = ", ".join(map(str, sorted({len(one) for one in each})))
                raise PromptError(f"{index} selects {counts} positions, depending on the prompt: list the positions")
            return torch.tensor([list(one) for one in each], device=self.mask.device)
        places = [places] if isinstance(places, int) else places
        most = self.mask.shape[1]  # clipped, because int64 does not hold every number; it stays outside the prompt
        places = [max(min(one, most), -most - 1) for one in places]
        chosen = torch.tensor(places, dtype=torch.int64, device=self.mask.device).expand(len(self), -1)
        lengths = self.lengths[:, None]
        chosen = torch.where(chosen < 0, chosen + lengths, chosen)
        outside = (chosen < 0) | (chosen >= lengths)
        if bool(outside.any()):
            row = int(outside.any(1).nonzero()[0])
            raise PromptError(f"position {index} is outside prompt {row}, which has {int(lengths[row])} tokens")
        return chosen

    @checked
    def labels(self, index: int) -> list[str]:
        """Axis labels for the positions of one clean prompt, such as `9: John`."""
        return labels(self.str_tokens[self._chosen(index)[0]])

    def __len__(self) -> int:
        return len(self.clean)

    def __iter__(self) -> Iterator[PromptPairs]:
        return (self[at] for at in range(len(self)))

    def __getitem__(self, index: int | slice | Sequence[int] | Sequence[bool] | Tensor) -> PromptPairs:
        """Some of the pairs: by number, slice, numbers, or a bool for each; padding that none of them needs is cut."""
        chosen = self._chosen(index)
        width = int(self.lengths[chosen].max())
        parts: dict[str, Any] = {what: getattr(self, what)[chosen, :width] for what in TENSORS}
        parts |= {what: tuple(getattr(self, what)[at] for at in chosen) for what in TUPLES}
        sets = tuple(self.answer_sets[at] for at in chosen) if self.answer_sets else ()
        encoder = None if self.encoder is None else self.encoder[chosen]
        answers = self.answers[chosen] if self.has_answers else self.answers
        return dataclasses.replace(self, **parts, answers=answers, answer_sets=sets, encoder=encoder)

    def _chosen(self, index: Any) -> list[int]:
        n = len(self)
        if isinstance(index, slice):
            chosen = list(range(n)[as_index("index", index)])
        else:
            chosen = index.tolist() if hasattr(index, "tolist") else index
            chosen = list(chosen) if isinstance(chosen, Iterable) and not isinstance(chosen, NO_LISTS) else [chosen]
            if chosen and all(isinstance(plain(at), bool) for at in chosen) and not isinstance(plain(index), bool):
                if len(chosen) != n:
                    raise PromptError(f"{len(chosen)} bools cannot select among {n} pairs: give one for each pair")
                chosen = [at for at, selected in enumerate(chosen) if selected]
        for at in chosen:
            if not is_whole(at) or not -n <= plain(at) < n:
                raise PromptError(f"there is no pair {shown(at)}: there are {n} pairs, 0 to {n - 1}")
        if not chosen:
            raise PromptError(f"{index} selects none of the {n} pairs")
        return [int(plain(at)) % n for at in chosen]

    def __repr__(self) -> str:
        lengths = self.lengths
        return (
            f"PromptPairs({self.name!r}, n={len(self)}, {int(lengths.min())} to {int(lengths.max())} tokens, "
            f"roles={self.role_names}{'' if self.has_answers else ', no answers'})"
        )

    def __str__(self) -> str:
        return f"{self!r}\n{self.examples().to_string()}"

    def _repr_html_(self) -> str:
        return f"<p>{html.escape(repr(self))}</p>{self.examples().to_html()}"

    def examples(self, n: int = 5, model: HookedModel | None = None) -> pd.DataFrame:
        """The first n pairs, to look at: `print(pairs)` shows them too.

        Args:
            n: how many, at most.
            model: gives answers their text. Without it they have that of the same token in a prompt, or else are ids.

        Returns:
            A row for each pair: `clean`, `corrupt` (if any differs), `decoder` (the text that it continues, where there
            is one), the `right` and the `wrong` answers, and a column for each role with its position and token, as
            `9: John`.

        Raises:
            ConfigError: `n` below 1.

        >>> pairs = PromptPairs.from_tokens([[5, 6, 7]], [[5, 9, 7]], answers=[(6, 9)], roles={"END": -1})
        >>> print(pairs)
        PromptPairs('custom', n=1, 3 to 3 tokens, roles=('END',))
           clean corrupt right wrong   END
        0  5 6 7   5 9 7     6     9  2: 7
        """
        return examples(self, n, model)

    def to(self, device: str | torch.device) -> PromptPairs:
        """The same pairs with their tensors on a device."""
        place = device_of(device)
        moved = {what: getattr(self, what).to(place) for what in (*TENSORS, *(["answers"] if self.has_answers else []))}
        encoder = None if self.encoder is None else self.encoder.to(place)
        return dataclasses.replace(self, **moved, encoder=encoder)


def fitting(model: HookedModel, pairs: PromptPairs) -> PromptPairs:
    """Pairs that have a prompt for each stack of the model.

    Raises:
        PromptError: they have one too few or too many.
    """
    two = isinstance(model, EncoderDecoder)
    if two != (pairs.encoder is not None):
        needs = "an encoder and a decoder, and needs pairs with" if two else "a single stack, and takes no pairs with"
        raise PromptError(
            f"this model has {needs} a prompt for each: PromptPairs.from_text and from_tokens make them with `decoder`"
        )
    return pairs

"""Tasks from data files: your own pairs, and published files without changes.

1. `columns` reads the records and finds their parts. 2. A pair is kept if, for this model's tokenizer, both
prompts have equally many tokens, its answers are one token each and its roles are in the prompt. 3. Other pairs are
left out and counted, with line and column, or refused at once (`strict`). If token ids contradict the text beside them,
they belong to another tokenizer, and the file is refused. Pairs keep the file's order, and no more is read than needed.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from interp.arguments import checked, is_whole, shown, whole_number
from interp.encoder_decoder.model import EncoderDecoder
from interp.errors import PromptError
from interp.prompts.answers import answer_ids, check_apart
from interp.prompts.pair_checks import check_rows, encode_prompts, role_positions
from interp.prompts.pairs import PromptPairs
from interp.prompts.single_tokens import next_token
from interp.tasks.data_files.columns import SUFFIXES, FormError, Record, records
from interp.tasks.later_years import split_years

if TYPE_CHECKING:
    from interp.hooked.model import HookedModel
    from interp.text.tokenizer import Tokenizer

DECODER = "decoder"  # the column of what the decoder of a model with two stacks continues
SAMPLE = 64  # the number of pairs whose commonest length is used for aligned pairs
SPAN = re.compile(r"(\d\d)(\d\d)\D+\1$")
MAX_REASONS = 20  # the number of reasons that are kept in the notes


@dataclass(frozen=True)
class _Fit:
    record: Record
    clean: list[int]
    corrupt: list[int]
    right: tuple[int, ...]
    wrong: tuple[int, ...]
    roles: dict[str, int]


class _MisfitError(PromptError):
    """A record that does not fit this model; the message begins with its column."""


@checked
def from_file(
    model: HookedModel,
    path: str | Path,
    *,
    n: int | None = None,
    strict: bool = False,
    counterfactual: str | None = None,
    aligned: bool = False,
    prepend_bos: bool | None = None,
    name: str | None = None,
) -> PromptPairs:
    """The pairs of a CSV, JSON lines or JSON file with columns `clean, corrupt, answer, wrong_answer`.

    Answers are written exactly as they follow the prompt: mind the space before a word. A column `role:NAME` has the
    position of a role, or the text of a token that occurs once in the clean prompt; other columns go to the notes.
    `interp.tasks.data_files.columns` lists other names of columns, as published files have them. Answers in columns
    `..._idx` are token ids of the tokenizer that the file was made for; in other columns numbers are text. Answers may
    be lists. For a model with an encoder and a decoder, the encoder reads `clean` and `corrupt`, and a column `decoder`
    has what the decoder continues on both sides, after its start token: the answers follow that.

    Args:
        model: its tokenizer reads the texts. Without a tokenizer, prompts and answers must be ids.
        path: a .csv, .jsonl or .json file.
        n: use the first n pairs that fit, and read no further; None uses all.
        strict: refuse pairs that do not fit, instead of leaving them out.
        counterfactual: if a file has several corrupt prompts, the column of the one to use.
        aligned: keep only pairs of the commonest length (with n, the commonest among the first 64 or n). It is up to
            the file whether positions then mean the same.
        prepend_bos: as in `model.to_tokens`.
        name: the task's name; by default the file's name.

    Raises:
        PromptError: a file that is missing or lacks columns, ids that contradict their text, no pair that fits, or,
            with `strict`, any pair that does not; the message names the line and column of each, up to 20.
    """
    path = Path(path)
    if path.suffix not in SUFFIXES:
        raise PromptError(f"{str(path)!r} is not a data file: expected a name that ends in {', '.join(SUFFIXES)}")
    n = None if n is None else whole_number("n", n, least=1, refuse=PromptError)
    if path.exists() and not path.is_file():
        raise PromptError(f"{str(path)!r} cannot be read: it is not a file")
    fits: list[_Fit] = []
    misfits = _Misfits(path, strict)
    count, usual, sample = 0, None, max(n or 0, SAMPLE)
    for record in records(path, counterfactual=counterfactual):
        count += 1
        # 2. Does the pair fit this tokenizer? 3. If not, leave it out and count it.
        fit = misfits.without(record, model, prepend_bos)
        if misfits.enough:
            break
        if fit is None:
            continue
        # Aligned pairs have the commonest length, which is known only after the first `sample` of them.
        if usual is None or len(fit.clean) == usual:
            fits.append(fit)
        if aligned and n is not None and usual is None and len(fits) == sample:
            usual = _commonest(fits)
            fits = [one for one in fits if len(one.clean) == usual]
        if n is not None and len(fits) >= n and (not aligned or usual is not None):
            break
    misfits.refuse(count, any_fits=bool(fits))
    if aligned and usual is None:
        usual = _commonest(fits)
        fits = [one for one in fits if len(one.clean) == usual]
    return _pairs(model, fits[:n], prepend_bos, name or path.stem, _notes(path, count, fits[:n], misfits, model))


@dataclass
class _Misfits:
    """The records of a file that do not do, in words.

    Attributes:
        path: the file.
        strict: whether pairs that do not fit this model are refused, as records that cannot be read always are.
        unreadable: what is wrong with records that cannot be read.
        left: why pairs were left out, the first of them.
        n_left: how many were.
    """

    path: Path
    strict: bool
    unreadable: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    n_left: int = 0

    def without(self, record: Record | FormError, model: HookedModel, prepend_bos: bool | None) -> _Fit | None:
        """A record's token ids; None where it does not do, which is noted.

        Raises:
            PromptError: ids that contradict the texts beside them, which is no matter of one line.
        """
        if isinstance(record, FormError):
            self.unreadable.append(str(record).removeprefix(f"{str(self.path)!r}, "))
            return None
        if contradiction := _contradiction(record, model):
            raise PromptError(f"{str(self.path)!r}, line {record.line}, {contradiction}")
        try:
            return _fit(model, record, prepend_bos)
        except _MisfitError as error:
            self.n_left += 1
            self.left += [f"line {record.line}, {error}"] if self.n_left <= MAX_REASONS else []
            return None

    @property
    def enough(self) -> bool:
        """Whether the file will be refused, with as many reasons as are told."""
        return max(len(self.unreadable), len(self.left) if self.strict else 0) >= MAX_REASONS

    def refuse(self, count: int, *, any_fits: bool) -> None:
        """Refuse the file of which `count` records were looked at, if anything in it is not to be left out.

        Raises:
            FormError: records that cannot be read.
            PromptError: pairs that do not fit, if none does, or with `strict`.
        """
        if self.unreadable:
            raise FormError(_every(self.path, self.unreadable))
        if self.strict and self.left:
            raise PromptError(_every(self.path, self.left))
        if not any_fits:
            more = f"; and {self.n_left - len(self.left)} more" if self.n_left > len(self.left) else ""
            reasons = "; ".join(self.left)
            raise PromptError(
                f"none of the {count} pairs of {str(self.path)!r} fits this model; the first: {reasons}{more}"
            )


def _every(path: Path, reasons: Sequence[str]) -> str:
    """Everything that is wrong with some lines of a file, as far as it was looked at."""
    more = "; no further line was looked at" if len(reasons) == MAX_REASONS else ""
    return f"{str(path)!r}, {'; '.join(reasons)}{more}"


def _commonest(fits: Sequence[_Fit]) -> int:
    return Counter(len(fit.clean) for fit in fits).most_common(1)[0][0]


def _contradiction(record: Record, model: HookedModel) -> str | None:
    """How token ids contradict the answers as text beside them, in words; None if they do not."""
    tokenizer = model.answer_tokenizer
    if tokenizer is None:
        return None
    for part, answers in (("right", record.right), ("wrong", record.wrong)):
        own, other = (record.columns.get(part, ""), answers), record.beside.get(part)
        if other is None:
            continue
        (at, ids), (beside, texts) = (own, other) if isinstance(answers[0], int) else (other, own)
        known = [str(text) for text in texts]
        known += [f" {text}" for text in known if not text.startswith(" ")]
        first = {ids_of[0] for text in known if (ids_of := _read(text, record, model, tokenizer))}
        if not first & set(ids):
            spelled = tokenizer.str_tokens([int(ids[0])]) if 0 <= int(ids[0]) < model.cfg.d_vocab_out else ["none"]
            return (
                f"column {at!r}: token {ids[0]} is {spelled[0]!r} for this tokenizer, but column {beside!r} says "
                f"{texts[0]!r}: the ids belong to another tokenizer; remove their columns"
            )
    return None


def _read(text: str, record: Record, model: HookedModel, tokenizer: Tokenizer) -> list[int] | None:
    """The ids of an answer after what it follows."""
    before = _continued(record, model)
    return tokenizer.following(before, text) if isinstance(before, str) else tokenizer.within(text)


def _fit(model: HookedModel, record: Record, prepend_bos: bool | None) -> _Fit:
    """A record's token ids.

    Raises:
        _MisfitError: it does not fit this model.
    """
    columns, tokenizer = record.columns, model.tokenizer
    sides: list[list[int]] = []
    for part, prompt in (("clean", record.clean), ("corrupt", record.corrupt)):
        try:
            sides.append(encode_prompts(model, [prompt], prepend_bos)[0] if isinstance(prompt, str) else prompt)
        except PromptError as error:
            raise _MisfitError(f"column {columns[part]!r}: {_plain(error)}") from None
        if not isinstance(prompt, str) and not all(0 <= token < model.cfg.d_vocab for token in prompt):
            raise _MisfitError(f"column {columns[part]!r}: its ids are not all below {model.cfg.d_vocab}")
    clean, corrupt = sides
    shown = [tokenizer.str_tokens(ids) if tokenizer else [str(token) for token in ids] for ids in sides]
    try:
        check_rows([clean], [corrupt], [shown[0]], [shown[1]])
    except PromptError as error:
        raise _MisfitError(f"columns {columns['clean']!r} and {columns['corrupt']!r}: {_plain(error)}") from None
    right, wrong = _year(record, model) if record.year is not None else _answers(record, model)
    try:
        check_apart(right, wrong, f"columns {columns.get('right')!r} and {columns.get('wrong')!r}")
        answer_ids([(right, wrong)], 1, model)
    except PromptError as error:
        raise _MisfitError(_plain(error)) from None
    front = _front(record, clean, tokenizer)
    roles: dict[str, int] = {}
    for role, place in {**{role: at + front for role, at in record.shared.items()}, **record.roles}.items():
        try:
            texts = [record.clean] if isinstance(record.clean, str) else None
            roles |= role_positions({role: place}, [clean], tokenizer, texts)[0]
        except PromptError as error:
            raise _MisfitError(f"column 'role:{role}': {_plain(error)}") from None
    return _Fit(record, clean, corrupt, right, wrong, roles)


def _answers(record: Record, model: HookedModel) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The ids of the right and of the wrong answers; of a list, those that are one token.

    Raises:
        _MisfitError: none of them is one token.
    """
    sets = []
    for part, answers in (("right", record.right), ("wrong", record.wrong)):
        column = record.columns.get(part, record.columns.get("plural"))
        ids = [token for answer in answers if (token := _answer(answer, record, model)) is not None]
        if not ids:
            subject = repr(answers[0]) if len(answers) == 1 else f"none of {list(answers)[:5]}"
            not_one = f"{'not ' if len(answers) == 1 else ''}one token here{_hint(answers, model)}"
            raise _MisfitError(f"column {column!r}: {subject} is {not_one}")
        sets.append(tuple(dict.fromkeys(ids)))
    return sets[0], sets[1]


def _answer(answer: str | int, record: Record, model: HookedModel) -> int | None:
    if isinstance(answer, int):
        return answer if 0 <= answer < model.cfg.d_vocab_out else None
    tokenizer = model.answer_tokenizer
    if tokenizer is None:
        return None
    before = _continued(record, model)
    return next_token(tokenizer, before, answer) if isinstance(before, str) else tokenizer.single_id(answer)


def _continued(record: Record, model: HookedModel) -> str | list[int]:
    """What the answers follow: the clean prompt, or where there are two stacks what the decoder continues.

    Raises:
        _MisfitError: that is not of the prompt's kind, text or ids.
    """
    if not isinstance(model, EncoderDecoder):
        return record.clean
    given = record.more.get(DECODER)
    if isinstance(record.clean, str):
        if isinstance(given, str | None):
            return given or ""
        raise _MisfitError(f"column {DECODER!r}: it must be text, as the prompts are, not {shown(given)}")
    ids = model.decoder_tokens(None, 1)[0][0].tolist() if given is None else given
    if not isinstance(ids, list) or not ids or not all(is_whole(at) for at in ids):
        raise _MisfitError(f"column {DECODER!r}: it must be a list of ids, as the prompts are, not {shown(given)}")
    return ids


def _hint(answers: Sequence[str | int], model: HookedModel) -> str:
    first, tokenizer = answers[0], model.answer_tokenizer
    if isinstance(first, int):
        return f": the model's answers are 0 to {model.cfg.d_vocab_out - 1}"
    if tokenizer is None:
        return ": this model has no tokenizer, so answers must be ids"
    spaced = not first.startswith(" ") and tokenizer.single_id(f" {first}") is not None
    return f", but {f' {first}'!r} is" if spaced else ""


def _year(record: Record, model: HookedModel) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The next tokens of later years, and those of earlier years or the same."""
    column, tokenizer = record.columns["year"], model.answer_tokenizer
    span = SPAN.search(record.clean) if isinstance(record.clean, str) else None
    if span is None or not str(record.year).isdigit() or int(span[2]) != int(str(record.year)):
        raise _MisfitError(
            f"column {column!r}: {record.year!r} is not the end of a year in a prompt that continues to a later one, "
            "and there is no column for a wrong answer"
        )
    if tokenizer is None:
        raise _MisfitError(f"column {column!r}: this model has no tokenizer, so prompts must be ids")
    right, wrong = split_years(tokenizer, str(_continued(record, model)), span[1] + span[2], 2)
    if not right or not wrong:
        raise _MisfitError(f"column {column!r}: no next token tells years after {span[1] + span[2]} from those before")
    middle = (min(len(right), len(wrong)) - 1) // 2  # the pair's answers are neither the nearest nor the farthest
    first = right[middle], wrong[middle]
    return tuple(dict.fromkeys((first[0], *right))), tuple(dict.fromkeys((first[1], *wrong)))


def _front(record: Record, clean: Sequence[int], tokenizer: Tokenizer | None) -> int:
    """The number of special tokens before a prompt that was given as text."""
    if tokenizer is None or not isinstance(record.clean, str):
        return 0
    return tokenizer.n_before(clean, record.clean) or 0


def _plain(error: Exception) -> str:
    return str(error).removeprefix("pair 0: ")


def _notes(path: Path, count: int, fits: Sequence[_Fit], misfits: _Misfits, model: HookedModel) -> dict[str, Any]:
    first = fits[0]
    named = list(dict.fromkeys(name for fit in fits for name in fit.record.more))
    tokenizer = model.answer_tokenizer
    answers = [
        str(ids[0]) if tokenizer is None else tokenizer.str_tokens([ids[0]])[0] for ids in (first.right, first.wrong)
    ]
    many = any(len(one) > 1 for fit in fits for one in (fit.right, fit.wrong))
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    return {
        "title": path.stem,
        "question": f"After “{first.record.clean}” comes “{answers[0].strip()}”, not “{answers[1].strip()}”: how does "
        "the model know?",
        "source": path.name,
        "sha256": sha256,
        "metric": "prob_diff" if many else "logit_diff",
        "n": len(fits),
        "records": count,
        "left_out": misfits.n_left,
        "left_out_because": list(misfits.left),
        "columns": dict(first.record.columns),
        "first_answers": answers,
        "more": {name: [fit.record.more.get(name) for fit in fits] for name in named},
    }


def _pairs(
    model: HookedModel, fits: Sequence[_Fit], prepend_bos: bool | None, name: str, notes: Mapping[str, Any]
) -> PromptPairs:
    answers = [(fit.right, fit.wrong) for fit in fits]
    roles = [fit.roles | _end(fit) for fit in fits]
    continued: Any = [_continued(fit.record, model) for fit in fits] if isinstance(model, EncoderDecoder) else None
    if all(isinstance(fit.record.clean, str) and isinstance(fit.record.corrupt, str) for fit in fits):
        return PromptPairs.from_text(
            model,
            clean=[str(fit.record.clean) for fit in fits],
            corrupt=[str(fit.record.corrupt) for fit in fits],
            answers=answers,
            roles=roles,
            prepend_bos=prepend_bos,
            decoder=continued,
            name=name,
            notes=notes,
        )
    return PromptPairs.from_tokens(
        [fit.clean for fit in fits],
        [fit.corrupt for fit in fits],
        answers=answers,
        roles=roles,
        decoder=continued,
        name=name,
        notes=notes,
    )


def _end(fit: _Fit) -> dict[str, int]:
    """The role `END`, unless the file has another name for the last token."""
    last = len(fit.clean) - 1
    return {} if last in fit.roles.values() or "END" in fit.roles else {"END": last}

"""Tasks from data files: your own pairs, and published ones as they are.

1. `data_columns` reads the records and finds their parts. 2. A pair is kept when both prompts have as many tokens, its
answers are one token each and its roles are in the prompt, for this model's tokenizer. 3. What does not fit is left out
and counted, with its line and column, or refused at once (`strict`); token ids that contradict the text beside them are
another tokenizer's, and the file is refused. The order is that of the file, of which no more is read than is needed.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from interp.arguments import checked, whole_number
from interp.errors import PromptError
from interp.prompts.answers import answer_ids, check_apart
from interp.prompts.pair_checks import check_rows, encode_prompts, role_positions
from interp.prompts.pairs import PromptPairs
from interp.prompts.single_tokens import next_token
from interp.tasks.file_columns import SUFFIXES, Record, records
from interp.tasks.later_years import split_years

if TYPE_CHECKING:
    from interp.hooked.model import HookedModel
    from interp.text.tokenizer import Tokenizer

ALIKE = 64  # pairs whose commonest length is that of aligned ones
SPAN = re.compile(r"(\d\d)(\d\d)\D+\1$")
MOST_TOLD = 20  # reasons that are kept in the notes


@dataclass(frozen=True)
class _Fit:
    record: Record
    clean: list[int]
    corrupt: list[int]
    right: tuple[int, ...]
    wrong: tuple[int, ...]
    roles: dict[str, int]


class _MisfitError(PromptError):
    """A record that this model cannot take; the message begins with its column."""


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

    Answers are written as they follow the prompt: mind the space before a word. A column `role:NAME` has the position
    of a role, or the text of a token that occurs once in the clean prompt; other columns go to the notes. Other names
    of the columns, as published files have them, are in `interp.tasks.file_columns`; answers in columns `..._idx` are
    token ids of the tokenizer that the file was made for; under other names numbers are text. Answers may be lists.

    Args:
        model: its tokenizer cuts the texts. Without one, prompts and answers have to be ids.
        path: a .csv, .jsonl or .json file.
        n: how many pairs at most, the first of the file that fit; None takes all. What is behind them is not read.
        strict: refuse the first pair that does not fit, instead of leaving it out.
        counterfactual: of a file with several corrupt prompts, the column of the one to take.
        aligned: keep the pairs of one length, the commonest (with n, among the first 64 or n); whether positions mean
            the same in them, the file must see to.
        prepend_bos: as in `model.to_tokens`.
        name: the task's name; by default that of the file.

    Raises:
        PromptError: a file that is missing or has no such columns, ids that contradict their text, with `strict` a pair
            that does not fit, and
            otherwise when none does; the message names line and column.
    """
    path = Path(path)
    if path.suffix not in SUFFIXES:
        raise PromptError(f"{str(path)!r} is no data file: expected a name that ends in {', '.join(SUFFIXES)}")
    n = None if n is None else whole_number("n", n, least=1, refuse=PromptError)
    if path.exists() and not path.is_file():
        raise PromptError(f"{str(path)!r} cannot be read: it is no file")
    fits: list[_Fit] = []
    left: list[str] = []
    count, n_left, usual, looked = 0, 0, None, max(n or 0, ALIKE)
    for record in records(path, counterfactual=counterfactual):
        count += 1
        if contradiction := _contradiction(record, model):
            raise PromptError(f"{str(path)!r}, line {record.line}, {contradiction}")
        try:
            fit = _fit(model, record, prepend_bos)
        except _MisfitError as error:
            reason = f"line {record.line}, {error}"
            if strict:
                raise PromptError(f"{str(path)!r}, {reason}") from None
            n_left += 1
            left += [reason] if n_left <= MOST_TOLD else []
            continue
        if usual is None or len(fit.clean) == usual:
            fits.append(fit)
        if aligned and n is not None and usual is None and len(fits) == looked:
            usual = _commonest(fits)
            fits = [one for one in fits if len(one.clean) == usual]
        if n is not None and len(fits) >= n and (not aligned or usual is not None):
            break
    if not fits:
        raise PromptError(f"none of the {count} pairs of {str(path)!r} fits this model; the first: {left[0]}")
    if aligned and usual is None:
        usual = _commonest(fits)
        fits = [one for one in fits if len(one.clean) == usual]
    return _pairs(model, fits[:n], prepend_bos, name or path.stem, _notes(path, count, fits[:n], n_left, left, model))


def _commonest(fits: Sequence[_Fit]) -> int:
    return Counter(len(fit.clean) for fit in fits).most_common(1)[0][0]


def _contradiction(record: Record, model: HookedModel) -> str | None:
    """What is wrong with token ids that none of the texts beside them begins with, in words."""
    tokenizer = model.tokenizer
    if tokenizer is None:
        return None
    for part, given in (("right", record.right), ("wrong", record.wrong)):
        column, other = record.columns.get(part, ""), record.beside.get(part)
        if other is None:
            continue
        (at, ids), (beside, texts) = ((column, given), other) if isinstance(given[0], int) else (other, (column, given))
        known = [str(text) for text in texts]
        known += [f" {text}" for text in known if not text.startswith(" ")]
        first = {ids_of[0] for text in known if (ids_of := _read(text, record, tokenizer))}
        if not first & set(ids):
            spelled = tokenizer.str_tokens([int(ids[0])]) if 0 <= int(ids[0]) < model.cfg.d_vocab else ["none"]
            return (
                f"column {at!r}: token {ids[0]} is {spelled[0]!r} for this tokenizer, and column {beside!r} says "
                f"{texts[0]!r}: the ids are another tokenizer's; leave their columns out"
            )
    return None


def _read(text: str, record: Record, tokenizer: Tokenizer) -> list[int] | None:
    """The ids of an answer behind its prompt."""
    return tokenizer.following(record.clean, text) if isinstance(record.clean, str) else tokenizer.within(text)


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
    right, wrong = _year(record, tokenizer) if record.year is not None else _answers(record, model)
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
    """The ids of both answers' sets; of a list that has several, those that are one token.

    Raises:
        _MisfitError: none is.
    """
    found = []
    for part, given in (("right", record.right), ("wrong", record.wrong)):
        column = record.columns.get(part, record.columns.get("plural"))
        ids = [token for answer in given if (token := _answer(answer, record, model)) is not None]
        if not ids:
            told = repr(given[0]) if len(given) == 1 else f"none of {list(given)[:5]}"
            not_one = f"{'not ' if len(given) == 1 else ''}one token here{_hint(given, model)}"
            raise _MisfitError(f"column {column!r}: {told} is {not_one}")
        found.append(tuple(dict.fromkeys(ids)))
    return found[0], found[1]


def _answer(answer: str | int, record: Record, model: HookedModel) -> int | None:
    if isinstance(answer, int):
        return answer if 0 <= answer < model.cfg.d_vocab_out else None
    if model.tokenizer is None:
        return None
    if isinstance(record.clean, str):
        return next_token(model.tokenizer, record.clean, answer)
    return model.tokenizer.single_id(answer)


def _hint(given: Sequence[str | int], model: HookedModel) -> str:
    first, tokenizer = given[0], model.tokenizer
    if isinstance(first, int):
        return f": the model's answers are 0 to {model.cfg.d_vocab_out - 1}"
    if tokenizer is None:
        return ": this model has no tokenizer, so answers have to be ids"
    spaced = not first.startswith(" ") and tokenizer.single_id(f" {first}") is not None
    return f", but {f' {first}'!r} is" if spaced else ""


def _year(record: Record, tokenizer: Tokenizer | None) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The next tokens for later years, and for earlier ones or the same."""
    column = record.columns["year"]
    span = SPAN.search(record.clean) if isinstance(record.clean, str) else None
    if span is None or not str(record.year).isdigit() or int(span[2]) != int(str(record.year)):
        raise _MisfitError(
            f"column {column!r}: {record.year!r} is not the end of a year in a prompt that goes on to another, and "
            "there is no column for a wrong answer"
        )
    if tokenizer is None:
        raise _MisfitError(f"column {column!r}: this model has no tokenizer, so prompts have to be ids")
    right, wrong = split_years(tokenizer, str(record.clean), span[1] + span[2], 2)
    if not right or not wrong:
        raise _MisfitError(f"column {column!r}: no next token tells years after {span[1] + span[2]} from those before")
    middle = (min(len(right), len(wrong)) - 1) // 2  # the pair's answers are neither the nearest nor the farthest
    first = right[middle], wrong[middle]
    return tuple(dict.fromkeys((first[0], *right))), tuple(dict.fromkeys((first[1], *wrong)))


def _front(record: Record, clean: Sequence[int], tokenizer: Tokenizer | None) -> int:
    """How many special tokens stand before a prompt that was given as text."""
    if tokenizer is None or not isinstance(record.clean, str):
        return 0
    return tokenizer.n_before(clean, record.clean) or 0


def _plain(error: Exception) -> str:
    return str(error).removeprefix("pair 0: ")


def _notes(
    path: Path, count: int, fits: Sequence[_Fit], n_left: int, left: Sequence[str], model: HookedModel
) -> dict[str, Any]:
    first = fits[0]
    named = list(dict.fromkeys(name for fit in fits for name in fit.record.more))
    tokenizer = model.tokenizer
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
        "left_out": n_left,
        "left_out_because": list(left),
        "columns": dict(first.record.columns),
        "first_answers": answers,
        "more": {name: [fit.record.more.get(name) for fit in fits] for name in named},
    }


def _pairs(
    model: HookedModel, fits: Sequence[_Fit], prepend_bos: bool | None, name: str, notes: Mapping[str, Any]
) -> PromptPairs:
    answers = [(fit.right, fit.wrong) for fit in fits]
    roles = [fit.roles | _end(fit) for fit in fits]
    if all(isinstance(fit.record.clean, str) and isinstance(fit.record.corrupt, str) for fit in fits):
        return PromptPairs.from_text(
            model,
            clean=[str(fit.record.clean) for fit in fits],
            corrupt=[str(fit.record.corrupt) for fit in fits],
            answers=answers,
            roles=roles,
            prepend_bos=prepend_bos,
            name=name,
            notes=notes,
        )
    return PromptPairs.from_tokens(
        [fit.clean for fit in fits],
        [fit.corrupt for fit in fits],
        answers=answers,
        roles=roles,
        name=name,
        notes=notes,
    )


def _end(fit: _Fit) -> dict[str, int]:
    """The role `END`, unless the file has another name for the last token."""
    last = len(fit.clean) - 1
    return {} if last in fit.roles.values() or "END" in fit.roles else {"END": last}

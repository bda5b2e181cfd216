"""Which columns of a data file hold the prompts, the answers and the roles.

1. A file is read as records with their line numbers, only as far as they are needed: CSV, JSON lines, or JSON, which is
   read whole and must be a list or have one under `prompts`.
2. The prompts and answers are found by the names of their columns: `clean, corrupt, answer, wrong_answer`, or those
   that published files use (`CLEAN`, `CORRUPT`, `ANSWERS`). Answers are token ids if their column's name ends in `_idx`
   or if the prompts are ids; otherwise a number is text, in JSON as in CSV. A list of answers is a set of answers. If a
   file has ids and texts, both are read, so that they can be compared.
3. Three published forms have no column for a wrong answer: years with a `label` (the last two digits of the beginning;
   any later year is right); sentences with `plural` (1: a plural verb is right); and multiple choice, with `choices`,
   `answerKey` and a counterfactual that has its own.

Published files: EAP-IG and its study of faithfulness (`corrupted`, `correct_idx`, ...; Hanna et al. 2024, arXiv
2403.17806), auto-circuit (`prompts` of `answers`, `wrong_answers`, `word_idxs`; Miller et al. 2024, arXiv 2407.08734),
MIB (`choices`, `answerKey`, `..._counterfactual`; Mueller et al. 2025, arXiv 2504.13151).
"""

from __future__ import annotations

import ast
import csv
import itertools
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from interp.arguments import is_whole, shown
from interp.errors import PromptError, nearest

CLEAN = ("clean", "clean_prompt", "prompt")
CORRUPT = ("corrupt", "corrupted", "corrupt_prompt", "corrupted_prompt")
ANSWERS = (
    ("answer", "wrong_answer"),
    ("correct_idx", "incorrect_idx"),
    ("clean_answer_idx", "corrupted_answer_idx"),
    ("country_idx", "corrupted_country_idx"),
    ("answers_idx", "corrupted_answers_idx"),
    ("target_idx", "foil_idx"),
    ("answer_idx", "wrong_answer_idx"),
    ("answers", "wrong_answers"),
    ("right", "wrong"),
    ("answer", "incorrect"),
    ("answer", "incorrect_answer"),
    ("correct", "incorrect"),
    ("correct_answer", "incorrect_answer"),
    ("clean_answer", "corrupt_answer"),
    ("clean_answer", "corrupted_answer"),
    ("label", "wrong_answer"),
    ("target", "foil"),
)
YEARS = ("label", "correct_idx")
PLURAL = "plural"
VERBS = (" is", " are")
ROLE = "role:"
IDS = "_idx"  # the end of the name of a column of token ids
SAMPLE = 100  # the number of records in a file of JSON lines whose fields are taken as the columns
SUFFIXES = (".csv", ".jsonl", ".json")
Prompt = str | list[int]


@dataclass(frozen=True)
class Record:
    """One pair as it is in a file, before a tokenizer has seen it.

    Attributes:
        line: the line number, counted from 1; in JSON, the number of the record.
        clean, corrupt: the prompts, as text or as token ids.
        right, wrong: the answers, as texts or ids. Empty if they follow from `year`.
        year: in the form of years, the column for the year of the beginning.
        roles: role -> position, or the text of a token that occurs once in the clean prompt.
        shared: roles of the whole file -> position, not counting a BOS.
        columns: part of the record -> the column in which it was found.
        more: the other columns.
        beside: "right" and "wrong" -> a second column, and its content, with the answers as texts if `right` and
            `wrong` are ids, or as ids if they are texts.
    """

    line: int
    clean: Prompt
    corrupt: Prompt
    right: tuple[str | int, ...]
    wrong: tuple[str | int, ...]
    columns: Mapping[str, str]
    year: str | None = None
    roles: Mapping[str, int | str] = field(default_factory=dict)
    shared: Mapping[str, int] = field(default_factory=dict)
    more: Mapping[str, Any] = field(default_factory=dict)
    beside: Mapping[str, tuple[str, tuple[str | int, ...]]] = field(default_factory=dict)


class FormError(PromptError):
    """A record that cannot be read; the message names its line and column."""


Row = tuple[int, dict[str, Any] | FormError]
"""A row of a file with its line, or what is wrong with it."""


def records(path: Path, *, counterfactual: str | None = None) -> Iterator[Record | FormError]:
    """The pairs of a file, in its order, or what is wrong with one that cannot be read.

    No more is read than is used, except of plain JSON.

    Args:
        path: a .csv, .jsonl or .json file.
        counterfactual: if a file has several corrupt prompts for each clean one, the column of the one to use.

    Raises:
        PromptError: a file that cannot be read, an unknown form, no record, or a missing column.
    """
    try:
        yield from _records(path, counterfactual)
    except (OSError, UnicodeDecodeError) as error:
        raise PromptError(f"{str(path)!r} cannot be read: {getattr(error, 'strerror', None) or error}") from None


def _records(path: Path, counterfactual: str | None) -> Iterator[Record | FormError]:
    rows, shared = (_table(path), {}) if path.suffix == ".csv" else _json_rows(path)
    first = list(itertools.islice(rows, 1 if path.suffix == ".csv" else SAMPLE))
    if not first:
        raise PromptError(f"{str(path)!r} holds no records")
    readable = [row for _, row in first if not isinstance(row, FormError)]
    if not readable:
        yield from (row for _, row in first if isinstance(row, FormError))
        return
    names = list(dict.fromkeys(name for row in readable for name in row))
    rows = itertools.chain(first, rows)
    if "choices" in names and "answerKey" in names:
        yield from _read(rows, lambda line, row: _chosen(path, line, row, counterfactual, names))
        return
    try:
        columns = _columns(path, names, counterfactual)
    except PromptError:
        if len(readable) == len(first):
            raise
        yield from (row for _, row in first if isinstance(row, FormError))  # a likelier reason than the columns
        return
    beside = _beside(names, columns)
    yield from _read(rows, lambda line, row: _record(path, line, row, columns, beside, shared))


def _read(rows: Iterator[Row], record: Callable[[int, dict[str, Any]], Record]) -> Iterator[Record | FormError]:
    """A record of every row, or what is wrong with it."""
    for line, row in rows:
        try:
            yield row if isinstance(row, FormError) else record(line, row)
        except FormError as error:
            yield error


def _table(path: Path) -> Iterator[Row]:
    """The rows of a CSV file with their lines."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file)
        try:
            for row in reader:
                long = f"{str(path)!r}, line {reader.line_num}: more fields than the header has columns"
                yield reader.line_num, FormError(long) if None in row else row
        except csv.Error as error:
            raise FormError(f"{str(path)!r}, line {reader.line_num} is not CSV: {error}") from None


def _json_rows(path: Path) -> tuple[Iterator[Row], dict[str, int]]:
    """Records with their lines, and the roles that all of them share."""
    if path.suffix == ".jsonl" or _is_lines(list(itertools.islice(_lines(path), 1))):
        return ((at, _json(path, at, line)) for at, line in _lines(path)), {}
    try:
        whole = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        if isinstance(error, UnicodeDecodeError):
            raise
        raise FormError(f"{str(path)!r} is not JSON: {error}") from None
    listed = whole.get("prompts") if isinstance(whole, dict) else whole
    if not isinstance(listed, list) or not all(isinstance(row, dict) for row in listed):
        raise FormError(f"{str(path)!r} must hold a list of records, or such a list under 'prompts'")
    shared = (whole.get("word_idxs") or {}) if isinstance(whole, dict) else {}
    if not isinstance(shared, dict) or not all(is_whole(at) for at in shared.values()):
        raise FormError(f"{str(path)!r}: 'word_idxs' must name a position for each role, not {shown(shared)}")
    return iter(list(enumerate(listed, 1))), {str(role): int(at) for role, at in shared.items()}


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines of a file that are not blank, with their numbers."""
    with path.open(encoding="utf-8-sig") as file:
        yield from ((at, line) for at, line in enumerate(file, 1) if line.strip())


def _is_lines(lines: Sequence[tuple[int, str]]) -> bool:
    """Whether JSON has one record on each line: its first line is an object that is a record by itself."""
    try:
        first = json.loads(lines[0][1])
    except (IndexError, ValueError, RecursionError):
        return False
    return isinstance(first, dict) and not isinstance(first.get("prompts"), list)


def _json(path: Path, line: int, text: str) -> dict[str, Any] | FormError:
    try:
        row = json.loads(text)
    except (ValueError, RecursionError) as error:
        return FormError(f"{str(path)!r}, line {line} is not JSON: {error}")
    if not isinstance(row, dict):
        return FormError(f"{str(path)!r}, line {line} must be an object with named fields, not {text.strip()[:40]!r}")
    return row


def _columns(path: Path, names: Sequence[str], counterfactual: str | None) -> dict[str, str]:
    """Part of a record -> its column."""
    clean = next((name for name in CLEAN if name in names), None)
    corrupt = counterfactual or next((name for name in CORRUPT if name in names), None)
    for part, name, choices in (("clean", clean, CLEAN), ("corrupt", corrupt, CORRUPT)):
        if name not in names:
            close = nearest(str(name or part), names, most=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            missing = f"column {name!r}" if name else f"column for the {part} prompt ({' or '.join(choices)})"
            raise PromptError(f"{str(path)!r} has no {missing}, only {', '.join(map(repr, names))}{hint}")
    assert clean is not None and corrupt is not None
    for right, wrong in ANSWERS:
        if right in names and wrong in names:
            return {"clean": clean, "corrupt": corrupt, "right": right, "wrong": wrong}
    year = next((name for name in YEARS if name in names), None)
    if year is not None:
        return {"clean": clean, "corrupt": corrupt, "year": year}
    if PLURAL in names:
        return {"clean": clean, "corrupt": corrupt, "plural": PLURAL}
    raise PromptError(
        f"{str(path)!r} has no columns for the right and the wrong answer, only {', '.join(map(repr, names))}; "
        "expected 'answer' and 'wrong_answer'"
    )


def _beside(names: Sequence[str], columns: Mapping[str, str]) -> dict[str, str]:
    """Part -> the second column of its answers: texts if `columns` has ids, ids if it has texts."""
    if "right" not in columns:
        return {}
    own = tuple(columns[part] for part in ("right", "wrong"))
    is_ids = own[0].endswith(IDS)
    stems = tuple(name.removesuffix(IDS) if is_ids else f"{name}{IDS}" for name in own)
    listed = [pair for pair in ANSWERS if pair[0].endswith(IDS) != is_ids]
    both = next((pair for pair in (stems, *listed) if pair[0] in names and pair[1] in names), None)
    return {} if both is None else dict(zip(("right", "wrong"), both, strict=True))


def _record(
    path: Path,
    line: int,
    row: Mapping[str, Any],
    columns: dict[str, str],
    beside: Mapping[str, str],
    shared: Mapping[str, int],
) -> Record:
    def value(part: str) -> Any:
        content = row.get(columns[part])
        if content is None or content == "":
            raise FormError(f"{str(path)!r}, line {line}, column {columns[part]!r}: it is empty")
        return content

    roles: dict[str, int | str] = {}
    for name, place in row.items():
        if name.startswith(ROLE) and place not in (None, ""):
            if not isinstance(place, str) and not is_whole(place):
                raise FormError(
                    f"{str(path)!r}, line {line}, column {name!r}: a role is a position or a token, not {place!r}"
                )
            number = not isinstance(place, str) or re.fullmatch(r"-?[0-9]+", place)
            roles[name.removeprefix(ROLE)] = int(place) if number else place
    used = {*columns.values(), *(name for name in row if name.startswith(ROLE))}
    right: tuple[str | int, ...] = ()
    wrong: tuple[str | int, ...] = ()
    clean, corrupt = (_prompt(path, line, columns[part], value(part)) for part in ("clean", "corrupt"))
    others: dict[str, tuple[str, tuple[str | int, ...]]] = {}
    if "right" in columns:
        in_ids = not isinstance(clean, str)
        right, wrong = (_answers(path, line, columns[part], value(part), in_ids) for part in ("right", "wrong"))
        for part, name in beside.items():
            if row.get(name) not in (None, "", []):
                others[part] = (name, _answers(path, line, name, row[name], False))
    elif "plural" in columns:
        flag = str(value("plural")).strip().lower()
        if flag not in ("0", "1", "true", "false"):
            raise FormError(f"{str(path)!r}, line {line}, column {PLURAL!r}: it must be 0 or 1, not {flag!r}")
        plural = flag in ("1", "true")
        right, wrong = (VERBS[plural],), (VERBS[not plural],)
    return Record(
        line,
        clean,
        corrupt,
        right,
        wrong,
        columns,
        year=str(value("year")) if "year" in columns else None,
        roles=roles,
        shared=shared,
        more={name: content for name, content in row.items() if name and name not in used},
        beside=others,
    )


def _chosen(path: Path, line: int, row: Mapping[str, Any], counterfactual: str | None, names: Sequence[str]) -> Record:
    """A record whose answers are among its `choices`, and whose corrupt prompt is a record of the same form."""
    others = [name for name in names if name.endswith("counterfactual")]
    name = counterfactual or (others[0] if len(others) == 1 else None)
    if name is None:
        raise PromptError(
            f"{str(path)!r} has {len(others)} counterfactuals ({', '.join(map(repr, others)) or 'none'}): choose one "
            "with counterfactual=..."
        )
    other = row.get(name)
    if not isinstance(other, Mapping) or "prompt" not in other:
        raise FormError(
            f"{str(path)!r}, line {line}, column {name!r}: it must be a record with a prompt, not {other!r}"
        )

    def answer(of: Mapping[str, Any], where: str) -> str:
        choices = of.get("choices")
        labels = choices.get("label") if isinstance(choices, Mapping) else choices
        key = of.get("answerKey")
        if not isinstance(labels, list) or not isinstance(key, int) or not 0 <= key < len(labels):
            raise FormError(f"{str(path)!r}, line {line}, column {where!r}: answerKey={key!r} is not among the choices")
        return f" {str(labels[key]).strip()}"  # choices are written without the space before them

    right, wrong = answer(row, "answerKey"), answer(other, name)
    if right == wrong:  # the counterfactual has the same answer: use another choice of the clean prompt as wrong
        choices = row["choices"]
        labels = choices["label"] if isinstance(choices, Mapping) else choices
        wrong = next((f" {str(label).strip()}" for label in labels if f" {str(label).strip()}" != right), wrong)
    columns = {"clean": "prompt", "corrupt": name, "right": "answerKey", "wrong": name}
    return Record(line, row["prompt"], other["prompt"], (right,), (wrong,), columns)


def _prompt(path: Path, line: int, column: str, value: Any) -> Prompt:
    if isinstance(value, str):
        return value
    if isinstance(value, list) and value and all(is_whole(token) for token in value):
        return value
    raise FormError(f"{str(path)!r}, line {line}, column {column!r}: a prompt is text or a list of ids, not {value!r}")


def _answers(path: Path, line: int, column: str, value: Any, in_ids: bool) -> tuple[str | int, ...]:
    """One answer or a list of answers: ids if the column's name or the prompt (`in_ids`) says so, else texts."""
    if isinstance(value, str) and value.strip().startswith("["):
        try:
            value = ast.literal_eval(value.strip())
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            value = [value]
    answers = list(value) if isinstance(value, list | tuple) else [value]
    if not answers or not all(isinstance(answer, str) or is_whole(answer) for answer in answers):
        raise FormError(f"{str(path)!r}, line {line}, column {column!r}: an answer is text or an id, not {value!r}")
    if not column.endswith(IDS):
        return tuple(answer if in_ids else str(answer) for answer in answers)
    try:
        return tuple(int(answer) for answer in answers)
    except ValueError:
        raise FormError(f"{str(path)!r}, line {line}, column {column!r}: {value!r} is not a token id") from None

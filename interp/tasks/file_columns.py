"""Which columns of a data file are the prompts, the answers and the roles.

1. A file is read as records, each with the line it stands on, and only as far as they are asked for: CSV, JSON lines,
   or JSON, which is read whole, and is a list or has one under `prompts`.
2. The prompts and answers are found by the names of their columns: `clean, corrupt, answer, wrong_answer`, or those
   that published files use (`CLEAN`, `CORRUPT`, `ANSWERS`). Answers under a name that ends in `_idx` are token ids, and
   so are numbers beside a prompt of ids; under another name a number is text, in JSON as in CSV. A list of answers is a
   set of them. Where a file has ids and texts, both are read, so that they can be held against each other.
3. Two published forms say less: years with a `label` (the last two digits of the beginning; any later year is right)
   and sentences with `plural` (1: a plural verb is right). One says it in parts: `choices`, `answerKey`, and a
   counterfactual with its own.

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
from collections.abc import Iterator, Mapping, Sequence
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
LOOKED_AT = 100  # records whose fields are the columns of a file of JSON lines
SUFFIXES = (".csv", ".jsonl", ".json")
Prompt = str | list[int]


@dataclass(frozen=True)
class Record:
    """One pair as a file has it, before a tokenizer has seen it.

    Attributes:
        line: where it stands, counted from 1; of JSON, which record it is.
        clean, corrupt: the prompts, as text or as token ids.
        right, wrong: the answers; text, or ids. Empty where `year` says them.
        year: in the form of years, what the file says of the beginning.
        roles: role -> position, or the text of a token that occurs once in the clean prompt.
        shared: roles of the whole file -> position, not counting a BOS.
        columns: what each part was found under.
        more: the other columns.
        beside: "right" and "wrong" -> a column that says the same in texts where the answers are ids, or the other way
            round, and what it has.
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
    """A record that cannot be read: it names its line and column."""


def records(path: Path, *, counterfactual: str | None = None) -> Iterator[Record]:
    """The pairs of a file, in its order; nothing behind the last one that is asked for is read, except of plain JSON.

    Args:
        path: its name says its form.
        counterfactual: of a file with several corrupt prompts for each clean one, the column of the one to take.

    Raises:
        PromptError: a file that cannot be read, a form that is none of these, no record, a column that is missing.
        FormError: a record that cannot be read.
    """
    try:
        yield from _records(path, counterfactual)
    except (OSError, UnicodeDecodeError) as error:
        raise PromptError(f"{str(path)!r} cannot be read: {getattr(error, 'strerror', None) or error}") from None


def _records(path: Path, counterfactual: str | None) -> Iterator[Record]:
    rows, shared = (_table(path), {}) if path.suffix == ".csv" else _json_rows(path)
    first = list(itertools.islice(rows, 1 if path.suffix == ".csv" else LOOKED_AT))
    if not first:
        raise PromptError(f"{str(path)!r} holds no record")
    names = list(dict.fromkeys(name for _, row in first for name in row))
    rows = itertools.chain(first, rows)
    if "choices" in names and "answerKey" in names:
        yield from (_chosen(path, line, row, counterfactual, names) for line, row in rows)
        return
    columns = _columns(path, names, counterfactual)
    beside = _beside(names, columns)
    yield from (_record(path, line, row, columns, beside, shared) for line, row in rows)


def _table(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The rows of a CSV file with their lines."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file)
        try:
            for row in reader:
                if None in row:
                    raise FormError(f"{str(path)!r}, line {reader.line_num}: more fields than the header has columns")
                yield reader.line_num, row
        except csv.Error as error:
            raise FormError(f"{str(path)!r}, line {reader.line_num} is no CSV: {error}") from None


def _json_rows(path: Path) -> tuple[Iterator[tuple[int, dict[str, Any]]], dict[str, int]]:
    """Records with their lines, and the roles that all of them share."""
    if path.suffix == ".jsonl" or _is_lines(list(itertools.islice(_lines(path), 1))):
        return ((at, _json(path, at, line)) for at, line in _lines(path)), {}
    try:
        whole = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        if isinstance(error, UnicodeDecodeError):
            raise
        raise FormError(f"{str(path)!r} is no JSON: {error}") from None
    given = whole.get("prompts") if isinstance(whole, dict) else whole
    if not isinstance(given, list) or not all(isinstance(row, dict) for row in given):
        raise FormError(f"{str(path)!r} must hold a list of records, or such a list under 'prompts'")
    shared = (whole.get("word_idxs") or {}) if isinstance(whole, dict) else {}
    if not isinstance(shared, dict) or not all(is_whole(at) for at in shared.values()):
        raise FormError(f"{str(path)!r}: 'word_idxs' must name a position for each role, not {shown(shared)}")
    return iter(list(enumerate(given, 1))), {str(role): int(at) for role, at in shared.items()}


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines of a file that are not blank, with their numbers."""
    with path.open(encoding="utf-8-sig") as file:
        yield from ((at, line) for at, line in enumerate(file, 1) if line.strip())


def _is_lines(lines: Sequence[tuple[int, str]]) -> bool:
    """Whether JSON is one record a line: its first line is an object that is a record by itself."""
    try:
        first = json.loads(lines[0][1])
    except (IndexError, ValueError, RecursionError):
        return False
    return isinstance(first, dict) and not isinstance(first.get("prompts"), list)


def _json(path: Path, line: int, text: str) -> dict[str, Any]:
    try:
        row = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FormError(f"{str(path)!r}, line {line} is no JSON: {error}") from None
    if not isinstance(row, dict):
        raise FormError(f"{str(path)!r}, line {line} must be an object with named fields, not {text.strip()[:40]!r}")
    return row


def _columns(path: Path, names: Sequence[str], counterfactual: str | None) -> dict[str, str]:
    """Part -> the column that has it."""
    clean = next((name for name in CLEAN if name in names), None)
    corrupt = counterfactual or next((name for name in CORRUPT if name in names), None)
    for part, name, choices in (("clean", clean, CLEAN), ("corrupt", corrupt, CORRUPT)):
        if name not in names:
            close = nearest(str(name or part), names, most=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            wanted = f"column {name!r}" if name else f"column for the {part} prompt ({' or '.join(choices)})"
            raise PromptError(f"{str(path)!r} has no {wanted}, only {', '.join(map(repr, names))}{hint}")
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
    """Part -> the column that has its answer in texts where `columns` has ids, or the other way round."""
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
        given = row.get(columns[part])
        if given is None or given == "":
            raise FormError(f"{str(path)!r}, line {line}, column {columns[part]!r}: it is empty")
        return given

    roles: dict[str, int | str] = {}
    for name, given in row.items():
        if name.startswith(ROLE) and given not in (None, ""):
            if not isinstance(given, str) and not is_whole(given):
                raise FormError(
                    f"{str(path)!r}, line {line}, column {name!r}: a role is a position or a token, not {given!r}"
                )
            number = not isinstance(given, str) or re.fullmatch(r"-?[0-9]+", given)
            roles[name.removeprefix(ROLE)] = int(given) if number else given
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
        given = str(value("plural")).strip().lower()
        if given not in ("0", "1", "true", "false"):
            raise FormError(f"{str(path)!r}, line {line}, column {PLURAL!r}: it must be 0 or 1, not {given!r}")
        plural = given in ("1", "true")
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
        more={name: given for name, given in row.items() if name and name not in used},
        beside=others,
    )


def _chosen(path: Path, line: int, row: Mapping[str, Any], counterfactual: str | None, names: Sequence[str]) -> Record:
    """A record whose answers are among its `choices`, and whose corrupt prompt is a record of the same form."""
    others = [name for name in names if name.endswith("counterfactual")]
    name = counterfactual or (others[0] if len(others) == 1 else None)
    if name is None:
        raise PromptError(
            f"{str(path)!r} has {len(others)} counterfactuals ({', '.join(map(repr, others)) or 'none'}): say which "
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
            raise FormError(f"{str(path)!r}, line {line}, column {where!r}: answerKey={key!r} is none of its choices")
        return f" {str(labels[key]).strip()}"  # a choice is written without the space that it follows

    right, wrong = answer(row, "answerKey"), answer(other, name)
    if right == wrong:  # the counterfactual has the same answer: another choice of the clean prompt is wrong
        choices = row["choices"]
        labels = choices["label"] if isinstance(choices, Mapping) else choices
        wrong = next((f" {str(label).strip()}" for label in labels if f" {str(label).strip()}" != right), wrong)
    columns = {"clean": "prompt", "corrupt": name, "right": "answerKey", "wrong": name}
    return Record(line, row["prompt"], other["prompt"], (right,), (wrong,), columns)


def _prompt(path: Path, line: int, column: str, given: Any) -> Prompt:
    if isinstance(given, str):
        return given
    if isinstance(given, list) and given and all(is_whole(token) for token in given):
        return given
    raise FormError(f"{str(path)!r}, line {line}, column {column!r}: a prompt is text or a list of ids, not {given!r}")


def _answers(path: Path, line: int, column: str, given: Any, in_ids: bool) -> tuple[str | int, ...]:
    """One answer or a list of them: ids under a name that says so or beside a prompt `in_ids`, else texts."""
    if isinstance(given, str) and given.strip().startswith("["):
        try:
            given = ast.literal_eval(given.strip())
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            given = [given]
    found = list(given) if isinstance(given, list | tuple) else [given]
    if not found or not all(isinstance(answer, str) or is_whole(answer) for answer in found):
        raise FormError(f"{str(path)!r}, line {line}, column {column!r}: an answer is text or an id, not {given!r}")
    if not column.endswith(IDS):
        return tuple(answer if in_ids else str(answer) for answer in found)
    try:
        return tuple(int(answer) for answer in found)
    except ValueError:
        raise FormError(f"{str(path)!r}, line {line}, column {column!r}: {given!r} is no token id") from None

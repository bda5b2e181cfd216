"""Which columns of a data file are the prompts, the answers and the roles.

1. A file is read as records, each with the line it stands on: CSV, JSON lines, or JSON, which is a list or has one
   under `prompts`.
2. The prompts and answers are found by the names of their columns: `clean, corrupt, answer, wrong_answer`, or those
   that published files use (`CLEAN`, `CORRUPT`, `ANSWERS`). Answers under a name that ends in `_idx` are token ids, in
   CSV, too; a list of answers is a set of them.
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
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

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


class FormError(PromptError):
    """A record that cannot be read: it names its line and column."""


def records(path: Path, content: str, *, counterfactual: str | None = None) -> list[Record]:
    """The pairs of a file, in its order.

    Args:
        path: its name says its form.
        content: what it holds.
        counterfactual: of a file with several corrupt prompts for each clean one, the column of the one to take.

    Raises:
        PromptError: a form that is none of these, no record, a column that is missing.
        FormError: a record that cannot be read.
    """
    rows, shared = _rows(path, content)
    if not rows:
        raise PromptError(f"{str(path)!r} holds no record")
    names = list(dict.fromkeys(name for _, row in rows for name in row))
    if "choices" in names and "answerKey" in names:
        return [_chosen(path, line, row, counterfactual, names) for line, row in rows]
    columns = _columns(path, names, counterfactual)
    return [_record(path, line, row, columns, shared) for line, row in rows]


def _rows(path: Path, content: str) -> tuple[list[tuple[int, dict[str, Any]]], dict[str, int]]:
    """Records with their lines, and the roles that all of them share."""
    if path.suffix == ".csv":
        reader = csv.DictReader(io.StringIO(content, newline=""))
        found: list[tuple[int, dict[str, Any]]] = []
        for row in reader:
            if None in row:
                raise FormError(f"{str(path)!r}, line {reader.line_num}: more fields than the header has columns")
            found.append((reader.line_num, row))
        return found, {}
    lines = [(at, line) for at, line in enumerate(content.splitlines(), 1) if line.strip()]
    if path.suffix == ".jsonl" or _is_lines(lines):
        return [(at, _json(path, at, line)) for at, line in lines], {}
    try:
        whole = json.loads(content)
    except ValueError as error:
        raise FormError(f"{str(path)!r} is no JSON: {error}") from None
    given = whole.get("prompts") if isinstance(whole, dict) else whole
    if not isinstance(given, list) or not all(isinstance(row, dict) for row in given):
        raise FormError(f"{str(path)!r} must hold a list of records, or such a list under 'prompts'")
    shared = whole.get("word_idxs") if isinstance(whole, dict) else None
    return list(enumerate(given, 1)), {str(role): int(at) for role, at in (shared or {}).items()}


def _is_lines(lines: Sequence[tuple[int, str]]) -> bool:
    """Whether JSON is one record a line: its first line is an object that is a record by itself."""
    try:
        first = json.loads(lines[0][1])
    except (IndexError, ValueError):
        return False
    return isinstance(first, dict) and not isinstance(first.get("prompts"), list)


def _json(path: Path, line: int, text: str) -> dict[str, Any]:
    try:
        row = json.loads(text)
    except ValueError as error:
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


def _record(
    path: Path, line: int, row: Mapping[str, Any], columns: dict[str, str], shared: Mapping[str, int]
) -> Record:
    def value(part: str) -> Any:
        given = row.get(columns[part])
        if given is None or given == "":
            raise FormError(f"{str(path)!r}, line {line}, column {columns[part]!r}: it is empty")
        return given

    roles: dict[str, int | str] = {}
    for name, given in row.items():
        if name.startswith(ROLE) and given not in (None, ""):
            number = isinstance(given, int) or str(given).lstrip("-").isdigit()
            roles[name.removeprefix(ROLE)] = int(given) if number else str(given)
    used = {*columns.values(), *(name for name in row if name.startswith(ROLE))}
    right: tuple[str | int, ...] = ()
    wrong: tuple[str | int, ...] = ()
    if "right" in columns:
        right, wrong = (_answers(path, line, columns[part], value(part)) for part in ("right", "wrong"))
    elif "plural" in columns:
        given = str(value("plural")).strip().lower()
        if given not in ("0", "1", "true", "false"):
            raise FormError(f"{str(path)!r}, line {line}, column {PLURAL!r}: it must be 0 or 1, not {given!r}")
        plural = given in ("1", "true")
        right, wrong = (VERBS[plural],), (VERBS[not plural],)
    clean, corrupt = (_prompt(path, line, columns[part], value(part)) for part in ("clean", "corrupt"))
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
    if isinstance(given, list) and given and all(isinstance(token, int) for token in given):
        return given
    raise FormError(f"{str(path)!r}, line {line}, column {column!r}: a prompt is text or a list of ids, not {given!r}")


def _answers(path: Path, line: int, column: str, given: Any) -> tuple[str | int, ...]:
    """One answer or a list, as texts, or as ids where the column's name or its values say so."""
    if isinstance(given, str) and given.strip().startswith("["):
        try:
            given = ast.literal_eval(given.strip())
        except (ValueError, SyntaxError):
            given = [given]
    found = list(given) if isinstance(given, list | tuple) else [given]
    if column.endswith("_idx"):
        try:
            found = [int(answer) for answer in found]
        except (TypeError, ValueError):
            raise FormError(f"{str(path)!r}, line {line}, column {column!r}: {given!r} is no token id") from None
    if not found or not all(isinstance(answer, str | int) and not isinstance(answer, bool) for answer in found):
        raise FormError(f"{str(path)!r}, line {line}, column {column!r}: an answer is text or an id, not {given!r}")
    return tuple(found)

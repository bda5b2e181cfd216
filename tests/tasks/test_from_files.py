"""Tasks from data files: one's own columns, those of published files, and what does not fit."""

from __future__ import annotations

import hashlib
import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from vocabularies import by_bytes, by_words, vocabulary

import interp
from analyses.cli import main
from interp.errors import InterpError, PromptError
from interp.models.gpt import GPT
from interp.tasks import from_file, get_task, prob_diff

CLEAN = "I saw John and Mary, and John spoke to"
CORRUPT = "I saw John and Mary, and Mary spoke to"


@pytest.fixture(scope="module")
def model() -> GPT:
    return by_bytes([*vocabulary(), "saw", "spoke", "to", "keys", "cabinet", "relatives", "family", "animals"])


def token(model: GPT, text: str) -> int:
    return int(model.to_single_token(text))


def written(folder: Path, name: str, content: str | list[dict[str, Any]] | dict[str, Any]) -> Path:
    path = folder / name
    if isinstance(content, str):
        path.write_text(content, encoding="utf-8")
    elif path.suffix == ".jsonl":
        assert isinstance(content, list)
        path.write_text("".join(json.dumps(row) + "\n" for row in content), encoding="utf-8")
    else:
        path.write_text(json.dumps(content, indent=1), encoding="utf-8")
    return path


def row(**changes: Any) -> dict[str, Any]:
    return {"clean": CLEAN, "corrupt": CORRUPT, "answer": " Mary", "wrong_answer": " John", **changes}


def test_one_s_own_columns_in_csv_and_in_json_lines_give_the_same_pairs(model: GPT, tmp_path: Path) -> None:
    table = (
        "clean,corrupt,answer,wrong_answer,role:S2,role:IO,from\n"
        f'"{CLEAN}","{CORRUPT}", Mary, John,7, Mary,me\n'
        f'"{CORRUPT}","{CLEAN}", John, Mary,7,2,you\n'
    )
    csv = from_file(model, written(tmp_path, "own.csv", table))
    more: list[dict[str, Any]] = [
        row(**{"role:S2": 7, "role:IO": " Mary", "from": "me"}),
        {
            **row(clean=CORRUPT, corrupt=CLEAN, answer=" John", wrong_answer=" Mary"),
            **{"role:S2": 7, "role:IO": 2, "from": "you"},
        },
    ]
    lines = from_file(model, written(tmp_path, "own.jsonl", more))
    listed = from_file(model, written(tmp_path, "own.json", more))
    assert csv.digest() == lines.digest() == listed.digest() and csv.name == "own"
    mary, john = token(model, " Mary"), token(model, " John")
    assert csv.answers.tolist() == [[mary, john], [john, mary]]
    assert csv.str_tokens[0][csv.roles[0]["IO"]] == " Mary" and csv.roles[1] == {"S2": 7, "IO": 2, "END": 9}
    assert csv.notes["more"] == {"from": ["me", "you"]} and csv.notes["left_out"] == 0
    assert csv.notes["source"] == "own.csv" and len(csv.notes["sha256"]) == 64


@pytest.mark.parametrize(
    ("corrupt", "right", "wrong"),
    [
        ("corrupted", "correct", "incorrect"),
        ("corrupted_prompt", "answer", "incorrect_answer"),
        ("corrupt_prompt", "clean_answer", "corrupt_answer"),
        ("corrupted", "correct_idx", "incorrect_idx"),
        ("corrupted", "clean_answer_idx", "corrupted_answer_idx"),
        ("corrupted", "country_idx", "corrupted_country_idx"),
        ("corrupted", "target_idx", "foil_idx"),
    ],
)
def test_the_names_that_published_files_use(model: GPT, tmp_path: Path, corrupt: str, right: str, wrong: str) -> None:
    said = [" Mary", " John"]
    if right.endswith("_idx"):
        said = [str(token(model, text)) for text in said]
    table = f',clean,{corrupt},corrupted_hard,{right},{wrong}\n470,"{CLEAN}","{CORRUPT}",x,{said[0]},{said[1]}\n'
    pairs = from_file(model, written(tmp_path, "published.csv", table))
    assert pairs.answers.tolist() == [[token(model, " Mary"), token(model, " John")]]
    assert pairs.corrupt_texts == (CORRUPT,) and pairs.notes["first_answers"] == [" Mary", " John"]
    assert pairs.notes["more"]["corrupted_hard"] == ["x"]


def test_lists_of_answers_are_sets(model: GPT, tmp_path: Path) -> None:
    right, wrong = ([token(model, f" {word}") for word in words] for words in (("relatives", "family"), ("animals",)))
    table = (
        "clean,answers,answers_idx,corrupted,corrupted_answers,corrupted_answers_idx\n"
        f'"When John and","[\'relatives\']","{right}","When Mary and",[\'animals\'],{wrong}\n'
    )
    pairs = from_file(model, written(tmp_path, "kinds.csv", table))
    assert pairs.answers.tolist() == [[right[0], wrong[0]]] and pairs.notes["metric"] == "prob_diff"
    assert pairs.answer_sets == ((tuple(right), tuple(wrong)),)
    chance = model(pairs.clean)[0, -1].softmax(-1).detach()
    expected = float(chance[right].sum() - chance[wrong].sum())
    logits = model(pairs.clean).detach()
    assert interp.metrics.measure(prob_diff(pairs), logits, pairs).tolist() == pytest.approx([expected], abs=1e-6)


def test_prompts_under_a_key_with_roles_for_all(tmp_path: Path) -> None:
    answers = {"answers": [" Mary", " Nebuchadnezzar"], "wrong_answers": [" John", " Paul"]}
    content = {
        "seq_labels": ["I", "saw"],
        "word_idxs": {"first": 2, "S2": 7},
        "prompts": [{"clean": CLEAN, "corrupt": CORRUPT, **answers}],
    }
    path = written(tmp_path, "prompts.json", content)
    for bos in (False, True):
        model = by_bytes([*vocabulary(), "saw", "spoke", "to"], bos=bos)
        pairs = from_file(model, path)
        assert pairs.str_tokens[0][pairs.roles[0]["first"]] == " John" == pairs.str_tokens[0][pairs.roles[0]["S2"]]
        assert pairs.answer_sets == (((token(model, " Mary"),), (token(model, " John"), token(model, " Paul"))),)


@pytest.mark.parametrize("nested", [False, True])
def test_choices_and_a_counterfactual(model: GPT, tmp_path: Path, nested: bool) -> None:
    choices = {"label": ["John", "Mary"], "text": ["a", "b"]} if nested else ["John", "Mary"]
    record = {"prompt": CLEAN, "choices": choices, "answerKey": 1}
    record["s2_counterfactual"] = {"prompt": CORRUPT, "choices": choices, "answerKey": 0}
    path = written(tmp_path, "mib.jsonl", [record])
    pairs = from_file(model, path)
    assert pairs.answers.tolist() == [[token(model, " Mary"), token(model, " John")]]
    record["other_counterfactual"] = {"prompt": CLEAN.replace("saw", "spoke"), "choices": choices, "answerKey": 1}
    written(tmp_path, "mib.jsonl", [record])
    with pytest.raises(PromptError, match=r"2 counterfactuals \('s2_counterfactual', 'other_counterfactual'\)"):
        from_file(model, path)
    other = from_file(model, path, counterfactual="other_counterfactual")  # the same answer: another choice is wrong
    assert torch.equal(other.answers, pairs.answers) and other.corrupt_texts != pairs.corrupt_texts


@pytest.mark.parametrize("name", ["label", "correct_idx"])
@pytest.mark.parametrize("digits", [1, 2])
def test_years_with_their_last_digits(model: GPT, tmp_path: Path, name: str, digits: int) -> None:
    reader = model if digits == 1 else by_words(vocabulary(), r"\d\d")
    clean, corrupt = (f"The war lasted from the year 14{year} to the year 14" for year in ("05", "01"))
    second, other = clean.replace("05", "57"), clean.replace("05", "01")
    path = written(tmp_path, "years.csv", f"clean,corrupted,{name}\n{clean},{corrupt},5\n{second},{other},57\n")
    pairs = from_file(reader, path)
    assert reader.tokenizer is not None and len(pairs) == 2 - (digits == 1)  # no digit is earlier than 0
    assert pairs.clean_texts[-1] == second
    right, wrong = pairs.answer_sets[-1]
    later, earlier = (sorted(reader.tokenizer.decode([token]) for token in one) for one in (right, wrong))
    expected = (["6", "7", "8", "9"], list("01234")) if digits == 1 else (list(map(str, range(58, 100))), None)
    assert later == expected[0] and (expected[1] is None or earlier == expected[1])
    assert digits == 1 or earlier == [f"{year:02}" for year in range(58)]
    assert pairs.answers[-1, 0] in right and pairs.answers[-1, 1] in wrong


def test_sentences_that_say_whether_they_are_plural(model: GPT, tmp_path: Path) -> None:
    table = "clean,corrupted,group,plural\nThe keys,The key,ML,1\nThe key,The keys,ML,0\n"
    pairs = from_file(model, written(tmp_path, "number.csv", table))
    verbs = [token(model, " are"), token(model, " is")]
    assert pairs.answers.tolist() == [verbs, verbs[::-1]]


def test_what_does_not_fit_is_left_out_and_told(model: GPT, tmp_path: Path) -> None:
    rows = [
        row(),
        row(corrupt=f"{CORRUPT} John"),
        row(answer="Nebuchadnezzar"),
        row(wrong_answer=" Mary"),
        row(answer="cabinet"),
        row(**{"role:S2": " John"}),
        row(**{"role:S2": 40}),
        row(clean=f" {CLEAN}" * 99),
        row(clean=CORRUPT, corrupt=CLEAN),
    ]
    path = written(tmp_path, "mixed.jsonl", rows)
    pairs = from_file(model, path)
    assert len(pairs) == 2 and pairs.notes["records"] == 9 and pairs.notes["left_out"] == 7
    told = pairs.notes["left_out_because"]
    for line, says in zip(
        range(2, 9),
        (
            "columns 'clean' and 'corrupt': the clean prompt has 10 tokens and the corrupt one 11",
            "column 'answer': 'Nebuchadnezzar' is not one token here",
            "is among the right answers and among the wrong ones",
            "column 'answer': 'cabinet' is not one token here, but ' cabinet' is",
            "column 'role:S2': role 'S2': the token ' John' is at positions [2, 7]",
            "column 'role:S2': role 'S2' is at position 40",
            "column 'clean': a prompt of ",
        ),
        strict=True,
    ):
        assert told[line - 2].startswith(f"line {line}, ") and says in told[line - 2]
    with pytest.raises(PromptError, match=r"mixed.jsonl', line 2, columns 'clean' and 'corrupt'"):
        from_file(model, path, strict=True)
    one = written(tmp_path, "one.jsonl", rows[1:3])
    with pytest.raises(PromptError, match=r"none of the 2 pairs of .*one.jsonl' fits this model; the first: line 1,"):
        from_file(model, one)


def test_every_line_that_does_not_do_is_named_up_to_twenty(model: GPT, tmp_path: Path) -> None:
    rows = [row(), row(**{"role:S": "Mary"}), row(), row(answer="Mary"), row(corrupt="short")]
    path = written(tmp_path, "odd.jsonl", rows)
    with pytest.raises(PromptError, match=r"odd.jsonl', line 2, .*; line 4, .*; line 5, "):
        from_file(model, path, strict=True)
    assert from_file(model, path).notes["left_out"] == 3
    path = written(tmp_path, "one.jsonl", rows[:2])
    with pytest.raises(PromptError, match=r"one.jsonl', line 2, column 'role:S'"):
        from_file(model, path, strict=True)
    path = written(tmp_path, "none.jsonl", rows[3:] * 15)
    with pytest.raises(PromptError, match=r"none of the 30 pairs .*: line 1, .*; line 20, .*; and 10 more$"):
        from_file(model, path)
    good, bad = json.dumps(row()), json.dumps(row(answer=""))
    path = written(tmp_path, "broken.jsonl", "\n".join([good, bad, "{", good, "[]"]))
    says = r"broken.jsonl', line 2, column 'answer': it is empty; line 3 is not JSON: .*; line 5 must be"
    with pytest.raises(PromptError, match=says):
        from_file(model, path)
    assert len(from_file(model, path, n=1)) == 1  # nothing is read beyond the pairs that are wanted
    path = written(tmp_path, "worse.jsonl", "\n".join([good, *["{"] * 50]))
    with pytest.raises(PromptError, match=r"', line 2 is not JSON.*; line 21 is not JSON.*; no further line"):
        from_file(model, path)


@pytest.mark.parametrize(("given", "meant"), [("Mary", " Mary"), ("John", " John"), (" I", "I")])
def test_a_role_that_differs_by_a_leading_space_is_suggested(
    model: GPT, tmp_path: Path, given: str, meant: str
) -> None:
    clean = "I saw Mary and John"
    path = written(tmp_path, "roles.jsonl", [row(clean=clean, corrupt="I saw John and Mary", **{"role:S": given})])
    with pytest.raises(PromptError, match=f"did you mean '{meant}', at position"):
        from_file(model, path, strict=True)
    with pytest.raises(PromptError, match=f"did you mean '{meant}'"):
        interp.PromptPairs.from_text(model, [clean], answers=[(" Mary", " John")], roles={"S": given})


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.txt", "", r"'.*a.txt' is not a data file: expected a name that ends in .csv, .jsonl, .json"),
        ("a.csv", "clean,corrupt,answer,wrong_answer\n", "holds no record"),
        ("a.csv", "clean,answer,wrong_answer\na,b,c\n", "no column for the corrupt prompt .* only 'clean', 'answer'"),
        ("a.csv", "clen,corrupt,answer,wrong_answer\na,b,c,d\n", "the clean prompt .*; did you mean 'clen'"),
        ("a.csv", "clean,corrupt,ansr\na,b,c\n", "no columns for the right and the wrong answer"),
        ("a.csv", "clean,corrupt,answer,wrong_answer\na,b,c,d,e\n", "line 2: more fields than the header"),
        ("a.csv", "clean,corrupt,answer,wrong_answer\na,b,c\n", "line 2, column 'wrong_answer': it is empty"),
        ("a.csv", "clean,corrupt,plural\na,b,yes\n", "line 2, column 'plural': it must be 0 or 1, not 'yes'"),
        ("a.csv", "clean,corrupt,correct_idx,incorrect_idx\na,b,x,1\n", "column 'correct_idx': 'x' is not a token"),
        ("a.csv", "clean,corrupt,label\nThe keys,The key,57\n", "column 'label': '57' is not the end of a year"),
        ("a.csv", "clean,corrupt,answer_idx,wrong_answer_idx\nkey,key,1,999999\n", "the model's answers are 0 to"),
        ("a.jsonl", '{"clean": "a"}\n{', "line 2 is not JSON"),
        ("a.jsonl", "[1]\n", r"line 1 must be an object with named fields, not '\[1\]'"),
        ("a.json", "[1, 2]", "must hold a list of records"),
        ("a.json", "[", "is not JSON"),
        ("a.json", '{"prompts": 3}', "has no column for the clean prompt"),
        ("a.json", '[{"clean": 3, "corrupt": "b", "answer": "c", "wrong_answer": "d"}]', "a prompt is text or a list"),
        ("a.json", '[{"clean": "a", "corrupt": "b", "answer": 1.5, "wrong_answer": "d"}]', "text or an id, not 1.5"),
        ("a.json", '[{"prompt": "a", "choices": ["x"], "answerKey": 4, "b_counterfactual": {"prompt": ""}}]', "among"),
        ("a.json", '[{"prompt": "a", "choices": ["x"], "answerKey": 0, "b_counterfactual": "c"}]', "must be a record"),
    ],
)  # fmt: skip
def test_files_that_cannot_be_read_are_refused(model: GPT, tmp_path: Path, name: str, content: str, says: str) -> None:
    with pytest.raises(InterpError, match=says):
        from_file(model, written(tmp_path, name, content))


def test_a_missing_file_and_an_n_of_nothing_are_refused(model: GPT, tmp_path: Path) -> None:
    with pytest.raises(PromptError, match="cannot be read: No such file"):
        from_file(model, tmp_path / "none.csv")
    with pytest.raises(PromptError, match=r"there is no data file '.*none.csv'"):
        get_task(str(tmp_path / "none.csv"))
    with pytest.raises(PromptError, match="n must be at least 1, not 0"):
        from_file(model, written(tmp_path, "own.jsonl", [row()]), n=0)


def test_ids_are_for_models_without_a_tokenizer(tmp_path: Path) -> None:
    toy = interp.load("toy", device="cpu")
    rows = [
        {"clean": [1, 2, 3], "corrupt": [1, 5, 3], "answer": 7, "wrong_answer": 8, "role:X": 1},
        {"clean": [1, 2, 99], "corrupt": [1, 5, 3], "answer": 7, "wrong_answer": 8},
        {"clean": [1, 2, 3], "corrupt": [1, 5, 3], "answer": " Mary", "wrong_answer": 8},
    ]
    pairs = from_file(toy, written(tmp_path, "ids.jsonl", rows))
    assert pairs.clean.tolist() == [[1, 2, 3]] and pairs.answers.tolist() == [[7, 8]]
    assert pairs.roles == ({"X": 1, "END": 2},)
    assert [text.split(": ")[1] for text in pairs.notes["left_out_because"]] == [
        "its ids are not all below 64",
        "' Mary' is not one token here",
    ]


def test_a_file_is_a_task_in_its_own_order(model: GPT, tmp_path: Path) -> None:
    rows = [
        row(),
        row(clean="The keys", corrupt="The key", answer=" are", wrong_answer=" is"),
        row(clean=CORRUPT, corrupt=CLEAN),
    ]
    path = written(tmp_path, "mine.jsonl", rows)
    make = get_task(path)
    pairs = make(model, n=32, seed=5)
    assert list(pairs.clean_texts) == [r["clean"] for r in rows] and pairs.name == "mine"
    assert make(model, n=2, seed=6).digest() == pairs[:2].digest()
    alike = make(model, n=32, aligned=True)
    assert list(alike.clean_texts) == [CLEAN, CORRUPT] and bool(alike.mask.all())
    assert make(model, n=1, aligned=True).clean_texts == (CLEAN,)


def test_the_command_line_takes_a_file_and_says_first_whether_the_model_can(talker: Path, tmp_path: Path) -> None:
    path = written(tmp_path, "mine.csv", f'clean,corrupt,answer,wrong_answer\n"{CLEAN}","{CORRUPT}", Mary, John\n')
    words = ["run", "logit-lens", "--model", str(talker), "--task", str(path), "--csv"]
    loud, quiet = (CliRunner().invoke(main, [*words, *more]) for more in ((), ("--quiet",)))
    assert loud.exit_code == quiet.exit_code == 0, loud.output
    assert "too few to say whether" in loud.stderr and "too few" not in quiet.stderr
    assert loud.stdout == quiet.stdout and loud.stdout.startswith("layer")
    missing = CliRunner().invoke(main, [*words[:-2], str(tmp_path / "no.csv")])
    assert missing.exit_code == 2 and "there is no data file" in missing.stderr


def test_numbers_are_text_in_every_form(model: GPT, tmp_path: Path) -> None:
    five, six = ([token(model, str(number))] for number in (5, 6))
    plain = {"clean": "2+3=", "corrupt": "2+4="}
    for at, (right, wrong) in enumerate(((5, 6), ("5", "6"), ([5], ["6"]))):
        content = [{**plain, "answer": right, "wrong_answer": wrong}]
        for name in (f"{at}.json", f"{at}.jsonl"):
            assert from_file(model, written(tmp_path, name, content)).answers.tolist() == [[five[0], six[0]]]
    table = "clean,corrupt,answer,wrong_answer\n2+3=,2+4=,5,6\n2+3=,2+4=,[5],[6]\n"
    assert from_file(model, written(tmp_path, "n.csv", table)).answers.tolist() == [[five[0], six[0]]] * 2
    ids = {**plain, "answer_idx": 5, "wrong_answer_idx": 6}
    assert from_file(model, written(tmp_path, "ids.jsonl", [ids])).answers.tolist() == [[5, 6]]


def test_ids_that_contradict_the_text_beside_them_are_refused(model: GPT, tmp_path: Path) -> None:
    mary, john, to = (token(model, word) for word in (" Mary", " John", " to"))
    good = row(answer_idx=mary, wrong_answer_idx=john)
    assert from_file(model, written(tmp_path, "good.jsonl", [good])).answers.tolist() == [[mary, john]]
    spoken = {"clean": CLEAN, "corrupt": CORRUPT, "target": "Mary", "foil": ["John"]}  # as files without the space
    both = {**spoken, "target_idx": [mary, to], "foil_idx": john}
    assert from_file(model, written(tmp_path, "both.jsonl", [both])).answer_sets == (((mary, to), (john,)),)
    for name, record in (
        ("text first", row(answer_idx=mary, wrong_answer_idx=to)),
        ("other names", row(correct_idx=mary, incorrect_idx=to)),
        ("ids first", {**spoken, "target_idx": mary, "foil_idx": [to]}),
    ):
        with pytest.raises(PromptError, match=r"line 1, column '\w+_idx': token \d+ is ' to' for this tokenizer, but "):
            from_file(model, written(tmp_path, f"{name}.jsonl", [record]))


def test_no_more_of_a_file_is_read_than_is_needed(model: GPT, tmp_path: Path) -> None:
    """What stands behind the pairs that are asked for may be anything."""
    line = f'"{CLEAN}","{CORRUPT}", Mary, John\n'
    head = "clean,corrupt,answer,wrong_answer\n"
    broken = (b"a,b,c,d,e,f\n", b"\xff\xfe\n", b'"' + b"x" * 200_000 + b'"\n')
    for at, rest in enumerate(broken):
        path = tmp_path / f"{at}.csv"
        path.write_bytes((head + line * 3 + " " * 20_000 + "\n").encode() + rest)
        pairs = from_file(model, path, n=2)
        assert len(pairs) == 2 == pairs.notes["records"] and pairs.notes["left_out"] == 0
        assert pairs.notes["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
        with pytest.raises(PromptError):
            from_file(model, path)
    lines = tmp_path / "rows.jsonl"
    lines.write_text((json.dumps(row()) + "\n") * 150 + "{\n")
    assert from_file(model, lines, n=4).notes["records"] == 4
    with pytest.raises(PromptError, match="line 151 is not JSON"):
        from_file(model, lines)


def test_a_long_table_is_not_held_in_memory(model: GPT, tmp_path: Path) -> None:
    path = tmp_path / "long.csv"
    with path.open("w") as file:
        file.write("clean,corrupt,answer,wrong_answer\n")
        file.writelines(f'"{CLEAN}","{CORRUPT}", Mary, John\n' for _ in range(100_000))
    tracemalloc.start()
    try:
        for aligned in (False, True):
            assert len(from_file(model, path, n=4, aligned=aligned)) == 4
        assert tracemalloc.get_traced_memory()[1] < path.stat().st_size / 4
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.json", [row(**{"role:S": 1.5})], r"line 1, column 'role:S': a role is a position or a token, not 1.5"),
        ("a.jsonl", [row(**{"role:S": True})], r"column 'role:S': a role is a position or a token, not True"),
        ("a.json", {"word_idxs": {"S": 1.5}, "prompts": [row()]}, "'word_idxs' must name a position for each role"),
        ("a.json", {"word_idxs": [1], "prompts": [row()]}, "'word_idxs' must name a position for each role"),
        ("a.jsonl", [row(clean=[1, True])], "a prompt is text or a list of ids"),
        ("a.jsonl", [row(answer=[" Mary", 1.5])], r"an answer is text or an id, not \[' Mary', 1.5\]"),
        ("a.json", "[" * 100_000, "is not JSON"),
        ("a.jsonl", "[" * 100_000, "line 1 is not JSON"),
    ],
)  # fmt: skip
def test_values_that_mean_nothing_are_refused(model: GPT, tmp_path: Path, name: str, content: Any, says: str) -> None:
    with pytest.raises(PromptError, match=says):
        from_file(model, written(tmp_path, name, content))


def test_a_folder_is_no_data_file(model: GPT, tmp_path: Path) -> None:
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(PromptError, match=r"folder.csv' cannot be read: it is not a file"):
        from_file(model, tmp_path / "folder.csv")


def test_two_records_with_one_prompt_keep_their_answers(model: GPT, tmp_path: Path) -> None:
    rows = [row(answer=[" Mary", " to"]), row(answer=[" Mary", " family"], wrong_answer=[" John", " animals"])]
    pairs = from_file(model, written(tmp_path, "twice.jsonl", rows))
    sets = [
        [[token(model, text) for text in side] for side in pair]
        for pair in (([" Mary", " to"], [" John"]), ([" Mary", " family"], [" John", " animals"]))
    ]
    assert [list(map(list, pair)) for pair in pairs.answer_sets] == sets
    logits = model(pairs.clean).detach()
    chance = logits[:, -1].softmax(-1)
    expected = [float(chance[at, right].sum() - chance[at, wrong].sum()) for at, (right, wrong) in enumerate(sets)]
    assert interp.metrics.measure(prob_diff(pairs), logits, pairs).tolist() == pytest.approx(expected, abs=1e-6)
    assert expected[0] != expected[1]

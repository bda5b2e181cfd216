"""Wrong arguments on the command line: is every one refused with a message and exit code 2, or carried out?

1. Every command of `interp` is listed by looking, with all of its options and arguments.
2. One of them at a time gets a text that cannot be, or hardly; the others are sound and small.
3. Exit code 0 is right, 2 is a refusal; an exception, or another code, is neither.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import scipy.stats  # noqa: F401, in this process, so that no child waits for it
import sklearn.linear_model  # noqa: F401
import transformers
from checkpoints import SIZES, tiny
from click.testing import CliRunner
from vocabularies import names_tokenizer

from analyses import cli

from .trial import Case, Limits, Outcome, tell

TOGETHER = 10
LIMITS = Limits(processor=60, seconds=120)
WRONG = {
    "nothing": "",
    "a space": " ",
    "x": "x",
    "-1": "-1",
    "0": "0",
    "1.5": "1.5",
    "nan": "nan",
    "1e400": "1e400",
    "2**70": str(2**70),
    "NUL": "\0",
    "a lone surrogate": "\udcff",
    "a direction character": "\u202ex",
    "300 letters": "x" * 300,
    "5000 letters": "x" * 5000,
    "a path below a file": "config.json/x",
    "the root": "/",
    "a pipe": "pipe",
    "JSON": '{"a": [1]}',
    "a list": "1,2,,x",
    "cuda:99": "cuda:99",
    "an option": "--help-me",
    "%s {0} $HOME": "%s {0} $HOME",
}
# Not run: a page that waits for a browser, cluster machines, and studies that build models for minutes.
LEFT_OUT = {"explore", "calibration", "copying"}
NOT_TRIED = {"help", "version", "address", "executor"}
MODEL: list[str] = []  # where it is
CALLS: list[tuple[list[str], str, list[str]]] = []  # the sound words, the parameter, its words


def prepare(home: Path) -> None:
    model = home / "model"
    MODEL[:] = [str(model)]
    backend = names_tokenizer()
    options = {**SIZES, "vocab_size": backend.get_vocab_size(), "num_key_value_heads": 2}
    tiny("llama", {**options, "max_position_embeddings": 160}).save_pretrained(model)
    backend.save(str(model / "tokenizer.json"))
    transformers.logging.set_verbosity_error()
    CALLS.clear()
    for words, command in _commands(cli.main, []):
        if LEFT_OUT & set(words):
            continue
        sound = [*words]
        names = {parameter.name: parameter for parameter in command.params}
        for parameter in command.params:
            if isinstance(parameter, click.Argument):
                sound.append("ioi" if parameter.name == "task" else "When John and Mary")
        for name, text in (("source", str(model)), ("n", "2"), ("studies", "logit-lens")):
            if name in names and names[name].opts:
                sound += [names[name].opts[0], text]
        sound += ["--no-check"] if "check" in names else []
        CALLS.append((sound, "", []))
        for name, parameter in names.items():
            if name in NOT_TRIED or (isinstance(parameter, click.Option) and parameter.is_flag):
                continue
            for text in WRONG.values():
                if isinstance(parameter, click.Argument):
                    CALLS.append(([*words, "--", text], str(name), []))
                elif not (text == "/" and name == "out"):  # nothing is written outside
                    CALLS.append((sound, str(name), [parameter.opts[0], text]))


def _commands(command: Any, words: list[str]) -> Any:
    """Every command with its words; of a group, those inside."""
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            yield from _commands(command.get_command(context, name), [*words, name])
    else:
        yield words, getattr(command, "real", command)  # of a study, the command with its options


def count() -> int:
    return len(CALLS)


def case(seed: int, number: int) -> Case:
    sound, parameter, words = CALLS[number]

    def run() -> Outcome:
        given = [*sound, *words]
        named = ["MODEL" if word in MODEL else word for word in given]
        shown = " ".join(repr(word) if not word.isprintable() or " " in word or not word else word for word in named)
        title = f"interp {shown if len(shown) < 300 else shown[:300] + '...'}" + (
            "" if parameter else " (the sound call)"
        )
        tell(title)
        Path("config.json").write_text("{}")
        result = CliRunner().invoke(cli.main, given)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        said = result.output.strip().rpartition("\n")[2][:200]
        if not parameter and result.exit_code:
            return Outcome("raw", title, f"the sound call is refused: {said}")
        if result.exit_code not in (0, 2):
            return Outcome("raw", title, f"exit code {result.exit_code}: {said}")
        return Outcome("refused" if result.exit_code else "right", title, said)

    return run

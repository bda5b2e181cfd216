"""`Scene`: what a page of the explorer shows, as plain values, and as prompts and edits of a model.

The server keeps nothing between requests: each brings its whole scene, so that tabs know nothing of one another, a link
restores a page, and a script reproduces it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from interp.arguments import shown
from interp.edits import Variant
from interp.errors import ConfigError, PromptError, check_choice, unknown
from interp.hooked.model import HookedModel
from interp.prompts.pairs import PromptPairs
from interp.ui.explorer.changes import changes_of, check, variant_of

FIELDS = ("prompt", "second", "edits", "answers", "kept", "beside")
BESIDE = ("", "kept", "second", "other")
MOST_EDITS = 64
CLEAN, CORRUPT = "clean", "corrupt"  # the sides of the first and of the second prompt


@dataclass(frozen=True)
class Scene:
    """What is looked at.

    Attributes:
        prompt: the text, or the ids of a model without a tokenizer, as "3 14 15".
        second: the prompt that patches copy from; empty where there is none.
        edits: what is changed, as `interp.ui.explorer.changes` reads it: "L9H6:zero", "MLP 3@2:patch".
        answers: the right and the wrong next token of the patching map; empty where the models' own are taken.
        kept: other edits, to compare with.
        beside: what the run is compared with: "" for the model's own run, "kept" for that with the kept edits, "second"
            for the model's own run of the second prompt, "other" for the other model's run of the prompt.
    """

    prompt: str
    second: str = ""
    edits: tuple[str, ...] = ()
    answers: tuple[str, str] = ("", "")
    kept: tuple[str, ...] = ()
    beside: str = ""


@dataclass(frozen=True)
class Other:
    """A second model, which a scene's run can be compared with; edits do not act in it.

    Attributes:
        model: predicts the same tokens as the first one.
        loaded: the call that loads it, for scripts.
        name: as the page calls it.
    """

    model: HookedModel
    loaded: str
    name: str


class Run(NamedTuple):
    """A model on a scene's prompts with edits, and what it is in words."""

    model: HookedModel
    variant: Variant
    pairs: PromptPairs
    what: str


def scene_of(given: Any) -> Scene:
    """A scene from what a request says.

    Raises:
        ConfigError: a field of another type; an unknown one; too many edits.
    """
    if not isinstance(given, dict):
        raise ConfigError(f"a scene is an object with {', '.join(FIELDS)}, not {shown(given)}")
    if odd := [name for name in given if name not in FIELDS]:
        raise unknown("field of a scene", odd[0], FIELDS)
    prompt, second = (_text(name, given.get(name, "")) for name in FIELDS[:2])
    edits, kept = (_texts(name, given.get(name, [])) for name in ("edits", "kept"))
    if (most := max(len(edits), len(kept))) > MOST_EDITS:
        raise ConfigError(f"a scene has at most {MOST_EDITS} edits, not {most}")
    beside = _text("beside", given.get("beside", ""))
    check_choice("run to compare with", beside, BESIDE)
    answers = _texts("answers", given.get("answers", ["", ""]))
    if len(answers) != 2:
        raise ConfigError(f"answers are two, the right and the wrong next token, not {len(answers)}")
    return Scene(prompt, second, edits, (answers[0], answers[1]), kept, beside)


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise ConfigError(f"{name} must be text, not {shown(value)}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise PromptError(f"{name} is not text: it holds half of a character, at place {error.start}") from error
    return value


def _texts(name: str, values: Any) -> tuple[str, ...]:
    if not isinstance(values, list):
        raise ConfigError(f"{name} must be a list of texts, not {shown(values)}")
    return tuple(_text(f"each of {name}", value) for value in values)


def token_ids(model: HookedModel, text: str, what: str) -> list[int]:
    """The ids of a prompt.

    Raises:
        PromptError: it is empty, longer than the context, or, of a model without a tokenizer, no list of its ids.
    """
    tokenizer, cfg = model.tokenizer, model.cfg
    if tokenizer is not None:
        ids = list(tokenizer.encode(text)) if text else []
    else:
        words = text.split()
        odd = next((word for word in words if not (word.isascii() and word.isdigit() and len(word) < 10)), None)
        if odd is not None:
            raise PromptError(
                f"{what} must be token ids, such as '3 14 15', as this model has no tokenizer; {odd!r:.100} is none"
            )
        ids = [int(word) for word in words]
    if not ids:
        raise PromptError(f"{what} is empty: it has no token")
    if len(ids) > cfg.n_ctx:
        raise PromptError(f"{what} has {len(ids):,} tokens, more than the model's context of {cfg.n_ctx:,}")
    if wrong := next((one for one in ids if one >= cfg.d_vocab), None):
        raise PromptError(f"token id {wrong} of {what} is out of range: this model's ids are 0 to {cfg.d_vocab - 1}")
    return ids


def answer_id(model: HookedModel, text: str) -> int:
    """The id of a token that may come next.

    Raises:
        PromptError: the text is not one token.
    """
    if model.answer_tokenizer is not None:
        return model.to_single_token(text)
    if not text.strip().isdigit() or int(text) >= model.cfg.d_vocab_out:
        raise PromptError(f"an answer must be a token id, 0 to {model.cfg.d_vocab_out - 1}, not {shown(text)}")
    return int(text)


def pairs_of(model: HookedModel, scene: Scene, answers: tuple[int, int] | None = None, *, patched: bool) -> PromptPairs:
    """The prompts of a scene: the first is the clean side; if anything is `patched`, the second is the corrupt one.

    Raises:
        PromptError: a prompt that the model cannot take; a second one that is missing, or has another length.
    """
    first, given = token_ids(model, scene.prompt, "the prompt"), None if answers is None else [answers]
    if not patched:
        return PromptPairs.from_tokens([first], answers=given)
    if not scene.second:
        raise PromptError("a patch copies from the second prompt, and there is none: write one")
    second = token_ids(model, scene.second, "the second prompt")
    if len(first) != len(second):
        raise PromptError(
            f"a patch copies position by position, so both prompts must have equally many tokens; the prompt has "
            f"{len(first)} and the second prompt {len(second)}"
        )
    return PromptPairs.from_tokens([first], [second], answers=given)


def patched(scene: Scene) -> bool:
    """Whether any of its edits copies from the second prompt."""
    return any(one.patches for one in changes_of(scene.edits))


def resolved(model: HookedModel, scene: Scene) -> tuple[Variant, PromptPairs]:
    """The edits of a scene and its prompts.

    Raises:
        InterpError: a prompt or an edit that the model cannot take.
    """
    changes = changes_of(scene.edits)
    pairs = pairs_of(model, scene, patched=patched(scene)).to(model.device)
    check(model, changes, pairs.clean.shape[1])
    return variant_of(model, pairs, changes), pairs


def check_other(model: HookedModel, other: HookedModel) -> None:
    """Refuse a second model whose tokens are not those of the first.

    Raises:
        ConfigError: another vocabulary, or another number of tokens that are predicted.
    """
    named = [one.cfg.model_name or what for one, what in ((model, "the model"), (other, "the other model"))]
    words = [None if one.tokenizer is None else one.tokenizer.get_vocab() for one in (model, other)]
    if words[0] != words[1]:
        told = ["no tokenizer" if one is None else f"a vocabulary of {len(one):,} tokens" for one in words]
        if None not in words and len(words[0] or ()) == len(words[1] or ()):
            told[1] += ", which are others"
        raise ConfigError(
            f"two models are compared token by token, which needs the same vocabulary: {named[0]} has {told[0]} and "
            f"{named[1]} has {told[1]}"
        )
    sizes = [(one.cfg.d_vocab, one.cfg.d_vocab_out) for one in (model, other)]
    if sizes[0] != sizes[1]:
        raise ConfigError(
            f"two models are compared token by token, which needs the same vocabulary: {named[0]} reads and predicts "
            f"{sizes[0][0]:,} and {sizes[0][1]:,} tokens, {named[1]} {sizes[1][0]:,} and {sizes[1][1]:,}"
        )


def compared_with(model: HookedModel, scene: Scene, other: Other | None = None) -> Run:
    """The run that a scene is compared with."""
    if scene.beside == "other":
        if other is None:
            raise ConfigError("there is no other model to compare with: start with `interp explore --against MODEL`")
        pairs = pairs_of(model, scene, patched=False)
        if (n := pairs.clean.shape[1]) > (most := other.model.cfg.n_ctx):
            raise PromptError(f"the prompt has {n:,} tokens, more than the context of {other.name}, {most:,}")
        return Run(other.model, Variant([]), pairs.to(other.model.device), f"the other model, {other.name}")
    if scene.beside == "second":
        if not scene.second:
            raise PromptError("there is no second prompt to compare with: write one")
        return Run(model, *resolved(model, Scene(scene.second)), "the second prompt")
    if scene.beside == "kept":
        return Run(model, *resolved(model, replace(scene, edits=scene.kept)), "the kept edits")
    return Run(model, *resolved(model, replace(scene, edits=())), "the model’s own run")

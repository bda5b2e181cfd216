"""Target prompts of Patchscopes: texts into which a hidden state is put, so that the model says what it stands for.

1. A target has a placeholder; the identity prompt "cat -> cat; 135 -> 135; hello -> hello; ?" asks for what a state
   stands for. Where a model has no tokenizer, tokens of its own prompts stand there.
2. `said` puts states in the place of the placeholder and lets the model go on, greedily.

Source: Ghandeharioun et al. 2024 ("Patchscopes: A Unifying Framework for Inspecting Hidden Representations of Language
Models", sections 3 and 4.1).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from interp.arguments import checked, is_whole, shown
from interp.errors import PromptError
from interp.hooked.hooks import HookPoint
from interp.hooked.model import HookedModel
from interp.lenses.read import token_text
from interp.prompts.pairs import PromptPairs
from interp.sites import get_act_name

SITE = "resid_pre"
NEW_TOKENS = 4
PLACEHOLDER = "?"
TARGETS = {
    "next": "cat -> cat; 135 -> 135; hello -> hello; ?",
    "token": "cat -> cat; 135 -> 135; hello -> hello; ? ->",
}
"""Identity prompts. "next" is read at the placeholder, where late states bring their next token; "token" after an
arrow, where the model writes the placeholder's own token."""


@dataclass(frozen=True)
class Target:
    """A prompt into which a state is put: its ids, and the position of its placeholder."""

    tokens: tuple[int, ...]
    at: int


@checked
def target_prompt(
    model: HookedModel, pairs: PromptPairs, target: str | Sequence[int] = "next", at: int | None = None
) -> Target:
    """A target prompt and its placeholder.

    Args:
        model: its tokenizer reads texts.
        pairs: where the model has no tokenizer, or one that cannot write an identity prompt, three of their tokens
            stand there twice each, and then the placeholder: `a a b b c c ?`.
        target: a name of `TARGETS`, a text, or ids.
        at: the placeholder's position; None takes the last token with a "?" of a text, and the last of ids.

    Raises:
        PromptError: a text without a placeholder, a position outside the prompt.
    """
    if not isinstance(target, str):
        ids = [int(token) for token in target]
        place = len(ids) - 1 if at is None else at
    else:
        text = TARGETS.get(target, target)
        written = model.tokenizer is not None or target not in TARGETS
        ids = model.to_tokens(text)[0].tolist() if written else []
        marked = [place for place, token in enumerate(ids) if PLACEHOLDER in token_text(model, token)]
        if at is None and not marked and target in TARGETS:
            some = list(dict.fromkeys(pairs.clean[pairs.mask].tolist()))[:3]
            ids = [token for token in some for _ in range(2)] + some[:1]
            marked = [len(ids) - 1]
        if at is None and not marked:
            raise PromptError(f"the target {target!r} has no placeholder {PLACEHOLDER!r}: write one, or say where: at=")
        place = marked[-1] if at is None else at
    if not is_whole(place) or not -len(ids) <= place < len(ids):
        raise PromptError(
            f"the placeholder at {shown(place)} is outside the target prompt, which has {len(ids)} tokens"
        )
    return Target(tuple(ids), int(place) % len(ids))


def copies(goal: Target, wanted: Sequence[int], d_vocab_out: int) -> PromptPairs:
    """The target prompt for every prompt, with what is looked for as its right answer."""
    answers = [(token, (token + 1) % d_vocab_out) for token in wanted]
    return PromptPairs.from_tokens([goal.tokens] * len(wanted), answers=answers)


@checked
@torch.no_grad()
def said(
    model: HookedModel, state: Tensor, goal: Target, layers: Sequence[int], *, max_new_tokens: int = NEW_TOKENS
) -> Tensor:
    """What the model goes on to say, greedily, with states in the place of the target's placeholder.

    Args:
        model, goal: the model, and the target prompt.
        state: [row, d_model].
        layers: where each row's state is put in [row].
        max_new_tokens: how many tokens at most.

    Returns:
        Ids of what follows the target prompt [row, new].
    """
    waiting = set(layers)

    def put(value: Tensor, hook: HookPoint) -> Tensor | None:
        layer = hook.layer()
        if layer not in waiting:
            return None  # the prompt is over
        waiting.remove(layer)
        rows = torch.tensor([at for at, one in enumerate(layers) if one == layer], device=value.device)
        new = value.clone()
        new[rows, goal.at] = state.to(value)[rows]
        return new

    tokens = torch.tensor(goal.tokens, device=model.device).expand(len(layers), -1)
    with model.hooks([([get_act_name(SITE, layer) for layer in sorted(waiting)], put)]):
        found: Tensor = model.generate(tokens, max_new_tokens, do_sample=False, stop_at_eos=False)
    return found[:, tokens.shape[1] :]

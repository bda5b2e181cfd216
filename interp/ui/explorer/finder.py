"""All heads in one table: what they do on random tokens, and what the prompt's next token loses without each.

1. Detectors (`interp.heads.detectors`) score attention along the links of random tokens that occur twice: to the token
   before, to an earlier occurrence, to what followed one. From each the control is subtracted. They depend on the
   model alone, and are kept.
2. One sweep zeroes every head alone; the effect is what the log probability of the model's first choice loses.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import torch

from interp.edits import Edit, Variant
from interp.errors import ConfigError
from interp.heads.detectors import LINKED, Material, measured
from interp.hooked.model import HookedModel
from interp.lenses.read import token_text
from interp.names import Part
from interp.prompts.pairs import PromptPairs
from interp.sweeps.plan import expected_seconds
from interp.sweeps.sweep import plan_sweep, sweep
from interp.text.characters import visible_token
from interp.ui.explorer.pace import Pace
from interp.ui.explorer.scene import CLEAN, Scene, token_ids
from interp.ui.explorer.worker import stoppable, stopping
from interp.ui.views.prompts import attention_layers

if TYPE_CHECKING:
    import pandas as pd

SEQUENCES = 4  # random ones, for the detectors


class Detected:
    """The detectors' scores of a model, kept after the first time, until its weights change."""

    def __init__(self, model: HookedModel) -> None:
        self._model = model
        self._kept: tuple[Any, tuple[pd.DataFrame, Any]] | None = None

    def _weights(self) -> list[tuple[int, int]]:
        """Where the weights are, and how often each was changed in place: in a notebook anybody can."""
        return [(one.data_ptr(), one._version) for one in self._model.parameters()]

    @property
    def known(self) -> bool:
        """Whether the scores need not be computed."""
        return self._kept is not None and self._kept[0] == self._weights()

    def scores(self, stop: threading.Event) -> tuple[pd.DataFrame, Any]:
        """The scores, and which detectors cannot be had, as `measured` gives both."""
        if self._kept is None or not self.known:
            with stopping(self._model, stop):
                found = measured(Material(self._model, None, n=SEQUENCES), LINKED, ["patterns"], progress=False)
            self._kept = (self._weights(), found)
        return self._kept[1]

    @property
    def cut(self) -> str:
        """By what name the pace of the table is known: without the scores it is another."""
        return "table of heads" if self.known else "scores and table of heads"


def _cells(model: HookedModel, scene: Scene) -> tuple[PromptPairs, list[Variant]]:
    """The prompt with its first choice as the answer, and every head zeroed alone."""
    layers = attention_layers(model)
    if not layers:
        raise ConfigError("this model has no attention heads")
    ids = torch.tensor([token_ids(model, scene.prompt, "the prompt")])
    with torch.no_grad():
        first, second = model(ids.to(model.device))[0, -1].topk(2).indices.tolist()
    pairs = PromptPairs.from_tokens(ids.tolist(), answers=[(first, second)]).to(model.device)
    heads = [(layer, head) for layer in layers for head in range(model.cfg.n_heads)]
    places = [{"layer": layer, "head": head} for layer, head in heads]
    return pairs, [Variant([Edit("z", place, "zero")], place) for place in places]


def plan_heads(model: HookedModel, scene: Scene, pace: Pace, detected: Detected) -> dict[str, Any]:
    """What the table will cost."""
    pairs, cells = _cells(model, scene)
    plan = plan_sweep(model, pairs, cells, "log_prob", base=CLEAN, source=CLEAN)
    return {"heads": len(cells), "seconds": pace.expected(detected.cut, expected_seconds(plan, model))}


def table_of_heads(
    model: HookedModel, scene: Scene, pace: Pace, stop: threading.Event, detected: Detected
) -> dict[str, Any]:
    """The table.

    Args:
        model: a model with attention.
        scene: its prompt is what heads matter for; its edits are left out.
        pace: of this server, which learns from it.
        stop: set when nobody waits any more.
        detected: the scores of this server's model.
    """
    pairs, cells = _cells(model, scene)
    options: dict[str, Any] = {"base": CLEAN, "source": CLEAN}
    with pace.timed(detected.cut, expected_seconds(plan_sweep(model, pairs, cells, "log_prob", **options), model)):
        scores, missing = detected.scores(stop)
        frame = sweep(model, pairs, cells, "log_prob", progress=False, executor=stoppable(stop), **options)
    lost = (frame["base_value"] - frame["value"]).to_numpy()
    means = scores.groupby(["detector", "layer", "head"])["effect"].mean()
    there = [name for name in LINKED if (name, "patterns") not in missing]
    heads = list(zip(frame["layer"].astype(int), frame["head"].astype(int), strict=True))
    return {
        "first": visible_token(token_text(model, int(pairs.answers[0][0]))),
        "heads": [Part("head", layer, head).name for layer, head in heads],
        "columns": {name.replace("_", " "): [float(means[name, *place]) for place in heads] for name in there},
        "lost": [float(one) for one in lost],
    }

"""Every way to judge a head: each detector, from each source, with its control.

1. A detector names a job that heads do; a source is the evidence: their patterns on random tokens, their weights
   alone, or their patterns on the prompts of a task.
2. `Material` holds the evidence. Each part is computed once, when it is first needed.
3. `measured` scores all heads in every requested way that this model allows, and says why the others are left out.

Sources: as `interp.heads.from_patterns` and `interp.heads.from_weights`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from interp.arguments import MOST, checked, flag, whole_number
from interp.arguments import seed as check_seed
from interp.errors import InterpError, PromptError, unknown
from interp.heads import from_patterns as head_patterns
from interp.heads import from_weights as head_weights
from interp.hooked.model import HookedModel
from interp.progress import counting
from interp.prompts.pairs import PromptPairs

if TYPE_CHECKING:
    import pandas as pd

DETECTORS = {
    "previous_token": "look at the token before",
    "duplicate_token": "look at an earlier occurrence of the token",
    "induction": "look at what followed an earlier occurrence",
    "copying": "raise the tokens that they read",
    "successor": "raise the next of an ordered list",
}
SOURCES = {"patterns": "random tokens", "weights": "weights alone", "task": "the task's own prompts"}
LINKED = ("previous_token", "duplicate_token", "induction")
"""The detectors that need only the links of a prompt, so that they work on any prompts."""

METRIC_OF = {
    ("copying", "patterns"): "standing",
    ("duplicate_token", "weights"): "standing",
    ("induction", "weights"): "standing",
    ("copying", "weights"): "eigenvalues",
    ("successor", "patterns"): "share",
    ("successor", "weights"): "share",
}
"""The metric of a (detector, source); it is "attention" unless named here."""

DRAWS, SMALL_DRAW, LARGE_DRAW = 8, 64, 512  # draws from the vocabulary, and how many tokens each has
Scores = tuple[Tensor, Tensor | float]
"""Scores [sequence, layer, head], and the control's, which broadcast to the same shape."""


@dataclass(frozen=True)
class Material:
    """What heads are judged on; each part is computed when a detector first needs it."""

    model: HookedModel
    pairs: PromptPairs | None
    n: int = 16
    length: int | None = None
    seed: int = 0
    bos: int | None = None
    effective: bool = True

    def __post_init__(self) -> None:
        numbers: dict[str, Any] = {"n": whole_number("n", self.n, least=1, most=MOST, refuse=PromptError)}
        numbers |= {"seed": check_seed(self.seed), "effective": flag("effective", self.effective)}
        for name, value in numbers.items():
            object.__setattr__(self, name, value)

    @cached_property
    def sequences(self) -> head_patterns.Sequences:
        """Random tokens that occur twice, and their control."""
        return head_patterns.random_sequences(self.model, self.n, length=self.length, seed=self.seed, bos=self.bos)

    @cached_property
    def looks(self) -> dict[str, Scores]:
        """Attention along the links of random tokens; the control is attention at the same places without links."""
        linked = head_patterns.links(self.sequences.repeated)
        value, control = (
            head_patterns.look(self.model, tokens, linked) for tokens in (self.sequences.repeated, self.sequences.fresh)
        )
        even = head_patterns.evenly(linked["previous_token"], causal=self.model.cfg.causal).cpu()[:, None, None]
        return {name: (value[name], even if name == "previous_token" else control[name]) for name in linked}

    @cached_property
    def on_task(self) -> dict[str, Scores]:
        """Attention along the links of the task's prompts; the control is attention spread evenly."""
        assert self.pairs is not None
        scores = head_patterns.of_prompts(self.model, self.pairs)
        return {name: (value, even[:, None, None]) for name, (value, even) in scores.items()}

    @cached_property
    def lists(self) -> dict[str, Tensor]:
        """Ordered lists of single tokens."""
        return head_patterns.ordered_lists(self.model)

    def draws(self, size: int) -> list[Tensor]:
        """Random sets of different tokens [token]; a single one if `size` covers the whole vocabulary."""
        ids = head_patterns.plain_tokens(self.model)
        count = min(self.n, DRAWS) if size < len(ids) else 1
        generator = torch.Generator().manual_seed(self.seed)
        return [ids[torch.randperm(len(ids), generator=generator)[:size]] for _ in range(count)]

    @cached_property
    def previous(self) -> Scores:
        """Attention to the previous position, from weights."""
        length = min(2 * head_patterns.LENGTH, self.model.cfg.n_ctx)
        scores = [
            head_weights.previous_token(self.model, tokens, length=length, effective=self.effective)
            for tokens in self.draws(SMALL_DRAW)
        ]
        return torch.stack(scores), head_weights.even_attention(self.model, length)

    def patterns_of_copying(self) -> Scores:
        """How high heads place the random tokens that they attend to."""
        return head_patterns.copies(self.model, self.sequences), 0.0

    def patterns_of_successor(self) -> Scores:
        """How often heads raise the next word most; prompts take turns through the lists, each in random order."""
        scores, chance = [], []
        for at, ordered in enumerate(self.lists.values()):
            count = len(range(at, self.n, len(self.lists)))
            if count:
                tokens = head_patterns.shuffled_list(self.model, ordered, count, seed=self.seed + at, bos=self.bos)
                scores.append(head_patterns.steps(self.model, tokens, ordered))
                chance += [1 / len(ordered)] * count
        return torch.cat(scores), torch.tensor(chance)[:, None, None]

    def weights_of_duplicate_token(self) -> Scores:
        """Whether queries prefer the key of their own token."""
        scores = [
            head_weights.duplicate_token(self.model, tokens, effective=self.effective)
            for tokens in self.draws(SMALL_DRAW)
        ]
        return torch.stack(scores), 0.0

    def weights_of_induction(self) -> Scores:
        """Whether queries prefer the key of a position to which earlier heads have moved their token."""
        value, even = self.previous
        before = value.mean(0) - even
        scores = [
            head_weights.induction(self.model, tokens, before, effective=self.effective)
            for tokens in self.draws(SMALL_DRAW)
        ]
        return torch.stack(scores), 0.0

    def weights_of_copying(self) -> Scores:
        """Eigenvalues of the map from tokens to their own logits; as control, to the logits of other tokens."""
        draws = self.draws(LARGE_DRAW)
        value, control = (
            torch.stack(
                [
                    head_weights.copying(self.model, tokens, targets=tokens.roll(shift), effective=self.effective)
                    for tokens in draws
                ]
            )
            for shift in (0, 1)
        )
        return value, control

    def weights_of_successor(self) -> Scores:
        """How often OV raises the next word most, for every list."""
        scores = [
            head_weights.successor(self.model, ordered, effective=self.effective) for ordered in self.lists.values()
        ]
        return torch.stack(scores), torch.tensor([1 / len(ordered) for ordered in self.lists.values()])[:, None, None]

    def _of_task(self, name: str) -> Scores:
        return self.on_task[name]

    def ways(self) -> dict[tuple[str, str], Callable[[], Scores]]:
        """How each detector is measured from each source."""
        ways: dict[tuple[str, str], Callable[[], Scores]] = {
            ("previous_token", "patterns"): lambda: self.looks["previous_token"],
            ("previous_token", "weights"): lambda: self.previous,
            ("duplicate_token", "patterns"): lambda: self.looks["duplicate_token"],
            ("duplicate_token", "weights"): self.weights_of_duplicate_token,
            ("induction", "patterns"): lambda: self.looks["induction"],
            ("induction", "weights"): self.weights_of_induction,
            ("copying", "patterns"): self.patterns_of_copying,
            ("copying", "weights"): self.weights_of_copying,
            ("successor", "patterns"): self.patterns_of_successor,
            ("successor", "weights"): self.weights_of_successor,
        }
        if self.pairs is not None:
            ways |= {(name, "task"): partial(self._of_task, name) for name in LINKED}
        return ways


@checked
def measured(
    material: Material, detectors: Sequence[str] | None, sources: Sequence[str] | None, *, progress: bool | None
) -> tuple[pd.DataFrame, dict[tuple[str, str], str]]:
    """Scores of every head in every requested way.

    Args:
        material: what heads are judged on.
        detectors: names of `DETECTORS`; None takes all that this model allows.
        sources: names of `SOURCES`; None takes all that this model allows.
        progress: a bar on stderr; None shows it on a terminal.

    Returns:
        A frame with the columns `detector, source, layer, head, prompt, metric, value, control, effect` (`ssm_head`
        instead of `head` for a model without attention); and (detector, source) -> why, for each one left out.

    Raises:
        UnknownName: a detector or source that does not exist.
        PromptError: a length that the model cannot take.
        InterpError: a requested detector or source cannot be measured here, or none can.
    """
    import pandas as pd

    detectors, sources = (None if names is None else list(names) or None for names in (detectors, sources))
    axis, layers = head_patterns.heads_of(material.model)
    for kind, given, known in (("detector", detectors, DETECTORS), ("source", sources, SOURCES)):
        for name in given or ():
            if name not in known:
                raise unknown(kind, name, known)
    if material.n < 1 or material.length is not None or material.bos is not None:
        _ = material.sequences  # arguments that do not fit are refused here, even if no detector would use them
    ways = {
        (detector, source): way
        for (detector, source), way in material.ways().items()
        if detector in (detectors or DETECTORS) and source in (sources or SOURCES)
    }
    frames, missing = [], {}
    for (detector, source), way in counting(ways.items(), desc="head detectors", unit="score", progress=progress):
        try:
            value, control = way()
        except InterpError as error:
            missing[detector, source] = str(error)
            continue
        named = {"detector": detector, "source": source, "metric": _metric(detector, source)}
        frames.append(_table(value, control, axis, layers).assign(**named))
    done = set(ways) - set(missing)
    # A missing score is an error if it leaves a requested detector or source without any; otherwise it is reported.
    for (detector, source), why in missing.items():
        detector_missing = not any(detector == other for other, _ in done) if sources is None else True
        source_missing = not any(source == other for _, other in done)
        if (detectors and detector_missing) or (sources and source_missing) or not done:
            raise InterpError(f"{detector} heads cannot be judged from {source}: {why}")
    if not done:
        raise InterpError(
            f"nothing to measure: source 'task' needs prompts, and only has the detectors {', '.join(LINKED)}; add "
            "prompts, one of these detectors, or another source"
        )
    columns = ["detector", "source", "layer", axis, "prompt", "metric", "value", "control", "effect"]
    return pd.concat(frames, ignore_index=True)[columns], missing


def _metric(detector: str, source: str) -> str:
    return METRIC_OF.get((detector, source), "attention")


def _table(value: Tensor, control: Tensor | float, axis: str, layers: Sequence[int]) -> pd.DataFrame:
    """Scores [sequence, layer, head] as a frame."""
    import pandas as pd

    controls = torch.as_tensor(control, dtype=torch.float64).expand(value.shape)
    index = torch.cartesian_prod(
        torch.arange(value.shape[0]), torch.tensor(layers, dtype=torch.int64), torch.arange(value.shape[2])
    )
    frame = pd.DataFrame(index.numpy(), columns=["prompt", "layer", axis])
    frame["value"], frame["control"] = value.double().flatten().numpy(), controls.flatten().numpy()
    return frame.assign(effect=frame["value"] - frame["control"])

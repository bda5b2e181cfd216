"""Every way to judge a head: each detector, from each source, with its control.

1. A detector is a job that heads do; a source is what they are judged by: their patterns on random tokens, their
   weights alone, their patterns on the prompts of a task.
2. `Material` holds what they are judged on, made once and when it is first needed.
3. `measured` scores all heads in every way that was asked for and that the model has what is needed for, and says why
   the others are left out.

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
"""What links of any prompt can tell."""

METRICS = {
    ("copying", "patterns"): "standing",
    ("duplicate_token", "weights"): "standing",
    ("induction", "weights"): "standing",
    ("copying", "weights"): "eigenvalues",
    ("successor", "patterns"): "share",
    ("successor", "weights"): "share",
}
"""What a score is: attention, unless named here."""

DRAWS, SMALL_DRAW, LARGE_DRAW = 8, 64, 512
Scores = tuple[Tensor, Tensor | float]
"""Scores [sequence, layer, head], and those of the control, which broadcast to the same."""


@dataclass(frozen=True)
class Material:
    """What heads are judged on; each part is made when a detector needs it."""

    model: HookedModel
    pairs: PromptPairs | None
    n: int = 16
    length: int | None = None
    seed: int = 0
    bos: int | None = None
    effective: bool = True

    def __post_init__(self) -> None:
        settled: dict[str, Any] = {"n": whole_number("n", self.n, least=1, most=MOST, refuse=PromptError)}
        settled |= {"seed": check_seed(self.seed), "effective": flag("effective", self.effective)}
        for name, value in settled.items():
            object.__setattr__(self, name, value)

    @cached_property
    def sequences(self) -> head_patterns.Sequences:
        """Random tokens twice, and their control."""
        return head_patterns.random_sequences(self.model, self.n, length=self.length, seed=self.seed, bos=self.bos)

    @cached_property
    def looks(self) -> dict[str, Scores]:
        """Attention along links of random tokens; that of tokens without links at the same places."""
        linked = head_patterns.links(self.sequences.repeated)
        value, control = (
            head_patterns.look(self.model, tokens, linked) for tokens in (self.sequences.repeated, self.sequences.fresh)
        )
        even = head_patterns.evenly(linked["previous_token"], causal=self.model.cfg.causal).cpu()[:, None, None]
        return {name: (value[name], even if name == "previous_token" else control[name]) for name in linked}

    @cached_property
    def on_task(self) -> dict[str, Scores]:
        """Attention along links of the task's prompts."""
        assert self.pairs is not None
        found = head_patterns.of_prompts(self.model, self.pairs)
        return {name: (value, even[:, None, None]) for name, (value, even) in found.items()}

    @cached_property
    def lists(self) -> dict[str, Tensor]:
        """Ordered lists of single tokens."""
        return head_patterns.ordered_lists(self.model)

    def draws(self, size: int) -> list[Tensor]:
        """Draws of different tokens [token]; one where it is the whole vocabulary."""
        ids = head_patterns.plain_tokens(self.model)
        count = min(self.n, DRAWS) if size < len(ids) else 1
        generator = torch.Generator().manual_seed(self.seed)
        return [ids[torch.randperm(len(ids), generator=generator)[:size]] for _ in range(count)]

    @cached_property
    def previous(self) -> Scores:
        """Attention to the position before, from weights."""
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
        """How often heads raise the next word most, on lists in random order that take turns."""
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
        found = [
            head_weights.duplicate_token(self.model, tokens, effective=self.effective)
            for tokens in self.draws(SMALL_DRAW)
        ]
        return torch.stack(found), 0.0

    def weights_of_induction(self) -> Scores:
        """Whether queries prefer the key of a position that earlier heads told about their token."""
        value, even = self.previous
        before = value.mean(0) - even
        found = [
            head_weights.induction(self.model, tokens, before, effective=self.effective)
            for tokens in self.draws(SMALL_DRAW)
        ]
        return torch.stack(found), 0.0

    def weights_of_copying(self) -> Scores:
        """Eigenvalues of the map from tokens to their logits; as control, to those of other tokens."""
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
        found = [
            head_weights.successor(self.model, ordered, effective=self.effective) for ordered in self.lists.values()
        ]
        return torch.stack(found), torch.tensor([1 / len(ordered) for ordered in self.lists.values()])[:, None, None]

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
    """Scores of every head in every way that was asked for.

    Args:
        material: what heads are judged on.
        detectors: names of `DETECTORS`; None takes all that can be had.
        sources: names of `SOURCES`; None takes all that can be had.
        progress: a bar on stderr; None shows it on a terminal.

    Returns:
        A frame with the columns `detector, source, layer, head, prompt, metric, value, control, effect` (`ssm_head` in
        the place of `head` where the model has no attention); and for what it lacks, (detector, source) -> why.

    Raises:
        UnknownName: a detector or source that does not exist.
        PromptError: a length that the model cannot take.
        InterpError: a detector or source that was asked for and cannot be had, or nothing that can.
    """
    import pandas as pd

    detectors, sources = (None if names is None else list(names) or None for names in (detectors, sources))
    axis, layers = head_patterns.heads_of(material.model)
    for kind, given, known in (("detector", detectors, DETECTORS), ("source", sources, SOURCES)):
        for name in given or ():
            if name not in known:
                raise unknown(kind, name, known)
    if material.n < 1 or material.length is not None or material.bos is not None:
        _ = material.sequences  # what was asked for and cannot be had is refused, whatever else can be measured
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
    had = set(ways) - set(missing)
    for (detector, source), why in missing.items():
        alone = not any(detector == kind for kind, _ in had) if sources is None else True
        lacking = not any(source == other for _, other in had)
        if (detectors and alone) or (sources and lacking) or not had:
            raise InterpError(f"{detector} heads cannot be told from {source}: {why}")
    if not had:
        raise InterpError(f"there are no such scores: the task has those of {', '.join(LINKED)}, and needs prompts")
    columns = ["detector", "source", "layer", axis, "prompt", "metric", "value", "control", "effect"]
    return pd.concat(frames, ignore_index=True)[columns], missing


def _metric(detector: str, source: str) -> str:
    return METRICS.get((detector, source), "attention")


def _table(value: Tensor, control: Tensor | float, axis: str, layers: Sequence[int]) -> pd.DataFrame:
    """Scores [sequence, layer, head] as a frame."""
    import pandas as pd

    beside = torch.as_tensor(control, dtype=torch.float64).expand(value.shape)
    index = torch.cartesian_prod(
        torch.arange(value.shape[0]), torch.tensor(layers, dtype=torch.int64), torch.arange(value.shape[2])
    )
    frame = pd.DataFrame(index.numpy(), columns=["prompt", "layer", axis])
    frame["value"], frame["control"] = value.double().flatten().numpy(), beside.flatten().numpy()
    return frame.assign(effect=frame["value"] - frame["control"])

"""How good is a circuit? Faithfulness at every size, and whether it is complete and minimal.

Let m(C) be the mean over prompts of the metric when everything outside the circuit C is ablated, M the whole model and
∅ the circuit without edges.

1. Faithfulness f(C) = (m(C) - m(∅)) / (m(M) - m(∅)): 1 for the whole model, 0 for no edges; it can lie outside. It is a
   ratio of means and not a mean of ratios, so that prompts on which the ablation changes little do not dominate it. Its
   interval is a percentile bootstrap over prompts. Where m(M) and m(∅) differ by no more than rounding, it does not
   exist (`interp.rounding`), and neither do the measures below.
2. For circuits of growing size let k be the share of all edges that they take (`FRACTIONS`, the sizes of MIB) and f(k)
   their faithfulness. CPR is the area under f(k), CMD the area between f(k) and 1, that is, under |1 - f(k)|; both by
   trapezoids from the smallest to the largest k. CPR (integrated circuit performance ratio) is better the larger it is,
   and can exceed 1 where circuits do more than the model; CMD (integrated circuit-model distance) is best at 0.
3. Completeness: without any part K of the circuit, circuit and model should lose the same; the incompleteness of K is
   |f(C - K) - f(M - K)|. K are random halves of the circuit's nodes (without the embedding), and all of them.
4. Minimality: every node v of the circuit should matter without some K; its score is the largest of
   |f(C - K - v) - f(C - K)| over K = ∅ and random halves.
5. `interp.circuits.circuit.random_circuits` of the same size show how much faithfulness comes from size alone.

A node is removed by ablating every edge that leaves it.

Source: Wang et al. 2022 ("Interpretability in the Wild", section 4); Mueller et al. 2025 ("MIB: A Mechanistic
Interpretability Benchmark", on CPR and CMD in the circuit localisation track).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from interp.arguments import MOST, as_numbers, checked, entries, resamples, share, shown, whole_number
from interp.arguments import seed as check_seed
from interp.attribution.run_values import run_values
from interp.circuits.circuit import Circuit
from interp.circuits.graph import Graph
from interp.circuits.run import run_circuits
from interp.errors import ConfigError, InterpError, UnknownName
from interp.hooked.model import HookedModel
from interp.prompts.pairs import PromptPairs
from interp.rounding import assumed, quotient
from interp.stats import Interval

if TYPE_CHECKING:
    import pandas as pd

Array = np.ndarray[Any, np.dtype[Any]]

FRACTIONS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
"""The shares of all edges at which MIB measures faithfulness."""


@checked
def edge_counts(sizes: str | Sequence[float | str] | None, graph: Graph) -> list[int]:
    """Sizes of circuits as numbers of edges, each once, the smallest first and the whole graph last.

    Args:
        sizes: shares of all edges, below 1, or whole numbers of edges, as a list or as "0.001,0.01,500"; None takes
            `FRACTIONS`.
        graph: all edges.

    Raises:
        ConfigError: a size that is neither.
    """
    listed = sizes.split(",") if isinstance(sizes, str) else FRACTIONS[:-1] if sizes is None else sizes
    if not isinstance(listed, Iterable):
        raise ConfigError(f"sizes must be a list of circuit sizes, such as [0.01, 100], not {shown(sizes)}")
    counts = [graph.n_edges]
    for size in listed:
        try:
            number = -1.0 if isinstance(size, bool) else float(size)
        except (TypeError, ValueError):
            number = -1.0
        whole = 1 <= number <= graph.n_edges and number == int(number)
        if not (whole or 0 <= number < 1):
            raise ConfigError(
                f"{size!r} is not a circuit size: give a share of the edges, such as 0.01, or a number of edges up to "
                f"{graph.n_edges}"
            )
        counts.append(int(number) if whole else int(number * graph.n_edges))
    return sorted(set(counts))


@checked
def faithfulness(
    value: Any,
    full: Any,
    empty: Any,
    *,
    rounding: Any = None,
    confidence: float = 0.95,
    n_resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """Faithfulness of circuits, with percentile bootstrap intervals over prompts.

    Args:
        value: the metric of circuits [..., prompt].
        full: the metric of the whole model on the same prompts [prompt].
        empty: the metric with every edge ablated [prompt].
        rounding: how much rounding alone can change the metric [prompt], as `interp.attribution.run_values.run_values`
            gives it; None assumes that of a float32 logit.
        confidence: the probability with which an interval covers the true value.
        n_resamples: how often prompts are resampled; with the same draws for circuit, model and ablated model.
        seed: of the draws.

    Returns:
        `Interval` of arrays [...]; NaN where the means of the whole and of the ablated model differ by no more than
        rounding (`interp.rounding`); no bounds where that happens in some of the draws, or for a single prompt.

    Raises:
        InterpError: values of different numbers of prompts.

    >>> faithfulness([[1.0, 3.0], [2.0, 4.0]], full=[2.0, 4.0], empty=[0.0, 0.0]).value
    array([0.66666667, 1.        ])
    """
    tails, n_resamples, seed = _tails(confidence), resamples(n_resamples), check_seed(seed)
    circuits, whole, none, errors, n = _checked(value, full, empty, rounding)
    ratio = _ratio(circuits.mean(-1), whole.mean(), none.mean(), errors.mean())
    low = high = np.full(ratio.shape, np.nan)
    if n > 1:
        shares = _resampled(n, n_resamples, seed)
        ratios = _ratio(circuits @ shares.T, shares @ whole, shares @ none, shares @ errors)  # [..., resample]
        low, high = np.quantile(ratios, tails, axis=-1)
    return Interval(ratio, np.full(ratio.shape, n), low, high)


@checked
def areas(
    fractions: Sequence[float] | Array,
    value: Any,
    full: Any,
    empty: Any,
    *,
    rounding: Any = None,
    confidence: float = 0.95,
    n_resamples: int = 2000,
    seed: int = 0,
) -> dict[str, Interval]:
    """`cpr` and `cmd` of circuits of growing size, with percentile bootstrap intervals over prompts.

    Args:
        fractions: the share of all edges that each circuit takes [size].
        value: the metric of the circuits [size, prompt].
        full, empty, rounding, confidence, n_resamples, seed: as in `faithfulness`.

    Returns:
        "cpr" and "cmd", each an `Interval` of single numbers.

    Raises:
        InterpError: as `cpr` and `faithfulness`.
    """
    tails, n_resamples, seed = _tails(confidence), resamples(n_resamples), check_seed(seed)
    circuits, whole, none, errors, n = _checked(value, full, empty, rounding)
    shares = _resampled(n, n_resamples, seed)
    curves = _ratio(circuits @ shares.T, shares @ whole, shares @ none, shares @ errors).T  # [resample, size]
    curve = _ratio(circuits.mean(-1), whole.mean(), none.mean(), errors.mean())  # [size]
    intervals = {}
    for name, area in (("cpr", cpr), ("cmd", cmd)):
        low, high = np.full(2, np.nan)
        if n > 1:
            low, high = np.quantile([area(fractions, row) for row in curves], tails)
        intervals[name] = Interval(np.array(area(fractions, curve)), np.array(n), np.array(low), np.array(high))
    return intervals


def _checked(value: Any, full: Any, empty: Any, rounding: Any) -> tuple[Array, Array, Array, Array, int]:
    """The metric of circuits, whole and ablated model, and its rounding, as arrays; and the number of prompts."""
    given = {"value": value, "full": full, "empty": empty}
    circuits, whole, none = (as_numbers(name, x) for name, x in given.items())
    n = circuits.shape[-1] if circuits.ndim else 0
    if whole.shape != (n,) or none.shape != (n,):
        raise InterpError(
            f"value has {n} prompts, so full and empty must have shape [{n}], not {list(whole.shape)} and "
            f"{list(none.shape)}"
        )
    errors = np.broadcast_to(assumed(whole, none) if rounding is None else as_numbers("rounding", rounding), n)
    return circuits, whole, none, errors, n


def _resampled(n: int, n_resamples: int, seed: int) -> Array:
    """The share of each prompt in each bootstrap sample.  # [resample, prompt]"""
    drawn = np.random.default_rng(seed).integers(n, size=(n_resamples, n))
    return np.stack([np.bincount(row, minlength=n) for row in drawn]) / n


def _tails(confidence: float) -> list[float]:
    """The two quantiles between which an interval lies."""
    confidence = share("confidence", confidence)
    return [(1 - confidence) / 2, (1 + confidence) / 2]


def _ratio(value: Array, full: Any, empty: Any, rounding: Any) -> Array:
    return quotient(value - empty, full - empty, rounding)


def cpr(fractions: Sequence[float] | Array, faithful: Sequence[float] | Array) -> float:
    """The area under the faithfulness of circuits over the share of edges that they take; larger is better.

    By trapezoids, from the smallest to the largest share: over `FRACTIONS`, circuits that are all as good as the model
    have 0.999.

    Raises:
        InterpError: fewer than two shares, or not one faithfulness for each.

    Source: Mueller et al. 2025.

    >>> cpr([0.0, 0.5, 1.0], [0.0, 1.0, 1.0])
    0.75
    """
    at, faithful = _curve(fractions, faithful)
    return float(np.trapezoid(faithful, at))


def cmd(fractions: Sequence[float] | Array, faithful: Sequence[float] | Array) -> float:
    """The area between the faithfulness of circuits and 1, over the share of edges that they take; 0 is best.

    Args, Raises and Source: as `cpr`.

    >>> cmd([0.0, 0.5, 1.0], [0.0, 1.0, 1.0]), cmd([0.0, 1.0], [1.5, 1.5])
    (0.25, 0.5)
    """
    at, faithful = _curve(fractions, faithful)
    return float(np.trapezoid(np.abs(1 - faithful), at))


def _curve(fractions: Sequence[float] | Array, faithful: Sequence[float] | Array) -> tuple[Array, Array]:
    at, values = as_numbers("fractions", fractions), as_numbers("faithful", faithful)
    if at.shape != values.shape or at.ndim != 1 or len(at) < 2:
        raise InterpError(
            "an area needs at least two fractions and one faithfulness for each, not fractions of shape "
            f"{list(at.shape)} and faithfulness of shape {list(values.shape)}"
        )
    order = at.argsort(kind="stable")
    return at[order], values[order]


@checked
def completeness(
    model: HookedModel,
    pairs: PromptPairs,
    circuit: Circuit,
    *,
    draws: int = 5,
    seed: int = 0,
    **options: Any,
) -> pd.DataFrame:
    """What circuit and model have left when the same nodes are removed from both.

    Args:
        model: the model.
        pairs: the prompts.
        circuit: the circuit.
        draws: how many random halves of its nodes to remove.
        seed: of the draws.
        options: further arguments of `run_circuits`: metric, base, ablation, ...

    Returns:
        A row for every part K: `part` (what was removed; in the last row all of the circuit's nodes), `nodes` (how
        many), `circuit` and `model` (faithfulness without them) and `incompleteness` (their difference).

    Raises:
        InterpError: as `run_circuits`.

    Source: Wang et al. 2022, section 4.
    """
    import pandas as pd

    parts = [*halves(circuit, draws, seed=seed), _inner(circuit)]
    whole = (circuit.edges, circuit.graph.allowed)
    masks = torch.stack([without(edges, part) for part in parts for edges in whole])
    both = _faithful(model, pairs, circuit.graph, masks, {**options, "seed": seed}).reshape(len(parts), 2)
    return pd.DataFrame(
        {
            "part": [*(f"random half {at + 1}" for at in range(draws)), "all its nodes"],
            "nodes": [len(part) for part in parts],
            "circuit": both[:, 0],
            "model": both[:, 1],
            "incompleteness": np.abs(both[:, 0] - both[:, 1]),
        }
    )


@checked
def minimality(
    model: HookedModel,
    pairs: PromptPairs,
    circuit: Circuit,
    nodes: Sequence[int] | None = None,
    *,
    draws: int = 1,
    seed: int = 0,
    **options: Any,
) -> pd.DataFrame:
    """How much each node of a circuit matters to it, in the circuit as it is or without random halves of its nodes.

    Args:
        model, pairs, circuit, seed, options: as in `completeness`.
        nodes: indices of the graph's senders; None takes all of the circuit but the embedding.
        draws: how many random halves.

    Returns:
        A row for every node, the least important first: `node` (as figures write it) and `score`, the largest change of
        faithfulness from removing it; a minimal circuit has no score near 0.

    Raises:
        InterpError: as `run_circuits`.

    Source: Wang et al. 2022, section 4.
    """
    import pandas as pd

    n_senders = len(circuit.graph.senders)
    chosen = _inner(circuit) if nodes is None else entries("nodes", nodes, n_senders, refuse=UnknownName)
    parts = [[], *halves(circuit, draws, seed=seed)]
    kept = [without(circuit.edges, part) for part in parts]
    masks = torch.stack([edges for left in kept for edges in (left, *(without(left, [node]) for node in chosen))])
    faithful = _faithful(model, pairs, circuit.graph, masks, {**options, "seed": seed})
    table = faithful.reshape(len(parts), 1 + len(chosen))  # [part, without no node and without each]
    score = np.abs(table[:, 1:] - table[:, :1]).max(0)
    labels = [circuit.graph.senders[at].label for at in chosen]
    return pd.DataFrame({"node": labels, "score": score}).sort_values("score", kind="stable", ignore_index=True)


def least_scored(circuit: Circuit, most: int) -> list[int]:
    """The nodes whose edges in a circuit have the smallest scores, at most so many, as places among the senders.

    They are those that a test of minimality has most reason to doubt; the embedding is none.
    """
    assert circuit.scores is not None
    weight = (circuit.scores.abs().nan_to_num() * circuit.edges).sum(1)[1:]  # [sender]
    weight = weight.masked_fill(~circuit.edges.any(1)[1:], torch.inf)
    chosen: list[int] = (1 + weight.argsort(stable=True)[: min(most, int(weight.isfinite().sum()))]).tolist()
    return chosen


def without(edges: Tensor, senders: Sequence[int]) -> Tensor:
    """Edges without those that leave some nodes.  # [sender, receiver] bool"""
    left = edges.clone()
    if len(senders):
        left[entries("senders", senders, len(edges), refuse=UnknownName)] = False
    return left


@checked
def halves(circuit: Circuit, draws: int, *, seed: int = 0) -> list[list[int]]:
    """Random halves of a circuit's nodes, as indices of the graph's senders: each node is in with probability 1/2.

    The embedding is in none: without it nothing is left of any circuit.
    """
    nodes = np.array(_inner(circuit), dtype=np.int64)
    draws, rng = whole_number("draws", draws, least=0, most=MOST), np.random.default_rng(check_seed(seed))
    return [nodes[rng.random(len(nodes)) < 0.5].tolist() for _ in range(draws)]


def _inner(circuit: Circuit) -> list[int]:
    """The nodes of a circuit without the embedding, as indices of the graph's senders."""
    return [at for at in circuit.edges.any(1).nonzero()[:, 0].tolist() if circuit.graph.senders[at].layer >= 0]


def _faithful(model: HookedModel, pairs: PromptPairs, graph: Graph, masks: Tensor, options: dict[str, Any]) -> Array:
    """Faithfulness of every mask.  # [mask, sender, receiver] -> [mask]"""
    ends = torch.stack([graph.allowed, torch.zeros_like(graph.allowed)])
    full, empty, *values = run_circuits(model, pairs, torch.cat([ends, masks]), graph, **options).numpy()
    sides = {name: options[name] for name in ("metric", "base") if name in options}
    rounding = run_values(model, pairs, **sides).rounding
    return np.asarray(faithfulness(np.stack(values), full, empty, rounding=rounding, n_resamples=1).value)

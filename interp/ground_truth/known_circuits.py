"""Models whose circuit is known by construction, and the exact effect of each of their edges and nodes.

1. A function writes down the steps of an algorithm; `interp.ground_truth.compiler` makes weights from them, and adds
   idle heads and neurons.
2. It draws prompts that need every step. The corrupt side changes in turn what the query asks for, what the keys are,
   or what the values are, so that an interchange affects all steps.
3. `truth` ablates every edge and every node, one at a time, each in a full forward, and measures the effect. It is slow
   and simple on purpose: it shares no code with the engines that it judges.

An edge from something that is the same in both runs, such as a fixed position, rightly has no effect under an
interchange. So the truth depends on the kind of ablation.

Source: Olsson et al. 2022 ("In-context Learning and Induction Heads") for `induction`; Wang et al. 2022
("Interpretability in the Wild", section 3) for `names`.
"""

from __future__ import annotations

import dataclasses
import functools
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from interp.arguments import MOST, checked, real_number, whole_number
from interp.arguments import seed as check_seed
from interp.attribution.run_values import run_values
from interp.circuits.graph import Graph
from interp.errors import check_choice, unknown
from interp.ground_truth.algorithm import Gate, Head, Match, Offset, Read, Step
from interp.ground_truth.compiler import Build, compile_steps
from interp.hooked.hooks import HookPoint
from interp.metrics import Metric, measure
from interp.models.gpt import GPT
from interp.prompts.pairs import PromptPairs
from interp.rounding import quotient
from interp.variants.ablations import replacements

if TYPE_CHECKING:
    import pandas as pd

BOS, END = 0, 1
CONSTANT = Read(None)
DrawnPair = tuple[list[int], list[int], tuple[int, int], dict[str, int]]
"""One pair: clean and corrupt tokens, the right and the wrong answer, roles."""


@dataclass(frozen=True)
class KnownModel:
    """A model whose algorithm is known.

    Attributes:
        name: a key of `KNOWN`.
        model: the model.
        steps: step -> its node, as `interp.circuits.graph` names it. All other heads are idle.
        description: the algorithm in a sentence or two.
        build: how the model was built around the steps.
        draw: makes one pair of prompts, from a generator and the number of the pair, which decides the kind of
            corruption.
    """

    name: str
    model: GPT
    steps: Mapping[str, str]
    description: str
    build: Build
    draw: Callable[[random.Random, int], DrawnPair] = field(repr=False)

    @checked
    def prompts(self, n: int = 24, seed: int = 0) -> PromptPairs:
        """n pairs, with the kinds of corruption in turn; a smaller n gives the first pairs of a larger n."""
        return _pairs(self.name, self.draw, n, check_seed(seed))


def _pairs(name: str, draw: Callable[[random.Random, int], DrawnPair], n: int, seed: int) -> PromptPairs:
    n = whole_number("n", n, least=1, most=MOST)
    rng = random.Random(f"{name} {seed}")
    clean, corrupt, answers, roles = zip(*(draw(rng, number) for number in range(n)), strict=True)
    return PromptPairs.from_tokens(clean, corrupt, answers=answers, roles=roles, name=name, notes={"seed": seed})


def _known(
    name: str,
    steps: Sequence[Step],
    draw: Callable[[random.Random, int], DrawnPair],
    description: str,
    d_vocab: int,
    options: Mapping[str, Any],
) -> KnownModel:
    fields = [option.name for option in dataclasses.fields(Build)]
    for option in options:
        if option not in fields:
            raise unknown("option of a build", option, fields)
    build = Build(**options)
    typical = _pairs(name, draw, 48, seed=-1).clean
    compiled = compile_steps(steps, d_vocab=d_vocab, typical=typical, build=build)
    return KnownModel(name, compiled.model, compiled.nodes, description, build, draw)


def _only(tokens: Sequence[int], d_vocab: int) -> Tensor:
    """A map that keeps some tokens and removes all others.  # [token, token]"""
    kept = torch.zeros(d_vocab, d_vocab)
    kept[tokens, tokens] = 1
    return kept


def _is(tokens: Sequence[int], d_vocab: int, channels: int = 1) -> Tensor:
    """A map that is 1 for some tokens, in every channel.  # [token, channel]"""
    is_one = torch.zeros(d_vocab, channels)
    is_one[list(tokens)] = 1
    return is_one


@checked
def induction(*, sharpness: float = 10.0, **build: Any) -> KnownModel:
    """What followed this token before? A previous-token head feeds an induction head.

    Args:
        sharpness: how far the right key's score is above the others', at least; scores are logits of a softmax.
        build: fields of `interp.ground_truth.compiler.Build`, such as norm="LN" or positions="rotary".
    """
    d_vocab = 14
    sharpness = real_number("sharpness", sharpness, above=0)
    token = Read("token")
    steps = [
        Head("previous", [Offset(1, sharpness)], token, "previous"),
        Head("induction", [Match(token, Read("previous"), sharpness)], token, "output"),
    ]
    says = (
        "Prompts [A][B] ... [C][D] ... [A]. A previous-token head copies A to B's position; the induction head at the "
        "end looks for the position that comes after A and copies the token there, B."
    )
    return _known("induction", steps, functools.partial(_induction_row, d_vocab), says, d_vocab, build)


def _induction_row(d_vocab: int, rng: random.Random, kind: int) -> DrawnPair:
    a, b, c, d, *others = rng.sample(range(1, d_vocab), 9)
    units = [[a, b], [c, d], *([token] for token in others)]
    rng.shuffle(units)
    clean = [BOS, *(token for unit in units for token in unit), a]
    end = len(clean) - 1
    changed = [{end: c}, {clean.index(a): c, clean.index(c): a}, {clean.index(b): d, clean.index(d): b}][kind % 3]
    roles = {"A": clean.index(a), "B": clean.index(b), "C": clean.index(c), "D": clean.index(d), "END": end}
    return clean, _changed(clean, changed), (b, d), roles


@checked
def names(*, sharpness: float = 6.0, **build: Any) -> KnownModel:
    """Who was named once? A duplicate-token detector, an inhibition head and a name mover: a small IOI.

    Rotary positions cannot keep a head from attending to its own token. With these the detector finds a duplicate
    through a previous-token head, as an induction head would.

    Args:
        sharpness, build: as in `induction`.
    """
    d_vocab = 14
    sharpness = real_number("sharpness", sharpness, above=0)
    people = range(6, d_vocab)
    name, is_name = Read("token", _only(people, d_vocab)), Read("token", _is(people, d_vocab))
    at_end = Read("token", _is([END], d_vocab))
    rest = Match(CONSTANT, Read("token", _is([BOS], d_vocab)), sharpness)  # where a head looks if nothing else matches
    steps: list[Step] = []
    if build.get("positions") == "rotary":
        steps.append(Head("previous", [Offset(1, sharpness)], name, "previous"))
        steps.append(
            Head("duplicate", [Match(name, Read("previous"), 2 * sharpness), rest], Read("previous"), "duplicate")
        )
    else:
        elsewhere = Offset(0, -3 * sharpness)
        steps.append(Head("duplicate", [Match(name, name, 2 * sharpness), elsewhere, rest], name, "duplicate"))
    some = Read("duplicate", torch.ones(d_vocab, 1))
    steps += [
        Head("inhibition", [Match(at_end, some, 2 * sharpness), rest], Read("duplicate"), "inhibited"),
        Head(
            "mover", [Match(at_end, is_name, sharpness), Match(Read("inhibited"), name, -2 * sharpness)], name, "output"
        ),
    ]
    says = (
        "Prompts [A] ... [B] ... [A] ... [END] with other tokens between the names. The duplicate detector writes A "
        "where A occurs for the second time; the inhibition head moves that to the end; the name mover there looks at "
        "names other than A and copies B."
    )
    return _known("names", steps, functools.partial(_names_row, d_vocab), says, d_vocab, build)


def _names_row(d_vocab: int, rng: random.Random, kind: int) -> DrawnPair:
    s, io = rng.sample(range(6, d_vocab), 2)
    clean = [BOS, *(rng.randrange(2, 6) for _ in range(8)), END]
    first, second, third = sorted(rng.sample(range(1, 8), 3))  # at least one other token follows the third name
    early = [s, io] if rng.random() < 0.5 else [io, s]
    clean[first], clean[second], clean[third] = *early, s
    changed = [{third: io}, {first: early[1], second: early[0]}, {clean.index(s): io}][kind % 3]
    roles = {"IO": clean.index(io), "S1": clean.index(s), "S2": third, "S2+1": third + 1, "END": len(clean) - 1}
    return clean, _changed(clean, changed), (io, s), roles


@checked
def router(*, sharpness: float = 6.0, **build: Any) -> KnownModel:
    """Which of two paths is used? A switch token decides.

    Args:
        sharpness, build: as in `induction`.
    """
    d_vocab = 16
    sharpness = real_number("sharpness", sharpness, above=0)
    x, y, left, right = 2, 3, 4, 5
    items = range(6, d_vocab)
    item = Read("token", _only(items, d_vocab))
    at_end = Read("token", _is([END], d_vocab))
    rest = Match(CONSTANT, Read("token", _is([BOS], d_vocab)), sharpness)
    switch = _only([x, y], d_vocab)[:, [x, y]]  # [token, 2]

    def after(marker: int) -> list[Match | Offset]:
        return [Match(at_end, Read("previous", _is([marker], d_vocab)), 2 * sharpness), rest]

    def gate(path: str, side: int) -> tuple[Read, Read]:
        return Read(path), Read("switch", torch.eye(2)[:, [side]].expand(2, d_vocab))

    steps: list[Step] = [
        Head("previous", [Offset(1, sharpness)], Read("token", _only([left, right], d_vocab)), "previous"),
        Head(
            "switch",
            [Match(at_end, Read("token", _is([x, y], d_vocab)), 2 * sharpness), rest],
            Read("token", switch),
            "switch",
        ),
        Head("left", after(left), item, "left"),
        Head("right", after(right), item, "right"),
        Gate("gate", [gate("left", 0), gate("right", 1)], "output"),
    ]
    says = (
        "Prompts with [L][A], [R][B] and a switch, [X] or [Y], in any order. One head moves the item after L to the "
        "end, another the item after R, a third the switch; neurons pass on A if the switch is X, and B if it is Y."
    )
    return _known("router", steps, functools.partial(_router_row, d_vocab), says, d_vocab, build)


def _router_row(d_vocab: int, rng: random.Random, kind: int) -> DrawnPair:
    x, y, left, right = 2, 3, 4, 5
    a, b, *others = rng.sample(range(6, d_vocab), 5)
    to_left = rng.random() < 0.5
    units = [[x if to_left else y], [left, a], [right, b], *([token] for token in others)]
    rng.shuffle(units)
    clean = [BOS, *(token for unit in units for token in unit), END]
    at = {token: clean.index(token) for token in (x if to_left else y, left, right, a, b)}
    at_switch = at[x if to_left else y]
    changed = [{at_switch: y if to_left else x}, {at[left]: right, at[right]: left}, {at[a]: b, at[b]: a}][kind % 3]
    roles = {"switch": at_switch, "L": at[left], "A": at[a], "R": at[right], "B": at[b], "END": len(clean) - 1}
    return clean, _changed(clean, changed), (a, b) if to_left else (b, a), roles


def _changed(tokens: Sequence[int], changed: Mapping[int, int]) -> list[int]:
    return [changed.get(at, token) for at, token in enumerate(tokens)]


@dataclass(frozen=True)
class Removable:
    """An activation that can be ablated by itself.

    Attributes:
        name: as `interp.circuits.graph` names senders (`a1.h2`, `m1`, `input`) and heads' inputs (`a1.h2<q>`).
        site: the full name of the site that holds it.
        axis: the site's axis of heads, if it has one.
        head: the index on that axis.
    """

    name: str
    site: str
    axis: str | None = None
    head: int | None = None


def parts(graph: Graph) -> tuple[Removable, ...]:
    """The nodes of a model: the output of every component, and every head's queries, keys and values."""
    nodes = [Removable(node.name, node.site, node.axis, node.head) for node in graph.senders]
    for node in graph.receivers:
        if node.reads is not None:
            site = f"blocks.{node.layer}.attn.hook_{node.reads}"
            nodes.append(Removable(node.name, site, node.axis, node.head))
    return tuple(nodes)


@checked
@torch.no_grad()
def truth(
    known: KnownModel,
    pairs: PromptPairs,
    *,
    ablation: str = "corrupt",
    metric: str | Metric = "logit_diff",
    tolerance: float = 0.1,
    seed: int = 0,
) -> pd.DataFrame:
    """The exact effect of ablating each edge and each node in the clean run, by one full forward each.

    Args:
        known: the model.
        pairs: its prompts.
        ablation: what replaces an ablated activation, a name of `interp.variants.ablations.ABLATIONS`.
        metric: what is measured.
        tolerance: how far an ablation has to move the metric, on average over prompts and as a part of the clean
            metric, to count as changing the output. Idle heads write everywhere, so that few effects are exactly 0.
        seed: of the draws of `resample`.

    Returns:
        A row for each edge and each node (`parts`): `kind`, `name`, `value` (mean over prompts of |metric - clean
        metric|), `effect` (`value` divided by the mean |clean metric|; NaN where that is no more than rounding, see
        `interp.rounding`), `changes` (whether `effect` is above the tolerance).

    Raises:
        UnknownName: an ablation or metric that does not exist.
    """
    import pandas as pd

    tolerance = real_number("tolerance", tolerance, least=0)
    model, graph = known.model, Graph.of(known.model)
    pairs, nodes = pairs.to(model.device), parts(graph)
    mask = pairs.attention_mask
    ablated = replacements(model, pairs, [part.site for part in nodes], ablation, seed=seed)
    _, cache = model.run_with_cache(pairs.clean, names_filter=list(graph.sender_sites), attention_mask=mask)
    change = graph.sent(model, ablated) - graph.sent(model, cache)  # [sender, prompt, pos, d_model]

    def measured(*hooks: tuple[str, Callable[[Tensor, HookPoint], Tensor]]) -> Tensor:
        return measure(metric, model.run_with_hooks(pairs.clean, fwd_hooks=hooks, attention_mask=mask), pairs)

    def add(x: Tensor, hook: HookPoint, term: Tensor, head: int | None) -> Tensor:
        x = x.clone()
        (x if head is None else x[:, :, head]).add_(term)
        return x

    def replace(x: Tensor, hook: HookPoint, head: int | None) -> Tensor:
        new = ablated[hook.name]
        return new if head is None else torch.cat([x[:, :, :head], new[:, :, [head]], x[:, :, head + 1 :]], dim=2)

    clean = measured()
    rounding = float(run_values(model, pairs, metric).rounding.mean())
    rows = []
    for sender, receiver in graph.edges:
        node = graph.receivers[receiver]
        value = measured((node.site, functools.partial(add, term=change[sender], head=node.head)))
        rows.append(("edge", graph.edge_name(sender, receiver), float((value - clean).abs().mean())))
    for part in nodes:
        value = measured((part.site, functools.partial(replace, head=part.head)))
        rows.append(("node", part.name, float((value - clean).abs().mean())))
    frame = pd.DataFrame(rows, columns=["kind", "name", "value"])
    frame["effect"] = quotient(frame["value"], float(clean.abs().mean()), rounding)
    return frame.assign(changes=frame["effect"] > tolerance)


KNOWN: dict[str, Callable[..., KnownModel]] = {"induction": induction, "names": names, "router": router}
"""The functions that make a model whose circuit is known, by name."""

BUILDS: tuple[dict[str, Any], ...] = (
    {},
    {"norm": "LN"},
    {"norm": "RMS", "n_key_value_heads": 2, "positions": "rotary"},
)
"""How the models of every circuit are built, unless others are given."""


def build_models(names: Sequence[str] | None = None, *, seed: int = 0) -> list[KnownModel]:
    """Known models of some circuits, or of all, each as `BUILDS` has it.

    Raises:
        UnknownName: a circuit that is not in `KNOWN`.
    """
    for name in names or ():
        check_choice("known circuit", name, KNOWN)
    return [KNOWN[name](seed=seed, **build) for name in names or KNOWN for build in BUILDS]

"""A compiler from named steps to the weights of a `GPT`: models whose circuit is known by construction.

1. Each step (`interp.ground_truth.algorithm`) goes into the first layer where everything that it reads has been
   written, and there into a head drawn at random.
2. Everything that the residual stream carries (`token`, `position`, what a step writes) gets a subspace of its own, at
   random, orthogonal to all others and to the direction that layer norm removes.
3. A head's score is a sum of terms, each in channels of its own: a match of contents, or the distance to the key.
4. The other heads and neurons are idle: their random weights read and write the whole stream, and are large enough
   that methods have to distinguish them from the steps.
5. Norms get the weight that makes them divide by 1 on average over typical prompts.

Source: the residual stream as shared subspaces is Elhage et al. 2021 ("A Mathematical Framework for Transformer
Circuits"); compiling named operations into weights is Lindner et al. 2023 ("Tracr", section 3).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from interp.arguments import checked, real_number, whole_number
from interp.arguments import seed as check_seed
from interp.config import ModelConfig
from interp.errors import ConfigError, check_choice, unknown
from interp.forward.forward_context import make_context
from interp.ground_truth.algorithm import (
    Gate,
    Head,
    Offset,
    Read,
    Step,
    neurons,
    schedule,
    score_channels,
    width,
    with_positions,
)
from interp.models.gpt import GPT
from interp.names import Part

NORMS = (None, "LN", "RMS")
POSITIONS = ("standard", "rotary")
IDLE = ("idle_heads", "idle_neurons")
ROTARY_DIM, ROTARY_BASE = 16, 6.0  # angles that differ much between neighbours, and so many that they never realign
BALLAST = 2.0  # a constant in the stream of models with norms, so that the scale differs less between positions


@dataclass(frozen=True)
class Build:
    """How a model is built around its steps.

    Args:
        norm: None, "LN" or "RMS".
        n_key_value_heads: a number below that of heads makes grouped-query attention; None gives each head its own.
        positions: "standard" (learned) or "rotary".
        idle_heads: idle heads in the layer with the most steps; the other layers get as many heads in all.
        idle_neurons: idle neurons in every layer. There are MLPs if this is above 0 or some step is a `Gate`.
        idle_size: the size of what an idle head or MLP writes, in units of a token's embedding.
        confidence: logits for each unit in the output's subspace.
        seed: of the subspaces, the heads for steps and the idle weights.

    Raises:
        UnknownName: a norm or kind of positions that does not exist.
        ConfigError: an argument that is not a number, or is out of range.
    """

    norm: str | None = None
    n_key_value_heads: int | None = None
    positions: str = "standard"
    idle_heads: int = 3
    idle_neurons: int = 0
    idle_size: float = 0.2
    confidence: float = 8.0
    seed: int = 0

    def __post_init__(self) -> None:
        check_choice("norm", self.norm, NORMS)
        check_choice("kind of positions", self.positions, POSITIONS)
        numbers: dict[str, float] = {name: whole_number(name, getattr(self, name), least=0) for name in IDLE}
        numbers["idle_size"] = real_number("idle_size", self.idle_size, least=0)
        numbers["confidence"] = real_number("confidence", self.confidence, above=0)
        numbers["seed"] = check_seed(self.seed)
        if self.n_key_value_heads is not None:
            numbers["n_key_value_heads"] = whole_number("n_key_value_heads", self.n_key_value_heads, least=1)
        for name, value in numbers.items():
            object.__setattr__(self, name, value)

    def in_words(self) -> str:
        """How a model is built, in a few words.

        >>> Build().in_words(), Build(norm="RMS", n_key_value_heads=2, positions="rotary").in_words()
        ('no norm', 'RMS norm, grouped queries, rotary')
        """
        norm = {None: "no norm", "LN": "layer norm", "RMS": "RMS norm"}[self.norm]
        grouped = ["grouped queries"] if self.n_key_value_heads is not None else []
        return ", ".join([norm, *grouped, *(["rotary"] if self.positions == "rotary" else [])])


@dataclass(frozen=True)
class Compiled:
    """A model and where its steps are.

    Attributes:
        model: in float32.
        nodes: step -> its node, as `interp.circuits.graph` names it: `a1.h2` for a head, `m1` for an MLP.
        subspaces: name -> orthonormal rows [channel, d_model].
    """

    model: GPT
    nodes: Mapping[str, str]
    subspaces: Mapping[str, Tensor]


@checked
@torch.no_grad()
def compile_steps(
    steps: Sequence[Step], *, d_vocab: int, typical: Tensor, output: str = "output", build: Build | None = None
) -> Compiled:
    """A model that performs the steps, in an order in which each comes after those that it reads from.

    Args:
        steps: the algorithm.
        d_vocab: how many tokens there are, of input and output.
        typical: token ids [batch, pos] such as the model will see; its context is as long as these.
        output: the subspace that is unembedded, of d_vocab channels.
        build: everything else.

    Raises:
        UnknownName: a step reads, or `output` names, a subspace that nothing writes.
        ConfigError: steps that contradict one another, or need more than the build has.
    """
    build = build or Build()
    n_ctx = typical.shape[1]

    # 1. Place the steps in layers.
    sizes = {"token": d_vocab} | ({"constant": 1} if build.norm else {})
    if build.positions == "standard":
        sizes["position"] = n_ctx
        steps = [with_positions(step, n_ctx) for step in steps]
    else:
        _check_offsets(steps)
    stages, sizes = schedule(steps, sizes)
    cfg = _config(stages, sizes, n_ctx, output, build)

    # 2. Give every name a subspace.
    generator = torch.Generator().manual_seed(build.seed)
    subspaces = _subspaces(sizes, cfg.d_model, generator)

    # 4. Make everything idle, and 3. write the steps over it.
    model = GPT(cfg)
    _fill_idle(model, build, generator)
    model.embed.W_E.copy_(subspaces["token"])
    if build.norm:
        model.embed.W_E.add_(BALLAST * subspaces["constant"])
    if "position" in subspaces:
        model.W_pos.copy_(subspaces["position"])
    model.W_U.T.copy_(build.confidence * subspaces[output])
    nodes = _write_steps(model, stages, subspaces, generator)

    # 5. Set the norms.
    _set_norms(model, typical)
    return Compiled(model.requires_grad_(True), {step.name: nodes[step.name] for step in steps}, subspaces)


def _config(
    stages: Sequence[tuple[Step, int]], sizes: Mapping[str, int], n_ctx: int, output: str, build: Build
) -> ModelConfig:
    """The smallest configuration that holds the steps and the idle heads and neurons."""
    if output not in sizes:
        raise unknown("subspace of the output", output, sizes)
    if sizes[output] != sizes["token"]:
        raise ConfigError(
            f"the output subspace {output!r} has {sizes[output]} channels, and needs one for each of the "
            f"{sizes['token']} tokens"
        )
    used = [stage for _, stage in stages]
    most_heads = max(used.count(stage) if stage % 2 == 0 else 0 for stage in used)  # steps in heads of one layer
    kv_heads = build.n_key_value_heads or most_heads + build.idle_heads
    if kv_heads < most_heads:
        raise ConfigError(
            f"n_key_value_heads={kv_heads} is too few: some layer has {most_heads} steps, each of which needs keys of "
            "its own"
        )
    d_mlp = build.idle_neurons + max(sum(neurons(step, sizes) for step, at in stages if at == stage) for stage in used)
    rotary = build.positions == "rotary"
    scores = max(score_channels(step, sizes) for step, _ in stages) + rotary * ROTARY_DIM
    d_head = max([2, scores, *(width(step.value, sizes) for step, _ in stages if isinstance(step, Head))])
    return ModelConfig(
        n_layers=max(used) // 2 + 1,
        d_model=sum(sizes.values()) + 1,  # one more for the direction that layer norm removes
        n_ctx=n_ctx,
        d_head=d_head + d_head % 2,
        d_vocab=sizes["token"],
        n_heads=-(-(most_heads + build.idle_heads) // kv_heads) * kv_heads,  # rounded up to a multiple of kv_heads
        n_key_value_heads=kv_heads,
        attn_only=d_mlp == 0,
        d_mlp=d_mlp or None,
        act_fn="relu",
        normalization_type=build.norm,
        positional_embedding_type=build.positions,
        rotary_dim=ROTARY_DIM if rotary else None,
        rotary_base=ROTARY_BASE,
        seed=build.seed,
        model_name="compiled",
    )


def _check_offsets(steps: Sequence[Step]) -> None:
    """Refuse offsets that rotary positions cannot express."""
    for step in steps:
        offsets = [term for term in step.score if isinstance(term, Offset)] if isinstance(step, Head) else []
        if len(offsets) > 1 or any(offset.strength < 0 for offset in offsets):
            raise ConfigError(
                f"step {step.name!r}: with positions='rotary' a head can have one Offset, of positive strength; "
                "positions='standard' allows any"
            )


def _subspaces(sizes: Mapping[str, int], d_model: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Name -> orthonormal rows [channel, d_model], all orthogonal to each other and to (1, ..., 1)."""
    directions = torch.randn(d_model, d_model, generator=generator, dtype=torch.float64)
    directions[:, 0] = 1.0
    rows = torch.linalg.qr(directions).Q.T[1:].float()
    return dict(zip(sizes, rows.split(list(sizes.values())), strict=True))


def _fill_idle(model: GPT, build: Build, generator: torch.Generator) -> None:
    """Random weights everywhere, so that scores are about 1 and outputs about `idle_size`."""
    cfg = model.cfg
    # The stream at a position holds a token and its position, or what a step wrote: a norm of sqrt(2), plus ballast.
    unit = 1 / math.sqrt(2 + BALLAST**2 if build.norm else 2)

    def draw(weight: Tensor, std: float) -> None:
        weight.copy_(std * torch.randn(weight.shape, generator=generator))

    for layer in range(cfg.n_layers):
        block, attn = model.block(layer), model.attention(layer)
        draw(attn.W_Q, unit)
        draw(attn.W_K, unit)
        draw(attn.W_V, unit / math.sqrt(cfg.d_head))
        draw(attn.W_O, build.idle_size / math.sqrt(cfg.d_model))
        if block.mlp is not None and cfg.d_mlp is not None:
            draw(block.mlp.W_in, unit)  # half of the neurons fire
            draw(block.mlp.W_out, build.idle_size * math.sqrt(2 / cfg.d_model / cfg.d_mlp))


def _write_steps(
    model: GPT, stages: Sequence[tuple[Step, int]], subspaces: Mapping[str, Tensor], generator: torch.Generator
) -> dict[str, str]:
    """Write every step over idle weights; step -> its node."""
    cfg, nodes = model.cfg, {}
    for layer in range(cfg.n_layers):
        heads = [step for step, stage in stages if isinstance(step, Head) and stage == 2 * layer]
        kv_heads = torch.randperm(cfg.n_kv_heads, generator=generator)[: len(heads)].tolist()  # one for each step
        group = cfg.n_heads // cfg.n_kv_heads
        for step, kv_head in zip(heads, kv_heads, strict=True):
            head = kv_head * group + int(torch.randint(group, (1,), generator=generator))
            _write_head(model, step, layer, head, kv_head, subspaces)
            nodes[step.name] = Part("head", layer, head).node
        first = 0
        for gate in [step for step, stage in stages if isinstance(step, Gate) and stage == 2 * layer + 1]:
            first = _write_gate(model, gate, layer, first, subspaces)
            nodes[gate.name] = Part("mlp", layer).node
    return nodes


def _of_stream(read: Read, subspaces: Mapping[str, Tensor]) -> Tensor:
    """The weights with which a step reads from the stream.  # [d_model, channel]"""
    assert read.name is not None
    rows = subspaces[read.name].T
    return rows if read.map is None else rows @ read.map


def _write_head(model: GPT, step: Head, layer: int, head: int, kv_head: int, subspaces: Mapping[str, Tensor]) -> None:
    """Replace a head's idle weights with those of a step."""
    attn, cfg = model.attention(layer), model.cfg
    assert cfg.attn_scale is not None
    for weight, at in ((attn.W_Q, head), (attn.W_K, kv_head), (attn.W_V, kv_head), (attn.W_O, head)):
        weight[at] = 0
    first, sizes = cfg.rotary_dim or 0, {name: len(rows) for name, rows in subspaces.items()}
    for term in step.score:
        if isinstance(term, Offset):
            attn.b_Q[head], attn.b_K[kv_head] = _offset_biases(model, term)
            continue
        size = math.sqrt(abs(term.strength) * cfg.attn_scale)  # its square is the term's strength
        sign = math.copysign(1.0, term.strength)
        stop = first + width(term.key, sizes)
        for weight, bias, at, read, factor in (
            (attn.W_Q, attn.b_Q, head, term.query, sign * size),
            (attn.W_K, attn.b_K, kv_head, term.key, size),
        ):
            if read.name is None:
                bias[at, first:stop] = factor
            else:
                weight[at, :, first:stop] = factor * _of_stream(read, subspaces)
        first = stop
    value = _of_stream(step.value, subspaces)  # [d_model, channel]
    attn.W_V[kv_head, :, : value.shape[1]] = value
    attn.W_O[head, : value.shape[1]] = subspaces[step.writes]


def _offset_biases(model: GPT, offset: Offset) -> tuple[Tensor, Tensor]:
    """Biases of a query and a key [d_head] whose product, once rotated by their positions, peaks at an offset.

    With the query's bias rotated back by `back` positions, the product is the sum over pairs of channels, each with its
    angle a position, of cos(angle (distance - back)).
    """
    cfg = model.cfg
    assert cfg.rotary_dim is not None and cfg.attn_scale is not None
    attn = model.attention(0)
    context = make_context(cfg, cfg.n_ctx, n_past=0, attention_mask=None, device=model.device, dtype=model.dtype)
    sight = context.sights[attn.kind]
    n_pairs = cfg.rotary_dim // 2
    key = torch.zeros(1, cfg.n_ctx, 1, cfg.d_head)
    key[..., :n_pairs] = 1  # each pair of channels (a, b) is (1, 0)
    rotated = attn.rotate(key, sight)[0, :, 0]  # [pos, d_head]: the same vector at every position
    profile = rotated @ rotated[0] / n_pairs  # [distance from the peak]: the product, as a part of that at the peak
    others = [abs(distance - offset.back) for distance in range(cfg.n_ctx) if distance != offset.back]
    # The peak must be `strength` above the second largest product.
    size = math.sqrt(offset.strength * cfg.attn_scale / n_pairs / float(1 - profile[others].max()))
    query = rotated[offset.back].clone()
    query[n_pairs : cfg.rotary_dim].neg_()  # rotated back rather than forward
    return size * query, size * key[0, 0, 0]


def _write_gate(model: GPT, step: Gate, layer: int, first: int, subspaces: Mapping[str, Tensor]) -> int:
    """Replace idle neurons, from `first` on, with those of a step; returns the first that is still idle."""
    mlp = model.block(layer).mlp
    assert mlp is not None
    for group in step.groups:
        reads = torch.stack([_of_stream(read, subspaces) for read in group]).sum(0)  # [d_model, channel]
        own = slice(first, first := first + reads.shape[1])
        mlp.W_in[:, own] = reads
        mlp.b_in[own] = 0.5 - len(group)  # with all of the group the neuron is at 0.5, with one missing below 0
        mlp.W_out[own] = 2 * subspaces[step.writes]
    return first


def _set_norms(model: GPT, typical: Tensor) -> None:
    """Give every norm the weight that undoes its average scale at the last position of typical prompts."""
    for name in [name for name in model.hook_dict if name.endswith("hook_scale")]:
        _, cache = model.run_with_cache(typical, names_filter=[name])
        path = name.removesuffix(".hook_scale")
        model.get_parameter(f"{path}.w").fill_(float(cache[name][:, -1].mean()))

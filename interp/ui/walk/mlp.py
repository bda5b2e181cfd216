"""The step of an MLP: its strongest neurons and what they promote, or the experts that the router chooses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from interp.models.derivations import LayerRun
from interp.models.layers import MLP
from interp.ui.walk.drawn import Cell, Item, Piece, after, size, step, table
from interp.ui.walk.run import Run

MOST_NEURONS = 8
MOST_EXPERTS = 16


def steps(run: Run) -> list[dict[str, Any]]:
    """What the MLP of this layer, its mixture of experts, or that of its shared block does at this position."""
    if run.has("mlp.hook_router_scores"):
        return [_experts(run)]
    return [_neurons(run)] if run.has("mlp.hook_post") else []


def _neurons(run: Run) -> dict[str, Any]:
    post, pre = run.at("mlp.hook_post").float(), run.at("mlp.hook_pre").float()
    sizes, rows = post.abs(), _outputs(run)
    if rows is not None:
        sizes = sizes * rows.norm(dim=-1)  # how much each neuron adds
    order = sizes.topk(min(MOST_NEURONS, len(sizes))).indices.tolist()
    active = int((post.abs() > 0.1 * post.abs().max()).sum())
    text: list[Piece] = [
        f"The MLP looks at this position alone. It has {len(post):,} neurons: each compares what it reads with a "
        f"pattern, and the better the fit, the more it adds to the stream. Here {active:,} of them "
        f"{'is' if active == 1 else 'are'} above a tenth of the strongest.",
    ]
    if run.has("mlp.hook_pre_linear"):
        text.append(" A neuron’s activation is the activation function of its input, times a second input.")
    heads = ["neuron", "input", *(["second input"] if run.has("mlp.hook_pre_linear") else []), "activation"]
    listed: list[list[Cell]] = [[f"{at}", float(pre[at])] for at in order]
    for row, at in zip(listed, order, strict=True):
        if run.has("mlp.hook_pre_linear"):
            row.append(float(run.at("mlp.hook_pre_linear")[at]))
        row.append(float(post[at]))
        if rows is not None:
            row.append(float(sizes[at]))
            if run.can_promote and not run.cfg.shares(run.layer):
                row.append(run.promotes(_added(run, post[at] * rows[at])))
    if rows is not None:
        heads += ["length of what it adds"]
        heads += ["raises most"] if run.can_promote and not run.cfg.shares(run.layer) else []
    drawn = table(f"The {len(order)} neurons that add most", heads, listed)
    return step("mlp", "MLP", [*text, *_whole(run)], drawn, _told(run))


def _outputs(run: Run) -> Tensor | None:
    """What one unit of each neuron adds [neuron, d_model]."""
    mlp = None if run.block is None else run.block.mlp
    return mlp.W_out.float() if isinstance(mlp, MLP) else None


def _added(run: Run, vector: Tensor) -> Tensor:
    """A part of what the MLP makes, as it is added to the stream."""
    assert run.block is not None
    scale = run.at("ln2_post.hook_scale") if run.has("ln2_post.hook_scale") else None
    return run.block.mlp_results(vector[None], scale)[0]


def _whole(run: Run) -> list[Piece]:
    if not run.has("hook_mlp_out"):
        return []
    return [" Together they add a vector of length ", size(run.at("hook_mlp_out")), "."]


def _told(run: Run) -> Item | None:
    if not (run.has("hook_mlp_out") and run.can_promote):
        return None
    return after(run.promotes(run.at("hook_mlp_out").float()), "Read off directly, the MLP speaks")


def _experts(run: Run) -> dict[str, Any]:
    scores, weights = run.at("mlp.hook_router_scores").float(), run.at("mlp.hook_expert_weights").float()
    chosen = run.at("mlp.hook_expert_indices").tolist()
    text: list[Piece] = [
        f"In place of one MLP there are {len(scores)} (experts). A router gives each a score, and this position goes "
        f"to the best {len(chosen)} alone: {', '.join(map(str, chosen))}. Their outputs, each times its weight,"
        " are added.",
    ]
    if run.has("mlp.hook_shared_out"):
        text += [" A shared expert beside them adds a vector of length ", size(run.at("mlp.hook_shared_out")), "."]
    made = _each(run)  # [expert, d_model]
    others = [at for at in scores.argsort(descending=True).tolist() if at not in chosen]
    rows: list[Sequence[Cell]] = []
    for at in [*chosen, *others][: max(MOST_EXPERTS, len(chosen))]:
        row: list[Cell] = [f"{at}", float(scores[at]), float(weights[at]) if at in chosen else "not chosen"]
        if made is not None:
            row.append(float(made[at].norm()) if at in chosen else None)
            if run.can_promote:
                row.append(run.promotes(made[at]) if at in chosen else None)
        rows.append(row)
    heads = ["expert", "score", "weight"]
    heads += ["length of what it adds"] * (made is not None)
    heads += ["raises most"] * (made is not None and run.can_promote)
    drawn = table("Experts, those that were chosen first", heads, rows)
    return step("mlp", "Mixture of experts", [*text, *_whole(run)], drawn, _told(run))


def _each(run: Run) -> Tensor | None:
    """What every expert adds to the stream at this position, times its weight.  # [expert, d_model]"""
    if run.block is None:
        return None
    here, at = f"blocks.{run.layer}.", slice(run.position, run.position + 1)
    own = {name: run.cache[name][:, at] for name in run.cache if name.startswith(here) and "hook_pattern" not in name}
    made = LayerRun(run.cfg, run.layer, run.block, own, None).expert_out()  # [1, 1, expert, d_model]
    if made is None:
        return None
    scale = own.get(f"{here}ln2_post.hook_scale")
    return run.block.mlp_results(made[0, 0], None if scale is None else scale[0, 0]).float()

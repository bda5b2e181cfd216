"""On a device the numbers are those of the CPU, and nothing lies where it does not belong.

`--device` says which: "cuda" where there is a GPU, else "far" (`far_device.py`), which refuses what a GPU would refuse.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any
from unittest import mock

import pytest
import torch
from far_device import FAR, counts, far_device
from makers import KINDS, RECURRENT, compare, make, make_pairs
from recurrences import DUAL, SELECTIVE, Family
from torch import Tensor

from analyses import (
    ablation,
    activation_patching,
    attention_patterns,
    attribution_patching,
    circuit,
    edge_attribution,
    head_attribution,
    logit_lens,
    path_patching,
)
from interp import metrics
from interp.circuits import edge_scores
from interp.circuits.graph import Graph
from interp.circuits.run import run_circuits
from interp.edits import Edit, Variant
from interp.hooked.past import PastKeyValues
from interp.lenses.training import train
from interp.models.gpt import GPT
from interp.prompts.pairs import PromptPairs
from interp.sites import site_names
from interp.state_space import scan
from interp.state_space import scan_kernel as recurrence
from interp.sweeps import machine
from interp.sweeps.sweep import sweep
from interp.variants.ablations import replacements

every_kind = pytest.mark.parametrize("kind", [*KINDS, *RECURRENT])
WITHIN = 2e-5  # of the largest value


@pytest.fixture
def device(request: pytest.FixtureRequest) -> Iterator[torch.device]:
    name = request.config.getoption("--device")
    with far_device() if name == "far" else nullcontext():
        yield FAR if name == "far" else torch.device(name)


def near(found: Any, expected: Tensor) -> None:
    """That a value on a device is the CPU's."""
    value, expected = found.detach().cpu(), expected.detach()
    assert value.shape == expected.shape and value.dtype == expected.dtype
    same = torch.isclose(value, expected, rtol=0, atol=WITHIN * max(1.0, _largest(expected)), equal_nan=True)
    assert bool(same.all()), float((value - expected).abs().nan_to_num().max())


def _largest(value: Tensor) -> float:
    finite = value[value.isfinite()] if value.is_floating_point() else value.float()
    return float(finite.abs().max()) if finite.numel() else 0.0


def needs_gradients(device: torch.device) -> None:
    if device == FAR:
        pytest.skip("torch does not differentiate on the far device: --device cuda or cpu")


def both(kind: str, device: torch.device) -> tuple[GPT, GPT]:
    model = make(kind)
    return model, copy.deepcopy(model).to(device)


@every_kind
def test_a_forward(kind: str, device: torch.device) -> None:
    model, there = both(kind, device)
    pairs = make_pairs((7, 4, 6))
    logits = there(pairs.clean, attention_mask=pairs.mask)
    assert logits.device.type == device.type and there.device.type == device.type
    near(logits, model(pairs.clean, attention_mask=pairs.mask))
    if model.cfg.d_vocab_out == model.cfg.d_vocab:
        near(there(pairs.clean, return_type="loss"), model(pairs.clean, return_type="loss"))
    near(there(pairs.clean.to(device).flip(1)), model(pairs.clean.flip(1)))
    for name in ("W_E", "W_U", "b_U", *(("W_pos",) if model.pos_embed is not None else ())):
        near(getattr(there, name), getattr(model, name))
        assert getattr(there, name).device.type == device.type


@every_kind
def test_a_cache_of_every_site(kind: str, device: torch.device) -> None:
    model, there = both(kind, device)
    names = list(site_names(model.cfg))
    pairs = make_pairs((7, 4, 6))
    kept = [m.run_with_cache(pairs.clean, names_filter=names, attention_mask=pairs.mask)[1] for m in (model, there)]
    plain = there.run_with_cache(pairs.clean, attention_mask=pairs.mask)[1]
    for name in names:
        near(kept[1][name], kept[0][name])
        near(plain[name], kept[0][name])  # derived from what was kept
        assert kept[1][name].device.type == plain[name].device.type == device.type
    near(kept[1].accumulated_resid(apply_ln=True), kept[0].accumulated_resid(apply_ln=True))
    near(kept[1].logit_attrs(kept[1].decompose_resid(), 3, 5), kept[0].logit_attrs(kept[0].decompose_resid(), 3, 5))


@every_kind
def test_hooks(kind: str, device: torch.device) -> None:
    model, there = both(kind, device)
    tokens = make_pairs((6, 6)).clean
    names = [name for name in site_names(model.cfg) if not name.endswith("mixer.hook_pattern")]  # beside its states
    same = there.run_with_hooks(tokens, fwd_hooks=[(names, lambda value, hook: value)])
    near(same, there(tokens).cpu())


@every_kind
def test_gradients(kind: str, device: torch.device) -> None:
    needs_gradients(device)
    model, there = both(kind, device)
    tokens = make_pairs((6, 6)).clean
    names = [name for name in site_names(model.cfg) if not model.hook_dict[name].site.on_demand]
    kept = []
    for m in (there, model):
        m.requires_grad_(True)
        kept.append(m.run_with_cache(tokens, return_type="logits", names_filter=names, detach=False))
    for name in names:
        if not kept[1][1][name].requires_grad:
            continue
        slopes = [torch.autograd.grad(logits[:, -1, 1].sum(), cache[name], retain_graph=True, allow_unused=True)[0]
                  for logits, cache in kept]  # fmt: skip
        assert (slopes[0] is None) == (slopes[1] is None)
        if slopes[1] is not None:
            near(*slopes)


@every_kind
def test_earlier_positions(kind: str, device: torch.device) -> None:
    model, there = both(kind, device)
    if not model.cfg.causal:
        pytest.skip("a bidirectional model has no earlier positions")
    tokens = make_pairs((7, 7)).clean
    past = PastKeyValues(model.cfg.n_layers)
    with torch.no_grad():
        if not model.cfg.turns_by_length:  # such a model is refused earlier positions
            parts = [there(tokens[:, at], past_kv_cache=past) for at in (slice(0, 3), slice(3, 4), slice(4, 7))]
            near(torch.cat([part.cpu() for part in parts], dim=1), model(tokens))
        made = [m.generate(tokens, 4, do_sample=False) for m in (model, there)]
    assert made[0].tolist() == made[1].cpu().tolist()


@every_kind
def test_sweeps(kind: str, device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    model, there = both(kind, device)
    for where in ("cpu", device.type):
        monkeypatch.setitem(machine.ROWS, where, 200)  # some chunks
    pairs = make_pairs((6, 4, 6), shared=2)
    variants = [Variant([Edit(name)], {"name": name}) for name in site_names(model.cfg)]
    variants += [
        Variant([Edit("resid_post", {"layer": 0, "pos": "middle"}, op, source)], {"name": op})
        for op, source in (("scale", 0.5), ("zero", None), ("mean", None), ("add", 0.25), ("add", "source"))
    ]
    variants.append(
        Variant([Edit("resid_post", {"layer": 1}, source=lambda value, hook: value.flip(0))], {"name": "f"})
    )
    frames = [sweep(m, pairs, variants, progress=False) for m in (there, model)]
    for column in ("value", "base_value", "source_value"):
        near(*(torch.tensor(frame[column].to_numpy()) for frame in frames))


def test_sweeps_are_full_forwards_on_the_device(device: torch.device) -> None:
    for kind in ("llama_gqa", "hybrid"):
        _, there = both(kind, device)
        pairs = make_pairs((6, 4), shared=1)
        variants = [Variant([Edit(name)], {"name": name}) for name in site_names(there.cfg)]
        compare(there, pairs, variants, "corrupt", "clean")


def test_every_metric(device: torch.device) -> None:
    model, there = both("gpt2", device)
    pairs = make_pairs((6, 4))
    whole = metrics.Metric("two", lambda logits, pairs: logits[:, 0, 0] - logits[:, 1, 1], "", "", whole=True,
                           positions=(0, -1), tokens=(3, 4))  # fmt: skip
    for metric in (*metrics.METRICS, whole, lambda logits, pairs: logits[:, 0, pairs.answers[0, 0]]):
        frames = [sweep(m, pairs, [Variant([Edit("resid_mid", {"layer": 0})])], metric, progress=False)
                  for m in (there, model)]  # fmt: skip
        near(*(torch.tensor(frame["value"].to_numpy()) for frame in frames))


def test_somebodys_hooks_in_a_sweep(device: torch.device) -> None:
    model, there = both("gpt2", device)
    pairs, variants = make_pairs((6, 4)), [Variant([Edit("z", {"layer": 1, "head": head})]) for head in range(4)]
    values = []
    for m in (there, model):
        with m.hooks([("blocks.0.hook_mlp_out", lambda value, hook: 0.5 * value)]):
            values.append(torch.tensor(sweep(m, pairs, variants, progress=False)["value"].to_numpy()))
    near(*values)


STUDIES: dict[str, dict[str, Any]] = {
    "ablation": {},
    "activation_patching": {},
    "attention_patterns": {},
    "attribution_patching": {},
    "circuit": {"sizes": [3]},
    "edge_attribution": {},
    "head_attribution": {},
    "logit_lens": {},
    "path_patching": {"receivers": "logits"},
}
MODULES = (ablation, activation_patching, attention_patterns, attribution_patching, circuit, edge_attribution,
           head_attribution, logit_lens, path_patching)  # fmt: skip


@pytest.mark.parametrize("study", MODULES, ids=lambda module: module.__name__.rpartition(".")[2])
def test_studies(study: Any, device: torch.device) -> None:
    name = study.__name__.rpartition(".")[2]
    if name in ("attribution_patching", "circuit", "edge_attribution"):
        needs_gradients(device)
    options = STUDIES[name]
    model, there = both("llama_gqa", device)
    pairs = make_pairs((6, 4, 6), shared=1)
    frames = [study.run(m, pairs, **options) for m in (there, model)]
    assert len(frames[0]) == len(frames[1])
    near(*(torch.tensor(frame["value"].to_numpy(dtype="float64")) for frame in frames))


@pytest.mark.parametrize("kind", ["gpt2", "llama_gqa"])
def test_circuits_and_edges(kind: str, device: torch.device) -> None:
    model, there = both(kind, device)
    pairs, graph = make_pairs((6, 4), shared=1), Graph.of(model)
    masks = torch.rand(3, *graph.allowed.shape, generator=torch.Generator().manual_seed(0)) < 0.5
    near(*(run_circuits(m, pairs, masks & graph.allowed, graph) for m in (there, model)))
    if device != FAR:
        near(*(edge_scores.eap(m, pairs, graph).nan_to_num() for m in (there, model)))
    near(*(replacements(m, pairs, ["blocks.0.attn.hook_z"], "mean")["blocks.0.attn.hook_z"] for m in (there, model)))


def test_a_tuned_lens(device: torch.device) -> None:
    needs_gradients(device)
    model, there = both("llama", device)
    tokens = torch.randint(29, (12, 16), generator=torch.Generator().manual_seed(0))
    lenses = [train(m, tokens, steps=2, batch=4, length=16, holdout=4, progress=False) for m in (there, model)]
    near(lenses[0].A, lenses[1].A)


@pytest.mark.parametrize("mamba", [SELECTIVE, DUAL], ids=["selective", "dual"])
@pytest.mark.parametrize("few", [False, True])
def test_scans(mamba: Family, few: bool, device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    if few:
        monkeypatch.setattr(scan, "CHUNK", 3)
        for name in ("GROUP", "CACHED", "BLOCK"):
            monkeypatch.setattr(recurrence, name, 40)
    parts = mamba.draw(batch=3, pos=11)
    there = {name: part.to(device).requires_grad_() for name, part in parts.items()}
    here = {name: part.clone().requires_grad_() for name, part in parts.items()}
    (y, last), (expected, states) = mamba.scan(**there), mamba.loop(**here)
    near(y, expected)
    near(last, states[:, -1])
    found = mamba.states(**{name: part for name, part in there.items() if name != "C"})
    near(found, states)
    near(mamba.read(found, there["C"]), expected)
    arguments = [parts[name] for name in ("delta", "A", "B", "C")]
    near(mamba.pattern(*(part.to(device) for part in arguments)), mamba.pattern(*arguments))
    if device == FAR:
        return
    slopes = [
        torch.autograd.grad((value**2).sum() + (end**3).sum(), [*given.values()])
        for value, end, given in ((y, last, there), (expected, states[:, -1], here))
    ]
    for one, other in zip(*slopes, strict=True):
        near(one, other)


def test_a_device_refuses_what_lies_on_another(device: torch.device) -> None:
    one, other = torch.ones(3, device=device), torch.ones(3)
    for mix in (lambda: one + other, lambda: torch.cat((one, other)), lambda: other[one.long()]):
        with pytest.raises(RuntimeError, match=r"device|cpu"):
            mix()
    assert (one * torch.tensor(2.0)).cpu().tolist() == [2.0] * 3 and one[torch.tensor([1])].device.type == device.type


def test_memory_that_torch_holds_for_later_counts_as_free() -> None:
    with (
        mock.patch.object(torch.cuda, "mem_get_info", lambda device: (1000, 5000)),
        mock.patch.object(torch.cuda, "memory_reserved", lambda device: 3000),
        mock.patch.object(torch.cuda, "memory_allocated", lambda device: 500),
    ):
        assert machine.free_memory(torch.device("cuda")) == int(machine.SHARE["cuda"] * (1000 + 2500))


def test_a_chunk_waits_for_the_device_a_few_times_only() -> None:
    """A wait costs a GPU as much as a small layer: their number must not grow with layers."""
    found = []
    for n_layers in (3, 9):
        with far_device():
            model = make("llama_gqa", n_layers=n_layers).to(FAR)
            pairs = make_pairs((6, 6)).to(FAR)
            variants = [Variant([Edit("resid_pre", {"layer": layer})]) for layer in (0, 2)]
            counts.clear()
            sweep(model, pairs, variants, progress=False)
            found.append(counts["waits"])
    assert found[0] == found[1]


def test_pairs_move_as_a_whole(device: torch.device) -> None:
    pairs = make_pairs((6, 4))
    there = pairs.to(device)
    assert isinstance(there, PromptPairs) and there.clean.device.type == device.type
    assert there[1].digest() == pairs[1].digest() and there.lengths.tolist() == [6, 4]

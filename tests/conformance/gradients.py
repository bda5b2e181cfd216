"""Gradients: of activations against finite differences, of weights against transformers'."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

import interp

from .cell import Cell, difference, holds
from .subject import Subject, inputs, of_theirs

GRADIENTS = 5e-5  # of the largest entry, in float64: transformers computes norms and softmax in float32 at any rate
STEP = 1e-6  # small enough not to cross the kinks of clamped or rectified values
KINDS = ("hook_resid_pre", "attn.hook_z", "mixer.hook_gated", "mlp.hook_post")


def measure(logits: Tensor) -> Tensor:
    """A difference of two logits at the last position of each prompt."""
    return (logits[:, -1, 3] - logits[:, -1, 5]).sum()


def activations(subject: Subject) -> float:
    """Slopes along a random direction at sites of every layer, by backward and by central differences."""
    ours, tokens = subject.wide.ours, subject.tokens(2, 7)
    names = [name for name in ours.hook_dict if name.endswith(KINDS)]
    given = inputs(ours, tokens)
    logits, cache = ours.run_with_cache(*given, names_filter=names, detach=False)
    slopes = torch.autograd.grad(measure(logits), [cache[name] for name in names])
    generator = torch.Generator().manual_seed(4)
    found = []
    for name, slope in zip(names, slopes, strict=True):
        direction = torch.randn(slope.shape, generator=generator, dtype=slope.dtype)
        with torch.no_grad():
            ends = [
                measure(ours.run_with_hooks(*given, fwd_hooks=[(name, lambda x, hook, d=d: x + d)]))
                for d in (STEP * direction, -STEP * direction)
            ]
        along, expected = (slope * direction).sum(), (ends[0] - ends[1]) / (2 * STEP)
        found.append(float((along - expected).abs() / (slope * direction).abs().sum().clamp(min=1e-9)))
    return max(found)


def weights(subject: Subject) -> float:
    """Every weight's gradient; theirs are put in place of their weights and loaded, as weights are."""
    theirs, ours, tokens = subject.wide.theirs, subject.wide.ours, subject.tokens(2, 7)
    theirs.zero_grad(), ours.zero_grad()
    measure(of_theirs(theirs, tokens)).backward()
    measure(ours(*inputs(ours, tokens))).backward()
    # A weight may be stored with an offset: what zeros are loaded as is taken away.
    slopes, nothing, ones = (loaded(theirs, fill) for fill in (None, 0.0, 1.0))
    found = []
    for name, parameter in ours.named_parameters():
        if torch.equal(nothing[name], ones[name]):
            continue  # a constant of theirs
        own = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        found.append(difference(own, slopes[name] - nothing[name]))
    return max(found)


@torch.no_grad()
def loaded(theirs: nn.Module, fill: float | None) -> dict[str, Tensor]:
    """Their gradients, or a number in their place, as weights of a model of ours."""
    other = copy.deepcopy(theirs)
    for own, parameter in zip(other.parameters(), theirs.parameters(), strict=True):
        grad = torch.zeros_like(own) if parameter.grad is None else parameter.grad
        own.copy_(grad if fill is None else torch.full_like(own, fill))
    return dict(interp.load(other).named_parameters())


def gradients(subject: Subject) -> Cell:
    """Both, in float64."""
    return holds(max(activations(subject), weights(subject)), GRADIENTS)


CHECKS = {"gradients": gradients}

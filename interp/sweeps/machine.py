"""What a sweep asks of the machine and the model before it plans: memory, rows of a pass, attached hooks."""

from __future__ import annotations

import os

import torch

from interp.hooked.model import HookedModel
from interp.models.gpt import GPT

# Rows that a chunk should have at its widest: enough for a good matrix product, few enough to stay in a CPU's cache.
ROWS = {"cpu": 1024, "cuda": 16384}
# The part of free memory that is used by default.
SHARE = {"cpu": 0.25, "cuda": 0.7}


def packs(model: HookedModel) -> bool:
    """Whether variants may share a batch: the layers are ours to enter, and nobody else's hook watches them."""
    return isinstance(model, GPT) and not watched(model)


def watched(model: HookedModel) -> bool:
    """Whether somebody's hooks are attached, which expect the prompts as they are."""
    return any(point.has_hooks for point in model.hook_dict.values())


def free_memory(device: torch.device) -> int:
    """Bytes that a sweep may allocate on a device by default: a part of what is free now."""
    if device.type == "cuda":
        held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # by torch, for later
        return int(SHARE["cuda"] * (torch.cuda.mem_get_info(device)[0] + held))
    try:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        free = 8 * 2**30  # not every system says
    return int(SHARE["cpu"] * free)

"""The base and source runs of a block of prompts: what chunks begin from, what edits copy, what the metric reads.

1. Of the base run the residual stream, keys and values and what mixers made are kept where rows may join a chunk; the
   states of state-space layers, which are large, before those positions alone at which rows begin.
2. Of both runs the sites are kept that edits copy from; means over all prompts are made once, block by block.
3. The metric is read of both; only its positions are unembedded, for its tokens.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from interp.config import MAMBAS
from interp.edits import RUNS, Variant
from interp.encoder_decoder.model import EncoderDecoder
from interp.forward.packed_rows import PrefixValues
from interp.hooked.hooks import HookPoint, attached
from interp.hooked.model import HookedModel
from interp.metric_rounding import rounding
from interp.metrics import ROWS, Metric, evaluate, largest_logit, read, where_read, which_read
from interp.models.block import key_site, mixed_site
from interp.prompts.pairs import PromptPairs
from interp.sites import stream_after
from interp.sweeps.edit_reach import Numbers, Placed
from interp.sweeps.encoder_decoder.reach import start_of
from interp.sweeps.encoder_decoder.run import kept_sites
from interp.sweeps.machine import watched
from interp.sweeps.plan import Plan
from interp.sweeps.source_values import Sources, copied_sites


@dataclass(eq=False)
class BaseRuns:
    """The base and source runs of some prompts.

    Attributes:
        pairs: the prompts.
        prompts: which they are, first and after the last.
        stored: "base" and "source" to what was stored of each run, by site name.
        states: the base run's states before `Plan.starts`, by site name [prompt, start, ...].
        seen: what the metric reads of the logits of each run.
        value: the metric of each run [prompt].
        rounding: how far rounding alone can take the metric of either run [prompt], in float64.
    """

    pairs: PromptPairs
    prompts: tuple[int, int]
    stored: dict[str, dict[str, Tensor]]
    states: dict[str, Tensor]
    seen: dict[str, Tensor]
    value: dict[str, Tensor]
    rounding: Tensor


class BaseRunCache:
    """Makes the runs of one block of prompts after another.

    Args:
        model, pairs, variants, metric: as `interp.sweep` takes them.
        sides: "base" and "source" to the side of the pairs that each run is of.
        plan: says where rows join.
    """

    def __init__(
        self,
        model: HookedModel,
        pairs: PromptPairs,
        variants: Sequence[Variant],
        metric: Metric,
        sides: Mapping[str, str],
        plan: Plan,
    ) -> None:
        self.model = model
        self.pairs = pairs
        self.variants = variants
        self.metric = metric
        self.sides = sides
        self.plan = plan
        self._latest: BaseRuns | None = None
        blocks = list(dict.fromkeys(chunk.prompts for chunk in plan.chunks))
        self._sources = Sources(model, pairs, variants, sides, blocks)
        self._names = self._stored_names()

    def of(self, prompts: tuple[int, int]) -> BaseRuns:
        """The base and source runs of some prompts; those of the last call are kept."""
        if self._latest is None or self._latest.prompts != prompts:
            self._latest = None  # lets go of the earlier one first
            if self.model.device.type == "cpu":
                # glibc hands memory back to the system at once until it has seen a large piece freed; a quarter of the
                # time would go into asking for it again.
                torch.empty(31 * 2**20, dtype=torch.uint8)
            self._latest = self._make(prompts)
        return self._latest

    def _make(self, prompts: tuple[int, int]) -> BaseRuns:
        pairs = self.pairs[prompts[0] : prompts[1]]
        stored: dict[str, dict[str, Tensor]] = {}
        states: dict[str, Tensor] = {}
        seen: dict[str, Tensor] = {}
        largest: dict[str, Tensor] = {}
        before = torch.tensor(self._starts_within(pairs), device=pairs.mask.device) - 1

        def keep(value: Tensor, hook: HookPoint) -> None:
            states[hook.name] = value.index_select(1, before)

        # 1. and 2. What each run is asked for later is kept; of one side, the base run has it all.
        same = self.sides["base"] == self.sides["source"] and not watched(self.model)  # hooks see every run
        for run in RUNS:
            if run == "source" and same:
                stored[run], seen[run], largest[run] = stored["base"], seen["base"], largest["base"]
                continue
            readers = [(self._state_names(), keep)] if run == "base" and len(before) else []
            with attached(self.model.hook_dict, readers=readers):
                stored[run], seen[run], largest[run] = self._run_side(pairs, self.sides[run], self._names[run])
        # 3. The metric of both.
        side, ref = self.sides["base"], seen["source"]  # a metric of the text compares both with the base run's
        value = {run: evaluate(self.metric, seen[run], pairs, ref, side=side) for run in RUNS}
        off = [rounding(self.metric, seen[run], pairs, ref, largest[run], side=side) for run in RUNS]
        return BaseRuns(pairs, prompts, stored, states, seen, value, torch.maximum(*off))

    def _run_side(self, pairs: PromptPairs, side: str, names: set[str]) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """What a run has at some sites, what the metric reads of its logits, and the largest of all of them there."""
        model, inputs = self.model, pairs.inputs(side)
        if not self.plan.packed:
            logits, cache = model.run_with_cache(**inputs, names_filter=sorted(names))
            at = where_read(self.metric, pairs).to(logits.device)
            there = logits[torch.arange(len(pairs), device=logits.device)[:, None], at]  # [prompt, read, d_vocab_out]
            return dict(cache), read(self.metric, logits, pairs), largest_logit(there)
        # Nothing but what the metric reads is normalised and unembedded.
        last = stream_after(model.cfg, model.cfg.n_layers - 1)
        names = names | {last}
        _, cache = model.run_with_cache(**inputs, names_filter=sorted(names), return_type=None)
        at = where_read(self.metric, pairs)
        final = cache[last][torch.arange(len(pairs), device=at.device)[:, None], at]  # [prompt, read, d_model]
        normalized = model.to_unembed(final)
        # All logits of a few rows at a time: those of all prompts may be more than memory holds.
        few = normalized.split(max(1, ROWS // normalized.shape[1]))
        largest = torch.cat([largest_logit(self.model.unembed(some)) for some in few])
        return dict(cache), self.unembedded(normalized, np.arange(len(pairs)), pairs), largest

    def unembedded(self, normalized: Tensor, prompts: Numbers, pairs: PromptPairs) -> Tensor:
        """What the metric reads of the logits, from the normalised residual stream there [row, read, d_model]."""
        tokens = which_read(self.metric, pairs)
        if tokens is None:
            logits = self.model.unembed(normalized)
        else:
            logits = self.model.unembed.some(normalized, tokens[torch.from_numpy(prompts).to(tokens.device)])
        return logits if self.metric.whole else logits[:, 0]

    def _stored_names(self) -> dict[str, set[str]]:
        """The sites of each run that are stored: what edits copy; of the base run also what functions are given, what
        copies are compared with, and what rows are joined from.
        """
        found = copied_sites(self.variants, self.model)
        found["base"] |= self._joined_sites()
        for variant in self.variants:
            found["base"] |= {edit.name(self.model.cfg) for edit in variant.edits if edit.computed}
        found["base"] |= found["source"]
        return {run: names & set(self.model.hook_dict) for run, names in found.items()}

    def _joined_sites(self) -> set[str]:
        """The sites of the base run that rows are joined from, and its keys and values."""
        if isinstance(self.model, EncoderDecoder):
            return kept_sites(self.model, [start_of(variant, self.model.cfg) for variant in self.variants])
        if not self.plan.packed:
            return set()
        names = {"hook_embed"} if self.model.cfg.shared is not None else set()
        for step in self.plan.joins:
            names.add(f"blocks.{step // 2}.hook_resid_pre")
            if step % 2 and (mixed := mixed_site(self.model.cfg, step // 2)) is not None:
                names.add(mixed)
        for layer in range(min(self.plan.joins, default=0) // 2, self.model.cfg.n_layers):
            names |= set(self._sites_looked_back_at(layer).values())
        return names

    @functools.cached_property
    def _edited(self) -> set[str]:
        """The sites that any variant edits."""
        return {edit.name(self.model.cfg) for variant in self.variants for edit in variant.edits}

    def _sites_looked_back_at(self, layer: int) -> dict[str, str]:
        """The sites of a layer whose values at earlier positions its mixer, or attention, reads."""
        cfg, here = self.model.cfg, f"blocks.{layer}"
        mixer = cfg.mixer(layer)
        found = {"k": key_site(cfg, layer), "v": f"{here}.attn.hook_v"} if cfg.attends(layer) else {}
        if mixer not in MAMBAS:
            return found
        formed = f"{here}.mixer.hook_pattern" in self._edited
        names = ("in", *(("conv", "delta", "B") if formed else ()))
        return found | {name: f"{here}.mixer.hook_{name}" for name in names}

    def _starts_within(self, pairs: PromptPairs) -> list[int]:
        """Where rows may begin in these prompts, which are as wide as the longest of them."""
        return [start for start in self.plan.starts if start < pairs.mask.shape[1]]

    def _state_names(self) -> list[str]:
        """The sites of the states that rows may begin from."""
        first = min(self.plan.joins, default=0) // 2
        names = (f"blocks.{layer}.mixer.hook_state" for layer in range(first, self.model.cfg.n_layers))
        return [name for name in names if name in self.model.hook_dict]

    def prefix(self, runs: BaseRuns, first: int) -> dict[int, PrefixValues]:
        """What mixers look back at in the base run, from a layer on."""
        found: dict[int, PrefixValues] = {}
        starts = self._starts_within(runs.pairs)
        slots = torch.zeros(runs.pairs.mask.shape[1], dtype=torch.long)
        slots[starts] = torch.arange(len(starts))
        for layer in range(first, self.model.cfg.n_layers):
            known = {short: runs.stored["base"][name] for short, name in self._sites_looked_back_at(layer).items()}
            states = runs.states.get(f"blocks.{layer}.mixer.hook_state")
            more = {} if states is None else {"state": states, "slot": slots.to(states.device)}
            found[layer] = known | more
        return found

    def source_of(self, placed: Placed, runs: BaseRuns) -> Tensor:
        """What an edit copies from, in the site's axes, for the prompts of some runs."""
        return self._sources.of(placed, runs.stored, runs.prompts)

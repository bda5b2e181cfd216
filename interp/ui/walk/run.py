"""One run of a model as the walk reads it: at one position and in one layer.

1. One forward keeps what the layer computes, and the two ends of the model.
2. Steps read values of sites from it; a site that the layer does not have is asked for before (`has`).
3. What a vector says in words (`promotes`, `would_say`) is collected, and read off the unembedding in one product.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from interp.config import ModelConfig
from interp.hooked.model import HookedModel
from interp.lenses.read import read_out, token_text
from interp.models.block import Block
from interp.models.gpt import GPT
from interp.sites import get_act_name, stream_after
from interp.text.characters import visible_token

LONGEST_STATES = 128
"""Longer prompts have no states and no hidden attention drawn: they are a matrix for each channel."""

LOOKED_AT = ("attn.hook_attn_scores", "attn.hook_pattern")
RECURRED = ("mixer.hook_state", "mixer.hook_pattern")
TOP = 5  # tokens that a vector is told by


class Run:
    """A forward of one prompt, read at a position of it and in a layer.

    Args:
        model: what runs.
        tokens: the prompt [pos].
        labels: its tokens as text.
        position, layer: where it is read.
    """

    def __init__(self, model: HookedModel, tokens: Tensor, labels: list[str], position: int, layer: int) -> None:
        self.model, self.labels, self.position, self.layer = model, labels, position, layer
        self.ids: list[int] = tokens.tolist()
        self.cfg: ModelConfig = model.cfg
        self.block: Block | None = model.block(layer) if isinstance(model, GPT) else None
        self._says: list[tuple[Tensor, dict[str, Any]]] = []
        self._promoted: list[tuple[Tensor, dict[str, Any]]] = []
        # 1. The forward.
        here, points = f"blocks.{layer}.", model.hook_dict
        on_demand = LOOKED_AT if len(tokens) > LONGEST_STATES else LOOKED_AT + RECURRED
        names = [
            name
            for name, point in points.items()
            if (not point.site.per_layer or name.startswith(here))
            and (not point.site.on_demand or name.endswith(on_demand))
        ]
        last = stream_after(self.cfg, self.cfg.n_layers - 1)
        wanted = dict.fromkeys([*names, last] if last in points else names)
        _, self.cache = model.run_with_cache(tokens[None], names_filter=list(wanted), return_type=None)

    @property
    def n(self) -> int:
        """How many tokens the prompt has."""
        return len(self.ids)

    # 2. Values.

    def full(self, site: str) -> str:
        """The full name of a site: of this layer where it belongs to layers."""
        row = next((name for name in (site, f"blocks.{self.layer}.{site}") if name in self.cache), None)
        return row or get_act_name(site, self.layer)

    def has(self, site: str) -> bool:
        """Whether the run has a site, such as `attn.hook_q` or `hook_embed`."""
        return site in self.cache or f"blocks.{self.layer}.{site}" in self.cache

    def every(self, site: str) -> Tensor:
        """The value of a site at all positions, as the run has it.  # [pos, ...] or [head, query, key]"""
        return self.cache[self.full(site)][0]

    def at(self, site: str) -> Tensor:
        """The value of a site at this position.  # [...]"""
        return self.every(site)[self.position]

    def word(self, position: int) -> dict[str, Any]:
        """A token of the prompt, for texts and tables."""
        return {"token": self.labels[position], "at": position}

    @property
    def last_stream(self) -> Tensor:
        """The residual stream after the last layer, at this position.  # [d_model]"""
        return self.at(stream_after(self.cfg, self.cfg.n_layers - 1))

    # 3. What a vector says.

    def would_say(self, stream: Tensor) -> dict[str, Any]:
        """The likeliest tokens if the model stopped at a residual stream [d_model]: filled in by `speak`."""
        self._says.append((stream, told := {"kind": "words", "of": "probability"}))
        return told

    @property
    def can_promote(self) -> bool:
        """Whether what a part writes is added to the stream that the final norm reads, so that it has logits."""
        apart = self.cfg.norms_on_stream or not self.cfg.linear_output
        final = self.model.norm_before(self.cfg.n_layers)
        return not apart and (final is None or self.has("ln_final.hook_scale"))

    def promotes(self, vector: Tensor) -> dict[str, Any]:
        """The tokens whose logits a vector of the stream [d_model] raises and lowers most: filled in by `speak`.

        Raised and lowered directly, through the final norm with the scale of this run, not by way of later layers.
        """
        self._promoted.append((vector, told := {"kind": "words", "of": "logits"}))
        return told

    def speak(self) -> Tensor:
        """Fill in all words; gives the logits after this position [d_vocab_out]."""
        streams = torch.stack([*(stream for stream, _ in self._says), self.last_stream])
        logits = read_out(self.model, streams)  # [stream, d_vocab_out]
        for row, (_, told) in zip(logits, self._says, strict=False):
            best = row.softmax(-1).topk(min(TOP, len(row)))
            told["words"] = [self._told(*one) for one in zip(best.indices.tolist(), best.values.tolist(), strict=True)]
        if self._promoted:
            vectors = torch.stack([vector for vector, _ in self._promoted])
            norm = self.model.norm_before(self.cfg.n_layers)
            seen = vectors if norm is None else norm.scaled(vectors, self.at("ln_final.hook_scale"))
            W_U = self.model.W_U
            shares = (seen.to(W_U.dtype) @ W_U).float()  # [vector, d_vocab_out]
            for row, (_, told) in zip(shares, self._promoted, strict=True):
                told["words"], told["lowered"] = (
                    [
                        self._told(token, float(row[token]))
                        for token in row.topk(min(TOP, len(row)), largest=up).indices.tolist()
                    ]
                    for up in (True, False)
                )
        return logits[-1]

    def _told(self, token: int, value: float) -> dict[str, Any]:
        return {"token": self.text(token), "id": token, "value": value}

    def text(self, token: int) -> str:
        """A token of the vocabulary as the page shows it."""
        return visible_token(token_text(self.model, token))

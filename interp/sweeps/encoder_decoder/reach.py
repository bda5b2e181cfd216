"""Where edits act in a model of two stacks, and from which layer of each on a variant must be run.

1. An edit acts at positions of the prompt that its site belongs to: the encoder's, or the decoder's. Keys and values of
   a cross-attention, and the keys of its pattern, stand at the encoder's positions.
2. What is changed in the encoder reaches every position of the decoder, from its first layer on.
3. What is changed in the decoder alone leaves the encoder, and the layers before, as the base run has them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from interp.config import STACKS, EncoderDecoderConfig, ModelConfig
from interp.edits import Edit, Variant
from interp.encoder_decoder.model import EncoderDecoder
from interp.encoder_decoder.stack import Stack
from interp.prompts.pairs import PromptPairs
from interp.sites import config_of, stream_after
from interp.sweeps.edit_reach import LOCAL_SITES, Mask, Numbers, Placed, Placer

Masks = dict[str, Mask]  # of each stack [prompt, pos]


class Start(NamedTuple):
    """The first layer of each stack that a variant must be run from; the number of layers is the norm after the last.

    Attributes:
        encoder: None where the encoder is as in the base run.
        decoder: 0 where the encoder is not.
    """

    encoder: int | None
    decoder: int


def start_of(variant: Variant, cfg: EncoderDecoderConfig) -> Start:
    """From where on a variant must be run."""
    first: dict[str, int] = {}
    for edit in variant.edits:
        name = edit.name(cfg)
        stack, _, rest = name.partition(".")
        n_layers = getattr(cfg, stack).n_layers
        layer = int(rest.split(".")[1]) if rest.startswith("blocks.") else n_layers if "ln_final" in rest else 0
        first[stack] = min(layer, first.get(stack, n_layers))
    if "encoder" in first:
        return Start(first["encoder"], 0)
    return Start(None, first.get("decoder", cfg.decoder.n_layers))


def stream_into(cfg: EncoderDecoderConfig, stack: str, layer: int) -> str:
    """The site of the residual stream that enters a layer of a stack, or the norm after the last."""
    own: ModelConfig = getattr(cfg, stack)
    return f"{stack}.{stream_after(own, layer - 1) if layer == own.n_layers else f'blocks.{layer}.hook_resid_pre'}"


class StackPlacer(Placer):
    """Finds the place of edits in one stack; `keys` finds that of a cross-attention's keys."""

    def __init__(self, stack: Stack, pairs: PromptPairs, keys: StackPlacer | None = None) -> None:
        super().__init__(stack, pairs, pairs.mask.cpu().numpy())  # type: ignore[arg-type]
        self.keys = self if keys is None else keys

    def place_site(self, edit: Edit, model: EncoderDecoder, own: StackPlacer) -> Placed:
        """The place of an edit whose site's positions are this stack's.

        Args:
            edit: the edit.
            model: the model.
            own: of the stack that computes the site, which has its heads: keys of a cross-attention are the decoder's.
        """
        name = edit.name(model.cfg)
        point = model.hook_dict[name]
        axes = [axis for axis in point.site.axes if axis != "batch"]
        row_axis = "query" if "query" in axes else "pos"
        axes.remove(row_axis)
        keys = self.keys if point.site.cross else self
        indices = tuple((keys if axis == "key" else own)._named(axis, edit.where.get(axis)) for axis in axes)
        step = point.layer() if point.site.per_layer else 0
        return Placed(edit, name, point.site, step, self._named_rows(edit.where.get(row_axis), False), indices)


class StackPlacement:
    """Where the edits of many variants act in both stacks, as `interp.sweeps.edit_reach.Placement` says it for one.

    Args:
        model, pairs, variants, base, source: as `interp.sweep` takes them.
    """

    def __init__(
        self, model: EncoderDecoder, pairs: PromptPairs, variants: Sequence[Variant], *, base: str, source: str
    ) -> None:
        assert pairs.encoder is not None
        self.model = model
        self.pairs = pairs
        self.variants = variants
        encoder = StackPlacer(model.encoder, pairs.encoder)
        self._placers = {"encoder": encoder, "decoder": StackPlacer(model.decoder, pairs, encoder)}
        self._edits: dict[int, tuple[Placed, ...]] = {}
        sides = {"encoder": pairs.encoder, "decoder": pairs}
        self._tokens = {
            stack: (getattr(own, base) != getattr(own, source)).cpu().numpy() & own.mask.cpu().numpy()
            for stack, own in sides.items()
        }

    @property
    def real(self) -> Masks:
        """False at padding."""
        return {stack: placer.real for stack, placer in self._placers.items()}

    def edits(self, variant: int) -> tuple[Placed, ...]:
        """The edits of a variant, which is given by its number.

        Raises:
            UnknownName: a site, layer, head or role that does not exist.
            PromptError: a position outside some prompt.
        """
        if variant not in self._edits:
            made = []
            for edit in self.variants[variant].edits:
                site = self.model.hook_dict[edit.name(self.model.cfg)].site
                made.append(self._placers[site.rows_in].place_site(edit, self.model, self._placers[site.stack]))
            self._edits[variant] = tuple(made)
        return self._edits[variant]

    def differs(self, placed: Placed) -> Mask:
        """Where the source run can differ from the base run at the site of an edit, judged by tokens."""
        site, short = placed.site, placed.site.short_in_stack
        real = self.real[site.rows_in]
        if placed.edit.run == "base" or short == "pos_embed":
            return np.zeros_like(real)
        own = self._tokens[site.rows_in]
        after = config_of(self.model.cfg, site).norms_on_stream and short.startswith("ln1.")  # after the attention
        if placed.step == 0 and short in LOCAL_SITES and not after:
            return own
        encoder = self._tokens["encoder"].any(1, keepdims=True)
        if site.rows_in == "encoder":
            return encoder & real
        return (np.logical_or.accumulate(own, axis=1) | encoder) & real

    def block(self, variant: int, prompts: tuple[int, int]) -> list[Placed]:
        """The edits of a variant for a block of prompts: as wide as the longest of them, counted from the first."""
        chosen = slice(*prompts)
        widths = {stack: int(self.real[stack][chosen].sum(1).max()) for stack in STACKS}
        return [
            replace(
                edit,
                rows=edit.rows[chosen, : widths[edit.site.rows_in]],
                indices=tuple(None if index is None else _own(index[chosen]) for index in edit.indices),
            )
            for edit in self.edits(variant)
        ]


def _own(index: Numbers) -> Numbers:
    """[prompt, how many] without columns that are padding for each of these prompts."""
    return index[:, : int((index >= 0).sum(1).max())]


def edited(names: Iterable[str], layer: int) -> bool:
    """Whether any of these sites is a key or a value of a layer's cross-attention."""
    return any(name.startswith(f"decoder.blocks.{layer}.cross_attn.hook_") and name[-1] in "kv" for name in names)

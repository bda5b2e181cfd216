"""`SharedBlocks`: transformer blocks that several layers share."""

from __future__ import annotations

from dataclasses import dataclass

from interp.config.checks import check_flag, settle_whole
from interp.errors import ConfigError


@dataclass(frozen=True)
class SharedBlocks:
    """Transformer blocks that several layers share, by turns: the first such layer calls the first block.

    In a `shared+mamba2` layer such a block reads the residual stream and the token embedding side by side, 2 `d_model`
    wide. Its attention has no residual connection, and neither has its MLP; a linear map of the layer's own takes the
    outcome to what is added to the input of the layer's Mamba-2 mixer, and not to the stream (Glorioso et al. 2024,
    "The Zamba2 Suite", section 2).

    Attributes:
        n_blocks: how many blocks there are.
        adapter_rank: each layer adds a map of its own, of this rank, to the MLP's input weights; None for none.
        attn_adapters: whether it adds such maps to the weights of queries, keys and values, too.
    """

    n_blocks: int = 1
    adapter_rank: int | None = None
    attn_adapters: bool = False

    def __post_init__(self) -> None:
        where = " of the shared blocks"
        for name in ("n_blocks", *(() if self.adapter_rank is None else ("adapter_rank",))):
            settle_whole(self, name, 1, where)
        check_flag(self, "attn_adapters", where)
        if self.attn_adapters and self.adapter_rank is None:
            raise ConfigError(f"attn_adapters=True{where} needs adapter_rank")

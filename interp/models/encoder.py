"""`Encoder`: bidirectional attention and a head that says which tokens were masked (BERT and its descendants)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from interp.config import ModelConfig, check_config
from interp.errors import ConfigError, PromptError
from interp.models.gpt import GPT
from interp.text.tokenizer import Tokenizer


class Encoder(GPT):
    """A model that reads a whole text and predicts its masked tokens, each at its own position.

    The same residual stack as `GPT`: sites, hooks, sweeps and lenses are the same. Between the stream and the
    unembedding stands a head, which is not linear, so that logits have no direct attributions. Where prompts have the
    role "MASK", metrics and lenses read there.

    Args:
        cfg: what to build; `attention_dir` is "bidirectional", and `mlm_act_fn` is given.
        tokenizer: text to ids, if there is text.

    Raises:
        ConfigError: a configuration that looks back only, or has no masked-token head.

    Example:
        >>> import torch
        >>> sizes = {"n_layers": 2, "d_model": 16, "n_ctx": 32, "d_head": 8, "d_vocab": 50}
        >>> bert = {"norm_placement": "residual", "final_norm": False, "embed_norm": True, "embed_norm_of_sum": True}
        >>> head = {"attention_dir": "bidirectional", "n_token_types": 2, "mlm_act_fn": "gelu"}
        >>> model = Encoder(ModelConfig(**sizes, **bert, **head))
        >>> logits, cache = model.run_with_cache(torch.tensor([[1, 2, 3]]))
        >>> logits.shape, cache["mlm_head.ln.hook_scale"].shape
        (torch.Size([1, 3, 50]), torch.Size([1, 3, 1]))

    Source: Devlin et al. 2018, "BERT: Pre-training of Deep Bidirectional Transformers for Language Understanding".
    """

    def __init__(self, cfg: ModelConfig, tokenizer: Tokenizer | None = None) -> None:
        check_config(cfg)
        if cfg.causal:
            raise ConfigError("an Encoder looks both ways: give attention_dir='bidirectional', or build a GPT")
        if cfg.linear_output:
            raise ConfigError("an Encoder has a masked-token head: give mlm_act_fn, such as 'gelu', or build a GPT")
        super().__init__(cfg, tokenizer)

    def generate(self, input: str | Sequence[str] | Tensor, max_new_tokens: int = 10, **options: Any) -> Any:
        """Refused: an encoder predicts masked tokens and not the next one.

        Raises:
            PromptError: always.
        """
        raise PromptError(
            "an Encoder does not continue a text: it predicts masked tokens; run it on a text with masks, and take the "
            "logits at their positions"
        )

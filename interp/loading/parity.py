"""Do our logits equal transformers' on the same weights?

1. transformers loads the same checkpoint, with eager attention and in the model's dtype.
2. Both run the same tokens.
3. The largest absolute difference of any logit, and the same relative to the largest logit, are returned.
"""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from interp.encoder_decoder.model import EncoderDecoder
from interp.errors import ParityError, WeightsError
from interp.hooked.model import HookedModel
from interp.models.encoder import Encoder
from interp.rounding import of_logits

TOLERANCE = 2e-4


def check_against_transformers(
    model: HookedModel, reference: Any = None, tokens: Tensor | None = None
) -> dict[str, Any]:
    """How far a model's logits are from transformers'.

    Args:
        model: the model to check.
        reference: a transformers model, or a directory or file that transformers can load; None takes the file that
            `model` was loaded from.
        tokens: [batch, pos]; None draws two rows of at most 64 random ids, the same in every call.

    Returns:
        `max_abs` (logits), `max_rel` (max_abs over the largest absolute logit), `same_top_token` (a fraction of the
        positions), `n_tokens`, `tolerance` (the `max_abs` that `load(check=True)` allows: `TOLERANCE`, or the rounding
        of a logit if that is larger, as in half precision), and the `transformers` version.

    Raises:
        WeightsError: the model did not come from a file that transformers can load.
    """
    import transformers

    theirs: Any = reference if isinstance(reference, torch.nn.Module) else _load(model, reference)
    if tokens is None:
        size = (2, min(64, model.cfg.n_ctx))
        tokens = torch.randint(0, model.cfg.d_vocab, size, generator=torch.Generator().manual_seed(0))
        if isinstance(model, Encoder):  # RoBERTa counts no position where the padding token stands
            pad = theirs.config.pad_token_id
            tokens = torch.where(tokens == pad, (tokens + 1) % model.cfg.d_vocab, tokens)
    with torch.inference_mode():
        # [batch, pos, d_vocab]
        if isinstance(model, EncoderDecoder):  # the decoder is given the same ids, as many as both stacks have
            own = tokens % model.cfg.decoder.d_vocab
            ours = model(tokens, own).double().cpu()
            given = {"input_ids": tokens.to(theirs.device), "decoder_input_ids": own.to(theirs.device)}
        else:
            ours, given = model(tokens).double().cpu(), {"input_ids": tokens.to(theirs.device)}
        options = {} if isinstance(model, Encoder) else {"use_cache": False}
        expected = theirs(**given, **options).logits.double().cpu()
    difference = float((ours - expected).abs().max())
    rounding = float(of_logits(expected.abs().max(), model.dtype))  # in half precision larger than `TOLERANCE`
    return {
        "max_abs": difference,
        "max_rel": difference / float(expected.abs().max()),
        "same_top_token": float((ours.argmax(-1) == expected.argmax(-1)).double().mean()),
        "n_tokens": tokens.numel(),
        "tolerance": max(TOLERANCE, rounding),
        "transformers": transformers.__version__,
    }


def require_parity(model: HookedModel, reference: Any = None) -> None:
    """Raise a `ParityError` when logits differ from transformers' by more than `check_against_transformers` allows."""
    result = check_against_transformers(model, reference)
    if not result["max_abs"] <= result["tolerance"]:
        raise ParityError(
            f"logits differ from transformers {result['transformers']} by {result['max_abs']:.2g}, more than the "
            f"allowed {result['tolerance']:.2g} (relative: {result['max_rel']:.2g}; same top token: "
            f"{result['same_top_token']:.0%})"
        )


def _load(model: HookedModel, reference: str | Path | None) -> Any:
    """The transformers model, from a path or from the files that our model was loaded from."""
    from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForSeq2SeqLM

    kinds = {EncoderDecoder: AutoModelForSeq2SeqLM, Encoder: AutoModelForMaskedLM}
    head: Any = kinds.get(type(model), AutoModelForCausalLM)
    if reference is None:
        source = getattr(model, "source", None)
        if source is None or source.kind not in ("gguf", "huggingface"):
            raise WeightsError("these weights are from no file that transformers can load: give one as reference")
        file = source.files[0]
        path = file if source.kind == "gguf" else file.parent
    else:
        path = Path(reference)
    options: dict[str, Any] = {"dtype": model.dtype, "attn_implementation": "eager"}
    if path.suffix == ".gguf":
        path, options["gguf_file"] = path.parent, path.name
    with contextlib.redirect_stderr(io.StringIO()):  # its progress bars
        theirs = head.from_pretrained(str(path), local_files_only=True, **options)
    return theirs.eval().to(model.device)

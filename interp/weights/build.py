"""From a `Checkpoint` to a model: every loader ends here.

1. The model is made without memory ("meta" tensors); the names and shapes of its weights are compared with the
   checkpoint's, and tensors that do not hold floating-point numbers are refused.
2. Memory is reserved. Each tensor is read, copied into its place and dropped, the largest first, so that the peak stays
   near the size of the model.
3. Weights that are not finite are refused.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from interp.config import EncoderDecoderConfig, ModelConfig
from interp.encoder_decoder.model import EncoderDecoder
from interp.encoder_decoder.stack import Stack
from interp.errors import ConfigError, InterpError, UnknownName, WeightsError, nearest
from interp.models.encoder import Encoder
from interp.models.gpt import GPT, Mamba
from interp.models.layers import PosEmbed, SharedEmbed
from interp.models.moe import MoE
from interp.models.shared_block import Adapter, SharedBlock, of_block
from interp.state_space.mixer import MambaMixer
from interp.weights.checkpoint import FLOATS, Checkpoint, Stored

MAX_LISTED = 6  # problems in one message
DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16, "float16": torch.float16}


def build(
    checkpoint: Checkpoint, *, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
) -> GPT | EncoderDecoder:
    """The model that a checkpoint describes, with its weights, its tokenizer and its source.

    Args:
        checkpoint: what a reader returned.
        device: where the weights go.
        dtype: the number type of the model's weights.

    Raises:
        ConfigError: sizes that no tensor can have.
        WeightsError: tensors are missing, not expected, of the wrong shape, not floating-point numbers, hold NaN or
            infinite values, hold values beyond the range of `dtype`, or do not fit into memory.
    """
    # 1. A model without memory, and what its tensors must be.
    model = empty(checkpoint.cfg)
    where = checkpoint.source.location
    problems = name_problems(weights(model), checkpoint.tensors)
    if problems:
        raise WeightsError(f"the weights of {where} do not fit the model: {'; '.join(problems)}")
    places = weights(model)
    problems = [problem for name in places for problem in _misfits(places[name], name, checkpoint)]
    if problems:
        raise WeightsError(f"the weights of {where} do not fit the model: {_some(problems, len(problems))}")
    model.tokenizer = checkpoint.tokenizer
    # 2. Memory, and the tensors in it.
    _reserve(model, device, dtype, where)
    places = weights(model)
    with _one_thread():
        for name in sorted(places, key=lambda name: places[name].numel(), reverse=True):
            problems += _fill(places[name], name, checkpoint)
        # 3. Weights that are not finite.
        problems = problems or _not_finite(model, checkpoint)
    if problems:
        raise WeightsError(f"the weights of {where} do not fit the model: {_some(problems, len(problems))}")
    model.source = checkpoint.source
    return model


def empty(cfg: ModelConfig | EncoderDecoderConfig) -> GPT | EncoderDecoder:
    """A model whose weights have shapes and no values ("meta" tensors)."""
    try:
        with torch.device("meta"):
            if isinstance(cfg, EncoderDecoderConfig):
                return EncoderDecoder(cfg)
            return (Mamba if cfg.has_mamba else GPT if cfg.linear_output else Encoder)(cfg)
    except InterpError:
        raise
    except (RuntimeError, TypeError, OverflowError) as error:  # from torch, for a size that is too large for it
        reason = str(error).splitlines()[0]
        raise ConfigError(f"no tensor can have the sizes in this configuration ({reason}): {cfg}") from error


def dtype_of(dtype: str | torch.dtype) -> torch.dtype:
    """A number type that models compute in, from its name or from torch's dtype.

    Raises:
        UnknownName: models do not compute in it.
    """
    name = str(dtype).removeprefix("torch.")
    if name not in DTYPES:
        close = nearest(name, DTYPES, most=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise UnknownName(f"no dtype matches {dtype!r}; choose from {', '.join(DTYPES)}{hint}")
    return DTYPES[name]


def weights(model: GPT | EncoderDecoder) -> dict[str, Tensor]:
    """Every weight of a model under TransformerLens's name and in its shape, as a detached view into the model.

    The weights of a state-space layer, which TransformerLens does not have, are named and shaped as in the mixer.
    Writing to the tensors changes the model. A tied unembedding is not listed, because it is `embed.W_E`, and neither
    is an embedding with the table of another. Names in an encoder-decoder begin with the stack.
    """
    if isinstance(model, EncoderDecoder):
        stacks = {"encoder": model.encoder, "decoder": model.decoder}
        return {f"{stack}.{name}": own for stack, part in stacks.items() for name, own in _of_stack(part).items()}
    return _of_stack(model)


def _of_stack(model: GPT | Stack) -> dict[str, Tensor]:
    """The weights of one residual stack."""
    cfg = model.cfg
    named: dict[str, Tensor | None] = {}
    if not isinstance(model.embed, SharedEmbed):
        named["embed.W_E"] = model.embed.W_E
    named["W_rel"] = getattr(model, "W_rel", None)
    named |= {f"embed.ln.{name}": getattr(model.embed.ln, name, None) for name in ("w", "b")}
    if isinstance(model.pos_embed, PosEmbed):
        named["pos_embed.W_pos"] = model.pos_embed.W_pos
    named["token_type_embed.W_token_type"] = getattr(getattr(model, "token_type_embed", None), "W_token_type", None)
    of_attention = (
        ("W_Q", "W_K", "W_V", "W_O")
        + (("b_Q", "b_K", "b_V") if cfg.attn_in_bias else ())
        + (("b_O",) if cfg.attn_out_bias else ())
    )
    parts = {
        "ln1": ("w", "b"),
        "attn": (*of_attention, "sinks"),
        "attn.q_norm": ("w", "b"),
        "attn.k_norm": ("w", "b"),
        "ln1_post": ("w", "b"),
        **({"ln_cross": ("w", "b"), "cross_attn": of_attention} if cfg.cross_attention else {}),
        "ln2": () if cfg.shared_norm else ("w", "b"),
        "ln2_post": ("w", "b"),
        "mlp": ("W_in", "W_gate", "W_out") + (("b_in", "b_gate", "b_out") if cfg.mlp_bias else ()),
    }
    biased = cfg.experts is not None and cfg.experts.expert_bias
    mixture = {
        "mlp": ("W_router", "b_router", "b_choice", "w_shared", "W_in", "W_gate", "W_out")
        + (("b_in", "b_gate", "b_out") if biased else ()),
        "mlp.shared": parts["mlp"],
        "mlp.latent_in": ("W", "b"),
        "mlp.latent_out": ("W", "b"),
    }
    for layer, block in enumerate(model.blocks):
        if isinstance(block, SharedBlock):
            named |= _of_shared(block, layer, parts if cfg.first_call(layer) == layer else {})
        else:
            for part, names in (parts | mixture if isinstance(block.mlp, MoE) else parts).items():
                owner = _part(block, part)
                named |= {f"blocks.{layer}.{part}.{name}": getattr(owner, name, None) for name in names}
        if isinstance(block.mixer, MambaMixer):
            named |= {f"blocks.{layer}.mixer.{name}": weight for name, weight in block.mixer.named_parameters()}
    named |= {f"ln_final.{name}": getattr(model.ln_final, name, None) for name in ("w", "b")}
    head = getattr(model, "mlm_head", None)
    if head is not None:
        named |= {"mlm_head.W": head.W, "mlm_head.b": head.b}
        named |= {f"mlm_head.ln.{name}": getattr(head.ln, name) for name in ("w", "b")}
    if model.unembed is not None:
        if not cfg.tie_word_embeddings:
            named["unembed.W_U"] = model.unembed.W_U
        named["unembed.b_U"] = model.unembed.b_U
    return {name: tensor.detach() for name, tensor in named.items() if tensor is not None}


def _of_shared(block: SharedBlock, layer: int, parts: Mapping[str, Sequence[str]]) -> dict[str, Tensor | None]:
    """The weights of a layer that calls a shared block: `parts` of the block, and what the layer has of its own."""
    named: dict[str, Tensor | None] = {}
    for part, names in parts.items():
        owner = _part(block, part)
        named |= {f"{part}.{name}": of_block(owner, name) for name in names if owner is not None}
    for path, module in block.named_modules():
        if isinstance(module, Adapter):
            named |= {f"{path}.{name}": weight for name, weight in module.named_parameters()}
    named |= {"W_shared": block.W_shared}
    named |= {f"ln_mixer.{name}": getattr(block.ln_mixer, name, None) for name in ("w", "b")}
    return {f"blocks.{layer}.{name}": weight for name, weight in named.items()}


def _part(block: nn.Module, path: str) -> nn.Module | None:
    """A part of a block, such as `attn.q_norm`; None where the block has none."""
    part: nn.Module | None = block
    for name in path.split("."):
        part = getattr(part, name, None)
    return part


def name_problems(expected: Collection[str], given: Collection[str]) -> list[str]:
    """Missing and unexpected names, each with the nearest name on the other side; [] if there are none."""
    missing = sorted(set(expected) - set(given))
    extra = sorted(set(given) - set(expected))
    problems = []
    for kind, names, others in (("missing", missing, extra), ("not expected", extra, missing or expected)):
        if names:
            shown = [_with_nearest(name, others) for name in names[:MAX_LISTED]]
            problems.append(f"{kind}: {_some(shown, len(names))}")
    return problems


def _with_nearest(name: str, others: Iterable[str]) -> str:
    close = nearest(name, others, most=1)
    return f"{name!r} (nearest: {close[0]!r})" if close else repr(name)


def _some(texts: list[str], count: int) -> str:
    more = f", and {count - MAX_LISTED} more" if count > MAX_LISTED else ""
    return ", ".join(texts[:MAX_LISTED]) + more


def _reserve(model: GPT | EncoderDecoder, device: str | torch.device, dtype: torch.dtype, where: str) -> None:
    """Reserve memory for every weight. (`to_empty` does the same, but imports sympy, which takes 0.7 s.)"""
    needed = sum(parameter.numel() for parameter in model.parameters()) * dtype.itemsize
    try:
        made: dict[nn.Parameter, nn.Parameter] = {}  # layers may share weights
        for module in model.modules():
            for name, parameter in list(module.named_parameters(recurse=False)):
                if parameter not in made:
                    made[parameter] = nn.Parameter(torch.empty(parameter.shape, dtype=dtype, device=device))
                setattr(module, name, made[parameter])
    except (RuntimeError, MemoryError) as error:
        reason = str(error).strip().splitlines()[0]
        raise WeightsError(f"the weights of {where}, {needed:,} bytes, do not fit on {device}: {reason}") from error


@contextmanager
def _one_thread() -> Iterator[None]:
    """One thread: copying is bound by memory, and a second thread slows it down (SmolLM2: 4.7 s against 2.2 s)."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _misfits(place: Tensor, name: str, checkpoint: Checkpoint) -> list[str]:
    """What is wrong with a tensor according to its header, if anything."""
    stored = checkpoint.tensors[name]
    if stored.shape != tuple(place.shape):
        return [f"{_label(name, checkpoint)} has shape {list(stored.shape)}, expected {list(place.shape)}"]
    if stored.dtype not in FLOATS:
        kind = str(stored.dtype).removeprefix("torch.")
        return [
            f"{_label(name, checkpoint)} is of type {kind}, expected one of {', '.join(DTYPES)}: quantised weights can "
            "only be read from a .gguf, and integers need .float()"
        ]
    return []


def _fill(place: Tensor, name: str, checkpoint: Checkpoint) -> list[str]:
    """Copy one tensor into its place; returns what is wrong with it, if anything."""
    tensor = checkpoint.tensors[name]()
    if tensor.is_meta:
        return [f"{_label(name, checkpoint)} has no values (it is on the 'meta' device)"]
    place.copy_(tensor)
    return []


def _not_finite(model: GPT | EncoderDecoder, checkpoint: Checkpoint) -> list[str]:
    # A sum is not finite if any term is not, needs no memory, and is faster over parameters than over our views.
    if all(bool(parameter.detach().sum().isfinite()) for parameter in model.parameters()):
        return []
    bad = [(name, place.dtype) for name, place in weights(model).items() if not bool(place.isfinite().all())]
    return [f"{_label(name, checkpoint)} {_not_finite_because(checkpoint.tensors[name], dtype)}" for name, dtype in bad]


def _not_finite_because(stored: Stored, dtype: torch.dtype) -> str:
    """The reason: values in the file, or the range of the chosen number type."""
    tensor = stored()
    if not bool(tensor.isfinite().all()):
        return "holds NaN or infinite values"
    name, most = str(dtype).removeprefix("torch."), float(tensor.abs().max())
    wider = [other for other, kind in DTYPES.items() if torch.finfo(kind).max >= most]
    return (
        f"holds values up to {most:.6g}, but {name} holds at most {torch.finfo(dtype).max:.6g}; the file is sound: "
        f"load it with dtype={' or '.join(map(repr, wider))}"
    )


def _label(name: str, checkpoint: Checkpoint) -> str:
    origin = checkpoint.tensors[name].origin
    return f"{name!r} (from {origin!r})" if origin else repr(name)

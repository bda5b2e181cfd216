"""The parts of a block and of the two ends of the residual stack: norms, MLPs, embeddings, unembedding."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from interp.config import ModelConfig
from interp.hooked.hooks import HookPoint
from interp.precision import widened


def relu2(x: Tensor) -> Tensor:
    """max(x, 0)^2 (So et al. 2021, "Primer", section 3)."""
    return F.relu(x).square()


def quick_gelu(x: Tensor) -> Tensor:
    """x sigmoid(1.702 x), close to GELU (Hendrycks and Gimpel 2016, section 2)."""
    return x * (1.702 * x).sigmoid()


def solu(x: Tensor) -> Tensor:
    """x softmax(x) (Elhage et al. 2022, "Softmax Linear Units", section 3)."""
    return x * x.softmax(-1)


def soft_cap(x: Tensor, cap: float) -> Tensor:
    """cap tanh(x / cap): x where it is small, and never beyond the cap (Gemma Team 2024, "Gemma 2", section 2)."""
    return cap * (x / cap).tanh()


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "relu2": relu2,
    "gelu": F.gelu,
    "gelu_new": partial(F.gelu, approximate="tanh"),
    "quick_gelu": quick_gelu,
    "silu": F.silu,
    "solu": solu,
}


class Norm(nn.Module):
    """Layer norm (Ba et al. 2016) or RMS norm (Zhang and Sennrich 2019), with or without weights.

    scale = sqrt(mean(x^2) + eps) of the (for layer norm: centred) stream; normalized = x / scale; out = normalized w
    + b. Where the configuration has `norm_unit_offset`, `w` holds the weight less 1; `gain` is the weight itself.

    Args:
        cfg: the model's configuration.
        path: where the norm is, such as `blocks.0.ln1`.
        points: the hook points of the model.
    """

    dims: tuple[int, ...] = (-1,)  # that a mean goes over

    def __init__(self, cfg: ModelConfig, path: str, points: Mapping[str, HookPoint]) -> None:
        super().__init__()
        self.eps = cfg.eps
        self.centers = cfg.centers
        self.unit_offset = cfg.norm_unit_offset
        self.hook_scale = points[f"{path}.hook_scale"]
        self.hook_normalized = points[f"{path}.hook_normalized"]
        self._make_weights(cfg)

    def _make_weights(self, cfg: ModelConfig) -> None:
        self.w = nn.Parameter(torch.empty(cfg.d_model)) if cfg.has_norm_weights else None
        self.b = nn.Parameter(torch.empty(cfg.d_model)) if cfg.has_norm_bias else None

    def forward(self, x: Tensor) -> Tensor:
        """Normalise x [..., d_model]."""
        wide = self._center(x)
        scale = self.hook_scale(self._scale(wide))
        return self.weighed(self.hook_normalized((wide / scale).to(x.dtype)))

    @property
    def gain(self) -> Tensor | None:
        """What normalised values are multiplied by [d_model]; None where that is 1."""
        return 1.0 + widened(self.w) if self.unit_offset and self.w is not None else self.w

    @property
    def edited(self) -> bool:
        """Whether a hook that may change the scale or the normalised stream is attached."""
        return self.hook_scale.edited or self.hook_normalized.edited

    def unhooked(self, x: Tensor) -> Tensor:
        """The same without the hook points: for inputs beside the residual stream."""
        wide = self._center(x)
        return self.weighed((wide / self._scale(wide)).to(x.dtype))

    def scale(self, x: Tensor) -> Tensor:
        """The divisor of x.  # [..., d_model] -> [..., 1]"""
        return self._scale(self._center(x))

    def normalized(self, x: Tensor) -> Tensor:
        """x before the weights.  # [..., d_model]"""
        wide = self._center(x)
        return (wide / self._scale(wide)).to(x.dtype)

    def scaled(self, x: Tensor, scale: Tensor) -> Tensor:
        """x divided by a given scale, with the weight and without the bias: linear in x."""
        normalized = (self._center(x) / scale).to(x.dtype)
        gain = self.gain
        return normalized if gain is None else (normalized * gain).to(x.dtype)

    def _center(self, x: Tensor) -> Tensor:
        wide = widened(x)
        return wide - wide.mean(-1, keepdim=True) if self.centers else wide

    def _scale(self, wide: Tensor) -> Tensor:
        return (wide.pow(2).mean(self.dims, keepdim=True) + self.eps).sqrt()

    def weighed(self, normalized: Tensor) -> Tensor:
        """What is normalised, with weight and bias.  # [..., d_model]"""
        gain, b = self.gain, self.b
        if gain is None:
            return normalized
        return (normalized * gain).to(normalized.dtype) if b is None else torch.addcmul(b, normalized, gain)


class SharedNorm(Norm):
    """A norm with the weights of another one, and hook points of its own."""

    def __init__(self, cfg: ModelConfig, path: str, points: Mapping[str, HookPoint], owner: Norm) -> None:
        super().__init__(cfg, path, points)
        self._owner = (owner,)  # in a tuple, so that its parameters are not counted twice

    def _make_weights(self, cfg: ModelConfig) -> None:
        pass

    @property
    def w(self) -> Tensor | None:  # type: ignore[override]
        """The other norm's weight."""
        return self._owner[0].w

    @property
    def b(self) -> Tensor | None:  # type: ignore[override]
        """The other norm's bias."""
        return self._owner[0].b


class HeadNorm(Norm):
    """The norm of queries or keys [batch, pos, head, d_head] before they are rotated: one of `QK_NORMS`.

    Sources: Dehghani et al. 2023, "Scaling Vision Transformers to 22 Billion Parameters", section 2 (a norm for each
    head); OLMo Team 2024, "2 OLMo 2 Furious", section 3 (one norm for all heads together).
    """

    def __init__(self, cfg: ModelConfig, path: str, points: Mapping[str, HookPoint], n_heads: int) -> None:
        self.n_heads = n_heads
        super().__init__(cfg, path, points)
        self.centers = cfg.qk_norm in ("LN", "LN_each_head")
        if cfg.qk_norm == "RMS_all_heads":
            self.dims = (-2, -1)

    def _make_weights(self, cfg: ModelConfig) -> None:
        every = cfg.qk_norm in ("RMS_all_heads", "LN_each_head")
        self.w = nn.Parameter(torch.empty(self.n_heads, cfg.d_head) if every else torch.empty(cfg.d_head))
        self.b = nn.Parameter(torch.empty(cfg.d_head)) if cfg.qk_norm == "LN" else None

    def _scale(self, wide: Tensor) -> Tensor:
        return super()._scale(wide).expand(*wide.shape[:-1], 1)  # a divisor for each head, even where all have one


class MLP(nn.Module):
    """Neurons: out = act(x W_in + b_in) W_out + b_out; act(x W_gate) * (x W_in) when gated (Shazeer 2020, section 2).

    Weights lie as the matrix products want them, one row an output: `W_up` and, when gated, `W_gate_up`
    [d_mlp, d_model], `W_down` [d_model, d_mlp]. `W_in` and the rest are views in TransformerLens's shapes.

    Args:
        cfg: the model's configuration.
        d_mlp: how many neurons.
        sites: how the names of its sites begin, such as `blocks.0.mlp.hook_`.
        points: the hook points of the model.
    """

    def __init__(self, cfg: ModelConfig, d_mlp: int, sites: str, points: Mapping[str, HookPoint]) -> None:
        super().__init__()
        assert cfg.act_fn is not None
        self.act = ACTIVATIONS[cfg.act_fn]
        gated, biased = cfg.gated_mlp, cfg.mlp_bias
        self.W_up = nn.Parameter(torch.empty(d_mlp, cfg.d_model))
        self.W_gate_up = nn.Parameter(torch.empty(d_mlp, cfg.d_model)) if gated else None
        self.W_down = nn.Parameter(torch.empty(cfg.d_model, d_mlp))
        self.b_up = nn.Parameter(torch.empty(d_mlp)) if biased else None
        self.b_gate_up = nn.Parameter(torch.empty(d_mlp)) if gated and biased else None
        self.b_down = nn.Parameter(torch.empty(cfg.d_model)) if biased else None
        self.hook_pre, self.hook_post = points[sites + "pre"], points[sites + "post"]
        self.hook_pre_linear = points.get(sites + "pre_linear")

    def forward(self, x: Tensor) -> Tensor:
        """What the layer's neurons add.  # [batch, pos, d_model] -> [batch, pos, d_model]"""
        linear, gate = self.inputs(x)  # [batch, pos, d_mlp]
        if gate is None or self.hook_pre_linear is None:
            post = self.act(self.hook_pre(linear))
        else:
            post, linear = self.act(self.hook_pre(gate)), self.hook_pre_linear(linear)
            post = post * linear if torch.is_grad_enabled() else post.mul_(linear)  # `act` made it; no site holds it
        return F.linear(self.hook_post(post), self.W_down, self.b_down)

    def inputs(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """What neurons are made of: x W_in + b_in and, when gated, x W_gate + b_gate.  # [..., d_mlp] each"""
        linear = F.linear(x, self.W_up, self.b_up)
        return linear, None if self.W_gate_up is None else F.linear(x, self.W_gate_up, self.b_gate_up)

    @property
    def W_in(self) -> Tensor:
        """Input weights [d_model, d_mlp]; a view, as the other weights here."""
        return self.W_up.T

    @property
    def W_gate(self) -> Tensor | None:
        """Gate weights [d_model, d_mlp]; None where there is no gate."""
        return None if self.W_gate_up is None else self.W_gate_up.T

    @property
    def W_out(self) -> Tensor:
        """Output weights [d_mlp, d_model]."""
        return self.W_down.T

    @property
    def b_in(self) -> Tensor:
        """Input bias [d_mlp]; zeros where the model has none."""
        return self.W_up.new_zeros(self.W_up.shape[0]) if self.b_up is None else self.b_up

    @property
    def b_gate(self) -> Tensor | None:
        """Gate bias [d_mlp]; zeros where the model has none, None where there is no gate."""
        if self.W_gate_up is None:
            return None
        return self.W_up.new_zeros(self.W_up.shape[0]) if self.b_gate_up is None else self.b_gate_up

    @property
    def b_out(self) -> Tensor:
        """Output bias [d_model]; zeros where the model has none."""
        return self.W_down.new_zeros(self.W_down.shape[0]) if self.b_down is None else self.b_down


class Embed(nn.Module):
    """Token embedding: W_E [d_vocab, d_model], times the model's factor, through its norm if it has one.

    A norm of the sum of all embeddings is here, too, and left to whoever makes the sum.
    """

    def __init__(self, cfg: ModelConfig, points: Mapping[str, HookPoint]) -> None:
        super().__init__()
        self.scale = cfg.embed_scale
        self._make_weights(cfg)
        self.ln = Norm(cfg, "embed.ln", points) if cfg.embed_norm else None
        self.norms_sum = cfg.embed_norm_of_sum

    def _make_weights(self, cfg: ModelConfig) -> None:
        self.W_E = nn.Parameter(torch.empty(cfg.d_vocab, cfg.d_model))

    def forward(self, tokens: Tensor) -> Tensor:
        """What is added to the residual stream.  # [batch, pos] -> [batch, pos, d_model]"""
        rows = self._scaled(F.embedding(tokens, self.W_E))
        return rows if self.ln is None or self.norms_sum else self.ln(rows)

    @property
    def table(self) -> Tensor:
        """What every token adds to the residual stream [d_vocab, d_model]; W_E itself where nothing is between."""
        rows = self._scaled(self.W_E)
        return rows if self.ln is None or self.norms_sum else self.ln.unhooked(rows)

    def _scaled(self, rows: Tensor) -> Tensor:
        # The factor is rounded to their number type, as in transformers.
        return rows if self.scale == 1.0 else rows * rows.new_tensor(self.scale)


class SharedEmbed(Embed):
    """A token embedding with the table of another one."""

    def __init__(self, cfg: ModelConfig, points: Mapping[str, HookPoint], owner: Embed) -> None:
        super().__init__(cfg, points)
        self._owner = (owner,)  # in a tuple, so that its parameter is not counted twice

    def _make_weights(self, cfg: ModelConfig) -> None:
        pass

    @property
    def W_E(self) -> Tensor:  # type: ignore[override]
        """The other embedding's table."""
        return self._owner[0].W_E


class TokenTypeEmbed(nn.Module):
    """Embedding of segments: W_token_type [token_type, d_model] (Devlin et al. 2018, "BERT", section 3)."""

    def __init__(self, cfg: ModelConfig) -> None:
        super().__init__()
        self.W_token_type = nn.Parameter(torch.empty(cfg.n_token_types, cfg.d_model))

    def forward(self, token_types: Tensor) -> Tensor:
        """Rows of W_token_type.  # [batch, pos] -> [batch, pos, d_model]"""
        return F.embedding(token_types, self.W_token_type)


class PosEmbed(nn.Module):
    """Learned position embedding: W_pos [n_ctx, d_model]."""

    def __init__(self, cfg: ModelConfig) -> None:
        super().__init__()
        self.W_pos = nn.Parameter(torch.empty(cfg.n_ctx, cfg.d_model))

    def forward(self, positions: Tensor) -> Tensor:
        """Rows of W_pos.  # [batch, pos] -> [batch, pos, d_model]"""
        return F.embedding(positions, self.W_pos)


class SinusoidalEmbed(nn.Module):
    """PE(pos, 2i) = sin(pos / 10000^(2i/d_model)), PE(pos, 2i+1) = cos(same) (Vaswani et al. 2017, section 3.5).

    With `sinusoidal_halves` the sines come first and then the cosines (Junczys-Dowmunt et al. 2018, "Marian").
    """

    def __init__(self, cfg: ModelConfig) -> None:
        super().__init__()
        self.cfg = cfg

    @property
    def W_pos(self) -> Tensor:
        """The fixed table [n_ctx, d_model]."""
        return self(torch.arange(self.cfg.n_ctx))

    def forward(self, positions: Tensor) -> Tensor:
        """Rows of the table.  # [batch, pos] -> [batch, pos, d_model]"""
        d_model = self.cfg.d_model
        even = torch.arange(0, d_model, 2, device=positions.device, dtype=torch.float64)
        angle = positions[..., None] * torch.exp(-math.log(10000.0) * even / d_model)
        if self.cfg.sinusoidal_halves:
            return torch.cat((angle.sin(), angle.cos()), dim=-1)[..., :d_model].float()
        return torch.stack((angle.sin(), angle.cos()), dim=-1).flatten(-2)[..., :d_model].float()


class MaskedTokenHead(nn.Module):
    """What stands between the stream and the unembedding of an encoder: norm(act(x W + b)).

    Source: Devlin et al. 2018, "BERT", in the released code (`get_masked_lm_output`).
    """

    def __init__(self, cfg: ModelConfig, points: Mapping[str, HookPoint]) -> None:
        super().__init__()
        assert cfg.mlm_act_fn is not None
        self.act = ACTIVATIONS[cfg.mlm_act_fn]
        self.W_rows = nn.Parameter(torch.empty(cfg.d_model, cfg.d_model))  # one row an output
        self.b = nn.Parameter(torch.empty(cfg.d_model)) if cfg.mlm_bias else None
        self.ln = Norm(cfg, "mlm_head.ln", points)
        self.hook_pre, self.hook_post = points["mlm_head.hook_pre"], points["mlm_head.hook_post"]

    def forward(self, x: Tensor) -> Tensor:
        """What the unembedding reads.  # [..., d_model] -> [..., d_model]"""
        pre = self.hook_pre(F.linear(x, self.W_rows, self.b))
        return self.ln(self.hook_post(self.act(pre)))

    @property
    def W(self) -> Tensor:
        """The linear map [d_model, d_model], from the stream; a view."""
        return self.W_rows.T


class Unembed(nn.Module):
    """Normalised residual stream to logits: x W_U + b_U, times the model's factor, and bounded if it has a soft cap.

    Tied models read the embedding's rows.
    """

    def __init__(self, cfg: ModelConfig, embed: Embed) -> None:
        super().__init__()
        self.scale = cfg.logit_scale
        self.cap = cfg.output_logits_soft_cap
        self._embed = (embed,)  # in a tuple, so that its parameter is not counted twice
        self.W_rows = None if cfg.tie_word_embeddings else nn.Parameter(torch.empty(cfg.d_vocab_out, cfg.d_model))
        self.b_U = nn.Parameter(torch.empty(cfg.d_vocab_out)) if cfg.unembed_bias else None

    def forward(self, x: Tensor) -> Tensor:
        """Logits.  # [..., d_model] -> [..., d_vocab_out]"""
        return self._capped(self.uncapped(x))

    def uncapped(self, x: Tensor) -> Tensor:
        """Logits before the soft cap.  # [..., d_model] -> [..., d_vocab_out]"""
        return self._times(F.linear(x, self._rows(), self.b_U))

    def some(self, x: Tensor, tokens: Tensor) -> Tensor:
        """Logits of some tokens, for each row its own.  # [row, pos, d_model], [row, token] -> [row, pos, token]"""
        logits = x @ self._rows()[tokens].transpose(1, 2)
        return self._capped(self._times(logits if self.b_U is None else logits + self.b_U[tokens][:, None]))

    def _times(self, logits: Tensor) -> Tensor:
        return logits if self.scale == 1.0 else logits * self.scale

    def _capped(self, logits: Tensor) -> Tensor:
        return logits if self.cap is None else soft_cap(logits, self.cap)

    def _rows(self) -> Tensor:
        return self._embed[0].W_E if self.W_rows is None else self.W_rows

    @property
    def W_U(self) -> Tensor:
        """[d_model, d_vocab_out], without the logits' factor; a view."""
        return self._rows().T

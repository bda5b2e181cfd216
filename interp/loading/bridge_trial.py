"""Which hook points of a transformer_lens bridge mean what our table of sites says? A trial run decides, not the name.

Equal names need not mean the same. TransformerLens's `hook_resid_mid` is the input of the second norm, so that a change
there never reaches the residual stream; in some architectures its attention output includes the residual stream, its
pattern is shown after it was used, or its queries are not yet normalised. So:

1. The bridge runs once on a few tokens, with the value at every site changed by noise.
2. The equations that define our sites must hold between what each hook point passed on and what the next one received:
   resid_mid = resid_pre + attn_out, pattern = softmax(scores), z = pattern v, post = act(pre), ...
3. A site is kept if an equation with it holds and none refutes it. A pattern that z was computed from, but whose change
   had no effect, can be read but not changed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from einops import einsum, repeat
from torch import Tensor

from interp.errors import ConfigError
from interp.hooked.hooks import HookPoint
from interp.hooked.model import HookedModel
from interp.models.layers import ACTIVATIONS

NOISE = 0.3
TOLERANCE, HALF_PRECISION_TOLERANCE = 1e-4, 3e-2


@dataclass
class Findings:
    """The results of the trial.

    `heads_add` has the layers whose heads, with b_O, sum to what the attention adds; `norms` the norms that follow the
    plain formula. `reads_out` says whether logits are unembed(ln_final(resid)) times `logit_factor`, softly capped at
    `logit_cap`; `restarts` whether a layer needs only the residual stream that enters it; `causal` whether positions
    never see later ones.
    """

    proven: set[str] = field(default_factory=set)
    refuted: set[str] = field(default_factory=set)
    read_only: set[str] = field(default_factory=set)
    heads_add: set[int] = field(default_factory=set)
    norms: set[str] = field(default_factory=set)
    reads_out: bool = False
    logit_factor: float = 1.0
    logit_cap: float | None = None
    restarts: bool = False
    causal: bool = True
    act_fn: str | None = None
    d_mlp: int | None = None

    @property
    def sites(self) -> set[str]:
        """The sites that mean what our table says."""
        return self.proven - self.refuted


@contextmanager
def tapped(theirs: Any, fn: Callable[[Any], Any]) -> Iterator[None]:
    """Call `fn(value)` at one of the bridge's hook points; if it returns something, that replaces the value."""
    handle = theirs.add_hook(lambda value, hook: fn(value))
    try:
        yield
    finally:
        handle.hook.remove()
        theirs.fwd_hooks.remove(handle)


def examine(model: HookedModel, bridge: Any) -> Findings:
    """Run `model`, with hook points at all names that it shares with the bridge, and test what each of them means.

    Raises:
        ConfigError: blocks that do not pass one residual stream on.
    """
    return Trial(model, bridge).findings()


class Trial:
    """One forward with noise at every site: what each hook point received (`seen`) and passed on (`given`).

    `inside` has what other hook points of the bridge received, which are not sites of ours.
    """

    def __init__(self, model: HookedModel, bridge: Any) -> None:
        self.cfg, self.bridge = model.cfg, bridge
        self.seen: dict[str, Tensor] = {}
        self.given: dict[str, Tensor] = {}
        self.inside: dict[str, Tensor] = {}
        self.found = Findings()
        self.tolerance = TOLERANCE if model.dtype.itemsize >= 4 else HALF_PRECISION_TOLERANCE
        self.generator = torch.Generator().manual_seed(0)
        self.tokens = torch.randint(0, self.cfg.d_vocab, (2, min(6, self.cfg.n_ctx)), generator=self.generator)
        self.tokens = self.tokens.to(model.device)
        theirs = bridge.hook_dict
        watched = ["ln_final.hook_out", "unembed.hook_in"]
        parts = ("ln1.hook_out", "ln2.hook_out", "attn.o.hook_out", "mlp.out.hook_out")
        watched += [f"blocks.{layer}.{part}" for layer in range(self.cfg.n_layers) for part in parts]
        with torch.no_grad(), ExitStack() as stack:
            for name in watched:
                if name in theirs:
                    stack.enter_context(tapped(theirs[name], partial(self._watch, name)))
            self.logits = model.run_with_hooks(self.tokens, fwd_hooks=[(self._takes_part, self._disturb)])
        self._undisturbed(model)

    @torch.no_grad()
    def _undisturbed(self, model: HookedModel) -> None:
        """Runs without noise: does a layer need only the residual stream, and do positions see later ones?"""
        last = self.cfg.n_layers - 1
        logits, cache = model.run_with_cache(self.tokens, names_filter=f"blocks.{last}.hook_resid_pre")
        self.found.restarts = self.close(model(cache["resid_pre", last], start_at_layer=last), logits)
        other = torch.cat([self.tokens[:, :-1], (self.tokens[:, -1:] + 1) % self.cfg.d_vocab], 1)
        self.found.causal = self.close(model(other)[:, :-1], logits[:, :-1])

    def _takes_part(self, name: str) -> bool:
        """All sites except those of a norm without weights, where the bridge cannot use a changed value."""
        path, _, _ = name.rpartition(".")
        if not path.endswith(("ln1", "ln2", "ln_final")):
            return True
        norm = self.bridge.get_submodule(path)
        return getattr(norm.original_component, "weight", None) is not None

    def _watch(self, name: str, value: Any) -> None:
        if isinstance(value, Tensor):
            self.inside[name] = value.clone()

    def _disturb(self, value: Tensor, hook: HookPoint) -> Tensor:
        if hook.name in self.seen:  # called more than once in a forward: not one point of the computation
            self.found.refuted.add(hook.name)
        noise = 1 + NOISE * (2 * torch.rand(value.shape, generator=self.generator) - 1)
        changed = value * noise.to(value)
        self.seen[hook.name], self.given[hook.name] = value.clone(), changed.clone()
        if not self._has_its_axes(value, hook):
            self.found.refuted.add(hook.name)
        return changed

    def _has_its_axes(self, value: Tensor, hook: HookPoint) -> bool:
        cfg, n_pos = self.cfg, self.tokens.shape[1]
        sizes = {
            "batch": 2, "pos": n_pos, "query": n_pos, "key": n_pos, "head": cfg.n_heads, "kv_head": cfg.n_kv_heads,
            "d_model": cfg.d_model, "d_head": cfg.d_head, "one": 1,
        }  # fmt: skip
        return value.ndim == len(hook.site.axes) and all(
            axis == "d_mlp" or size == sizes[axis] for axis, size in zip(hook.site.axes, value.shape, strict=True)
        )

    def findings(self) -> Findings:
        """Test every equation on the run."""
        last = self.cfg.n_layers - 1
        self._embedding()
        for layer in range(self.cfg.n_layers):
            here, block = f"blocks.{layer}.", self.bridge.blocks[layer]
            self._stream(layer)
            self._norm(f"{here}ln1", block._modules.get("ln1"), f"{here}hook_resid_pre")
            mid = f"{here}hook_resid_mid"
            self._norm(f"{here}ln2", block._modules.get("ln2"), mid if self.has(mid) else f"{here}hook_resid_pre")
            self._attention(layer, block._modules.get("attn"))
            self._mlp(f"{here}mlp.", block._modules.get("mlp"))
        self._norm("ln_final", self.bridge._modules.get("ln_final"), f"blocks.{last}.hook_resid_post")
        self._read_out(f"blocks.{last}.hook_resid_post")
        return self.found

    def has(self, *names: str) -> bool:
        """Whether these sites took part, with the axes they should have."""
        return all(name in self.seen and name not in self.found.refuted for name in names)

    def judge(self, holds: bool, proves: Sequence[str], refutes: Sequence[str]) -> None:
        """Record an equation: if it holds it proves some sites, if not it refutes others."""
        if holds:
            self.found.proven.update(name for name in proves if self.has(name))
        else:
            self.found.refuted.update(refutes)

    def close(self, value: Tensor, expected: Tensor) -> bool:
        """Whether all entries of two tensors agree, relative to their size and to the mean size."""
        if value.shape != expected.shape:
            return False
        value, expected = value.double(), expected.double()
        sizes = expected.abs()
        return bool(((value - expected).abs() <= self.tolerance * (sizes + sizes.mean())).all())

    def _embedding(self) -> None:
        first, embed, position = "blocks.0.hook_resid_pre", "hook_embed", "hook_pos_embed"
        if not self.has(first, embed):
            return
        total = self.given[embed] + (self.given[position] if self.has(position) else 0)
        table = self.bridge.original_model.get_input_embeddings()(self.tokens)
        holds = self.close(self.seen[first], total) and self.close(self.seen[embed], table)
        self.judge(holds, [embed, position], [embed, position])

    def _stream(self, layer: int) -> None:
        here, given, seen = f"blocks.{layer}.hook_", self.given, self.seen
        pre, mid, post, attn, mlp = (
            here + name for name in ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out")
        )
        refused = f"{self.cfg.model_name!r} cannot be used as one of our models: block {layer} "
        if not self.has(pre, post):
            raise ConfigError(refused + "shows no residual stream [batch, pos, d_model] before and after it")
        if layer and not self.close(seen[pre], given[f"blocks.{layer - 1}.hook_resid_post"]):
            raise ConfigError(refused + "does not receive the residual stream of the block before it")
        self.judge(True, [pre, post], [])
        if self.has(mid):
            if self.has(attn):
                self.judge(self.close(seen[mid], given[pre] + given[attn]), [mid, attn], [attn])
            if self.has(mlp):
                self.judge(self.close(seen[post], given[mid] + given[mlp]), [mid, mlp], [mid, mlp])
        elif self.has(attn, mlp):
            self.judge(self.close(seen[post], given[pre] + given[attn] + given[mlp]), [attn, mlp], [attn, mlp])
        elif self.has(attn):
            self.judge(self.close(seen[post], given[pre] + given[attn]), [attn], [attn])

    def _norm(self, path: str, norm: Any, resid: str) -> None:
        """scale = sqrt(mean(x^2) + eps); normalized = x / scale; out = normalized w + b."""
        scale, normalized = f"{path}.hook_scale", f"{path}.hook_normalized"
        if norm is None or not self.has(scale, normalized, resid):
            return
        weight, bias, centers = norm_parts(norm)
        x = self.given[resid].double()
        x = x - x.mean(-1, keepdim=True) if centers else x
        inner = norm.original_component
        eps = getattr(inner, "eps", getattr(inner, "variance_epsilon", getattr(norm.config, "eps", 1e-5)))
        out = self.given[normalized] * weight + (0 if bias is None else bias)
        holds = (
            self.close(self.seen[scale], (x.pow(2).mean(-1, keepdim=True) + eps).sqrt())
            and self.close(self.seen[normalized], x / self.given[scale].double())
            and f"{path}.hook_out" in self.inside
            and self.close(self.inside[f"{path}.hook_out"], out)
        )
        self.judge(holds, [scale, normalized], [scale, normalized])
        if holds:
            self.found.norms.add(path)

    def _attention(self, layer: int, attn: Any) -> None:
        here, given, seen, found = f"blocks.{layer}.attn.hook_", self.given, self.seen, self.found
        v, z, pattern, scores = (here + name for name in ("v", "z", "pattern", "attn_scores"))
        if self.has(v, z, pattern):
            mixed = [self._mix(grid, given[v]) for grid in (given[pattern], seen[pattern])]
            if self.close(seen[z], mixed[1]) and not self.close(seen[z], mixed[0]):
                found.read_only.add(pattern)
            self.judge(any(self.close(seen[z], m) for m in mixed), [v, z, pattern], [v, pattern])
        if self.has(scores, pattern):
            holds = self.close(seen[pattern], given[scores].softmax(-1, dtype=torch.double))
            self.judge(holds, [scores], [scores])
        self._queries_and_keys(here, self._uncapped(seen[scores]) if self.has(scores) else None, pattern)
        out, heads = self.inside.get(f"blocks.{layer}.attn.o.hook_out"), getattr(attn, "W_O", None)
        if self.has(z) and out is not None and heads is not None:
            bias = 0 if attn.b_O is None else attn.b_O
            mapped = einsum(given[z], heads, "batch pos head d_head, head d_head d_model -> batch pos d_model") + bias
            holds = self.close(out, mapped)
            self.judge(holds, [z], [z])
            total = seen.get(f"blocks.{layer}.hook_attn_out")
            if holds and total is not None and self.close(total, out):
                found.heads_add.add(layer)

    def _uncapped(self, scores: Tensor) -> Tensor:
        cap = getattr(self.bridge.cfg, "attn_scores_soft_cap", None)
        return cap * (scores / cap).atanh() if cap is not None and cap > 0 else scores

    def _mix(self, pattern: Tensor, v: Tensor) -> Tensor:
        v = self._to_query_heads(v)
        return einsum(pattern, v, "batch head query key, batch key head d -> batch query head d")

    def _to_query_heads(self, x: Tensor) -> Tensor:
        group = self.cfg.n_heads // self.cfg.n_kv_heads
        return repeat(x, "batch pos kv_head d -> batch pos (kv_head group) d", group=group)

    def _queries_and_keys(self, here: str, scores: Tensor | None, pattern: str) -> None:
        """Scores are proportional to q k, and so is the logarithm of the pattern, up to a constant for each query."""
        rotary = self.cfg.positional_embedding_type == "rotary"
        seen_rotated = self.has(here + "rot_q", here + "rot_k")
        q, k = (here + ("rot_" if seen_rotated else "") + name for name in "qk")
        if not self.has(q, k):
            return
        keys = self._to_query_heads(self.given[k])
        product = einsum(self.given[q], keys, "batch query head d, batch key head d -> batch head query key")
        if rotary and not seen_rotated:
            # A query and the key of its own position are rotated by the same angle: their product does not change.
            own = product.diagonal(dim1=-2, dim2=-1)
            holds = scores is not None and self._proportional(scores.diagonal(dim1=-2, dim2=-1), own)
        else:
            holds = scores is not None and self._proportional(scores, product)
            if not holds and self.has(pattern):
                holds = self._proportional(self.seen[pattern].log(), product, up_to_rows=True)
        self.judge(holds, [q, k], [q, k])
        for name, rotated in ((here + "q", q), (here + "k", k)) if seen_rotated else ():
            if self.has(name, rotated):
                # A rotation keeps lengths, and leaves the first position unchanged.
                before, after = self.given[name], self.seen[rotated]
                same = self.close(before.norm(dim=-1), after.norm(dim=-1)) and self.close(before[:, 0], after[:, 0])
                self.judge(same, [name], [name])

    def _proportional(self, scores: Tensor, product: Tensor, *, up_to_rows: bool = False) -> bool:
        """Whether the differences between the two prompts are proportional: terms that both share (ALiBi) cancel.

        With `up_to_rows`, terms that all keys of a query share (the sum that softmax divides by) cancel as well.
        """
        scores, product = (scores[0] - scores[1]).double(), (product[0] - product[1]).double()
        allowed = scores.isfinite()
        if up_to_rows:
            scores, product = (x - _row_means(x, allowed) for x in (scores, product))
        scores, product = scores[allowed], product[allowed]
        factor = (scores * product).sum() / product.pow(2).sum()
        return bool(factor > 0) and self.close(scores, product * factor)

    def _mlp(self, here: str, mlp: Any) -> None:
        pre, linear, post = (f"{here}hook_{name}" for name in ("pre", "pre_linear", "post"))
        last = None if mlp is None else mlp._modules.get("out")
        if last is None or not self.has(post) or f"{here}out.hook_out" not in self.inside:
            return
        out = last.original_component(self.given[post])
        self.judge(self.close(self.inside[f"{here}out.hook_out"], out), [post], [post])
        self.found.d_mlp = self.given[post].shape[-1]
        if not self.has(post, pre):
            return
        other = self.given[linear] if self.has(linear) else 1
        fits = [name for name, act in ACTIVATIONS.items() if self.close(self.seen[post], act(self.given[pre]) * other)]
        self.judge(bool(fits), [pre, linear], [pre, linear])
        self.found.act_fn = fits[0] if fits else None

    def _read_out(self, resid: str) -> None:
        entered, norm = self.inside.get("unembed.hook_in"), self.bridge._modules.get("ln_final")
        if entered is None:
            return
        if "ln_final.hook_normalized" in self.seen:
            left = self.inside["ln_final.hook_out"] if "ln_final" in self.found.norms else None
        else:
            left = self.given[resid] if norm is None else norm.original_component(self.given[resid])
        plain = entered @ self.bridge.unembed.W_U + self.bridge.unembed.b_U
        cap = getattr(self.bridge.cfg, "output_logits_soft_cap", None)
        if cap is not None and cap > 0:
            self.found.logit_cap = float(cap)
            plain = cap * (plain / cap).tanh()
        elif not self.close(self.logits, plain):
            self.found.logit_factor = float((self.logits * plain).sum() / plain.pow(2).sum())
        holds = self.close(self.logits, plain * self.found.logit_factor)
        self.found.reads_out = holds and left is not None and self.close(entered, left)


def _row_means(x: Tensor, allowed: Tensor) -> Tensor:
    return x.masked_fill(~allowed, 0).sum(-1, keepdim=True) / allowed.sum(-1, keepdim=True)


def norm_parts(norm: Any) -> tuple[Tensor, Tensor | None, bool]:
    """Weight and bias [d_model] of a norm of the bridge, and whether it subtracts the mean."""
    weight = norm.weight
    bias = None if norm.uses_rms_norm else getattr(norm.original_component, "bias", None)
    return (1 + weight if norm.uses_weight_offset else weight), bias, not norm.uses_rms_norm

"""What a head does, judged from its patterns: on random tokens, ordered lists, and prompts of any kind.

1. Sequences of random tokens whose second half repeats the first: a head cannot rely on the meaning of words there. As
   a control, sequences whose second half has other tokens: a head that always looks a fixed number of positions back
   does the same in both.
2. Links say which keys count for a query: the previous position, an earlier occurrence of the same token, or the
   position after one. A score is the attention along links, averaged over the queries that have any.
3. Writing: how high does a head's own contribution place the tokens that it attends to (copying), or the next one of an
   ordered list (successor), among the tokens that it could have attended to?

The first position is neither query nor key of a link, because heads rest their attention there when they have nothing
to look at. In a model without attention the heads are those of Mamba-2 layers, and a pattern is the share of hidden
attention.

Sources: Olsson et al. 2022 ("In-context Learning and Induction Heads", appendix on head activation evaluators) for
repeated random tokens, prefix matching and copying; Gould et al. 2023 ("Successor Heads") for ordered lists.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from einops import einsum
from torch import Tensor

from interp.arguments import MOST, checked, is_whole, shown, whole_number
from interp.arguments import seed as check_seed
from interp.errors import InterpError, PromptError
from interp.heads.from_weights import MIN_LENGTH, check_one_vocabulary, standing
from interp.heads.hidden_attention import mixer_of, patterns, shares, sources
from interp.hooked.cache import ActivationCache
from interp.hooked.model import HookedModel
from interp.prompts.pairs import PromptPairs
from interp.sites import norm_on_stream
from interp.text.padding import as_mask

LENGTH = 25  # tokens in a run, unless the caller says otherwise
BATCH = 16  # sequences in one forward
MIN_LIST_WORDS = 4
LISTS = {
    "days": "Monday Tuesday Wednesday Thursday Friday Saturday Sunday",
    "months": "January February March April May June July August September October November December",
    "numbers": "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen",
    "ordinals": "first second third fourth fifth sixth seventh eighth ninth tenth",
    "letters": "A B C D E F G H I J K L M N O P Q R S T U V W X Y Z",
    "digits": "0 1 2 3 4 5 6 7 8 9",
}
"""Ordered lists of words; only those that are single tokens for the model's tokenizer are used."""


@dataclass(frozen=True)
class Sequences:
    """Random tokens.

    Attributes:
        repeated: ids [sequence, pos], a run of different tokens twice.
        fresh: the control: the same first run, then a run of other tokens, all different.
        start: where the first run begins: 1 after a beginning token, else 0.
        length: tokens in a run.
    """

    repeated: Tensor
    fresh: Tensor
    start: int
    length: int


@checked
def random_sequences(
    model: HookedModel, n: int = 16, *, length: int | None = None, seed: int = 0, bos: int | None = None
) -> Sequences:
    """Repeated random tokens and their control.

    Args:
        model: gives the vocabulary, without special tokens, and the length of the context.
        n: how many sequences.
        length: tokens in a run; None takes 25, or as many as context and vocabulary allow.
        seed: of the draws; no global generator is touched.
        bos: id of a token to put first; None takes the one that the tokenizer adds, if it adds one.

    Raises:
        PromptError: a length below 3 or one that the model cannot take, fewer than one sequence.
    """
    n, seed = whole_number("n", n, least=1, most=MOST, refuse=PromptError), check_seed(seed)
    front = _beginning(model, bos)
    ids = plain_tokens(model)
    ids = ids[~torch.isin(ids, torch.tensor(front, dtype=torch.int64))]
    longest = min((model.cfg.n_ctx - len(front)) // 2, len(ids) // 2)
    length = min(LENGTH, longest) if length is None else length
    if not is_whole(length) or not MIN_LENGTH <= length <= longest:
        raise PromptError(
            f"length={shown(length)} must be a whole number of at least {MIN_LENGTH}, and at most {longest}: two runs "
            f"must fit into this model's context of {model.cfg.n_ctx} tokens, without repeating any of the {len(ids)} "
            "tokens to draw from"
        )
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.stack(  # [sequence, both runs]
        [ids[torch.randperm(len(ids), generator=generator)[: 2 * length]] for _ in range(n)]
    )
    first = torch.cat([torch.tensor(front, dtype=torch.int64).expand(n, -1), drawn[:, :length]], dim=1)
    repeated, fresh = (
        torch.cat([first, half], dim=1).to(model.device) for half in (drawn[:, :length], drawn[:, length:])
    )
    return Sequences(repeated, fresh, len(front), length)


def plain_tokens(model: HookedModel) -> Tensor:
    """The ids of the vocabulary that are not special tokens; all ids of a model without a tokenizer."""
    ids = torch.arange(model.cfg.d_vocab)
    if model.tokenizer is None:
        return ids
    added = [at for at in model.tokenizer.backend.get_added_tokens_decoder() if at < len(ids)]
    keep = ids < len(model.tokenizer)
    keep[torch.tensor(added, dtype=torch.int64)] = False
    return ids[keep]


def ordered_lists(model: HookedModel) -> dict[str, Tensor]:
    """Name -> ids of the longest stretch of single-token words in each of `LISTS`, if it has four words or more.

    Raises:
        InterpError: a model without a tokenizer, or one whose tokenizer has no such stretch.
    """
    tokenizer = model.tokenizer
    if tokenizer is None:
        raise InterpError("the model has no tokenizer, which ordered lists of words need; set model.tokenizer")
    lists = {}
    for name, words in LISTS.items():
        stretches: list[list[int]] = []
        for space in (" ", ""):
            stretches.append([])
            for word in words.split():
                token = tokenizer.single_id(space + word)
                # A tokenizer may map all unknown words to one token, which does not decode to the word.
                if token is None or tokenizer.decode([token]).strip() != word:
                    stretches.append([])
                else:
                    stretches[-1].append(token)
        longest = max(stretches, key=len)
        if len(longest) >= MIN_LIST_WORDS:
            lists[name] = torch.tensor(longest)
    if not lists:
        raise InterpError(
            f"no ordered list ({', '.join(LISTS)}) has {MIN_LIST_WORDS} neighbouring words that are single tokens for "
            "this model's tokenizer"
        )
    return lists


@checked
def links(tokens: Tensor, mask: Tensor | None = None) -> dict[str, Tensor]:
    """Detector -> which keys count for which queries [batch, query, key]; keys come before their queries.

    Args:
        tokens: ids [batch, pos].
        mask: True at real tokens; None means all.
    """
    n = tokens.shape[1]
    inside = torch.ones_like(tokens, dtype=torch.bool) if mask is None else as_mask(mask, "mask").to(tokens.device)
    inside = inside & (torch.arange(n, device=tokens.device) > 0)
    earlier = torch.ones(n, n, dtype=torch.bool, device=tokens.device).tril(-1)
    allowed = earlier & inside[:, :, None] & inside[:, None, :]
    same = (tokens[:, :, None] == tokens[:, None, :]) & allowed
    after_same = torch.zeros_like(same)
    after_same[:, :, 1:] = same[:, :, :-1]  # the key after one of the same token
    previous = torch.eye(n, dtype=torch.bool, device=tokens.device).roll(-1, 1)
    return {"previous_token": previous & allowed, "duplicate_token": same, "induction": after_same & allowed}


@checked
def along(pattern: Tensor, linked: Tensor) -> Tensor:
    """Mean attention along links, over the queries that have links; NaN if none has.

    Args:
        pattern: [batch, head, query, key].
        linked: [batch, query, key], as `links` gives them.

    Returns:
        [batch, head].
    """
    paid = einsum(pattern, linked.to(pattern), "batch head query key, batch query key -> batch head")
    return paid / linked.any(-1).sum(-1).to(pattern)[:, None]


def evenly(linked: Tensor, *, causal: bool, mask: Tensor | None = None) -> Tensor:
    """What `along` gives for a head that spreads its attention evenly over all allowed keys.  # [batch]"""
    batch, n, _ = linked.shape
    real = torch.ones(batch, n, dtype=torch.bool) if mask is None else as_mask(mask, "mask")
    seen = real.to(linked.device)[:, None, :].float().expand(-1, n, -1)
    seen = seen.tril() if causal else seen
    return along((seen / seen.sum(-1, keepdim=True).clamp(min=1))[:, None], linked)[:, 0]


def heads_of(model: HookedModel) -> tuple[str, list[int]]:
    """The axis of a model's heads ("head", or "ssm_head" for a model without attention), and the layers that have it.

    Raises:
        InterpError: no layer has heads.
    """
    for axis, mixer in (("head", "attn"), ("ssm_head", "mamba2")):
        layers = model.cfg.layers_with(mixer)
        if layers or (mixer == "attn" and not model.cfg.has_mamba):
            return axis, layers
    raise InterpError(
        "this model has no heads, only the channels of Mamba-1 layers; use attention-patterns to see what they look at"
    )


def look(
    model: HookedModel, tokens: Tensor, linked: dict[str, Tensor], mask: Tensor | None = None
) -> dict[str, Tensor]:
    """Attention along links of every head: detector -> [batch, layer, head], for the layers of `heads_of`.

    Raises:
        InterpError: a model without patterns, or without heads.
    """
    axis, layers = heads_of(model)
    parts: dict[str, list[Tensor]] = {name: [] for name in linked}
    for rows, cache in _caches(model, tokens, layers, ("pattern",), mask):
        scores: dict[str, list[Tensor]] = {name: [] for name in linked}
        for layer in layers:
            pattern = cache["pattern", layer].float() if axis == "head" else _hidden(model, cache, layer, rows, mask)
            for name, keys in linked.items():
                scores[name].append(along(pattern, keys[rows]))  # [batch, head]
        for name, by_layer in scores.items():
            parts[name].append(torch.stack(by_layer, dim=1).cpu())  # [batch, layer, head]
    return {name: torch.cat(batches) for name, batches in parts.items()}


def _hidden(model: HookedModel, cache: ActivationCache, layer: int, rows: slice, mask: Tensor | None) -> Tensor:
    """The shares of hidden attention of a Mamba-2 layer.  # [batch, ssm_head, query, key]"""
    D = mixer_of(model, layer).D
    by_prompts = patterns(model, cache, layer, None if mask is None else mask[rows])
    return torch.cat([shares(pattern, D) for _, pattern in by_prompts])


@checked
def copies(model: HookedModel, sequences: Sequences) -> Tensor:
    """How high a head's own contribution places the tokens that it attends to, where tokens repeat.

    Args:
        model: the model.
        sequences: random tokens that occur twice; only queries of the second run count.

    Returns:
        [sequence, layer, head] from -1 to 1: the mean `standing` of the attended tokens' logits among those of all
        tokens of the run, weighted by attention; 0 by chance.

    Raises:
        InterpError: a model without the separate contributions of its heads, or without a logit for every token that
            it reads.
    """
    runs = [slice(at, at + sequences.length) for at in (sequences.start, sequences.start + sequences.length)]
    check_one_vocabulary(model)

    def score(layer: int, cache: ActivationCache, rows: slice) -> Tensor:
        logits = _written(model, layer, cache, sequences.repeated[rows, runs[0]])[:, :, runs[1]]
        pattern = cache["pattern", layer][:, :, runs[1]].float().clone()  # [batch, head, query, key]
        pattern[..., 0] = 0
        # Both runs have the same tokens: attention to a token is attention to either occurrence.
        return _weighted(pattern[..., runs[0]] + pattern[..., runs[1]], standing(logits, logits))

    return _over_layers(model, sequences.repeated, score)


def steps(model: HookedModel, tokens: Tensor, ordered: Tensor) -> Tensor:
    """The share of a head's attention that goes to words whose successor its own contribution raises most.

    Args:
        model: the model.
        tokens: ids [batch, pos] of the list's words in any order, perhaps after a beginning token.
        ordered: ids [token] of the list in its order.

    Returns:
        [batch, layer, head] from 0 to 1; the words of the list compete, so that chance is 1 / len(ordered).

    Raises:
        InterpError: as `copies`.
    """
    check_one_vocabulary(model)
    ordered = ordered.to(tokens.device)
    word_at = tokens[:, :, None] == ordered[:-1]  # [batch, key, word]: which word a key is, if it has a successor
    word_at[:, 0] = False

    def score(layer: int, cache: ActivationCache, rows: slice) -> Tensor:
        logits = _written(model, layer, cache, ordered.expand(len(tokens[rows]), -1))  # [batch, head, query, word]
        highest = logits >= logits.amax(-1, keepdim=True)
        # For each word: is its successor highest, and it alone?  # [batch, head, query, word]
        hit = highest[..., 1:].float() * (highest.sum(-1, keepdim=True) == 1)
        paid = cache["pattern", layer].float() * word_at[rows].any(-1)[:, None, None]  # [batch, head, query, key]
        hit_at = einsum(hit, word_at[rows].to(hit), "batch head query word, batch key word -> batch head query key")
        return _weighted(paid, hit_at)

    return _over_layers(model, tokens, score)


@checked
def shuffled_list(model: HookedModel, ordered: Tensor, n: int, *, seed: int = 0, bos: int | None = None) -> Tensor:
    """The words of a list in `n` random orders, after the beginning token, if there is one.  # [n, pos]"""
    n, generator = whole_number("n", n, least=1, most=MOST), torch.Generator().manual_seed(check_seed(seed))
    if ordered.ndim != 1 or not len(ordered):
        raise PromptError(f"ordered must be ids [word], at least one, not of shape {list(ordered.shape)}")
    rows = torch.stack([ordered[torch.randperm(len(ordered), generator=generator)] for _ in range(n)])
    front = torch.tensor(_beginning(model, bos), dtype=torch.int64).expand(n, -1)
    return torch.cat([front, rows], dim=1)[:, : model.cfg.n_ctx].to(model.device)


def of_prompts(model: HookedModel, pairs: PromptPairs) -> dict[str, tuple[Tensor, Tensor]]:
    """Detector -> attention along the links of the clean prompts [batch, layer, head], and if spread evenly [batch].

    NaN for prompts without such a link: a token that occurs once has no earlier occurrence.

    Raises:
        InterpError: a model without patterns.
    """
    pairs = pairs.to(model.device)
    linked = links(pairs.clean, pairs.mask)
    paid = look(model, pairs.clean, linked, pairs.attention_mask)
    return {
        name: (paid[name], evenly(keys, causal=model.cfg.causal, mask=pairs.mask).cpu())
        for name, keys in linked.items()
    }


def _beginning(model: HookedModel, bos: int | None) -> list[int]:
    """The ids before the first drawn token: the beginning token, or none."""
    if bos is not None:
        if not is_whole(bos) or not 0 <= bos < model.cfg.d_vocab:
            raise PromptError(
                f"bos={shown(bos)} is not a token id of this model: give one of 0 to {model.cfg.d_vocab - 1}"
            )
        return [int(bos)]
    tokenizer = model.tokenizer
    if tokenizer is None or tokenizer.bos_token_id is None:
        return []
    first = tokenizer.encode("a")[:1]
    return first if first == [tokenizer.bos_token_id] else []


def _over_layers(model: HookedModel, tokens: Tensor, score: Callable[[int, ActivationCache, slice], Tensor]) -> Tensor:
    """A score [batch, head] of every layer with attention: [batch, layer, head]."""
    axis, layers = heads_of(model)
    if axis != "head":
        raise InterpError("copying and successor heads are judged by attention, and this model has none")
    parts = []
    for rows, cache in _caches(model, tokens, layers, ("pattern", "z"), None):
        parts.append(torch.stack([score(layer, cache, rows) for layer in layers], dim=1).cpu())
    return torch.cat(parts)


@torch.no_grad()
def _caches(
    model: HookedModel, tokens: Tensor, layers: Sequence[int], sites: tuple[str, ...], mask: Tensor | None
) -> Iterator[tuple[slice, ActivationCache]]:
    """The batch in parts: the rows of each part, and its cache of `sites` (or of what hidden attention needs)."""
    names = [
        name
        for layer in layers
        for name in (
            [f"blocks.{layer}.attn.hook_{site}" for site in sites] if model.cfg.attends(layer) else sources(layer)
        )
    ]
    absent = [name for name in names if name not in model.hook_dict]
    if absent:
        raise InterpError(f"heads are judged by {' and '.join(sites)}, and this model has no site {absent[0]!r}")
    for at in range(0, len(tokens), BATCH):
        rows = slice(at, at + BATCH)
        _, cache = model.run_with_cache(
            tokens[rows],
            names_filter=names,
            attention_mask=None if mask is None else mask[rows],
            stop_at_layer=model.cfg.n_layers,
        )
        yield rows, cache


@torch.no_grad()
def _written(model: HookedModel, layer: int, cache: ActivationCache, tokens: Tensor) -> Tensor:
    """What heads add to the logits of some tokens, without the scales of norms.  # [batch, head, query, token]"""
    cfg = model.cfg
    results = model.head_results(layer, cache["z", layer])  # [batch, query, head, d_model]
    later = [norm_on_stream(cfg, part, at) for at in range(layer, cfg.n_layers) for part in ("attn", "mlp")]
    norms = [
        model.get_submodule(path) for path in later if path is not None and f"{path}.hook_scale" in model.hook_dict
    ]
    for norm in (*norms, model.norm_before(cfg.n_layers)):
        if norm is not None:
            results = norm.scaled(results, results.new_ones(()))  # type: ignore[operator]
    columns = model.W_U.T[tokens]  # [batch, token, d_model]
    return einsum(
        results.float(), columns.float(), "batch query head d_model, batch token d_model -> batch head query token"
    )


def _weighted(attention: Tensor, values: Tensor) -> Tensor:
    """Mean of values [batch, head, query, key], weighted by attention; NaN where there was none.  # [batch, head]"""
    return (attention * values).sum((-2, -1)) / attention.sum((-2, -1))

"""Running circuits: what does the model do when every edge outside a circuit carries an ablated value?

1. Run the base prompts once, and take the values that replace every sender when it is ablated
   (`interp.variants.ablations`).
2. A receiver of a circuit's run reads what it would read if all senders before it were ablated, plus, for each edge
   that the circuit has, what the sender writes in this run less its ablated value. So the whole model is the base run,
   and the circuit without edges the run in which everything is ablated.
3. Senders are recorded as the forward computes them, those alone that some edge of the circuit reads.
4. The rows of many circuits and prompts go through the model together, as many as memory allows, circuits of similar
   size side by side.

Where all rows have every edge into a place, it reads the residual stream as it is. Under interchange, positions before
the first token in which base and other prompts differ are the same in every circuit: their keys, values and states are
those of the base run, and nothing else of them is computed.

Source: Conmy et al. 2023 ("Towards Automated Circuit Discovery", section 2) and Hanna et al. 2024 ("Have Faith in
Faithfulness", section 2) run circuits with these values, the latter as in MIB (Mueller et al. 2025).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from interp.arguments import byte_budget, checked
from interp.attribution.shared_start import SharedStart, shared_start
from interp.circuits.circuit import Circuit
from interp.circuits.graph import Graph, head_results, written
from interp.circuits.run_memory import circuit_chunks, prompt_blocks
from interp.errors import InterpError
from interp.hooked.hooks import HookFunction, HookPoint, attached
from interp.hooked.model import HookedModel
from interp.metrics import Metric, check_metric, evaluate, get_metric, where_read, which_read
from interp.precision import wide_type
from interp.progress import counting
from interp.prompts.pair_checks import other_side
from interp.prompts.pairs import PromptPairs
from interp.sweeps.machine import free_memory
from interp.variants.ablations import replacements


@checked
@torch.no_grad()
def run_circuits(
    model: HookedModel,
    pairs: PromptPairs,
    circuits: Sequence[Circuit] | Tensor,
    graph: Graph | None = None,
    *,
    metric: str | Metric | Callable[..., Tensor] = "logit_diff",
    base: str = "clean",
    ablation: str = "corrupt",
    seed: int = 0,
    max_memory: int | None = None,
    progress: bool | None = None,
) -> Tensor:
    """The metric of circuits on prompts.

    Args:
        model: the model.
        pairs: the prompts.
        circuits: circuits, or masks [circuit, sender, receiver] bool of the edges that each has. They are run as they
            are, edges without a way to the logits included.
        graph: `Graph.of(model)`, if it is there already.
        metric: as `interp.sweep` takes it; one that compares does so with the whole model's run.
        base: the side that is run, "clean" or "corrupt".
        ablation: what replaces a sender's value, a name of `interp.variants.ablations.ABLATIONS`; "corrupt" is the
            run of the other side, and means and draws are over that side's prompts, too.
        seed: of the draws of "resample".
        max_memory: bytes to allocate beyond the weights, about; None takes a part of what is free.
        progress: a bar on stderr; None shows it on a terminal.

    Returns:
        [circuit, prompt] in float64 on the CPU.

    Raises:
        UnknownName: a metric, side or ablation that does not exist.
        InterpError: a model without split inputs, circuits of another architecture, an ablation that the prompts do not
            allow.
        ConfigError: `max_memory` does not hold one circuit on one prompt.
    """
    ablated_side = other_side(base)
    graph, measure = graph or Graph.of(model), get_metric(metric)
    masks = _masks(circuits, graph)
    check_metric(measure, pairs, model.cfg.d_vocab_out)
    pairs = pairs.to(model.device)
    max_memory = byte_budget(max_memory)
    budget = free_memory(model.device) if max_memory is None else max_memory
    instead = replacements(model, pairs, graph.sender_sites, ablation, run=ablated_side, seed=seed)
    values = torch.full((len(masks), len(pairs)), torch.nan, dtype=torch.float64)
    by_size = masks.flatten(1).sum(1).argsort(stable=True)
    with counting(desc="circuits", total=values.numel(), unit=" runs", rate=False, progress=progress) as bar:
        for prompts in prompt_blocks(model, graph, pairs, measure, budget):
            prepared = _prepare(model, graph, pairs, prompts, instead, measure, base, shares=ablation == "corrupt")
            for chosen in circuit_chunks(model, masks, by_size, len(prompts), pairs.mask.shape[1], measure, budget):
                found = _run(model, graph, prepared, masks[chosen], measure)
                values[chosen[:, None], torch.tensor(prompts)] = found.double().cpu()
                bar.update(found.numel())
    return values


@dataclass(frozen=True, eq=False)
class _Prepared:
    """Some prompts, and what all circuits have in common on them.

    Attributes:
        pairs, side, tokens: the prompts, the side that is run, and its ids.
        start: the positions before circuits can differ from the base run.
        ablated: sender site -> what replaces its value after them [prompt, pos, ...].
        all_ablated: receiver stage -> the residual stream if all senders before it were ablated [prompt, pos, d_model].
        reference: what the metric reads of the base run's logits, if it compares with them.
    """

    pairs: PromptPairs
    side: str
    tokens: Tensor
    start: SharedStart
    ablated: dict[str, Tensor]
    all_ablated: dict[int, Tensor]
    reference: Tensor | None


def _prepare(
    model: HookedModel,
    graph: Graph,
    pairs: PromptPairs,
    prompts: range,
    instead: dict[str, Tensor],
    metric: Metric,
    base: str,
    *,
    shares: bool,
) -> _Prepared:
    """Step 1 for some prompts; `shares` says that positions may be the same in every circuit (interchange)."""
    part = pairs[list(prompts)]
    tokens = getattr(part, base)
    start = shared_start(model, part, metric, base) if shares else SharedStart()
    first = start.first
    ablated = {name: value[prompts.start : prompts.stop, first : part.mask.shape[1]] for name, value in instead.items()}
    reference = None
    if metric.needs_reference:
        resid = model(tokens, attention_mask=part.attention_mask, stop_at_layer=model.cfg.n_layers)
        reference = _read_out(model, resid, part, metric, torch.arange(len(part)))
    return _Prepared(part, base, tokens, start, ablated, _all_ablated(model, graph, ablated), reference)


def _all_ablated(model: HookedModel, graph: Graph, ablated: dict[str, Tensor]) -> dict[int, Tensor]:
    """Receiver stage -> the residual stream if all senders before it were ablated [prompt, pos, d_model]."""
    wide = wide_type(model.dtype)
    sites: dict[int, dict[str, None]] = {}  # stage -> its senders' sites, each once
    for node in graph.senders:
        sites.setdefault(node.stage, {})[node.site] = None
    streams, stream = {}, torch.zeros((), device=model.device, dtype=wide)
    for stage in sorted({*sites, *(node.stage for node in graph.receivers)}):
        streams[stage] = stream
        for site in sites.get(stage, ()):
            stream = stream + written(model, site, ablated[site]).to(wide)
    return streams


def _run(model: HookedModel, graph: Graph, prepared: _Prepared, masks: Tensor, metric: Metric) -> Tensor:
    """The metric [circuit, prompt] of some circuits on the prompts of a block."""
    n_circuits, n_prompts = len(masks), len(prepared.pairs)
    # 4. A row for each circuit and prompt.
    prompt = torch.arange(n_prompts).repeat(n_circuits)  # [row]
    circuit = torch.arange(n_circuits).repeat_interleave(n_prompts)  # [row]
    run = _CircuitRun(model, graph, prepared, masks, circuit, prompt)
    mask = prepared.pairs.attention_mask
    past = prepared.start.past(model.cfg, prompt)
    if past is not None:
        # Padding comes after all that is read, and a state is not continued from it.
        mask = None if model.cfg.has_mamba else mask
    with attached(model.hook_dict, list(run.writes()), readers=list(run.reads())):
        resid = model(
            prepared.tokens[prompt, prepared.start.first :],
            attention_mask=None if mask is None else mask[prompt],
            stop_at_layer=model.cfg.n_layers,
            past_kv_cache=past,
        )
    final = run.inputs([len(graph.receivers) - 1])  # of the logits [row, 1, pos, d_model]
    resid = resid if final is None else final[:, 0].to(resid.dtype)
    seen = _read_out(model, resid, prepared.pairs, metric, prompt, first=prepared.start.first)
    seen = seen.unflatten(0, (n_circuits, n_prompts))
    return torch.stack([evaluate(metric, one, prepared.pairs, prepared.reference, side=prepared.side) for one in seen])


class _CircuitRun:
    """One forward of rows (circuit, prompt): what its senders wrote so far, and what its receivers read.

    Attributes:
        prompt: the prompt of every row [row].
        senders: the senders that some edge of some circuit reads, by their places in the graph.
        sites: their sites, each with its senders.
        edges: whether a row's circuit has an edge from one of them to a receiver, 1 or 0 [row, sender, receiver].
        changes: what each writes in this run, less its ablated value [row, sender, pos, d_model].
        complete: for every receiver whether all circuits have all edges into it, so that it reads the stream as it is.
        latest: the receivers whose inputs were computed last, and those inputs.
    """

    def __init__(
        self, model: HookedModel, graph: Graph, prepared: _Prepared, masks: Tensor, circuit: Tensor, prompt: Tensor
    ) -> None:
        self.model, self.graph, self.prepared = model, graph, prepared
        self.prompt = prompt.to(model.device)
        self.senders: list[int] = masks.any(2).any(0).nonzero()[:, 0].tolist()
        self.complete: list[bool] = (masks | ~graph.allowed).all(1).all(0).tolist()
        self.sites: dict[str, list[int]] = {}
        for at in self.senders:
            self.sites.setdefault(graph.senders[at].site, []).append(at)
        n_pos = prepared.pairs.mask.shape[1] - prepared.start.first
        shape = (len(circuit), len(self.senders), n_pos, model.cfg.d_model)
        self.changes = torch.empty(shape, device=model.device, dtype=wide_type(model.dtype))
        self.edges = masks[:, self.senders].to(self.changes)[circuit.to(model.device)]
        self.latest: tuple[list[int], Tensor | None] = ([], None)

    def reads(self) -> Iterator[tuple[str, HookFunction]]:
        """What records the senders that some edge reads (step 3)."""
        for site in self.sites:
            yield site, self._record

    def writes(self) -> Iterator[tuple[str, HookFunction]]:
        """What sets the inputs of receivers that compute for a sender that some edge reads (step 2)."""
        working = {(self.graph.senders[at].layer, self.graph.senders[at].kind) for at in self.senders}
        for site in self.graph.receiver_sites[:-1]:
            nodes = self._at(site)
            here = self.graph.receivers[nodes[0]]
            if (here.layer, here.kind) in working and not all(self.complete[at] for at in nodes):
                yield site, self._replace

    def inputs(self, receivers: list[int]) -> Tensor | None:
        """What receivers of one stage read [row, receiver, pos, d_model]; None where it is what they read anyway."""
        if all(self.complete[at] for at in receivers):
            return None
        stage = self.graph.receivers[receivers[0]].stage
        before = sum(self.graph.senders[at].stage < stage for at in self.senders)
        ablated = self.prepared.all_ablated[stage][self.prompt][:, None]  # [row, 1, pos, d_model]
        edges, changes = self.edges[:, :before, receivers], self.changes[:, :before]
        used = edges.any(2).any(0).nonzero()[:, 0]  # senders that any row reads here
        if not len(used):
            return ablated.expand(-1, len(receivers), -1, -1)
        if 2 * len(used) < before:  # where most are not read, a copy of the others is cheaper than their products
            edges, changes = edges[:, used], changes[:, used]
        return ablated + (edges.transpose(1, 2) @ changes.flatten(2)).unflatten(2, ablated.shape[2:])

    def _at(self, site: str) -> list[int]:
        """The receivers at a site."""
        return [at for at, node in enumerate(self.graph.receivers) if node.site == site]

    def _record(self, value: Tensor, hook: HookPoint) -> None:
        """Keep what the senders at a site write, less their ablated values."""
        senders = self.sites[hook.name]
        ablated, wide = self.prepared.ablated[hook.name][self.prompt], self.changes.dtype
        change = value.to(wide) - ablated.to(wide)
        if self.graph.senders[senders[0]].head is None:
            change = change[:, None]
        else:
            heads = [self.graph.senders[at].head for at in senders]
            if self.model.cfg.norms_after:  # each run's own norm scales what its heads add
                of_each = [
                    head_results(self.model, hook.name, one).to(wide) for one in (value, ablated.to(value.dtype))
                ]
                change = of_each[0] - of_each[1]
            else:
                change = head_results(self.model, hook.name, change.to(self.model.dtype))
            change = change[:, :, heads].transpose(1, 2)
        first = self.senders.index(senders[0])
        self.changes[:, first : first + len(senders)] = change

    def _replace(self, value: Tensor, hook: HookPoint) -> Tensor:
        """Let the receivers at a site read what their circuits give them."""
        receivers = self._at(hook.name)
        if receivers[0] not in self.latest[0]:
            # Queries, keys and values read the same senders: one product for all of them.
            stage = self.graph.receivers[receivers[0]].stage
            together = [at for at, node in enumerate(self.graph.receivers) if node.stage == stage]
            self.latest = together, self.inputs(together)
        together, inputs = self.latest
        assert inputs is not None
        first = together.index(receivers[0])
        own = inputs[:, first : first + len(receivers)].to(value.dtype)
        return own[:, 0] if value.ndim == 3 else own.transpose(1, 2).contiguous()


def _read_out(
    model: HookedModel, resid: Tensor, pairs: PromptPairs, metric: Metric, prompt: Tensor, *, first: int = 0
) -> Tensor:
    """What a metric reads of the logits, from the last residual stream [row, pos, d_model], which begins at `first`."""
    prompt = prompt.to(model.device)
    at = where_read(metric, pairs).to(model.device)[prompt] - first  # [row, read]
    normalized = model.to_unembed(resid[torch.arange(len(resid), device=model.device)[:, None], at])
    tokens, some = which_read(metric, pairs), getattr(model.unembed, "some", None)
    if tokens is None or some is None:
        logits = model.unembed(normalized)
        if tokens is not None:
            logits = logits.gather(-1, tokens[prompt, None].expand(-1, at.shape[1], -1))
    else:
        logits = some(normalized, tokens[prompt])
    return logits if metric.whole else logits[:, 0]


def _masks(circuits: Sequence[Circuit] | Tensor, graph: Graph) -> Tensor:
    """The edges of every circuit [circuit, sender, receiver] bool, on the CPU."""
    if not isinstance(circuits, Tensor) and not len(circuits):
        raise InterpError("there is no circuit to run: give at least one")
    masks = circuits if isinstance(circuits, Tensor) else torch.stack([circuit.edges for circuit in circuits])
    if masks.ndim != 3 or masks.shape[1:] != graph.allowed.shape:
        raise InterpError(
            f"circuits are {list(masks.shape)}, expected [circuit, sender, receiver] with the last two "
            f"{list(graph.allowed.shape)} in this model"
        )
    masks = masks.cpu() != 0
    if bool((masks & ~graph.allowed).any()):
        raise InterpError("a circuit has edges that the model does not have: & it with graph.allowed")
    return masks

"""`sweep`: many variants of the same prompts, one row for every variant and prompt, at the price of what they change.

1. A plan finds the rows that must be run and cuts them into chunks (`interp.sweeps.plan`).
2. An executor runs the chunks (`interp.sweeps.run_chunk`), here or on a cluster (`interp.sweeps.ray_executor`).
3. With `out`, each finished chunk is on disk before the next one counts (`interp.resume.journal`): a sweep that was
   killed goes on where it stopped, and ends with the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from interp.arguments import byte_budget, checked, is_whole, shown
from interp.edits import Variant
from interp.encoder_decoder.model import output_stack
from interp.errors import ConfigError, PromptError, SweepInterrupted, unknown
from interp.hooked.model import HookedModel
from interp.metrics import Metric, check_metric, digest, following, get_metric, normalised_effect
from interp.prompts.pair_checks import check_side
from interp.prompts.pairs import PromptPairs, fitting
from interp.sweeps.encoder_decoder.plan import make_stack_plan
from interp.sweeps.encoder_decoder.reach import StackPlacement
from interp.sweeps.machine import watched
from interp.sweeps.plan import Plan, make_plan
from interp.sweeps.progress import progress_bar
from interp.sweeps.run_chunk import Job, Values, placement_of
from interp.version import __version__

if TYPE_CHECKING:
    import pandas as pd

    from interp.resume.journal import Journal

EXECUTORS = ("local", "ray")
# What a journal has in place of the number of a variant: the base run, the source run, their rounding.
RUN_ROWS = (-3, -2, -1)
Executor = Callable[[Job, Sequence[int]], Generator[tuple[int, Values], None, None]]


@checked
def sweep(
    model: HookedModel,
    pairs: PromptPairs,
    variants: Sequence[Variant],
    metric: str | Metric | Callable[..., Tensor] = "logit_diff",
    *,
    base: str = "corrupt",
    source: str = "clean",
    max_memory: int | None = None,
    out: str | Path | None = None,
    progress: bool | None = None,
    executor: str | Executor = "local",
) -> pd.DataFrame:
    """Run every variant on every prompt and measure it.

    The numbers are those of one full forward for each cell, within rounding. A cell whose edits copy what the base run
    has already is not run, and is exactly the base run.

    Args:
        model: the model. With hooks attached, or bridged, it runs whole forwards.
        pairs: the prompts.
        variants: what to change; see `interp.edits`.
        metric: a name of `interp.metrics.METRICS`, a `Metric`, or a function `fn(logits [rows, pos, d_vocab_out],
            pairs) -> [rows]`, which is given the prompts of one variant, or of a part of them where memory is short.
        base: the side that gets edited, "clean" or "corrupt". Corrupt patched from clean is denoising.
        source: the side that edits copy from; the same as `base` for ablations.
        max_memory: bytes to allocate beyond the weights; None takes a part of what is free.
        out: a folder for the finished chunks. The same call with the same folder goes on with it.
        progress: a bar on stderr; None shows it on a terminal.
        executor: "local", "ray" (a cluster of this machine alone), an `interp.RayExecutor`, or a generator function
            `fn(job, chunks)` that yields (chunk, `job.run(chunk)`) for each of these chunks, in any order.

    Returns:
        A row for every variant and prompt: the variant's labels, `prompt`, `metric`, `value`, `base_value`,
        `source_value`, `rounding` (how far rounding alone can take the metric of this prompt; see `interp.rounding`),
        and `effect`, which is 0 at the base run and 1 at the source run, and NaN where the two differ by no more than
        rounding.

    Raises:
        UnknownName: a site, layer, head, role, metric or side that does not exist; before anything is run.
        ConfigError: `max_memory` is too little for a single row.
        OutputError: `out` holds another sweep, or cannot be written; finished chunks are kept.
        SweepInterrupted: Ctrl-C; it has the table of what was finished.
    """
    job = _job(model, pairs, variants, metric, base, source, max_memory)
    return _table(job, _measure(job, out, progress, executor))


@dataclass(frozen=True, eq=False)
class Measured:
    """The metric of every variant on every prompt, and of the two runs.

    Attributes:
        values: of the variants [variant, prompt].
        base, source: of the base run and of the source run [prompt].
        rounding: how far rounding alone can take the metric of either run [prompt].
    """

    values: Values
    base: Values
    source: Values
    rounding: Values

    @property
    def changes(self) -> Values:
        """How far each variant is from the base run [variant, prompt]."""
        return self.values - self.base


@checked
def sweep_values(
    model: HookedModel,
    pairs: PromptPairs,
    variants: Sequence[Variant],
    metric: str | Metric | Callable[..., Tensor] = "logit_diff",
    *,
    base: str = "corrupt",
    source: str = "clean",
    max_memory: int | None = None,
    out: str | Path | None = None,
    progress: bool | None = None,
    executor: str | Executor = "local",
) -> Measured:
    """What `sweep` measures, as arrays and not as a table; arguments and errors are those of `sweep`."""
    return _measure(_job(model, pairs, variants, metric, base, source, max_memory), out, progress, executor)


@checked
def plan_sweep(
    model: HookedModel,
    pairs: PromptPairs,
    variants: Sequence[Variant],
    metric: str | Metric | Callable[..., Tensor] = "logit_diff",
    *,
    base: str = "corrupt",
    source: str = "clean",
    max_memory: int | None = None,
) -> Plan:
    """What `sweep` would run, without running it: `print` it, or ask for its `operations`, `cells` and `chunks`."""
    return _job(model, pairs, variants, metric, base, source, max_memory).plan


def _job(
    model: HookedModel,
    pairs: PromptPairs,
    variants: Sequence[Variant],
    metric: str | Metric | Callable[..., Tensor],
    base: str,
    source: str,
    max_memory: int | None,
) -> Job:
    for side in (base, source):
        check_side(side)
    if isinstance(variants, str | Variant) or not isinstance(variants, Iterable):
        raise PromptError(f"sweep takes a list of Variants, each a set of edits, not {shown(variants)}")
    variants = list(variants)
    for variant in variants:
        if not isinstance(variant, Variant):
            raise PromptError(f"sweep takes a list of Variants, each a set of edits, not {shown(variant)}")
    if not variants:
        raise PromptError("sweep needs at least one variant")
    max_memory = byte_budget(max_memory)
    measure = get_metric(metric)
    check_metric(measure, pairs, model.cfg.d_vocab_out)
    if measure.of_text and not output_stack(model).cfg.linear_output:
        raise PromptError(f"metric {measure.name!r} is of the next token, and this model predicts masked ones")
    if isinstance(measure.tokens, tuple) and max(measure.tokens) >= model.cfg.d_vocab_out:
        raise PromptError(
            f"metric {measure.name!r} reads token {max(measure.tokens)}, and the model's answers are 0 to "
            f"{model.cfg.d_vocab_out - 1}"
        )
    pairs = fitting(model, pairs).to(model.device)
    if measure.of_text:
        following(measure, pairs, base)  # refuses prompts without such tokens
    placement = placement_of(model, pairs, variants, measure, base=base, source=source)
    if isinstance(placement, StackPlacement):
        plan = make_stack_plan(placement, measure, max_memory=max_memory)
    else:
        plan = make_plan(placement, measure, max_memory=max_memory)
    return Job(model, pairs, variants, measure, base, source, plan, placement)


def _measure(job: Job, out: str | Path | None, progress: bool | None, executor: str | Executor) -> Measured:
    run = _executor(executor)
    journal = None if out is None else _journal(out, job)
    results = _Results(job.plan)
    # Chunks that an earlier call has finished are read, not run.
    on_disk = set() if journal is None else journal.finished()
    waiting = []
    for index in range(len(job.plan.chunks)):
        if journal is not None and _file_name(index) in on_disk:
            results.add(index, journal.read(_file_name(index))["value"])
        else:
            waiting.append(index)
    chunks = _started(run, job, waiting)
    with progress_bar(job.plan, waiting, progress) as bar, closing(chunks):  # closed, a cluster's workers end
        try:
            for given in chunks:
                index, values = _checked_values(job.plan, given, waiting)
                if journal is not None:
                    journal.write(_file_name(index), _journal_columns(job.plan, index, values))
                results.add(index, values)
                bar.finish(index)
        except KeyboardInterrupt:
            frame = _table(job, results.measured())[results.known_cells().ravel()]
            raise SweepInterrupted(_interrupted(len(frame), job.plan, journal), frame) from None
    if missing := len(job.plan.chunks) - len(results.finished):
        raise ConfigError(f"the executor ended without the values of {missing} of its {len(waiting)} chunks")
    return results.measured()


class _Results:
    """The values of those chunks that are finished, each in its place.

    Attributes:
        plan: the chunks.
        values: of the variants [variant, prompt].
        runs: of the base run, of the source run, and their rounding [3, prompt].
        finished: chunks whose values are there; those may be NaN.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.values: Values = np.full((plan.n_variants, plan.n_prompts), np.nan)
        self.runs: Values = np.full((len(RUN_ROWS), plan.n_prompts), np.nan)
        self.finished: set[int] = set()

    def add(self, index: int, values: Values) -> None:
        """Put the values of a chunk in their place; variants that are in no chunk of its block equal the base run."""
        self.finished.add(index)
        chunk = self.plan.chunks[index]
        prompts = slice(*chunk.prompts)
        if chunk.variants:
            self.values[list(chunk.variants), prompts] = values.reshape(len(chunk.variants), -1)
            return
        self.runs[:, prompts] = values.reshape(len(RUN_ROWS), -1)
        run = {v for other in self.plan.chunks if other.prompts == chunk.prompts for v in other.variants}
        idle = [v for v in range(self.plan.n_variants) if v not in run]
        self.values[idle, prompts] = self.runs[0, prompts]

    def known_cells(self) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """The cells [variant, prompt] whose values are there, with those of the runs that they are compared with."""
        known = np.zeros(self.values.shape, dtype=bool)
        for index, chunk in enumerate(self.plan.chunks):
            if not chunk.variants and index in self.finished:
                known[:, slice(*chunk.prompts)] = True
        for index, chunk in enumerate(self.plan.chunks):
            if chunk.variants and index not in self.finished:
                known[list(chunk.variants), slice(*chunk.prompts)] = False
        return known

    def measured(self) -> Measured:
        """What is there."""
        return Measured(self.values, *self.runs)


def _executor(executor: str | Executor) -> Executor:
    if isinstance(executor, str) and executor == "local":
        return _locally
    if isinstance(executor, str) and executor == "ray":
        from interp.sweeps.ray_executor import RayExecutor  # imports pyarrow

        return RayExecutor()
    if isinstance(executor, str) or not callable(executor):
        raise unknown("executor", executor, EXECUTORS)
    return executor


def _started(run: Executor, job: Job, chunks: Sequence[int]) -> Generator[tuple[int, Values], None, None]:
    """What an executor will give; one that is no generator function of a job and its chunks is refused."""
    expected = "executor must be 'local', 'ray', an interp.RayExecutor, or a generator function (job, chunks)"
    try:
        results = run(job, chunks)
    except TypeError as error:  # it takes other arguments
        raise ConfigError(f"{expected}, not {shown(run)}: {error}") from error
    if not isinstance(results, Generator):
        raise ConfigError(f"{expected} that yields (chunk, values), not one that returns {shown(results)}")
    return results


def _checked_values(plan: Plan, given: Any, chunks: Collection[int]) -> tuple[int, Values]:
    """A chunk and its values [variant, prompt], as an executor must give them."""
    if isinstance(given, tuple) and len(given) == 2 and is_whole(given[0]) and given[0] in chunks:
        index, found = given
        chunk = plan.chunks[index]
        size = len(chunk.variants or RUN_ROWS) * len(range(*chunk.prompts))
        if isinstance(found, np.ndarray) and found.dtype == np.float64 and found.size == size:
            return int(index), found
    expected = "(chunk, values), with one of its chunks and what job.run(chunk) gives"
    raise ConfigError(f"an executor must yield {expected}, not {shown(given)}")


def _locally(job: Job, chunks: Sequence[int]) -> Generator[tuple[int, Values], None, None]:
    for index in chunks:
        yield index, job.run(index)


def _file_name(index: int) -> str:
    """Of a chunk in a journal."""
    return f"chunk-{index:05d}"


def _journal(out: str | Path, job: Job) -> Journal:
    """The journal of a sweep; `job` takes over the plan that was stored there first."""
    from interp.resume.fingerprint import fingerprint
    from interp.resume.journal import Journal

    if watched(job.model):
        raise ConfigError("hooks are attached to the model, and a journal cannot tell what they do: sweep without out")
    key = {
        "model": f"{job.model.cfg.model_name} {fingerprint([job.model.cfg, dict(job.model.state_dict())])}",
        "prompts": f"{len(job.pairs)} of {job.pairs.name} {job.pairs.digest()}",
        "variants": f"{len(job.variants)} {fingerprint(tuple(job.variants))}",
        "metric": f"{job.metric.name} {digest(job.metric)}, with its rounding",
        "sides": f"{job.source} into {job.base}",
        "device": f"{job.model.device.type}, {job.model.dtype}",
        "versions": f"interp {__version__}, torch {torch.__version__}",
    }
    journal = Journal.open(out, key, {"chunks": len(job.plan.chunks), "plan": job.plan.to_plain()})
    job.plan = Plan.from_plain(journal.plan["plan"], len(job.variants), len(job.pairs), job.plan.max_memory)
    return journal


def _journal_columns(plan: Plan, index: int, values: Values) -> Mapping[str, np.ndarray[Any, Any]]:
    """What a journal keeps of a chunk: values with their variants (or `RUN_ROWS`) and prompts, one row a cell."""
    chunk = plan.chunks[index]
    variants, prompts = np.array(chunk.variants or RUN_ROWS), np.arange(*chunk.prompts)
    return {
        "variant": np.repeat(variants, len(prompts)),
        "prompt": np.tile(prompts, len(variants)),
        "value": values.ravel(),
    }


def _table(job: Job, measured: Measured) -> pd.DataFrame:
    """A row for every variant and prompt, in this order."""
    import pandas as pd

    n_variants, n_prompts = measured.values.shape
    labels = pd.DataFrame([dict(variant.labels) for variant in job.variants], index=range(n_variants))
    frame = labels.loc[np.repeat(np.arange(n_variants), n_prompts)].reset_index(drop=True)
    base, source, rounding = measured.base, measured.source, measured.rounding
    return frame.assign(
        prompt=np.tile(np.arange(n_prompts), n_variants),
        metric=job.metric.name,
        value=measured.values.ravel(),
        base_value=np.tile(base, n_variants),
        source_value=np.tile(source, n_variants),
        rounding=np.tile(rounding, n_variants),
        effect=normalised_effect(measured.values, base, source, rounding=rounding).ravel(),
    )


def _interrupted(done: int, plan: Plan, journal: Journal | None) -> str:
    if journal is None:
        return f"interrupted after {done:,} of {plan.cells:,} cells; with out=FOLDER a sweep goes on where it stopped"
    return (
        f"interrupted after {done:,} of {plan.cells:,} cells, which are kept in {journal.folder}: "
        "the same sweep with the same folder goes on from there"
    )

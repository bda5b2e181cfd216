"""How far can each method be trusted? Localisation methods held against models whose circuit is known.

1. Models are built whose steps are known (`interp.ground_truth.known_circuits`): with and without norms, grouped
   queries, rotary positions, and idle heads of random weights beside.
2. For each kind of ablation, every edge and every node is taken away by brute force. Those without which the output
   changes are the truth of that ablation; it is not the same for all.
3. Every method scores all edges, or all nodes, under the same ablation. AUROC is the probability that it puts one that
   matters above one that does not; average precision is the share that matters among its best, averaged over those that
   matter, and is the stricter where few do.
4. Random scores are the control. Exact patching measures what the truth is made of, and has to reach 1.

`--facts` checks what has to hold in any model instead (`interp.ground_truth.identities`).

Source: Conmy et al. 2023 (https://arxiv.org/abs/2304.14997, "Towards Automated Circuit Discovery", section 4.1, on the
ROC of edges); Gupta et al. 2024 (https://arxiv.org/abs/2407.14494, "InterpBench", known circuits and their idle nodes).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from interp import figures, stats
from interp.arguments import checked
from interp.circuits.graph import Graph
from interp.errors import check_choice
from interp.ground_truth.identities import facts
from interp.ground_truth.known_circuits import KnownModel, build_models, truth
from interp.ground_truth.methods import METHODS, Case, compared, get_method
from interp.progress import counting
from interp.study.command import OwnModels, study_command
from interp.study.options import number_options
from interp.study.provenance import state_digest
from interp.variants.ablations import ABLATIONS

if TYPE_CHECKING:
    import pandas as pd

    from interp.figures.style import Figure

KEYS = ["known", "build", "ablation", "kind"]


@checked
def run(
    *,
    models: Sequence[KnownModel] | None = None,
    methods: Sequence[str] | None = None,
    ablations: Sequence[str] | None = None,
    n: int = 24,
    seed: int = 0,
    tolerance: float = 0.1,
    progress: bool | None = None,
) -> pd.DataFrame:
    """Every method on every known model under every kind of ablation.

    Args:
        models: known models; None makes those of `interp.ground_truth.known_circuits.BUILDS`.
        methods: names of `interp.ground_truth.methods.METHODS`; None takes all.
        ablations: names of `interp.variants.ablations.ABLATIONS`; None takes all.
        n: pairs of prompts for each model.
        seed: of models, prompts, draws and random scores.
        tolerance: as in `interp.ground_truth.known_circuits.truth`.
        progress: a bar on stderr; None shows it on a terminal.

    Returns:
        Columns `known, build, ablation, kind` ("edge" or "node"), `method, metric, value, items` (how many were scored)
        and `matter` (how many of them matter). Metrics: `AUROC`, `average precision` (NaN where none or all matter) and
        `seconds`, of wall time.

    Raises:
        UnknownName: a method or ablation that does not exist.
    """
    import pandas as pd

    chosen = [get_method(method) for method in methods] if methods is not None else list(METHODS)
    kinds = list(ablations) if ablations is not None else list(ABLATIONS)
    for ablation in kinds:
        check_choice("ablation", ablation, ABLATIONS)
    known_models = build_models(seed=seed) if models is None else models
    rows = []
    steps = len(known_models) * len(kinds) * (1 + len(chosen))
    with counting(desc="calibration", total=steps, progress=progress) as bar:
        for known in known_models:
            pairs, graph = known.prompts(n, seed=seed), Graph.of(known.model)
            for ablation in kinds:
                exact = truth(known, pairs, ablation=ablation, tolerance=tolerance, seed=seed)
                matters = {kind: part["changes"].to_numpy() for kind, part in exact.groupby("kind")}
                bar.update()
                for method in chosen:
                    real = matters[method.kind]
                    found = compared(method, Case(known.model, pairs, graph, ablation, seed), real)
                    place = (known.name, known.build.in_words(), ablation, method.kind, method.name)
                    rows += [(*place, metric, value, len(real), int(real.sum())) for metric, value in found.items()]
                    bar.update()
    return pd.DataFrame(rows, columns=[*KEYS, "method", "metric", "value", "items", "matter"])


def ranked(frame: pd.DataFrame) -> pd.DataFrame:
    """The measurements, and the rank of each method by average precision among those of its kind, 1 the best.

    Methods that are as good as one another share the mean of their ranks.
    """
    import pandas as pd

    precise = frame[frame["metric"] == "average precision"]
    rank = precise.groupby(KEYS)["value"].rank(ascending=False)
    return pd.concat([frame, precise.assign(metric="rank", value=rank)], ignore_index=True)


@checked
def summary(frame: pd.DataFrame) -> pd.DataFrame:
    """Mean of each method under each ablation with its interval; `n` counts models, which are what is drawn again."""
    return stats.summarise(ranked(frame), by=["kind", "method", "ablation", "metric"])


def table(frame: pd.DataFrame) -> pd.DataFrame:
    """One row a method: average precision under each ablation, then AUROC, average precision, rank and time overall."""
    means = summary(frame)
    precise = means[means["metric"] == "average precision"]
    by_ablation = precise.pivot(index=["kind", "method"], columns="ablation", values="value")
    by_ablation = by_ablation[list(dict.fromkeys(frame["ablation"]))]
    overall = stats.summarise(ranked(frame), by=["kind", "method", "metric"])
    every = overall.pivot(index=["kind", "method"], columns="metric", values="value")
    every = every[["AUROC", "average precision", "rank", "seconds"]]
    order = ["kind", "rank", "average precision"]
    joined = by_ablation.join(every).reset_index()
    return joined.sort_values(order, ascending=[True, True, False], kind="stable", ignore_index=True)


@checked
def plot(frame: pd.DataFrame) -> Figure:
    """Average precision of every method under every ablation: those that score edges, then those that score nodes."""
    order = [method.name for method in METHODS]
    means = summary(frame)
    means = means[means["metric"] == "average precision"]
    means = means.sort_values("method", key=lambda column: column.map(order.index), kind="stable")
    return figures.bars(
        means,
        x="method",
        hue="ablation",
        horizontal=True,
        label="average precision, mean and 95% interval over models",
    )


def facts_of_known(models: Sequence[KnownModel] | None = None, *, n: int = 24, seed: int = 0) -> pd.DataFrame:
    """`facts` of known models, with the columns `known` and `build` in front."""
    import pandas as pd

    tables = []
    for known in build_models(seed=seed) if models is None else models:
        checked = facts(known.model, known.prompts(n, seed=seed))
        tables.append(checked.assign(known=known.name, build=known.build.in_words()))
    frame = pd.concat(tables, ignore_index=True)
    return frame[["known", "build", "fact", "value", "limit", "holds"]]


def made(*, names: Sequence[str] | None = None, seed: int = 0, **others: Any) -> list[KnownModel]:
    """The models of a command's options."""
    return build_models(names, seed=seed)


def record(models: Sequence[KnownModel], frame: pd.DataFrame, *, n: int, seed: int, **others: Any) -> dict[str, Any]:
    """What a manifest says of the models."""
    of_models = [
        {
            "known": known.name,
            "build": dataclasses.asdict(known.build),
            "steps": dict(known.steps),
            "weights": state_digest(known.model.state_dict()),
            "prompts": known.prompts(n, seed=seed).digest(),
        }
        for known in models
    ]
    return {"n": n, "seed": seed, "models": of_models}


NUMBERS = number_options("How many prompts for each model.", "Seed of models, prompts and random scores.", default=24)

main = study_command(
    run,
    plot=plot,
    summary=table,
    natural="",
    own=OwnModels(NUMBERS, made, record, instead={"check": facts_of_known}),
    options=[
        click.option("--known", "names", multiple=True, help="Only this circuit; repeat for several.  [all]"),
        click.option("--method", "methods", multiple=True, help="Only this method; repeat for several.  [all]"),
        click.option("--ablation", "ablations", multiple=True, help="Only this ablation; repeat for several.  [all]"),
        click.option("--facts", "check", is_flag=True, help="Check the facts that hold in any model instead."),
    ],
)

if __name__ == "__main__":
    main()

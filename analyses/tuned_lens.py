"""Tuned lens: what would the model answer if it stopped after each layer, said in that layer's own terms?

1. Train, for every layer, an affine map of its input that brings the reading through final norm and unembedding as near
   to the model's own output as it gets: on text that is given, or that the model writes itself.
2. Read the prompts' residual streams through these maps and, beside them, as they are (the logit lens).
3. Compare both: the answer's probability and place, and the divergence from the model's output; on text that was held
   out from the training, too.

Source: Belrose et al. 2023 (https://arxiv.org/abs/2303.08112, "Eliciting Latent Predictions from Transformers with the
Tuned Lens", sections 3 and 4). The last row is the model's own output in both lenses.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from interp import figures, stats
from interp.arguments import checked
from interp.errors import InterpError
from interp.figures.axes import Axis
from interp.files.whole_files import place_of
from interp.frames import restored, restoring, summarised
from interp.hooked.model import HookedModel
from interp.lenses import read as lenses
from interp.lenses import training_text as texts
from interp.lenses.training import train
from interp.lenses.tuned_lens import CONFIG_FILE, TunedLens
from interp.prompts.pairs import PromptPairs
from interp.sites import stream_after
from interp.study.command import study_command
from interp.study.options import PLACE, above_zero, whole
from interp.study.prompts import check_one_stack
from interp.study.shared_options import POS, TOP
from interp.text.characters import visible_token

if TYPE_CHECKING:
    import pandas as pd

    from interp.figures.style import Figure

DEPTH = Axis("depth", title="layer")
PANELS = {
    "prob": "probability of the right answer",
    "rank": "place of the right answer (1 is first)",
    "kl": "divergence from the output (nats)",
}
LEAST = 1e-9  # below it a logarithmic scale shows nothing that matters
WRITTEN = "generated"


@checked
def run(
    model: HookedModel,
    pairs: PromptPairs,
    *,
    lens: TunedLens | str | Path | None = None,
    train_on: texts.Texts | str | Path | Sequence[str] | None = None,
    pos: str = "last",
    top: int = 5,
    sequences: int = 96,
    length: int = 48,
    steps: int = 12,
    batch: int = 32,
    lr: float = 0.005,
    seed: int = 0,
    progress: bool | None = None,
) -> pd.DataFrame:
    """Read every layer of the clean prompts through a tuned lens and through the logit lens.

    Args:
        model: the model.
        pairs: the prompts; their clean side is read.
        lens: a lens; or a folder, whose lens is loaded or, with `train_on`, trained there; None trains one in memory.
        train_on: a .txt or .jsonl file, documents or `Texts`; "generated", or None without a folder, lets the model
            write.
        pos: "last" for the last position of every prompt, "all" for every position.
        top: how many of the likeliest tokens to keep.
        sequences: how many the model writes; of a text, how many are taken at most.
        length, steps, batch, lr, seed: as `interp.lenses.training.train` takes them.
        progress: bars on stderr; None shows them in a terminal.

    Returns:
        Columns `lens, layer, site, prompt, pos, token, role, metric, k, top_token, value`: those of the logit lens, for
        `lens` "tuned" and "logit". Sites are the input of every layer and the last one's output.

    Raises:
        InterpError: a lens of another model, a folder without a lens and nothing to train on, or a model whose
            residual stream is not what its output is read from.
    """
    check_one_stack(model, "a tuned lens is trained for", "the logit lens reads its decoder")
    if not isinstance(lens, TunedLens):
        options = {"steps": steps, "batch": batch, "lr": lr}
        lens = trained(
            model, lens, train_on, sequences=sequences, length=length, seed=seed, progress=progress, **options
        )
    lens.check(model)
    last = stream_after(model.cfg, model.cfg.n_layers - 1)
    names = [name for name in lenses.depths(model, halves=False) if name == last or _layer(name) in lens.layers]
    read = {"tuned": lens.translate, "logit": None}
    return lenses.read(model, pairs, names, lenses=read, pos=pos, top=top)


def trained(
    model: HookedModel,
    folder: str | Path | None,
    train_on: texts.Texts | str | Path | Sequence[str] | None,
    *,
    sequences: int = 96,
    length: int = 48,
    seed: int = 0,
    progress: bool | None = None,
    **options: float,
) -> TunedLens:
    """The lens of a folder, or one that is trained now; arguments as `run` and `train` have them."""
    if folder is not None and train_on is None:
        if (place_of(folder, what="a lens") / CONFIG_FILE).exists():
            return TunedLens.load(folder, model)
        raise InterpError(
            f"there is no tuned lens in {str(folder)!r}; to train one there, give a text to train on, or {WRITTEN!r}"
        )
    if train_on is None or (isinstance(train_on, str) and train_on == WRITTEN):
        source = texts.write(model, sequences, length=length, seed=seed, progress=progress)
    else:
        source = texts.prepare(model, train_on, length=length, most=sequences)
    return train(model, source, out=folder, seed=seed, progress=progress, **options)  # type: ignore[arg-type]


def _layer(name: str) -> int:
    return int(name.split(".")[1])


@checked
@restoring
def summary(frame: pd.DataFrame) -> pd.DataFrame:
    """Means over prompts at the last position for every lens and depth, with intervals."""
    table = lenses.summary(frame)
    return table.assign(top_token=[visible_token(token) for token in table["top_token"]])


@checked
@restoring
def plot(frame: pd.DataFrame) -> Figure:
    """With every position the table of top tokens of the first prompt, else both lenses by depth."""
    every = bool((frame.groupby("prompt")["pos"].nunique() > 1).any())
    return plot_table(frame) if every else plot_depth(frame)


@checked
def plot_depth(frame: pd.DataFrame) -> Figure:
    """The answer's probability and place, and the divergence from the output, over depth for both lenses.

    Args:
        frame: from `run`, or its summary.
    """
    table = summarised(frame, summary)
    shown = table[
        table["metric"].isin(PANELS) & ~((table["metric"] == "kl") & table["site"].str.endswith("resid_post"))
    ]
    for column in ("value", "ci_low", "ci_high"):
        shown = shown.assign(**{column: (shown[column] + (shown["metric"] == "rank")).clip(lower=LEAST)})
    shown = shown.assign(panel=shown["metric"].map(PANELS), metric="")
    order = shown["panel"].map({panel: i for i, panel in enumerate(PANELS.values())})
    shown = shown.assign(order=order).sort_values("order", kind="stable").drop(columns="order")
    return figures.lines(shown, x=DEPTH, hue="lens", facet="panel", columns=1, share=False, log=True, label="")


@checked
def plot_held_out(frame: pd.DataFrame) -> Figure:
    """Divergence of both lenses on held-out text over layers: of a lens's `held_out`, or means by lens and layer."""
    table = summarised(frame, lambda rows: stats.summarise(restored(rows), by=["lens", "layer"]))
    shown = table.assign(**{name: table[name].clip(lower=LEAST) for name in ("value", "ci_low", "ci_high")})
    return figures.lines(shown, x="layer", hue="lens", log=True, label="KL from the output (nats)")


@checked
@restoring
def plot_table(frame: pd.DataFrame) -> Figure:
    """The likeliest token by the tuned lens at every layer's input and every position of the first prompt."""
    first = frame[(frame["metric"] == "top_prob") & (frame["k"] == 0) & (frame["lens"] == "tuned")]
    first = first[first["prompt"] == first["prompt"].min()]
    rows = first["layer"].astype(str).where(first["site"] == "resid_pre", "out")
    return figures.lens_table(first.assign(layer=rows), y=Axis("layer", values=list(dict.fromkeys(rows))))


@checked
def compared(lens: TunedLens) -> pd.DataFrame:
    """By how many nats the tuned lens is nearer to the output than the logit lens on held-out text, layer by layer.

    Pairs by sequence; the columns of `stats.tested`, corrected over layers.
    """
    wide = lens.held_out.pivot(index=["layer", "prompt"], columns="lens", values="value")
    nearer = (wide["logit"] - wide["tuned"]).rename("value").reset_index().assign(metric="nats nearer")
    return stats.tested(nearer, by=["layer"])


main = study_command(
    run,
    plot=plot,
    summary=summary,
    natural="layer",
    options=[
        click.option("--lens", type=PLACE, help="Folder of a lens: loaded, or trained there."),
        click.option(
            "--train-on",
            default=None,
            help=f"A .txt or .jsonl file, or {WRITTEN!r}: text that the model writes itself.",
        ),
        whole("--sequences", "How many the model writes, or are taken.", default=96),
        whole("--length", "Tokens in a sequence.", default=48),
        whole("--steps", "Training steps after the closed-form start.", default=12, least=0),
        whole("--batch", "Positions in a step.", default=32),
        above_zero("--lr", "Rate of the first step.", default=0.005),
        POS,
        TOP,
    ],
)

if __name__ == "__main__":
    main()

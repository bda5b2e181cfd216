"""The options of several studies, each by one name with one meaning: the metric, the direction, what the cells are."""

from __future__ import annotations

from collections.abc import Iterable

import click

from interp.directions.classes import CONTRASTS
from interp.prompts.pair_checks import DIRECTIONS
from interp.study.options import Option, choice, whole
from interp.variants.ablations import ABLATIONS


def metric_option(such_as: str = "logit_diff, log_prob, kl, ...") -> Option:
    """`--metric`, by its name."""
    return click.option("--metric", default="logit_diff", show_default=True, help=such_as)


def direction_option(default: str) -> Option:
    """`--direction`: which side of a pair is patched into which."""
    return choice("--direction", DIRECTIONS, default=default)


def site_option(help: str, *, default: str | None = None) -> Option:
    """`--site`, by short names."""
    return click.option("--site", default=default, show_default=default is not None, help=help)


def by_option(help: str) -> Option:
    """`--by`: what the cells of a layer are cut by."""
    return click.option("--by", help=f"The cells of a layer: {help}")


def method_option(choices: Iterable[str], default: str) -> Option:
    """`--method`, one of a study's own."""
    return choice("--method", choices, default=default)


METRIC = metric_option()
ABLATION = choice("--ablation", ABLATIONS, default="corrupt")
GRANULARITY = click.option(
    "--granularity", help="Instead of --site and --by: resid_pre, attn_head_out_by_pos, block_every, ..."
)
LABEL = click.option("--label", default="auto", show_default=True, help=f"{', '.join(CONTRASTS)}.")
STEPS = whole("--steps", "Points of the path of integrated gradients.", default=5)
POS = choice("--pos", ["last", "all"], default="last", help="Positions to read.")
TOP = whole("--top", "How many of the likeliest tokens to keep.", default=5)

"""What a terminal shows of a study's table: the rows that matter, in the order that was asked for."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from interp import stats
from interp.errors import UnknownName
from interp.ui.listing import listing


def effects(n_layers: int = 12, n_heads: int = 12) -> pd.DataFrame:
    rows = [(layer, head) for layer in range(n_layers) for head in range(n_heads)]
    values = np.random.default_rng(0).normal(size=len(rows))
    table = pd.DataFrame(rows, columns=["layer", "head"]).assign(metric="effect", value=values)
    return stats.strongest_first(table)


def test_the_smallest_effects_go_in_either_order() -> None:
    table = effects()
    by_effect, by_layer = listing(table), listing(table, "layer")
    assert by_effect.left_out == by_layer.left_out == "104 of 144 rows left out, those with the smallest effects"
    pd.testing.assert_frame_equal(by_effect.rows, table.head(40))
    shown = by_layer.rows
    places = list(zip(shown["layer"], shown["head"], strict=True))
    assert places == sorted(places) and set(shown["value"]) == set(table["value"].head(40))
    marked = shown[shown["strongest"] == "*"]
    assert set(marked["value"]) == set(table["value"].head(6))


def test_a_table_that_fits_is_whole() -> None:
    table = effects(3, 4)
    assert listing(table).left_out == listing(table, "layer").left_out == ""
    assert len(listing(table, "layer").rows) == 12 and listing(table, "effect").rows.equals(table)


def test_every_metric_keeps_its_strongest_rows() -> None:
    table = pd.concat([effects().assign(metric=name) for name in ("accuracy", "auc")], ignore_index=True)
    for order in ("effect", "layer"):
        shown = listing(table, order).rows
        for _, part in shown.groupby("metric"):
            assert set(part["value"]) == set(effects()["value"].head(20))


def test_of_a_lens_the_last_layers_stay() -> None:
    depths = pd.DataFrame({"layer": range(61), "value": np.linspace(3.0, 0.0, 61)})
    table = pd.concat([depths.assign(metric=name) for name in ("kl", "prob")], ignore_index=True)
    listed = listing(table, natural="layer")
    assert listed.left_out == "82 of 122 rows left out, those of the earliest depths"
    assert listed.rows["layer"].tolist() == [*range(41, 61)] * 2 and "strongest" not in listed.rows
    assert listing(table, "layer", natural="layer").rows.equals(listed.rows)
    largest = listing(table, "effect", natural="layer").rows
    assert largest["layer"].tolist() == [*range(20)] * 2 and largest["metric"].tolist() == ["kl"] * 20 + ["prob"] * 20


def test_a_table_of_another_order_loses_its_middle() -> None:
    table = pd.DataFrame({"n_edges": range(50), "value": range(50)})
    listed = listing(table, natural="")
    assert listed.rows["n_edges"].tolist() == [*range(20), *range(30, 50)] and listed.left_out.startswith("10 of 50")


def test_an_unknown_order_is_refused() -> None:
    with pytest.raises(UnknownName, match="no order matches 'layers'; did you mean 'layer'"):
        listing(effects(), "layers")

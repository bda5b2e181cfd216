"""Hidden attention: shares of the pattern that a recurrence equals, and the study that draws them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from makers import make, pairs_of

from analyses import attention_patterns
from analyses.sections import activation_patching, head_attribution
from analyses.sections.attention_patterns import report
from interp.errors import UnknownName
from interp.heads import hidden_attention
from interp.heads.hidden_attention import mixer_of, patterns, shares, sources, together
from interp.models.gpt import GPT


def mixers(model: GPT) -> list[int]:
    return [layer for layer in range(model.cfg.n_layers) if model.cfg.mixer(layer) in ("mamba", "mamba2")]


def test_patterns_in_parts_are_the_models_own(recurrent: GPT, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hidden_attention, "MAX_NUMBERS", 1)  # a prompt at a time
    pairs = pairs_of(6, 4, 6)
    for layer in mixers(recurrent):
        name = f"blocks.{layer}.mixer.hook_pattern"
        _, whole = recurrent.run_with_cache(pairs.clean, names_filter=name, attention_mask=pairs.mask)
        _, cache = recurrent.run_with_cache(pairs.clean, names_filter=sources(layer), attention_mask=pairs.mask)
        parts = list(patterns(recurrent, cache, layer, pairs.mask))
        assert [rows.start for rows, _ in parts] == [0, 1, 2] and name not in cache
        torch.testing.assert_close(torch.cat([part for _, part in parts]), whole[name].detach())


def test_shares_are_magnitudes_without_d_as_parts_of_their_row() -> None:
    generator = torch.Generator().manual_seed(0)
    pattern = torch.randn(2, 3, 5, 5, generator=generator).tril()
    pattern[0, 0, 2] = 0
    pattern[0, 0, 2, 2] = 0.7  # a query that reads nothing but itself, by D
    D = torch.tensor([0.7, -0.2, 0.0])
    found, whole = shares(pattern, D), together(pattern, D)
    for batch in range(2):
        for query in range(5):
            rows = [
                [abs(float(pattern[batch, u, query, key]) - float(D[u]) * (key == query)) for key in range(5)]
                for u in range(3)
            ]
            for u, row in enumerate(rows):
                expected = [value / sum(row) if sum(row) > 1e-6 else 0.0 for value in row]
                assert found[batch, u, query].tolist() == pytest.approx(expected, abs=1e-6)
            mean = [sum(column) / 3 for column in zip(*rows, strict=True)]
            assert whole[batch, query].tolist() == pytest.approx([value / sum(mean) for value in mean], abs=1e-6)


def test_a_share_says_where_what_is_read_comes_from() -> None:
    model, pairs = make("mamba2"), pairs_of(6)
    _, cache = model.run_with_cache(pairs.clean)
    layer, head = 1, 4
    frame = attention_patterns.run(model, pairs, heads=[f"L{layer}S{head}"])
    x = mixer_of(model, layer).like_y(cache["conv", layer][..., : model.cfg.d_inner])[0, :, head]  # [key, d_ssm_head]
    entries = torch.zeros(6, 6)
    entries[frame["query"].tolist(), frame["key"].tolist()] = torch.tensor(frame["weight"].tolist())
    torch.testing.assert_close(entries @ x.detach(), cache["y", layer][0, :, head].detach(), rtol=1e-4, atol=1e-5)
    passed = mixer_of(model, layer).D[head].item() * (frame["query"] == frame["key"])
    size = (frame["weight"] - passed).abs()
    expected = size / size.groupby(frame["query"]).transform("sum")
    assert frame["value"].tolist() == pytest.approx(expected.tolist(), abs=1e-5)


def test_every_layer_has_its_patterns(recurrent: GPT) -> None:
    pairs = pairs_of(6, 4, 6)
    frame = attention_patterns.run(recurrent, pairs)
    cfg, expected = recurrent.cfg, []
    for layer in range(cfg.n_layers):
        expected += [f"L{layer}H{head}" for head in range(cfg.n_heads) if cfg.attends(layer)]
        expected += [f"L{layer}S{head}" for head in range(cfg.n_ssm_heads) if cfg.mixer(layer) == "mamba2"]
        expected += [f"mixer {layer}"] if cfg.mixer(layer) == "mamba" else []
    assert list(dict.fromkeys(frame["component"])) == expected
    sums = frame.groupby(["component", "prompt", "query"])["value"].sum()
    assert sums.tolist() == pytest.approx([1.0] * len(sums), abs=1e-5) and len(sums) == len(expected) * 16
    attention = frame[frame["head"].notna()]
    assert attention["weight"].isna().all()
    _, cache = recurrent.run_with_cache(pairs.clean, attention_mask=pairs.mask)
    for row in attention.itertuples():
        at = float(cache["pattern", row.layer][row.prompt, row.head, row.query, row.key])
        assert row.value == pytest.approx(at, abs=1e-5)
    summary = attention_patterns.summary(frame)
    assert list(summary.columns[:4]) == ["component", "layer", "query_role", "key_role"]
    attention_patterns.plot(frame).canvas.draw()


def test_a_mixers_share_is_of_the_mean_over_its_channels() -> None:
    model, pairs = make("mamba"), pairs_of(5, 5)
    names = [f"L0C{channel}" for channel in range(24)]
    apart = attention_patterns.run(model, pairs, heads=names)
    D = mixer_of(model, 0).D.tolist()
    passed = [D[channel] for channel in apart["channel"]] * (apart["query"] == apart["key"])
    sizes = (apart["weight"] - passed).abs().groupby([apart["prompt"], apart["query"], apart["key"]]).mean()
    expected = sizes / sizes.groupby(level=[0, 1]).transform("sum")
    whole = attention_patterns.run(model, pairs, heads=["mixer 0"]).set_index(["prompt", "query", "key"])["value"]
    assert whole.sort_index().tolist() == pytest.approx(expected.sort_index().tolist(), abs=1e-5)


@pytest.mark.parametrize("kind", ["mamba", "mamba2", "hybrid", "one_part_a_layer"])
def test_a_report_shows_what_each_kind_of_layer_looks_at(kind: str, tmp_path: Path) -> None:
    model, pairs = make(kind), pairs_of()
    results = {}
    for study in (head_attribution, activation_patching):
        results[study.__name__.rpartition(".")[2]] = study.report(model, pairs, results, progress=False).frame
    frame, section, findings = report(model, pairs, results)
    hidden, attention = frame["head"].isna().any(), frame["head"].notna().any()
    assert attention == model.cfg.has_attention and hidden
    names = [item.name for item in section.figures]
    assert names == ["attention_patterns"] * bool(attention) + ["hidden_attention"]
    assert ("channel" in section.figures[-1].title) == ("mamba" in model.cfg.mixers)
    assert "without D" in section.text[-1] and findings == section.text[:1]
    shown = frame[frame["head"].isna()]["component"].unique()
    assert all(name in section.text[-2] for name in shown)


def test_what_does_not_look_is_refused() -> None:
    model, pairs = make("hybrid"), pairs_of()
    with pytest.raises(UnknownName, match="no component matches 'L0H1'"):
        attention_patterns.run(model, pairs, heads=["L0H1"])
    with pytest.raises(UnknownName, match="layer 1 has no state-space mixer: layers 0, 2 have one"):
        mixer_of(model, 1)
    with pytest.raises(UnknownName, match="no layer of this model has one"):
        mixer_of(make("gpt2"), 1)

"""Plain arguments: indices of any whole-number kind mean the same, and what is none is refused by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from makers import make, make_pairs, pairs_of

import interp
from analyses import activation_patching
from interp import arguments
from interp.edits import RESERVED, Edit, Variant
from interp.errors import ConfigError, HookError, InterpError, PromptError, SweepInterrupted, UnknownName
from interp.metrics import Metric
from interp.models.gpt import GPT
from interp.prompts.pairs import PromptPairs
from interp.sweeps import plan
from interp.sweeps.sweep import sweep

KINDS_OF_NUMBER: dict[str, Callable[[int], Any]] = {
    "int": int,
    "np.int64": np.int64,
    "np.uint8": np.uint8,
    "array": np.array,
    "tensor": torch.tensor,
}
NO_NUMBERS = [1.0, 1.5, "1", True, float("nan"), None, [1], 2**70, {}, np.bool_(True), torch.tensor(1.0), b"1"]


def values(model: GPT, pairs: PromptPairs, where: dict[str, Any], site: str = "z", **more: Any) -> np.ndarray[Any, Any]:
    return np.asarray(sweep(model, pairs, [Variant([Edit(site, where, **more)])], progress=False)["value"])


@pytest.mark.parametrize("kind", KINDS_OF_NUMBER)
def test_any_kind_of_whole_number_is_an_index(kind: str) -> None:
    of, model, pairs = KINDS_OF_NUMBER[kind], make("gpt2"), pairs_of()
    expected = values(model, pairs, {"layer": 1, "head": 2, "pos": 3})
    assert np.array_equal(values(model, pairs, {"layer": of(1), "head": of(2), "pos": of(3)}), expected)
    several = [of(0), of(2)]
    assert np.array_equal(
        values(model, pairs, {"layer": of(0), "head": several, "d_head": several}),
        values(model, pairs, {"layer": 0, "head": (0, 2), "d_head": [0, 2]}),
    )
    assert Edit("z", {"layer": of(1), "head": several}).where == {"layer": 1, "head": (0, 2)}
    assert torch.equal(pairs.positions(of(2)), pairs.positions(2))
    assert pairs[of(1)].digest() == pairs[1].digest() and pairs.labels(of(1)) == pairs.labels(1)
    assert pairs[[of(2), of(0)]].digest() == pairs[[2, 0]].digest()
    _, cache = model.run_with_cache(pairs.clean, layers=[of(1)], pos_slice=of(1))
    _, plain = model.run_with_cache(pairs.clean, layers=[1], pos_slice=1)
    assert list(cache) == list(plain) and all(torch.equal(cache[name], plain[name]) for name in plain)
    _, whole = model.run_with_cache(pairs.clean)
    assert torch.equal(whole["z", of(1)], whole["z", 1])
    assert torch.equal(whole.accumulated_resid(of(1), pos_slice=of(2)), whole.accumulated_resid(1, pos_slice=2))
    assert torch.equal(model(pairs.clean, stop_at_layer=of(1)), model(pairs.clean, stop_at_layer=1))


def test_a_row_of_a_table_is_the_next_edit() -> None:
    model, pairs = make("llama_gqa"), pairs_of()
    variants = [
        Variant([Edit("z", {"layer": at, "head": h})], {"layer": at, "head": h}) for at in (0, 1) for h in (0, 3)
    ]
    frame = sweep(model, pairs, variants, progress=False)
    best = frame.groupby(["layer", "head"], as_index=False)["value"].mean().sort_values("value").iloc[-1]
    where = best[["layer", "head"]].astype(np.int64)
    of_cell = frame[(frame["layer"] == best["layer"]) & (frame["head"] == best["head"])]
    named = next(of_cell[["layer", "head"]].itertuples(index=False))._asdict()
    for row in (where, pd.DataFrame([where]).iloc[0], of_cell[["layer", "head"]].iloc[0], named):
        again = values(model, pairs, {"layer": row["layer"], "head": row["head"]})
        assert again == pytest.approx(of_cell["value"].to_numpy(), abs=1e-5)


def test_slices_and_none_are_what_numpy_makes_of_them() -> None:
    model, pairs = make("gpt2"), pairs_of()
    for axis, size in (("head", 4), ("d_head", 4)):
        for part in (slice(1, None), slice(None, None, 2), slice(-1, None), None):
            named = list(range(size))[slice(None) if part is None else part]
            where = {"layer": 1, "head": 1, axis: part}
            assert np.array_equal(values(model, pairs, where), values(model, pairs, {**where, axis: named}))
    # The last two positions of each prompt, whose lengths differ; all but the last, which differ in number.
    at = {"layer": 0, "pos": slice(-2, None)}
    assert np.array_equal(values(model, pairs, at), values(model, pairs, {"layer": 0, "pos": [-2, -1]}))
    front = values(model, pairs, {"layer": 0, "pos": slice(None, -1)})
    for prompt, length in enumerate(pairs.lengths.tolist()):
        own = values(model, pairs[prompt], {"layer": 0, "pos": list(range(length - 1))})
        assert front[prompt] == pytest.approx(own[0], abs=1e-4)
    keys = values(model, pairs, {"layer": 1, "key": slice(None, 2)}, "pattern")
    assert np.array_equal(keys, values(model, pairs, {"layer": 1, "key": [0, 1]}, "pattern"))
    assert pairs.positions(slice(-2, None)).tolist() == pairs.positions([-2, -1]).tolist()
    with pytest.raises(PromptError, match="selects 3, 5 positions, depending on the prompt"):
        pairs.positions(slice(1, None))
    _, cache = model.run_with_cache(pairs.clean)
    for part in (slice(1, None, 2), slice(None, None, -1), [0, -1], np.array([2, 0]), torch.tensor([1, 2])):
        _, cut = model.run_with_cache(pairs.clean, names_filter="blocks.1.attn.hook_z", pos_slice=part)
        assert np.array_equal(cut["z", 1].detach().numpy(), cache["z", 1].detach().numpy()[:, part])


@pytest.mark.parametrize("wrong", NO_NUMBERS, ids=str)
def test_what_is_no_index_is_refused_by_name(wrong: Any) -> None:
    model, pairs = make("gpt2"), pairs_of()
    _, cache = model.run_with_cache(pairs.clean)
    if not isinstance(wrong, int | list | str | None) or isinstance(wrong, bool):
        for axis in ("layer", "head", "pos", "d_head"):
            with pytest.raises(ConfigError, match=f"{axis} of an edit must be an integer"):
                Edit("z", {"layer": 0, axis: wrong})
        with pytest.raises(PromptError, match="pos_slice must be an integer"):
            model.run_with_cache(pairs.clean, pos_slice=wrong)
    if wrong is not None:
        with pytest.raises(UnknownName, match=r"layer .* is not one of this model's 2 layers"):
            cache["z", wrong]
    if not isinstance(wrong, list):
        with pytest.raises(PromptError, match="there is no pair"):
            pairs[wrong]
    with pytest.raises(ConfigError, match="steps must be"):
        arguments.whole_number("steps", wrong, least=1, most=9)


@pytest.mark.parametrize(
    ("where", "says"),
    [
        ({"layer": np.int64(2)}, "layer 2 .* 0 to 1"),
        ({"layer": -1}, "layer -1 .* 0 to 1"),
        ({"layer": [0, 1]}, r"layer \(0, 1\) "),
        ({"layer": 0, "head": np.uint8(4)}, "head 4 is not one of this model's 4, 0 to 3"),
        ({"layer": 0, "head": slice(4, None)}, r"head slice\(4, None, None\) selects none of this model's 4"),
        ({"layer": 0, "pos": 2**70}, "is outside prompt 0, which has 6 tokens"),
        ({"layer": 0, "pos": slice(9, None)}, r"slice\(9, None, None\) names no position"),
    ],
)
def test_a_sweep_refuses_edits_that_do_not_fit_before_it_runs(where: dict[str, Any], says: str) -> None:
    ran: list[int] = []

    def metric(logits: torch.Tensor, pairs: PromptPairs) -> torch.Tensor:
        ran.append(1)
        return logits[:, 0, 0]

    variants = [Variant([Edit("z", {"layer": 0})]), Variant([Edit("z", where)])]
    with pytest.raises(InterpError, match=says):
        sweep(make("gpt2"), pairs_of(), variants, metric, progress=False)
    assert not ran


def test_indices_that_are_named_twice_are_edited_once() -> None:
    model, pairs = make("gpt2"), pairs_of()
    for axis in ("head", "pos"):
        once, twice = ({"layer": 0, axis: at} for at in ([1], [1, 1]))
        assert np.array_equal(
            values(model, pairs, twice, op="add", source=0.5), values(model, pairs, once, op="add", source=0.5)
        )


@pytest.mark.parametrize("label", RESERVED)
def test_labels_that_would_overwrite_a_column_are_refused(label: str) -> None:
    with pytest.raises(ConfigError, match=f"label '{label}' has the name of a column that every table has"):
        Variant([Edit("z", {"layer": 0})], {"layer": 0, label: 1})


def test_a_table_has_the_columns_that_no_label_may_have() -> None:
    frame = sweep(make("gpt2"), pairs_of(), [Variant([Edit("z", {"layer": 0})], {"mine": 1})], progress=False)
    assert set(frame) - {"mine"} <= set(RESERVED)


def test_a_function_is_held_to_the_shape_that_it_was_given() -> None:
    model, pairs = make("gpt2"), pairs_of(5, 5)
    shape = r"expected \[batch, pos, head, d_head\] = \[2, 5, 4, 4\]"
    for made in (lambda v, hook: v[:1], lambda v, hook: v.mean(), lambda v, hook: v[..., :1], lambda v, hook: v * 1j):
        variant = Variant([Edit("z", {"layer": 0}, source=made)])
        with pytest.raises(HookError, match=r"'blocks.0.attn.hook_z' returned \[.*" + shape):
            sweep(model, pairs, [variant], progress=False)


@pytest.mark.parametrize("site", ["z", "pattern", "resid_pre", "q"])
@pytest.mark.parametrize("returns", [True, False])
def test_a_function_may_change_its_value_in_place(site: str, returns: bool) -> None:
    model, pairs = make("gpt2"), pairs_of()

    def halve(value: torch.Tensor, hook: Any) -> torch.Tensor | None:
        value.mul_(0.5)
        return value if returns else None

    expected = values(model, pairs, {"layer": 1}, site, op="scale", source=0.5)
    assert np.abs(expected - values(model, pairs, {"layer": 1}, site, op="scale", source=1.0)).max() > 1e-3
    assert values(model, pairs, {"layer": 1}, site, source=halve) == pytest.approx(expected, abs=1e-5)


def test_numbers_of_numpy_are_sources() -> None:
    model, pairs = make("gpt2").double(), pairs_of()
    for given in (np.float32(0.5), np.int64(2), np.array(0.25), torch.tensor(3)):
        plain = float(given)
        for op in ("set", "add", "scale"):
            assert np.array_equal(
                values(model, pairs, {"layer": 0}, op=op, source=given),
                values(model, pairs, {"layer": 0}, op=op, source=plain),
            )
    # 0.1 is no number of single precision: what is set in a model of double precision is 0.1 itself.
    whole = torch.full((3, 6, 4, 4), 0.1, dtype=torch.float64)
    assert np.array_equal(
        values(model, pairs, {"layer": 0}, source=0.1), values(model, pairs, {"layer": 0}, source=whole)
    )
    array = np.arange(4.0)
    assert np.array_equal(
        values(model, pairs, {"layer": 0}, source=array), values(model, pairs, {"layer": 0}, source=torch.arange(4.0))
    )
    # The mean of a source is over prompts, also of one that only spreads over them.
    spread = torch.arange(4.0, dtype=torch.float64)
    assert values(model, pairs, {"layer": 0}, op="mean", source=spread) == pytest.approx(
        values(model, pairs, {"layer": 0}, source=spread), abs=1e-12
    )


@pytest.mark.parametrize(
    "wrong", [True, 1j, "clear", [1.0], object(), b"", np.array(["x"]), torch.ones(2, dtype=torch.cfloat)]
)
def test_what_is_no_source_is_refused(wrong: Any) -> None:
    with pytest.raises((ConfigError, UnknownName), match=r"source of an edit must be|no run matches"):
        Edit("z", {"layer": 0}, source=wrong)


def test_a_mapping_without_the_site_is_refused() -> None:
    variant = Variant([Edit("z", {"layer": 0}, source={"blocks.1.attn.hook_z": torch.zeros(1)})])  # type: ignore[arg-type]
    with pytest.raises(UnknownName, match=r"'blocks.0.attn.hook_z' has no such site: 'blocks.1.attn.hook_z'"):
        sweep(make("gpt2"), pairs_of(), [variant], progress=False)


def in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(plan.ROWS, "cpu", 20)


def test_an_interrupted_sweep_keeps_every_finished_cell(monkeypatch: pytest.MonkeyPatch) -> None:
    in_chunks(monkeypatch)
    model, pairs = make("gpt2"), pairs_of()
    left = [10**6]

    def rare(logits: torch.Tensor, own: PromptPairs) -> torch.Tensor:
        left[0] -= 1
        if not left[0]:
            raise KeyboardInterrupt
        value = logits[:, 0, 0].clone()
        value[0] = torch.nan  # rightly so: a cell is not unfinished because its value is no number
        return value

    variants = [Variant([Edit("z", {"layer": at})], {f"only_{at}": at}) for at in (0, 1, 0, 1, 0, 1)]
    metric = Metric("rare", rare, "d", "u", whole=True)
    whole = sweep(model, pairs, variants, metric, progress=False)
    left[0] = 10**6 - left[0] - 2  # calls until the last but one of a variant
    with pytest.raises(SweepInterrupted) as stopped:
        sweep(model, pairs, variants, metric, progress=False)
    frame = stopped.value.frame
    assert 0 < len(frame) < len(whole) and len(frame) % len(pairs) == 0
    assert frame["value"].isna().any() and frame["value"].notna().any()
    pd.testing.assert_frame_equal(frame, whole.loc[frame.index])


@pytest.mark.parametrize(
    ("made", "says"),
    [
        (lambda n: torch.zeros(n + 1), r"metric 'mine' returned \[4\], expected a tensor \[3\]"),
        (lambda n: torch.zeros(n, 1), r"metric 'mine' returned \[3, 1\]"),
        (lambda n: torch.zeros(n) * 1j, r"metric 'mine' returned \[3\] of torch.complex64"),
        (lambda n: [0.0] * n, "metric 'mine' returned list"),
        (lambda n: None, "metric 'mine' returned NoneType"),
        (lambda n: {}["lost"], "metric 'mine' raised KeyError: 'lost'"),
    ],
)
@pytest.mark.parametrize("whole", [True, False])
def test_a_metric_that_is_none_is_named(made: Callable[[int], Any], says: str, whole: bool) -> None:
    metric = Metric("mine", lambda *given: made(len(given[0])), "d", "u", whole=whole)
    with pytest.raises(PromptError, match=says):
        sweep(make("gpt2"), pairs_of(), [Variant([Edit("z", {"layer": 0})])], metric, progress=False)


def test_a_metric_of_whole_numbers_or_nan_is_measured() -> None:
    model, pairs = make("gpt2"), pairs_of()
    variants = [Variant([Edit("z", {"layer": 0})])]
    for made in (torch.arange(3), torch.tensor([True, False, True]), torch.tensor([1.0, torch.nan, 2.0])):
        frame = sweep(model, pairs, variants, lambda logits, own, made=made: made, progress=False)
        assert np.array_equal(frame["value"], made.double().numpy(), equal_nan=True)


def test_a_metric_that_raises_loses_no_finished_chunk(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    in_chunks(monkeypatch)
    model, pairs = make("gpt2"), make_pairs((6, 4, 6), shared=1)
    variants = [Variant([Edit("z", {"layer": at % 2, "head": at // 2})], {"at": at}) for at in range(6)]
    expected = sweep(model, pairs, variants, "logit", progress=False)
    log = tmp_path / "calls"
    log.write_text("")

    def sometimes(logits: torch.Tensor, answers: torch.Tensor, reference: torch.Tensor | None) -> torch.Tensor:
        log.write_text(log.read_text() + ".")
        if len(log.read_text()) == wrong:
            raise ZeroDivisionError("now")
        return logits[:, 0]

    metric, wrong = Metric("mine", sometimes, "d", "u", tokens="answers"), 0
    sweep(model, pairs, variants, metric, progress=False)
    wrong = 2 * len(log.read_text()) - 2  # the last but two of the calls of the next sweep
    with pytest.raises(PromptError, match="metric 'mine' raised ZeroDivisionError: now"):
        sweep(model, pairs, variants, metric, out=tmp_path / "s", progress=False)
    kept = len(list((tmp_path / "s").glob("chunk-*")))
    frame = sweep(model, pairs, variants, metric, out=tmp_path / "s", progress=False)
    assert np.array_equal(frame["value"], expected["value"]) and kept > 1


def test_where_there_is_nothing_to_choose_from_it_says_so() -> None:
    pairs = PromptPairs.from_tokens([[1, 2]], answers=[(1, 2)])
    with pytest.raises(UnknownName, match="no role matches 'END'; there are none"):
        pairs.positions("END")


BAD_CALLS: dict[str, tuple[Callable[[GPT, PromptPairs], Any], str]] = {
    "pos_slice": (lambda m, p: m.run_with_cache(p.clean, pos_slice=99), "pos_slice 99 is out of range"),
    "device": (lambda m, p: m.run_with_cache(p.clean, device="xx"), "device 'xx' cannot be used here"),
    "roles": (lambda m, p: PromptPairs.from_tokens([[1]], answers=[(1, 2)], roles=3), "roles must be a mapping"),  # type: ignore[arg-type]
    "folder": (lambda m, p: interp.save(m, 3), "folder must be a path, not 3"),  # type: ignore[arg-type]
    "width of a mixer": (
        lambda m, p: interp.save(make("mamba"), "never", format="huggingface"),
        "d_inner=24 is not a multiple of d_model=16",
    ),
    "complex tokens": (lambda m, p: m(torch.ones(1, 2) * 1j), "tokens must be whole numbers"),
    "seed": (lambda m, p: m.generate(p.clean[:1], 2, seed=2**70), r"seed must be an integer from 0 to 2\*\*64 - 1"),
    "top_k": (lambda m, p: m.generate(p.clean[:1], 2, top_k=1.5), "top_k must be an integer"),
    "top_p": (lambda m, p: m.generate(p.clean[:1], 2, top_p=float("nan")), "top_p must be a finite number"),
    "temperature": (
        lambda m, p: m.generate(p.clean[:1], 2, temperature=float("inf")),
        "temperature must be a finite number",
    ),
    "max_new_tokens": (lambda m, p: m.generate(p.clean[:1], -1), "max_new_tokens must be at least 0, not -1"),
    "eos_token_id": (lambda m, p: m.generate(p.clean[:1], 2, eos_token_id=[3, 29]), "eos_token_id must be at most 28"),
    "n_resamples": (lambda m, p: interp.stats.bootstrap([1.0, 2.0], n_resamples=0), "n_resamples must be at least 1"),
    "confidence": (
        lambda m, p: interp.stats.bootstrap([1.0, 2.0], confidence=95),
        "confidence must lie between 0 and 1",
    ),
    "values": (lambda m, p: interp.stats.bootstrap(["a", "b"]), "values must be numbers"),
    "max_memory": (
        lambda m, p: sweep(m, p, [Variant([Edit("z", {"layer": 0})])], max_memory=True),
        "max_memory must be an integer or None, not True",
    ),
    "pairs": (lambda m, p: sweep(m, "ioi", []), "pairs must be PromptPairs, not 'ioi'"),  # type: ignore[arg-type]
    "side": (lambda m, p: sweep(m, p, [Variant([])], base=["clean"]), "base must be text"),  # type: ignore[arg-type]
    "n": (lambda m, p: interp.tasks.induction(m, -3), "n must be at least 1, not -3"),
    "length": (lambda m, p: interp.tasks.induction(m, 2, length=4.5), "length must be an integer, not 4.5"),
    "strength": (
        lambda m, p: interp.Direction(torch.ones(16), "resid_pre", 0).edit(float("nan")),
        "strength must be a finite number, not nan",
    ),
    "layer of a name": (lambda m, p: interp.get_act_name("z", 1.5), "layer must be an integer"),  # type: ignore[arg-type]
    "site of a name": (lambda m, p: interp.get_act_name(["z"]), "a site's name must be text"),  # type: ignore[arg-type]
    "names_filter": (lambda m, p: m.run_with_cache(p.clean, names_filter=[3]), "sites are chosen by"),
    "layers of a cache": (lambda m, p: interp.PastKeyValues(-1), "n_layers must be at least 0"),
    "token": (lambda m, p: m.tokens_to_residual_directions(29), "tokens must be ids of this model's answers, 0 to 28"),
    "reference": (
        lambda m, p: interp.metrics.measure("kl", m(p.clean), p, reference=m(p.clean[:1])),
        "expected the shape of logits",
    ),
    "function of a metric": (lambda m, p: Metric("x", 3, "d", "u"), "needs a function, not 3"),  # type: ignore[arg-type]
    "edits": (lambda m, p: Variant(["z"]), "a Variant takes a list of Edits"),  # type: ignore[list-item]
    "labels": (lambda m, p: Variant([], {3: 1}), "a label's name must be text, not 3"),  # type: ignore[dict-item]
}


@pytest.mark.parametrize("what", BAD_CALLS)
def test_a_bad_call_is_refused_by_name(what: str) -> None:
    call, says = BAD_CALLS[what]
    with pytest.raises(InterpError, match=says):
        call(make("gpt2"), pairs_of(5, 5))


def test_each_of_several_tokens_ends_a_prompt() -> None:
    model, pairs = make("gpt2"), pairs_of(5, 5, 5, 5)
    free = model.generate(pairs.clean, 6, do_sample=False)
    new = free[:, 5:].tolist()
    ends = {row[2] for row in new[:2]}
    stopped = model.generate(pairs.clean, 6, do_sample=False, eos_token_id=[np.int64(one) for one in ends])
    for row, told in zip(new, stopped[:, 5:].tolist(), strict=True):
        first = next((at for at, token in enumerate(row) if token in ends), len(row))
        assert told[: first + 1] == row[: first + 1][: len(told)]
        assert set(told[first + 1 :]) <= {told[-1]} and (first == len(row) or len(set(told[first + 1 :])) <= 1)
    one = model.generate(pairs.clean, 6, do_sample=False, eos_token_id=new[0][2])
    assert torch.equal(one, model.generate(pairs.clean, 6, do_sample=False, eos_token_id=torch.tensor([new[0][2]])))
    assert torch.equal(model.generate(pairs.clean, 0), pairs.clean)


def test_python_says_of_unknown_and_missing_arguments_what_it_says() -> None:
    with pytest.raises(TypeError, match=r"sweep\(\) got an unexpected keyword argument 'mertic'"):
        sweep(make("gpt2"), pairs_of(), [], mertic="kl")  # type: ignore[call-arg]
    with pytest.raises(TypeError, match=r"bootstrap\(\) missing 1 required positional argument"):
        interp.stats.bootstrap()  # type: ignore[call-arg]


def test_options_that_are_taken_together_are_arguments_like_others() -> None:
    study = activation_patching.run
    parameters = inspect.signature(study).parameters
    assert list(parameters)[-4:] == ["max_memory", "out", "progress", "executor"] and "options" not in parameters
    model, pairs = make("gpt2"), pairs_of()
    with pytest.raises(ConfigError, match="progress must be True or False or None, not 'no'"):
        study(model, pairs, progress="no")  # type: ignore[arg-type]
    with pytest.raises(UnknownName, match="no argument of run matches 'max_memry'; did you mean 'max_memory'"):
        study(model, pairs, max_memry=10)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="pairs"):
        study(model)  # type: ignore[call-arg]

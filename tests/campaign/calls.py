"""Wrong arguments in Python: is every one refused by name, or does it give a sensible result?

1. Every public function, class and method of `interp` (what `interp.__all__` leads to) and the `run` of every study is
   listed by looking; each has a sound call.
2. One argument at a time is replaced by what may be given by mistake.
3. The call must be refused with an error of `interp`, or go on. What is annotated as a whole number, a number or a text
   and is none must be refused, and so must a negative count.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import itertools
import pkgutil
import types
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scipy.stats  # noqa: F401, in this process, so that no child waits for it
import sklearn.linear_model  # noqa: F401
import torch
from transformers import PreTrainedTokenizerFast
from vocabularies import by_bytes, names_tokenizer, vocabulary

import analyses
import interp
from interp.circuits.circuit import random_circuits
from interp.circuits.graph import Graph
from interp.config import ModelConfig
from interp.directions.steering import Direction
from interp.hooked.generation import generate
from interp.tasks.indirect_object import NAMES
from interp.weights import transformer_lens

from .trial import Case, Outcome, tell

TOGETHER = 40
# What a user does not call: machinery that subclasses and other modules of interp share, and plain records of it.
LEFT_OUT = {
    *("metrics.answers_of", "metrics.digest", "stats.RankAgreement"),
    *("GPT.derive", "GPT.embed_tokens", "GPT.head_results", "GPT.norm_before", "GPT.init_weights", "GPT.attention"),
    *("GPT.block", "HookPoint", "InterpError", "Mamba", "Graph", "Graph.sent", "Graph.received", "ActivationCache"),
    *("ActivationCache.full_name", "Tokenizer", "PromptPairs", "TunedLens", "Edit.name", "TunedLens.translate"),
    *(
        "metrics.at_last",
        "metrics.check_answers",
        "metrics.evaluate",
        "metrics.is_read",
        "metrics.read",
    ),
    *("metrics.score", "metrics.where_read", "metrics.which_read", "metrics.Metric", "figures.Figure"),
    *("PastKeyValues.become", "PastKeyValues.claim", "PastKeyValues.extend", "PastKeyValues.store_state"),
    "PastKeyValues.stored_state",
    *("sites.Site", "sites.axis_sizes", "sites.exists", "sites.find_act_name", "sites.site_names"),
    *("sites.unknown_site", "stats.Interval", "ModelConfig.layers_with", "tasks.Task", "figures.circuit"),
    *("ActivationCache.remove_batch_dim", "figures.estimates", "figures.save"),  # no arguments, or those of others
    *("calibration.run", "copying.run"),  # they build models of their own, for minutes
}
COUNTS = {
    *("n", "max_new_tokens", "draws", "n_resamples", "steps", "batch", "length", "sequences", "top", "top_k", "most"),
    *("sample", "shots", "digits", "folds", "shuffles", "cumulative", "channels", "candidates", "max_memory"),
    *("columns", "n_layers", "d_head", "n_heads", "workers", "threads", "n_ctx", "d_model"),
}
OF_IDS = ("mean_logit", "joint_logit", "joint_log_prob", "best_logit")
OPEN = {"d_head", "n_heads", "d_vocab", "d_vocab_out"}  # where -1 means "not given", as in TransformerLens


WRONG: dict[str, Callable[[], Any]] = {
    "None": lambda: None,
    "True": lambda: True,
    "-1": lambda: -1,
    "0": lambda: 0,
    "1.5": lambda: 1.5,
    "10**9": lambda: 10**9,
    "2**70": lambda: 2**70,
    "nan": lambda: float("nan"),
    "inf": lambda: float("inf"),
    "np.int64(1)": lambda: np.int64(1),
    "np.float32(0.5)": lambda: np.float32(0.5),
    "''": lambda: "",
    "'x'": lambda: "x",
    "NUL": lambda: "\0",
    "a lone surrogate": lambda: "\udcff",
    "5000 letters": lambda: "x" * 5000,
    "b'x'": lambda: b"x",
    "[]": list,
    "{}": dict,
    "()": tuple,
    "[None]": lambda: [None],
    "['x', 5]": lambda: ["x", 5],
    "[[1, 2], [3]]": lambda: [[1, 2], [3]],
    "{'x': 5}": lambda: {"x": 5},
    "lambda: 0": lambda: lambda: 0,
    "slice(1, 2)": lambda: slice(1, 2),
    "torch.tensor(1.5)": lambda: torch.tensor(1.5),
    "torch.zeros(0)": lambda: torch.zeros(0),
    "torch.ones(2, 3)": lambda: torch.ones(2, 3),
    "torch.tensor([True, False])": lambda: torch.tensor([True, False]),
    "np.zeros((2, 2))": lambda: np.zeros((2, 2)),
}
# What is given by mistake where something else is meant: by the kind of annotation; None takes all.
INSTEAD: dict[str, set[str] | None] = {
    "number": {
        *("None", "True", "-1", "0", "1.5", "10**9", "2**70", "nan", "inf", "np.int64(1)", "np.float32(0.5)", "''"),
        *("'x'", "[]", "[None]", "torch.tensor(1.5)"),
    },
    "text": {
        *("None", "-1", "1.5", "''", "'x'", "NUL", "a lone surrogate", "5000 letters", "b'x'", "[]", "['x', 5]"),
        "[None]",
    },
    "truth": {"None", "-1", "0", "1.5", "''", "'x'", "[]", "nan"},
    "object": {"None", "-1", "'x'", "[]", "{}", "torch.ones(2, 3)"},
    "other": None,
}
NUMBERS, TEXTS, TRUTH = {"int", "float"}, {"str", "Path"}, {"bool"}
OBJECTS = {
    *(
        "HookedModel",
        "PromptPairs",
        "Graph",
        "Circuit",
        "Direction",
        "ModelConfig",
        "Tokenizer",
        "pd.DataFrame",
        "Edit",
    ),
    *("pd.Series[Any]", "PastKeyValues", "TunedLens", "tokenizers.Tokenizer", "Any"),
}
NOT_WHOLE = {"1.5", "nan", "inf", "'x'", "''", "[]", "{}", "b'x'", "NUL"}
NO_NUMBER = {"'x'", "''", "[]", "{}", "b'x'", "nan", "NUL"}
NO_TEXT = {"-1", "1.5", "[]", "{}", "b'x'", "torch.ones(2, 3)"}


@dataclass(frozen=True)
class Target:
    """Something to be called: its name, its sound arguments, and how each of its parameters is annotated."""

    name: str
    call: Callable[..., Any]
    sound: Mapping[str, Any]
    annotations: Mapping[str, str]
    missing: str = ""  # a parameter for which no sound argument is known here


CALLS: list[tuple[Target, str, str]] = []  # target, parameter, wrong value
SOUND: dict[str, Any] = {}
MODEL: list[Any] = []


def prepare(home: Path) -> None:
    tokenizer = by_bytes([*vocabulary(), *NAMES], bos=True).tokenizer
    assert tokenizer is not None
    theirs = PreTrainedTokenizerFast(tokenizer_object=names_tokenizer())
    sizes: dict[str, Any] = {"n_layers": 2, "d_model": 16, "d_head": 4, "n_heads": 4, "n_ctx": 160}
    cfg = ModelConfig(**sizes, d_vocab=len(tokenizer), seed=0, initializer_range=0.3)
    model = interp.GPT(cfg, tokenizer)
    MODEL[:] = [model]
    pairs = interp.tasks.ioi(model, n=4, aligned=True)
    tokens = pairs.clean
    logits, cache = model.run_with_cache(tokens)
    graph = Graph.of(model)
    (circuit,) = random_circuits(graph, 9, 1)
    direction = Direction(torch.ones(16), "resid_pre", 1)
    lens = interp.TunedLens.identity(model)
    files = {"circuit": home / "circuit.json", "direction": home / "direction", "pairs": home / "pairs.json"}
    circuit.save(files["circuit"])
    direction.save(files["direction"])
    pairs.save(files["pairs"])
    lens.save(home / "lens")
    interp.save(model, home / "model")
    (home / "tokenizer").mkdir()
    names_tokenizer().save(str(home / "tokenizer" / "tokenizer.json"))
    (home / "data.csv").write_text("prompt,corrupt,answer,wrong_answer\nTom,Jack, Mary, John\nTom,Jack, John, Mary\n")
    edit = interp.Edit("z", {"layer": 1, "head": 2})
    frame = pd.DataFrame(
        {
            **{"layer": [0, 1, 0, 1], "head": [0, 0, 1, 1], "prompt": [0, 1, 0, 1], "value": [0.1, 0.5, 0.3, 0.2]},
            **{"query": [0, 0, 1, 1], "key": [0, 1, 0, 1], "pos": [0, 1, 0, 1], "top_token": list("abcd")},
            **{"metric": "logit_diff", "effect": [0.1, 0.5, 0.3, 0.2], "ci_low": 0.0, "ci_high": 0.6},
        }
    )
    SOUND.clear()
    SOUND.update(
        model=model, pairs=pairs, metric="logit_diff", site="z", tokens=tokens, input=tokens, text="When Tom", layer=1,
        variants=[interp.Variant([edit], {"layer": 1})], edits=[edit], name="ioi", dir="fwd", names="*resid_post",
        hook=lambda value, hook: None, direction=direction, graph=graph, edges=circuit.edges, other=circuit, cfg=cfg,
        logits=logits, values=[0.1, 0.2, 0.4], frame=frame, by=["layer"], p=pd.Series([0.01, 0.2]), x="layer", y="head",
        wanted="*hook_z", token="a", ids=[5, 6], id_=5, role="IO", index=0, device="cpu", sender=0, receiver=1,
        residual_stack=cache.accumulated_resid(), clean=[" Tom"], answers=[(" Mary", " John")], path=files["pairs"],
        source=home / "model", state_dict=transformer_lens.to_transformer_lens(model), n_layers=2, d_model=16, n_ctx=64,
        d_vocab=20, d_head=4, n_heads=4, kind="linear", factor=2.0, vector=torch.ones(16), fn=lambda logits, pairs: 0,
        definition="nothing", unit="logits", value=0.5, base=0.1, column="layer", edit=edit, folder=home / "lens",
        stream=torch.ones(1, 16), figure=None, stem="figure", table=frame, progress=False, most=4,
        key=("z", 1), tensors=dict(cache), training={}, layers=None, changes=None, queries=None, A=None,
        why="no cell was measured", rest=" Mary",
    )  # fmt: skip
    own: dict[str, dict[str, Any]] = {
        "Circuit.load": {"path": files["circuit"]},
        "Direction.load": {"path": files["direction"]},
        "Direction": {"site": "resid_pre"},
        "PromptPairs.from_tokens": {"clean": [[1, 2]], "answers": [(1, 2)]},
        "tasks.from_file": {"path": home / "data.csv"},
        "Tokenizer.from_directory": {"path": home / "tokenizer"},
        "Graph.edge": {"name": "a0.h1->m0"},
        "Graph.sender": {"name": "a0.h1"},
        "Graph.receiver": {"name": "m0"},
        "ModelConfig.from_dict": {"values": cfg.to_dict()},
        "metrics.normalised_effect": {"source": 1.0},
        "figures.bars": {"values": frame, "x": "layer", "hue": "head", "facet": "prompt"},
        "figures.lines": {"values": frame, "x": "pos", "facet": ["layer", "head"]},
        "figures.heatmap": {"values": frame, "x": "layer", "y": "head"},
        "figures.attention": {"tokens": ["a", "b"], "values": frame[frame.layer == 0].assign(head=0)},
        "figures.lens_table": {"y": "layer", "x": "pos", "frame": frame.assign(pos=[0, 0, 1, 1])},
        "figures.scatter": {"x": "value", "y": "effect"},
        "figures.Axis": {"labels": None, "values": None},
        "PromptPairs.positions": {"index": "IO"},
        "stats.share_interval": {"right": 3, "n": 4},
        "stats.strongest_groups": {"by": "layer", "most": 4},
        "stats.rank_agreement": {"one": [0.1, 0.4, 0.2], "other": [0.3, 0.1, 0.2]},
        "metrics.sides": {"answers": pairs.answer_table},
        "ActivationCache.logit_attrs": {"tokens": " Mary"},
        "GPT.to_string": {"tokens": [5, 6]},
        "GPT.to_single_token": {"text": " Mary"},
        "GPT.tokens_to_residual_directions": {"tokens": " Mary"},
        "GPT.to_str_tokens": {"input": "When Tom"},
        "circuit.run": {"candidates": 20, "draws": 1},
        "head_detectors.run": {"n": 2},
        "tuned_lens.run": {"train_on": [" Mary John Tom Jack"] * 60, "length": 8, "sequences": 4, "steps": 1},
        "steer": {"direction": direction},
        "ModelConfig": {"n_heads": 4, "d_head": 4, "d_vocab": 20},
        "Tokenizer.from_transformers": {"tokenizer": theirs},
        "get_act_name": {"layer": 1},
        "sites.match": {"names": ["blocks.0.attn.hook_z"]},
        **{f"metrics.{name}": {"logits": logits[:, -1], "ids": torch.tensor([[5, 6]] * 4)} for name in OF_IDS},
        **{name: {"path": "saved"} for name in ("Circuit.save", "Direction.save", "PromptPairs.save")},
        **{name: {"folder": "saved", "directory": "saved", "path": "saved"} for name in ("save", "TunedLens.save")},
    }
    instances = {
        "GPT": model,
        "ActivationCache": cache,
        "Circuit": circuit,
        "Direction": direction,
        "Edit": edit,
        "Graph": graph,
        "ModelConfig": cfg,
        "PromptPairs": pairs,
        "Tokenizer": tokenizer,
        "TunedLens": lens,
        "PastKeyValues": interp.PastKeyValues(2),
    }
    CALLS.clear()
    for name, call in _public(instances):
        if name in LEFT_OUT or name.split(".")[0] in LEFT_OUT - set(instances):
            continue
        target = _target(name, call, own.get(name, {}))
        CALLS.append((target, "", ""))
        for parameter, annotation in target.annotations.items():
            kept = INSTEAD[_kind(annotation)] or set(WRONG)
            kept = kept - {"10**9", "2**70"} if parameter in COUNTS else kept  # so many may be meant, and take for ever
            CALLS.extend((target, parameter, wrong) for wrong in WRONG if wrong in kept)


def _public(instances: Mapping[str, Any]) -> Iterator[tuple[str, Callable[..., Any]]]:
    """Every public function, class and method by name."""
    for name in sorted(interp.__all__):
        thing = getattr(interp, name)
        if isinstance(thing, types.ModuleType):
            members = {} if name == "errors" else vars(thing)
            for inner in sorted(getattr(thing, "__all__", members)):
                member = getattr(thing, inner)
                made = str(getattr(member, "__module__", ""))
                here = made.startswith("interp.") if name in ("tasks", "figures") else made == thing.__name__
                if callable(member) and not inner.startswith("_") and here and inner not in interp.__all__:
                    yield f"{name}.{inner}", member
            continue
        if callable(thing):
            yield name, thing
        if inspect.isclass(thing) and name != "InterpError":
            for inner, member in inspect.getmembers(thing, callable):
                if not inner.startswith("_") and str(getattr(member, "__module__", "")).startswith("interp"):
                    yield f"{name}.{inner}", getattr(instances.get(name, thing), inner)
    for info in pkgutil.iter_modules(analyses.__path__):
        if not info.ispkg and info.name not in ("cli", "report"):
            yield f"{info.name}.run", importlib.import_module(f"analyses.{info.name}").run


def _target(name: str, call: Callable[..., Any], own: Mapping[str, Any]) -> Target:
    parameters = dict(inspect.signature(call).parameters)
    if name == "GPT.generate":
        parameters |= dict(list(inspect.signature(generate).parameters.items())[3:])
    sound, annotations = dict[str, Any](), dict[str, str]()
    for parameter in parameters.values():
        if parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
            continue
        annotations[parameter.name] = str(parameter.annotation).strip("'\"")
        if parameter.name in own:
            sound[parameter.name] = own[parameter.name]
        elif parameter.default is parameter.empty:
            if parameter.name not in SOUND:
                return Target(name, call, {}, {}, parameter.name)
            sound[parameter.name] = SOUND[parameter.name]
        elif parameter.name == "progress":
            sound[parameter.name] = False
    return Target(name, call, sound, annotations)


def _kind(annotation: str) -> str:
    """Which wrong values an annotation is given."""
    parts = set(annotation.split(" | ")) - {"None"}
    kinds = {"number": NUMBERS, "text": TEXTS, "truth": TRUTH, "object": OBJECTS}
    return next((kind for kind, those in kinds.items() if parts <= those), "other")


def count() -> int:
    return len(CALLS)


def case(seed: int, number: int) -> Case:
    target, parameter, wrong = CALLS[number]

    def run() -> Outcome:
        title = f"{target.name}({parameter}={wrong})" if parameter else f"{target.name}(...), the sound call"
        tell(title)
        if target.missing:
            return Outcome(
                "raw", title, f"the campaign has no sound argument for {target.missing!r}: name one in SOUND"
            )
        given = dict(target.sound)
        if parameter:
            given[parameter] = WRONG[wrong]()
        result = target.call(**given)
        _used(result)
        if parameter and _must_be_refused(target.annotations[parameter], parameter, wrong):
            return Outcome("accepted", title, f"it gave {result!r:.100}")
        return Outcome("right", title)

    return run if parameter else lambda: _sound(run)


def _sound(run: Case) -> Outcome:
    """A sound call may not be refused."""
    try:
        return run()
    except interp.InterpError as error:
        return Outcome("raw", "", f"the sound call is refused: {error}")


def _used(result: Any) -> None:
    """Do with a result what it is for, where nothing happens before that."""
    if isinstance(result, contextlib.AbstractContextManager):
        with result, torch.no_grad():
            MODEL[0](SOUND["tokens"])
    elif isinstance(result, Iterator):
        list(itertools.islice(result, 20))


def _must_be_refused(annotation: str, parameter: str, wrong: str) -> bool:
    kinds = set(annotation.split(" | "))
    if kinds <= {"int", "None"}:
        return wrong in NOT_WHOLE or (wrong == "-1" and parameter in COUNTS - OPEN)
    if kinds <= {"float", "None"}:
        return wrong in NO_NUMBER
    return kinds <= {"str", "None"} and wrong in NO_TEXT

"""What the explorer's page may ask, and who answers: the same for a server and for a notebook's kernel."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from interp.arguments import shown, whole_number
from interp.errors import ConfigError, check_choice
from interp.hooked.model import HookedModel
from interp.tasks import TASKS
from interp.ui.explorer import sight
from interp.ui.explorer.changes import examples
from interp.ui.explorer.finder import Detected, plan_heads, table_of_heads
from interp.ui.explorer.pace import Pace
from interp.ui.explorer.scene import Other, Scene, scene_of
from interp.ui.explorer.script import script_of
from interp.ui.explorer.whole_task import Tasks, plan_task, whole_task
from interp.ui.explorer.worker import stoppable, stopping

Answer = Callable[[Any, threading.Event], Any]
"""Takes what the page gives, as plain values, and the event that says when to stop."""


def answers(model: HookedModel, loaded: str, other: Other | None = None) -> dict[str, Answer]:
    """The answers by the name of what is asked.

    Args:
        model: what the page shows.
        loaded: the call that loads the model, for scripts.
        other: a second model, to compare with.
    """
    pace, detected, tasks = Pace(), Detected(model), Tasks(model)
    models = [model] if other is None else [model, other.model]

    def by_layer(compute: Callable[[Any], Any]) -> Answer:
        def run(given: Any, stop: threading.Event) -> Any:
            with ExitStack() as watched:
                for one in models:
                    watched.enter_context(stopping(one, stop))
                return compute(given)

        return run

    return {
        "about": lambda given, stop: _about(model, tasks, other),
        "look": by_layer(lambda given: sight.look(model, _scene(given), _wanted(given), other, _focus(given))),
        "walk": by_layer(lambda given: sight.walked(model, _scene(given), _walked_to(given))),
        "continue": by_layer(lambda given: sight.continued(model, _scene(given), _place(given))),
        "plan": lambda given, stop: sight.plan_map(model, _scene(given), _cut(given), pace, stoppable(stop)),
        "map": lambda given, stop: sight.patching_map(model, _scene(given), loaded, stoppable(stop), _cut(given), pace),
        "plan_heads": lambda given, stop: plan_heads(model, _scene(given), pace, detected),
        "heads": lambda given, stop: table_of_heads(model, _scene(given), pace, stop, detected),
        "plan_task": lambda given, stop: plan_task(model, _scene(given), _task(given), tasks, pace),
        "task": lambda given, stop: whole_task(model, _scene(given), _task(given), tasks, pace, stop),
        "script": lambda given, stop: {"script": script_of(model, loaded, _scene(given), other)},
        "save": by_layer(lambda given: {"page": sight.saved(model, _scene(given))}),
    }


def _scene(given: Any) -> Scene:
    return scene_of(_field(given, "scene"))


def _wanted(given: Any) -> list[str]:
    wanted = _field(given, "parts")
    if not isinstance(wanted, list) or len(wanted) > len(sight.PARTS):
        raise ConfigError(f"parts must be a list of {', '.join(sight.PARTS)}, not {shown(wanted)}")
    return wanted


def _focus(given: Any) -> sight.Focus:
    """What is shown of a long prompt."""
    focus = given.get("focus", {})
    fields = ("layer", "position")
    if not isinstance(focus, dict) or any(name not in fields for name in focus):
        raise ConfigError(f"focus is an object with {' and '.join(fields)}, not {shown(focus)}")
    found = {name: whole_number(name, value, least=0) for name, value in focus.items() if value is not None}
    return sight.Focus(**found)


def _place(given: Any) -> int:
    place = _field(given, "at")
    if not isinstance(place, int) or isinstance(place, bool):
        raise ConfigError(f"at must be an integer, a place among the likeliest tokens, not {shown(place)}")
    return place


def _cut(given: Any) -> str:
    cut = given.get("cut", "head")
    if not isinstance(cut, str):
        raise ConfigError(f"cut must be one of {', '.join(sight.CUTS)}, not {shown(cut)}")
    return cut


def _task(given: Any) -> str:
    name = _field(given, "task")
    if not isinstance(name, str):
        raise ConfigError(f"task must be one of {', '.join(TASKS)}, not {shown(name)}")
    return name


def _walked_to(given: Any) -> dict[str, Any]:
    place = _field(given, "place")
    if not isinstance(place, dict):
        raise ConfigError(f"place is an object with position, layer and unit, not {shown(place)}")
    return place


def _field(given: Any, name: str) -> Any:
    if not isinstance(given, dict):
        raise ConfigError(f"a request is an object with {name!r}, not {shown(given)}")
    check_choice("field of this request", name, given)
    return given[name]


def _about(model: HookedModel, tasks: Tasks, other: Other | None) -> dict[str, Any]:
    cfg = model.cfg
    return {
        "model": cfg.model_name or "a model",
        "layers": cfg.n_layers,
        "heads": cfg.n_heads if cfg.has_attention else 0,
        "context": cfg.n_ctx,
        "text": model.tokenizer is not None,
        "against": None if other is None else other.name,
        "parts": examples(model),
        "tasks": tasks.offered(),
        "maps": {name: cut.title for name, cut in sight.cuts_of(model).items()},
    }

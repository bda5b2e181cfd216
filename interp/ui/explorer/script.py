"""A scene as a Python script that shows the same with the public API."""

from __future__ import annotations

from interp.hooked.model import HookedModel
from interp.ui.explorer.changes import Change, changes_of
from interp.ui.explorer.scene import CLEAN, CORRUPT, Scene, answer_id, patched, resolved, token_ids


def script_of(model: HookedModel, loaded: str, scene: Scene) -> str:
    """The script.

    Args:
        model: the model.
        loaded: the call that loads it, such as `interp.load("toy")`.
        scene: what it shows.

    Raises:
        InterpError: a scene that cannot be shown.
    """
    resolved(model, scene)  # refuses what would not run
    changes, copies = changes_of(scene.edits), patched(scene)
    answers = [answer_id(model, one) for one in scene.answers] if all(scene.answers) else []
    first = _ids(model, scene.prompt, "the prompt")
    lines = ["import interp"]
    if any(one.of_edge for one in changes):
        lines.append("from interp.circuits.paths import edge_edits")
    lines += ["", f"model = {loaded}", f"prompt = {first}"]
    shown = "pairs" if answers else "prompt"
    if changes or answers:
        make = "from_text(model, prompt" if model.tokenizer is not None else "from_tokens([prompt]"
        second = _ids(model, scene.second, "the second prompt") if copies else ""
        corrupt = f", {second if model.tokenizer is not None else f'[{second}]'}" if copies else ""
        told = f", answers=[{tuple(answers)}]" if answers else ""
        lines.append(f"pairs = interp.PromptPairs.{make}{corrupt}{told})")
    if changes:
        lines.append("edits = [")
        lines += [f"    {_written(model, one)}," for one in changes]
        sides = f'base="{CLEAN}", source="{CORRUPT}"'
        lines += ["]", f"with interp.edited(model, pairs, interp.Variant(edits), {sides}):"]
        lines.append(f'    interp.show(model, {shown}).save("explored.html")')
    else:
        lines.append(f'interp.show(model, {shown}).save("explored.html")')
    return "\n".join(lines) + "\n"


def _written(model: HookedModel, change: Change) -> str:
    """A change as an element of a list of edits."""
    if change.of_edge:
        factor = "" if change.factor is None else f", factor={change.factor!r}"
        pos = "" if change.pos is None else f", pos={change.pos!r}"
        return f"*edge_edits(model, pairs, {change.what!r}{factor}{pos})"
    edit = change.edit(model)
    where = "{" + ", ".join(f'"{axis}": {at!r}' for axis, at in edit.where.items()) + "}"
    source = {"zero": "", "patch": ', "source"'}.get(change.op, f", {change.number!r}")
    return f'interp.Edit("{edit.site}", {where}, "{edit.op}"{source})'


def map_script_of(model: HookedModel, loaded: str, scene: Scene, answers: tuple[int, int], site: str, by: str) -> str:
    """The same for a patching map, whose answers are known."""
    second = _ids(model, scene.second, "the second prompt")
    first = _ids(model, scene.prompt, "the prompt")
    prompts = (
        f"from_text(model, {first}, {second}" if model.tokenizer is not None else f"from_tokens([{first}], [{second}]"
    )
    return (
        "import interp\n"
        "from interp.variants.granularity import variants\n\n"
        f"model = {loaded}\n"
        f"pairs = interp.PromptPairs.{prompts}, answers=[{answers}])\n"
        f'cells = variants(model, pairs, site="{site}", by="{by}")\n'
        f'table = interp.sweep(model, pairs, cells, base="{CLEAN}", source="{CORRUPT}")\n'
        'interp.show(table).save("patching.html")\n'
    )


def _ids(model: HookedModel, text: str, what: str) -> str:
    """A prompt as Python writes it: a text, or the ids of a model without a tokenizer."""
    return repr(text) if model.tokenizer is not None else repr(token_ids(model, text, what))

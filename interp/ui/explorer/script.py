"""A scene as a Python script that shows the same with the public API."""

from __future__ import annotations

from interp.hooked.model import HookedModel
from interp.ui.explorer.scene import CLEAN, CORRUPT, Scene, answer_id, pairs_of, patches, token_ids, variant_of


def script_of(model: HookedModel, loaded: str, scene: Scene) -> str:
    """The script.

    Args:
        model: the model.
        loaded: the call that loads it, such as `interp.load("toy")`.
        scene: what it shows.

    Raises:
        InterpError: a scene that cannot be shown.
    """
    variant = variant_of(model, scene.edits)
    patched = patches(variant)
    answers = [answer_id(model, one) for one in scene.answers] if all(scene.answers) else []
    pairs_of(model, scene, patched=patched)  # refuses what would not run
    first = _ids(model, scene.prompt, "the prompt")
    lines = ["import interp", "", f"model = {loaded}", f"prompt = {first}"]
    shown = "pairs" if answers else "prompt"
    if variant.edits or answers:
        make = "from_text(model, prompt" if model.tokenizer is not None else "from_tokens([prompt]"
        second = _ids(model, scene.second, "the second prompt") if patched else ""
        corrupt = f", {second if model.tokenizer is not None else f'[{second}]'}" if patched else ""
        told = f", answers=[{tuple(answers)}]" if answers else ""
        lines.append(f"pairs = interp.PromptPairs.{make}{corrupt}{told})")
    if variant.edits:
        lines.append("edits = [")
        for edit in variant.edits:
            given = {"zero": "", "scale": f", {edit.source!r}", "set": ', "source"'}[edit.op]
            where = "{" + ", ".join(f'"{axis}": {at}' for axis, at in edit.where.items()) + "}"
            lines.append(f'    interp.Edit("{edit.site}", {where}, "{edit.op}"{given}),')
        sides = f'base="{CLEAN}", source="{CORRUPT}"'
        lines += ["]", f"with interp.edited(model, pairs, interp.Variant(edits), {sides}):"]
        lines.append(f'    interp.show(model, {shown}).save("explored.html")')
    else:
        lines.append(f'interp.show(model, {shown}).save("explored.html")')
    return "\n".join(lines) + "\n"


def map_script_of(model: HookedModel, loaded: str, scene: Scene, answers: tuple[int, int]) -> str:
    """The same for the patching map of all heads, whose answers are known."""
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
        'heads = variants(model, pairs, site="z", by="head")\n'
        f'table = interp.sweep(model, pairs, heads, base="{CLEAN}", source="{CORRUPT}")\n'
        'interp.show(table).save("patching.html")\n'
    )


def _ids(model: HookedModel, text: str, what: str) -> str:
    """A prompt as Python writes it: a text, or the ids of a model without a tokenizer."""
    return repr(text) if model.tokenizer is not None else repr(token_ids(model, text, what))

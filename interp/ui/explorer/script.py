"""A scene as a Python script that shows the same with the public API."""

from __future__ import annotations

from collections.abc import Sequence

from interp.hooked.model import HookedModel
from interp.ui.explorer.changes import Change, changes_of
from interp.ui.explorer.scene import (
    CLEAN,
    CORRUPT,
    Other,
    Scene,
    answer_id,
    compared_with,
    resolved,
    token_ids,
)

SIDES = f'base="{CLEAN}", source="{CORRUPT}"'
COMPARED = 10  # tokens that the script prints


def script_of(model: HookedModel, loaded: str, scene: Scene, other: Other | None = None) -> str:
    """The script.

    Args:
        model: the model.
        loaded: the call that loads it, such as `interp.load("toy")`.
        scene: what it shows, and what that is compared with.
        other: the second model of this server.

    Raises:
        InterpError: a scene that cannot be shown.
    """
    resolved(model, scene)  # refuses what would not run
    compared = bool(scene.edits or scene.beside)
    if compared:
        compared_with(model, scene, other)
    changes, kept = changes_of(scene.edits), changes_of(scene.kept if scene.beside == "kept" else ())
    copies = any(one.patches for one in [*changes, *kept])
    answers = [answer_id(model, one) for one in scene.answers] if all(scene.answers) else []
    first = _ids(model, scene.prompt, "the prompt")
    lines = ["import torch\n"] if compared else []
    lines.append("import interp")
    if any(one.of_edge for one in [*changes, *kept]):
        lines.append("from interp.circuits.paths import edge_edits")
    lines += ["", f"model = {loaded}", f"prompt = {first}"]
    shown = "pairs" if answers else "prompt"
    if changes or answers or compared:
        make = "from_text(model, prompt" if model.tokenizer is not None else "from_tokens([prompt]"
        second = _ids(model, scene.second, "the second prompt") if copies else ""
        corrupt = f", {second if model.tokenizer is not None else f'[{second}]'}" if copies else ""
        told = f", answers=[{tuple(answers)}]" if answers else ""
        lines.append(f"pairs = interp.PromptPairs.{make}{corrupt}{told})")
    run = [f'interp.show(model, {shown}).save("explored.html")']
    run += ["after = model(pairs.clean.to(model.device))[0, -1].detach().log_softmax(-1)"] if compared else []
    lines += _in_run(model, "edits", changes, run)
    return "\n".join([*lines, *(_comparison(model, scene, kept, other) if compared else [])]) + "\n"


def _in_run(model: HookedModel, name: str, changes: Sequence[Change], lines: Sequence[str]) -> list[str]:
    """Lines that run with changes, which are listed as `name`."""
    if not changes:
        return [*lines]
    listed = [f"{name} = [", *(f"    {_written(model, one)}," for one in changes), "]"]
    opened = f"with interp.edited(model, pairs, interp.Variant({name}), {SIDES}):"
    return [*listed, opened, *(f"    {line}" for line in lines)]


def _comparison(model: HookedModel, scene: Scene, kept: Sequence[Change], other: Other | None) -> list[str]:
    """Lines that print the next token before and after, as the page compares them."""
    before = "before = model(pairs.clean.to(model.device))[0, -1].detach().log_softmax(-1)"
    lines = ["", "# What it is compared with, at the last position."]
    if scene.beside == "other" and other is not None:
        lines += [
            f"other = {other.loaded}",
            "before = other(pairs.clean.to(other.device))[0, -1].detach().log_softmax(-1)",
        ]
    elif scene.beside == "second":
        text = _ids(model, scene.second, "the second prompt")
        made = (
            f"model.to_tokens({text})"
            if model.tokenizer is not None
            else f"torch.tensor([{text}], device=model.device)"
        )
        lines.append(f"before = model({made})[0, -1].detach().log_softmax(-1)")
    else:
        lines += _in_run(model, "kept", kept, [before])
    named = "model.to_str_tokens(tokens)" if model.tokenizer is not None else "tokens.tolist()"
    return [
        *lines,
        f"tokens = torch.maximum(before, after).topk({min(COMPARED, model.cfg.d_vocab_out)}).indices",
        f"for name, token in zip({named}, tokens, strict=True):",
        '    print(f"{name!r}: {float(before[token].exp()):.3%} before, {float(after[token].exp()):.3%} after")',
        'print(f"KL divergence: {float((before.exp() * (before - after)).sum()):.4f} nats")',
    ]


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
        f"table = interp.sweep(model, pairs, cells, {SIDES})\n"
        'interp.show(table).save("patching.html")\n'
    )


def _ids(model: HookedModel, text: str, what: str) -> str:
    """A prompt as Python writes it: a text, or the ids of a model without a tokenizer."""
    return repr(text) if model.tokenizer is not None else repr(token_ids(model, text, what))

"""The prompts that a command asks for: a task's, a data file's, or one that was typed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from interp.errors import PromptError

if TYPE_CHECKING:
    from interp.hooked.model import HookedModel
    from interp.prompts.pairs import PromptPairs


PROMPT_OPTIONS = ("task", "n", "seed", "aligned", "prompt", "corrupt", "answer", "wrong")


def load_prompts(
    model: HookedModel,
    *,
    task: str = "ioi",
    n: int = 16,
    seed: int = 0,
    aligned: bool = False,
    prompt: str | None = None,
    corrupt: str | None = None,
    answer: str | None = None,
    wrong: str | None = None,
) -> PromptPairs:
    """The prompts that the options ask for: a task's, a data file's, or the one that was typed."""
    from interp.prompts.pairs import PromptPairs
    from interp.tasks import get_task

    if prompt is None:
        if corrupt or answer or wrong:
            raise PromptError("--corrupt, --answer and --wrong belong to --prompt")
        return get_task(task)(model, n=n, seed=seed, aligned=aligned)
    first, second = _own_choices(model, prompt, answer)
    return PromptPairs.from_text(
        model, clean=[prompt], corrupt=[corrupt or prompt], answers=[(answer or first, wrong or second)], name="prompt"
    )


def _own_choices(model: HookedModel, prompt: str, answer: str | None) -> tuple[int, int]:
    """The model's likeliest next token and its likeliest other one than the answer."""
    import torch

    from interp.prompts.answers import answer_id

    with torch.no_grad():
        ranked = model(prompt)[0, -1].topk(2).indices.tolist()
    if answer is not None:
        given = answer_id(answer, "the answer", model, prompt)
        ranked = [given, *(token for token in ranked if token != given)]
    return ranked[0], ranked[1]

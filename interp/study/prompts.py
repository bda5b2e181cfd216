"""The prompts that a command asks for: a task's, a data file's, or one that was typed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from interp.errors import ConfigError, PromptError

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
    from interp.prompts.pair_checks import MASK, encode_prompts, with_masks
    from interp.prompts.pairs import PromptPairs
    from interp.tasks import get_task

    if prompt is None:
        if corrupt or answer or wrong:
            raise PromptError("--corrupt, --answer and --wrong belong to --prompt")
        pairs = get_task(task)(model, n=n, seed=seed, aligned=aligned)
        check_masked(model, pairs)
        return pairs
    (roles,) = with_masks(model, encode_prompts(model, [prompt], None), [{}])
    first, second = _own_choices(model, prompt, answer, roles.get(MASK, -1))
    return PromptPairs.from_text(
        model,
        clean=[prompt],
        corrupt=[corrupt or prompt],
        answers=[(answer or first, wrong or second)],
        name="prompt",
    )


def check_one_stack(model: HookedModel, what: str, instead: str) -> None:
    """Refuse a model with an encoder and a decoder in a study of one stack.

    Args:
        model: the model.
        what: the study, as the subject of a sentence.
        instead: what to do.

    Raises:
        ConfigError: an `interp.EncoderDecoder`.
    """
    from interp.encoder_decoder.model import EncoderDecoder

    if isinstance(model, EncoderDecoder):
        raise ConfigError(f"{what} one stack, and this model has an encoder and a decoder: {instead}")


def check_masked(model: HookedModel, pairs: PromptPairs) -> None:
    """Refuse prompts for an encoder that do not say where its answer is read.

    Raises:
        PromptError: a pair without the role "MASK".
    """
    from interp.models.encoder import Encoder
    from interp.prompts.pair_checks import MASK

    if isinstance(model, Encoder) and pairs.answer_place == -1:
        raise PromptError(
            f"this model predicts masked tokens, and the prompts of {pairs.name!r} do not say where their mask is: "
            f"give a data file with a column 'role:{MASK}', which has its position or its text, such as [MASK]"
        )


def _own_choices(model: HookedModel, prompt: str, answer: str | None, at: int) -> tuple[int, int]:
    """The model's likeliest token at a position and its likeliest other one than the answer."""
    import torch

    from interp.prompts.answers import answer_id

    with torch.no_grad():
        ranked = model(prompt)[0, at].topk(2).indices.tolist()
    if answer is not None:
        given = answer_id(answer, "the answer", model, prompt)
        ranked = [given, *(token for token in ranked if token != given)]
    return ranked[0], ranked[1]

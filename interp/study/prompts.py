"""The prompts that a command asks for: a task's, a data file's, or one that was typed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from interp.errors import ConfigError, PromptError

if TYPE_CHECKING:
    from interp.hooked.model import HookedModel
    from interp.prompts.pairs import PromptPairs

MASK_TOKENS = ("[MASK]", "<mask>")
"""How tokenizers write the token in place of which an encoder predicts another."""

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
    from interp.prompts.pairs import MASK, PromptPairs
    from interp.tasks import get_task

    if prompt is None:
        if corrupt or answer or wrong:
            raise PromptError("--corrupt, --answer and --wrong belong to --prompt")
        pairs = get_task(task)(model, n=n, seed=seed, aligned=aligned)
        check_masked(model, pairs)
        return pairs
    roles = _mask(model, prompt)
    first, second = _own_choices(model, prompt, answer, roles.get(MASK, -1))
    return PromptPairs.from_text(
        model,
        clean=[prompt],
        corrupt=[corrupt or prompt],
        answers=[(answer or first, wrong or second)],
        roles=roles,
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
    from interp.prompts.pairs import MASK

    if isinstance(model, Encoder) and pairs.answer_place == -1:
        raise PromptError(
            f"this model predicts masked tokens, and the prompts of {pairs.name!r} do not say where their mask is: "
            f"give a data file with a column 'role:{MASK}', which has its position or its text, such as [MASK]"
        )


def _mask(model: HookedModel, prompt: str) -> dict[str, int]:
    """The role of the mask in a prompt of an encoder; no role for a model that continues a text.

    Raises:
        PromptError: the prompt does not have one mask.
    """
    from interp.models.encoder import Encoder
    from interp.prompts.pair_checks import encode_prompts
    from interp.prompts.pairs import MASK

    if not isinstance(model, Encoder):
        return {}
    (row,) = encode_prompts(model, [prompt], None)
    assert model.tokenizer is not None  # encode_prompts refuses
    masks = {model.tokenizer.backend.token_to_id(text): text for text in MASK_TOKENS}
    at = [place for place, token in enumerate(row) if token in masks]
    if len(at) != 1:
        own = next((text for token, text in masks.items() if token is not None), MASK_TOKENS[0])
        raise PromptError(
            f"this model predicts a masked token: write {own} once in the prompt, which has it {len(at)} times"
        )
    return {MASK: at[0]}


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

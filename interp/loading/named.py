"""The models that have a short name; how each is read stands in `load`, which needs torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class NamedModel:
    """A model with a short name: what it is, and how many parameters it has (None: not counted)."""

    name: str
    description: str
    parameters: int | None


MODELS = {
    model.name: model
    for model in (
        NamedModel("smollm2-135m", "SmolLM2-135M-Instruct (Llama family), from a 4-bit GGUF", 134_515_008),
        NamedModel("toy", "two layers of attention that copy by induction, no tokenizer", 32_960),
    )
}

"""The models that have a short name. How each is read is in `load`: this file does not need torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class NamedModel:
    """A model with a short name: what it is, and its number of parameters (None: not counted)."""

    name: str
    description: str
    parameters: int | None


MODELS = {
    model.name: model
    for model in (
        NamedModel("smollm2-135m", "SmolLM2-135M-Instruct (Llama family), from a 4-bit GGUF", 134_515_008),
        NamedModel("gemma-3-270m", "Gemma 3 270M, from a 4-bit GGUF (packages of 240 MB)", 268_098_176),
        NamedModel("toy", "two layers of attention that copy by induction, no tokenizer", 32_960),
    )
}

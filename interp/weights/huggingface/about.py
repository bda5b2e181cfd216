"""What a user is told of each Hugging Face family: by `interp models --all`, and by docs/families.md."""

from __future__ import annotations

from interp.weights.huggingface.families import FAMILIES

# What is special about a family, or limited: each a few words, in Markdown.
QUIRKS: dict[str, tuple[str, ...]] = {
    "gpt2": ("learned positions",),
    "gpt_neox": ("attention and MLP read the same stream by default", "a part of each head is rotated"),
    "qwen2": ("biases on queries, keys and values alone",),
    "mamba": ("no heads, no MLP", "no longest prompt"),
    "falcon_mamba": ("norms without weights on step sizes, B and C", "no longest prompt"),
    "mamba2": ("the gate comes before the norm, whatever `norm_before_gate` says", "no longest prompt"),
    "bamba": ("half of each head is rotated", "with a cache, transformers forgets `time_step_limit`"),
    "jamba": ("no positions", "norms inside the mixer", "experts are refused"),
    "nemotron_h": (
        "each layer is a mixer, attention or an MLP alone",
        "no positions",
        "with a cache, transformers forgets `time_step_min`",
        "experts are refused",
    ),
}


def title(model_type: str) -> str:
    """What a family is: the first sentence of what the function that reads its options says of itself."""
    said = FAMILIES[model_type].configure.__doc__ or ""
    return " ".join(said.partition("\n\n")[0].split()).removesuffix(".")


def checked_against(model_type: str) -> str:
    """The class of transformers with which a family is compared."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[model_type]


def families() -> list[dict[str, str]]:
    """A row for each family."""
    return [
        {
            "model_type": name,
            "family": title(name),
            "checked_against": checked_against(name),
            "quirks": "; ".join(QUIRKS.get(name, ())),
        }
        for name in FAMILIES
    ]

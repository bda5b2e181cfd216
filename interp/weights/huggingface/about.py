"""What a user is told of each Hugging Face family: by `interp models --all`, and by docs/families.md."""

from __future__ import annotations

from interp.weights.huggingface.families import FAMILIES

LENGTHS = "with dynamic or LongRoPE scaling, text is that of the whole prompt, with a cache too"
CAPPED = "direct attributions are of the logits before the cap"
MAPPINGS = {
    "CausalLM": "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES",
    "MaskedLM": "MODEL_FOR_MASKED_LM_MAPPING_NAMES",
    "Seq2SeqLM": "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES",
}
"""transformers' tables of its classes, by the end of the name of the class that chooses one."""

# What is special about a family, or limited: each a few words, in Markdown.
QUIRKS: dict[str, tuple[str, ...]] = {
    "gpt2": ("learned positions",),
    "gpt_neox": ("attention and MLP read the same stream by default", "a part of each head is rotated"),
    "gpt_neo": ("scores are not scaled",),
    "gptj": ("the unembedding has a bias",),
    "opt": ("positions count from 2 in its table", "norms after the parts and a narrower embedding (350M) are refused"),
    "bloom": ("no longest prompt in transformers; here that of its training",),
    "falcon": (
        "slopes of ALiBi are rounded to bfloat16",
        "with ALiBi compared with transformers' sdpa, as its eager attention adds the bias twice",
    ),
    "phi": ("the unembedding has a bias",),
    "llama": (LENGTHS,),
    "qwen2": ("biases on queries, keys and values alone",),
    "gemma": ("norms store their weights less 1", "the embedding is multiplied by the root of its width"),
    "gemma2": ("the heads of a layer share the scale of the norm after them", CAPPED),
    "gemma3_text": (
        "the heads of a layer share the scale of the norm after them",
        "scores are not capped, as in transformers",
    ),
    "gemma3": ("images are not read",),
    "phi3": (LENGTHS,),
    "olmo2": ("no norm before the parts", "the heads of a layer share the scale of the norm after them"),
    "cohere": ("neighbours rotate in pairs",),
    "granite": ("`hook_result` is before the factor of the stream",),
    "smollm3": ("some layers do not rotate",),
    "qwen2_moe": ("a shared expert beside the chosen ones",),
    "gpt_oss": ("rows of a pattern sum to less than 1: the rest goes to the sink", "published MXFP4 weights are read"),
    "mamba": ("no heads, no MLP", "no longest prompt"),
    "falcon_mamba": ("norms without weights on step sizes, B and C", "no longest prompt"),
    "mamba2": ("the gate comes before the norm, whatever `norm_before_gate` says", "no longest prompt"),
    "bamba": ("half of each head is rotated", "with a cache, transformers forgets `time_step_limit`"),
    "jamba": ("no positions", "norms inside the mixer"),
    "bert": ("norms on the residual stream", "no shares of logits: the head is not linear"),
    "roberta": (
        "norms on the residual stream",
        "transformers counts no position where the padding token stands; here padding is what the mask says",
    ),
    "distilbert": ("norms on the residual stream", "no segments"),
    "modernbert": ("the first layer has no norm before its attention", "windows look both ways"),
    "bart": ("norms on the residual stream of both stacks", "positions count from 2 in its table"),
    "marian": ("norms on the residual stream of both stacks", "all sines of a position come before all cosines"),
    "t5": ("relative positions, alike in all layers of a stack", "scores are not scaled"),
    "nemotron_h": (
        "each layer is a mixer, attention or an MLP alone",
        "no positions",
        "with a cache, transformers forgets `time_step_min`",
    ),
    "zamba2": (
        "shared transformer blocks read the stream beside the embedding, and write to the input of mixers",
        "untied embeddings are refused, as transformers then has no shared blocks",
        "with a cache, transformers forgets `time_step_min`",
    ),
}


def title(model_type: str) -> str:
    """What a family is: the first sentence of what the function that reads its options says of itself."""
    said = FAMILIES[model_type].configure.__doc__ or ""
    return " ".join(said.partition("\n\n")[0].split()).removesuffix(".")


def checked_against(model_type: str) -> str:
    """The class of transformers with which a family is compared."""
    from transformers.models.auto import modeling_auto

    name: str = getattr(modeling_auto, MAPPINGS[FAMILIES[model_type].head])[model_type]
    return name


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

"""One sweep against one forward a cell, for a model of each kind: interleaved in one process, on a CPU.

1. A random model of each kind (12 layers of width 512, float32), 8 pairs of prompts of 32 tokens that differ in one
   token half way; every head is patched, at all positions. Of the model with two stacks of 6 layers the encoder's
   prompts differ, and the decoder continues 4 tokens.
2. The sweep is `interp.sweep`. A forward a cell is the same model, run on all prompts with a hook that sets the head;
   a sample of the cells is timed and the time scaled to all.
3. `--gemma` times Gemma 3 270M as well, with the prompts of `interp.tasks.ioi`.

Prints medians in seconds and medians of the ratios of neighbouring runs. Run with `python benchmarks/families.py
[--rounds N] [--gemma]`.
"""

from __future__ import annotations

import argparse
import fnmatch
import statistics
from typing import Any

import torch
from interleaved import interleaved, ratio
from torch import Tensor

import interp
from interp import Edit, EncoderDecoder, EncoderDecoderConfig, Experts, ModelConfig, PromptPairs, Variant
from interp.models.gpt import GPT

SAMPLE, N_PAIRS, LENGTH = 12, 8, 32
SHARED: dict[str, Any] = {
    "n_layers": 12, "d_model": 512, "n_ctx": 64, "d_head": 64, "n_heads": 8, "n_key_value_heads": 4, "d_vocab": 8192,
    "d_mlp": 2048, "positional_embedding_type": "rotary", "normalization_type": "RMS", "gated_mlp": True,
    "act_fn": "silu", "attn_in_bias": False, "attn_out_bias": False, "mlp_bias": False, "unembed_bias": False,
    "tie_word_embeddings": True, "seed": 0,
}  # fmt: skip
KINDS: dict[str, dict[str, Any]] = {
    "plain (Llama)": {},
    "sliding window (Mistral)": {"window_size": 8},
    "norms after the parts (OLMo 2)": {"norm_placement": "post", "qk_norm": "RMS_all_heads"},
    "both, and soft caps (Gemma 2)": {
        "norm_placement": "both", "norm_unit_offset": True, "window_size": 8, "attn_types": ("local", "global") * 6,
        "attn_scores_soft_cap": 50.0, "output_logits_soft_cap": 30.0,
    },
    "sinks (gpt-oss's attention)": {"attn_sinks": True, "window_size": 8, "attn_types": ("local", "global") * 6},
    "8 experts, 2 a token (Mixtral)": {"experts": Experts(8, 2, 1024)},
    "norms on the stream (BERT)": {
        "norm_placement": "residual", "normalization_type": "LN", "attention_dir": "bidirectional", "final_norm": False,
    },
}  # fmt: skip
STACK: dict[str, Any] = {**SHARED, "n_layers": 6, "positional_embedding_type": "relative", "use_attn_scale": False}
STACK |= {"tie_word_embeddings": False}


def drawn_pairs(d_vocab: int, length: int = LENGTH) -> PromptPairs:
    """Pairs that differ in the token in the middle."""
    clean = torch.randint(0, d_vocab, (N_PAIRS, length), generator=torch.Generator().manual_seed(1))
    corrupt = clean.clone()
    corrupt[:, length // 2] = (corrupt[:, length // 2] + 1) % d_vocab
    return PromptPairs.from_tokens(clean.tolist(), corrupt.tolist(), answers=[(i, i + 1) for i in range(N_PAIRS)])


def compare(name: str, model: GPT | EncoderDecoder, pairs: PromptPairs, rounds: int, starts: str = "blocks.*") -> None:
    """Print the times of both, and their ratio; `starts` begins the names of the sites whose heads are patched."""
    sites = [site for site in model.hook_dict if fnmatch.fnmatchcase(site, f"{starts}attn.hook_z")]
    n_heads = (model.cfg if isinstance(model, GPT) else model.cfg.decoder).n_heads
    cells = [(site, head) for site in sites for head in range(n_heads)]
    variants = [Variant([Edit(site, {"head": head})]) for site, head in cells]
    clean, corrupt = pairs.inputs("clean"), pairs.inputs("corrupt")
    _, source = model.run_with_cache(**clean, names_filter=sites)
    sample = cells[:: max(1, len(cells) // SAMPLE)]

    def sweep() -> Any:
        return interp.sweep(model, pairs, variants, base="corrupt", source="clean", progress=False)

    def forwards() -> None:
        for site, head in sample:

            def patch(z: Tensor, hook: Any, head: int = head) -> Tensor:
                z = z.clone()
                z[:, :, head] = source[hook.name][:, :, head]
                return z

            model.run_with_hooks(**corrupt, fwd_hooks=[(site, patch)])

    seconds = interleaved({"sweep": sweep, "forwards": forwards}, rounds)
    scale = len(cells) / len(sample)
    one, many = (statistics.median(seconds[which]) for which in ("sweep", "forwards"))
    times = ratio(seconds, "forwards", "sweep") * scale
    print(f"{name:34} {len(cells):5} cells  sweep {one:6.2f} s  forwards {many * scale:7.1f} s  ratio {times:5.1f}")


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--gemma", action="store_true", help="Gemma 3 270M as well, whose packages must be installed")
    options = parser.parse_args()
    print(f"{N_PAIRS} pairs of {LENGTH} tokens, float32, {torch.get_num_threads()} threads, torch {torch.__version__}")
    for name, own in KINDS.items():
        model = GPT(ModelConfig(**{**SHARED, **own}))
        compare(name, model, drawn_pairs(model.cfg.d_vocab), options.rounds)
    stacks = EncoderDecoder(
        EncoderDecoderConfig(
            ModelConfig(**STACK, attention_dir="bidirectional"), ModelConfig(**STACK, cross_attention=True)
        )
    )
    encoder, decoder = drawn_pairs(stacks.cfg.d_vocab), drawn_pairs(stacks.cfg.d_vocab, 4)
    pairs = PromptPairs(**{**vars(decoder), "corrupt": decoder.clean, "encoder": encoder})
    for which in ("encoder.blocks.*", "decoder.blocks.*.", "decoder.blocks.*.cross_"):
        compare(f"T5: {which}", stacks, pairs, options.rounds, which)
    if options.gemma:
        gemma = interp.load("gemma-3-270m")
        assert isinstance(gemma, GPT)
        compare("Gemma 3 270M, indirect objects", gemma, interp.tasks.ioi(gemma, n=N_PAIRS, seed=0), options.rounds)


if __name__ == "__main__":
    main()

"""Draw the figures of docs/tour.md: what a small Mamba does with one prompt, and print the numbers that it quotes.

1. Train the two-layer Mamba of `analyses.copying`, which answers a key with the value that followed it.
2. Run one prompt and read delta, B, C, the states and the hidden attention from the cache.
3. Draw each; those of many channels are shown for the channels that matter, or as means over all.

    python docs/tour/make.py
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor

from analyses import copying
from interp import figures
from interp.cache import ActivationCache
from interp.canvas import save
from interp.gpt import GPT
from interp.scales import Axis

HERE = Path(__file__).parent
CHANNELS = 24


def main() -> None:
    """Write the figures beside this file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0, help="of weights, training and the prompt (default: 0)")
    seed = parser.parse_args().seed
    model = copying.train("mamba", seed=seed)
    pairs = copying.prompts(1, seed=seed)
    logits, cache = model.run_with_cache(pairs.clean)
    tokens = [f"{at}: {token}" for at, token in enumerate(pairs.str_tokens[0])]
    print(f"{pairs.clean_texts[0]} -> {pairs.str_tokens[0][pairs.roles[0]['value']]}")
    print(f"answer's probability {float(logits[0, -1].softmax(-1)[pairs.answers[0, 0]]):.3f}")
    layer = _layer_of_the_answer(model, cache, pairs.roles[0])
    print(f"layer {layer} reads the pair from its state")
    _picture("delta", _delta(cache, model, layer), tokens, "channel", "step size delta")
    _picture("b_and_c", _selection(cache, layer), tokens, "d_state", "value")
    _picture("state", _state(cache, layer, pairs.roles[0]), tokens, "d_state", "state")
    _hidden_attention(cache, model, list(pairs.str_tokens[0]))


def _layer_of_the_answer(model: GPT, cache: ActivationCache, roles: dict[str, int]) -> int:
    """The layer in whose hidden attention the query has the largest share of what it reads from the pair."""
    shares = []
    for layer in range(model.cfg.n_layers):
        row = cache["pattern", layer][0, :, roles["query"]].abs().mean(0)  # [key]
        shares.append(float(row[roles["key"] : roles["value"] + 3].sum() / row.sum()))
    return shares.index(max(shares))


def _long(values: Tensor, axis: str) -> pd.DataFrame:
    """A row for every position and entry of [pos, entry]."""
    table = pd.DataFrame(values.numpy()).melt(var_name=axis, ignore_index=False)
    return table.rename_axis("pos").reset_index()


def _delta(cache: ActivationCache, model: GPT, layer: int) -> pd.DataFrame:
    """Step sizes of the channels whose step sizes differ most from position to position."""
    delta = cache["delta", layer][0]  # [pos, channel]
    chosen = delta.std(0).topk(CHANNELS).indices
    return _long(delta[:, chosen[delta[:, chosen].argmax(0).argsort()]], "channel")


def _selection(cache: ActivationCache, layer: int) -> pd.DataFrame:
    parts = [_long(cache[name, layer][0], "d_state").assign(what=name) for name in ("B", "C")]
    return pd.concat(parts, ignore_index=True)


def _state(cache: ActivationCache, layer: int, roles: dict[str, int]) -> pd.DataFrame:
    """The states of the three channels that give the query most of what they hold of the pair."""
    read = cache["pattern", layer][0, :, roles["query"], roles["key"] : roles["value"] + 3].abs().amax(-1)  # [channel]
    parts = [
        _long(cache["state", layer][0, :, channel], "d_state").assign(channel=f"channel {channel}")
        for channel in read.topk(3).indices.tolist()
    ]
    return pd.concat(parts, ignore_index=True)


def _picture(stem: str, frame: pd.DataFrame, tokens: list[str], down: str, label: str) -> None:
    facet = next((name for name in ("what", "channel") if name in frame and name != down), None)
    titles = {"d_state": "number of the state", "channel": "channel"}
    figure = figures.heatmap(
        frame,
        x=Axis("pos", title="position", labels=dict(enumerate(tokens))),
        y=Axis(down, title=titles[down]),
        facet=facet,
        diverging=stem != "delta",
        label=label,
    )
    save(figure, frame, HERE / stem)


def _hidden_attention(cache: ActivationCache, model: GPT, tokens: list[str]) -> None:
    """Magnitudes of the hidden attention, without its diagonal; every row divided by its sum, mean over channels."""
    parts = []
    for layer in range(model.cfg.n_layers):
        pattern = cache["pattern", layer][0].abs()  # [channel, query, key]
        pattern = pattern * (1 - torch.eye(pattern.shape[-1]))
        mean = (pattern / pattern.sum(-1, keepdim=True).clamp(min=1e-9)).mean(0)
        parts.append(_long(mean, "key").rename(columns={"pos": "query"}).assign(layer=f"layer {layer}"))
    frame = pd.concat(parts, ignore_index=True)
    figure = figures.attention(
        frame, tokens=tokens, facet="layer", limit=float(frame["value"].max()), label="share of what a position reads"
    )
    save(figure, frame, HERE / "hidden_attention")


if __name__ == "__main__":
    main()

"""Draw the figures of docs/tour.md, which show a small Mamba on one prompt, and print the numbers that the page quotes.

1. Train the two-layer Mamba of docs/copying.md, which answers a key with the value that followed it.
2. Find the layer whose state carries the answer just before the query, by patching it.
3. Run one prompt, read delta, B, C, the states and the hidden attention of that layer from the cache, and draw each;
   of many channels only the most important are shown.

    python docs/tour/make.py
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pandas as pd
from torch import Tensor

from interp import figures
from interp.edits import Edit, Variant
from interp.figures.axes import Axis
from interp.figures.style import Figure
from interp.ground_truth.copying_models import prompts, train
from interp.heads.hidden_attention import mixer_of, together
from interp.hooked.cache import ActivationCache
from interp.models.gpt import GPT
from interp.prompts.pairs import PromptPairs
from interp.sweeps.sweep import sweep

HERE = Path(__file__).parent
CHANNELS, DPI = 24, 150


def main() -> None:
    """Write the figures into the folder of this file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0, help="of weights, training and the prompt (default: 0)")
    seed = parser.parse_args().seed
    model = train("mamba", seed=seed)
    layer = _layer_of_the_answer(model, prompts(32, seed=seed))
    pairs = prompts(1, seed=seed)
    logits, cache = model.run_with_cache(pairs.clean)
    tokens, roles = list(pairs.str_tokens[0]), pairs.roles[0]
    print(
        f"{' '.join(tokens)} -> {tokens[roles['value']]}, p {float(logits[0, -1].softmax(-1)[pairs.answers[0, 0]]):.3f}"
    )
    print(f"the key asked for is at {roles['key']}, its value at {roles['value']}")
    _picture("delta", _delta(cache, layer), pairs, "channel", "step size delta")
    _picture("b_and_c", _selection(cache, layer), pairs, "d_state", "value")
    _picture("state", _state(cache, layer, roles), pairs, "d_state", "state")
    _hidden_attention(cache, model, pairs)


def _layer_of_the_answer(model: GPT, pairs: PromptPairs) -> int:
    """The layer in which patching the state before the query restores most of the answer."""
    query = pairs.roles[0]["query"]
    each = [
        Variant([Edit("state", {"layer": layer, "pos": query - 1})], {"layer": layer})
        for layer in range(model.cfg.n_layers)
    ]
    effects = sweep(model, pairs, each, "logit_diff", progress=False).groupby("layer")["effect"].mean()
    print(f"effect of the state before the query: {effects.round(2).to_dict()}")
    return int(effects.idxmax())


def _long(values: Tensor, axis: str) -> pd.DataFrame:
    """A row for every position and entry of [pos, entry]."""
    table = pd.DataFrame(values.numpy()).melt(var_name=axis, ignore_index=False)
    return table.rename_axis("pos").reset_index()


def _delta(cache: ActivationCache, layer: int) -> pd.DataFrame:
    """Step sizes of the channels whose step sizes differ most from position to position."""
    delta = cache["delta", layer][0]  # [pos, channel]
    chosen = delta.std(0).topk(CHANNELS).indices
    return _long(delta[:, chosen[delta[:, chosen].argmax(0).argsort()]], "channel")


def _selection(cache: ActivationCache, layer: int) -> pd.DataFrame:
    parts = [_long(cache[name, layer][0], "d_state").assign(what=name) for name in ("B", "C")]
    return pd.concat(parts, ignore_index=True)


def _state(cache: ActivationCache, layer: int, roles: dict[str, int]) -> pd.DataFrame:
    """The states of the three channels from which the query reads most about the pair."""
    read = cache["pattern", layer][0, :, roles["query"], roles["key"] : roles["value"] + 4].abs().amax(-1)  # [channel]
    parts = [
        _long(cache["state", layer][0, :, channel], "d_state").assign(channel=f"channel {channel}")
        for channel in read.topk(3).indices.tolist()
    ]
    return pd.concat(parts, ignore_index=True)


def _picture(stem: str, frame: pd.DataFrame, pairs: PromptPairs, down: str, label: str) -> None:
    facet = next((name for name in ("what", "channel") if name in frame and name != down), None)
    titles = {"d_state": "number of the state", "channel": "channel"}
    figure = figures.heatmap(
        frame,
        x=Axis("pos", title="position", labels=pairs.labels(0)),
        y=Axis(down, title=titles[down]),
        facet=facet,
        diverging=stem != "delta",
        label=label,
    )
    _saved(figure, stem)


def _hidden_attention(cache: ActivationCache, model: GPT, pairs: PromptPairs) -> None:
    """What each position reads: the mean magnitude over channels, without D, as shares of the row."""
    parts = []
    for layer in range(model.cfg.n_layers):
        share = together(cache["pattern", layer], mixer_of(model, layer).D)[0]
        parts.append(_long(share, "key").rename(columns={"pos": "query"}).assign(layer=layer))
    frame = pd.concat(parts, ignore_index=True)
    figure = figures.attention(frame, tokens=pairs.labels(0), facet="layer", label="share of what a position reads")
    _saved(figure, "hidden_attention")


def _saved(figure: Figure, stem: str) -> None:
    figure.savefig(HERE / f"{stem}.png", dpi=DPI, metadata={"Software": None})


if __name__ == "__main__":
    main()

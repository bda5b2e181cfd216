"""`TunedLens`: an affine map for every layer that predicts the last layer's output from the layer's input.

1. h [d_model] enters layer l; the lens reads h A_l + b_l through the model's own final norm and unembedding. With the
   identity this is the logit lens; `interp.lenses.training` learns the maps.
2. A lens belongs to the model it was trained for, which it knows by the digest of its weights; any other is refused.
3. On disk it is a folder: `tuned_lens.safetensors` (A, b) and `tuned_lens.json` (the model, how it was trained, and
   the divergences on held-out text).

Source: Belrose et al. 2023 ("Eliciting Latent Predictions from Transformers with the Tuned Lens", section 3).
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from interp.arguments import checked, entries, is_whole, shown
from interp.errors import InterpError, UnknownName, WeightsError, unknown
from interp.files.checksums import of_values
from interp.files.whole_files import place_of, read_json, read_regular, write_whole
from interp.hooked.model import HookedModel
from interp.lenses.read import depths, divergence, read_out
from interp.resume.fingerprint import fingerprint

if TYPE_CHECKING:
    import pandas as pd

FORMAT = "interp.TunedLens 1"
CONFIG_FILE, WEIGHTS_FILE = "tuned_lens.json", "tuned_lens.safetensors"
LENSES = ("tuned", "logit")
READ_POSITIONS = 64  # how many positions are read at once


@dataclass(frozen=True, eq=False, repr=False)
class TunedLens:
    """An affine map for the input of each of some layers.

    Attributes:
        A: [layer, d_model, d_model] float32, the matrices.
        b: [layer, d_model] float32, the offsets.
        layers: the layers whose inputs they translate, in order.
        model_name: the model it was trained for.
        digest: of that model, as `model_digest` gives it.
        training: how it was trained, in plain JSON values; empty for a lens that was not trained.
        divergences: lens ("tuned", "logit") -> for each layer the divergence in nats on each held-out sequence.
    """

    A: Tensor
    b: Tensor
    layers: tuple[int, ...]
    model_name: str
    digest: str
    training: Mapping[str, Any] = field(default_factory=dict)
    divergences: Mapping[str, Sequence[Sequence[float]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        count, d_model = len(self.layers), self.b.shape[-1]
        if list(self.A.shape) != [count, d_model, d_model] or list(self.b.shape) != [count, d_model]:
            raise WeightsError(
                f"a lens for {count} layers needs A of shape [{count}, {d_model}, {d_model}] and b of shape "
                f"[{count}, {d_model}], not {list(self.A.shape)} and {list(self.b.shape)}"
            )

    @classmethod
    @checked
    def identity(cls, model: HookedModel, layers: Sequence[int] | None = None) -> Self:
        """The lens that leaves every stream unchanged: the logit lens.

        Args:
            model: the model.
            layers: whose inputs to translate; None takes all.

        Raises:
            UnknownName: a layer that the model does not have.
        """
        cfg = model.cfg
        depths(model, halves=False)  # refuses a model whose stream cannot be read
        chosen = sorted(set(entries("layer", layers, cfg.n_layers, refuse=UnknownName)))
        eye = torch.eye(cfg.d_model, device=model.device)
        return cls(
            A=eye.repeat(len(chosen), 1, 1),
            b=torch.zeros(len(chosen), cfg.d_model, device=model.device),
            layers=tuple(chosen),
            model_name=cfg.model_name,
            digest=model_digest(model),
        )

    def __call__(self, stream: Tensor, layer: int) -> Tensor:
        """The last layer's output, predicted from the input of a layer, in float32.  # [..., d_model] -> [..., d_model]

        Raises:
            UnknownName: a layer that this lens does not translate.
        """
        if not is_whole(layer) or int(layer) not in self.layers:
            raise unknown("layer of this lens", shown(layer), map(str, self.layers))
        if not isinstance(stream, Tensor) or not stream.ndim or stream.shape[-1] != self.b.shape[-1]:
            raise InterpError(f"stream must be a tensor [..., d_model = {self.b.shape[-1]}], not {shown(stream)}")
        at = self.layers.index(int(layer))
        A, b = self.A[at].to(stream.device), self.b[at].to(stream.device)
        return stream.float() @ A + b

    def translate(self, name: str, stream: Tensor) -> Tensor:
        """The translated stream of a site, as `interp.lenses.read.read` needs it; the last output is left unchanged."""
        if name.endswith("resid_post"):
            return stream
        return self(stream, int(name.split(".")[1]))

    @checked
    def check(self, model: HookedModel) -> None:
        """Refuse a model that this lens was not trained for.

        Raises:
            InterpError: its configuration or weights differ; the message names both models.
        """
        digest = model_digest(model)
        if digest != self.digest:
            raise InterpError(
                f"this lens was trained for {self.model_name!r} (weights {self.digest[:12]}…), not for "
                f"{model.cfg.model_name!r} (weights {digest[:12]}…): train one for this model"
            )

    @property
    def held_out(self) -> pd.DataFrame:
        """Divergence of the model's output from the lens on text that it was not trained on.

        Columns `lens, layer, prompt, metric, value`: `kl` in nats, mean over the positions of a held-out sequence,
        which `prompt` numbers; for the logit lens and for this one.
        """
        import pandas as pd

        rows = [
            (lens, layer, prompt, "kl", value)
            for lens, table in self.divergences.items()
            for layer, row in zip(self.layers, table, strict=True)
            for prompt, value in enumerate(row)
        ]
        return pd.DataFrame(rows, columns=["lens", "layer", "prompt", "metric", "value"])

    @checked
    def save(self, folder: str | Path) -> Path:
        """Write the lens into a folder, and return its path.

        Raises:
            OutputError: the folder cannot be written.
        """
        folder = place_of(folder, what="a lens")
        weights = safetensors.torch.save({"A": self.A.cpu().contiguous(), "b": self.b.cpu().contiguous()})
        config = {
            "format": FORMAT,
            "model_name": self.model_name,
            "model_digest": self.digest,
            "layers": list(self.layers),
            "training": dict(self.training),
            "held_out": {lens: [list(row) for row in table] for lens, table in self.divergences.items()},
            "weights_sha256": hashlib.sha256(weights).hexdigest(),
        }
        text = json.dumps({**config, "sha256": of_values(config)}, indent=1, ensure_ascii=False) + "\n"
        write_whole(folder / WEIGHTS_FILE, weights, what="a lens", make_folder=True)
        write_whole(folder / CONFIG_FILE, text.encode(), what="a lens", make_folder=True)
        return folder

    @classmethod
    @checked
    def load(cls, folder: str | Path, model: HookedModel) -> Self:
        """The lens that `save` wrote, on the model's device.

        Raises:
            WeightsError: a folder without a lens, or with a damaged one.
            InterpError: a lens of another model; the message names both.
        """
        folder = Path(os.path.expanduser(folder))
        try:
            config = read_json(folder / CONFIG_FILE)
            if not isinstance(config, dict) or config.get("format") != FORMAT:
                raise WeightsError(f"{str(folder / CONFIG_FILE)!r} is not a tuned lens: its format is not {FORMAT!r}")
            content = read_regular(folder / WEIGHTS_FILE)
            tensors = safetensors.torch.load(content)
        except OSError as error:
            raise WeightsError(f"no tuned lens can be read from {str(folder)!r}: {error.strerror or error}") from None
        except (json.JSONDecodeError, UnicodeDecodeError, safetensors.SafetensorError) as error:
            raise WeightsError(f"the tuned lens in {str(folder)!r} is damaged: {error}") from None
        _refuse_changed(config, content, folder)
        try:
            lens = cls(
                A=tensors["A"].to(model.device),
                b=tensors["b"].to(model.device),
                layers=tuple(config["layers"]),
                model_name=config["model_name"],
                digest=config["model_digest"],
                training=config["training"],
                divergences=config["held_out"],
            )
        except (KeyError, TypeError) as error:
            raise WeightsError(f"the tuned lens in {str(folder)!r} is incomplete: {error}") from None
        lens.check(model)
        return lens

    def __repr__(self) -> str:
        return f"TunedLens({self.model_name!r}, layers={list(self.layers)}, d_model={self.b.shape[-1]})"


def _refuse_changed(config: dict[str, Any], weights: bytes, folder: Path) -> None:
    """Refuse files that `save` did not write together; those of earlier versions have no digests to check."""
    digest = hashlib.sha256(weights).hexdigest()
    if config.get("weights_sha256", digest) != digest:
        raise WeightsError(
            f"the tuned lens in {str(folder)!r} is damaged: {WEIGHTS_FILE} was changed, or was saved without the "
            f"{CONFIG_FILE} beside it"
        )
    if "sha256" in config and config["sha256"] != of_values({n: v for n, v in config.items() if n != "sha256"}):
        raise WeightsError(
            f"the tuned lens in {str(folder)!r} is damaged: {CONFIG_FILE} was changed after it was saved"
        )


def model_digest(model: HookedModel) -> str:
    """SHA-256 (hex) of a model's weights and configuration, without its name."""
    return fingerprint([model.cfg.replace(model_name=""), dict(model.state_dict())])


@checked
@torch.no_grad()
def held_out_divergence(
    model: HookedModel, lens: TunedLens, streams: Mapping[int, Tensor], final: Tensor
) -> dict[str, list[list[float]]]:
    """Divergence of the model's output from the logit lens and from this one, mean over the positions of a sequence.

    Args:
        model: the model.
        lens: the lens.
        streams: layer -> its input [sequence, pos, d_model], for every layer of the lens.
        final: the last layer's output, of the same shape.

    Returns:
        "tuned" and "logit" -> [layer][sequence], in nats.
    """
    nats: dict[str, list[list[float]]] = {which: [[] for _ in lens.layers] for which in LENSES}
    each = max(READ_POSITIONS // final.shape[1], 1)
    for first in range(0, len(final), each):
        part = slice(first, first + each)
        output = read_out(model, final[part]).log_softmax(-1)  # [sequence, pos, d_vocab_out]
        for at, layer in enumerate(lens.layers):
            stream = streams[layer][part]
            for which, translated in (("tuned", lens(stream, layer)), ("logit", stream)):
                kl = divergence(output, read_out(model, translated).log_softmax(-1))  # [sequence, pos]
                nats[which][at] += kl.mean(-1).tolist()
    return nats

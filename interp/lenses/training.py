"""Training a tuned lens: for every layer the affine map whose reading is closest to the model's own output.

1. Some sequences of the text are held out. First positions are left out throughout: many models use them as a resting
   place for attention, and the stream there is unlike any other.
2. The start: ridge regression from each layer's stream to the last one, in closed form from covariances, which one
   pass over the text collects. The penalty weighs as much as d_model more positions of average variance.
3. Steps: each draws positions of the text, runs the model on their sequences once, and lowers KL(model's output ||
   lens) over the whole vocabulary, for each layer separately. The optimiser is Adam with a learning rate that falls
   linearly to zero; rates are in units of the streams' own size, so that one rate serves every layer and model.
4. The held-out sequences measure the result against the logit lens.

With a folder, the state is saved after the start and after every few steps; the same call then continues from there and
gives the same bits.

Source: Belrose et al. 2023 ("Eliciting Latent Predictions from Transformers with the Tuned Lens", section 3); theirs
starts at the identity. Regression from one layer's stream to the last one is the whole method of Din et al. 2023 ("Jump
to Conclusions: Short-Cutting Transformers with Linear Transformations"). Kingma and Ba 2015 ("Adam", algorithm 1).
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from interp.arguments import LARGEST_SEED, MOST, checked, real_number, whole_number
from interp.arguments import seed as check_seed
from interp.errors import OutputError, PromptError
from interp.files.checksums import BLANK, is_sound, sealed
from interp.files.whole_files import place_of, write_whole
from interp.hooked.model import HookedModel
from interp.lenses.read import read_out
from interp.lenses.training_text import Texts, prepare
from interp.lenses.tuned_lens import CONFIG_FILE, TunedLens, held_out_divergence
from interp.progress import counting
from interp.resume.fingerprint import fingerprint
from interp.sites import stream_after

CHECKPOINT_FILE = "checkpoint.safetensors"
FORWARD_SEQUENCES = 16  # sequences in a forward
CHECKPOINT_STEPS = 10  # steps between checkpoints
POSITIONS_A_SEQUENCE = 8  # positions that a step, or the held-out measure, takes from one sequence
BETAS = (0.9, 0.99)  # of Adam


@dataclass(frozen=True)
class Settings:
    """How step 3 trains, as `train` describes it."""

    steps: int
    batch: int
    lr: float
    seed: int


@dataclass
class State:
    """What a checkpoint holds: the maps, Adam's averages, the size of each stream, and how many steps are done."""

    A: Tensor  # [layer, d_model, d_model]
    b: Tensor  # [layer, d_model]
    mean_A: Tensor
    mean_b: Tensor
    square_A: Tensor
    square_b: Tensor
    size: Tensor  # [layer + 1] root mean square of each layer's input and of the last layer's output
    step: Tensor  # []


@checked
def train(
    model: HookedModel,
    source: Texts | Tensor | str | Path | Sequence[str],
    *,
    layers: Sequence[int] | None = None,
    steps: int = 12,
    batch: int = 32,
    length: int = 48,
    lr: float = 0.005,
    seed: int = 0,
    holdout: int = 16,
    out: str | Path | None = None,
    progress: bool | None = None,
) -> TunedLens:
    """A lens for a model, trained on text.

    Args:
        model: the model, which is not changed.
        source: as `interp.lenses.training_text.prepare` takes it: `Texts`, ids [sequence, pos], a .txt or .jsonl file,
            or documents.
        layers: whose inputs to translate; None takes all.
        steps: how many; 0 keeps the maps of the start, which are most of the way there.
        batch: positions in a step.
        length: tokens in a sequence, for files and documents.
        lr: Adam's learning rate in the first step, in units of the streams' root mean square.
        seed: of the positions that steps and the held-out measure take, and of which sequences are held out.
        holdout: how many sequences are held out; at most half of them.
        out: a folder for the lens and, until it is finished, its checkpoint. An interrupted run continues from there; a
            finished lens that was trained in the same way is loaded.
        progress: a bar on stderr; None shows one in a terminal.

    Raises:
        PromptError: text of fewer than two sequences or of single tokens, or a number that is too small.
        OutputError: a folder that cannot be written, or that holds a lens that was trained in another way.
    """
    steps = whole_number("steps", steps, least=0, most=MOST, refuse=PromptError)
    batch = whole_number("batch", batch, least=1, refuse=PromptError)
    holdout = whole_number("holdout", holdout, least=1, refuse=PromptError)
    seed, lr = check_seed(seed), real_number("lr", lr, above=0, refuse=PromptError)
    begun = time.perf_counter()
    texts = prepare(model, source, length=length)
    sequences, n_pos = texts.tokens.shape
    if sequences < 2 or n_pos < 2:
        raise PromptError(
            f"the text has {sequences} sequences of {n_pos} tokens; training a lens needs at least 2 sequences of at "
            "least 2 tokens"
        )
    lens = TunedLens.identity(model, layers)

    # 1. Hold out some sequences.
    order = torch.randperm(sequences, generator=torch.Generator().manual_seed(seed))
    kept = min(holdout, sequences // 2)
    held_out, training = texts.tokens[order[:kept]], texts.tokens[order[kept:]]
    settings = Settings(steps, batch, lr, seed)
    key = {
        "model": lens.digest,
        "text": f"{texts.made} {fingerprint(texts.tokens.cpu())}",
        **{"layers": list(lens.layers), **vars(settings), "holdout": kept},
    }
    folder = None if out is None else place_of(out, what="a lens")
    if folder is not None and (folder / CONFIG_FILE).exists():
        finished = TunedLens.load(folder, model)
        _refuse_other(finished.training.get("key", {}), key, folder)
        return finished
    state = None if folder is None else _stored(folder, key, model.device)

    n_forwards = math.ceil(len(training) / FORWARD_SEQUENCES)  # of step 2
    with counting(total=n_forwards + steps + 1, desc="tuned lens", progress=progress) as bar:
        # 2. Start from ridge regression, or from a checkpoint.
        if state is None:
            state = _start(model, training, lens.layers, bar)
            _keep(folder, key, state)
        else:
            bar.update(n_forwards + int(state.step))

        # 3. Lower the divergence, in place.
        _take_steps(model, training, lens.layers, state, settings, folder, key, bar)

        # 4. Measure on the sequences that were held out.
        lens = replace(lens, A=state.A, b=state.b)
        at = _positions(held_out.shape, kept * POSITIONS_A_SEQUENCE, kept, seed)
        divergences = held_out_divergence(model, lens, *_streams(model, held_out, lens.layers, at))
        bar.update()
    facts = {
        "text": texts.made,
        "sequences": len(training),
        "length": n_pos,
        "tokens": training.numel(),
        "held_out_sequences": kept,
        "seconds": round(time.perf_counter() - begun, 2),
        "key": key,
    }
    lens = replace(lens, training=facts, divergences=divergences)
    if folder is not None:
        lens.save(folder)
        (folder / CHECKPOINT_FILE).unlink(missing_ok=True)
    return lens


@torch.no_grad()
def _streams(
    model: HookedModel, tokens: Tensor, layers: Sequence[int], at: tuple[Tensor, Tensor] | None = None
) -> tuple[dict[int, Tensor], Tensor]:
    """The input of each layer and the last layer's output, in float32.  # each [n, count, d_model]

    `at` has the sequences [n, 1] and the positions [n, count] to take; None takes all positions but the first of all
    sequences.
    """
    names = {layer: f"blocks.{layer}.hook_resid_pre" for layer in layers}
    last = stream_after(model.cfg, model.cfg.n_layers - 1)
    rows = tokens if at is None else tokens[at[0][:, 0]]
    _, cache = model.run_with_cache(rows.to(model.device), names_filter=[*names.values(), last], return_type=None)

    def at_positions(name: str) -> Tensor:
        value = cache[name]
        if at is None:
            return value[:, 1:].float()
        positions = at[1].to(value.device)
        return value[torch.arange(len(positions), device=value.device)[:, None], positions].float()

    return {layer: at_positions(name) for layer, name in names.items()}, at_positions(last)


def _positions(shape: Sequence[int], count: int, rows: int, seed: int) -> tuple[Tensor, Tensor]:
    """Sequences [rows, 1] and positions after the first [rows, count / rows]; no sequence is drawn twice."""
    generator = torch.Generator().manual_seed(seed)
    sequences = torch.randperm(shape[0], generator=generator)[:rows]
    each = min(max(count // len(sequences), 1), shape[1] - 1)
    drawn = torch.rand(len(sequences), shape[1] - 1, generator=generator).argsort(-1)[:, :each]
    return sequences[:, None], 1 + drawn


@torch.no_grad()
def _start(model: HookedModel, tokens: Tensor, layers: Sequence[int], bar: Any) -> State:
    """2. Ridge regression of the last stream on each layer's; sums are in double precision.

    With covariances C of a layer's stream and C' of it with the last one: A = (C + penalty)^-1 C', b = goal - mean A.
    """
    d_model, device = model.cfg.d_model, model.device
    wide: dict[str, Any] = {"dtype": torch.float64, "device": device}
    products = torch.zeros(len(layers), d_model, d_model, **wide)  # of a layer's stream with itself
    crossed = torch.zeros(len(layers), d_model, d_model, **wide)  # and with the last one
    sums, final_sum = torch.zeros(len(layers), d_model, **wide), torch.zeros(d_model, **wide)
    squares = torch.zeros(len(layers) + 1, **wide)
    n = 0
    for first in range(0, len(tokens), FORWARD_SEQUENCES):
        streams, final = _streams(model, tokens[first : first + FORWARD_SEQUENCES], layers)
        y = final.flatten(0, 1).double()  # [place, d_model]
        n += len(y)
        final_sum += y.sum(0)
        squares[-1] += y.pow(2).sum()
        for at, layer in enumerate(layers):
            x = streams[layer].flatten(0, 1).double()  # [place, d_model]
            sums[at] += x.sum(0)
            squares[at] += x.pow(2).sum()
            products[at].addmm_(x.T, x)
            crossed[at].addmm_(x.T, y)
        bar.update()
    A, b = [], []
    for at in range(len(layers)):
        mean, goal = sums[at] / n, final_sum / n
        covariance = products[at] / n - torch.outer(mean, mean)
        variance = covariance.diagonal().mean().clamp(min=1e-30)
        penalty = variance * d_model / n * torch.eye(d_model, **wide)
        A.append(torch.linalg.solve(covariance + penalty, crossed[at] / n - torch.outer(mean, goal)))
        b.append(goal - mean @ A[-1])
    maps = {"A": torch.stack(A).float(), "b": torch.stack(b).float()}
    zeros = {f"{what}_{name}": torch.zeros_like(value) for what in ("mean", "square") for name, value in maps.items()}
    size = (squares / (n * d_model)).sqrt().clamp(min=1e-15).float()
    return State(**maps, **zeros, size=size, step=torch.tensor(0))


def _take_steps(
    model: HookedModel,
    tokens: Tensor,
    layers: Sequence[int],
    state: State,
    settings: Settings,
    folder: Path | None,
    key: Mapping[str, Any],
    bar: Any,
) -> None:
    """3. The steps that are left, with a checkpoint after every few."""
    for step in range(int(state.step) + 1, settings.steps + 1):
        loss = _step(model, tokens, layers, state, step, settings)
        bar.set_postfix_str(f"KL {loss:.3g} nats")
        bar.update()
        if step % CHECKPOINT_STEPS == 0 and step < settings.steps:
            _keep(folder, key, state)


def _step(
    model: HookedModel, tokens: Tensor, layers: Sequence[int], state: State, step: int, settings: Settings
) -> float:
    """3. One step of Adam for every layer, in place; returns the mean divergence before the step, in nats."""
    rows = min(math.ceil(settings.batch / POSITIONS_A_SEQUENCE), len(tokens))
    seed = (settings.seed + 1_000_003 * step) % (LARGEST_SEED + 1)
    at = _positions(tokens.shape, settings.batch, rows, seed)
    streams, final = _streams(model, tokens, layers, at)
    y = final.flatten(0, 1)  # [place, d_model]
    with torch.no_grad():
        output = read_out(model, y).softmax(-1)  # [place, d_vocab_out]
        entropy = -torch.special.xlogy(output, output).sum(-1).mean()
    rate = settings.lr * (1 - (step - 1) / settings.steps) * state.size[-1]
    total = 0.0
    for i, layer in enumerate(layers):
        x = streams[layer].flatten(0, 1)
        translated = torch.addmm(state.b[i], x, state.A[i]).requires_grad_()  # [place, d_model]
        loss = torch.nn.functional.cross_entropy(read_out(model, translated), output)
        (gradient,) = torch.autograd.grad(loss, translated)
        total += float(loss.detach() - entropy)
        _adam(
            state.A[i],
            state.mean_A[i],
            state.square_A[i],
            x.T @ gradient,
            step,
            rate / state.size[i] / x.shape[1] ** 0.5,
        )
        _adam(state.b[i], state.mean_b[i], state.square_b[i], gradient.sum(0), step, rate)
    state.step.fill_(step)
    return total / len(layers)


@torch.no_grad()
def _adam(value: Tensor, mean: Tensor, square: Tensor, gradient: Tensor, step: int, rate: Tensor) -> None:
    """Kingma and Ba 2015, algorithm 1, in place."""
    mean.lerp_(gradient, 1 - BETAS[0])
    square.lerp_(gradient.square(), 1 - BETAS[1])
    scale = (square / (1 - BETAS[1] ** step)).sqrt().add_(1e-12)
    value -= rate * mean / (1 - BETAS[0] ** step) / scale


def _keep(folder: Path | None, key: Mapping[str, Any], state: State) -> None:
    """Save the state, completely or not at all; without a folder nothing is saved."""
    if folder is None:
        return
    tensors = {name: value.cpu().contiguous() for name, value in vars(state).items()}
    content = safetensors.torch.save(tensors, {"key": json.dumps(key), "checksum": BLANK.decode()})
    write_whole(folder / CHECKPOINT_FILE, sealed(content), what="a lens", make_folder=True)


def _stored(folder: Path, key: Mapping[str, Any], device: torch.device) -> State | None:
    """The state that an earlier run left, or None."""
    file = folder / CHECKPOINT_FILE
    if not file.exists():
        return None
    try:
        with safetensors.safe_open(file, "pt") as opened:
            stored = json.loads(opened.metadata()["key"])
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        if is_sound(file.read_bytes()) is False:
            raise ValueError("its checksum does not match")
        state = State(**{name: value if name == "step" else value.to(device) for name, value in tensors.items()})
    except (OSError, ValueError, KeyError, TypeError, safetensors.SafetensorError) as error:
        raise OutputError(f"the checkpoint {str(file)!r} is damaged: {error}; delete it to start again") from None
    _refuse_other(stored, key, folder)
    return state


def _refuse_other(stored: Mapping[str, Any], key: Mapping[str, Any], folder: Path) -> None:
    differing = [name for name in dict.fromkeys([*stored, *key]) if stored.get(name) != key.get(name)]
    if differing:
        shown = ", ".join(f"{name} (was {stored.get(name)!s:.60}, is {key.get(name)!s:.60})" for name in differing)
        raise OutputError(f"{str(folder)!r} holds a lens that was trained in another way: {shown}; name another folder")

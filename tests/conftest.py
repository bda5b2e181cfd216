"""Tiny seeded models: one for each way of building a transformer, and of state-space layers among or without heads."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from interp.config import ModelConfig, RopeScaling
from interp.models.gpt import GPT, Mamba

collect_ignore = ["campaign"]  # `make campaign`

TINY: dict[str, Any] = {
    "n_layers": 2, "d_model": 16, "n_ctx": 24, "d_head": 4, "d_vocab": 29, "n_heads": 4,
    "seed": 3, "initializer_range": 0.4,
}  # fmt: skip
LLAMA: dict[str, Any] = {
    "positional_embedding_type": "rotary", "normalization_type": "RMS", "gated_mlp": True, "act_fn": "silu",
    "attn_in_bias": False, "attn_out_bias": False, "mlp_bias": False, "unembed_bias": False,
}  # fmt: skip

KINDS: dict[str, dict[str, Any]] = {
    "gpt2": {},
    "neox": {"positional_embedding_type": "rotary", "rotary_dim": 2, "parallel_attn_mlp": True, "act_fn": "gelu"},
    "llama": {**LLAMA, "tie_word_embeddings": True},
    "llama_gqa": {**LLAMA, "n_key_value_heads": 2, "rope_scaling": RopeScaling("llama3", 8.0, 1.0, 4.0, 16)},
    "gptj_pairs": {"positional_embedding_type": "rotary", "rotary_adjacent_pairs": True, "n_key_value_heads": 1},
    "attn_only": {"attn_only": True, "normalization_type": None, "d_vocab_out": 11},
    "no_norm_relu": {"normalization_type": None, "act_fn": "relu", "d_mlp": 24},
    "bidirectional": {"attention_dir": "bidirectional", "act_fn": "solu", "normalization_type": "LNPre"},
    "alibi": {"positional_embedding_type": "alibi", "n_heads": 3, "normalization_type": "RMSPre"},
    "sinusoidal": {"positional_embedding_type": "sinusoidal", "use_attn_scale": False},
    "no_positions": {"positional_embedding_type": "none", "final_norm": False},
}

STATES: dict[str, Any] = {
    "normalization_type": "RMS", "d_inner": 24, "d_state": 3, "dt_rank": 3, "d_ssm_head": 4, "n_ssm_groups": 2,
    "unembed_bias": False,
}  # fmt: skip
# Models with state-space layers: they have no heads at all, or none in some layers.
RECURRENT: dict[str, dict[str, Any]] = {
    "mamba": {**STATES, "layer_types": ("mamba",) * 2, "tie_word_embeddings": True},
    "mamba2": {**STATES, "layer_types": ("mamba2",) * 2, "dt_limit": (0.05, 0.8), "mamba_bias": True},
    "hybrid": {
        **STATES, "n_layers": 3, "layer_types": ("mamba2", "attn+mlp", "mamba+mlp"), "n_key_value_heads": 2,
        "positional_embedding_type": "rotary", "conv_bias": False, "ssm_normalization_type": "RMS", "ssm_eps": 0.1,
    },
    "one_part_a_layer": {
        **STATES, "n_layers": 4, "layer_types": ("mlp", "mamba2", "attn", "mamba"), "d_mlp": 20, "act_fn": "relu2",
        "ssm_normalization_type": "RMSPre", "ssm_eps": 0.1,
    },
}  # fmt: skip
# Parameters that start as ones, zeros or constants: norms, biases, and two of a mixer.
CONSTANT = re.compile(r"[wb].*|D|A_log")
# Longer steps and slower decay than at the start of training, so that states matter beside D x, and for long.
FAR = {"b_dt": 3.0, "A_log": -1.5}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--device",
        choices=["far", "cuda", "cpu"],
        default="far",
        help="where test_device.py runs: on a GPU, or on a device on the CPU that is as strict (far_device.py)",
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let each worker of pytest-xdist begin with slow tests, file by file, so that none is left for the end.

    Workers are dealt equal numbers of neighbouring tests, and take from one another's last ones when they are through.
    """
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    if workers == 1:
        return
    files: dict[Path, list[pytest.Item]] = {}
    for item in items:
        if item.get_closest_marker("slow") is not None:
            files.setdefault(item.path, []).append(item)
    shares: list[list[pytest.Item]] = [[] for _ in range(workers)]
    for of_file in sorted(files.values(), key=len, reverse=True):
        min(shares, key=len).extend(of_file)
    others = iter([item for item in items if item.get_closest_marker("slow") is None])
    for at, share in enumerate(shares):
        room = len(items) * (at + 1) // workers - len(items) * at // workers
        share.extend(itertools.islice(others, max(0, room - len(share))))
    items[:] = [*itertools.chain(*shares), *others]


def make(kind: str, **changes: Any) -> GPT:
    """A tiny model of one kind, with weights large enough for every part to matter, biases and norms included."""
    own = KINDS[kind] if kind in KINDS else RECURRENT[kind]
    model = (GPT if kind in KINDS else Mamba)(ModelConfig(**{**TINY, **own, **changes}))
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            last = name.rpartition(".")[2]
            if CONSTANT.fullmatch(last):
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
            parameter.add_(FAR.get(last, 0.0))
    return model


@pytest.fixture(params=KINDS)
def model(request: pytest.FixtureRequest) -> GPT:
    return make(request.param)


@pytest.fixture(params=[*KINDS, *RECURRENT])
def any_model(request: pytest.FixtureRequest) -> GPT:
    """Every model, whatever its layers mix positions with."""
    return make(request.param)


@pytest.fixture(params=RECURRENT)
def recurrent(request: pytest.FixtureRequest) -> GPT:
    """Every model with state-space layers."""
    return make(request.param)


@pytest.fixture
def tokens() -> torch.Tensor:
    return torch.randint(0, 29, (3, 7), generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def _one_thread_and_a_known_seed(request: pytest.FixtureRequest) -> Iterator[None]:
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    if request.node.get_closest_marker("slow") is None:
        torch.set_num_threads(int(os.environ.get("INTERP_TEST_THREADS", "1")))  # tiny products are slower on more
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)
    torch.set_rng_state(state)


@pytest.fixture(scope="session")
def talker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny untrained Llama (grouped queries) in Hugging Face's files, whose tokenizer knows names."""
    import transformers
    from test_tasks import names_tokenizer

    folder = tmp_path_factory.mktemp("talker")
    backend = names_tokenizer()
    cfg = transformers.LlamaConfig(
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=backend.get_vocab_size(),
        max_position_embeddings=128,
        initializer_range=0.5,
    )
    torch.manual_seed(0)
    transformers.LlamaForCausalLM(cfg).save_pretrained(folder)
    backend.save(str(folder / "tokenizer.json"))
    return folder

"""Fixtures of all tests: tiny models of every kind (makers.py), tokens, one thread, a known seed; slow tests first."""

from __future__ import annotations

import itertools
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from makers import EDGES, KINDS, RECURRENT, make
from vocabularies import names_tokenizer

from interp.models.gpt import GPT

collect_ignore = ["campaign", "conformance"]  # `make campaign`, `make conformance`

os.environ["INTERP_CACHE"] = ""  # of programs that tests start, too: nothing is kept in the user's cache

# A shell lets what it runs in the background ignore interrupts, and so would programs that tests start and interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


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


@pytest.fixture(params=KINDS)
def model(request: pytest.FixtureRequest) -> GPT:
    return make(request.param)


@pytest.fixture(params=[*KINDS, *RECURRENT])
def any_model(request: pytest.FixtureRequest) -> GPT:
    """Every model, whatever its layers mix positions with."""
    return make(request.param)


@pytest.fixture(params=EDGES)
def edged_model(request: pytest.FixtureRequest) -> GPT:
    """Every model whose residual stream is a sum, so that it has edges."""
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

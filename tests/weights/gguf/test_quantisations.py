"""Every type of tensor: the numbers of `gguf` itself, bit for bit, in any slab and any part of the first axis."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from gguf_files import write

from interp.errors import WeightsError
from interp.weights.gguf import container
from interp.weights.gguf.container import open_gguf

TYPES = list(gguf.GGMLQuantizationType)


def written(path: Path, kind: gguf.GGMLQuantizationType, raw: np.ndarray) -> Path:
    """A file of one tensor with these bytes, whose last axis is bytes."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tensor("blk.0.ffn_up_exps.weight", raw, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def random_bytes(kind: gguf.GGMLQuantizationType, *, shape: tuple[int, ...], blocks: int) -> np.ndarray:
    """Any bytes are blocks of any type; some hold numbers that are infinite, or none."""
    size = gguf.GGML_QUANT_SIZES[kind][1]
    return np.random.default_rng(int(kind)).integers(0, 256, (*shape, blocks * size), dtype=np.uint8)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # gguf multiplies what is infinite
@pytest.mark.parametrize("kind", TYPES, ids=lambda kind: kind.name)
def test_every_type_has_the_numbers_that_gguf_gives_or_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: gguf.GGMLQuantizationType
) -> None:
    monkeypatch.setattr(container, "SLAB", 7)  # smaller than the tensor, and no divisor of it
    raw = random_bytes(kind, shape=(3, 5), blocks=2)  # [expert, out, bytes of in]
    path = written(tmp_path / "t.gguf", kind, raw)
    try:
        expected = gguf.quants.dequantize(raw, kind).astype(np.float32)  # [expert, out, in]
    except NotImplementedError:  # integers, double precision, and formats of intermediate results
        with pytest.raises(WeightsError, match=rf"'blk.0.ffn_up_exps.weight' is of type {kind.name}, which"):
            open_gguf(path)
        return
    stored = open_gguf(path).tensor("blk.0.ffn_up_exps.weight")
    assert stored.shape == expected.shape and stored.kind == kind.name
    for part in (slice(0, None), slice(1, 2), slice(2, None), slice(0, 2), slice(1, 1)):
        loaded = stored.load(part.start, part.stop)
        assert loaded.dtype == torch.float32 and loaded.shape == expected[part].shape
        assert np.array_equal(loaded.numpy(), expected[part], equal_nan=True)


def test_the_types_of_gpt_oss_and_of_common_files_are_among_them() -> None:
    read = {kind.name for kind in TYPES if container._can_dequantise(kind.name)}
    assert read >= {"F32", "F16", "BF16", "Q4_0", "Q8_0", "Q2_K", "Q4_K", "Q6_K", "IQ4_XS", "MXFP4"}


def test_the_types_that_gguf_writes_come_back_as_it_reads_them(tmp_path: Path) -> None:
    weight = torch.randn(2, 3, 64, generator=torch.Generator().manual_seed(0))
    for name in ("F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "MXFP4"):
        kind = gguf.GGMLQuantizationType[name]
        path = write(tmp_path / f"{name}.gguf", "llama", {}, {"blk.0.experts.weight": weight}, experts=name)
        loaded = open_gguf(path).tensor("blk.0.experts.weight").load()
        quantised = gguf.quants.quantize(weight.numpy(), kind)
        assert np.array_equal(loaded.numpy(), gguf.quants.dequantize(quantised, kind))
        assert (loaded - weight).abs().max() <= weight.abs().max() / 4  # steps of four bits, at their coarsest


def test_a_matrix_and_a_vector_are_read_in_parts(tmp_path: Path) -> None:
    tensors = {
        "matrix.weight": torch.randn(6, 64),
        "vector.bias": torch.randn(64),
        "four.weight": torch.randn(2, 3, 2, 32),
    }
    file = open_gguf(write(tmp_path / "t.gguf", "llama", {}, tensors))
    for name, tensor in tensors.items():
        for start, stop in ((0, None), (1, 2), (0, 1), (1, 1)):
            assert torch.equal(file.tensor(name).load(start, stop), tensor[start:stop])

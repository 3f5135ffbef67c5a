"""Codecs on arbitrary vectors: exactness, error bounds, outlier channels, sizes."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from deepspec.errors import DataError
from deepspec.states.codecs import CODECS

torch.set_num_threads(1)


def round_trip(codec: str, vectors_NCD: torch.Tensor) -> torch.Tensor:
    coder = CODECS[codec]
    columns = coder.encode(vectors_NCD)
    widths = coder.widths(vectors_NCD.shape[1], vectors_NCD.shape[2])
    assert {name: data.shape for name, data in columns.items()} == {
        name: (len(vectors_NCD), width) for name, width in widths.items()
    }
    out_NCD = torch.full(vectors_NCD.shape, float("nan"), dtype=torch.bfloat16)
    coder.decode_into(columns, out_NCD)
    return out_NCD


vectors = arrays.arrays(
    np.float32,
    st.tuples(st.integers(1, 3), st.integers(1, 2), st.sampled_from([4, 64, 96, 128])),
    elements=st.floats(-(2.0**60), 2.0**60, width=32, allow_subnormal=False),
)


@given(vectors)
@settings(max_examples=40, deadline=None)
def test_bf16_is_exact(array: np.ndarray) -> None:
    exact = torch.from_numpy(array).to(torch.bfloat16)
    assert torch.equal(round_trip("bf16", exact).view(torch.int16), exact.view(torch.int16))


@given(vectors, st.sampled_from(["int8", "int4"]))
@settings(max_examples=60, deadline=None)
def test_no_number_is_off_by_more_than_one_step(array: np.ndarray, codec: str) -> None:
    x_NCD = torch.from_numpy(array).to(torch.bfloat16)
    y_NCD = round_trip(codec, x_NCD)
    group = {4: 4, 64: 64, 96: 96 if codec == "int8" else 48, 128: 128 if codec == "int8" else 64}[array.shape[-1]]
    x_NGg, y_NGg = (t.double().reshape(len(array), -1, group) for t in (x_NCD, y_NCD))
    third_NG1 = x_NGg.abs().sort(-1).values[..., -3:-2]
    step_NG1 = third_NG1 / {"int8": 128, "int4": 8}[codec]
    # Half a step from rounding; a whole one where the range has one level less on that side; 2^-7 from bfloat16;
    # 2^-126 where the scale is too small to be a normal bfloat16.
    assert bool(((x_NGg - y_NGg).abs() <= 1.05 * step_NG1 + x_NGg.abs() * 2**-7 + 2**-126).all())


@pytest.mark.parametrize(("codec", "bound"), [("int8", 0.05), ("int4", 0.1)])
def test_ordinary_channels_survive_outliers(codec: str, bound: float) -> None:
    generator = torch.Generator().manual_seed(0)
    x_NCD = torch.randn(200, 3, 1024, generator=generator)
    channels = torch.randperm(1024, generator=generator)[:8]
    x_NCD[..., channels] *= 100
    ordinary = torch.ones(1024, dtype=torch.bool)
    ordinary[channels] = False
    y_NCD = round_trip(codec, x_NCD).float()
    error = (y_NCD - x_NCD)[..., ordinary].norm() / x_NCD[..., ordinary].norm()
    assert error < bound
    # One scale per vector, the plain way, loses them: this test can fail.
    scale = x_NCD.abs().amax(-1, keepdim=True) / {"int8": 127, "int4": 7}[codec]
    plain_NCD = (x_NCD / scale).round() * scale
    assert (plain_NCD - x_NCD)[..., ordinary].norm() / x_NCD[..., ordinary].norm() > 2 * bound


@pytest.mark.parametrize(("codec", "share"), [("int8", 0.55), ("int4", 0.32)])
def test_sizes(codec: str, share: float) -> None:
    for hidden_size in (256, 1024, 2560, 4096):
        exact = sum(CODECS["bf16"].widths(5, hidden_size).values())
        assert sum(CODECS[codec].widths(5, hidden_size).values()) <= share * exact


def test_all_zero_and_odd_vectors() -> None:
    zeros = torch.zeros(2, 1, 64)
    for codec in CODECS:
        assert not round_trip(codec, zeros).any()
    with pytest.raises(DataError, match="vectors of 7 numbers"):
        CODECS["int4"].encode(torch.ones(1, 1, 7))
    assert torch.equal(round_trip("int8", torch.ones(1, 1, 7)).float(), torch.ones(1, 1, 7))

"""Codecs on arbitrary vectors: exactness, error bounds, outlier channels, sizes."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from deepspec.errors import DataError
from deepspec.states.format.codec_sizes import bytes_per_token
from deepspec.states.format.codecs import CODECS
from tests.fixtures.refused import refused

torch.set_num_threads(1)


def round_trip(codec: str, vectors_NCD: torch.Tensor, column: str = "states") -> torch.Tensor:
    coder = CODECS[codec][column]
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


KINDS = [("int8", "states", 8, 2), ("int8", "final", 8, 2), ("int4", "states", 4, 3), ("int4", "final", 5, 3)]


@given(vectors, st.sampled_from(KINDS))
@settings(max_examples=80, deadline=None)
def test_no_number_is_off_by_more_than_one_step(array: np.ndarray, kind: tuple[str, str, int, int]) -> None:
    codec, column, bits, peaks = kind
    if bits == 5 and array.shape[-1] % 8:
        return
    x_NCD = torch.from_numpy(array).to(torch.bfloat16)
    y_NCD = round_trip(codec, x_NCD, column)
    x_NGg, y_NGg = (t.double() for t in (x_NCD, y_NCD))  # these vectors are a group each
    largest_NG1 = x_NGg.abs().sort(-1).values[..., -peaks - 1 : -peaks]
    step_NG1 = largest_NG1 / 2 ** (bits - 1)
    # Half a step from rounding; a whole one where the range has one level less on that side; 2^-7 from bfloat16;
    # 2^-126 where the scale is too small to be a normal bfloat16.
    assert bool(((x_NGg - y_NGg).abs() <= 1.05 * step_NG1 + x_NGg.abs() * 2**-7 + 2**-126).all())


@pytest.mark.parametrize(("codec", "bound"), [("int8", 0.05), ("int4", 0.11)])
@pytest.mark.parametrize("column", ["states", "final"])
def test_ordinary_channels_survive_outliers(column: str, codec: str, bound: float) -> None:
    generator = torch.Generator().manual_seed(0)
    x_NCD = torch.randn(200, 3, 1024, generator=generator)
    channels = torch.randperm(1024, generator=generator)[:8]
    x_NCD[..., channels] *= 100
    ordinary = torch.ones(1024, dtype=torch.bool)
    ordinary[channels] = False
    y_NCD = round_trip(codec, x_NCD, column).float()
    error = (y_NCD - x_NCD)[..., ordinary].norm() / x_NCD[..., ordinary].norm()
    assert error < bound
    # One scale per vector, the plain way, loses them: this test can fail.
    scale = x_NCD.abs().amax(-1, keepdim=True) / {"int8": 127, "int4": 7}[codec]
    plain_NCD = (x_NCD / scale).round() * scale
    assert (plain_NCD - x_NCD)[..., ordinary].norm() / x_NCD[..., ordinary].norm() > 2 * bound


@pytest.mark.parametrize(("codec", "share"), [("int8", 0.55), ("int4", 0.32)])
def test_sizes(codec: str, share: float) -> None:
    for hidden_size in (256, 1024, 2560, 4096):
        for layers in (2, 5):
            assert bytes_per_token(codec, layers, hidden_size) <= share * bytes_per_token("bf16", layers, hidden_size)


def test_all_zero_and_odd_vectors() -> None:
    zeros = torch.zeros(2, 1, 64)
    for codec in CODECS:
        for column in ("states", "final"):
            assert not round_trip(codec, zeros, column).any()
    with refused(DataError, "7 numbers", where="states.codec"):
        CODECS["int4"]["states"].encode(torch.ones(1, 1, 7))
    with refused(DataError, "12 numbers", where="states.codec"):
        CODECS["int4"]["final"].encode(torch.ones(1, 1, 12))
    assert torch.equal(round_trip("int8", torch.ones(1, 1, 7)).float(), torch.ones(1, 1, 7))


def test_equal_numbers_encode_alike() -> None:
    """Of equally large numbers the first are the peaks, on every device."""
    x_NCD = torch.ones(1, 1, 128).bfloat16()
    assert CODECS["int4"]["states"].encode(x_NCD)["_peak_index"].tolist() == [[0, 1, 2]]
    many = CODECS["int4"]["states"].encode(x_NCD.expand(20000, 1, 128))  # more than is encoded at once
    assert (many["_peak_index"] == np.array([0, 1, 2], dtype=np.uint8)).all()

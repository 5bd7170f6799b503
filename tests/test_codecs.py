"""fl/codecs.py: bounds of what coding loses, exact sizes, and hostile messages."""

import math
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fl.codecs import Codec, decode, encode, encode_with_feedback, encoded_bytes, largest
from fl.errors import BadMessage, LearningError

DENSE = ("float32", "float16", "int8", "int4", "sign")
CODECS = [
    *(Codec(name, block=block) for name in DENSE for block in (16, 64)),  # type: ignore[arg-type]
    *(Codec("topk", share=share, values=values) for share in (0.03, 0.5, 1.0) for values in DENSE),  # type: ignore[arg-type]
]
HEADER = 28
UPDATES = arrays(
    np.float32,
    st.integers(1, 300),
    elements=st.floats(-1e6, 1e6, width=32) | st.floats(-(2**-20), 2**-20, width=32) | st.just(0.0),
)


def _update(size: int = 500, seed: int = 0) -> dict[str, np.ndarray]:
    """Two arrays of very different magnitude, as LoRA's A and B are."""
    draw = np.random.default_rng(seed)
    first = draw.standard_normal((size // 5, 2)).astype(np.float32)
    return {"b": first, "a": 1e-4 * draw.standard_normal(size - first.size).astype(np.float32)}


def _vector(update: dict[str, np.ndarray]) -> np.ndarray:
    return np.concatenate([update[name].ravel() for name in sorted(update)]).astype(np.float64)


@settings(max_examples=60, deadline=None)
@given(UPDATES, st.sampled_from(["int8", "int4"]), st.sampled_from([1, 8, 64]))
def test_no_integer_is_further_off_than_half_its_blocks_step(values: np.ndarray, name: str, block: int) -> None:
    codec = Codec(name, block=block)  # type: ignore[arg-type]
    found = decode(encode({"w": values}, codec), codec, {"w": values})["w"]
    levels = {"int8": 127, "int4": 7}[name]
    unit = np.abs(values).max() / levels
    for start in range(0, len(values), block):
        part = values[start : start + block].astype(np.float64)
        # A block's scale is at most 2^-10 larger than it must be, or the smallest part of the unit that there is.
        step = np.abs(part).max() / levels * (1 + 2**-10) + 2**-24 * unit
        assert (np.abs(found[start : start + block] - part) <= step * 0.5 * (1 + 1e-4) + 1e-42).all()


@settings(max_examples=60, deadline=None)
@given(UPDATES)
def test_halves_are_exact_to_eleven_bits_of_the_largest(values: np.ndarray) -> None:
    codec = Codec("float16")
    found = decode(encode({"w": values}, codec), codec, {"w": values})["w"]
    unit = np.abs(values).max()
    assert (np.abs(found - values) <= np.maximum(np.abs(values) * 2**-11, unit * 2**-25) * (1 + 1e-5) + 1e-44).all()


@settings(max_examples=60, deadline=None)
@given(UPDATES, st.floats(0.01, 1.0))
def test_topk_keeps_the_largest_exactly_and_nothing_else(values: np.ndarray, share: float) -> None:
    codec = Codec("topk", share=share, values="float32")
    found = decode(encode({"w": values}, codec), codec, {"w": values})["w"]
    count = max(1, round(share * len(values)))
    order = sorted(range(len(values)), key=lambda index: (-abs(values[index]), index))[:count]
    expected = np.zeros_like(values)
    expected[order] = values[order]
    np.testing.assert_array_equal(found, expected)
    assert largest(values, count).tolist() == sorted(order)


@pytest.mark.parametrize("codec", CODECS, ids=str)
@pytest.mark.parametrize("size", [1, 5, 7, 64, 65, 501])
def test_a_message_is_as_long_as_said_and_comes_back_in_shape(codec: Codec, size: int) -> None:
    update = _update(size) if size >= 5 else {"a": np.ones(size, np.float32)}
    packed = encode(update, codec)
    assert packed.dtype == np.uint8
    assert len(packed) == encoded_bytes(size, codec)
    found = decode(packed, codec, update)
    assert {name: array.shape for name, array in found.items()} == {n: a.shape for n, a in update.items()}
    assert all(array.dtype == np.float32 for array in found.values())


@pytest.mark.parametrize(
    ("codec", "payload"),
    [
        (Codec("float32"), 4 * 46080),
        (Codec("float16"), 2 * 46080),
        (Codec("int8"), 46080 + 2 * 720),
        (Codec("int4"), 46080 // 2 + 2 * 720),
        (Codec("sign", block=256), 46080 // 8 + 2 * 180),
        # 461 places: 6 low bits each, and one bit each and one for each of the 720 steps of 64; 8 blocks of values.
        (Codec("topk"), math.ceil(461 * 6 / 8) + math.ceil((461 + 720) / 8) + 461 + 2 * 8),
    ],
    ids=str,
)
def test_sizes_by_hand(codec: Codec, payload: int) -> None:
    assert encoded_bytes(46080, codec) == HEADER + payload
    assert len(encode({"w": np.ones(46080, np.float32)}, codec)) == HEADER + payload


def test_signs_carry_the_mean_magnitude_of_their_block() -> None:
    values = np.array([1, -3, 2, -2, 0.5, -0.5, 1.5], np.float32)
    codec = Codec("sign", block=4)
    found = decode(encode({"w": values}, codec), codec, {"w": values})["w"]
    np.testing.assert_allclose(found, [2, -2, 2, -2, 2.5 / 3, -2.5 / 3, 2.5 / 3], rtol=1e-3)


def test_rounding_by_chance_is_exact_in_the_mean() -> None:
    values = np.random.default_rng(1).standard_normal(64).astype(np.float32)
    codec = Codec("int4")
    generator = np.random.default_rng(2)
    drawn = [decode(encode({"w": values}, codec, generator), codec, {"w": values})["w"] for _ in range(4000)]
    step = np.abs(values).max() / 7
    # A value between two steps has a standard deviation of at most half a step.
    assert (np.abs(np.mean(drawn, axis=0) - values) < 5 * step / 2 / math.sqrt(4000)).all()
    assert np.std(drawn, axis=0).max() > step / 4


@pytest.mark.parametrize("codec", [codec for codec in CODECS if codec.name != "float32"], ids=str)
def test_what_arrived_and_the_last_residual_are_the_sum_of_the_updates(codec: Codec) -> None:
    residual: dict[str, np.ndarray] | None = None
    arrived, wanted = np.zeros(500), np.zeros(500)
    for seed in range(6):
        update = _update(seed=seed)
        packed, residual = encode_with_feedback(update, residual, codec)
        arrived += _vector(decode(packed, codec, update))
        wanted += _vector(update)
    assert residual is not None
    np.testing.assert_allclose(arrived + _vector(residual), wanted, atol=1e-5)


def test_feedback_brings_through_what_topk_would_never_send() -> None:
    codec = Codec("topk", share=0.1)
    update = {"w": np.array([1.0] + [0.3] * 9, np.float32)}
    residual: dict[str, np.ndarray] | None = None
    seen = np.zeros(10)
    for _ in range(40):
        packed, residual = encode_with_feedback(update, residual, codec)
        seen += decode(packed, codec, update)["w"]
    assert (seen > 5).all()
    alone = decode(encode(update, codec), codec, update)["w"]
    assert np.flatnonzero(alone).tolist() == [0]


@pytest.mark.parametrize("codec", [Codec("int8"), Codec("float16"), Codec("sign"), Codec("topk")], ids=str)
def test_an_update_of_zeros_arrives_as_zeros(codec: Codec) -> None:
    update = {"w": np.zeros(100, np.float32)}
    assert not decode(encode(update, codec), codec, update)["w"].any()


@pytest.mark.parametrize("codec", CODECS, ids=str)
@pytest.mark.parametrize("scale", [1e-41, 1e-30, 1e37])
def test_the_smallest_and_largest_numbers_stay_finite(codec: Codec, scale: float) -> None:
    update = {"w": (np.linspace(-1, 1, 101) * scale).astype(np.float32)}
    found = decode(encode(update, codec), codec, update)["w"]
    assert np.isfinite(found).all()
    assert np.abs(found).max() <= scale * 1.01


def test_what_is_not_finite_is_not_sent() -> None:
    with pytest.raises(LearningError, match="NaN or infinity"):
        encode({"w": np.array([1, np.nan], np.float32)}, Codec("int8"))


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(CODECS), st.data())
def test_damaged_messages_are_refused_in_one_line_or_decode_to_finite_values(codec: Codec, data: st.DataObject) -> None:
    update = _update(80)
    packed = encode(update, codec).copy()
    for _ in range(data.draw(st.integers(1, 4))):
        packed[data.draw(st.integers(0, len(packed) - 1))] = data.draw(st.integers(0, 255))
    try:
        found = decode(packed, codec, update)
    except BadMessage as error:
        assert "\n" not in str(error)
    else:
        assert all(np.isfinite(array).all() for array in found.values())


def _patched(codec: Codec, offset: int, form: str, value: object) -> np.ndarray:
    data = bytearray(encode(_update(80), codec).tobytes())
    struct.pack_into(form, data, offset, value)
    return np.frombuffer(bytes(data), np.uint8)


@pytest.mark.parametrize(
    ("packed", "codec", "told"),
    [
        (np.zeros(0, np.uint8), Codec("int8"), "not the 112 bytes"),
        (np.zeros(112, np.float32), Codec("int8"), "not the 112 bytes"),
        (np.zeros((4, 28), np.uint8), Codec("int8"), "not the 112 bytes"),
        (np.zeros(112, np.uint8), Codec("int8"), "another codec or adapter"),
        (encode(_update(80), Codec("int4", block=16)), Codec("int4"), "bytes of codec int4"),
        (encode({"c": np.zeros(80, np.float32)}, Codec("int8")), Codec("int8"), "another codec or adapter"),
        (_patched(Codec("int8"), 8, "<I", 2**32 - 1), Codec("int8"), "another codec or adapter"),
        (_patched(Codec("topk"), 12, "<I", 80), Codec("topk"), "another codec or adapter"),
        (_patched(Codec("int8"), 16, "<f", math.nan), Codec("int8"), "no size"),
        (_patched(Codec("int8"), 16, "<f", -1.0), Codec("int8"), "no size"),
        (_patched(Codec("int8"), HEADER, "<e", math.inf), Codec("int8"), "scale outside"),
        (_patched(Codec("int8"), HEADER, "<e", 2.0), Codec("int8"), "scale outside"),
        (_patched(Codec("int8"), HEADER + 4, "<b", -128), Codec("int8"), "beyond its scale"),
        (_patched(Codec("int4"), HEADER + 4, "<B", 0), Codec("int4"), "beyond its scale"),
        (_patched(Codec("float16"), HEADER, "<e", 1.5), Codec("float16"), "above their unit"),
        (_patched(Codec("float32"), HEADER, "<f", math.nan), Codec("float32"), "not finite"),
        (_patched(Codec("topk"), HEADER + 1, "<B", 3), Codec("topk"), "as many places"),
        (_patched(Codec("topk"), HEADER + 1, "<B", 255), Codec("topk"), "more bits"),
        (_patched(Codec("int8"), 16, "<f", 3e38), Codec("int8"), "not finite"),
    ],
    ids=range(19),
)
def test_hostile_messages_are_refused(packed: np.ndarray, codec: Codec, told: str) -> None:
    with pytest.raises(BadMessage, match=told) as caught:
        decode(packed, codec, _update(80))
    assert "\n" not in str(caught.value)

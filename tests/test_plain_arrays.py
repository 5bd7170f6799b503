"""fl/plain_arrays.py and the reply path: whatever a site sends, nothing but plain arrays is ever read."""

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from hypothesis import given, settings
from hypothesis import strategies as st

from fl.declared import COUNTS
from fl.errors import BadMessage, BadReply, LostClients
from fl.plain_arrays import SERIALIZED, claimed_array, plain_array
from fl.server_app import check_replies

SHAPE = (3, 2)
EXPECTED = {"a": np.zeros(SHAPE, np.float32), "b": np.zeros(5, np.float32)}
NUMBERS = ("tokens", "computed_tokens", "steps", "loss", "seconds", "peak_memory_mb")


def _sent(array: np.ndarray, **claims: Any) -> Array:  # noqa: ANN401
    made = Array(array)
    facts = {"dtype": made.dtype, "shape": made.shape, "stype": made.stype, "data": made.data, **claims}
    return Array(**facts)


@pytest.mark.parametrize("dtype", ["float32", "uint8", "float64"])
@pytest.mark.parametrize("shape", [(), (0,), (1,), (7,), (3, 2), (2, 1, 4)])
def test_what_flower_writes_is_read_as_numpy_reads_it(dtype: str, shape: tuple[int, ...]) -> None:
    array = np.asarray(100 * np.random.default_rng(0).random(shape)).astype(dtype)
    found = plain_array(Array(array), "x", np.dtype(dtype), shape)
    assert found.dtype == array.dtype and found.shape == shape and found.tobytes() == array.tobytes()
    assert found.flags.writeable


class _Trap:
    """Something whose unpickling leaves a mark."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("form", ["object array", "bare pickle", "archive"])
def test_nothing_is_unpickled_or_unpacked(form: str, tmp_path: Path) -> None:
    mark, buffer = tmp_path / "unpickled", io.BytesIO()
    if form == "object array":
        np.save(buffer, np.array([_Trap(mark)], dtype=object), allow_pickle=True)
    elif form == "archive":
        np.savez(buffer, a=np.zeros(SHAPE, np.float32))
    else:
        pickle.dump(_Trap(mark), buffer)
    data = buffer.getvalue()
    claims = {"dtype": "float32", "shape": SHAPE, "stype": SERIALIZED}
    for padded in (data, data.ljust(128 + 24, b"\0")[: 128 + 24]):  # 24 bytes of values after a header of 128
        with pytest.raises(BadMessage):
            plain_array(Array(data=padded, **claims), "a", np.dtype("float32"), SHAPE)
    assert not mark.exists()
    pickle.loads(pickle.dumps(_Trap(mark)))
    assert mark.exists()  # the trap works


@pytest.mark.parametrize(
    ("claims", "told"),
    [
        ({"stype": "numpy.ndarray "}, "in the form"),
        ({"stype": "torch.Tensor"}, "in the form"),
        ({"dtype": "float64"}, "as float64"),
        ({"dtype": "object"}, "as object"),
        ({"shape": (2, 3)}, r"\(2, 3\)"),
        ({"shape": (1 << 62, 1 << 62)}, "as float32"),
        ({"data": b""}, "in 0 bytes, not 152"),
        ({"data": b"\x93NUMPY" + bytes(1 << 20)}, "in 1048582 bytes, not 152"),
        ({"data": bytes(152)}, "cannot be read"),
    ],
)
def test_claims_and_sizes_are_compared_before_anything_is_read(claims: dict[str, Any], told: str) -> None:
    sent = _sent(np.zeros(SHAPE, np.float32), **claims)
    with pytest.raises(BadMessage, match=told):
        plain_array(sent, "a", np.dtype("float32"), SHAPE)


def test_an_array_in_another_order_is_refused_rather_than_turned() -> None:
    turned = np.asfortranarray(np.arange(6, dtype=np.float32).reshape(SHAPE))
    with pytest.raises(BadMessage, match="cannot be read"):
        plain_array(Array(turned), "a", np.dtype("float32"), SHAPE)


@pytest.mark.parametrize("shape", [(-1, 2), (1 << 50,), (True, 2), (1,) * 20])
def test_a_shape_that_the_sender_claims_must_be_one(shape: tuple[Any, ...]) -> None:
    with pytest.raises(BadMessage):
        claimed_array(_sent(np.zeros(SHAPE, np.float32), shape=shape), "a")


def test_a_claimed_array_must_be_finite_and_of_a_type_that_is_sent() -> None:
    assert claimed_array(Array(np.ones(SHAPE, np.float32)), "a").tolist() == np.ones(SHAPE).tolist()
    for array in (np.full(SHAPE, np.nan, np.float32), np.ones(SHAPE), np.ones(SHAPE, np.uint8)):
        with pytest.raises(BadMessage):
            claimed_array(Array(array), "a")


ANY_ARRAY = st.builds(
    lambda dtype, shape, stype, data: Array(dtype=dtype, shape=tuple(shape), stype=stype, data=data),
    st.sampled_from(["float32", "float64", "object", "<f4", "O", ""]),
    st.lists(st.integers(-3, 1 << 65), max_size=4),
    st.sampled_from([SERIALIZED, "pickle", ""]),
    st.one_of(st.binary(max_size=300), st.binary(max_size=60).map(lambda tail: Array(EXPECTED["a"]).data[:128] + tail)),
)
GOOD_ARRAY = st.sampled_from(sorted(EXPECTED)).map(lambda name: Array(EXPECTED[name]))
VALUES = st.one_of(st.integers(-(2**62), 2**62), st.floats(allow_nan=True, allow_infinity=True))
ARRAYS = st.dictionaries(st.sampled_from(["a", "b", "c", "a/../b", ""]), st.one_of(ANY_ARRAY, GOOD_ARRAY), max_size=4)
METRICS = st.dictionaries(st.sampled_from(["partition", "round", "examples", *NUMBERS, "other"]), VALUES, max_size=10)


def _content(arrays: dict[str, Array], metrics: dict[str, Any], more: str) -> RecordDict:
    content = RecordDict({"arrays": ArrayRecord(arrays), "metrics": MetricRecord(metrics)})
    if more == "config":
        content["config"] = ConfigRecord({"x": b"x"})
    elif more == "arrays":
        content["more"] = ArrayRecord(arrays)
    elif more == "none":
        del content["metrics"]
    return content


def _good_metrics() -> dict[str, Any]:
    return {"partition": 0, "round": 1, "examples": 5, **{name: 1 if name in COUNTS else 1.0 for name in NUMBERS}}


@settings(max_examples=300, deadline=None)
@given(
    ARRAYS,
    st.one_of(METRICS, st.builds(lambda more: _good_metrics() | more, METRICS)),
    st.sampled_from(["", "", "config", "arrays", "none"]),
    st.booleans(),
)
def test_any_reply_is_a_good_one_or_refused_in_one_line(
    arrays: dict[str, Array], metrics: dict[str, Any], more: str, drop: bool
) -> None:
    asked = Message(RecordDict(), dst_node_id=7, message_type="train")
    reply = Message(_content(arrays, metrics, more), reply_to=asked)
    try:
        [found] = check_replies([reply], {7: 0}, EXPECTED, {0: 5}, 1, 1, drop=drop)
    except (BadReply, LostClients) as error:
        assert "\n" not in str(error) and len(str(error)) < 700
        assert isinstance(error, LostClients) or not drop
    else:
        assert not more
        assert {name: array.shape for name, array in found.arrays.items()} == {"a": SHAPE, "b": (5,)}
        assert all(array.dtype == np.float32 and np.isfinite(array).all() for array in found.arrays.values())
        assert found.examples == 5 and 0 <= found.loss < 1e15


def test_a_good_reply_is_among_those_that_could_be_drawn() -> None:
    asked = Message(RecordDict(), dst_node_id=7, message_type="train")
    content = _content({name: Array(array) for name, array in EXPECTED.items()}, _good_metrics(), "")
    [found] = check_replies([Message(content, reply_to=asked)], {7: 0}, EXPECTED, {0: 5}, 1, 1)
    assert found.partition == 0


def test_what_a_sender_calls_an_array_and_its_type_cannot_write_on_the_screen() -> None:
    sent = Array("\x1b[2Jfloat32", (1,), SERIALIZED, b"")
    with pytest.raises(BadMessage, match=r"^has \[1mw as \[2Jfloat32"):
        claimed_array(sent, "\x1b[1mw")

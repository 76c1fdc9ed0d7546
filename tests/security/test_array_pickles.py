"""Pickles of arrays: every form that NumPy writes is read, and no file chooses an address."""

import collections
import io
import pickle
import pickletools

import numpy as np
import pytest
from process_kit import forked

from d2ext.data.proposals import add_proposals
from d2ext.safe_load import UnsafeFileError, load_arrays


def load(content):
    return load_arrays(io.BytesIO(content), "file")


def objects(*items, shape=None):
    array = np.empty(len(items), dtype=object)
    array[:] = items
    return array if shape is None else array.reshape(shape)


ARRAYS = {
    "C order": np.arange(6.0).reshape(2, 3),
    "Fortran order": np.asfortranarray(np.arange(24.0).reshape(2, 3, 4)),
    "axes in another order": np.arange(24).reshape(2, 3, 4).transpose(1, 0, 2),
    "with steps": np.arange(10)[::3],
    "big endian": np.arange(3, dtype=">f4"),
    "big-endian scalar": np.array([258], dtype=">i2")[0],
    "no axis": np.array(5.0),
    "empty": np.zeros((0, 3), np.float32),
    "bool, half, complex": [np.array([True]), np.float16([1.5]), np.complex64([1 + 2j])],
    "texts": [np.array(["a", "täxt"]), np.array([b"a", b"bytes"])],
    "scalars": [np.float32(3), np.bool_(True), np.str_("text"), np.str_(""), np.bytes_(b"x")],
    "objects": objects(1, None, [2, 3], np.arange(3), "text"),
    "objects in two axes": np.asfortranarray(objects(1, "a", np.ones(2), None, shape=(2, 2))),
    "no object": objects(),
    "containers": collections.OrderedDict(a=(np.ones(1), [np.ones(2), {"b": np.ones(3)}])),
    "type with a remark": np.arange(2, dtype=np.dtype("f4", metadata={"remark": "x"})),
    "a type": np.dtype(">f8"),
}


def check_same(found, expected):
    if isinstance(expected, np.ndarray):
        assert type(found) is np.ndarray and found.shape == expected.shape
        assert found.dtype == expected.dtype.newbyteorder("=")  # which is what PyTorch takes
        assert found.flags.writeable
        assert found.flags.f_contiguous == expected.flags.f_contiguous or not expected.flags.forc
        found, expected = found.ravel().tolist(), expected.ravel().tolist()
    assert type(found) is type(expected)
    if isinstance(expected, dict):
        assert list(found) == list(expected)
        found, expected = list(found.values()), list(expected.values())
    if isinstance(expected, (list, tuple)):
        assert len(found) == len(expected)
        for one, other in zip(found, expected):
            check_same(one, other)
    else:
        assert found == expected


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("name", ARRAYS)
def test_what_numpy_writes_is_read(name, protocol):
    content = pickle.dumps(ARRAYS[name], protocol)
    check_same(load(content), ARRAYS[name])
    if protocol < 4:  # module names are lines there; NumPy 1 and 2 have different ones
        assert b"numpy.core" in content or b"numpy._core" in content or name == "a type"
        for old, new in ((b"numpy._core", b"numpy.core"), (b"numpy.core", b"numpy._core")):
            check_same(load(content.replace(old, new)), ARRAYS[name])


def test_an_array_of_python_2_is_read():
    """Its bytes are a str there, which stays one byte a character."""
    content = (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR(I1\n(L2L\ntcnumpy"
        b"\ndtype\n(S'f4'\nI0\nI1\ntR(I3\nS'<'\nNNNI-1\nI-1\nI0\ntbI00\nS'\\x00\\x00\\x80?\\x00"
        b"\\x00\\x00\\xc0'\ntb."
    )
    check_same(load(content), np.array([1, -2], np.float32))


def test_what_is_one_object_stays_one():
    array = np.ones(2)
    found = load(pickle.dumps([array, (array,), objects(array, 1)]))
    assert found[0] is found[1][0] is found[2][0]
    around = objects(None, 1)
    around[0] = [around]
    found = load(pickle.dumps(around))
    assert found[0][0] is found


class Call:
    """Pickles to a call, and to a state that it gets."""

    def __init__(self, *parts):
        self.parts = parts

    def __reduce__(self):
        return self.parts


ADDRESS = (0x4141414141).to_bytes(8, "little")
FROM_BUFFER = np.zeros(1).__reduce_ex__(5)[0]
RECONSTRUCT = np.zeros(1).__reduce__()[0]
SCALAR = np.float64(0).__reduce__()[0]
OBJECT, FIELDS = np.dtype("O"), Call(
    np.dtype, ("V8", False, True), (3, "|", None, ("a",), {"a": (np.dtype("O"), 0)}, 8, 1, 0)
)  # fmt: skip
# An object at an address of the file's choice; as a shape it is looked at while the file is read.
POINTER = Call(np.ndarray, ((1,), OBJECT, ADDRESS))
HIDDEN_FIELDS = Call(
    np.dtype, ("f8", False, True), (3, "<", None, ("a",), {"a": (np.dtype("O"), 0)}, 8, 1, 0)
)


def restored(*state):
    return Call(RECONSTRUCT, (np.ndarray, (0,), b"b"), state)


UNSAFE = {
    "array over bytes": POINTER,
    "array as a shape": Call(np.ndarray, (POINTER,)),
    "fields of objects": Call(FROM_BUFFER, (ADDRESS, FIELDS, (1,), "C")),
    "fields of objects under another name": Call(
        FROM_BUFFER, (ADDRESS, HIDDEN_FIELDS, (1,), "C")
    ),
    "buffer of objects": Call(FROM_BUFFER, (ADDRESS, OBJECT, (1,), "C")),
    "scalar of objects": Call(SCALAR, (OBJECT, ADDRESS)),
    "another class": Call(RECONSTRUCT, (dict, (0,), b"b")),
    "subarray": Call(np.dtype, ("f8", False, True), (3, "<", (OBJECT, (1,)), None, None, 8, 1, 0)),
    "dates": np.zeros(1, "M8[s]"),
}  # fmt: skip
DAMAGED = {
    "too few bytes": restored(1, (3,), np.dtype("f8"), False, ADDRESS),
    "too many bytes": Call(FROM_BUFFER, (ADDRESS * 2, np.dtype("f8"), (1,), "C")),
    "objects as bytes": restored(1, (1,), OBJECT, False, ADDRESS),
    "too few objects": restored(1, (3,), OBJECT, False, [1, 2]),
    "negative shape": Call(FROM_BUFFER, (ADDRESS, np.dtype("f8"), (-1,), "C")),
    "overflowing shape": Call(FROM_BUFFER, (b"", np.dtype("f8"), (2**32, 2**32), "C")),
    "shape of another kind": restored(1, np.zeros(1, int), np.dtype("f8"), False, ADDRESS),
    "no type": restored(1, (1,), "f8", False, ADDRESS),
    "numbers in a list": restored(1, (1,), np.dtype("f8"), False, [1]),
    "no content": Call(RECONSTRUCT, (np.ndarray, (0,), b"b")),
    "no state": Call(RECONSTRUCT, (np.ndarray, (0,), b"b"), (1, (0,))),
    "unknown order": Call(FROM_BUFFER, (ADDRESS, np.dtype("f8"), (1,), "X")),
    "scalar of two": Call(SCALAR, (np.dtype("f8"), ADDRESS * 2)),
}


@forked  # without the checks some of them end the process
@pytest.mark.parametrize("name", [*UNSAFE, *DAMAGED])
def test_no_file_chooses_an_address_or_a_size(name):
    content = pickle.dumps({"model": {**UNSAFE, **DAMAGED}[name]}, protocol=4)
    if name in UNSAFE:
        expected, words = UnsafeFileError, "^file .*could run any code; .*--allow-pickle"
    else:
        expected, words = (
            ValueError,
            r"^file is not a complete pickle \(an array .*\); copy it again",
        )
    with pytest.raises(expected, match=words) as caught:
        found = load(content)
        found["model"].tolist()
    assert isinstance(caught.value, UnsafeFileError) == (name in UNSAFE)


@forked
def test_no_proposal_file_chooses_an_address(tmp_path):
    path = tmp_path / "proposals.pkl"
    path.write_bytes(pickle.dumps({"ids": POINTER, "boxes": [], "objectness_logits": []}))
    with pytest.raises(UnsafeFileError, match="proposals.pkl makes an array in a way that NumPy"):
        add_proposals([{"image_id": 1}], str(path))


@pytest.mark.parametrize("content", [b"", b"junk", pickle.dumps(np.ones(2))[:-4]])
def test_a_damaged_pickle_is_named(content):
    with pytest.raises(ValueError, match="^file is not a complete pickle .*; copy it again"):
        load(content)


def test_what_stands_for_numpy_cannot_be_changed():
    """BUILD sets attributes of whatever stands on the stack."""
    called = [("numpy", "dtype", "(S'f4'\ntR"), ("numpy.core.multiarray", "_reconstruct", "(cnumpy"
               "\nndarray\n(I0\ntS'b'\ntR"), ("builtins", "bytes", "")]  # fmt: skip
    for module, name, call in called:
        for state in ("}S'__doc__'\nS'x'\ns", "N}S'__setstate__'\nS'x'\ns\x86"):
            program = f"c{module}\n{name}\n{call}{state}b.".encode("latin1")
            pickletools.dis(program, out=io.StringIO())  # it is a program
            with pytest.raises((AttributeError, TypeError, ValueError)):
                load(program)

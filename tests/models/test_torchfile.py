import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch_files import mapping, name, number, numbers, old_file, saved, storage, tensor, text, zip_file

from forec_jax.models import WeightsError, torchfile
from forec_jax.models.weightfile import read_tensors

RNG = np.random.default_rng(0)
ARRAYS = {
    "a": RNG.normal(size=(2, 3, 4)).astype(np.float32),
    "b": np.arange(5),
    "c": np.float64([[1.5, -2]]),
    "d": np.float16([0.5, 7]),
    "e": np.array(True),
    "f": np.zeros((0, 3), np.float32),
    "g": np.uint8([200, 3]),
}
LAYOUTS = pytest.mark.parametrize("old", [False, True], ids=["zip", "old"])


def written(tmp_path, content):
    path = tmp_path / "a.pth"
    path.write_bytes(content)
    return path


def refusal(tmp_path, content):
    path = written(tmp_path, content)
    with pytest.raises(WeightsError, match=r"a\.pth") as error:
        read_tensors(path)
    assert len(str(error.value)) < 1000
    return str(error.value)


def file_of(body, storages=None, *, old=False):
    return (old_file if old else zip_file)(body, storages or {})


@LAYOUTS
def test_tensors_are_read_floating_ones_as_float32(tmp_path, old):
    read = read_tensors(written(tmp_path, saved(ARRAYS, old=old)))
    assert list(read) == list(ARRAYS)
    for key, array in ARRAYS.items():
        assert read[key].dtype == (np.float32 if array.dtype.kind == "f" else array.dtype)
        np.testing.assert_array_equal(read[key], array)


@LAYOUTS
def test_tensors_may_share_a_storage_and_lie_in_it_anyhow(tmp_path, old):
    shared = np.arange(24, dtype=np.float32)
    body = {
        "turned": tensor("7", (3, 4), (1, 6), size=24, old=old),
        "later": tensor("7", (2, 2), (6, 1), size=24, offset=10, old=old),
        "one": tensor("7", (), (), size=24, offset=23, old=old),
    }
    read = read_tensors(written(tmp_path, file_of(mapping(body), {"7": shared}, old=old)))
    np.testing.assert_array_equal(read["turned"], shared.reshape(4, 6).T[:3])
    np.testing.assert_array_equal(read["later"], [[10, 11], [16, 17]])
    assert read["one"] == 23
    read["one"][...] = 0  # an array of its own
    assert read["turned"][0, 0] == 0
    assert read["later"][0, 0] == 10


def test_bfloat16_is_read(tmp_path):
    halves = np.uint16([0x3F80, 0xC000])  # the first halves of 1.0 and -2.0 as float32
    body = mapping({"a": tensor("0", (2,), (1,), kind="BFloat16", size=2)})
    np.testing.assert_array_equal(read_tensors(written(tmp_path, file_of(body, {"0": halves})))["a"], [1, -2])


@LAYOUTS
def test_what_checkpoints_hold_beside_tensors_is_passed_over(tmp_path, old):
    dtype = name("numpy", "dtype") + b"(" + text("f8") + b"\x89\x88tR(" + number(3) + text("<") + b"NNNtb"
    encoded = name("_codecs", "encode") + b"(" + text("12345678") + text("latin1") + b"tR"
    more = {
        "best": name("numpy.core.multiarray", "scalar") + b"(" + dtype + encoded + b"tR",
        "epoch": number(3),
        "size": name("torch", "Size") + numbers((1, 2)) + b"\x85R",
        "ordered": name("collections", "OrderedDict") + b")R}" + text("_metadata") + b"}sb",
        "rows": b"](" + number(1) + b"Ne" + number(2) + b"a",
    }
    content = saved({"a": ARRAYS["a"]}, old=old, **more)
    read = read_tensors(written(tmp_path, content))
    np.testing.assert_array_equal(read.pop("a"), ARRAYS["a"])
    assert read == {"best": None, "epoch": 3, "size": None, "ordered": {}, "rows": [1, None, 2]}


def test_a_parameter_is_its_tensor(tmp_path):
    inner = tensor("0", (2,), (1,), size=2)
    body = name("torch._utils", "_rebuild_parameter") + b"(" + inner + b"\x88" + name("collections", "OrderedDict")
    content = file_of(mapping({"a": body + b")RtR"}), {"0": np.float32([1, 2])})
    np.testing.assert_array_equal(read_tensors(written(tmp_path, content))["a"], [1, 2])


CALLS = {
    "a call of the system": (name("posix", "system") + b"(" + text("exit 1") + b"tR", "posix.system"),
    "a function alone": (name("builtins", "print"), "builtins.print"),
    "a name from the stack": (text("os") + text("system") + b"\x93", "STACK_GLOBAL"),
    "an object's class": (name("argparse", "Namespace") + b")\x81", "argparse.Namespace"),
    "a known name made an object": (name("collections", "OrderedDict") + b")\x81", "NEWOBJ"),
    "an instance": (b"(iposix\nsystem\n", "INST"),
    "an extension's code": (b"\x82\x01", "EXT1"),
    "a known name of another module": (name("torch._C", "_rebuild_tensor_v2"), r"torch._C._rebuild_tensor_v2"),
    "a call of a text": (text("print") + b")R", "a call of what is no name"),
    "a reference to a module": (
        b"(" + text("module") + name("torch", "FloatStorage") + text("0") * 2 + b"K\x01tQ",
        "a reference to something outside the file",
    ),
}


@LAYOUTS
@pytest.mark.parametrize("what", list(CALLS))
def test_what_could_run_code_is_refused_by_name(tmp_path, what, old):
    body, why = CALLS[what]
    message = refusal(tmp_path, file_of(mapping({"a": body}), old=old))
    assert "could run code, and is refused" in message
    assert why in message


def test_nothing_that_a_file_names_is_imported(tmp_path, monkeypatch):
    monkeypatch.setattr("builtins.__import__", lambda name, *_: pytest.fail(f"{name} was imported"))
    with pytest.raises(torchfile.NotDataError):
        torchfile.read(written(tmp_path, file_of(mapping({"a": name("antigravity", "fly")}), old=True)))


TWO = {"0": np.float32([1, 2])}
ENDLESS = b")q\x00" + b"".join(b"h%c\x86q%c" % (n, n + 1) for n in range(60))
"""A tuple of twice a tuple of twice a tuple ...: to hash, to compare or to print it takes forever."""
MALFORMED = {
    "a tensor beyond its storage": mapping({"a": tensor("0", (3,), (1,), size=2)}),
    "an offset beyond its storage": mapping({"a": tensor("0", (2,), (1,), size=2, offset=1)}),
    "a stride beyond its storage": mapping({"a": tensor("0", (2,), (2,), size=2)}),
    "a negative offset": mapping({"a": tensor("0", (1,), (1,), size=2, offset=-1)}),
    "a negative stride": mapping({"a": tensor("0", (2,), (-1,), size=2, offset=1)}),
    "a negative size": mapping({"a": tensor("0", (-1,), (1,), size=2)}),
    "a storage larger than said": mapping({"a": tensor("0", (1,), (1,), size=1)}),
    "a storage smaller than said": mapping({"a": tensor("0", (1,), (1,), size=3)}),
    "a storage that is missing": mapping({"a": tensor("1", (2,), (1,), size=2)}),
    "a storage of two kinds": mapping(
        {"a": tensor("0", (2,), (1,), size=2), "b": tensor("0", (2,), (1,), kind="Int", size=2)}
    ),
    "a storage of no kind": mapping({"a": tensor("0", (2,), (1,), kind="QInt8", size=2)}),
    "a tensor without a storage": mapping(
        {"a": name("torch._utils", "_rebuild_tensor_v2") + b"(" + text("0") + b"K\x00))tR"}
    ),
    "nothing on the stack": b"R",
    "no mark": b"u",
    "a memo that is empty": b"h\x05",
    "two values": b"}}",
    "no value": b"",
    "a list": b"]",
}


DOUBLED = {"0": b"}q\x00"} | {
    str(n): b"}q%c(" % n + text("a") + b"h%c" % (n - 1) + text("b") + b"h%cu" % (n - 1) for n in range(1, 40)
}
MISUSED = {
    "an item in a list": (b"](K\x00Nu", "no dict"),
    "an entry of a dict": (b"}(" + text("a") + b"e", "no list"),
    "a key that is a tuple": (b"})Ns", "for a key"),
    "a key of tuples of tuples": (b"}" + ENDLESS + b"Ns", "for a key"),
    "dicts without an end": (b"}q\x00" + text("a") + b"h\x00s", "hold each other"),
    "dicts that double": (mapping(DOUBLED), "hold each other"),
}


@LAYOUTS
@pytest.mark.parametrize("what", list(MISUSED))
def test_what_dicts_and_lists_do_not_do_is_refused(tmp_path, what, old):
    body, why = MISUSED[what]
    assert why in refusal(tmp_path, file_of(body, TWO if not old else {}, old=old))


@LAYOUTS
@pytest.mark.parametrize("what", list(MALFORMED))
def test_malformed_files_are_refused(tmp_path, what, old):
    body = MALFORMED[what]
    if old:  # a storage's view stands beside it there, and its own tests are above
        body = body.replace(b"tQ", b"NtQ")
    refusal(tmp_path, file_of(body, TWO, old=old))


def test_where_a_number_belongs_tuples_are_neither_compared_nor_printed(tmp_path):
    of_endless = b"(" + text("storage") + name("torch", "FloatStorage") + text("0") + text("cpu") + ENDLESS + b"tQ"
    assert "no number" in refusal(tmp_path, zip_file(b"(" + of_endless + of_endless + b"t", TWO))
    rebuild = name("torch._utils", "_rebuild_tensor_v2") + b"(" + storage("0", "Float", 2)
    for rest in (ENDLESS + b"))tR", b"K\x00(" + ENDLESS + ENDLESS + b"t)tR", b"K\x00)(" + ENDLESS + ENDLESS + b"ttR"):
        assert "no number" in refusal(tmp_path, zip_file(mapping({"a": rebuild + rest}), TWO))


def test_a_kind_of_reference_is_not_printed(tmp_path):
    body = b"(" + ENDLESS + name("torch", "FloatStorage") + text("0") + text("cpu") + b"K\x02tQ"
    assert "outside the file" in refusal(tmp_path, zip_file(mapping({"a": body}), TWO))


def test_a_list_of_storages_is_one_of_texts(tmp_path):
    content = old_file(mapping({"a": tensor("0", (2,), (1,), size=2, old=True)}), TWO)
    listed = b"](" + text("0") + b"e"
    assert content.count(listed) == 1
    assert "for a key" in refusal(tmp_path, content.replace(listed, b"](" + ENDLESS + b"e"))


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"\x80\x02", b"\x80\x02K\x01.", saved(ARRAYS, old=True)[:-1]])
def test_what_is_no_whole_file_is_refused(tmp_path, content):
    assert "no readable file of PyTorch's" in refusal(tmp_path, content)


def test_numbers_of_a_big_endian_machine_are_refused(tmp_path):
    body = mapping({"a": tensor("0", (2,), (1,), size=2)})
    assert "big-endian" in refusal(tmp_path, zip_file(body, TWO, order="big"))


def test_another_programs_pickles_are_refused(tmp_path):
    content = bytearray(saved(ARRAYS, old=True))
    content[4] ^= 1
    assert "does not begin as PyTorch's files do" in refusal(tmp_path, bytes(content))


def test_a_long_pickle_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(torchfile, "_LONGEST", 300)
    path = written(tmp_path, saved({"a": ARRAYS["a"]}))
    assert read_tensors(path)
    assert "too long" in refusal(tmp_path, saved({"a": ARRAYS["a"], "b": ARRAYS["b"]}))


@LAYOUTS
def test_a_tensor_that_repeats_few_bytes_takes_no_memory(tmp_path, old, monkeypatch):
    monkeypatch.setattr("forec_jax.models.weightfile.np.array", lambda *_: pytest.fail("memory was taken"))
    body = mapping({"a": tensor("0", (10**6, 10**6), (0, 0), size=2, old=old)})
    assert "made to fill the memory" in refusal(tmp_path, file_of(body, TWO, old=old))


@LAYOUTS
@pytest.mark.parametrize("cases", [60, pytest.param(5_000, marks=pytest.mark.slow)])
def test_files_with_other_bytes_are_read_or_refused(tmp_path, old, cases):
    path = tmp_path / "a.pth"
    whole = saved(ARRAYS, old=old, more=mapping({"x": number(3)}))
    end = whole.index(text("x"))  # of most of the pickle

    def check(changes):
        content = bytearray(whole)
        for at, byte in changes:
            content[at] = byte
        path.write_bytes(content)
        try:
            read_tensors(path)
        except WeightsError as error:
            assert str(path) in str(error)  # noqa: PT017 - an error is one of the two right ends

    place = st.one_of(st.integers(0, len(whole) - 1), st.integers(0, end))
    changes = st.lists(st.tuples(place, st.integers(0, 255)), min_size=1, max_size=4)
    quiet = settings(
        max_examples=cases, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck)
    )
    quiet(given(changes)(check))()

"""Malformed weights, each of a kind: one error that names the file, no memory taken on a file's word, nothing run."""

import io
import json
import struct
import zipfile

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save, save_file

from forec_jax.models import WeightsError, load_weights
from forec_jax.models.weightfile import Origin, read_tensors, read_variables

OF_OURS = {"format": "forec_jax", "version": "1", **Origin("resnet18", "7x7", "timm", "0" * 64)._asdict()}


def npz(**arrays):
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


def npy(array=None, *, header=None):
    """An .npy's bytes; with `header` instead of the array's own, and no data."""
    buffer = io.BytesIO()
    if header is None:
        np.save(buffer, array)
        return buffer.getvalue()
    text = header.encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text


def zipped(**members):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)
    return buffer.getvalue()


def shaped(shape, dtype="<f4"):
    return zipped(a=npy(header=f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}}}"))


def safetensors(header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def flipped(content, at):
    return content[:at] + bytes([content[at] ^ 0xFF]) + content[at + 1 :]


NOISE = np.random.default_rng(0).normal(size=1000)
NPZ = {
    "empty": b"",
    "cut short": npz(a=NOISE)[:-30],
    "with damaged compressed data": flipped(npz(a=NOISE), 200),
    "an .npy renamed": npy(NOISE),
    "of a million by a million": shaped((10**6, 10**6)),
    "of a shape beyond all numbers": shaped((10**30, 10**30)),
    "of a negative shape": shaped((-1,)),
    "of text": npz(a=np.array(["a", "b"])),
    "of a header that is no Python": zipped(a=npy(header="{'descr': ")),
    "of a deep header": zipped(a=npy(header="(" * 5000)),
    "of no arrays": zipped(a=b"text"),
    "much larger than its file": npz(a=np.zeros(12_000_000)),
}
NUMBER = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
SAFETENSORS = {
    "empty": b"",
    "cut short": save({"a": NOISE})[:-30],
    "of a million by a million": safetensors({"a": {"dtype": "F32", "shape": [10**6] * 2, "data_offsets": [0, 4]}}),
    "of a deep header": safetensors(b'{"a":' * 3000),
    "of a header longer than the file": struct.pack("<Q", 2**40),
    "of ours with a tensor that is a folder too": save(
        {name: np.zeros(1, np.float32) for name in ("params/a", "params/a/b", "batch_stats/a")}, OF_OURS
    ),
    "of ours with tensors for folders": save(
        {name: np.zeros(1, np.float32) for name in ("params", "batch_stats")}, OF_OURS
    ),
    "of ours without tensors": save({}, OF_OURS),
    "of ours, of another version": save({}, OF_OURS | {"version": "2"}),
}


@pytest.mark.parametrize(
    ("suffix", "content"),
    [pytest.param("npz", content, id=f"npz {name}") for name, content in NPZ.items()]
    + [pytest.param("safetensors", content, id=f"safetensors {name}") for name, content in SAFETENSORS.items()],
)
def test_malformed_weights_are_an_error_of_three_lines_that_names_the_file(tmp_path, suffix, content):
    file = tmp_path / f"weights.{suffix}"
    file.write_bytes(content)
    with pytest.raises(WeightsError) as error:
        load_weights(file, "resnet18")
    assert str(file) in str(error.value)
    assert len(str(error.value).splitlines()) <= 3
    assert len(str(error.value)) < 1000


def test_a_shape_is_held_against_the_bytes_before_memory_is_taken(tmp_path, monkeypatch):
    monkeypatch.setattr("forec_jax.models.weightfile.npy.read_array", lambda *_, **__: pytest.fail("memory was taken"))
    for name, why in (("of a million by a million", "bytes for the shape"), ("much larger than its file", "96000")):
        (tmp_path / "a.npz").write_bytes(NPZ[name])
        with pytest.raises(WeightsError, match=why):
            read_tensors(tmp_path / "a.npz")


def test_whole_files_are_read_as_they_were_written(tmp_path):
    (tmp_path / "a.npz").write_bytes(npz(a=NOISE, b=np.zeros((2, 0)), c=np.asfortranarray(NOISE.reshape(10, 100))))
    read = read_tensors(tmp_path / "a.npz")
    assert {name: array.shape for name, array in read.items()} == {"a": (1000,), "b": (2, 0), "c": (10, 100)}
    np.testing.assert_array_equal(read["c"], NOISE.reshape(10, 100))


@pytest.mark.parametrize("cases", [40, pytest.param(2_000, marks=pytest.mark.slow)])
def test_files_of_ours(tmp_path, cases):
    """The header's JSON and the data, with bytes of them changed."""
    file = tmp_path / "a.safetensors"
    save_file({"params/a/b": np.ones(3, np.float32), "batch_stats/a/c": np.ones(2, np.float32)}, file, OF_OURS)
    whole = file.read_bytes()

    def check(changes):
        content = bytearray(whole)
        for at, byte in changes:
            content[at] = byte
        file.write_bytes(content)
        try:
            load_weights(file, "resnet18")
            read_variables(file)
        except WeightsError as error:
            assert str(file) in str(error)  # noqa: PT017 - an error is one of the two right ends

    changes = st.lists(st.tuples(st.integers(0, len(whole) - 1), st.integers(0, 255)), min_size=1, max_size=4)
    quiet = settings(
        max_examples=cases, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck)
    )
    quiet(given(changes)(check))()

"""PyTorch's files of tensors, read without PyTorch. Nothing in them is called or imported.

`torch.save` pickles dicts whose tensors say where in the file their numbers are. A pickle is a list of instructions; here
they are followed one by one, and what they name is looked up in the short tables below. Python's own unpickler is not used.
Both layouts are read: a zip with a file for each storage, and, of PyTorch before 1.6, pickles one after the other and then
the storages.
"""

import io
import pickletools
import struct
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import jax.numpy as jnp
import numpy as np

_ZIP = b"PK\x03\x04"
_MAGIC = 0x1950A86A20F9469CFC6C  # what the first pickle of the old layout holds
_LONGEST = 16 * 2**20  # bytes of pickles; a tensor takes about 150

_DTYPES = {
    "torch DoubleStorage": np.dtype("<f8"),
    "torch FloatStorage": np.dtype("<f4"),
    "torch HalfStorage": np.dtype("<f2"),
    "torch BFloat16Storage": np.dtype(jnp.bfloat16),
    "torch LongStorage": np.dtype("<i8"),
    "torch IntStorage": np.dtype("<i4"),
    "torch ShortStorage": np.dtype("<i2"),
    "torch CharStorage": np.dtype("i1"),
    "torch ByteStorage": np.dtype("u1"),
    "torch BoolStorage": np.dtype("?"),
}
_NO_TENSORS = {  # data that checkpoints hold beside tensors, such as the best score as a NumPy number: passed over
    "numpy.core.multiarray scalar",
    "numpy._core.multiarray scalar",
    "numpy dtype",
    "_codecs encode",
    "torch device",
    "torch Size",
    "torch float32",
    "torch float16",
    "torch bfloat16",
    "collections Counter",
}


class NotDataError(ValueError):
    """A pickle that holds more than data; names what."""


class _Name(NamedTuple):
    """A function or class that a pickle names, as "module name"."""

    text: str


class _Storage(NamedTuple):
    """The numbers that tensors share."""

    dtype: np.dtype[Any]
    key: str
    number: int


class _Tensor(NamedTuple):
    """Where in a storage a tensor's numbers are, in numbers."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def read(path: Path) -> Any:
    """What a file holds: nested dicts with arrays in place of tensors, which are read-only views of what was read.

    No more memory is taken than the file's own bytes (of a zip, as large as it says that they are) and some for its
    pickle. A view may repeat the bytes, so sum up the views before copying any.

    Raises:
      NotDataError: the pickle names what is no data, and could run code if it were called.
      Exception: of many kinds, for a damaged file.
    """
    with path.open("rb") as file:
        zipped = file.read(len(_ZIP)) == _ZIP
    return _read_zip(path) if zipped else _read_old(path.read_bytes())


def _read_zip(path: Path) -> Any:
    with zipfile.ZipFile(path) as archive:
        (pickle,) = (name for name in archive.namelist() if name.endswith("/data.pkl") and name.count("/") == 1)
        root = pickle.removesuffix("data.pkl")
        if f"{root}byteorder" in archive.namelist() and archive.read(f"{root}byteorder") != b"little":
            raise ValueError("it was written on a big-endian machine")
        content, storages, steps = _followed(io.BytesIO(archive.read(pickle)))
        found = {key: archive.read(f"{root}data/{key}") for key in storages}
    return _with_arrays(content, found, iter(range(steps)))


def _read_old(content: bytes) -> Any:
    file = io.BytesIO(content)
    if _followed(file)[0] != _MAGIC:
        raise ValueError("it does not begin as PyTorch's files do")
    for _ in ("protocol", "machine"):
        _followed(file)
    stored, storages, steps = _followed(file)
    keys, _, _ = _followed(file)
    found, at = {}, file.tell()
    for key in map(_plain, keys):
        storage = storages[str(key)]
        if struct.unpack_from("<q", content, at) != (storage.number,):
            raise ValueError(f"storage {key} has another length than its tensors say")
        start, at = at + 8, at + 8 + storage.number * storage.dtype.itemsize
        found[storage.key] = memoryview(content)[start:at]
    return _with_arrays(stored, found, iter(range(steps)))


def _with_arrays(value: Any, found: Mapping[str, bytes | memoryview], left: Iterator[int]) -> Any:
    """Dicts anew, with arrays; a pickle whose dicts hold each other has more values than `left`, and is refused."""
    if next(left, None) is None:
        raise ValueError("its dicts hold each other")
    if isinstance(value, dict):
        return {key: _with_arrays(inner, found, left) for key, inner in value.items()}
    return _view(value, found[value.storage.key]) if isinstance(value, _Tensor) else value


def _view(tensor: _Tensor, content: bytes | memoryview) -> np.ndarray:
    """A tensor's numbers, where they lie. NumPy compares shape, offset and strides with the bytes that are there."""
    storage, size = tensor.storage, tensor.storage.dtype.itemsize
    if len(content) != size * storage.number:
        raise ValueError(f"storage {storage.key} has {len(content)} bytes, not what its tensors say")
    strides = tuple(size * stride for stride in tensor.strides)
    return np.ndarray(tensor.shape, storage.dtype, content, size * tensor.offset, strides)


def _followed(file: BinaryIO) -> tuple[Any, dict[str, _Storage], int]:
    """What the pickle at a file's place holds, the storages of its tensors, and the number of its instructions."""
    pickle, steps = _Pickle(), 0
    for opcode, argument, position in pickletools.genops(file):
        steps += 1
        if (position or 0) > _LONGEST:
            raise ValueError("its pickle is too long for one of tensors")
        pickle.follow(opcode.name, argument)
    (value,) = pickle.stack
    return value, pickle.storages, steps


_CONSTANTS: dict[str, Callable[[], Any]] = {
    "EMPTY_DICT": dict,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
}
_LITERALS = {"BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE", "BINSTRING"}
_LITERALS |= {"SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES"}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


class _Pickle:
    """The stack and the memo of a pickle whose instructions are followed (the `pickletools` module describes them)."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.storages: dict[str, _Storage] = {}
        self._below: list[list[Any]] = []  # the stacks before each mark
        self._memo: dict[int, Any] = {}

    def follow(self, name: str, argument: Any) -> None:
        """One instruction. Raises NotDataError for one that `torch.save` does not write for dicts of tensors."""
        if name in _CONSTANTS:
            self.stack.append(_CONSTANTS[name]())
        elif name in _LITERALS:
            self.stack.append(argument)
        elif name in _TUPLES:
            self.stack[-_TUPLES[name] :] = [tuple(self.stack[-_TUPLES[name] :])]
        elif name == "GLOBAL":
            self.stack.append(_known(argument))
        elif name in ("BINPUT", "LONG_BINPUT"):
            self._memo[argument] = self.stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            self.stack.append(self._memo[argument])
        elif name not in ("PROTO", "STOP"):
            self._combine(name)

    def _combine(self, name: str) -> None:
        """An instruction that takes values off the stack."""
        match name:
            case "MARK":
                self._below.append(self.stack)
                self.stack = []
            case "TUPLE":
                self._add(tuple(self._since_mark()))
            case "SETITEM":
                self._store([self.stack.pop(-2), self.stack.pop()])
            case "SETITEMS":
                self._store(self._since_mark())
            case "APPEND":
                self._extend([self.stack.pop()])
            case "APPENDS":
                self._extend(self._since_mark())
            case "BINPERSID":
                self._add(self._storage(*self.stack.pop()))
            case "REDUCE":
                arguments = self.stack.pop()
                self._add(_made(self.stack.pop(), arguments))
            case "BUILD":  # attributes of a dict, or a dtype's: no tensors
                self.stack.pop()
            case _:
                raise NotDataError(f"the instruction {name}")

    def _add(self, value: Any) -> None:
        self.stack.append(value)

    def _since_mark(self) -> list[Any]:
        values, self.stack = self.stack, self._below.pop()
        return values

    def _store(self, pairs: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, dict):
            raise ValueError("it stores an item in what is no dict")
        for key, value in zip(pairs[::2], pairs[1::2], strict=True):
            target[_plain(key)] = value

    def _extend(self, values: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, list):
            raise ValueError("it appends to what is no list")
        target.extend(values)

    def _storage(self, kind: str, of: _Name, key: str, place: str, number: int, view: None = None) -> _Storage:
        """What a storage says of itself; `place` is a device. Only plain values are compared or put into words."""
        if kind != "storage" or view is not None or of.text not in _DTYPES:
            raise NotDataError("a reference to something outside the file")
        storage = _Storage(_DTYPES[of.text], str(_plain(key)), _count(number))
        if self.storages.setdefault(storage.key, storage) != storage:
            raise ValueError(f"storage {storage.key} is of two kinds")
        return storage


def _known(name: str) -> _Name:
    """A name of this file's tables. Raises NotDataError for any other."""
    if name not in _DTYPES and name not in _NO_TENSORS and name not in _MAKERS:
        raise NotDataError(name.replace(" ", "."))
    return _Name(name)


def _made(called: Any, arguments: tuple[Any, ...]) -> Any:
    """What a pickle would have a function make. Only this file's own functions are called, those of `_MAKERS`."""
    if not isinstance(called, _Name):
        raise NotDataError("a call of what is no name")
    return None if called.text in _NO_TENSORS else _MAKERS[called.text](*arguments)


def _tensor(storage: _Storage, offset: int, shape: tuple[int, ...], strides: tuple[int, ...], *_: Any) -> _Tensor:
    if not isinstance(storage, _Storage):
        raise ValueError("a tensor has no storage")
    return _Tensor(storage, _count(offset), tuple(map(_count, shape)), tuple(map(_count, strides)))


def _dict(pairs: list[Any] | None = None) -> dict[Any, Any]:
    return {_plain(key): value for key, value in pairs or ()}


def _count(number: Any) -> int:
    if not isinstance(number, int) or number < 0:
        raise ValueError("a tensor's size is no number")
    return number


def _plain(key: Any) -> str | int | float:
    """A key that is text or a number: the hash of tuples of tuples may take forever."""
    if not isinstance(key, str | int | float):
        raise ValueError(f"a dict has a {type(key).__name__} for a key")
    return key


_MAKERS: dict[str, Callable[..., Any]] = {
    "torch._utils _rebuild_tensor_v2": _tensor,
    "torch._utils _rebuild_parameter": lambda tensor, *_: tensor,
    "collections OrderedDict": _dict,
}

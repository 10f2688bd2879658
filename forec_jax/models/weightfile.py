"""Files of weights: other projects' tensors are read, this library's variables are read and written."""

import math
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.lib import format as npy
from safetensors import safe_open
from safetensors.numpy import save

from forec_jax.contracts import Variables
from forec_jax.files import write_whole
from forec_jax.models import torchfile
from forec_jax.models.convert import leaves, nested
from forec_jax.models.naming import WeightsError

FORMAT, VERSION = "forec_jax", "1"
OF_PYTORCH = (".pth", ".pt", ".bin", ".ckpt", ".tar")  # the last as in checkpoint.pth.tar
DENSEST = 100  # bytes of weights that one byte of a file may stand for; they are noise, which shrinks by a tenth
FREE = 64 * 2**20  # bytes that any file may ask for


class Origin(NamedTuple):
    """What a file of this library's says of itself."""

    arch: str
    stem: str  # of a ResNet; of a MobileNetV2 its form; empty of others
    source: str  # whose tensors they were
    sha256: str  # of the file that was converted


def write_variables(path: Path, variables: Variables, origin: Origin) -> None:
    """Writes variables as safetensors: flat paths such as `params/encoder/stem/conv/kernel`, kernels HWIO."""
    flat = {"/".join(at): np.ascontiguousarray(leaf) for at, leaf in leaves(variables._asdict())}
    write_whole(path, save(flat, metadata={"format": FORMAT, "version": VERSION, **origin._asdict()}))


def read_origin(path: Path) -> Origin | None:
    """What a .safetensors says of itself, or None when it is not this library's."""
    with _opened(path) as file:
        metadata = file.metadata() or {}
    if metadata.get("format") != FORMAT:
        return None
    if metadata.get("version") != VERSION:
        raise WeightsError(f"{path} has format version {metadata.get('version')}, this library reads {VERSION}")
    if missing := [name for name in Origin._fields if name not in metadata]:
        raise WeightsError(f"{path} does not say its {', '.join(missing)}; convert the weights again")
    return Origin(**{name: metadata[name] for name in Origin._fields})


def read_variables(path: Path, *, statistics: bool = True) -> Variables:
    """The variables in a file of this library's; NumPy, float32. `statistics`: whether the network has running ones."""
    tensors = _read_safetensors(path)
    with _named(path, "file of this library's"):
        tree = nested({tuple(name.split("/")): np.asarray(value, np.float32) for name, value in tensors.items()})
        if not statistics:
            tree["batch_stats"] = {part: {} for part in tree.get("params", {})}
        if missing := [part for part in Variables._fields if not isinstance(tree.get(part), dict)]:
            raise WeightsError(f"{path} holds no {' and no '.join(missing)}; convert the weights again")
    return Variables(tree["params"], tree["batch_stats"])


def read_tensors(path: Path) -> Mapping[str, Any]:
    """Tensors by name from a .safetensors, .npz or a file of PyTorch's; the last may hold several such dicts by key.

    Raises:
      WeightsError: whatever is wrong with the file, which the message names: it is missing or damaged, of another kind,
        would take more memory than its size accounts for, or would run code.
    """
    if not path.is_file():
        raise WeightsError(f"no weights at {path}")
    match path.suffix.lower():
        case ".safetensors":
            return _read_safetensors(path)
        case ".npz":
            return _read_npz(path)
        case suffix if suffix in OF_PYTORCH:
            return _read_pth(path)
        case _:
            raise WeightsError(f"{path}: weights are read from .safetensors, .npz and {', '.join(OF_PYTORCH)}")


@contextmanager
def _named(path: Path, kind: str) -> Iterator[None]:
    """Turns whatever a library raises over a file into one error that names it; damaged bytes lead anywhere."""
    try:
        yield
    except WeightsError:
        raise
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise WeightsError(f"{path} is no readable {kind} ({reason}); fetch it again") from error


def _check_size(path: Path, wanted: int) -> None:
    """Raises WeightsError where a file asks for much more memory than its size accounts for: few bytes can say a lot."""
    if wanted > max(FREE, DENSEST * path.stat().st_size):
        raise WeightsError(
            f"{path} has {path.stat().st_size} bytes and says that it holds {wanted}: it is damaged or made to fill the "
            "memory; fetch it again"
        )


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    with _named(path, "safetensors file"), safe_open(path, framework="np") as file:
        yield file


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    with _opened(path) as file:  # the library has compared the shapes with the file's size
        try:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no dict
        except TypeError as error:
            raise WeightsError(f"{path}: NumPy lacks a dtype of its tensors ({error}); save them as float32") from error


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    with path.open("rb") as file:
        if file.read(len(npy.MAGIC_PREFIX)) == npy.MAGIC_PREFIX:
            raise WeightsError(f"{path} is one array without a name (.npy); save the tensors by np.savez")
    with _named(path, ".npz"), zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        _check_size(path, sum(member.file_size for member in members))
        return {member.filename.removesuffix(".npy"): _read_array(archive, member) for member in members}


def _read_array(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> np.ndarray:
    """One of an .npz's arrays. Its header's shape is held against the bytes that are there before memory is taken."""
    with archive.open(member) as file:
        read = npy.read_array_header_1_0 if npy.read_magic(file) == (1, 0) else npy.read_array_header_2_0
        shape, _, dtype = read(file)
    if dtype.hasobject or dtype.kind not in "fiub":
        raise ValueError(f"{member.filename} holds {dtype}, not numbers")
    if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize > member.file_size:
        raise ValueError(f"{member.filename} has {member.file_size} bytes for the shape {shape}")
    with archive.open(member) as file:
        return npy.read_array(file, allow_pickle=False)


def _read_pth(path: Path) -> dict[str, Any]:
    with _named(path, "file of PyTorch's"):
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                _check_size(path, sum(member.file_size for member in archive.infolist()))
        stored = _data_alone(path)
        if not isinstance(stored, dict):
            raise WeightsError(f"{path} holds a {type(stored).__name__}, not tensors by name; save a state_dict")
        _check_size(path, sum(view.nbytes for view in _arrays(stored)))
        return _copied(stored)


def _data_alone(path: Path) -> Any:
    """What a file of PyTorch's holds, where that is data alone."""
    try:
        return torchfile.read(path)
    except torchfile.NotDataError as error:
        raise WeightsError(
            f"{path} pickles more than tensors, which could run code, and is refused: {str(error)[:200]}\n"
            "Where you trust it, load it in its own project and save its state_dict alone"
        ) from error


def _arrays(stored: Any) -> Iterator[np.ndarray]:
    """The arrays in nested dicts."""
    if isinstance(stored, dict):
        for value in stored.values():
            yield from _arrays(value)
    elif isinstance(stored, np.ndarray):
        yield stored


def _copied(stored: Any) -> Any:
    """Nested dicts with arrays of their own in place of views, floating ones as float32; anything else as it is."""
    if isinstance(stored, dict):
        return {name: _copied(value) for name, value in stored.items()}
    if isinstance(stored, np.ndarray):
        return np.array(stored, stored.dtype if stored.dtype.kind in "iub" else np.float32)
    return stored

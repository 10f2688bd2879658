"""Files of weights: other projects' tensors are read, this library's variables are read and written."""

import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from forec_jax.contracts import Variables
from forec_jax.files import write_whole
from forec_jax.models.convert import WeightsError, leaves, nested

FORMAT, VERSION = "forec_jax", "1"


class Origin(NamedTuple):
    """What a file of this library's says of itself."""

    arch: str
    stem: str
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


def read_variables(path: Path) -> Variables:
    """The variables in a file of this library's; NumPy, float32."""
    tree = nested({tuple(name.split("/")): value for name, value in _read_safetensors(path).items()})
    if missing := [part for part in Variables._fields if part not in tree]:
        raise WeightsError(f"{path} holds no {' and no '.join(missing)}; convert the weights again")
    return Variables(tree["params"], tree["batch_stats"])


def read_tensors(path: Path) -> Mapping[str, Any]:
    """Tensors by name from a .safetensors, .npz or .pth; a .pth may hold several such dicts by key.

    Raises:
      WeightsError: the file is missing or damaged, of another kind, or a .pth that would run code.
    """
    if not path.is_file():
        raise WeightsError(f"no weights at {path}")
    match path.suffix:
        case ".safetensors":
            return _read_safetensors(path)
        case ".npz":
            return _read_npz(path)
        case ".pth" | ".pt":
            return _read_pth(path)
        case _:
            raise WeightsError(f"{path}: weights are read from .safetensors, .npz and .pth")


def _opened(path: Path) -> Any:
    try:
        return safe_open(path, framework="np")
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{path} is no readable safetensors file ({error}); fetch it again") from error


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    with _opened(path) as file:
        try:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no dict
        except TypeError as error:
            raise WeightsError(f"{path}: NumPy lacks a dtype of its tensors ({error}); save them as float32") from error


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path) as file:
            return {name: file[name] for name in file.files}
    except (ValueError, OSError, zipfile.BadZipFile) as error:
        raise WeightsError(f"{path} is no readable .npz ({error}); fetch it again") from error


def _read_pth(path: Path) -> dict[str, Any]:
    try:
        import torch
    except ImportError as error:
        raise WeightsError(
            f"{path}: PyTorch reads .pth files, and it is not installed; pip install 'forec-jax[torch]', "
            "or save the tensors as .safetensors"
        ) from error
    try:
        with torch.serialization.safe_globals(_numpy_scalars()):
            stored = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = next((line.strip() for line in str(error).splitlines() if "nsupported" in line), "a damaged pickle")
        raise WeightsError(
            f"{path} pickles more than tensors, which could run code, and is refused: {reason} "
            "Where you trust it, load it in its own project and save its state_dict alone"
        ) from error
    except Exception as error:  # the unpickler fails in whatever way a damaged byte leads it to
        reason = f"{type(error).__name__}: {error}"
        raise WeightsError(f"{path} is no readable .pth ({reason}); fetch it again") from error
    if not isinstance(stored, Mapping):
        raise WeightsError(f"{path} holds a {type(stored).__name__}, not tensors by name; save a state_dict")
    return _as_numpy(stored)


def _numpy_scalars() -> list[Any]:
    """What a pickled NumPy number is made of: checkpoints hold the best score as one. None of it runs code."""
    import _codecs

    scalar: Any = np.float64(0).__reduce__()[0]
    kinds = [type(np.dtype(kind)) for kind in ("f8", "f4", "i8")]
    return [(scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")] + [
        np.dtype,
        *kinds,
        _codecs.encode,
    ]


def _as_numpy(stored: Any) -> Any:
    """Nested dicts with their tensors as arrays, float32 where NumPy has no such dtype; anything else as it is."""
    if isinstance(stored, Mapping):
        return {name: _as_numpy(value) for name, value in stored.items()}
    if hasattr(stored, "detach"):
        tensor = stored.detach()
        return (tensor.float() if tensor.is_floating_point() else tensor).numpy()
    return stored

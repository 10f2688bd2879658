"""VOC-Aug's masks from their sources: VOC's colour-coded PNGs and SBD's MATLAB files, as index PNGs.

Both sources have masks of some images. VOC's own wins: it has a void border and is what every VOC score is measured on.
"""

import hashlib
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from scipy.io import loadmat
from tqdm import tqdm

from forec_jax.contracts import IGNORE
from forec_jax.data.datasets.voc import CLASSES, voc_palette
from forec_jax.data.decode import MaskRule, decode_mask
from forec_jax.data.imagefile import open_image, read_file
from forec_jax.data.newfolder import new_folder
from forec_jax.data.source import DataError

_PALETTE = voc_palette(256)
_INDEX = {
    red << 16 | green << 8 | blue: k for k, (red, green, blue) in enumerate(_PALETTE) if k < len(CLASSES) or k == IGNORE
}
"""The index of each of VOC's colours, void among them."""


class Written(NamedTuple):
    """What `write_voc_masks` made."""

    from_voc: int
    from_sbd: int
    sha256: str  # of all masks: ids and pixels in the ids' order


def index_of_colours(colours: np.ndarray, file: str) -> np.ndarray:
    """u8[H,W], 0-20 or 255 (void), of a mask u8[H,W,3] in VOC's colours. Raises DataError for another colour."""
    codes = colours.astype(np.uint32) @ np.asarray((1 << 16, 1 << 8, 1), np.uint32)
    found, positions = np.unique(codes, return_inverse=True)
    if unknown := [code for code in found.tolist() if code not in _INDEX]:
        colour = tuple(unknown[0].to_bytes(3))
        raise DataError(
            f"{file}: the colour {colour} is neither one of VOC's {len(CLASSES)} classes nor void; "
            "use the masks as VOC publishes them"
        )
    return np.asarray([_INDEX[code] for code in found.tolist()], np.uint8)[positions].reshape(codes.shape)


def read_voc_mask(file: Path) -> np.ndarray:
    """u8[H,W] of one of VOC's masks. Palette and RGB PNGs are read by their colours, grey ones hold indices already.

    Raises DataError, naming the file, where it cannot be read or has other colours or values.
    """
    data = read_file(file)
    image = open_image(data, str(file)).image
    if image.mode == "L":
        return decode_mask(data, str(file), (image.height, image.width), MaskRule(len(CLASSES)))
    return index_of_colours(np.asarray(image.convert("RGB")), str(file))


@cache
def _child() -> ProcessPoolExecutor:
    """A process of its own for SciPy's reader, which is not made for damaged files: one may end it, and not this one."""
    return ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))


def _load(file: str) -> np.ndarray:
    return np.asarray(loadmat(file, variable_names=["GTcls"])["GTcls"]["Segmentation"][0, 0])


def read_sbd_mask(file: Path) -> np.ndarray:
    """u8[H,W], 0-20, of one of SBD's category files (cls/ID.mat: GTcls.Segmentation).

    Raises DataError, naming the file, where it cannot be read, has no such field or holds something else.
    """
    try:
        mask = _child().submit(_load, str(file)).result()
    except Exception as error:  # SciPy's reader has many for a damaged file, and a few end the process that it runs in
        if isinstance(error, BrokenProcessPool):
            _child.cache_clear()
        raise DataError(
            f"{file}: has no readable GTcls.Segmentation ({error}); take the files of SBD's cls/ folder, not inst/"
        ) from error
    if mask.ndim != 2 or mask.dtype.kind not in "ui" or mask.min() < 0 or mask.max() >= len(CLASSES):
        raise DataError(
            f"{file}: GTcls.Segmentation is no mask of the classes 0 to {len(CLASSES) - 1}; replace the file"
        )
    return mask.astype(np.uint8)


def write_voc_masks(voc: Path, sbd: Path, out: Path) -> Written:
    """Writes an index PNG, in VOC's palette, of every image that has a mask in `voc` or `sbd` to `out`.

    `voc` is the folder that holds VOC2012/ with SegmentationClass/, `sbd` the one that holds cls/. `out` appears complete
    or not at all. Raises DataError where a folder holds no masks, `out` holds something, or a mask cannot be read.
    """
    own = _files(voc / "VOC2012" / "SegmentationClass", "*.png", "--source is the folder that holds VOC2012/")
    others = _files(sbd / "cls", "*.mat", "--sbd is the folder that holds cls/, usually benchmark_RELEASE/dataset")
    digest = hashlib.sha256()
    with new_folder(out) as folder:
        for name in tqdm(sorted(own.keys() | others.keys()), unit="mask", mininterval=1):
            mask = read_voc_mask(own[name]) if name in own else read_sbd_mask(others[name])
            digest.update(f"{name} {mask.shape}\n".encode() + mask.tobytes())
            _save(mask, folder / f"{name}.png")
    return Written(len(own), len(others.keys() - own.keys()), digest.hexdigest())


def _files(folder: Path, pattern: str, remedy: str) -> dict[str, Path]:
    files = {file.stem: file for file in folder.glob(pattern)}
    if not files:
        raise DataError(f"{folder}: holds no {pattern}; {remedy}")
    return files


def _save(mask: np.ndarray, file: Path) -> None:
    image = Image.fromarray(mask)
    image.putpalette(np.asarray(_PALETTE, np.uint8).tobytes())  # turns the mode from L to P, pixel values unchanged
    image.save(file)

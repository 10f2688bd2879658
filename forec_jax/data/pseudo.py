"""Stored masks of a model as labels, beside the data set that its images are from (`forec-jax label` writes them)."""

import hashlib
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from forec_jax.data.classfile import CLASS_FILE, read_classes
from forec_jax.data.decode import decode_mask
from forec_jax.data.imagefile import open_image
from forec_jax.data.rules import ColourRule, MaskRule
from forec_jax.data.source import DataError, Example, OneByOne, Source, select
from forec_jax.options import option

MASKS, CONFIDENCE = "masks", "confidence"
"""Folders of u8 index masks, and of how sure the model was of each pixel, in 255ths; a file an image, ID.png."""

CERTAIN = 255


@dataclass(frozen=True)
class PseudoOptions:
    """Where stored masks are."""

    pseudo: str = option("", "a folder that `forec-jax label` wrote: its masks, for batch.pseudo; empty: none")


@dataclass(frozen=True)
class WithPseudoLabels(OneByOne):
    """A source whose labels are a model's masks, each with its confidence. Raises DataError for one of another size."""

    folder: Path
    rule: MaskRule | ColourRule

    def __getitem__(self, index: int) -> Example:
        example = self.source[index]
        shape = example.image.shape[:2]
        file = self.folder / MASKS / f"{example.id}.png"
        label = decode_mask(_bytes(file), str(file), shape, self.rule)
        return example._replace(label=label, confidence=self._confidence(example.id, shape))

    def _confidence(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        """u8[H,W], CERTAIN where none was stored."""
        file = self.folder / CONFIDENCE / f"{name}.png"
        if not file.exists():
            return np.full(shape, CERTAIN, np.uint8)
        sure: np.ndarray = np.asarray(open_image(_bytes(file), str(file)).image)
        if sure.shape != shape or sure.dtype != np.uint8:
            raise DataError(f"{file}: is not a grey image of the mask's size; write the folder anew by forec-jax label")
        return sure


def with_pseudo_labels(
    pool: Source, folder: Path, classes: tuple[str, ...], leave_out: Collection[str]
) -> WithPseudoLabels:
    """The pool's images that `folder` has a mask of, without those to `leave_out` (labelled, or for validation).

    Raises DataError where the folder has other classes, or no such mask.
    """
    stored = read_classes(folder / CLASS_FILE)
    if stored.names != classes:
        raise DataError(
            f"data.pseudo={folder}: its classes are {', '.join(stored.names)}, the data set's {', '.join(classes)}; "
            "label with a run on the same data set"
        )
    chosen = [name for name in pool.ids if name not in leave_out and (folder / MASKS / f"{name}.png").exists()]
    if not chosen:
        raise DataError(
            f"data.pseudo={folder}: no mask in {MASKS}/ is of an image of data.pool that is neither labelled nor for "
            "validation; write masks by forec-jax label"
        )
    return WithPseudoLabels(select(pool.without_labels(), chosen), folder, stored.rule)


def content_sha256(labels: WithPseudoLabels) -> str:
    """The SHA-256 of all masks and confidences with their names: an edited file changes it."""
    whole = hashlib.sha256()
    for name in sorted(labels.ids):
        for kind in (MASKS, CONFIDENCE):
            file = labels.folder / kind / f"{name}.png"
            if file.exists():
                whole.update(f"{kind}/{name}\n".encode() + hashlib.sha256(_bytes(file)).digest())
    return whole.hexdigest()


def _bytes(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error}); write the folder anew by forec-jax label") from error

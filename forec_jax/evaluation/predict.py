"""Prediction on images of any size."""

import logging
import shlex
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from forec_jax.contracts import Array, Variables
from forec_jax.data import DataError, Example
from forec_jax.data.decode import Photo, decode_photo
from forec_jax.data.imagefile import SUFFIXES
from forec_jax.data.listing import files_below
from forec_jax.data.remarks import Remarks
from forec_jax.evaluation.evaluate import Buckets
from forec_jax.evaluation.sliding import Predicts
from forec_jax.evaluation.video import SUFFIXES as VIDEOS

log = logging.getLogger(__name__)


class Prediction(NamedTuple):
    """What the model says about one image, at the image's own size."""

    example: Example
    label: np.ndarray  # u8[H,W], the class
    confidence: np.ndarray  # f32[H,W], in [0, 1]
    probabilities: np.ndarray | None = None  # f32[H,W,K]; None where they were not asked for


def image_files(path: Path) -> list[Path]:
    """The image itself, or every image in a folder and below it, sorted; hidden ones and those of tools are left out.

    Raises DataError where there is none.
    """
    if path.suffix.lower() in VIDEOS and path.is_file():
        raise DataError(f"{_as_frames(path)}\n{path} is a video, and --images takes an image or a folder of images")
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise DataError(f"{path} does not exist; --images takes an image or a folder of images")
    files = files_below(path)
    images = [file for file in files if file.suffix.lower() in SUFFIXES]
    videos = [file for file in files if file.suffix.lower() in VIDEOS]
    if not images and videos:
        raise DataError(f"{_as_frames(videos[0])}\n{path} holds no image, but a video ({videos[0].name})")
    if not images:
        raise DataError(f"{path} holds no image ({', '.join(SUFFIXES)})")
    if other := [file for file in files if file.suffix.lower() not in SUFFIXES]:
        log.warning("%s: %d files do not end like an image and are passed over (%s)", path, len(other), other[0].name)
    return images


def _as_frames(video: Path) -> str:
    """What to do about a video, in words."""
    return (
        f"extract its frames: mkdir frames; ffmpeg -i {shlex.quote(str(video))} frames/%06d.png; then --images=frames"
    )


def read_image(path: Path) -> np.ndarray:
    """u8[H,W,3] of an image file, read as training images are. Raises DataError, naming it, where it cannot be used."""
    return read_photo(path).pixels


def read_photo(path: Path, longest_side: int = 0, remarks: Remarks | None = None) -> Photo:
    """An image file with at most `longest_side` pixels a side (0: as it is), and the size of the whole.

    Raises DataError, naming it, where it cannot be used; what is worth a word goes into `remarks`.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); repair or remove it") from error
    return decode_photo(data, str(path), longest_side, remarks)


class Predictor:
    """Runs a method's `predict` over images, a bucket of shapes at a time."""

    def __init__(self, method: Predicts, buckets: Buckets, *, probabilities: bool = False) -> None:
        """`probabilities`: of every class, too."""
        self._buckets = buckets
        self._predict = jax.jit(_winner_of(method, probabilities))

    def __call__(self, variables: dict[str, Variables], examples: Iterable[Example]) -> Iterator[Prediction]:
        """Predictions, bucket by bucket (not in the order given)."""
        for rows, padded in self._buckets.batches(examples):
            maps = [np.asarray(found) for found in self._predict(variables, padded.image, padded.valid)]
            for row, example in enumerate(rows):
                height, width = example.image.shape[:2]
                yield Prediction(example, *(found[row, :height, :width] for found in maps))


def _winner_of(method: Predicts, every: bool) -> Callable[..., tuple[Array, ...]]:
    def winner(variables: dict[str, Variables], image: Array, valid: Array) -> tuple[Array, ...]:
        probabilities = method.predict(variables, image.astype(np.float32) / 255.0, valid)
        found = probabilities.argmax(-1).astype(np.uint8), probabilities.max(-1)
        return (*found, probabilities) if every else found

    return winner

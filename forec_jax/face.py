"""The library in Python: a trained model that predicts, and training from a config file."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from PIL import Image, ImageOps

from forec_jax.config import load_config
from forec_jax.data import Example
from forec_jax.evaluation import read_photo
from forec_jax.experiment import build
from forec_jax.experiment.load import Run, load_run
from forec_jax.experiment.run import run_training
from forec_jax.experiment.use import Photo, as_trained, nearest, predict_run


class Prediction(NamedTuple):
    """What a model says about one image, at the image's own size."""

    label: np.ndarray  # u8[H,W], the likeliest class
    probabilities: np.ndarray  # f32[H,W,K] in [0, 1]
    confidence: np.ndarray  # f32[H,W], the likeliest class's probability


class Model:
    """A trained model. `load` makes one.

    Attributes:
      classes: the names of the classes, in the order of their indices.
      palette: their colours, (red, green, blue) in 0..255.
    """

    def __init__(self, run: Run, network: str) -> None:
        self.classes, self.palette = run.labels.classes, run.labels.palette
        self._run, self._network = run, network
        self._variables = build.network_variables(run.state, network)
        self._buckets = build.build_buckets(run.config, run.method, batch=1)
        predicts = build.build_predicts(run.config, run.method)
        self._predict = jax.jit(lambda v, image, valid: predicts.predict(v, image.astype(np.float32) / 255.0, valid))

    def predict(self, image: str | Path | Image.Image | np.ndarray) -> Prediction:
        """Segments an image: a file, a picture of PIL, or u8[H,W,3]. A picture is turned upright, as its EXIF says.

        Raises DataError for a file that cannot be read, ValueError for a picture or an array of another type or shape.
        """
        photo = self._photo(image)
        ((_, padded),) = self._buckets.batches([photo.example])
        probabilities = np.asarray(self._predict(self._variables, padded.image, padded.valid))[0]
        height, width = photo.example.image.shape[:2]
        full = nearest(probabilities[:height, :width], photo.size)
        return Prediction(full.argmax(-1).astype(np.uint8), full, full.max(-1))

    def _photo(self, image: str | Path | Image.Image | np.ndarray) -> Photo:
        """The image as the run sees it; a file is read as `predict_folder` reads it."""
        if isinstance(image, str | Path):
            read = read_photo(Path(image), self._run.config.data.longest_side)
            return Photo(Example("image", read.pixels), read.size)
        pixels = _pixels(image)
        return Photo(as_trained(self._run, Example("image", pixels)), (pixels.shape[0], pixels.shape[1]))

    def predict_folder(self, images: str | Path, out: str | Path) -> int:
        """Writes index PNGs and overlays of every image of a folder to `out`; returns their number."""
        return predict_run(self._run, Path(images), Path(out), self._network)


def load(workdir: str | Path, *, checkpoint: str = "last", network: str = "teacher") -> Model:
    """The trained model of a work directory.

    Args:
      workdir: where `train` put it.
      checkpoint: "last" or "best".
      network: "teacher" or "student".

    Raises WorkdirError where there is none.
    """
    return Model(load_run(Path(workdir), checkpoint), network)


def train(config: str, workdir: str | Path, options: Mapping[str, Any] | None = None) -> int | None:
    """Trains by FILE[:VARIANT] in `workdir`, going on where it holds a checkpoint; as `forec-jax train`.

    Args:
      config: such as "configs/shapes.py:forec".
      workdir: where everything of the run goes.
      options: by dotted key, such as {"steps": 400}; `forec-jax options` lists them.

    Returns the signal that ended the training, None at its end. Raises ValueError for what cannot be used.
    """
    return run_training(load_config(config, options or {}), Path(workdir))


def _pixels(image: Image.Image | np.ndarray) -> np.ndarray:
    if isinstance(image, Image.Image):
        if image.mode.startswith(("I", "F")):
            raise ValueError(f"a picture of mode {image.mode} has no colours of 8 bits: scale it to 0..255 first")
        return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] != 3:
        raise ValueError(f"an image is u8[H,W,3], not {image.dtype}{list(image.shape)}")
    return image

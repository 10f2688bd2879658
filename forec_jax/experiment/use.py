"""Scores and predictions of stored models."""

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from forec_jax.data import DataError, Example, Source, shrink
from forec_jax.data.remarks import Remarks
from forec_jax.evaluation import Evaluation, Prediction, Predictor, image_files, read_photo
from forec_jax.evaluation.tiles import WHOLE, Tiles
from forec_jax.evaluation.video import frames, is_video
from forec_jax.experiment import build
from forec_jax.experiment.load import Run, palette_of
from forec_jax.options import OptionError
from forec_jax.progress import progress_bar
from forec_jax.visualize import legend, overlay, save_index_png

log = logging.getLogger(__name__)


def evaluate_run(run: Run, split: str, network: str) -> Evaluation:
    """Scores a stored model on a split of its data set."""
    return score(run, run.dataset().scored(split), network)


def score(run: Run, source: Source, network: str, boundary: float = 0.0) -> Evaluation:
    """Scores a stored model on a source; by the boundary IoU as well, where its distance `boundary` is above 0."""
    evaluator = build.build_evaluator(run.config, run.method, run.labels, run.mesh, boundary)
    return evaluator(build.network_variables(run.state, network), source)


class Seen(NamedTuple):
    """How images are shown to a model where that is not as its run says; None: as it says."""

    mode: str | None = None
    window: int | None = None  # pixels, of a side
    stride: int | None = None  # pixels
    scales: tuple[float, ...] | None = None
    flip: bool | None = None

    def of(self, c: ConfigDict) -> ConfigDict:
        """The config of a run with these in it. Raises OptionError for a stride or window that makes no sense."""
        c = c.copy_and_resolve_references()
        c.eval.mode = self.mode or c.eval.mode
        windows, sized = c.eval.mode == "sliding", c.eval.mode != "whole"
        if (self.window and not sized) or (self.stride and not windows):
            raise OptionError("--window and --stride are of windows: add --mode=sliding")
        c.eval.crop = self.window or c.eval.crop
        if self.stride and self.stride > c.eval.crop:
            raise OptionError(
                f"--stride={self.stride} leaves gaps: it must be from 1 to the window's {c.eval.crop} pixels"
            )
        c.eval.stride_fraction = self.stride / c.eval.crop if self.stride else c.eval.stride_fraction
        c.eval.scales = c.eval.scales if self.scales is None else self.scales
        c.eval.flip = c.eval.flip if self.flip is None else self.flip
        return c


class Photo(NamedTuple):
    """An image of one's own, as it is seen."""

    example: Example  # its id is the path below the folder
    size: tuple[int, int]  # height and width of its file; the example's image may be smaller


def photos(images: Path, longest_side: int, out: Path | None = None) -> Iterator[Photo]:
    """An image file, those of a folder, by their paths inside it, or a video's frames, read as they are asked for.

    They have at most `longest_side` pixels a side (0: as they are), as training images do. What lies in `out` is no
    input. An image that cannot be used is passed over with a warning. Raises DataError where none is left.
    """
    if is_video(images):
        yield from _frames_of(images, longest_side)
        return
    root, remarks = images if images.is_dir() else images.parent, Remarks()
    found, reason = False, f"{images}: every image lies in {out}, where the results go; choose another --out"
    for file in image_files(images):
        if out is not None and file.resolve().is_relative_to(out.resolve()):
            continue
        try:
            photo = read_photo(file, longest_side, remarks)
        except DataError as error:
            reason = str(error)
            log.warning("%s", reason)
            continue
        found = True
        yield Photo(Example(str(file.relative_to(root)), photo.pixels), photo.size)
    remarks.report()
    if not found:
        raise DataError(reason)


def _frames_of(video: Path, longest_side: int) -> Iterator[Photo]:
    """The frames of a video, by their numbers from 1 on, in a folder of the video's name."""
    for number, pixels in enumerate(frames(video), start=1):
        whole = Example(f"{video.stem}/{number:06d}.png", pixels)
        seen = shrink(whole, longest_side) if longest_side else whole
        yield Photo(seen, (pixels.shape[0], pixels.shape[1]))


def predict_run(
    run: Run, images: Path, out: Path, network: str, *, probabilities: bool = False, tiles: Tiles = WHOLE
) -> int:
    """Writes index PNGs and overlays of every image to `out`, in the folders they came from; returns their number.

    `probabilities`: of every class, too, as f16[H,W,K] in compressed .npz files. `tiles`: how much is seen at once.
    """
    predictor = Predictor(
        build.build_predicts(run.config, run.method),
        build.build_buckets(run.config, run.method, batch=1),
        probabilities=probabilities,
    )
    written: set[str] = set()
    variables, palette = build.network_variables(run.state, network), palette_of(run.labels)
    for photo in progress_bar(photos(images, run.config.data.longest_side, out), unit=" images", disable=None):
        prediction = _in_tiles(lambda example: next(predictor(variables, [example])), photo.example, tiles)
        label, image = nearest(prediction.label, photo.size), nearest(photo.example.image, photo.size)
        target = unused_stem(Path(photo.example.id), written)
        for folder in ("index", "overlay", *(["probabilities"] if probabilities else [])):
            (out / folder / target).parent.mkdir(parents=True, exist_ok=True)
        save_index_png(out / "index" / f"{target}.png", label, palette)
        Image.fromarray(overlay(image, label, palette)).save(out / "overlay" / f"{target}.png")
        if prediction.probabilities is not None:
            shown = nearest(prediction.probabilities.astype(np.float16), photo.size)
            np.savez_compressed(out / "probabilities" / f"{target}.npz", probabilities=shown)
    Image.fromarray(legend(run.labels, width=400)).save(out / "legend.png")
    return len(written)


def _in_tiles(predict: Callable[[Example], Prediction], example: Example, tiles: Tiles) -> Prediction:
    """What is said of an image, tile by tile."""
    whole: list[np.ndarray | None] = []
    for tile in tiles.of(*example.image.shape[:2]):
        _, *parts = predict(example._replace(image=example.image[tile.seen]))
        if not whole:
            size = example.image.shape[:2]
            whole = [None if part is None else np.empty((*size, *part.shape[2:]), part.dtype) for part in parts]
        for made, part in zip(whole, parts, strict=True):
            if made is not None and part is not None:
                made[tile.kept] = part[tile.inside]
    return Prediction(example, *whole)  # type: ignore[arg-type]


def as_trained(run: Run, example: Example) -> Example:
    """An example of one's own at the size at which the run sees its data set's images (data.longest_side)."""
    return shrink(example, run.config.data.longest_side) if run.config.data.longest_side else example


def unused_stem(name: Path, written: set[str]) -> str:
    """The name without its suffix; with it where another image (a.jpg, a.png) has taken that already."""
    stem = str(name.with_suffix(""))
    stem = stem if stem not in written else str(name.with_name(name.name.replace(".", "_")))
    written.add(stem)
    return stem


def nearest(maps: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """[h,w] or [h,w,K] at [*size] or [*size,K]: each pixel is the nearest one's."""
    if maps.shape[:2] == size:
        return maps
    rows, columns = (np.arange(new) * 2 * old + old for new, old in zip(size, maps.shape[:2], strict=True))
    return maps[(rows // (2 * size[0]))[:, None], columns // (2 * size[1])]  # whole numbers: no rounding at the borders

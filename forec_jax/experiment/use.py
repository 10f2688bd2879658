"""Scores and predictions of stored models."""

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from forec_jax.data import DataError, Example, shrink
from forec_jax.data.remarks import Remarks
from forec_jax.evaluation import Evaluation, Predictor, image_files, read_photo
from forec_jax.experiment import build
from forec_jax.experiment.load import Run, load_run, palette_of
from forec_jax.progress import progress_bar
from forec_jax.visualize import legend, overlay, save_index_png

log = logging.getLogger(__name__)


def evaluate_run(run: Run, split: str, network: str) -> Evaluation:
    """Scores a stored model on a split of its data set."""
    evaluator = build.build_evaluator(run.config, run.method, run.labels, run.mesh)
    source = run.dataset().source(split)
    return evaluator(build.network_variables(run.state, network), source)


def compare_runs(
    workdirs: Sequence[Path], splits: Sequence[str], network: str, checkpoint: str, root: str | None = None
) -> str:
    """A table of mIoU in percent: a row a run, a column a split. `root` is where their data set lies now, if it moved."""
    width = max(len(workdir.name) for workdir in workdirs)
    lines = [" " * width + "".join(f"{split:>20}" for split in splits)]
    for workdir in workdirs:
        run = load_run(workdir, checkpoint, root)
        scores = (evaluate_run(run, split, network).miou for split in splits)
        lines.append(f"{workdir.name:<{width}}" + "".join(f"{100 * score:20.2f}" for score in scores))
    return "\n".join(lines)


class Photo(NamedTuple):
    """An image of one's own, as it is seen."""

    example: Example  # its id is the path below the folder
    size: tuple[int, int]  # height and width of its file; the example's image may be smaller


def photos(images: Path, longest_side: int, out: Path | None = None) -> Iterator[Photo]:
    """An image file, or those of a folder, by their paths inside it, read as they are asked for.

    They have at most `longest_side` pixels a side (0: as they are), as training images do. What lies in `out` is no
    input. An image that cannot be used is passed over with a warning. Raises DataError where none is left.
    """
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


def predict_run(run: Run, images: Path, out: Path, network: str) -> int:
    """Writes index PNGs and overlays of every image to `out`, in the folders they came from; returns their number."""
    predictor = Predictor(
        build.build_predicts(run.config, run.method), build.build_buckets(run.config, run.method, batch=1)
    )
    written: set[str] = set()
    variables, palette = build.network_variables(run.state, network), palette_of(run.labels)
    for photo in progress_bar(photos(images, run.config.data.longest_side, out), unit=" images", disable=None):
        (prediction,) = predictor(variables, [photo.example])
        label, image = nearest(prediction.label, photo.size), nearest(photo.example.image, photo.size)
        target = unused_stem(Path(photo.example.id), written)
        for folder in ("index", "overlay"):
            (out / folder / target).parent.mkdir(parents=True, exist_ok=True)
        save_index_png(out / "index" / f"{target}.png", label, palette)
        Image.fromarray(overlay(image, label, palette)).save(out / "overlay" / f"{target}.png")
    Image.fromarray(legend(run.labels, width=400)).save(out / "legend.png")
    return len(written)


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

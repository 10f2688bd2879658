"""Masks that a run finds, written as a data set: for its unlabelled images, or from image tags."""

import dataclasses
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from forec_jax.contracts import Thresholded
from forec_jax.data import (
    Example,
    Labels,
    Source,
    WithTags,
    classes_in_images,
    evaluation_examples,
    resolve_split,
    select,
)
from forec_jax.data.classfile import CLASS_FILE, class_file
from forec_jax.data.newfolder import check_new, new_folder
from forec_jax.data.pseudo import CONFIDENCE, MASKS
from forec_jax.evaluation import mean_iou
from forec_jax.experiment import sources
from forec_jax.experiment.contents import check_same_classes
from forec_jax.experiment.load import Run, load_run, palette_of
from forec_jax.experiment.masks import Labelling, found_masks
from forec_jax.experiment.workdir import WorkdirError
from forec_jax.files import write_json
from forec_jax.visualize import save_index_png

Rank = Callable[[Path, Source, Mapping[str, float]], Mapping[str, float]]
"""(folder with the found masks, their images, their mean confidences) -> a score for each image, the larger the better."""


class Written(NamedTuple):
    """How many training images of a new data set have which masks."""

    found: int
    true: int
    without: int


class _Images(NamedTuple):
    """Which images of a run's pool get which masks."""

    true: Source  # have their true masks
    others: Source  # get those that the run finds
    strata: Mapping[str, int]  # images that may be compared have the same number, by id
    splits: Mapping[str, Source]  # for the lists: train, val and further ones


def write_labels(run: Run, out: Path, how: Labelling) -> Written:
    """Writes a run's training images as a folder data set: the labelled ones with their true masks, the others with those
    that the run finds, void where it is too unsure; and the images that it was scored on.

    A run from tags labels its whole pool but for `how.labelled`; a mask then holds classes of the image's tags only. The
    folder appears complete or not at all. Raises WorkdirError where nothing is left to label, or milestones are asked for
    and missing; DataError where `out` is there already, or cannot be written.
    """
    check_new(out)  # before the work begins
    images, rank = _images_of(run, how), _rank_of(run, how)
    with new_folder(out) as folder:
        written = _write_found(run, folder, images, how, rank)
        for example in evaluation_examples(images.others):
            _save_image(folder, example)
        scored = [source for split, source in images.splits.items() if split != "train"]
        for source in (images.true, *scored):
            for example in evaluation_examples(source):
                _save_image(folder, example)
                if example.label is not None:
                    _save_mask(folder, example.id, example.label, run.labels)
        for split, source in images.splits.items():
            (folder / f"{split}.txt").write_text("\n".join(source.ids) + "\n", encoding="utf-8")
    return written


def write_masks(run: Run, out: Path, how: Labelling) -> Written:
    """Writes the masks that a run finds, and nothing else: what data.pseudo needs beside the images' own data set.

    Which images these are, and what is raised, is as in `write_labels`.
    """
    check_new(out)  # before the work begins
    images, rank = _images_of(run, how), _rank_of(run, how)
    with new_folder(out) as folder:
        return _write_found(run, folder, images, how, rank)


def _write_found(run: Run, folder: Path, images: _Images, how: Labelling, rank: Rank) -> Written:
    """Writes masks that the run finds, and what their classes are, into a new folder."""
    confidences: dict[str, float] = {}
    stored = [name for name in images.others.ids if how.stored and _mask_file(Path(how.stored), name).exists()]
    others = _without(images.others, stored)
    for found in found_masks(run, others, how):
        name = found.example.id
        _save_mask(folder, name, found.label, run.labels)
        if how.pixel_confidence:
            _save_png(folder / CONFIDENCE / f"{name}.png", np.round(found.confidence * 255).astype(np.uint8))
        confidences[name] = float(found.confidence.mean())
    write_json(folder / "confidences.json", confidences)
    kept = surest(rank(folder, others, confidences), images.strata, how.keep)
    for name in confidences.keys() - kept:
        _mask_file(folder, name).unlink()
    _keep_stored(folder, Path(how.stored), stored)
    _write_classes(folder, run.labels, partial=bool(run.config.data.partial))
    return Written(len(kept) + len(stored), len(images.true), len(confidences) - len(kept))


def _without(source: Source, left_out: Sequence[str]) -> Source:
    """The source without some of its images."""
    gone = frozenset(left_out)
    return select(source, [name for name in source.ids if name not in gone]) if gone else source


def _keep_stored(folder: Path, before: Path, names: Sequence[str]) -> None:
    """Copies masks, and confidences, of images that the folder `before` has."""
    for name in names:
        for kind in (MASKS, CONFIDENCE):
            file = Path(kind) / f"{name}.png"
            if (before / file).exists():
                (folder / file).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(before / file, folder / file)


def _by_confidence(folder: Path, images: Source, confidences: Mapping[str, float]) -> Mapping[str, float]:
    """Ranks images by the mean confidence of their pixels."""
    del folder, images
    return confidences


def _by_agreement(earlier: Sequence[Run], how: Labelling) -> Rank:
    """Ranks images by how well earlier checkpoints agree with their masks: the mean IoU (ST++, section 3.2)."""
    sure = dataclasses.replace(how, confidence=0.0, keep_pixels=1.0)

    def rank(folder: Path, images: Source, confidences: Mapping[str, float]) -> Mapping[str, float]:
        scores = dict.fromkeys(confidences, 0.0)
        for run in earlier:
            for found in found_masks(run, images, sure):
                with Image.open(_mask_file(folder, found.example.id)) as mask:
                    matrix = pair_counts(np.asarray(mask), found.label, len(run.labels.classes))
                agreed = mean_iou(matrix)  # NaN where no pixel of the mask has a class
                scores[found.example.id] += (0.0 if math.isnan(agreed) else agreed) / len(earlier)
        return scores

    return rank


def _rank_of(run: Run, how: Labelling) -> Rank:
    """The ranking that is asked for. Raises WorkdirError for "agreement" of a run without milestones."""
    if how.rank == "confidence":
        return _by_confidence
    steps = [step for step in run.config.milestones if step < int(run.state.step)]
    if not steps:
        raise WorkdirError(
            f"--rank=agreement: {run.workdir} has no earlier milestones; train with --config.milestones='(STEP,STEP)'"
        )
    return _by_agreement([load_run(run.workdir, step) for step in steps], how)


def pair_counts(one: np.ndarray, other: np.ndarray, classes: int) -> np.ndarray:
    """i64[K,K]: how often class i of u8[H,W] meets class j of another; IGNORE counts nowhere."""
    both = (one < classes) & (other < classes)
    counts = np.bincount(one[both].astype(np.int64) * classes + other[both], minlength=classes**2)
    return counts.reshape(classes, classes)


def only_from_tags(run: Run) -> Run:
    """The run; raises WorkdirError for one that makes no masks from tags."""
    if isinstance(run.method, Thresholded):
        return run
    raise WorkdirError(
        f"a run of {run.config.method.name} makes no masks from tags; take one of configs/tags.py, or forec-jax label"
    )


def _images_of(run: Run, how: Labelling) -> _Images:
    """Which images the run labels."""
    if isinstance(run.method, Thresholded):
        return _from_tags(run, how.labelled)
    if how.labelled:
        raise WorkdirError("--labelled is for masks from tags; this run has labelled images of its own: leave it out")
    return _from_labels(run)


def _training_data(run: Run, c: ConfigDict) -> sources.TrainingData:
    """The run's images; raises where its data set has other classes now."""
    data = sources.build_training_data(c, run.val_ids)
    check_same_classes(run.labels, data.dataset.labels, f"{run.workdir}: the run")
    return data


def _from_tags(run: Run, labelled: str) -> _Images:
    """The images of a run that finds masks from tags. Images with other numbers of tags cannot be compared."""
    data = _training_data(run, run.config)
    assert data.tagged is not None, "a run that finds masks from tags has tagged images"
    pool = data.dataset.source(run.config.data.pool)
    true = true_masks(pool, data.dataset.maskless, labelled, len(run.labels.classes))
    has_true = frozenset(true.ids)
    others = select(pool.without_labels(), [name for name in pool.ids if name not in has_true])
    tagged = WithTags(others, len(run.labels.classes), data.tagged.tags)
    background, tags = frozenset(run.labels.background_classes), tagged.tags or {}
    strata = {name: len(frozenset(tags[name]) - background) for name in others.ids}
    further = {name: source for name, source in data.dataset.sources.items() if name.startswith("val_")}
    return _Images(true, tagged, strata, {"train": pool, "val": data.validation, **further})


def _from_labels(run: Run) -> _Images:
    """The images of a run that was trained with masks; of supervised training, too, those beside the labelled."""
    c = run.config.copy_and_resolve_references()
    c.batch.unlabelled = max(c.batch.unlabelled, 1)
    c.batch.pseudo = 0  # masks that it learned from may be gone
    data = _training_data(run, c)
    labelled, unlabelled = data.labelled, data.unlabelled
    if labelled is None:
        raise WorkdirError(f"a run of {run.config.method.name} has neither labelled images nor masks from tags")
    taken = frozenset(labelled.ids)
    others = [name for name in (unlabelled.ids if unlabelled else ()) if name not in taken]
    if not others:
        raise WorkdirError(
            "every image of the run's pool is labelled (data.labelled, data.unlabelled): nothing is left"
        )
    pool = data.dataset.source(run.config.data.pool)
    train = select(pool, [*labelled.ids, *others])
    same = dict.fromkeys(others, 0)
    return _Images(labelled, select(pool, others).without_labels(), same, {"train": train, "val": data.validation})


def surest(confidences: Mapping[str, float], numbers: Mapping[str, int], keep: float) -> frozenset[str]:
    """The share `keep` of the images of each number of tags, those of the largest mean confidence.

    Images of different numbers cannot be compared: one without a tag is background, and certain of it, whatever it shows.
    """
    kept: list[str] = []
    for number in sorted(set(numbers.values())):
        surest_first = sorted((n for n in confidences if numbers[n] == number), key=lambda name: -confidences[name])
        kept += surest_first[: round(keep * len(surest_first))]
    return frozenset(kept)


def true_masks(pool: Source, maskless: frozenset[str], labelled: str, classes: int) -> Source:
    """The images of the pool whose true masks are used."""
    if not labelled:
        return select(pool, ())
    split = resolve_split(
        pool_ids=pool.ids,
        maskless=maskless,
        labelled=labelled,
        classes_of=lambda ids: classes_in_images(select(pool, ids), classes),
    )
    return select(pool, split.labelled)


def _mask_file(folder: Path, name: str) -> Path:
    """Where an image's mask lies."""
    return folder / MASKS / f"{name}.png"


def _save_image(folder: Path, example: Example) -> None:
    """Writes an example's image without loss."""
    _save_png(folder / "images" / f"{example.id}.png", example.image)


def _save_png(file: Path, pixels: np.ndarray) -> None:
    """Writes u8[H,W] or u8[H,W,3] as a PNG."""
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(file)


def _save_mask(folder: Path, name: str, label: np.ndarray, labels: Labels) -> None:
    """Writes a mask of class indices."""
    file = _mask_file(folder, name)
    file.parent.mkdir(parents=True, exist_ok=True)
    save_index_png(file, label, palette_of(labels))


def _write_classes(folder: Path, labels: Labels, *, partial: bool) -> None:
    """Writes the class file; the first background class, where there is one. `partial`: true masks are known in part."""
    background = next((labels.classes[k] for k in labels.background_classes), None)
    (folder / CLASS_FILE).write_text(class_file(labels.classes, background, partial=partial), encoding="utf-8")

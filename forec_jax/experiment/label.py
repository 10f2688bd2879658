"""Masks that a model finds, written as a data set with labels: from image tags, or for the unlabelled images of a run."""

import json
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from forec_jax.contracts import IGNORE, Array, Thresholded, Variables
from forec_jax.data import (
    DataError,
    Example,
    Labels,
    Source,
    WithTags,
    classes_in_images,
    evaluation_examples,
    resolve_split,
    select,
)
from forec_jax.evaluation import mean_iou
from forec_jax.experiment import build, sources
from forec_jax.experiment.load import Run, load_run, palette_of
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


class Found(NamedTuple):
    """A mask that a model found."""

    example: Example
    label: np.ndarray  # u8[H,W], IGNORE where unsure
    confidence: float  # the mean over the image's pixels, in [0, 1]


class Labelling(NamedTuple):
    """Which images of a run's pool get which masks."""

    true: Source  # have their true masks
    others: Source
    found: Callable[[], Iterator[Found]]  # the masks that the model finds for these
    strata: Mapping[str, int]  # images that may be compared have the same number, by id
    splits: Mapping[str, Source]  # for the lists: train, val and further ones


def write_masks(run: Run, out: Path, *, network: str, keep: float, confidence: float, labelled: str) -> Written:
    """Writes the run's pool as a folder data set `out`: images, masks from tags, and the evaluation split with true masks.

    A mask holds classes of the image's tags only, and void where the model is less sure than `confidence`. The share
    `keep` of the images, the surest ones (see `surest`), have masks; the others can be used without labels. Images
    that `labelled` names (a list file or "<count>:<seed>"; "" for none) have their true masks. The folder appears complete
    or not at all. Raises WorkdirError for a run without masks from tags, DataError where `out` is there already.
    """
    method_from_tags(run)
    return write_whole(run, out, lambda: from_tags(run, network, confidence, labelled), keep, by_confidence)


def write_labels(
    run: Run, out: Path, *, network: str, keep: float, confidence: float, rank: Rank, flips: bool
) -> Written:
    """Writes the images that a run was trained on as a folder data set: its labelled ones with their true masks, the others
    with those that it predicts, void where it is less sure than `confidence`.

    The share `keep` of the others, the first by `rank`, have masks. `flips`: the mean with the mirrored image's prediction.
    The folder appears complete or not at all. Raises WorkdirError for a run without unlabelled images, DataError where
    `out` is there already.
    """
    return write_whole(run, out, lambda: from_predictions(run, network, confidence, flips), keep, rank)


def write_whole(run: Run, out: Path, labelling: Callable[[], Labelling], keep: float, rank: Rank) -> Written:
    """Writes the data set beside `out` first. Raises DataError where that is there already, or cannot be written."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(f"{out}: exists and is not an empty folder; choose another --out, or move it away")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as temporary:
            unfinished = Path(temporary) / out.name
            written = write_folder(run, unfinished, labelling(), keep, rank)
            unfinished.rename(out)
    except OSError as error:
        raise DataError(f"{out}: cannot be written ({error}); set --out to a folder with room") from error
    return written


def write_folder(run: Run, folder: Path, labelling: Labelling, keep: float, rank: Rank) -> Written:
    """Writes a labelling into a new folder."""
    confidences: dict[str, float] = {}
    for found in labelling.found():
        save_image(folder, found.example)
        save_mask(folder, found.example.id, found.label, run.labels)
        confidences[found.example.id] = found.confidence
    write_json(folder / "confidences.json", confidences)
    kept = surest(rank(folder, labelling.others, confidences), labelling.strata, keep)
    for name in confidences.keys() - kept:
        mask_file(folder, name).unlink()
    scored = [source for split, source in labelling.splits.items() if split != "train"]
    for source in (labelling.true, *scored):
        for example in evaluation_examples(source):
            save_image(folder, example)
            if example.label is not None:
                save_mask(folder, example.id, example.label, run.labels)
    write_lists(folder, run.labels, labelling.splits)
    return Written(len(kept), len(labelling.true), len(confidences) - len(kept))


def by_confidence(folder: Path, images: Source, confidences: Mapping[str, float]) -> Mapping[str, float]:
    """Ranks images by the mean confidence of their pixels."""
    del folder, images
    return confidences


def by_agreement(earlier: Sequence[Run], network: str, flips: bool) -> Rank:
    """Ranks images by how well earlier checkpoints agree with their masks: the mean IoU (ST++, section 3.2)."""

    def rank(folder: Path, images: Source, confidences: Mapping[str, float]) -> Mapping[str, float]:
        scores = dict.fromkeys(confidences, 0.0)
        for run in earlier:
            for found in predicted(run, images, network, 0.0, flips):
                with Image.open(mask_file(folder, found.example.id)) as mask:
                    matrix = pair_counts(np.asarray(mask), found.label, len(run.labels.classes))
                scores[found.example.id] += mean_iou(matrix)
        return scores

    return rank


def rank_of(name: str, run: Run, workdir: Path, network: str, flips: bool) -> Rank:
    """The ranking of that name. Raises WorkdirError for "agreement" of a run without milestones."""
    if name == "confidence":
        return by_confidence
    steps = [step for step in run.config.milestones if step < int(run.state.step)]
    if not steps:
        raise WorkdirError(
            f"--rank=agreement: {workdir} has no earlier milestones; train with --config.milestones='(STEP,STEP)'"
        )
    return by_agreement([load_run(workdir, step) for step in steps], network, flips)


def pair_counts(one: np.ndarray, other: np.ndarray, classes: int) -> np.ndarray:
    """i64[K,K]: how often class i of u8[H,W] meets class j of another; IGNORE counts nowhere."""
    both = (one < classes) & (other < classes)
    counts = np.bincount(one[both].astype(np.int64) * classes + other[both], minlength=classes**2)
    return counts.reshape(classes, classes)


def from_tags(run: Run, network: str, confidence: float, labelled: str) -> Labelling:
    """The labelling of a run that finds masks from tags."""
    data = sources.build_training_data(run.config, run.val_ids)
    assert data.tagged is not None, "a run of method_from_tags has tagged images"
    pool = data.dataset.source(run.config.data.pool)
    true = true_masks(pool, data.dataset.maskless, labelled, len(run.labels.classes))
    has_true = frozenset(true.ids)
    others = select(pool.without_labels(), [name for name in pool.ids if name not in has_true])
    tagged = WithTags(others, len(run.labels.classes), data.tagged.tags)
    background, tags = frozenset(run.labels.background_classes), tagged.tags or {}
    strata = {name: len(frozenset(tags[name]) - background) for name in others.ids}
    further = {name: source for name, source in data.dataset.sources.items() if name.startswith("val_")}
    return Labelling(
        true,
        others,
        lambda: masks_from_tags(run, tagged, network, confidence),
        strata,
        {"train": pool, "val": data.validation, **further},
    )


def from_predictions(run: Run, network: str, confidence: float, flips: bool) -> Labelling:
    """The labelling of a run that was trained with masks; of supervised training, too, by the images beside the labelled."""
    c = run.config.copy_and_resolve_references()
    c.batch.unlabelled = max(c.batch.unlabelled, 1)
    data = sources.build_training_data(c, run.val_ids)
    labelled, unlabelled = data.labelled, data.unlabelled
    if labelled is None:
        raise WorkdirError(f"a run of {run.config.method.name} has no labelled images; its masks come from tags")
    if not unlabelled:
        raise WorkdirError(
            "every image of the run's pool is labelled (data.labelled, data.unlabelled): nothing is left"
        )
    train = select(data.dataset.source(run.config.data.pool), [*labelled.ids, *unlabelled.ids])
    return Labelling(
        labelled,
        unlabelled,
        lambda: predicted(run, unlabelled, network, confidence, flips),
        dict.fromkeys(unlabelled.ids, 0),
        {"train": train, "val": data.validation},
    )


def predicted(run: Run, images: Source, network: str, confidence: float, flips: bool) -> Iterator[Found]:
    """The masks that a run predicts, in the order in which shape buckets fill; less sure pixels are IGNORE."""
    predicts = build.build_predicts(run.config, run.method)
    variables = jax.device_get(build.network_variables(run.state, network))

    @jax.jit
    def winner(variables: dict[str, Variables], image: Array, valid: Array) -> tuple[Array, Array]:
        unit = image.astype(jnp.float32) / 255.0
        probabilities = predicts.predict(variables, unit, valid)
        if flips:
            probabilities = (
                probabilities + mirrored(predicts.predict(variables, mirrored(unit, valid), valid), valid)
            ) / 2
        return probabilities.argmax(-1).astype(jnp.uint8), probabilities.max(-1)

    buckets = build.build_buckets(run.config, run.method, run.config.eval.batch)
    for examples, padded in buckets.batches(evaluation_examples(images)):
        labels, sure = map(np.asarray, winner(variables, padded.image, padded.valid))
        for example, label, certainty in zip(examples, labels, sure, strict=False):
            yield found_mask(example, label, certainty, confidence)


def mirrored(rows: Array, valid: Array) -> Array:
    """[B,H,W,C] with each row's valid top-left rectangle turned left to right; its padding stays."""
    width = jnp.sum(valid[:, 0], axis=1)[:, None]
    column = jnp.arange(rows.shape[2])[None]
    source = jnp.where(column < width, width - 1 - column, column)
    return jnp.take_along_axis(rows, source[:, None, :, None], axis=2)


def found_mask(example: Example, label: np.ndarray, certainty: np.ndarray, confidence: float) -> Found:
    """A mask cut to its image, IGNORE where the model is less sure than `confidence`."""
    height, width = example.image.shape[:2]
    inside = certainty[:height, :width]
    mask = np.where(inside >= confidence, label[:height, :width], IGNORE).astype(np.uint8)
    return Found(example, mask, float(inside.mean()))


def surest(confidences: Mapping[str, float], numbers: Mapping[str, int], keep: float) -> frozenset[str]:
    """The share `keep` of the images of each number of tags, those of the largest mean confidence.

    Images of different numbers cannot be compared: one without a tag is background, and certain of it, whatever it shows.
    """
    kept: list[str] = []
    for number in sorted(set(numbers.values())):
        surest_first = sorted((n for n in confidences if numbers[n] == number), key=lambda name: -confidences[name])
        kept += surest_first[: round(keep * len(surest_first))]
    return frozenset(kept)


def method_from_tags(run: Run) -> Thresholded:
    """The run's method; raises WorkdirError for one that makes no masks from tags."""
    if isinstance(run.method, Thresholded):
        return run.method
    raise WorkdirError(f"a run of {run.config.method.name} makes no masks from tags; take one of configs/tags.py")


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


def masks_from_tags(run: Run, tagged: WithTags, network: str, confidence: float) -> Iterator[Found]:
    """The masks of tagged images, in the order in which shape buckets fill; less sure pixels are IGNORE."""
    method = method_from_tags(run)
    variables = jax.device_get(build.network_variables(run.state, network))

    @jax.jit
    def winner(variables: Mapping[str, Variables], image: Array, valid: Array, tags: Array) -> tuple[Array, Array]:
        scores = method.scores(dict(variables), image.astype(jnp.float32) / 255.0, valid, tags)
        probabilities = method.at_threshold(scores, method.mask_threshold)
        return probabilities.argmax(-1).astype(jnp.uint8), probabilities.max(-1)

    buckets = build.build_buckets(run.config, run.method, run.config.eval.batch)
    for examples, padded in buckets.batches(evaluation_examples(tagged)):
        tags = np.zeros((buckets.batch, tagged.num_classes), np.float32)
        tags[: len(examples)] = np.stack([example.tags for example in examples if example.tags is not None])
        labels, sure = map(np.asarray, winner(variables, padded.image, padded.valid, tags))
        for example, label, certainty in zip(examples, labels, sure, strict=False):
            yield found_mask(example, label, certainty, confidence)


def mask_file(folder: Path, name: str) -> Path:
    """Where an image's mask lies."""
    return folder / "masks" / f"{name}.png"


def save_image(folder: Path, example: Example) -> None:
    """Writes an example's image without loss."""
    file = folder / "images" / f"{example.id}.png"
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(example.image).save(file)


def save_mask(folder: Path, name: str, label: np.ndarray, labels: Labels) -> None:
    """Writes a mask of class indices."""
    file = mask_file(folder, name)
    file.parent.mkdir(parents=True, exist_ok=True)
    save_index_png(file, label, palette_of(labels))


def write_lists(folder: Path, labels: Labels, splits: Mapping[str, Source]) -> None:
    """Writes the class file and the splits' lists."""
    background = labels.classes[labels.background_classes[0]]
    lines = (f"names = {json.dumps(labels.classes)}", f"background = {json.dumps(background)}", f"void = {IGNORE}")
    (folder / "classes.toml").write_text("\n".join(lines) + "\n", encoding="utf-8")
    for split, source in splits.items():
        (folder / f"{split}.txt").write_text("\n".join(source.ids) + "\n", encoding="utf-8")

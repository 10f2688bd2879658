"""From masks that a model found from tags to a data set with labels, for the methods that need some."""

import json
import tempfile
from collections.abc import Iterator, Mapping
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
from forec_jax.evaluation import Buckets
from forec_jax.experiment import build, sources
from forec_jax.experiment.load import Run, palette_of
from forec_jax.experiment.workdir import WorkdirError
from forec_jax.files import write_json
from forec_jax.visualize import save_index_png


class Written(NamedTuple):
    """How many training images of a new data set have which masks."""

    from_tags: int
    true: int
    without: int


class Found(NamedTuple):
    """A mask from an image's tags."""

    example: Example
    label: np.ndarray  # u8[H,W], IGNORE where unsure
    confidence: float  # the mean over the image's pixels, in [0, 1]


def write_masks(run: Run, out: Path, *, network: str, keep: float, confidence: float, labelled: str) -> Written:
    """Writes the run's pool as a folder data set `out`: images, masks from tags, and the evaluation split with true masks.

    A mask holds classes of the image's tags only, and void where the model is less sure than `confidence`. The share
    `keep` of the images, the surest ones (see `surest`), have masks; the others can be used without labels. Images
    that `labelled` names (a list file or "<count>:<seed>"; "" for none) have their true masks. The folder appears complete
    or not at all. Raises WorkdirError for a run without masks from tags, DataError where `out` is there already.
    """
    method_from_tags(run)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(f"{out}: exists and is not an empty folder; choose another --out, or move it away")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as temporary:
            unfinished = Path(temporary) / out.name
            written = write_folder(run, unfinished, network, keep, confidence, labelled)
            unfinished.rename(out)
    except OSError as error:
        raise DataError(f"{out}: cannot be written ({error}); set --out to a folder with room") from error
    return written


def write_folder(run: Run, folder: Path, network: str, keep: float, confidence: float, labelled: str) -> Written:
    """Writes the data set of `write_masks` into a new folder."""
    data = sources.build_training_data(run.config, run.val_ids)
    assert data.tagged is not None, "a run of method_from_tags has tagged images"
    pool = data.dataset.source(run.config.data.pool)
    true = true_masks(pool, data.dataset.maskless, labelled, len(run.labels.classes))
    has_true = frozenset(true.ids)
    others = select(pool.without_labels(), [name for name in pool.ids if name not in has_true])
    tagged = WithTags(others, len(run.labels.classes), data.tagged.tags)
    confidences: dict[str, float] = {}
    for found in masks_from_tags(run, tagged, network, confidence):
        save_image(folder, found.example)
        save_mask(folder, found.example.id, found.label, run.labels)
        confidences[found.example.id] = found.confidence
    write_json(folder / "confidences.json", confidences)
    background = frozenset(run.labels.background_classes)
    tags = tagged.tags or {}
    numbers = {name: len(frozenset(tags[name]) - background) for name in confidences}
    kept = surest(confidences, numbers, keep)
    for name in confidences.keys() - kept:
        mask_file(folder, name).unlink()
    further = {name: source for name, source in data.dataset.sources.items() if name.startswith("val_")}
    for source in (true, data.validation, *further.values()):
        for example in evaluation_examples(source):
            save_image(folder, example)
            if example.label is not None:
                save_mask(folder, example.id, example.label, run.labels)
    write_lists(folder, run.labels, {"train": pool, "val": data.validation, **further})
    return Written(len(kept), len(true), len(confidences) - len(kept))


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

    buckets = Buckets(run.config.eval.bucket, run.config.eval.batch)
    for examples, padded in buckets.batches(evaluation_examples(tagged)):
        tags = np.zeros((buckets.batch, tagged.num_classes), np.float32)
        tags[: len(examples)] = np.stack([example.tags for example in examples if example.tags is not None])
        labels, sure = map(np.asarray, winner(variables, padded.image, padded.valid, tags))
        for example, label, certainty in zip(examples, labels, sure, strict=False):
            height, width = example.image.shape[:2]
            inside = certainty[:height, :width]
            mask = np.where(inside >= confidence, label[:height, :width], IGNORE).astype(np.uint8)
            yield Found(example, mask, float(inside.mean()))


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

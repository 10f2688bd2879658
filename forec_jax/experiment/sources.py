"""From a config to the images of a run: data set, split and sources."""

import dataclasses
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from forec_jax.config import labels_in_both, method_entry
from forec_jax.contracts import Batch
from forec_jax.data import (
    Dataset,
    Geometry,
    KnownLabels,
    Labels,
    PartialLabels,
    Source,
    Split,
    Tags,
    WithPseudoLabels,
    WithTags,
    balanced,
    batch_ids,
    check_tags,
    chosen_classes,
    class_coverage,
    class_pixels,
    classes_in_images,
    classes_not_shown,
    content_sha256,
    median_frequency_weights,
    one_against_rest,
    parse_partial,
    read_tags,
    resolve_split,
    select,
    tag_indices,
    tagged_split,
    tags_of_folders,
    tags_of_masks,
    train_batches,
    with_longest_side,
    with_pseudo_labels,
)
from forec_jax.data.datasets import DATASETS
from forec_jax.data.partial import Rounding
from forec_jax.data.pipeline import ReadingOptions
from forec_jax.data.published import check_protocol, protocol_names, published_name, published_origins
from forec_jax.data.source import DataEntry, Place
from forec_jax.methods.entry import Epoch
from forec_jax.methods.parts.terms import MEDIAN_FREQUENCY, SupervisedOptions
from forec_jax.methods.tag_classifier import foreground_classes
from forec_jax.options import OptionError, choose, from_config

log = logging.getLogger(__name__)

SMALL_VAL = 300  # images whose masks are looked at before a training


class TrainingData(NamedTuple):
    """The sources of a run."""

    dataset: Dataset
    split: Split
    labelled: Source | None
    unlabelled: Source | None
    validation: Source
    tagged: WithTags | None = None
    pseudo: WithPseudoLabels | None = None


def _data_entry(c: ConfigDict) -> DataEntry:
    """The entry of the config's data set. Raises OptionError for an unknown one."""
    entry: DataEntry = DATASETS[choose("data.name", c.data.name, tuple(DATASETS))]
    return entry


def _data_options(c: ConfigDict, entry: DataEntry) -> Any:
    """The data set's own options."""
    return from_config(entry.options, c.data[entry.name], f"data.{entry.name}")


def build_dataset(c: ConfigDict, val_ids: tuple[str, ...] | None = None) -> Dataset:
    """The data set that data.name names, with the classes that data.classes and data.tag choose.

    `val_ids` are the validation images of a run that is there (`workdir.stored_val`): they never move under it.
    """
    return with_chosen_classes(build_full_dataset(c, val_ids), c)


def build_full_dataset(c: ConfigDict, val_ids: tuple[str, ...] | None = None) -> Dataset:
    """The data set that data.name names, with all its classes."""
    entry = _data_entry(c)
    check_root(c)
    prepared = Path(c.data.prepared).expanduser() if c.data.prepared else None
    place = Place(Path(c.data.root).expanduser(), prepared, c.data.longest_side, c.data.on_corrupt, val_ids)
    dataset = entry.load(place, _data_options(c, entry))
    return _with_background(with_longest_side(dataset, c.data.longest_side), c.data.background)


def check_root(c: ConfigDict) -> None:
    """Raises OptionError where the data set needs a folder, and none is named."""
    entry = _data_entry(c)
    if entry.holds and not c.data.root:
        raise OptionError(f"data.root is empty: set it to the folder that holds {entry.holds}")


def planned_labels(c: ConfigDict) -> Labels:
    """The classes and background of the config's data set; no image is opened."""
    entry = _data_entry(c)
    labels = entry.labels(Path(c.data.root).expanduser(), _data_options(c, entry))
    without_images = Dataset(entry.name, labels.classes, labels.palette, {}, labels.background_classes)
    return with_chosen_classes(_with_background(without_images, c.data.background), c).labels


def with_chosen_classes(dataset: Dataset, c: ConfigDict) -> Dataset:
    """The data set with the classes of data.classes, then with data.tag against the rest; with all where both are empty.

    Raises OptionError for a class that it does not have.
    """
    if c.data.classes:
        known = tuple(name for name in dataset.classes if name != "background")
        names = [choose("data.classes", name.strip(), known) for name in c.data.classes.split(",")]
        dataset = chosen_classes(dataset, names)
    if not c.data.tag:
        return dataset
    foreground = [name for k, name in enumerate(dataset.classes) if k not in dataset.background_classes]
    return one_against_rest(dataset, choose("data.tag", c.data.tag, tuple(foreground)))


def _with_background(dataset: Dataset, names: str) -> Dataset:
    """The data set with other background classes, "name,name"; with its own where `names` is empty."""
    if not names:
        return dataset
    chosen = (choose("data.background", name.strip(), dataset.classes) for name in names.split(","))
    return dataclasses.replace(dataset, background_classes=tuple(dataset.classes.index(name) for name in chosen))


def build_training_data(c: ConfigDict, val_ids: tuple[str, ...] | None = None) -> TrainingData:
    """Data set, split and sources; warns of classes that no labelled image, or no image that is scored, shows."""
    if c.data.protocol and (c.batch.tagged or c.data.partial):
        raise OptionError(
            f"data.protocol={c.data.protocol!r} claims the whole masks of a published list; "
            "leave it empty with tags and with data.partial"
        )
    if c.batch.tagged:
        return _build_tagged_data(c, val_ids)
    dataset = build_dataset(c, val_ids)
    pool, validation = dataset.source(c.data.pool), dataset.scored(c.eval.split)
    on_corrupt = from_config(ReadingOptions, c.data, "data").on_corrupt
    split = resolve_split(
        pool_ids=pool.ids,
        validation_ids=_evaluation_ids(dataset, c.data.pool),
        maskless=dataset.maskless,
        labelled=c.data.labelled,
        unlabelled=c.data.unlabelled if c.batch.unlabelled else "none",
        overlap=c.data.overlap,
        classes_of=lambda ids: classes_in_images(select(pool, ids), len(dataset.classes), on_corrupt),
    )
    claim_protocol(c, split)
    labelled: Source = select(pool, split.labelled)
    if missing := class_coverage(labelled, len(dataset.classes), on_corrupt):
        names = ", ".join(dataset.classes[index] for index in missing)
        log.warning("no labelled image shows: %s. These classes cannot be learned; label an image of each", names)
    if len(validation) <= SMALL_VAL and (absent := classes_not_shown(validation, dataset.classes, on_corrupt)):
        log.warning("no image of %s shows: %s. Their IoU says nothing", c.eval.split, ", ".join(absent))
    partial = with_partial_labels(labelled, c.data.partial, c.data.partial_rounding)
    unlabelled = _unlabelled_rows(c, select(pool, split.unlabelled).without_labels(), partial)
    pseudo = _build_pseudo(c, dataset, split)
    if pseudo is not None:
        split = split._replace(pseudo=tuple(pseudo.ids), pseudo_sha256=content_sha256(pseudo))
    return TrainingData(dataset, split, partial, unlabelled, validation, pseudo=pseudo)


def _unlabelled_rows(c: ConfigDict, images: Source, labelled: Source) -> Source | None:
    """The images of the unlabelled rows, with what partial labels show of them where a config wants that."""
    if not c.batch.unlabelled:
        return None
    return KnownLabels(images, labelled) if labels_in_both(c) else images


def _build_pseudo(c: ConfigDict, dataset: Dataset, split: Split) -> WithPseudoLabels | None:
    """The images with a model's masks, where the batch has rows of them. Raises OptionError where none are named."""
    if not c.batch.pseudo:
        return None
    if not c.data.pseudo:
        raise OptionError("batch.pseudo needs masks: set data.pseudo to a folder that forec-jax label wrote")
    others = _evaluation_ids(dataset, c.data.pool) | set(split.labelled)
    return with_pseudo_labels(dataset.source(c.data.pool), Path(c.data.pseudo).expanduser(), dataset.classes, others)


def with_partial_labels(labelled: Source, partial: str, rounding: Rounding = "up") -> Source:
    """The source with a part of each mask, "1px" or "5%"; as it is where `partial` is empty, or "masks" hold a part."""
    if partial in ("", "masks"):
        return labelled
    try:
        share, seed = parse_partial(partial)
    except ValueError as error:
        raise OptionError(f"data.partial={error}") from error
    return PartialLabels(labelled, share, seed, rounding)


def _build_tagged_data(c: ConfigDict, val_ids: tuple[str, ...] | None = None) -> TrainingData:
    """Data set and sources of a run that sees image-level tags; its tagged stream cannot open a mask.

    With data.tag, images with and without the tag are equally many (the paper draws a batch's halves from either).
    """
    full = build_full_dataset(c, val_ids)
    dataset = with_chosen_classes(full, c)
    pool = dataset.source(c.data.pool)
    split = tagged_split(pool_ids=pool.ids, validation_ids=_evaluation_ids(dataset, c.data.pool))
    foreground = foreground_classes(dataset.labels)
    tags = _build_tags(c, full, dataset)
    check_tags(tags, dataset.classes, foreground)
    images: Source = pool.without_labels()
    if c.data.tag:
        images = balanced(images, tags, foreground[0])
    tagged = WithTags(images, len(dataset.classes), {name: tuple(present) for name, present in tags.items()})
    return TrainingData(dataset, split, None, None, dataset.scored(c.eval.split), tagged)


def _build_tags(c: ConfigDict, full: Dataset, dataset: Dataset) -> Tags:
    """The tags of the pool's images as classes of `dataset`; names are looked up among those of the `full` one."""
    pool = dataset.source(c.data.pool)
    match c.data.tags:
        case "masks":
            return tags_of_masks(pool, len(dataset.classes))
        case "folders":
            named = tags_of_folders(pool.ids)
        case path:
            named = read_tags(Path(path), pool.ids)
    return tag_indices(named, full.classes, dataset.classes)


def claim_protocol(c: ConfigDict, split: Split) -> None:
    """Says which published list a list file is, and holds the split to data.protocol; raises DataError where it differs."""
    if c.data.protocol:
        check_protocol(choose("data.protocol", c.data.protocol, ("", *protocol_names())), split)
    if Path(c.data.labelled).is_file():
        if name := published_name(split.sha256):
            is_what = f"the published list {name} ({published_origins(name)})"
        else:
            is_what = "no published list that the library knows"
        log.info("%s: %d images, SHA-256 %s, %s", c.data.labelled, len(split.labelled), split.sha256, is_what)


def _evaluation_ids(dataset: Dataset, pool: str) -> set[str]:
    """The ids of every split that is not for training: none of them may be trained on."""
    return {
        i
        for name, source in dataset.sources.items()
        if not name.startswith("train") and name != pool
        for i in source.ids
    }


class Streams(NamedTuple):
    """Which examples a batch holds, and how they are read."""

    data: TrainingData
    rows: Mapping[str, int]  # of the global batch, by part
    geometry: Geometry
    reading: ReadingOptions
    seed: int

    def batches(self, first_step: int, process: int = 0, processes: int = 1) -> Iterator[Batch]:
        """A process's rows of the batches from `first_step` on."""
        return train_batches(
            **self._which(),
            geometry=self.geometry,
            start_step=first_step,
            process_index=process,
            process_count=processes,
            workers=self.reading.workers,
            on_corrupt=self.reading.on_corrupt,
        )

    def ids(self, step: int) -> dict[str, tuple[str, ...]]:
        """The ids of a step's batch by its part."""
        return batch_ids(**self._which(), step=step)

    def _which(self) -> dict[str, Any]:
        sources = {part: getattr(self.data, part) for part in self.rows}
        sizes = {f"batch_{part}": size for part, size in self.rows.items()}
        return {**sources, **sizes, "seed": self.seed, "unlabelled_pairs": self.reading.unlabelled_pairs}


def build_streams(c: ConfigDict, data: TrainingData) -> Streams:
    """The streams of a training."""
    rows = {part: c.batch[part] for part in Batch._fields}
    reading = from_config(ReadingOptions, c.data, "data")
    return Streams(data, rows, from_config(Geometry, c.data, "data"), reading, c.seed)


def frequency_weights(c: ConfigDict, data: TrainingData) -> tuple[float, ...] | None:
    """The classes' weights by the labelled training masks, where method.class_weights asks for them; the log says them."""
    if data.labelled is None or SupervisedOptions not in method_entry(c).shared:
        return None
    if from_config(SupervisedOptions, c.method, "method").class_weights != MEDIAN_FREQUENCY:
        return None
    on_corrupt = from_config(ReadingOptions, c.data, "data").on_corrupt
    weights = median_frequency_weights(class_pixels(data.labelled, len(data.dataset.classes), on_corrupt))
    said = ", ".join(f"{name} {weight:.3g}" for name, weight in zip(data.dataset.classes, weights, strict=True))
    log.info("class weights by median frequency in the %d labelled masks: %s", len(data.labelled), said)
    return weights


def epoch_of(c: ConfigDict, data: TrainingData) -> Epoch:
    """How many steps an epoch has; 0 where there are tags in place of masks."""
    labelled = 0 if data.labelled is None else -(-len(data.labelled) // max(c.batch.labelled, 1))
    if data.unlabelled is None:
        return Epoch(labelled, labelled)
    images = c.batch.unlabelled // 2 if c.data.unlabelled_pairs else c.batch.unlabelled
    return Epoch(-(-len(data.unlabelled) // max(images, 1)), labelled)

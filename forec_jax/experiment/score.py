"""Scores of stored models that are kept beside their runs: on a split, or on any images with masks."""

import logging
from collections.abc import Sequence
from pathlib import Path

from forec_jax.data import DataError, Dataset, Labels
from forec_jax.data.classfile import CLASS_FILE, ClassFile, read_classes
from forec_jax.data.decode import Follow
from forec_jax.data.pairs import PairSource, pairs_of
from forec_jax.data.prepared import Entry
from forec_jax.data.remarks import Remarks
from forec_jax.data.rules import MaskRule
from forec_jax.data.source import dataset_of
from forec_jax.evaluation import Evaluation
from forec_jax.experiment import sources
from forec_jax.experiment.contents import check_same_classes, chosen_sums, differing, some, stored_contents
from forec_jax.experiment.load import Run
from forec_jax.experiment.results import Question, Result, keep_result, protocol_of, sum_of
from forec_jax.experiment.use import score
from forec_jax.files import sha256_of

log = logging.getLogger(__name__)


def evaluated(
    run: Run, dataset: Dataset, split: str, network: str, checkpoint: str, boundary: float = 0.0
) -> tuple[Evaluation, Result]:
    """Scores a stored model on a split of `dataset`, and keeps the result beside the run; `boundary` as in `score`."""
    source = dataset.scored(split)
    say_if_changed(run.workdir, dataset, split)
    evaluation = score(run, source, network, boundary)
    say_what_is_not_shown(evaluation, run.labels.classes, split)
    network = network if run.state.teacher else "student"
    protocol, total = protocol_of(run.config, run.workdir), sum_of(dataset, source)
    question = Question(split, total, int(run.state.step), network, protocol)
    iou = dict(zip(run.labels.classes, evaluation.iou.tolist(), strict=True))
    result = Result(question, len(source), evaluation.miou, iou, checkpoint)
    keep_result(run.workdir, result)
    return evaluation, result


def say_what_is_not_shown(evaluation: Evaluation, classes: Sequence[str], split: str) -> None:
    """Warns of classes that no mask shows: their IoU is 0 where a pixel is called so, and counts nowhere otherwise."""
    pixels = evaluation.confusion.sum(axis=1)
    if absent := [name for name, shown in zip(classes, pixels, strict=True) if not shown]:
        log.warning(
            "no image of %s shows: %s. Their IoU says nothing: 0 where a pixel is called so, left out of the mean otherwise",
            split, ", ".join(absent),
        )  # fmt: skip


def say_if_changed(workdir: Path, dataset: Dataset, split: str) -> None:
    """Warns where the split that a run was scored on while it trained is not what it was."""
    began = stored_contents(workdir)
    if began is None or began.split != split:
        return
    now = chosen_sums(dataset.sums, dataset.scored(split).ids)
    if changed := differing(began.scored, now):
        log.warning(
            "%s: since the run began, %d images or masks of %s changed (%s): this score and those of the training are "
            "not comparable", workdir, len(changed), split, some(changed),
        )  # fmt: skip


def evaluated_pairs(
    run: Run, images: Path, masks: Path, network: str, checkpoint: str, boundary: float = 0.0
) -> tuple[Evaluation, Result]:
    """Scores a stored model on any images with masks, and keeps the result beside the run; raises as `_paired` does."""
    remarks = Remarks()
    dataset = _paired(run, images, masks, remarks)
    (split,) = dataset.sources
    found = evaluated(run, dataset, split, network, checkpoint, boundary)
    remarks.report()
    return found


def _paired(run: Run, images: Path, masks: Path, remarks: Remarks) -> Dataset:
    """A data set of any images with masks, whose split is their folder; read as the run's own data set is.

    A classes.toml beside the masks' folder says what the masks mean; failing that the run's own does, or masks hold the
    indices of its classes and 255 where void. Raises WorkdirError where its classes are not the run's.
    """
    c, entries = run.config, pairs_of(images, masks)
    said = _mask_classes(run, masks)
    follow: Follow = c.data.folder.masks_follow if "folder" in c.data else "display"
    source = PairSource(entries, said.rule, follow, c.data.longest_side, remarks)
    labels = Labels(said.names, said.palette, said.background)
    sums = {entry.id: _sum_of_files(entry) for entry in entries}
    full = dataset_of("--images", labels, {str(images.absolute()): source}, sums=sums)
    dataset = sources.with_chosen_classes(full, c)
    check_same_classes(run.labels, dataset.labels, f"{run.workdir}: the run")
    return dataset


def _mask_classes(run: Run, masks: Path) -> ClassFile:
    """What the pixels of masks mean to a run."""
    own = [Path(run.config.data.root) / CLASS_FILE] if "folder" in run.config.data else []
    file = next((file for file in (masks.absolute().parent / CLASS_FILE, *own) if file.is_file()), None)
    if file is not None:
        return read_classes(file)
    if own or run.config.data.tag or run.config.data.classes:
        raise DataError(f"{masks}: nothing says what these masks mean; put the run's {CLASS_FILE} beside that folder")
    return ClassFile(*run.labels, MaskRule(len(run.labels.classes)))


def _sum_of_files(entry: Entry) -> str:
    """Of an image's file and its mask's."""
    return "-".join(sha256_of(Path(file))[:16] for file in (entry.image, entry.mask) if file)

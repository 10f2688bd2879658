"""What `visualize` does with work directories: sheets of images, and how well latent images follow the classes."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from forec_jax.data import DataError, Example, Labels, evaluation_examples, select
from forec_jax.data.partial import Rounding
from forec_jax.experiment import build, sources
from forec_jax.experiment.load import Run, by_name, load_run
from forec_jax.experiment.use import photos, unused_stem
from forec_jax.experiment.workdir import WorkdirError
from forec_jax.files import write_json
from forec_jax.methods import WsssRec
from forec_jax.options import choose
from forec_jax.visualize import (
    Model,
    Relations,
    captioned,
    compare,
    decompositions,
    label_sheets,
    mean_correlations,
    query_sheets,
    relation_picture,
    relations,
    segmenting_network,
    sheet,
)


def load_runs(workdirs: Sequence[Path], checkpoint: str, root: str | None = None) -> dict[str, Run]:
    """The models of work directories as `by_name` calls them; `root` is where their data set lies now, if it moved."""
    return {name: load_run(workdir, checkpoint, root) for name, workdir in by_name(workdirs).items()}


def visualize_runs(
    runs: Mapping[str, Run], images: str, out: Path, *, network: str, class_name: str | None, count: int
) -> int:
    """Writes a sheet for each image that `images` names to `out`, a row a run; returns their number (docs/visualize.md)."""
    first, *_ = runs.values()
    labels, class_index = shared_labels(runs), _class_index_of(runs, class_name)
    models = [shown_model(run, name, network) for name, run in runs.items()]
    sheets = compare(models, _chosen_examples(images, first), labels, class_index=class_index, count=count)
    return _write_sheets(sheets, out) + _write_decompositions(runs, images, out)


def _write_sheets(sheets: Iterable[tuple[Example, np.ndarray]], out: Path) -> int:
    """Writes each example's picture to `out`, by its id; returns their number."""
    written: set[str] = set()
    for example, picture in sheets:
        target = out / f"{unused_stem(Path(example.id), written)}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(target)
    return len(written)


def _write_decompositions(runs: Mapping[str, Run], images: str, out: Path) -> int:
    """Writes a sheet of mask-lets and image-lets to `out`/decomposition for each image and each run of wsss_rec."""
    count = 0
    for name, run in runs.items():
        if not isinstance(run.method, WsssRec):
            continue
        variables, examples = build.network_variables(run.state, "student"), _chosen_examples(images, run)
        sheets = decompositions(run.method, variables, examples, run.labels.classes, run.config.eval.bucket)
        count += _write_sheets(sheets, out / "decomposition" / Path(name).name)
    return count


def correlate_runs(runs: Mapping[str, Run], split: str, out: Path) -> dict[str, Any]:
    """Measures how well each run's latent images follow the classes over a split; writes latents.json (docs/visualize.md).

    The runs' data sets may differ. A run without a reconstruction head has no classes and the mean None.
    """
    content = {"split": split, "runs": {name: _correlations_of(run, name, split) for name, run in runs.items()}}
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "latents.json", content)
    return content


def _correlations_of(run: Run, name: str, split: str) -> dict[str, Any]:
    """One run's part of latents.json: by class, and the mean over the classes that are not background."""
    examples = evaluation_examples(run.dataset().scored(split))
    # The student's head whatever the network that is evaluated: no teacher keeps one.
    best = mean_correlations(shown_model(run, name, "student"), examples)
    foreground = [found.correlation for k, found in best.items() if k not in run.labels.background_classes]
    return {
        "step": int(run.state.step),
        "network": "student",
        "mean_correlation": float(np.mean(foreground)) if foreground else None,
        "classes": {run.labels.classes[k]: found._asdict() for k, found in best.items()},
    }


def query_runs(runs: Mapping[str, Run], images: str, out: Path, class_name: str | None) -> int:
    """Writes a sheet of easy and hard queries for each image to `out`/queries, a row a run; returns their number."""
    first, *_ = runs.values()
    models = [shown_model(run, name, "student") for name, run in runs.items()]
    examples = _chosen_examples(images, first)
    sheets = query_sheets(models, examples, shared_labels(runs), class_index=_class_index_of(runs, class_name))
    return _write_sheets(sheets, out / "queries")


def relate_runs(runs: Mapping[str, Run], out: Path) -> dict[str, Any]:
    """Measures how alike the classes' features are in each run, over its evaluation split (docs/visualize.md).

    Writes classes.png, a row a run and a column an embedding, and classes.json.
    """
    found = {name: _relations_of(run, name) for name, run in runs.items()}
    embeddings = max(found.values(), key=len)  # the encoder's, and the representation where a run has one
    rows = [[relation_picture(r, runs[name].labels.classes) for r in by.values()] for name, by in found.items()]
    captioned_rows = [[captioned(picture, name) for picture in row] for name, row in zip(found, rows, strict=True)]
    out.mkdir(parents=True, exist_ok=True)
    Image.fromarray(sheet(captioned_rows, list(embeddings))).save(out / "classes.png")
    content = {
        name: {
            "split": runs[name].config.eval.split,
            "step": int(runs[name].state.step),
            "network": "student",
            **{embedding: _relation_content(r, runs[name].labels.classes) for embedding, r in by.items()},
        }
        for name, by in found.items()
    }
    write_json(out / "classes.json", {"runs": content})
    return content


def _relations_of(run: Run, name: str) -> dict[str, Relations]:
    """The class relations of a run's student by embedding. Raises WorkdirError where it does not segment."""
    network = segmenting_network(run.method)
    if network is None:
        raise WorkdirError(f"{name}: this method has no segmentation head, so there is no relation of classes to show")
    examples = evaluation_examples(run.dataset().scored(run.config.eval.split))
    variables = build.network_variables(run.state, "student")[network[0]]
    return relations(network[1], variables, examples, len(run.labels.classes), run.config.eval.bucket)


def _relation_content(found: Relations, classes: Sequence[str]) -> dict[str, Any]:
    """An embedding's part of classes.json."""
    return {
        "mean_similarity": found.mean_similarity(),
        "classes": [classes[k] for k in found.classes],
        "pixels": list(found.pixels),
        "similarity": found.similarity.round(6).tolist(),
        "merges": found.merges.round(6).tolist(),
    }


def show_labels(data: sources.TrainingData, shares: Sequence[str], out: Path, count: int, rounding: Rounding) -> int:
    """Writes a sheet for each of the first `count` labelled images to `out`, by its id; returns their number.

    A sheet is input, mask, and what each of `shares` ("1px", "5%") shows of the mask; `data` has whole masks.
    """
    if data.labelled is None:
        raise DataError("this config trains on tags and no masks: there are no labels to show; choose another variant")
    parts = {share: sources.with_partial_labels(data.labelled, share, rounding) for share in shares}
    return _write_sheets(label_sheets(data.labelled, parts, data.dataset.labels, count), out)


def shared_labels(runs: Mapping[str, Run]) -> Labels:
    """The labels of runs of one data set, the first one's; raises WorkdirError where their classes differ."""
    first, *_ = runs.values()
    _shared_classes(runs)
    return first.labels


def _class_index_of(runs: Mapping[str, Run], class_name: str | None) -> int | None:
    """The index of the class that --class names; None where it names none."""
    if class_name is None:
        return None
    classes = _shared_classes(runs)
    choose("--class", class_name, classes)
    return classes.index(class_name)


def shown_model(run: Run, name: str, network: str) -> Model:
    """A run as `visualize` takes it; the student stands in where there is no teacher."""
    student = build.network_variables(run.state, "student")
    network = network if run.state.teacher else "student"
    variables = build.network_variables(run.state, network)
    c = run.config
    predicts = build.build_predicts(c, run.method)
    return Model(name, run.method, network, variables, student, c.eval.bucket, build.pixel_space(c), predicts)


def _chosen_examples(images: str, run: Run) -> Iterable[Example]:
    """The examples that --images names: a file, a folder, or ids of eval.split, with commas between them.

    Ids bring their masks. Raises DataError where it is neither.
    """
    if Path(images).exists():
        return (photo.example for photo in photos(Path(images), run.config.data.longest_side))
    source, ids = run.dataset().scored(run.config.eval.split), images.split(",")
    if unknown := sorted(set(ids) - set(source.ids)):
        raise DataError(
            f"--images: {unknown[0]} is neither a file nor a folder, nor an id of the run's split {run.config.eval.split} "
            f"(such as {source.ids[0]})"
        )
    chosen = select(source, ids)
    return (chosen[index] for index in range(len(chosen)))


def _shared_classes(runs: Mapping[str, Run]) -> tuple[str, ...]:
    """The runs' classes; raises WorkdirError where they differ."""
    (name, first), *others = runs.items()
    for other, run in others:
        if run.labels.classes != first.labels.classes:
            raise WorkdirError(f"{name} and {other} know different classes; compare runs of one data set")
    return first.labels.classes

"""What `visualize` does with work directories: sheets of images, and how well latent images follow the classes."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from forec_jax import build
from forec_jax.data import DataError, Example, evaluation_examples, select
from forec_jax.methods import WsssRec
from forec_jax.runs import Run, WorkdirError, file_examples, load_run, palette_of, unused_stem
from forec_jax.training.reporting import write_json
from forec_jax.visualize import Legend, Model, compare, decompositions, mean_correlations


def load_runs(workdirs: Sequence[Path], checkpoint: str) -> dict[str, Run]:
    """The models of several work directories by their folders' names, or by their paths where two names are the same."""
    unique = len({workdir.name for workdir in workdirs}) == len(workdirs)
    return {workdir.name if unique else str(workdir): load_run(workdir, checkpoint) for workdir in workdirs}


def visualize_runs(
    runs: Mapping[str, Run], images: str, out: Path, *, network: str, class_name: str | None, count: int
) -> int:
    """Writes a sheet for each image that `images` names to `out`, a row a run; returns their number (docs/visualize.md)."""
    first, *_ = runs.values()
    classes = shared_classes(runs)
    if class_name is not None:
        build.choose("--class", class_name, classes)
    class_index = None if class_name is None else classes.index(class_name)
    models = [shown_model(run, name, network) for name, run in runs.items()]
    legend = Legend(classes, palette_of(first.labels), first.labels.background_classes)
    examples = chosen_examples(images, first)
    written: set[str] = set()
    for example, picture in compare(models, examples, legend, class_index=class_index, count=count):
        target = out / f"{unused_stem(Path(example.id), written)}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(target)
    return len(written) + write_decompositions(runs, images, out)


def write_decompositions(runs: Mapping[str, Run], images: str, out: Path) -> int:
    """Writes a sheet of mask-lets and image-lets to `out`/decomposition for each image and each run of wsss_rec."""
    count = 0
    for name, run in runs.items():
        if not isinstance(run.method, WsssRec):
            continue
        variables, written = build.network_variables(run.state, "student"), set[str]()
        examples = chosen_examples(images, run)
        bucket = run.config.eval.bucket
        for example, picture in decompositions(run.method, variables, examples, run.labels.classes, bucket):
            stem = unused_stem(Path(example.id), written)
            target = out / "decomposition" / Path(name).name / f"{stem}.png"
            target.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture).save(target)
        count += len(written)
    return count


def correlate_runs(runs: Mapping[str, Run], split: str, out: Path) -> dict[str, Any]:
    """Measures how well each run's latent images follow the classes over a split; writes latents.json (docs/visualize.md).

    The runs' data sets may differ. A run without a reconstruction head has no classes and the mean None.
    """
    content = {"split": split, "runs": {name: correlations_of(run, name, split) for name, run in runs.items()}}
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "latents.json", content)
    return content


def correlations_of(run: Run, name: str, split: str) -> dict[str, Any]:
    """One run's part of latents.json: by class, and the mean over the classes that are not background."""
    examples = evaluation_examples(build.build_dataset(run.config).source(split))
    # The student's head whatever the network that is evaluated: no teacher keeps one.
    best = mean_correlations(shown_model(run, name, "student"), examples)
    foreground = [found.correlation for k, found in best.items() if k not in run.labels.background_classes]
    return {
        "step": int(run.state.step),
        "network": "student",
        "mean_correlation": float(np.mean(foreground)) if foreground else None,
        "classes": {run.labels.classes[k]: found._asdict() for k, found in best.items()},
    }


def shown_model(run: Run, name: str, network: str) -> Model:
    """A run as `visualize` takes it; the student stands in where there is no teacher."""
    student = build.network_variables(run.state, "student")
    network = network if run.state.teacher else "student"
    variables = build.network_variables(run.state, network)
    c = run.config
    return Model(name, run.method, network, variables, student, c.eval.bucket, build.pixel_space(c))


def chosen_examples(images: str, run: Run) -> Iterable[Example]:
    """The examples that --images names: a file, a folder, or ids of eval.split, with commas between them.

    Ids bring their masks. Raises DataError where it is neither.
    """
    if Path(images).exists():
        return file_examples(Path(images))
    source, ids = build.build_dataset(run.config).source(run.config.eval.split), images.split(",")
    if unknown := sorted(set(ids) - set(source.ids)):
        raise DataError(
            f"--images: {unknown[0]} is neither a file nor a folder, nor an id of the run's split {run.config.eval.split} "
            f"(such as {source.ids[0]})"
        )
    chosen = select(source, ids)
    return (chosen[index] for index in range(len(chosen)))


def shared_classes(runs: Mapping[str, Run]) -> tuple[str, ...]:
    """The runs' classes; raises WorkdirError where they differ."""
    (name, first), *others = runs.items()
    for other, run in others:
        if run.labels.classes != first.labels.classes:
            raise WorkdirError(f"{name} and {other} know different classes; compare runs of one data set")
    return first.labels.classes

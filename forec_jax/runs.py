"""What the commands do with a work directory: train in it, and read models back from it."""

import dataclasses
import json
import logging
import math
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict
from PIL import Image

import forec_jax
from forec_jax import build
from forec_jax.config import auxiliary_defaults, defaults, flat
from forec_jax.contracts import Batch, Method, Network, TrainState
from forec_jax.data import DataError, Example, Source, batch_ids, shrink, train_batches
from forec_jax.data.published import published_name
from forec_jax.data.splits import Split, list_sha256
from forec_jax.evaluation import Buckets, Evaluation, Evaluator, Predictor, ThresholdSweep, image_files, read_image
from forec_jax.locking import only_run_in
from forec_jax.methods import TagClassifier, WsssRec
from forec_jax.parallel import barrier, is_primary, make_mesh, on_local_devices, replicated
from forec_jax.ranges import check_ranges
from forec_jax.training import (
    CheckpointError,
    Checkpoints,
    Interruption,
    Onlooker,
    Reporter,
    abstract_state,
    compile_step,
    create_state,
    holds_any,
    state_sharding,
    train,
)
from forec_jax.training.reporting import write_json
from forec_jax.visualize import overlay, save_index_png
from forec_jax.visualize.panel import Panel

log = logging.getLogger(__name__)

NETWORKS = ("teacher", "student")
CLASSIFIER_CONFIG = "classifier.json"
"""The config of the classifier that guided a run; its weights are in the run's own checkpoints."""
THRESHOLD = "mask_threshold.json"
"""The threshold chosen for a run's masks, with the split and the number of masks that it was chosen on."""
SPLIT = "split.json"
"""The SHA-256 of the images that a run is trained on, which its config names by the path of a list alone."""


class WorkdirError(ValueError):
    """A work directory that cannot be used; the message says why and what to do."""


class Run(NamedTuple):
    """A model read back from a work directory."""

    config: ConfigDict
    labels: build.Labels
    method: Method
    state: TrainState
    mesh: Mesh


def make_workdir(workdir: Path) -> None:
    """Makes the work directory where there is none. Raises WorkdirError where it cannot be used."""
    try:
        str(workdir.absolute()).encode()  # as the library that writes checkpoints will
    except UnicodeEncodeError as error:
        raise WorkdirError(
            f"--workdir={str(workdir)!a} has characters that this locale cannot spell; set PYTHONUTF8=1, or choose another"
        ) from error
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        probe = workdir / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise WorkdirError(f"--workdir={workdir} cannot be written to ({error.strerror}); choose another") from error


def start(workdir: Path, c: ConfigDict, labels: build.Labels, split: Split) -> None:
    """Writes what a run is to the work directory, or checks that config and images are those of the run already there.

    As long as that run has no checkpoint there is nothing to go on from: it failed at its start, and may be mended.
    """
    stored = workdir / "config.json"
    content = json.loads(c.to_json())
    if stored.exists() and holds_any(workdir / "checkpoints"):
        check_same_config(json.loads(read_config(stored).to_json()), content, workdir)
        check_same_images(split, c, workdir)
    write_json(workdir / SPLIT, image_sums(split))
    write_json(stored, content)
    write_json(workdir / "labels.json", labels._asdict())


def image_sums(split: Split) -> dict[str, str]:
    """The SHA-256 of the images that are trained on, by the part of the split; where tags are learned from, of those."""
    return {"labelled": split.sha256, "unlabelled": list_sha256(split.unlabelled)}


@contextmanager
def damage_named(path: Path, remedy: str) -> Iterator[None]:
    """Turns what a damaged JSON file raises, read and taken apart inside, into a WorkdirError that names file and remedy."""
    try:
        yield
    except (ValueError, AttributeError, KeyError, TypeError) as error:
        raise WorkdirError(f"{path} is damaged ({error}); {remedy}") from error


def read_config(path: Path) -> ConfigDict:
    """The config of a run. Options that came with a later version have their defaults, which keep to what was done.

    Raises WorkdirError where it cannot be read, or has options that this version does not know.
    """
    c, tasks = defaults(), auxiliary_defaults()
    with damage_named(path, "restore it, or start anew in another --workdir"):
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        stored = set(flat(content))
        c.auxiliary.update({task: tasks[task] for task in content["auxiliary"] if task in tasks})
    if unknown := sorted(stored - set(flat(c.to_dict()))):
        raise WorkdirError(
            f"{path} has options that forec_jax {forec_jax.__version__} does not know ({', '.join(unknown)}): it was "
            "written by another version; go on with that one, or start anew in another --workdir"
        )
    c.update(content)
    return c


REPORTING_KEYS = (
    "log_every",
    "evaluate_every",
    "checkpoint_every",
    "data.workers",
    "data.root",
    "data.prepared",
    "data.on_corrupt",
    "eval.batch",
    "eval.bucket",
    "eval.pictures",
    "mesh.fsdp",
    "on_nan",
)
"""Keys that may change between the parts of a resumed run: they change nothing that is trained, or, like on_nan and
data.on_corrupt, only what would end the run otherwise."""


def check_same_config(stored: dict[str, Any], given: dict[str, Any], workdir: Path) -> None:
    """Raises WorkdirError where a run is resumed with options that would train something else."""
    old, new = flat(stored), flat(given)
    differing = sorted(
        key for key in old.keys() | new.keys() if old.get(key) != new.get(key) and not key.startswith(REPORTING_KEYS)
    )
    if differing:
        changes = ", ".join(f"{key} was {old.get(key)!r}, is {new.get(key)!r}" for key in differing[:5])
        raise WorkdirError(f"--workdir={workdir} holds a run with another config ({changes}); choose another --workdir")


def check_same_images(split: Split, c: ConfigDict, workdir: Path) -> None:
    """Raises WorkdirError where a run is resumed on other images; one of an earlier version does not say which it had."""
    stored = workdir / SPLIT
    if not stored.exists():
        return
    with damage_named(stored, "remove it if the lists of images are as they were"):
        before = json.loads(stored.read_text(encoding="utf-8"))
        changed = [f"data.{part}={c.data[part]!r}" for part, sums in image_sums(split).items() if before[part] != sums]
    if changed:
        raise WorkdirError(
            f"--workdir={workdir} holds a run on other images than those of {' and '.join(changed)} now; put the list "
            "back as it was, or choose another --workdir"
        )


def run_training(c: ConfigDict, workdir: Path) -> int | None:
    """Trains by the config in `workdir`, going on from its last checkpoint; returns the signal that ended it, if any.

    Raises LockedError where another run is using `workdir`. Of several processes the first one writes everything but the
    checkpoints, which all write.
    """
    with ExitStack() as stack:
        if is_primary():
            make_workdir(workdir)
            stack.enter_context(only_run_in(workdir))
        return train_in(workdir, c)


def train_in(workdir: Path, c: ConfigDict) -> int | None:
    """`run_training` in a work directory that is there, and is this run's alone."""
    check_ranges(flat(c.to_dict()))
    mesh = build.build_mesh(c)
    data = build.build_training_data(c)
    c, labels = build.with_epoch(c, data), build.labels_of(data.dataset)
    method = build.build_method(c, labels, classifier=trained_classifier(c, labels), mesh=mesh)
    if is_primary():
        start(workdir, c, labels, data.split)
        if c.method.classifier:
            write_json(workdir / CLASSIFIER_CONFIG, json.loads((Path(c.method.classifier) / "config.json").read_text()))
    meet(workdir)
    checkpoints = Checkpoints(workdir / "checkpoints")
    state = first_or_resumed(c, method, checkpoints, mesh)
    first_step = int(jax.device_get(state.step))
    reporter = (Reporter if is_primary() else Onlooker)(
        workdir, steps=c.steps, first_step=first_step, images_per_step=sum(c.batch.values())
    )
    stream = build.build_stream(c, data)
    examples = pictured(data.validation, c.eval.pictures)
    predicts = build.build_predicts(c, method)
    pictures = Panel(method, predicts, palette_of(labels), examples, c.eval.bucket, build.pixel_space(c))
    evaluator = build.build_evaluator(c, method, labels, mesh)
    log.info("the first step takes longer: it compiles the program, a minute or so on a CPU")
    with Interruption() as interruption:
        try:
            state, stopped_by = train(
                state,
                first_step=first_step,
                step=compile_step(
                    method,
                    build.build_optimizer(c),
                    seed=c.seed,
                    accumulate=c.accumulate,
                    mesh=mesh,
                    wrap=build.build_guard(c),
                ),
                batches=build_batches(c, stream, first_step),
                batch_ids=lambda step: batch_ids(**stream, step=step),
                evaluate=make_evaluate(evaluator, data.validation, pictures, reporter, mesh),
                is_best=lambda results: is_best(results, reporter.events),
                schedule=build.build_schedule(c),
                checkpoints=checkpoints,
                reporter=reporter,
                interruption=interruption,
                mesh=mesh,
            )
        except BaseException:
            if jax.process_count() == 1:  # of several, one that is gone would be waited for
                close_after_error(checkpoints)
            raise
        finally:
            reporter.close()
        checkpoints.close()
    shown = shown_state(mesh, state)
    if is_primary() and stopped_by is None:
        pictures.save(shown, workdir / "pictures" / "last.png")
        write_json(workdir / "summary.json", summary(c, data, labels, reporter.events))
    return stopped_by


def close_after_error(checkpoints: Checkpoints) -> None:
    """Closes the checkpoints of a training that an error ended; that error is told, so one of their own is a warning."""
    try:
        checkpoints.close()
    except CheckpointError as error:
        log.warning("%s", error)


def meet(workdir: Path) -> None:
    """Waits for process 0 to have made the work directory. Raises WorkdirError where this process does not see it."""
    if jax.process_count() == 1:
        return
    barrier("workdir")
    if not (workdir / "config.json").exists():
        raise WorkdirError(
            f"--workdir={workdir} is not there on {socket.gethostname()}: it must be on a disk that all machines share"
        )


def shown_state(mesh: Mesh, state: TrainState) -> TrainState:
    """What pictures need of a state, on this process's devices; every process must call it."""
    return on_local_devices(mesh, state._replace(opt_state=(), memory=()))


def first_or_resumed(c: ConfigDict, method: Method, checkpoints: Checkpoints, mesh: Mesh) -> TrainState:
    """The last checkpoint's state, or a new one."""
    tx = build.build_optimizer(c)
    lies = state_sharding(method, tx, c.seed, mesh)
    state = checkpoints.restore_last(abstract_state(method, tx, c.seed, lies))
    if state is None:
        return create_state(method, tx, c.seed, lies)
    step = int(jax.device_get(state.step))
    log.info("going on from step %d of %s", step, checkpoints.folder)
    checkpoints.drop_after(step)
    return state


def build_batches(c: ConfigDict, stream: Mapping[str, Any], first_step: int) -> Iterator[Batch]:
    """This process's rows of the training batches from `first_step` on."""
    return train_batches(
        **stream,
        geometry=build.build_geometry(c),
        start_step=first_step,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        workers=c.data.workers,
        on_corrupt=build.choose("data.on_corrupt", c.data.on_corrupt, ("raise", "skip")),
    )


def make_evaluate(
    evaluator: Evaluator, source: Source, pictures: Panel, reporter: Reporter, mesh: Mesh
) -> Callable[[TrainState, int, Callable[[], bool]], dict[str, Any]]:
    """What the loop calls to evaluate: scores both networks on `source`, and shows the pictures."""

    def evaluate(state: TrainState, step: int, stop: Callable[[], bool]) -> dict[str, Any]:
        shown = shown_state(mesh, state)
        if is_primary() and (picture := pictures.draw(shown)) is not None:
            reporter.picture(step, "examples", picture)
        return evaluate_networks(evaluator, state, source, stop)

    return evaluate


def evaluate_networks(
    evaluator: Evaluator, state: TrainState, source: Source, stop: Callable[[], bool]
) -> dict[str, Any]:
    """Teacher's (where there is one) and student's mIoU and per-class IoU; NaN becomes None, as JSON has no NaN.

    Raises Stopped where `stop` says so.
    """
    results: dict[str, Any] = {}
    for network in NETWORKS if state.teacher else ("student",):
        evaluation = evaluator(build.network_variables(state, network), source, stop)
        results[f"{network}_miou"] = evaluation.miou
        results[f"{network}_iou"] = [None if np.isnan(iou) else float(iou) for iou in evaluation.iou]
    return results


def score_key(results: Mapping[str, Any]) -> str:
    """What the best checkpoint is chosen by: the teacher's mIoU, or the student's where there is no teacher."""
    return "teacher_miou" if "teacher_miou" in results else "student_miou"


def evaluations(events: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The evaluation events among a run's events."""
    return [event for event in events if event["event"] == "evaluation"]


def is_best(results: Mapping[str, Any], events: Iterable[Mapping[str, Any]]) -> bool:
    """Whether an evaluation is better than all before it."""
    key = score_key(results)
    return results[key] > max((event[key] for event in evaluations(events)), default=-math.inf)


def summary(
    c: ConfigDict, data: build.TrainingData, labels: build.Labels, events: Iterable[Mapping[str, Any]]
) -> dict[str, Any]:
    """The result of a run with everything that it depends on."""
    scored = evaluations(events)
    content: dict[str, Any] = {
        "classes": list(labels.classes),
        "method": c.method.name,
        "auxiliary": sorted(c.auxiliary.keys()),
        "split": {
            "name": data.split.name,
            "sha256": data.split.sha256,
            "published": published_name(data.split.sha256),
            "labelled": len(data.split.labelled),
            "unlabelled": len(data.split.unlabelled),
            "tagged": len(data.split.tagged),
        },
        "seed": c.seed,
        "steps": c.steps,
        "protocol": build.protocol(c),
        "versions": {"jax": jax.__version__, "forec_jax": forec_jax.__version__},
    }
    if scored:
        key = score_key(scored[-1])
        best, last = max(scored, key=lambda event: event[key]), scored[-1]
        content |= {
            "best": {"step": best["step"], "miou": best[key]},
            "last": {"step": last["step"], "miou": last[key]},
            "student": {"step": last["step"], "miou": last["student_miou"]},
            "per_class": dict(zip(labels.classes, last[key.replace("miou", "iou")], strict=True)),
        }
    return content


def pictured(source: Source, count: int) -> list[Example]:
    """The first `count` examples, which are shown at each evaluation."""
    return [source[index] for index in range(min(count, len(source)))]


def load_run(workdir: Path, checkpoint: str) -> Run:
    """The model of a work directory; `checkpoint` is "last" or "best". Raises WorkdirError where there is none."""
    stored = workdir / "config.json"
    if not stored.exists():
        raise WorkdirError(f"--workdir={workdir} holds no run (no config.json); train one there first")
    c = read_config(stored)
    c.model.weights = ""  # the checkpoint holds every weight, and that file may be gone
    labels = read_labels(workdir / "labels.json")
    mesh = make_mesh()
    method = with_chosen_threshold(build.build_method(c, labels, classifier=kept_classifier(workdir, labels)), workdir)
    abstract = abstract_state(method, build.build_optimizer(c), c.seed, replicated(mesh))
    checkpoints = Checkpoints(workdir / "checkpoints", read_only=True)
    build.choose("--checkpoint", checkpoint, ("last", "best"))
    state = checkpoints.restore_best(abstract) if checkpoint == "best" else checkpoints.restore_last(abstract)
    checkpoints.close()
    if state is None:
        raise WorkdirError(f"--workdir={workdir} holds no {checkpoint} checkpoint yet; train longer")
    return Run(c, labels, method, state, mesh)


def trained_classifier(c: ConfigDict, labels: build.Labels) -> Network | None:
    """The network that method.classifier names; its `init` gives the trained variables. None where it names none.

    Raises WorkdirError where that run is no classifier, or knows other classes.
    """
    if not c.method.classifier:
        return None
    run = load_run(Path(c.method.classifier), "last")
    if not isinstance(run.method, TagClassifier):
        raise WorkdirError(
            f"method.classifier={c.method.classifier} holds a run of {run.config.method.name}; train a classifier by "
            "--config=configs/tags.py:classifier"
        )
    if run.labels.classes != labels.classes or run.labels.background_classes != labels.background_classes:
        raise WorkdirError(
            f"method.classifier={c.method.classifier} knows the classes {', '.join(run.labels.classes)}, this run has "
            f"{', '.join(labels.classes)}; train a classifier with the same data.name, data.tag and data.background"
        )
    (variables,) = jax.device_get(build.network_variables(run.state, "student")).values()
    return run.method.network._replace(init=lambda _: jax.tree.map(jnp.asarray, variables))


def kept_classifier(workdir: Path, labels: build.Labels) -> Network | None:
    """The form of the classifier that guided a stored run, whose weights are in the checkpoint; None where none did."""
    if not (workdir / CLASSIFIER_CONFIG).exists():
        return None
    c = read_config(workdir / CLASSIFIER_CONFIG)
    c.model.weights = ""
    return build.build_method(c, labels).networks["student"]


def with_chosen_threshold(method: Method, workdir: Path) -> Method:
    """The method with the threshold that `forec-jax threshold` chose for its masks, if it did."""
    if not isinstance(method, TagClassifier | WsssRec) or not (workdir / THRESHOLD).exists():
        return method
    with damage_named(workdir / THRESHOLD, "remove it, and have it chosen anew by forec-jax threshold"):
        chosen = json.loads((workdir / THRESHOLD).read_text(encoding="utf-8"))
        threshold, masks, split = float(chosen["threshold"]), chosen["masks"], chosen["split"]
    log.info("%s: mask threshold %.2f, chosen on %s masks of %s", workdir, threshold, masks, split)
    return dataclasses.replace(method, mask_threshold=threshold)


def choose_threshold(run: Run, workdir: Path, split: str, network: str) -> dict[str, Any]:
    """Chooses the threshold of a run's masks by mIoU on a split, and writes it where the other commands look for it.

    Raises WorkdirError for a run whose masks do not come from tags.
    """
    if not isinstance(run.method, TagClassifier | WsssRec):
        raise WorkdirError(f"{workdir} is a run of {run.config.method.name}, which has no mask threshold")
    if split == run.config.eval.split:
        log.warning(
            "the threshold is chosen on %s, on which the run is scored too: that score will be optimistic", split
        )
    rows = -(-run.config.eval.batch // run.mesh.size) * run.mesh.size
    sweep = ThresholdSweep(run.method, len(run.labels.classes), Buckets(run.config.eval.bucket, rows))
    source = build.build_dataset(run.config).source(split)
    mious = sweep(build.network_variables(run.state, network), source)
    best = max(mious, key=lambda threshold: mious[threshold])
    chosen = {
        "threshold": best,
        "masks": len(source),
        "split": split,
        "network": network,
        "step": int(run.state.step),
        "miou": {f"{threshold:.2f}": miou for threshold, miou in mious.items()},
    }
    write_json(workdir / THRESHOLD, chosen)
    return chosen


def read_labels(path: Path) -> build.Labels:
    """The classes, colours and background that a run was trained with. Raises WorkdirError where the file is damaged."""
    with damage_named(path, "rerun the training's command, which writes it anew"):
        content = json.loads(path.read_text(encoding="utf-8"))
        return build.Labels(
            classes=tuple(content["classes"]),
            palette=tuple(tuple(colour) for colour in content["palette"]),
            background_classes=tuple(content["background_classes"]),
        )


def palette_of(labels: build.Labels) -> np.ndarray:
    """u8[K,3]."""
    return np.asarray(labels.palette, np.uint8)


def evaluate_run(run: Run, split: str, network: str) -> Evaluation:
    """Scores a stored model on a split of its data set."""
    evaluator = build.build_evaluator(run.config, run.method, run.labels, run.mesh)
    source = build.build_dataset(run.config).source(split)
    return evaluator(build.network_variables(run.state, network), source)


def compare_runs(workdirs: Sequence[Path], splits: Sequence[str], network: str, checkpoint: str) -> str:
    """A table of mIoU in percent: a row a run, a column a split."""
    width = max(len(workdir.name) for workdir in workdirs)
    lines = [" " * width + "".join(f"{split:>20}" for split in splits)]
    for workdir in workdirs:
        run = load_run(workdir, checkpoint)
        scores = (evaluate_run(run, split, network).miou for split in splits)
        lines.append(f"{workdir.name:<{width}}" + "".join(f"{100 * score:20.2f}" for score in scores))
    return "\n".join(lines)


def file_examples(images: Path) -> Iterator[Example]:
    """An image file, or those of a folder, by their paths inside it, read as they are asked for.

    An image that cannot be used is passed over with a warning. Raises DataError where none is left.
    """
    root = images if images.is_dir() else images.parent
    found, reason = False, ""
    for file in image_files(images):
        try:
            example = Example(str(file.relative_to(root)), read_image(file))
        except DataError as error:
            reason = str(error)
            log.warning("%s", reason)
            continue
        found = True
        yield example
    if not found:
        raise DataError(reason)


def predict_run(run: Run, images: Path, out: Path, network: str) -> int:
    """Writes index PNGs and overlays of every image to `out`; returns their number."""
    predictor = Predictor(build.build_predicts(run.config, run.method), Buckets(run.config.eval.bucket, batch=1))
    written: set[str] = set()
    variables, palette = build.network_variables(run.state, network), palette_of(run.labels)
    for example in file_examples(images):
        (prediction,) = predictor(variables, [as_trained(run, example)])
        height, width = example.image.shape[:2]
        label = np.asarray(Image.fromarray(prediction.label).resize((width, height), Image.Resampling.NEAREST))
        target = unused_stem(Path(example.id), written)
        for folder in ("index", "overlay"):
            (out / folder / target).parent.mkdir(parents=True, exist_ok=True)
        save_index_png(out / "index" / f"{target}.png", label, palette)
        Image.fromarray(overlay(example.image, label, palette)).save(out / "overlay" / f"{target}.png")
    return len(written)


def as_trained(run: Run, example: Example) -> Example:
    """An example of one's own at the size at which the run sees its data set's images (data.longest_side)."""
    return shrink(example, run.config.data.longest_side) if run.config.data.longest_side else example


def unused_stem(name: Path, written: set[str]) -> str:
    """The name without its suffix; with it where another image (a.jpg, a.png) has taken that already."""
    stem = str(name.with_suffix(""))
    stem = stem if stem not in written else name.name.replace(".", "_")
    written.add(stem)
    return stem

"""Training in a work directory: built from a config, gone on with from its last checkpoint."""

import logging
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from forec_jax.config import check_options, chosen, labels_in_both, method_entry
from forec_jax.contracts import Method, TrainState
from forec_jax.data import Example, Source
from forec_jax.evaluation import Evaluator
from forec_jax.experiment import build, contents, sources
from forec_jax.experiment import workdir as places
from forec_jax.experiment.load import guide_of, keep_guides
from forec_jax.experiment.results import forget_after
from forec_jax.experiment.summary import evaluate_networks, summary
from forec_jax.files import write_json
from forec_jax.locking import only_run_in
from forec_jax.options import OptionError
from forec_jax.parallel import is_primary, on_local_devices
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
from forec_jax.visualize.panel import Panel

log = logging.getLogger(__name__)


class Built(NamedTuple):
    """All objects of a training."""

    config: ConfigDict  # the options that apply, with those that follow from the data
    data: sources.TrainingData
    streams: sources.Streams
    method: Method
    mesh: Mesh


def run_training(c: ConfigDict, workdir: Path) -> int | None:
    """Trains by the config in `workdir`, going on from its last checkpoint; returns the signal that ended it, if any.

    Raises LockedError where another run is using `workdir`. Of several processes the first one writes everything but the
    checkpoints, which all write.
    """
    with ExitStack() as stack:
        if is_primary():
            places.make_workdir(workdir)
            stack.enter_context(only_run_in(workdir))
        return _train_in(workdir, c)


def build_training(c: ConfigDict, val_ids: tuple[str, ...] | None = None) -> Built:
    """Checks a config and builds what it describes; `val_ids` are the validation images of a run that is there.

    Raises OptionError or DataError for what cannot be used.
    """
    check_options(c)
    c = with_absolute_paths(chosen(c))
    check_rows(c)
    mesh = build.build_mesh(c)
    data = sources.build_training_data(c, val_ids)
    c = build.with_epoch(c, sources.epoch_of(c, data))
    weights = sources.frequency_weights(c, data)
    method = build.build_method(c, data.dataset.labels, guide=guide_of(c), mesh=mesh, frequency_weights=weights)
    return Built(c, data, sources.build_streams(c, data), method, mesh)


def with_absolute_paths(c: ConfigDict) -> ConfigDict:
    """The config as it is stored: it names the same files from any folder."""
    for block, key in ((c, "plugin"), (c.data, "root"), (c.data, "prepared")):
        if block[key]:
            block[key] = str(Path(block[key]).expanduser().absolute())
    return c


def check_rows(c: ConfigDict) -> None:
    """Raises OptionError where the method needs rows that the batch does not have, or masks have no rows."""
    if c.data.pseudo and not c.batch.pseudo:
        raise OptionError(
            "data.pseudo is of no use with batch.pseudo=0: set batch.pseudo above 0, or leave data.pseudo out"
        )
    for part in sorted(method_entry(c).needs):
        if not c.batch[part] and not (part == "unlabelled" and c.data.partial and not labels_in_both(c)):
            raise OptionError(
                f"method.name={c.method.name!r} needs {part} rows: set batch.{part} above 0"
                + (", or choose the variant supervised, which needs none" if part == "unlabelled" else "")
            )


def warn_of_random_values(c: ConfigDict) -> None:
    """Says in the log where an encoder would keep the random values that it is drawn with."""
    if c.model.freeze and not c.model.weights:
        log.warning(
            "model.freeze=%r without model.weights: the encoder keeps its random values, and the heads learn from what "
            "these make of an image; name weights, or leave model.freeze empty",
            c.model.freeze,
        )


def _train_in(workdir: Path, c: ConfigDict) -> int | None:
    """`run_training` in a work directory that is there, and is this run's alone."""
    built = build_training(c, _resumed_val(workdir))
    if is_primary():
        _begin_run(workdir, built)
    places.meet(workdir)
    pictures = _build_panel(built)  # an image that cannot be read is an error before anything is opened
    checkpoints = Checkpoints(workdir / "checkpoints")
    state = _first_or_resumed(built, checkpoints)
    first_step = int(jax.device_get(state.step))
    if is_primary():
        forget_after(workdir, first_step)
    reporter = (Reporter if is_primary() else Onlooker)(
        workdir,
        steps=built.config.steps,
        first_step=first_step,
        images_per_step=sum(built.streams.rows.values()),
        classes=built.data.dataset.classes,
        threshold=getattr(built.method, "threshold", None),
        start=getattr(built.method, "start", 0),
        rate=build.build_rate(built.config),
    )
    if first_step < built.config.steps:
        log.info("the first step takes longer: it compiles the program, a minute or so on a CPU")
    else:
        log.info("%s is finished: %d steps. %s", workdir, first_step, places.GO_ON.format(workdir=workdir))
    with Interruption() as interruption:
        try:
            state, stopped_by = _train_built(built, state, first_step, pictures, checkpoints, reporter, interruption)
        except BaseException:
            if jax.process_count() == 1:  # of several, one that is gone would be waited for
                _close_after_error(checkpoints)
            raise
        finally:
            reporter.close()
        checkpoints.close()
    shown = _shown_state(built.mesh, state)
    if is_primary() and stopped_by is None:
        pictures.save(shown, workdir / "pictures" / "last.png")
        write_json(workdir / places.SUMMARY, summary(built.config, built.data, reporter.events))
    return stopped_by


def _resumed_val(workdir: Path) -> tuple[str, ...] | None:
    """The validation images of the run in `workdir`, where there is something to go on from."""
    return places.stored_val(workdir) if holds_any(workdir / "checkpoints") else None


def _begin_run(workdir: Path, built: Built) -> None:
    """Writes what a run is to the work directory. Raises WorkdirError where the run already there is another."""
    c, data = built.config, built.data
    places.check_same_run(workdir, c, data.split)
    warn_of_random_values(c)
    _check_same_data(workdir, built)
    places.begin(workdir, c, data.dataset.labels, data.split, val_of(data))
    if contents.stored_contents(workdir) is None:
        contents.keep_contents(workdir, contents.contents_of(data, c.eval.split))
    keep_guides(c, workdir)


def _check_same_data(workdir: Path, built: Built) -> None:
    """Raises WorkdirError where a run would go on with other classes, images or masks than it began with.

    As long as it has no checkpoint nothing was learned from them, and what is there now is what it begins with.
    """
    if not holds_any(workdir / "checkpoints"):
        (workdir / contents.CONTENTS).unlink(missing_ok=True)
        return
    if (workdir / "labels.json").exists():
        labels, what = places.read_labels(workdir / "labels.json"), f"--workdir={workdir}: the run"
        contents.check_same_classes(labels, built.data.dataset.labels, what)
        contents.check_same_background(labels, built.data.dataset.labels, what)
    now = contents.contents_of(built.data, built.config.eval.split)
    if changed := contents.check_same_contents(workdir, now, built.config.data.on_change):
        log.warning("%s; it goes on, as data.on_change says", changed)


def val_of(data: sources.TrainingData) -> tuple[str, ...]:
    """The ids of the split val; none where the data set has no such split."""
    return tuple(data.dataset.sources["val"].ids) if "val" in data.dataset.sources else ()


def _train_built(
    built: Built,
    state: TrainState,
    first_step: int,
    pictures: Panel,
    checkpoints: Checkpoints,
    reporter: Reporter,
    interruption: Interruption,
) -> tuple[TrainState, int | None]:
    """Runs the loop from `state` on; returns the last state and the signal that ended it, if any."""
    c, mesh = built.config, built.mesh
    evaluator = build.build_evaluator(c, built.method, built.data.dataset.labels, mesh)
    return train(
        state,
        first_step=first_step,
        step=compile_step(
            built.method,
            build.build_optimizer(c),
            seed=c.seed,
            accumulate=c.accumulate,
            mesh=mesh,
            wrap=build.build_guard(c),
        ),
        batches=built.streams.batches(first_step, jax.process_index(), jax.process_count()),
        batch_ids=built.streams.ids,
        evaluate=_make_evaluate(evaluator, built.data.validation, pictures, reporter, mesh),
        schedule=build.build_schedule(c),
        checkpoints=checkpoints,
        reporter=reporter,
        interruption=interruption,
        mesh=mesh,
    )


def _close_after_error(checkpoints: Checkpoints) -> None:
    """Closes the checkpoints of a training that an error ended; that error is told, so one of their own is a warning."""
    try:
        checkpoints.close()
    except CheckpointError as error:
        log.warning("%s", error)


def _shown_state(mesh: Mesh, state: TrainState) -> TrainState:
    """What pictures need of a state, on this process's devices; every process must call it."""
    return on_local_devices(mesh, state._replace(opt_state=(), memory=()))


def _first_or_resumed(built: Built, checkpoints: Checkpoints) -> TrainState:
    """The last checkpoint's state, or a new one."""
    c, method = built.config, built.method
    tx = build.build_optimizer(c)
    sharding = state_sharding(method, tx, c.seed, built.mesh)
    state = checkpoints.restore_last(abstract_state(method, tx, c.seed, sharding))
    if state is None:
        return create_state(method, tx, c.seed, sharding)
    step = int(jax.device_get(state.step))
    log.info("going on from step %d of %s", step, checkpoints.folder)
    checkpoints.drop_after(step)
    return state


def _build_panel(built: Built) -> Panel:
    """What shows the first validation images at each evaluation."""
    c, method = built.config, built.method
    examples = _pictured(built.data.validation, c.eval.pictures)
    labels = built.data.dataset.labels
    return Panel(method, build.build_predicts(c, method), labels, examples, c.eval.bucket, build.pixel_space(c))


def _pictured(source: Source, count: int) -> list[Example]:
    """The first `count` examples, which are shown at each evaluation."""
    return [source[index] for index in range(min(count, len(source)))]


def _make_evaluate(
    evaluator: Evaluator, source: Source, pictures: Panel, reporter: Reporter, mesh: Mesh
) -> Callable[[TrainState, int, Callable[[], bool]], dict[str, Any]]:
    """What the loop calls to evaluate: scores both networks on `source`, and shows the pictures."""

    def evaluate(state: TrainState, step: int, stop: Callable[[], bool]) -> dict[str, Any]:
        shown = _shown_state(mesh, state)
        if is_primary() and (picture := pictures.draw(shown)) is not None:
            reporter.picture(step, "examples", picture)
        return evaluate_networks(evaluator, state, source, stop)

    return evaluate

"""Models read back from work directories."""

import contextlib
import dataclasses
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from forec_jax.config import method_entry
from forec_jax.contracts import Method, Thresholded, TrainState, Variables
from forec_jax.data import Dataset, Labels
from forec_jax.evaluation import ThresholdSweep
from forec_jax.experiment import build, sources
from forec_jax.experiment.contents import check_same_classes
from forec_jax.experiment.taken import is_taken, taken_state
from forec_jax.experiment.workdir import WorkdirError, damage_named, read_config, read_labels, stored_val
from forec_jax.files import read_json, write_json
from forec_jax.methods.entry import Guide
from forec_jax.methods.parts.heads import STUDENT
from forec_jax.options import choose
from forec_jax.parallel import make_mesh, replicated
from forec_jax.training import Checkpoints, abstract_state

log = logging.getLogger(__name__)

THRESHOLD = "mask_threshold.json"
"""The threshold chosen for a run's masks, with the split and the number of masks that it was chosen on."""


class Stored(NamedTuple):
    """What a work directory says of its run, without the model."""

    workdir: Path
    config: ConfigDict
    labels: Labels
    val_ids: tuple[str, ...] | None  # of its validation images; None: as the data set says

    def dataset(self) -> Dataset:
        """The data set that it was trained on. Raises WorkdirError where that is gone, or has other classes now."""
        root = self.config.data.root
        if root and not Path(root).expanduser().exists():
            raise WorkdirError(
                f"{self.workdir}: the run's data set was in {root}, which is not there; say where it lies now: "
                "--data_root=FOLDER"
            )
        # Before the images are read: other classes mean that a folder is packed anew.
        check_same_classes(self.labels, sources.planned_labels(self.config), f"{self.workdir}: the run")
        return sources.build_dataset(self.config, self.val_ids)


class Run(NamedTuple):
    """A model read back from a work directory."""

    config: ConfigDict
    labels: Labels
    method: Method
    state: TrainState
    mesh: Mesh
    val_ids: tuple[str, ...] | None = None  # of its validation images; None: as the data set says
    workdir: Path = Path()

    def dataset(self) -> Dataset:
        """The data set that it was trained on; raises as `Stored.dataset` does."""
        return Stored(self.workdir, self.config, self.labels, self.val_ids).dataset()


def by_name(workdirs: Sequence[Path]) -> dict[str, Path]:
    """Work directories by their folders' names, or by their paths where two names are the same; each once."""
    different = list(dict.fromkeys(workdirs))
    unique = len({workdir.name for workdir in different}) == len(different)
    return {workdir.name if unique else str(workdir): workdir for workdir in different}


def read_stored(workdir: Path, root: str | None = None) -> Stored:
    """What a work directory says of its run. Raises WorkdirError where there is none.

    `root` is where its data set lies now, if it was moved.
    """
    if not (workdir / "config.json").exists():
        raise WorkdirError(f"--workdir={workdir} holds no run (no config.json); train one there first")
    c = read_config(workdir / "config.json")
    if root is not None:
        c.data.root = str(Path(root).expanduser().absolute())
    return Stored(workdir, c, read_labels(workdir / "labels.json"), stored_val(workdir))


def load_run(workdir: Path, checkpoint: str | int, root: str | None = None) -> Run:
    """The model of a work directory, or of a folder that `export` wrote as safetensors.

    `checkpoint` is "last", "best", or the step of a milestone; an exported model is what it is.

    `root` is where its data set lies now, if it was moved. Raises WorkdirError where there is no such checkpoint.
    """
    if not isinstance(checkpoint, int):
        choose("--checkpoint", checkpoint, ("last", "best"))
    _, c, labels, val_ids = read_stored(workdir, root)
    mesh = make_mesh()
    method = with_chosen_threshold(stored_method(c, labels, workdir), workdir)
    if is_taken(workdir):
        state = jax.device_put(taken_state(workdir, method), replicated(mesh))
        return Run(c, labels, method, state, mesh, val_ids, workdir)
    abstract = abstract_state(method, build.build_optimizer(c), c.seed, replicated(mesh))
    with contextlib.closing(Checkpoints(workdir / "checkpoints", read_only=True)) as checkpoints:
        state = restored(checkpoints, checkpoint, abstract)
    if state is None:
        best = checkpoint == "last" and any((workdir / "checkpoints" / "best").glob("step_*"))
        remedy = "choose --checkpoint=best" if best else "train longer"
        raise WorkdirError(f"--workdir={workdir} holds no {checkpoint} checkpoint yet; {remedy}")
    return Run(c, labels, method, state, mesh, val_ids, workdir)


def restored(checkpoints: Checkpoints, checkpoint: str | int, abstract: TrainState) -> TrainState | None:
    """The state of a checkpoint, None where there is none."""
    if isinstance(checkpoint, int):
        return checkpoints.restore_kept(abstract, checkpoint)
    return checkpoints.restore_best(abstract) if checkpoint == "best" else checkpoints.restore_last(abstract)


def run_weights(workdir: Path, network: str, checkpoint: str) -> Variables:
    """What another training starts from: a run's "teacher" (its student where there is none) or "student", in its "last" or
    "best" state. Of two students or teachers it is the first; critics are none."""
    named: dict[str, Variables] = build.network_variables(load_run(workdir, checkpoint).state, network)
    found: Variables = jax.device_get(named.get(STUDENT, next(iter(named.values()))))
    return found


def stored_method(c: ConfigDict, labels: Labels, workdir: Path) -> Method:
    """The method of a stored run, whose weights are in its checkpoint, as are those of the runs that it learned from."""
    c.model.weights = ""  # that file may be gone

    def kept_guide(role: str) -> Guide | None:
        file = workdir / f"{role}.json"
        if not file.exists():
            return None
        guiding = read_config(file)
        guiding.model.weights = ""
        return Guide(str(file), guiding.method.name, build.build_method(guiding, labels), labels, None)

    return build.build_method(c, labels, guide=kept_guide)


def guides(c: ConfigDict) -> dict[str, str]:
    """The work directories of the runs that a config's method learns from, by role."""
    named = method_entry(c).guides(build.method_options(c))
    return {role: workdir for role, workdir in named.items() if workdir}


def guide_of(c: ConfigDict) -> Callable[[str], Guide | None]:
    """What gives the trained runs that a config's method learns from, by role."""
    workdirs = guides(c)

    def guide(role: str) -> Guide | None:
        if role not in workdirs:
            return None
        run = load_run(Path(workdirs[role]), "last")
        (variables,) = jax.device_get(build.network_variables(run.state, "student")).values()
        return Guide(workdirs[role], run.config.method.name, run.method, run.labels, variables)

    return guide


def keep_guides(c: ConfigDict, workdir: Path) -> None:
    """Writes the configs of the runs that a training learns from into its own work directory: they may be gone later."""
    for role, guiding in guides(c).items():
        write_json(workdir / f"{role}.json", read_json(Path(guiding) / "config.json"))


def with_chosen_threshold(method: Method, workdir: Path) -> Method:
    """The method with the threshold that `forec-jax threshold` chose for its masks, if it did."""
    if not isinstance(method, Thresholded) or (chosen := stored_threshold(workdir)) is None:
        return method
    log.info("%s: mask threshold %.2f, chosen on %s masks of %s", workdir, *chosen)
    changed: Any = dataclasses.replace(method, mask_threshold=chosen.threshold)  # type: ignore[type-var]
    return changed


class ChosenThreshold(NamedTuple):
    """What `forec-jax threshold` chose for a run's masks."""

    threshold: float
    masks: int  # that it was chosen on
    split: str


def stored_threshold(workdir: Path) -> ChosenThreshold | None:
    """The threshold that was chosen for a run's masks, or None. Raises WorkdirError for a file that does not tell it."""
    if not (workdir / THRESHOLD).exists():
        return None
    with damage_named(workdir / THRESHOLD, "remove it, and have it chosen anew by forec-jax threshold"):
        chosen = read_json(workdir / THRESHOLD)
        return ChosenThreshold(float(chosen["threshold"]), chosen["masks"], chosen["split"])


def choose_threshold(run: Run, workdir: Path, split: str, network: str) -> dict[str, Any]:
    """Chooses the threshold of a run's masks by mIoU on a split, and writes it where the other commands look for it.

    Raises WorkdirError for a run whose masks do not come from tags.
    """
    if not isinstance(run.method, Thresholded):
        raise WorkdirError(f"{workdir} is a run of {run.config.method.name}, which has no mask threshold")
    if split == run.config.eval.split:
        log.warning(
            "the threshold is chosen on %s, on which the run is scored too: that score will be optimistic", split
        )
    rows = -(-run.config.eval.batch // run.mesh.size) * run.mesh.size
    sweep = ThresholdSweep(run.method, len(run.labels.classes), build.build_buckets(run.config, run.method, rows))
    source = run.dataset().scored(split)
    mious = sweep(build.network_variables(run.state, network), source)
    best = max(mious, key=lambda threshold: mious[threshold])
    found = {
        "threshold": best,
        "masks": len(source),
        "split": split,
        "network": network,
        "step": int(run.state.step),
        "miou": {f"{threshold:.2f}": miou for threshold, miou in mious.items()},
    }
    write_json(workdir / THRESHOLD, found)
    return found


def palette_of(labels: Labels) -> np.ndarray:
    """u8[K,3]."""
    return np.asarray(labels.palette, np.uint8)

"""Checkpoints: the last ones, and the best by validation mIoU. The only file that imports orbax.

A state is stored flat, path by path, beside its layout (path -> shape and type), so that a checkpoint of another
architecture is told apart from a damaged one before any array is read. Checksums of the files are written beside them,
before the checkpoint appears under its name.
"""

import functools
import logging
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from forec_jax.contracts import TrainState
from forec_jax.parallel import agreed
from forec_jax.training.checksums import CHECKSUMS_FILE, first_damage, write_checksums
from forec_jax.training.scores import Best

log = logging.getLogger(__name__)

Layout = dict[str, str]
KEPT = 2  # the last one, and the one before it in case the last turns out to be damaged
UNFINISHED = "*.orbax-checkpoint-tmp*"


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; the message says which, why and what to do."""


class _UnreadableError(CheckpointError):
    """Checkpoints none of which can be read."""


def holds_any(folder: Path) -> bool:
    """Whether a run's folder of checkpoints holds one, of the last state or of the best, finished or not."""
    return any(folder.glob("*/step_*"))


def newest_step(folder: Path, which: str) -> int | None:
    """The step of the newest checkpoint in `folder`/`which`; None where there is none. No checkpoint is opened."""
    steps = (path.name.removeprefix("step_") for path in (folder / which).glob("step_*"))
    return max((int(step) for step in steps if step.isdecimal()), default=None)


def flatten(state: TrainState) -> dict[str, Any]:
    """The state's leaves by path."""
    leaves, _ = jax.tree.flatten_with_path(state)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def layout(state: TrainState) -> Layout:
    """Each leaf's type and shape, by path."""
    return {path: f"{leaf.dtype}{list(leaf.shape)}" for path, leaf in flatten(state).items()}


class Checkpoints:
    """The checkpoints of a run, in `folder`/last and `folder`/best. Saving is asynchronous; `close` waits for it.

    With one process a save that fails (a full disk) is a warning, and training goes on: the checkpoints before it stay.
    For the last state the next save is the retry; a best one is lost, as its state is gone by the next step. With several
    processes a failed save is an error, as the others would wait for this one.
    """

    def __init__(self, folder: Path, *, read_only: bool = False) -> None:
        """`read_only` leaves the folder as it is: another process may be writing a checkpoint there."""
        self.folder, self._read_only = folder.absolute(), read_only
        self._last, self._best = (self._manager(name, read_only) for name in ("last", "best"))
        self._kept: ocp.CheckpointManager | None = None  # made when it is needed: few runs have milestones
        self._failures: dict[ocp.CheckpointManager, Exception] = {}  # of the newest save of each

    def _manager(self, name: str, read_only: bool, most: int | None = KEPT) -> ocp.CheckpointManager:
        options = ocp.CheckpointManagerOptions(
            max_to_keep=most,
            create=not read_only,
            cleanup_tmp_directories=not read_only,
            step_prefix="step",
            # Both managers may save one step at a time: without names of their own several processes would mix them up.
            multiprocessing_options=ocp.options.MultiprocessingOptions(barrier_sync_key_prefix=name),
            async_options=ocp.AsyncOptions(post_finalization_callback=functools.partial(_seal, self.folder / name)),
        )
        return ocp.CheckpointManager(self.folder / name, item_names=("state", "layout", "score"), options=options)

    def save_last(self, state: TrainState, step: int) -> None:
        """Saves the state after `step` steps, unless it is there already."""
        self._save(self._last, state, step)

    def save_best(self, state: TrainState, step: int, score: float | None = None) -> None:
        """Saves the state as the best so far, with its score (`training.scores`): the best does not depend on a log."""
        self._save(self._best, state, step, score=ocp.args.JsonSave({"score": score}))

    def save_kept(self, state: TrainState, step: int) -> None:
        """Saves the state of a milestone, which stays, in `folder`/kept."""
        self._kept = self._kept or self._manager("kept", False, most=None)
        self._save(self._kept, state, step)

    def restore_kept(self, abstract: TrainState, step: int) -> TrainState | None:
        """The state of a milestone, or None where there is none.

        Raises CheckpointError where it is damaged, as no other state can stand for it, or where the architecture is another.
        """
        self._kept = self._kept or self._manager("kept", self._read_only, most=None)
        if step not in self._kept.all_steps():
            return None
        where = self._path(self._kept, step)
        if damage := first_damage(where):
            raise CheckpointError(f"milestone {where} is damaged ({damage}); train the run anew in another --workdir")
        return self._restore_step(self._kept, step, abstract)

    def _managers(self) -> tuple[ocp.CheckpointManager, ...]:
        return (self._last, self._best) if self._kept is None else (self._last, self._best, self._kept)

    def best_score(self) -> Best | None:
        """The best checkpoint's score; None where there is none, or one of an earlier version that does not know it."""
        if (step := self._best.latest_step()) is None:
            return None
        try:
            stored = self._best.restore(step, args=ocp.args.Composite(score=ocp.args.JsonRestore()))["score"]
            return Best(step, stored["score"])
        except Exception as error:  # orbax raises many kinds
            log.info("%s does not tell its score (%s)", self._path(self._best, step), short(error))
            return None

    def _save(self, manager: ocp.CheckpointManager, state: TrainState, step: int, **more: Any) -> None:
        if step in manager.all_steps():
            return
        self._finish(manager)
        if manager in self._failures:  # a thread of the failed save may have written on after it was tidied up
            self._remove_unfinished(manager)
        items = ocp.args.Composite(
            state=ocp.args.StandardSave(flatten(state)), layout=ocp.args.JsonSave(layout(state)), **more
        )
        try:
            manager.save(step, args=items, force=True)
            self._failures.pop(manager, None)
        except (OSError, ValueError) as error:
            self._failed(manager, error)

    def _finish(self, manager: ocp.CheckpointManager) -> None:
        """Waits for the manager's save, if there is one."""
        try:
            manager.wait_until_finished()
        except (OSError, ValueError) as error:  # tensorstore's errors are ValueErrors
            self._failed(manager, error)

    def _failed(self, manager: ocp.CheckpointManager, error: Exception) -> None:
        if jax.process_count() > 1:
            raise CheckpointError(f"{manager.directory}: a checkpoint cannot be written ({short(error)})") from error
        self._failures[manager] = error
        self._remove_unfinished(manager)  # it holds space that the next save needs
        manager.reload()  # it no longer counts the checkpoint that this one was to replace, and would never remove it
        log.warning(
            "%s: a checkpoint cannot be written (%s); training goes on without it. Free some space for the next",
            manager.directory,
            short(error),
        )

    def _remove_unfinished(self, manager: ocp.CheckpointManager) -> None:
        for unfinished in Path(manager.directory).glob(UNFINISHED):
            shutil.rmtree(unfinished, ignore_errors=True)

    def restore_last(self, abstract: TrainState) -> TrainState | None:
        """The newest readable state, or None where there is no checkpoint at all.

        A run whose last states are gone or damaged goes on from its best one, with a warning: it trains again what came
        after it. Where the folder is only read, the last one is what was asked for, and no other.

        Raises CheckpointError where checkpoints exist but none can be read, or the architecture is another.
        """
        if self._read_only or not self._best.all_steps():
            return self._restore(self._last, abstract)
        try:
            if (state := self._restore(self._last, abstract)) is not None:
                return state
            reason = f"{self._last.directory} holds no checkpoint"
        except _UnreadableError as error:
            reason = str(error)
        log.warning("%s: going on from the best one in %s", reason.partition(";")[0], self._best.directory)
        return self._restore(self._best, abstract)

    def restore_best(self, abstract: TrainState) -> TrainState | None:
        """The best state, or None; errors as `restore_last`."""
        return self._restore(self._best, abstract)

    def _restore(self, manager: ocp.CheckpointManager, abstract: TrainState) -> TrainState | None:
        steps = sorted(manager.all_steps(), reverse=True)
        for step in steps:
            if agreed(functools.partial(self._is_damaged, manager, step)):
                continue
            try:
                return self._restore_step(manager, step, abstract)
            except CheckpointError:
                raise
            except Exception as error:  # orbax and tensorstore raise many kinds for a damaged file
                if jax.process_count() > 1:  # the other processes may have read it: they cannot be told
                    raise
                if (self._path(manager, step) / CHECKSUMS_FILE).exists():  # its files are whole: it must not be dropped
                    raise
                self._warn_of_damage(manager, step, short(error))
        if steps:
            where = ", ".join(str(self._path(manager, step)) for step in steps)
            raise _UnreadableError(f"no checkpoint can be read ({where}); start anew in another --workdir")
        return None

    def _is_damaged(self, manager: ocp.CheckpointManager, step: int) -> bool:
        """Whether a file of the checkpoint is not as it was written; warns of it."""
        if damage := first_damage(self._path(manager, step)):
            self._warn_of_damage(manager, step, damage)
        return damage is not None

    def _warn_of_damage(self, manager: ocp.CheckpointManager, step: int, reason: str) -> None:
        log.warning("checkpoint %s is damaged (%s); trying the one before", self._path(manager, step), reason)

    def _restore_step(self, manager: ocp.CheckpointManager, step: int, abstract: TrainState) -> TrainState:
        stored = manager.restore(step, args=ocp.args.Composite(layout=ocp.args.JsonRestore()))["layout"]
        _check_layout(stored, layout(abstract), self._path(manager, step))
        items = ocp.args.Composite(state=ocp.args.StandardRestore(flatten(abstract)))
        leaves = manager.restore(step, args=items)["state"]
        return jax.tree.unflatten(jax.tree.structure(abstract), [leaves[path] for path in flatten(abstract)])

    def _path(self, manager: ocp.CheckpointManager, step: int) -> Path:
        return Path(manager.directory) / f"step_{step}"

    def drop_after(self, step: int) -> None:
        """Removes checkpoints newer than `step`, which are damaged if the run resumes from an older one."""
        for manager in self._managers():
            for newer in [s for s in manager.all_steps() if s > step]:
                manager.delete(newer)

    def wait(self) -> None:
        """Returns when every save has ended."""
        for manager in self._managers():
            self._finish(manager)

    def close(self) -> None:
        """Waits for the saves and ends the background threads. Raises CheckpointError where the last state was not saved.

        A best state that was not saved is a warning: no rerun would bring it back.
        """
        self.wait()
        for manager in self._managers():
            manager.close()
        if failure := self._failures.get(self._best):
            log.warning(
                "%s: the best checkpoint could not be written (%s); the newest one there: %s",
                self._best.directory,
                short(failure),
                in_words(self._best.latest_step(), none="none"),
            )
        if failure := self._failures.get(self._last):
            raise CheckpointError(
                f"{self._last.directory}: the last checkpoint could not be written ({short(failure)}); free space and "
                f"rerun the command: it goes on from {in_words(self._last.latest_step(), none='the start')}"
            ) from failure


def _seal(folder: Path) -> None:
    """Writes the checksums of the checkpoint that is about to appear in `folder` under its name."""
    for unfinished in folder.glob(UNFINISHED):
        write_checksums(unfinished)


def in_words(step: int | None, *, none: str) -> str:
    """A checkpoint's step, or `none` where there is no checkpoint."""
    return none if step is None else f"step {step}"


def short(error: Exception) -> str:
    """An error's first line, without the specification that tensorstore appends; its type where it says nothing."""
    line = str(error).partition("\n")[0].partition(" [tensorstore_spec")[0]
    return line or type(error).__name__


def _check_layout(stored: Layout, expected: Layout, where: Path) -> None:
    """Raises CheckpointError where a stored state is not of the model that the config describes."""
    if stored == expected:
        return
    differing = sorted(path for path in stored.keys() | expected.keys() if stored.get(path) != expected.get(path))
    raise CheckpointError(
        f"{where} is a checkpoint of another model or method: {len(differing)} arrays differ, "
        f"{describe(differing[:3], stored, expected)}; use the config it was made with, or another --workdir"
    )


def describe(paths: Iterable[str], stored: Layout, expected: Layout) -> str:
    """The differing arrays in words."""
    return "; ".join(f"{p} (stored {stored.get(p, 'none')}, expected {expected.get(p, 'none')})" for p in paths)

"""Runs that are stopped, killed, damaged and resumed."""

import contextlib
import dataclasses
import functools
import itertools
import json
import logging
import math
import re
import resource
import shutil
import signal
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

from forec_jax.augment import NoMixing
from forec_jax.contracts import (
    Batch,
    HeadOutput,
    HeadSpec,
    Labelled,
    Mean,
    Network,
    Stopped,
    Term,
    TrainState,
    Unlabelled,
    Variables,
)
from forec_jax.methods import PsMt, S4Gan, Supervised
from forec_jax.methods.prevmatch import SNAPSHOTS, PrevMatch
from forec_jax.options import OptionError
from forec_jax.parallel import make_mesh, replicated
from forec_jax.training import (
    CheckpointError,
    Checkpoints,
    NotFiniteError,
    Reporter,
    Schedule,
    abstract_state,
    compile_step,
    create_state,
    drop_not_finite,
    train,
    with_own_optimizers,
)
from forec_jax.training.checksums import CHECKSUMS_FILE
from forec_jax.training.loop import Interruption
from forec_jax.training.reporting import read_events
from forec_jax.training.scores import Best

SEED, STEPS = 5, 12
TX = optax.sgd(0.1, momentum=0.9)


def batch_of(step):
    """Batch n is a function of n."""
    rng = np.random.default_rng(step)
    image = rng.integers(0, 256, (4, 5, 5, 3), dtype=np.uint8)
    return Batch(
        Labelled(image, (image[..., 0] > 127).astype(np.int32), np.ones((4, 5, 5), bool), np.zeros(4, np.int32))
    )


def both_parts_of(step):
    """Labelled and unlabelled rows."""
    image = np.random.default_rng(step).integers(0, 256, (2, 2, 5, 5, 3), dtype=np.uint8)
    label = (image[0, ..., 0] > 127).astype(np.int32)
    valid, none = np.ones(label.shape, bool), np.zeros(2, np.int32)
    return Batch(Labelled(image[0], label, valid, none), Unlabelled(image[1], valid, none))


@dataclasses.dataclass(frozen=True)
class BreaksAt(Supervised):
    """A method with a term that is NaN at one step."""

    step: int = 0

    def loss(self, params, state, batch, key):
        terms, aux = super().loss(params, state, batch, key)
        broken = jnp.where(state.step == self.step, jnp.nan, 0.0)
        return terms | {"broken_loss": Term(Mean(broken, jnp.ones(())), 1.0)}, aux


def noisy_colour(key, image, valid):
    """Draws from the step's key, so that a resumed run must draw the same."""
    return jnp.clip(image + 0.1 * jax.random.normal(key, image.shape), 0, 1)


@pytest.fixture(scope="module")
def method(make_toy_network):
    return Supervised(network=make_toy_network(), colour=noisy_colour, mixing=NoMixing())


def unchanged(step):
    return step


def one_device():
    return make_mesh(devices=jax.devices()[:1])


@functools.cache
def begun(method, tx):
    """A run's first state. A step is given a copy, for it takes over the memory of what it is given."""
    return create_state(method, tx, SEED, replicated(one_device()))


@functools.cache
def compiled(method, tx, wrap):
    """The step, compiled once for all runs of a method."""
    return compile_step(method, tx, seed=SEED, accumulate=1, mesh=one_device(), wrap=wrap)


def run(
    workdir,
    method,
    *,
    steps=STEPS,
    stop_at=None,
    signal_at=None,
    signal_in=None,
    score=lambda step: step / 100,
    tx=TX,
    batch_of=batch_of,
    wrap=unchanged,
    milestones=(),
):
    """Trains in `workdir`, resuming; `stop_at` raises as a kill would, `signal_at` and `signal_in` (evaluation) SIGTERM."""
    workdir.mkdir(exist_ok=True)
    mesh = one_device()
    checkpoints = Checkpoints(workdir / "checkpoints")
    state = checkpoints.restore_last(abstract_state(method, tx, SEED, replicated(mesh)))
    if state is None:
        state = jax.device_put(begun(method, tx), replicated(mesh), may_alias=False)
    first = int(state.step)
    checkpoints.drop_after(first)
    reporter = Reporter(workdir, steps=steps, first_step=first, images_per_step=4)

    def batches():
        for step in itertools.count(first):
            if step == stop_at:
                checkpoints.wait()
                raise KeyboardInterrupt
            if step == signal_at:
                signal.raise_signal(signal.SIGTERM)
            yield batch_of(step)

    def evaluate(state, step, stop):
        if step == signal_in:
            signal.raise_signal(signal.SIGTERM)
        if stop():
            raise Stopped
        return {"teacher_miou": score(step)}

    with Interruption() as interruption:
        try:
            return train(
                state,
                first_step=first,
                step=compiled(method, tx, wrap),
                batches=batches(),
                batch_ids=lambda step: f"batch {step}",
                evaluate=evaluate,
                schedule=Schedule(
                    steps=steps, log_every=2, evaluate_every=6, checkpoint_every=3, milestones=milestones
                ),
                checkpoints=checkpoints,
                reporter=reporter,
                interruption=interruption,
                mesh=mesh,
            )
        finally:
            reporter.close()
            checkpoints.close()


def assert_equal(a, b):
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(np.asarray(x), np.asarray(y)), a, b)


def without_rates(events):
    return [{k: v for k, v in event.items() if k != "images_per_second"} for event in events]


def test_killed_at_three_moments_and_resumed_is_bit_equal(tmp_path, method):
    whole, _ = run(tmp_path / "whole", method)
    for stop_at in (4, 8, 11):
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "killed", method, stop_at=stop_at)
    resumed, _ = run(tmp_path / "killed", method)
    assert_equal(whole, resumed)
    events = [without_rates(read_events(tmp_path / name / "metrics.jsonl")) for name in ("whole", "killed")]
    # The first step of each part is not logged by its rule but once: compare the steps that every run logs.
    logged = [[e for e in part if e["step"] % 2 == 0 or e["event"] == "evaluation"] for part in events]
    assert logged[0] == logged[1]


def two_teachers(network):
    """Killed and resumed in the middle of a teacher's turn."""
    return PsMt(network, noisy_colour, NoMixing(), threshold=0.0, ramp=6, warmup=2, epoch=4), TX


def toy_critic():
    """A linear discriminator of the mean pixel, without BatchNorm like the real one."""

    def init(key):
        params = {"encoder": {"w": jax.random.normal(key, (6, 4))}, "score": {"w": jnp.ones(4)}}
        return Variables(params, {"encoder": {}, "score": {}})

    def encode(variables, pair, *, train, rng):
        return jnp.tanh(pair.mean((1, 2)) @ variables.params["encoder"]["w"]), variables.batch_stats

    def classify(variables, head, features, *, train, rng):
        return HeadOutput(features @ variables.params[head]["w"], features), variables.batch_stats

    return Network(init, encode, classify, (HeadSpec("score", 1),))


def with_discriminator(network):
    """A network without BatchNorm statistics, and an optimiser of its own."""
    tx = with_own_optimizers(TX, {"discriminator": optax.adam(1e-3)})
    return S4Gan(network, noisy_colour, NoMixing(), discriminator=toy_critic(), threshold=0.6, normaliser="kept"), tx


SNAPSHOTS_EVERY = 2


def with_snapshots(network):
    """Guided by its earlier selves, of which the first two come out of the checkpoint."""
    weights = {"threshold": 0.0, "guided_threshold": 0.0, "steps": STEPS}
    return PrevMatch(network, noisy_colour, NoMixing(), snapshots=5, every=SNAPSHOTS_EVERY, **weights), TX


def test_snapshots_of_earlier_selves_come_back_from_a_checkpoint(tmp_path, make_toy_network):
    """Killed at step 8, so that it goes on from step 6: the snapshots of steps 2 and 4 are those of the files."""
    method, tx = with_snapshots(make_toy_network())
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "killed", method, stop_at=8, tx=tx, batch_of=both_parts_of)
    state, _ = run(tmp_path / "killed", method, tx=tx, batch_of=both_parts_of)
    snapshots = state.memory[SNAPSHOTS]
    assert sorted(snapshots.step.tolist()) == list(range(SNAPSHOTS_EVERY, STEPS, SNAPSHOTS_EVERY))
    for kept in jax.tree.leaves(snapshots.variables.params):
        assert len(np.unique(kept, axis=0)) == len(kept)


@pytest.mark.parametrize(
    "make", [pytest.param(two_teachers, marks=pytest.mark.slow), with_discriminator, with_snapshots]
)
def test_killed_and_resumed_is_bit_equal_with_any_networks(tmp_path, make_toy_network, make):
    method, tx = make(make_toy_network())
    whole, _ = run(tmp_path / "whole", method, tx=tx, batch_of=both_parts_of)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "killed", method, stop_at=8, tx=tx, batch_of=both_parts_of)
    resumed, _ = run(tmp_path / "killed", method, tx=tx, batch_of=both_parts_of)
    assert_equal(whole, resumed)
    for name, first in begun(method, tx).params.items():
        assert not all(jax.tree.leaves(jax.tree.map(np.array_equal, first, whole.params[name]))), name


def test_a_signal_saves_and_the_next_run_goes_on(tmp_path, method):
    whole, _ = run(tmp_path / "whole", method)
    before = signal.getsignal(signal.SIGTERM)
    state, stopped_by = run(tmp_path / "stopped", method, signal_at=4)
    assert (int(state.step), stopped_by) == (5, signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) == before
    assert_equal(whole, run(tmp_path / "stopped", method)[0])


@pytest.mark.parametrize(("kind", "at"), [("signal_at", 5), ("signal_in", 6), ("signal_at", 11), ("signal_in", 12)])
def test_an_evaluation_that_a_signal_came_before_or_cut_short_is_made_by_the_next_run(tmp_path, method, kind, at):
    """Steps 6 and 12 are evaluated, and 12 is the last."""
    whole, _ = run(tmp_path / "whole", method)
    state, stopped_by = run(tmp_path / "stopped", method, **{kind: at})
    done = at + (kind == "signal_at")
    assert (int(state.step), stopped_by) == (done, signal.SIGTERM)
    assert evaluated(tmp_path / "stopped") == [step for step in (6, 12) if step < done]
    resumed, stopped_by = run(tmp_path / "stopped", method)
    assert stopped_by is None
    assert_equal(whole, resumed)
    assert evaluated(tmp_path / "stopped") == [6, 12]
    assert evaluated(tmp_path / "whole") == [6, 12]
    best = [sorted(p.name for p in (tmp_path / d / "checkpoints" / "best").iterdir()) for d in ("whole", "stopped")]
    assert best[0] == best[1]
    run(tmp_path / "stopped", method)
    assert evaluated(tmp_path / "stopped") == [6, 12]


def test_a_clock_that_goes_backwards_changes_nothing(tmp_path, method, monkeypatch):
    whole, _ = run(tmp_path / "whole", method)
    now = itertools.count(time.time(), -3600)
    monkeypatch.setattr(time, "time", lambda: float(next(now)))
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "back", method, stop_at=8)
    assert_equal(whole, run(tmp_path / "back", method)[0])
    rates = [
        event["images_per_second"]
        for event in read_events(tmp_path / "back" / "metrics.jsonl")
        if "images_per_second" in event
    ]
    assert all(rate > 0 for rate in rates)


def evaluated(workdir):
    return [event["step"] for event in read_events(workdir / "metrics.jsonl") if event["event"] == "evaluation"]


def test_signals_are_left_alone_in_another_thread(tmp_path, method):
    results = []
    thread = threading.Thread(target=lambda: results.append(run(tmp_path / "thread", method)))
    thread.start()
    thread.join()
    assert int(results[0][0].step) == STEPS


def test_nan_stops_with_step_and_term_and_leaves_the_checkpoint_before(tmp_path, method):
    broken = BreaksAt(network=method.network, colour=noisy_colour, mixing=NoMixing(), step=5)
    with pytest.raises(NotFiniteError, match=r"step 6: .*broken_loss=nan.*batch 5.*optim\.lr") as error:
        run(tmp_path / "nan", broken)
    assert "supervised_loss" not in str(error.value)
    assert sorted(p.name for p in (tmp_path / "nan" / "checkpoints" / "last").iterdir()) == ["step_3"]


def test_updates_that_are_not_finite_are_dropped_and_counted(tmp_path, method, caplog):
    broken = BreaksAt(network=method.network, colour=noisy_colour, mixing=NoMixing(), step=5)
    state, _ = run(tmp_path / "nan", broken, wrap=drop_not_finite)
    assert "step 6: broken_loss=nan, loss=nan; the update is dropped. The batch was batch 5" in caplog.text
    assert int(state.step) == STEPS
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.params))
    events = {e["step"]: e for e in read_events(tmp_path / "nan" / "metrics.jsonl") if e["event"] == "train"}
    assert [events[step]["dropped_updates"] for step in (4, 6, 12)] == [0, 1, 1]
    assert "loss" not in events[6]


def test_a_run_ends_when_nothing_but_dropped_updates_follow(tmp_path, method):
    @dataclasses.dataclass(frozen=True)
    class BreaksFrom(Supervised):
        def loss(self, params, state, batch, key):
            terms, aux = super().loss(params, state, batch, key)
            broken = jnp.where(state.step >= 2, jnp.inf, 0.0)
            return terms | {"broken_loss": Term(Mean(broken, jnp.ones(())), 1.0)}, aux

    broken = BreaksFrom(network=method.network, colour=noisy_colour, mixing=NoMixing())
    with pytest.raises(NotFiniteError, match=r"step 22: the 20th update in a row"):
        run(tmp_path / "nan", broken, steps=50, wrap=drop_not_finite)


def test_an_evaluation_that_fails_costs_no_steps(tmp_path, method):
    """An image of val that cannot be read, say: step 6 is due for both, and is kept before it is scored."""

    def score(step):
        raise ValueError(f"an image cannot be read at {step}")

    with pytest.raises(ValueError, match="cannot be read at 6"):
        run(tmp_path / "run", method, score=score)
    assert (tmp_path / "run" / "checkpoints" / "last" / "step_6").is_dir()
    again = []
    run(tmp_path / "run", method, score=lambda step: again.append(step) or 0.1)
    assert again[0] == 6  # the evaluation that is owed; nothing is trained twice


def test_a_milestone_that_a_kill_left_out_is_kept_when_the_run_goes_on(tmp_path, method):
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "run", method, stop_at=7)  # as if killed between the two saves of step 6
    run(tmp_path / "run", method, milestones=(6, 9))
    assert sorted(path.name for path in (tmp_path / "run" / "checkpoints" / "kept").glob("step_*")) == [
        "step_6",
        "step_9",
    ]


def test_milestones_are_steps_of_the_training():
    with pytest.raises(OptionError, match=r"milestones=\[0, 13\]: a training of steps=12 has the steps 1 to 12"):
        Schedule(steps=12, milestones=(0, 6, 12, 13))


def damage(file, how):
    content = bytearray(file.read_bytes())
    if how == "deleted":
        file.unlink()
    elif how == "truncated":
        file.write_bytes(content[: len(content) // 2])
    else:
        content[len(content) // 2] ^= 4
        file.write_bytes(content)


def small_state(step):
    values = np.random.default_rng(step).normal(size=4096).astype(np.float32)
    return TrainState(jnp.asarray(step), {"w": jnp.asarray(values)}, {}, {}, (), {})


def like_small_state():
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), small_state(0)
    )


def restored(folder, **options):
    checkpoints = Checkpoints(folder, **options)
    state = checkpoints.restore_last(like_small_state())
    checkpoints.close()
    return state


def largest_file(folder):
    return max((f for f in folder.rglob("*") if f.is_file()), key=lambda f: f.stat().st_size)


@pytest.mark.parametrize("how", ["deleted", "truncated", "one bit flipped"])
def test_any_damaged_file_is_named_and_the_checkpoint_before_is_used(tmp_path, caplog, how):
    checkpoints = Checkpoints(tmp_path)
    for step in (1, 2):
        checkpoints.save_last(small_state(step), step)
    checkpoints.close()
    assert_equal(restored(tmp_path), small_state(2))
    assert not caplog.text
    largest = largest_file(tmp_path / "last" / "step_2")
    damage(largest, how)
    assert_equal(restored(tmp_path), small_state(1))
    assert str(largest) in caplog.text
    assert "is damaged" in caplog.text


@pytest.mark.parametrize("how", ["deleted", "truncated", "one bit flipped"])
def test_a_damaged_milestone_is_an_error(tmp_path, how):
    """No other state can stand for it: labels are chosen by how much the milestones agree."""
    checkpoints = Checkpoints(tmp_path)
    for step in (1, 2):
        checkpoints.save_kept(small_state(step), step)
    checkpoints.wait()
    assert_equal(checkpoints.restore_kept(like_small_state(), 1), small_state(1))
    assert checkpoints.restore_kept(like_small_state(), 3) is None
    damage(largest_file(tmp_path / "kept" / "step_1"), how)
    with pytest.raises(CheckpointError, match=r"milestone .*step_1 is damaged .*; train the run anew"):
        checkpoints.restore_kept(like_small_state(), 1)
    assert_equal(checkpoints.restore_kept(like_small_state(), 2), small_state(2))
    checkpoints.close()


def out_of_memory(*arguments, **options):
    raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory")


def test_a_whole_checkpoint_that_cannot_be_restored_is_not_passed_over(tmp_path, monkeypatch):
    """The run would go on from the one before, and remove the newer one."""
    checkpoints = Checkpoints(tmp_path)
    for step in (1, 2):
        checkpoints.save_last(small_state(step), step)
    checkpoints.close()
    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "_restore_step", out_of_memory)
        with pytest.raises(RuntimeError, match="Out of memory"):
            restored(tmp_path)
    assert_equal(restored(tmp_path), small_state(2))


def test_a_checkpoint_without_checksums_is_passed_over_where_it_cannot_be_restored(tmp_path, caplog):
    """Those of earlier versions have none: damage only shows when they are read."""
    checkpoints = Checkpoints(tmp_path)
    for step in (1, 2):
        checkpoints.save_last(small_state(step), step)
    checkpoints.close()
    (tmp_path / "last" / "step_2" / CHECKSUMS_FILE).unlink()
    for file in (f for f in (tmp_path / "last" / "step_2" / "state").rglob("*") if f.is_file()):
        damage(file, "truncated")
    assert_equal(restored(tmp_path), small_state(1))
    assert "step_2 is damaged" in caplog.text


@contextlib.contextmanager
def files_of_at_most(size):
    """Limits the size that a file can grow to, as a full disk does.

    The limit must end before the test does: pytest's own output may go to a file that is longer.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_disk_that_is_full_for_a_while_costs_only_the_checkpoints_of_that_while(tmp_path, caplog):
    caplog.set_level(logging.WARNING, "forec_jax")
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save_last(small_state(1), 1)
    checkpoints.wait()
    with files_of_at_most(4000):  # the state has 16 KB
        checkpoints.save_last(small_state(2), 2)
        checkpoints.wait()
    assert "a checkpoint cannot be written" in caplog.text
    assert [p.name for p in (tmp_path / "last").iterdir()] == ["step_1"]
    checkpoints.save_last(small_state(3), 3)
    checkpoints.close()
    assert_equal(restored(tmp_path), small_state(3))


def test_saves_that_fail_leave_nothing_behind_that_no_later_save_removes(tmp_path):
    """Each of them has taken the oldest checkpoint off the library's list, but not off the disk."""
    checkpoints = Checkpoints(tmp_path)
    for step in range(1, 7):
        with files_of_at_most(4000) if step in (3, 4) else contextlib.nullcontext():
            checkpoints.save_last(small_state(step), step)
            checkpoints.wait()
    checkpoints.close()
    assert sorted(p.name for p in (tmp_path / "last").iterdir()) == ["step_5", "step_6"]


def test_a_best_checkpoint_that_is_missing_at_the_end_is_told(tmp_path, caplog):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save_best(small_state(1), 1)
    checkpoints.wait()
    with files_of_at_most(4000):
        checkpoints.save_best(small_state(2), 2)
        checkpoints.wait()
    checkpoints.save_last(small_state(3), 3)
    checkpoints.close()
    assert "the best checkpoint could not be written" in caplog.text
    assert "the newest one there: step 1" in caplog.text


def test_a_run_whose_last_checkpoint_is_missing_does_not_end_in_silence(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save_last(small_state(1), 1)
    checkpoints.wait()
    with files_of_at_most(4000):
        checkpoints.save_last(small_state(2), 2)
        with pytest.raises(CheckpointError, match=r"could not be written.*goes on from step 1"):
            checkpoints.close()


def test_a_last_save_that_fails_at_once_is_not_forgotten_either(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save_last(small_state(1), 1)
    checkpoints.wait()

    def save(*arguments, **options):
        raise OSError("no room")

    monkeypatch.setattr(ocp.CheckpointManager, "save", save)
    checkpoints.save_last(small_state(2), 2)
    with pytest.raises(CheckpointError, match=r"could not be written \(no room\).*goes on from step 1"):
        checkpoints.close()


def test_who_only_reads_leaves_a_checkpoint_that_is_being_written_alone(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save_last(small_state(1), 1)
    checkpoints.close()
    unfinished = tmp_path / "last" / "step_2.orbax-checkpoint-tmp"
    shutil.copytree(tmp_path / "last" / "step_1", unfinished)
    files = sorted(tmp_path.rglob("*"))
    assert_equal(restored(tmp_path, read_only=True), small_state(1))
    assert sorted(tmp_path.rglob("*")) == files
    assert restored(tmp_path / "nothing", read_only=True) is None
    assert not (tmp_path / "nothing").exists()
    checkpoints = Checkpoints(tmp_path)  # a training takes what is left of a kill away, at the latest when it saves
    checkpoints.save_last(small_state(3), 3)
    checkpoints.close()
    assert sorted(p.name for p in (tmp_path / "last").iterdir()) == ["step_1", "step_3"]


def test_a_damaged_checkpoint_falls_back_to_the_one_before(tmp_path, method, caplog):
    whole, _ = run(tmp_path / "run", method)
    last = tmp_path / "run" / "checkpoints" / "last"
    files = [f for f in (last / "step_12" / "state").rglob("*") if f.is_file()]
    for file in files:
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    resumed, _ = run(tmp_path / "run", method)
    assert "step_12 is damaged" in caplog.text
    assert_equal(whole, resumed)
    assert (last / "step_12").is_dir()


def test_a_half_written_checkpoint_is_not_seen(tmp_path, method):
    run(tmp_path / "run", method)
    last = tmp_path / "run" / "checkpoints" / "last"
    shutil.copytree(last / "step_12", last / "step_15.orbax-checkpoint-tmp-1")
    state = Checkpoints(last.parent).restore_last(abstract_state(method, TX, SEED, replicated(one_device())))
    assert int(state.step) == 12


def test_a_run_whose_last_checkpoints_are_all_damaged_goes_on_from_its_best(tmp_path, method, caplog):
    whole, _ = run(tmp_path / "run", method, score=best_at_6)
    take_layouts_away(tmp_path / "run", "last")
    assert_equal(whole, run(tmp_path / "run", method, score=best_at_6)[0])
    assert "step_12/layout" in caplog.text
    assert re.search(r"no checkpoint can be read .*step_9\): going on from the best one in .*/best", caplog.text)
    assert {path.name for path in (tmp_path / "run" / "checkpoints" / "last").iterdir()} == {"step_9", "step_12"}


def best_at_6(step):
    return 0.5 if step == 6 else 0.25


def take_layouts_away(workdir, *names):
    for name in names:
        for step in (workdir / "checkpoints" / name).iterdir():
            shutil.rmtree(step / "layout")


def test_a_run_without_its_last_checkpoints_goes_on_from_its_best_and_says_so(tmp_path, method, caplog):
    whole, _ = run(tmp_path / "run", method, score=best_at_6)
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "last")
    resumed, _ = run(tmp_path / "run", method, score=best_at_6)
    assert_equal(whole, resumed)
    assert re.search("last holds no checkpoint: going on from the best one", caplog.text)
    steps = [
        event["step"] for event in read_events(tmp_path / "run" / "metrics.jsonl") if event["event"] == "evaluation"
    ]
    assert steps == [6, 12]


def test_who_only_reads_gets_the_last_checkpoint_or_none(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save_best(small_state(1), 1, 0.5)
    checkpoints.close()
    assert restored(tmp_path, read_only=True) is None
    assert int(restored(tmp_path).step) == 1


def test_the_best_does_not_depend_on_the_log(tmp_path, method):
    """The line of the evaluation at step 6, the best one, is damaged; 12 is better than what is left of the log."""
    run(tmp_path / "run", method, score=lambda step: 0.5, signal_at=7)
    metrics = tmp_path / "run" / "metrics.jsonl"
    metrics.write_bytes(metrics.read_bytes().replace(b'"event": "evaluation"', b'"event": \xff'))
    run(tmp_path / "run", method, score=lambda step: 0.25)
    assert [path.name for path in (tmp_path / "run" / "checkpoints" / "best").iterdir()] == ["step_6"]


def test_a_best_checkpoint_of_an_earlier_version_is_judged_by_the_log(tmp_path, method):
    run(tmp_path / "run", method, score=lambda step: 0.5, signal_at=7)
    best = tmp_path / "run" / "checkpoints" / "best"
    shutil.rmtree(best / "step_6" / "score")
    (best / "step_6" / CHECKSUMS_FILE).unlink()
    assert Checkpoints(best.parent).best_score() is None
    run(tmp_path / "run", method, score=lambda step: 0.25)
    assert [path.name for path in best.iterdir()] == ["step_6"]


def test_where_nothing_can_be_scored_the_best_is_the_newest_and_no_file_holds_nan(tmp_path, method):
    run(tmp_path / "run", method, score=lambda step: math.nan)
    assert sorted(path.name for path in (tmp_path / "run" / "checkpoints" / "best").iterdir()) == ["step_12", "step_6"]
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    events = [json.loads(line, parse_constant=pytest.fail) for line in lines]
    assert [event["teacher_miou"] for event in events if event["event"] == "evaluation"] == [None, None]


def test_checkpoints_that_are_all_damaged_are_an_error(tmp_path, method):
    run(tmp_path / "run", method)
    take_layouts_away(tmp_path / "run", "last", "best")
    with pytest.raises(CheckpointError, match=r"no checkpoint can be read .*step_12.*another --workdir"):
        run(tmp_path / "run", method)


def test_a_checkpoint_of_another_architecture_is_an_error(tmp_path, method, make_toy_network):
    run(tmp_path / "run", method, steps=3)
    other = dataclasses.replace(method, network=make_toy_network((HeadSpec("segmentation", 7),)))
    with pytest.raises(CheckpointError, match=r"another model.*segmentation.*expected float32\[4, 7\]"):
        run(tmp_path / "run", other, steps=3)


def test_best_and_last_are_kept(tmp_path, method):
    run(tmp_path / "run", method, score=lambda step: 0.2 if step == 6 else 0.01)
    folders = {name: {p.name for p in (tmp_path / "run" / "checkpoints" / name).iterdir()} for name in ("last", "best")}
    assert folders == {"last": {"step_9", "step_12"}, "best": {"step_6"}}
    assert Checkpoints(tmp_path / "run" / "checkpoints", read_only=True).best_score() == Best(6, 0.2)


def test_metrics_hold_every_logged_step_and_evaluation(tmp_path, method):
    run(tmp_path / "run", method)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [e["step"] for e in lines if e["event"] == "train"] == [1, 2, 4, 6, 8, 10, 12]
    assert [e["step"] for e in lines if e["event"] == "evaluation"] == [6, 12]
    assert all(np.isfinite(e["supervised_loss"]) for e in lines if e["event"] == "train")


class LateMetric:
    """A metric that notes when it is read."""

    def __init__(self, name, notes):
        self.name, self.notes = name, notes

    def __array__(self, dtype=None, copy=None):
        self.notes.append(f"read {self.name}")
        return np.zeros((), dtype)


def test_the_next_batch_is_queued_before_a_steps_metrics_are_read(tmp_path):
    """So that the device never waits for the host: not for a batch, and not for a log."""
    notes = []

    def batches():
        for index in itertools.count():
            notes.append(f"batch {index}")
            yield batch_of(index)

    def step(state, batch):
        notes.append(f"step {state}")
        return state + 1, {"loss": LateMetric(state, notes)}

    reporter = Reporter(tmp_path, steps=3, first_step=0, images_per_step=4)
    train(
        0,
        first_step=0,
        step=step,
        batches=batches(),
        batch_ids=str,
        evaluate=lambda state, step, stop: {"teacher_miou": 0.0},
        schedule=Schedule(steps=3, log_every=1, evaluate_every=3, checkpoint_every=3),
        checkpoints=NoCheckpoints(),
        reporter=reporter,
        interruption=Interruption(),
        mesh=one_device(),
    )
    reporter.close()
    assert notes[:8] == ["batch 0", "step 0", "batch 1", "step 1", "read 0", "batch 2", "step 2", "read 1"]


class NoCheckpoints:
    def best_score(self):
        return Best(0, 1.0)

    def save_last(self, state, step):
        pass


@pytest.mark.parametrize("key", ["steps", "log_every", "evaluate_every", "checkpoint_every"])
def test_a_schedule_of_nothing_is_an_error(key):
    with pytest.raises(ValueError, match=key):
        Schedule(**{"steps": 1, "log_every": 1, "evaluate_every": 1, "checkpoint_every": 1, key: 0})

"""One process of several: trains a toy in a work directory, evaluates it, and writes what it found (test_distributed.py).

    python one_of_several.py WORKDIR PORT PROCESSES PROCESS FSDP SIGNAL_AT

With one process nothing is joined. SIGNAL_AT is a step before which the last process sends itself SIGTERM, or -1.
"""

import importlib.util
import json
import signal
import sys
from pathlib import Path

import jax

workdir, port, processes, process, fsdp, signal_at = Path(sys.argv[1]), *map(int, sys.argv[2:])
jax.config.update("jax_num_cpu_devices", 4 // processes)

from forec_jax.parallel import is_primary, join, make_mesh  # noqa: E402

if processes > 1:
    join(f"localhost:{port}", processes, process)

import numpy as np  # noqa: E402
import optax  # noqa: E402

from forec_jax.augment import NoMixing  # noqa: E402
from forec_jax.contracts import Batch, Labelled, Unlabelled, Variables  # noqa: E402
from forec_jax.data import Example  # noqa: E402
from forec_jax.evaluation import Buckets, Evaluator  # noqa: E402
from forec_jax.methods import MeanTeacher  # noqa: E402
from forec_jax.training import (  # noqa: E402
    Checkpoints,
    Onlooker,
    Reporter,
    Schedule,
    abstract_state,
    compile_step,
    create_state,
    state_sharding,
    train,
)
from forec_jax.training.loop import Interruption  # noqa: E402

STEPS, ROWS, SIZE = 6, 8, 6
spec = importlib.util.spec_from_file_location("conftest", Path(__file__).parents[1] / "conftest.py")
conftest = importlib.util.module_from_spec(spec)
jax_update, jax.config.update = jax.config.update, lambda *_: None  # the tests' eight devices are not wanted here
spec.loader.exec_module(conftest)
jax.config.update = jax_update


def no_colour(key, image, valid):
    return image


def rows_of(step):
    """This process's rows of the global batch `step`."""
    rng = np.random.default_rng(step)
    image = rng.integers(0, 256, (2, ROWS, SIZE, SIZE, 3), dtype=np.uint8)
    share = slice(process * ROWS // processes, (process + 1) * ROWS // processes)
    valid, none = np.ones((ROWS, SIZE, SIZE), bool), np.zeros(ROWS, np.int32)
    label = (image[0, ..., 0] // 86).astype(np.int32)
    whole = Batch(Labelled(image[0], label, valid, none), Unlabelled(image[1], valid, none))
    return jax.tree.map(lambda leaf: leaf[share], whole)


def batches(first):
    for step in range(first, STEPS):
        if step == signal_at and process == processes - 1:
            signal.raise_signal(signal.SIGTERM)
        yield rows_of(step)


class Images(list):
    """Seven images of several sizes: no number of processes divides them."""

    def __init__(self):
        rng = np.random.default_rng(0)
        for number in range(7):
            size = (20 + 17 * (number % 3), 40)
            image = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
            self.append(Example(str(number), image, rng.integers(0, 3, size).astype(np.uint8)))

    ids = property(lambda self: [example.id for example in self])


def main():
    method = MeanTeacher(conftest.toy_network(channels=512), no_colour, NoMixing(), (), threshold=0.4)
    tx, mesh = optax.adamw(1e-2), make_mesh(fsdp)
    lies = state_sharding(method, tx, 0, mesh)
    checkpoints = Checkpoints(workdir / "checkpoints")
    state = checkpoints.restore_last(abstract_state(method, tx, 0, lies))
    state = create_state(method, tx, 0, lies) if state is None else state
    first = int(state.step)
    reporter = (Reporter if is_primary() else Onlooker)(workdir, steps=STEPS, first_step=first, images_per_step=8)
    evaluator = Evaluator(method, 3, mesh, Buckets(32, len(mesh.local_devices)), "whole", 0)
    confusions = []

    def evaluate(state, step, stop):
        variables = {name: Variables(state.params[name], state.batch_stats[name]) for name in state.params}
        confusions.append(evaluator(variables, Images(), stop).confusion.tolist())
        return {"teacher_miou": step / 10}

    with Interruption() as interruption:
        state, stopped_by = train(
            state,
            first_step=first,
            step=compile_step(method, tx, seed=0, accumulate=1, mesh=mesh),
            batches=batches(first),
            batch_ids=lambda step: step,
            evaluate=evaluate,
            is_best=lambda results: True,  # so that every second step is saved twice at a time
            schedule=Schedule(steps=STEPS, log_every=1, evaluate_every=2, checkpoint_every=2),
            checkpoints=checkpoints,
            reporter=reporter,
            interruption=interruption,
            mesh=mesh,
        )
        reporter.close()
        checkpoints.close()
    found = {"first": first, "step": int(state.step), "stopped_by": stopped_by, "confusions": confusions}
    (workdir / f"found{process}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()

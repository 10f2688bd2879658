"""Whether the device ever waits for input: a step's time with the pipeline over that on a resident batch.

    python benchmarks/steady_state.py --root=VOCdevkit --method=forec --encoder=resnet50 --batch=16 --crop=321 --json

Batches come as in training: the next one is put on the device while the step before it runs, and a step's metrics are read
after the next one was queued. The last line is JSON; `ratio` is 1 where input costs nothing.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from typing import Any

import jax
from input_pipeline import prepared_source
from jax_step import JaxStep
from measure import interleaved, seconds_of, table
from workload import Workload, add_arguments, from_arguments

from forec_jax.cli import use_huge_pages
from forec_jax.contracts import Batch
from forec_jax.data import Source, train_batches
from forec_jax.experiment import build
from forec_jax.parallel import shard_batch


def host_batches(workload: Workload, source: Source, workers: int) -> Iterator[Batch]:
    """The training batches of a workload; labelled and unlabelled rows come from the same images."""
    c = workload.config()
    return train_batches(
        labelled=source,
        unlabelled=source,
        batch_labelled=c.batch.labelled,
        batch_unlabelled=c.batch.unlabelled,
        geometry=build.build_geometry(c),
        seed=0,
        workers=workers,
    )


def run_fed(step: JaxStep, batches: Iterator[Batch], steps: int) -> None:
    """Steps on batches from the host, in the training loop's order."""
    pending: dict[str, jax.Array] = {}
    for _ in range(steps):
        metrics = step.dispatch(shard_batch(step.mesh, next(batches)))
        jax.device_get(pending)
        pending = metrics
    jax.block_until_ready(step.state)


def main(argv: list[str]) -> dict[str, Any]:
    """Measures and prints; returns what the JSON line holds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    parser.add_argument("--root", default="", help="the folder that holds VOC2012/; empty: the embedded shapes data")
    parser.add_argument("--prepared", default="", help="as data.prepared")
    parser.add_argument("--split", default="train")
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=10, help="steps a turn")
    parser.add_argument("--json", action="store_true", help="print nothing but the JSON line")
    values = parser.parse_args(argv)

    workload = from_arguments(values)
    batches = host_batches(workload, prepared_source(values.root, values.split, values.prepared), values.workers)
    step = JaxStep(workload)
    runs = {"resident": lambda: step.run(values.steps), "pipeline": lambda: run_fed(step, batches, values.steps)}
    for run in runs.values():
        run()
    seconds = interleaved(values.rounds, {name: lambda run=run: seconds_of(run) for name, run in runs.items()})
    seconds = {name: spread.per(values.steps) for name, spread in seconds.items()}
    rows = [
        {"batches": name, "s/step": spread.median, "images/s": workload.batch / spread.median}
        for name, spread in seconds.items()
    ]
    result = {
        "ratio": seconds["pipeline"].median / seconds["resident"].median,
        "workload": vars(workload),
        "rows": rows,
    }
    if not values.json:
        print(f"{workload}\n\n{table(rows)}\n")
    print(json.dumps(result))
    return result


if __name__ == "__main__":
    use_huge_pages()  # as the library's commands do; processes started from here inherit them
    main(sys.argv[1:])

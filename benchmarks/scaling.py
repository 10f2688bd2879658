"""Step time and memory against batch size, crop and devices; start-up and compile time, cold and with the cache.

    python benchmarks/scaling.py --encoder=resnet50 --batches=4,8,16 --crops=129,257 --devices=1,2,4,8 --json

Each measurement is a process of its own: the number of devices and the cache are settled before JAX compiles. On a CPU the
devices are virtual and share its cores, so their rows show what distribution costs, not what it gains. Every process finds
an empty compilation cache, except in the row that starts a second time. The last line is JSON.
"""

import argparse
import dataclasses
import json
import multiprocessing
import os
import sys
import tempfile
from typing import Any

import jax
from jax_step import JaxStep
from measure import Spread, peak_process_bytes, seconds_of, table
from workload import Workload, add_arguments, from_arguments

from forec_jax.cli import use_huge_pages


def measure(workload: Workload, devices: int, rounds: int, cache: str) -> dict[str, Any]:
    """A row of the table; runs in a fresh process, whose devices are not made yet."""
    jax.config.update("jax_compilation_cache_dir", cache)
    if os.environ.get("JAX_PLATFORMS", "cpu") == "cpu":
        jax.config.update("jax_num_cpu_devices", devices)
    step = JaxStep(workload, jax.devices()[:devices])
    step.run(1)
    seconds = Spread.of([seconds_of(lambda: step.run(1)) for _ in range(rounds)])
    planned, peak = step.planned_bytes(), step.peak_bytes()
    return {
        "batch": workload.batch,
        "crop": workload.crop,
        "devices": devices,
        "s/step": seconds.median,
        "images/s": workload.batch / seconds.median,
        "planned MiB a device": None if planned is None else round(planned / 2**20),
        "peak MiB": round((peak_process_bytes() if peak is None else peak) / 2**20),
        "compile s": step.compile_seconds,
        "start s": step.start_seconds,
    }


def in_fresh_process(*arguments: Any) -> dict[str, Any]:
    """`measure` in a process of its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(measure, arguments)


def numbers(text: str) -> list[int]:
    """E.g. "1,2,4"."""
    return [int(number) for number in text.split(",") if number]


def main(argv: list[str]) -> dict[str, Any]:
    """Measures and prints; returns what the JSON line holds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    parser.add_argument("--batches", default="", help="batch sizes to compare, at --crop")
    parser.add_argument("--crops", default="", help="crops to compare, at --batch")
    parser.add_argument("--devices", default="1", help="numbers of devices to compare, at --batch and --crop")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true", help="print nothing but the JSON line")
    values = parser.parse_args(argv)

    base = from_arguments(values)
    cases = [(dataclasses.replace(base, batch=batch), 1) for batch in numbers(values.batches)]
    cases += [(dataclasses.replace(base, crop=crop), 1) for crop in numbers(values.crops)]
    cases += [(base, devices) for devices in numbers(values.devices)]
    rows = []
    for workload, devices in cases:
        with tempfile.TemporaryDirectory() as cache:
            rows.append({"start": "first"} | in_fresh_process(workload, devices, values.rounds, cache))
            if (workload, devices) == cases[-1]:
                rows.append({"start": "second"} | in_fresh_process(workload, devices, values.rounds, cache))
    result = {
        "workload": vars(base),
        "rows": rows,
        "second_over_first_compile": rows[-1]["compile s"] / rows[-2]["compile s"],
    }
    if not values.json:
        print(f"{base}\n\n{table(rows)}\n")
    print(json.dumps(result))
    return result


if __name__ == "__main__":
    use_huge_pages()  # as the library's commands do; processes started from here inherit them
    main(sys.argv[1:])

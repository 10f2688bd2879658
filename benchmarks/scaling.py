"""Step time and memory against batch size, crop, devices and processes; start-up and compile time, cold and with the cache.

    python benchmarks/scaling.py --encoder=resnet50 --batches=4,8,16 --crops=129,257 --devices=1,2,4,8 --processes=2,4 --json

Each measurement is a process of its own, or several with a device each that JAX's runtime joins over loopback: the number of
devices and the cache are settled before JAX compiles. On a CPU the devices are virtual and share its cores, so their rows
show what distribution costs, not what it gains. Every row finds an empty compilation cache, except the one that starts a
second time. The last line is JSON.
"""

import argparse
import dataclasses
import json
import multiprocessing
import os
import socket
import sys
import tempfile
from typing import Any, NamedTuple

import jax
from jax_step import JaxStep
from measure import Spread, peak_process_bytes, seconds_of, table
from workload import Workload, add_arguments, from_arguments

from forec_jax.cli import use_huge_pages
from forec_jax.parallel import join


class Case(NamedTuple):
    """What a row measures."""

    workload: Workload
    devices: int = 1  # of all processes together
    processes: int = 1


def measure(case: Case, rounds: int, cache: str, port: int, process: int) -> dict[str, Any]:
    """A row of the table; runs in a fresh process, whose devices are not made yet."""
    workload, devices, processes = case
    jax.config.update("jax_compilation_cache_dir", cache)
    if os.environ.get("JAX_PLATFORMS", "cpu") == "cpu":
        jax.config.update("jax_num_cpu_devices", devices // processes)
    if processes > 1:
        join(f"localhost:{port}", processes, process)
    step = JaxStep(workload, jax.devices()[:devices])
    step.run(1)
    seconds = Spread.of([seconds_of(lambda: step.run(1)) for _ in range(rounds)])
    planned, peak = step.planned_bytes(), step.peak_bytes()
    if processes > 1:
        jax.distributed.shutdown()
    return {
        "batch": workload.batch,
        "crop": workload.crop,
        "devices": devices,
        "processes": processes,
        "s/step": seconds.median,
        "images/s": workload.batch / seconds.median,
        "planned MiB a device": None if planned is None else round(planned / 2**20),
        "peak MiB": round((peak_process_bytes() if peak is None else peak) / 2**20),
        "compile s": step.compile_seconds,
        "start s": step.start_seconds,
    }


def in_fresh_processes(case: Case, rounds: int, cache: str) -> dict[str, Any]:
    """`measure` in processes of its own; the row of the first."""
    port = free_port()
    arguments = [(case, rounds, cache, port, process) for process in range(case.processes)]
    # None returns before all have joined, so that each process takes one.
    with multiprocessing.get_context("spawn").Pool(case.processes) as pool:
        rows = pool.starmap(measure, arguments, chunksize=1)
        pool.close()
        pool.join()  # leaving the block would send SIGTERM, which a joined process takes for a preemption
    return rows[0]


def free_port() -> int:
    """A port of this machine that nobody listens on now."""
    with socket.create_server(("localhost", 0)) as server:
        return int(server.getsockname()[1])


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
    parser.add_argument(
        "--processes", default="", help="numbers of processes with a device each, at --batch and --crop"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true", help="print nothing but the JSON line")
    values = parser.parse_args(argv)

    base = from_arguments(values)
    cases = [Case(dataclasses.replace(base, batch=batch)) for batch in numbers(values.batches)]
    cases += [Case(dataclasses.replace(base, crop=crop)) for crop in numbers(values.crops)]
    cases += [Case(base, processes, processes) for processes in numbers(values.processes)]
    cases += [Case(base, devices) for devices in numbers(values.devices)]
    rows = []
    for case in cases:
        with tempfile.TemporaryDirectory() as cache:
            rows.append({"start": "first"} | in_fresh_processes(case, values.rounds, cache))
            if case == cases[-1]:
                rows.append({"start": "second"} | in_fresh_processes(case, values.rounds, cache))
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

"""Times one training step, of the library and of its PyTorch counterpart side by side.

    python benchmarks/train_step.py --framework=both --method=forec --encoder=resnet50 --batch=16 --crop=321 --json

`--batch` counts all images of a step; semi-supervised methods take half of them without labels. The batch is resident:
reading images is measured by input_pipeline.py. The two take turns, step by step; the figures are medians with the middle
half of the rounds. The last line is JSON with `seconds_per_step`, the library's unless PyTorch was run alone.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
from typing import Any

# Two frameworks share a GPU here: XLA must not take three quarters of it first.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

from measure import Spread, interleaved, peak_process_bytes, table
from workload import Workload, add_arguments, from_arguments, random_batch

FRAMEWORKS = ("jax", "torch")


def make_step(framework: str, workload: Workload, torch_compile: str) -> Any:
    """The step of a framework, with `run`, `flops` and `peak_bytes`."""
    if framework == "jax":
        from jax_step import JaxStep

        return JaxStep(workload)
    import torch
    from torch_peer import RECONSTRUCTION, SEGMENTATION, PeerNetwork, TorchStep
    from workload import CLASSES

    c = workload.config()
    heads = {SEGMENTATION: CLASSES} | ({RECONSTRUCTION: 3} if "reconstruction" in c.auxiliary else {})
    network = PeerNetwork(
        workload.encoder,
        heads,
        output_stride=workload.output_stride,
        channels=c.model.decoder.channels,
        low_channels=c.model.decoder.low_level_channels,
        rates=tuple(c.model.decoder.rates),
    )
    compiled = torch.cuda.is_available() if torch_compile == "auto" else torch_compile == "yes"
    method = workload.method.removesuffix("+share_aspp")
    return TorchStep(network, method, random_batch(c), workload.dtype, compiled=compiled)


def make_matmul(framework: str, size: int, dtype: str) -> Any:
    """A matrix product of a framework, with `run` and `flops`."""
    if framework == "jax":
        from jax_step import JaxMatmul as Matmul
    else:
        from torch_peer import TorchMatmul as Matmul
    return Matmul(size, dtype)


def row(step: Any, workload: Workload, seconds: Spread, ceiling: float, memory: int | None) -> dict[str, Any]:
    """A line of the table."""
    flops = step.flops()
    speed = flops / seconds.median if flops else None
    return {
        "framework": step.name,
        "s/step": seconds.median,
        "quartiles": f"{seconds.low:.4g}-{seconds.high:.4g}",
        "images/s": workload.batch / seconds.median,
        "peak MiB": None if memory is None else round(memory / 2**20),
        "GFLOP/step": flops / 1e9 if flops else None,
        "GFLOP/s": speed / 1e9 if speed else None,
        "share of matmul": speed / ceiling if speed else None,
    }


def memory_alone(framework: str) -> int:
    """The peak memory of a process that does nothing but two steps of one framework: for CPUs, where nobody else counts."""
    flags = [flag for flag in sys.argv[1:] if not flag.startswith(("--framework", "--rounds", "--steps", "--json"))]
    command = [sys.executable, __file__, *flags, f"--framework={framework}", "--rounds=1", "--steps=1", "--json"]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return int(json.loads(done.stdout.splitlines()[-1])["peak_process_bytes"])


def parse(argv: list[str]) -> argparse.Namespace:
    """The flags."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--framework", default="both", choices=(*FRAMEWORKS, "both"))
    add_arguments(parser)
    parser.add_argument("--rounds", type=int, default=10, help="turns that each framework takes")
    parser.add_argument("--steps", type=int, default=1, help="steps a turn; several on a GPU, so that their queue stays full")
    parser.add_argument("--torch-compile", default="auto", choices=("auto", "yes", "no"), help="auto: on a GPU")
    parser.add_argument("--matmul", type=int, default=0, help="side of the ceiling's matrices; 0: 2048, or 8192 on a GPU")
    parser.add_argument("--json", action="store_true", help="print nothing but the JSON line")
    return parser.parse_args(argv)


def main(argv: list[str]) -> dict[str, Any]:
    """Measures and prints; returns what the JSON line holds."""
    values = parse(argv)
    workload = from_arguments(values)
    frameworks = FRAMEWORKS if values.framework == "both" else (values.framework,)
    steps = {framework: make_step(framework, workload, values.torch_compile) for framework in frameworks}
    on_cpu = all(step.peak_bytes() is None for step in steps.values())
    size = values.matmul or (2048 if on_cpu else 8192)
    matmuls = {framework: make_matmul(framework, size, workload.dtype) for framework in frameworks}
    for warm in (*steps.values(), *steps.values()):
        warm.run(values.steps)
    for matmul in matmuls.values():
        matmul.run()

    seconds = interleaved(values.rounds, {name: lambda step=step: step.run(values.steps) for name, step in steps.items()})
    seconds = {name: spread.per(values.steps) for name, spread in seconds.items()}
    products = interleaved(values.rounds, {name: matmul.run for name, matmul in matmuls.items()})
    ceiling = max(matmuls[name].flops / products[name].median for name in frameworks)
    memory = {name: step.peak_bytes() for name, step in steps.items()}
    process = peak_process_bytes()
    if on_cpu:
        memory = {name: memory_alone(name) if len(steps) > 1 else process for name in frameworks}
    rows = {name: row(step, workload, seconds[name], ceiling, memory[name]) for name, step in steps.items()}

    first = frameworks[0]
    result: dict[str, Any] = {
        "seconds_per_step": seconds[first].median,
        "workload": vars(workload),
        "machine": platform.processor() or platform.machine(),
        "matmul_gflops": ceiling / 1e9,
        "peak_process_bytes": process,
        "frameworks": rows,
    }
    if "jax" in steps:
        plan = steps["jax"]
        result |= {"compile_seconds": plan.compile_seconds, "planned_bytes": plan.planned_bytes()}
    if len(steps) == 2:
        result["jax_over_torch"] = seconds["jax"].median / seconds["torch"].median
    if not values.json:
        print(f"{workload}\nmatmul {size}: {ceiling / 1e9:.4g} GFLOP/s\n\n{table(list(rows.values()))}\n")
    print(json.dumps(result))
    return result


if __name__ == "__main__":
    main(sys.argv[1:])

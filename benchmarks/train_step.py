"""Times one training step, of the library and of its PyTorch counterpart side by side.

    python benchmarks/train_step.py --framework=both --method=forec --encoder=resnet50 --batch=16 --crop=321 --json

`--batch` counts all images of a step; semi-supervised methods take half of them without labels. The batch is resident:
reading images is measured by input_pipeline.py. Each framework has a process of its own, so that their threads and their
memory do not mix, and the two take turns; the figures are medians with the middle half of the turns. The last line is JSON
with `seconds_per_step`, the library's unless PyTorch was run alone.
"""

import argparse
import json
import multiprocessing
import os
import platform
import sys
from multiprocessing.connection import Connection
from typing import Any

from measure import Spread, interleaved, peak_process_bytes, seconds_of, table
from ml_collections import ConfigDict
from workload import CLASSES, Workload, add_arguments, from_arguments, random_batch

from forec_jax.cli import use_huge_pages
from forec_jax.models.encoders import dinov2
from forec_jax.options import from_config
from forec_jax.training import OptimizerOptions

FRAMEWORKS = ("jax", "torch")


def make_jax(workload: Workload, torch_compile: str) -> tuple[Any, Any]:
    """The library's step, and its matrix product by size."""
    del torch_compile
    from jax_step import JaxMatmul, JaxStep

    return JaxStep(workload), JaxMatmul


def make_torch(workload: Workload, torch_compile: str) -> tuple[Any, Any]:
    """PyTorch's step, and its matrix product by size."""
    import torch
    import torch_peer

    c = workload.config()
    if workload.method not in torch_peer.STEPS:
        raise ValueError(f"--method={workload.method}: the PyTorch counterpart has {', '.join(torch_peer.STEPS)}")
    step = torch_peer.STEPS[workload.method](
        peer_network(c),
        workload.method,
        random_batch(c),
        workload.dtype,
        compiled=torch.cuda.is_available() if torch_compile == "auto" else torch_compile == "yes",
        optim=from_config(OptimizerOptions, c.optim, "optim"),
        decay=c.ema.decay,
        frozen=workload.freeze,
    )
    return step, torch_peer.TorchMatmul


def peer_network(c: ConfigDict) -> Any:
    """PyTorch's network of a config: a DINOv2 with DPT, or one of the DeepLabV3+."""
    from torch_networks import deeplab_peer
    from torch_peer import RECONSTRUCTION, SEGMENTATION
    from torch_transformer import dpt_peer

    heads = {SEGMENTATION: CLASSES} | ({RECONSTRUCTION: 3} if "reconstruction" in c.auxiliary else {})
    encoder = c.model.encoder
    if encoder in dinov2.SIZES:
        o = c.model.dinov2
        size = dinov2.SIZES[encoder].scaled(o.width, o.depth)
        form = {"attention_heads": size.heads, "blocks": size.blocks, "taps": size.taps}
        return dpt_peer(heads, **form, channels=c.model.dpt.channels, projections=tuple(c.model.dpt.projections))
    decoder = c.model.deeplab
    return deeplab_peer(
        encoder,
        heads,
        output_stride=c.model.resnet.output_stride,
        channels=decoder.channels,
        low_channels=decoder.low_level_channels,
        rates=tuple(decoder.rates),
    )


def serve(connection: Connection, framework: str, workload: Workload, values: argparse.Namespace) -> None:
    """A framework's process: makes and warms its step, then answers "step", "matmul" (seconds) and "facts"."""
    # Both may share a GPU: XLA must not take three quarters of it first.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    step, make_matmul = (make_jax if framework == "jax" else make_torch)(workload, values.torch_compile)
    for _ in range(2):
        step.run(values.steps)
    peak = step.peak_bytes()
    matmul = make_matmul(values.matmul or (2048 if peak is None else 8192), workload.dtype)
    matmul.run()
    connection.send("ready")
    while (question := connection.recv()) != "end":
        if question == "step":
            step.run(1)  # while the other had its turn, caches and the system's hold on this process's memory went cold
            connection.send(seconds_of(lambda: step.run(values.steps)) / values.steps)
        elif question == "matmul":
            connection.send(seconds_of(matmul.run))
        else:
            connection.send(facts(step, matmul, peak))


def facts(step: Any, matmul: Any, peak: int | None) -> dict[str, Any]:
    """What is known of a step besides its time; `peak` is the device's memory, None on a CPU."""
    known = {
        "name": step.name,
        "version": step.version,
        "device": step.device_name(),
        "flops": step.flops(),
        "matmul_flops": matmul.flops,
        "peak_bytes": peak_process_bytes() if peak is None else peak,
    }
    if step.name == "forec_jax":
        known |= {"compile_seconds": step.compile_seconds, "planned_bytes": step.planned_bytes()}
    return known


class Contestant:
    """A framework in a process of its own."""

    def __init__(self, framework: str, workload: Workload, values: argparse.Namespace) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=serve, args=(theirs, framework, workload, values), daemon=True)
        self._process.start()
        theirs.close()  # so that the end of the process is noticed
        self._connection.recv()

    def ask(self, question: str) -> Any:
        """Its answer."""
        self._connection.send(question)
        return self._connection.recv()

    def end(self) -> None:
        """Ends the process."""
        self._connection.send("end")
        self._process.join()


def row(known: dict[str, Any], images: int, seconds: Spread, ceiling: float) -> dict[str, Any]:
    """A line of the table."""
    speed = known["flops"] / seconds.median if known["flops"] else None
    return {
        "framework": known["name"],
        "s/step": seconds.median,
        "quartiles": f"{seconds.low:.4g}-{seconds.high:.4g}",
        "images/s": images / seconds.median,
        "peak MiB": round(known["peak_bytes"] / 2**20),
        "GFLOP/step": known["flops"] / 1e9 if known["flops"] else None,
        "GFLOP/s": speed / 1e9 if speed else None,
        "share of matmul": speed / ceiling if speed else None,
    }


def parse(argv: list[str]) -> argparse.Namespace:
    """The flags."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--framework", default="both", choices=(*FRAMEWORKS, "both"))
    add_arguments(parser)
    parser.add_argument("--rounds", type=int, default=10, help="turns that each framework takes")
    parser.add_argument(
        "--steps", type=int, default=1, help="steps a turn; on a GPU several, so that their queue stays full"
    )
    parser.add_argument("--torch-compile", default="auto", choices=("auto", "yes", "no"), help="auto: on a GPU")
    parser.add_argument(
        "--matmul", type=int, default=0, help="side of the ceiling's matrices; 0: 2048, or 8192 on a GPU"
    )
    parser.add_argument("--json", action="store_true", help="print nothing but the JSON line")
    return parser.parse_args(argv)


def main(argv: list[str]) -> dict[str, Any]:
    """Measures and prints; returns what the JSON line holds."""
    values = parse(argv)
    workload = from_arguments(values)
    names = FRAMEWORKS if values.framework == "both" else (values.framework,)
    contestants = {name: Contestant(name, workload, values) for name in names}
    seconds = interleaved(values.rounds, {name: lambda c=c: c.ask("step") for name, c in contestants.items()})
    products = interleaved(values.rounds, {name: lambda c=c: c.ask("matmul") for name, c in contestants.items()})
    known = {name: contestant.ask("facts") for name, contestant in contestants.items()}
    for contestant in contestants.values():
        contestant.end()

    ceiling = max(known[name]["matmul_flops"] / products[name].median for name in names)
    rows = {name: row(known[name], workload.batch, seconds[name], ceiling) for name in names}
    result: dict[str, Any] = {
        "seconds_per_step": seconds[names[0]].median,
        "workload": vars(workload),
        "machine": platform.processor() or platform.machine(),
        "matmul_gflops": ceiling / 1e9,
        "frameworks": {name: {**known[name], **rows[name]} for name in names},
    }
    if len(names) == 2:
        result["jax_over_torch"] = seconds["jax"].median / seconds["torch"].median
    if not values.json:
        print(f"{workload}\nmatmul: {ceiling / 1e9:.4g} GFLOP/s\n\n{table(list(rows.values()))}\n")
    print(json.dumps(result))
    return result


if __name__ == "__main__":
    use_huge_pages()  # as the library's commands do; processes started from here inherit them
    main(sys.argv[1:])

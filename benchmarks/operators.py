"""The convolutions of a training step one by one, beside PyTorch's: what bounds a step on this machine.

    python benchmarks/operators.py --method=supervised --encoder=resnet50 --batch=4 --crop=256 --json

Every convolution of the student's forward pass is timed alone, at its own shape: forward, gradient of its input, gradient
of its kernel. A shape that occurs n times counts n times. The sum is what the convolutions of one forward and backward
pass cost without BatchNorm, ReLU, resizing and losses. Each framework has all threads. The last line is JSON.
"""

import argparse
import collections
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import torch
from measure import seconds_of, table
from workload import LABELS, Workload, add_arguments, from_arguments

from forec_jax.cli import use_huge_pages
from forec_jax.experiment import build
from forec_jax.models import layers
from forec_jax.models.conv import Padding, conv2d

PASSES = ("forward", "input", "kernel")


class Convolution(NamedTuple):
    """A convolution's shape."""

    x: tuple[int, ...]  # [N,H,W,C]
    kernel: tuple[int, ...]  # [kh,kw,C/groups,D]
    strides: int
    padding: Padding
    dilation: int
    groups: int

    @property
    def passes(self) -> Sequence[str]:
        """Those that a step makes: nobody asks for the gradient of the image."""
        return [name for name in PASSES if name != "input" or self.x[-1] != 3]

    def __str__(self) -> str:
        n, height, width, channels = self.x
        kind = "depthwise " if self.groups > 1 else ""
        extra = (f" /{self.strides}" if self.strides > 1 else "") + (f" d{self.dilation}" if self.dilation > 1 else "")
        return f"{kind}{self.kernel[0]}x{self.kernel[1]}{extra} {channels}->{self.kernel[3]} @{n}x{height}x{width}"


def convolutions(workload: Workload) -> collections.Counter[Convolution]:
    """Those of the student's forward pass, with all heads that the step trains, and how often each occurs."""
    c = workload.config()
    network = build.build_method(c, LABELS).networks["student"]
    found: collections.Counter[Convolution] = collections.Counter()

    def record(x: Any, kernel: Any, **options: Any) -> Any:
        found[Convolution(tuple(x.shape), tuple(kernel.shape), **options)] += 1
        return conv2d(x, kernel, **options)

    def forward(key: Any) -> Any:
        variables = network.init(key)
        found.clear()  # what making the variables traced
        images = jnp.zeros((sum(c.batch.values()), workload.crop, workload.crop, 3))
        features, _ = network.encode(variables, images, train=True, rng=key)
        return [network.decode(variables, head.name, features, train=True, rng=key)[0] for head in network.heads]

    with mock.patch.object(layers, "conv2d", record):
        jax.eval_shape(forward, jax.random.key(0))
    return found


def arrays(shape: Convolution) -> tuple[np.ndarray, np.ndarray]:
    """An input and a kernel, f32."""
    rng = np.random.default_rng(0)
    return rng.normal(size=shape.x).astype(np.float32), rng.normal(size=shape.kernel).astype(np.float32)


def jax_calls(shape: Convolution) -> dict[str, Callable[[], Any]]:
    """The library's passes by name, compiled; each returns when it is done."""
    x, kernel = (jnp.asarray(array) for array in arrays(shape))

    def forward(x: Any, kernel: Any) -> Any:
        return conv2d(
            x, kernel, strides=shape.strides, padding=shape.padding, dilation=shape.dilation, groups=shape.groups
        )

    dy = jax.jit(forward)(x, kernel)
    passes = {
        "forward": (jax.jit(forward), (x, kernel)),
        "input": (jax.jit(lambda x, kernel, dy: jax.vjp(lambda v: forward(v, kernel), x)[1](dy)), (x, kernel, dy)),
        "kernel": (jax.jit(lambda x, kernel, dy: jax.vjp(lambda v: forward(x, v), kernel)[1](dy)), (x, kernel, dy)),
    }
    return {
        name: lambda call=call, given=given: jax.block_until_ready(call(*given))
        for name, (call, given) in passes.items()
    }


def torch_calls(shape: Convolution) -> dict[str, Callable[[], Any]]:
    """PyTorch's passes by name, in channels_last memory."""
    # PyTorch's convolution pads both sides alike; TF-slim's asymmetric margin is as wide, one pixel further on.
    margin = max(max(sides) for sides in shape.padding)
    image, kernel = arrays(shape)
    x = torch.from_numpy(image).permute(0, 3, 1, 2)  # NCHW by name, NHWC in memory
    weight = torch.from_numpy(kernel).permute(3, 2, 0, 1).contiguous(memory_format=torch.channels_last)
    window = ([shape.strides] * 2, [margin] * 2, [shape.dilation] * 2)
    dy = torch.nn.functional.conv2d(x, weight, None, *window, shape.groups)

    def backward(mask: list[bool]) -> Any:
        return torch.ops.aten.convolution_backward(dy, x, weight, [0], *window, False, [0, 0], shape.groups, mask)

    return {
        "forward": lambda: torch.nn.functional.conv2d(x, weight, None, *window, shape.groups),
        "input": lambda: backward([True, False, False]),
        "kernel": lambda: backward([False, True, False]),
    }


def steadily(call: Callable[[], Any], rounds: int) -> float:
    """Median seconds of a call among its like.

    One framework's threads spin for a while after a call and would take a core from the other's, and threads that slept
    start late: so each call follows others of its own, after a pause.
    """
    time.sleep(0.2)
    for _ in range(3):
        call()
    return statistics.median(seconds_of(call) for _ in range(rounds))


def measure(shape: Convolution, number: int, rounds: int) -> dict[str, Any]:
    """A line of the table: milliseconds of all `number` occurrences by pass, the library's and PyTorch's."""
    frameworks = {"jax": jax_calls(shape), "torch": torch_calls(shape)}
    row: dict[str, Any] = {"convolution": str(shape), "times": number}
    for part in PASSES:
        for name, calls in frameworks.items():
            row[f"{name} {part}"] = 1e3 * number * steadily(calls[part], rounds) if part in shape.passes else 0.0
    return row


def main(argv: list[str]) -> dict[str, Any]:
    """Measures and prints; returns what the JSON line holds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", action="store_true", help="print nothing but the JSON line")
    values = parser.parse_args(argv)

    workload = from_arguments(values)
    rows = [measure(*found, values.rounds) for found in convolutions(workload).items()]
    figures = [name for name in rows[0] if name.startswith(("jax", "torch"))]
    rows.sort(key=lambda row: -sum(row[name] for name in figures if name.startswith("jax")))
    total = {"convolution": "all", "times": sum(row["times"] for row in rows)}
    total |= {name: sum(row[name] for row in rows) for name in figures}
    result = {"workload": vars(workload), "milliseconds": [*rows, total]}
    if not values.json:
        print(f"{workload}\nmilliseconds\n\n{table([*rows, total])}\n")
    print(json.dumps(result))
    return result


if __name__ == "__main__":
    use_huge_pages()  # as the library's commands do; processes started from here inherit them
    main(sys.argv[1:])

"""The library's train step, compiled for a workload and ready to be timed."""

import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from workload import LABELS, Workload, random_batch

from forec_jax.contracts import Batch
from forec_jax.experiment import build
from forec_jax.experiment.plan import counted_flops
from forec_jax.parallel import make_mesh, replicated, shard_batch
from forec_jax.training import abstract_state, compile_step, create_state


class JaxStep:
    """Compiles on creation; a call runs steps on one resident batch, or on the batch given.

    `compile_seconds` is what tracing and compiling took, `start_seconds` all of it from the config to the first state.
    """

    name, version = "forec_jax", f"jax {jax.__version__}"

    def __init__(self, workload: Workload, devices: Sequence[Any] | None = None) -> None:
        start = time.perf_counter()
        c = workload.config()
        self.mesh = make_mesh(devices=None if devices is None else list(devices))
        method, tx = build.build_method(c, LABELS), build.build_optimizer(c)
        whole = replicated(self.mesh)
        self.batch = shard_batch(self.mesh, own_rows(random_batch(c)))
        step = compile_step(method, tx, seed=c.seed, accumulate=c.accumulate, mesh=self.mesh)
        traced = time.perf_counter()
        self._traced = step.trace(abstract_state(method, tx, c.seed, whole), self.batch)
        self._step = self._traced.lower().compile()
        self.compile_seconds = time.perf_counter() - traced
        self.state = create_state(method, tx, c.seed, whole)
        jax.block_until_ready(self.state)
        self.start_seconds = time.perf_counter() - start

    def dispatch(self, batch: Batch | None = None) -> dict[str, jax.Array]:
        """Queues one step and returns its metrics, which may not be there yet."""
        self.state, metrics = self._step(self.state, self.batch if batch is None else batch)
        return metrics

    def run(self, steps: int) -> None:
        """Steps, to the end of the last."""
        for _ in range(steps):
            self.dispatch()
        jax.block_until_ready(self.state)

    def device_name(self) -> str:
        """What a device calls itself."""
        return str(self.mesh.devices.flat[0].device_kind)

    def flops(self) -> float | None:
        """Of a step on all devices, by XLA's count; the body of a loop counts once.

        On a CPU of the compiled program, in which attention is a loop over heads. Elsewhere of the program before it was
        optimised: a compiled one calls other libraries, of whose work XLA's count need not know.
        """
        if jax.default_backend() != "cpu":
            return counted_flops(self._traced)
        cost = self._step.cost_analysis()
        return float(cost["flops"]) * self.mesh.size if cost and "flops" in cost else None

    def bytes_accessed(self) -> float | None:
        """What the compiled program's operations read and write together, by XLA's count, on one device."""
        cost = self._step.cost_analysis()
        return float(cost["bytes accessed"]) if cost and "bytes accessed" in cost else None

    def planned_bytes(self) -> int | None:
        """Memory of one device that XLA plans for a step: state, batch, results and temporaries."""
        plan = self._step.memory_analysis()
        if plan is None:
            return None
        sizes = plan.argument_size_in_bytes + plan.output_size_in_bytes + plan.temp_size_in_bytes
        return int(sizes - plan.alias_size_in_bytes)

    def peak_bytes(self) -> int | None:
        """The most memory a device has held so far; None where the backend (the CPU's) does not count it."""
        stats = self.mesh.local_devices[0].memory_stats()
        return stats.get("peak_bytes_in_use") if stats else None


def own_rows(batch: Batch) -> Batch:
    """This process's part of a global batch of NumPy arrays: an equal block of rows; all of them where it is alone."""
    count, index = jax.process_count(), jax.process_index()
    return jax.tree.map(lambda rows: rows[len(rows) * index // count : len(rows) * (index + 1) // count], batch)


class JaxMatmul:
    """A square matrix product: what the device reaches at best."""

    def __init__(self, size: int, dtype: str) -> None:
        self.flops = 2.0 * size**3
        self._matrix = jnp.ones((size, size), dtype)
        self._product = jax.jit(jnp.matmul)

    def run(self) -> None:
        """One product, to its end."""
        jax.block_until_ready(self._product(self._matrix, self._matrix))

"""Several processes as one run: how they find each other, and what they have to agree on.

Every process runs the same program on the same global arrays. What follows from such arrays is the same everywhere by
itself; what one process alone knows (a signal, a file) is agreed on here before anyone acts on it.
"""

import functools
import ipaddress
import os
import re
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from forec_jax.contracts import Array
from forec_jax.parallel.mesh import batch_sharding, replicated

HEARTBEAT = 100  # seconds without a sign of life after which a process counts as lost


class DistributedError(ValueError):
    """Processes that cannot be joined to one run; the message says what is missing."""


def launcher(environ: Mapping[str, str]) -> str | None:
    """What started this process as one of several: "slurm", "openmpi", "tpu", "jax", or None.

    A Slurm allocation with one task, or a machine that merely has Open MPI installed, is not several processes. "jax" is
    what FOREC_JAX_JOIN=1 asks for: whatever cluster JAX itself finds. A TPU pod outside of Kubernetes needs it,
    for such a host learns of the others from its machine's metadata alone (launch/tpu_pod.sh sets it).
    """
    if int(environ.get("SLURM_NTASKS", 1)) > 1 and "SLURM_PROCID" in environ and "SLURM_STEP_NODELIST" in environ:
        return "slurm"
    if int(environ.get("OMPI_COMM_WORLD_SIZE", 1)) > 1:
        return "openmpi"
    if "," in environ.get("TPU_WORKER_HOSTNAMES", "") or "," in environ.get("TPU_PROCESS_ADDRESSES", ""):
        return "tpu"
    if environ.get("FOREC_JAX_JOIN") == "1":
        return "jax"
    return None


def _has_the_whole_node(environ: Mapping[str, str]) -> bool:
    """Whether Slurm or Open MPI started one process a node, which then drives every GPU there."""
    tasks = environ.get("SLURM_STEP_TASKS_PER_NODE", "") or environ.get("SLURM_TASKS_PER_NODE", "")
    if launcher(environ) == "slurm":
        return all(re.fullmatch(r"1(\(x\d+\))?", part) for part in tasks.split(","))
    return launcher(environ) == "openmpi" and environ.get("OMPI_COMM_WORLD_LOCAL_SIZE") == "1"


def join(coordinator: str | None, processes: int | None, process: int | None, bind: str | None = None) -> None:
    """Joins this process to the others; returns at once where it is alone. Must come before any use of a device.

    `coordinator` is HOST:PORT of process 0. Those three are given, or none: then Slurm, Open MPI or a TPU pod tells (see
    `launcher`). `bind` is the address of process 0 on which it listens for the others; by default the loopback address where
    the coordinator is there, and all addresses otherwise: nothing asks those who join who they are.

    Raises DistributedError where some are missing or do not fit together.
    """
    given = (coordinator, processes, process)
    if all(value is None for value in given):
        if bind is not None:
            raise DistributedError(f"--bind={bind} is for process 0 of --coordinator=HOST:PORT; leave it out")
        if started_by := launcher(os.environ):
            _join_cluster(started_by)
        return
    if coordinator is None or processes is None or process is None:
        raise DistributedError(
            "--coordinator=HOST:PORT, --processes=N and --process=0..N-1 go together; one is missing"
        )
    if not 0 <= process < processes:
        raise DistributedError(f"--process={process} must be from 0 to {processes - 1}, as --processes={processes}")
    # A cluster that JAX finds on top of that would take all GPUs but one away.
    jax.distributed.initialize(
        coordinator,
        processes,
        process,
        cluster_detection_method="deactivate",
        heartbeat_timeout_seconds=heartbeat(),
        coordinator_bind_address=listens_on(coordinator, bind),
    )


def listens_on(coordinator: str, bind: str | None) -> str | None:
    """ADDRESS:PORT on which the coordinator listens; None for all addresses, which is JAX's own way.

    Raises DistributedError where `coordinator` is not HOST:PORT.
    """
    host, colon, port = coordinator.rpartition(":")
    if not colon or not port.isdigit():
        raise DistributedError(f"--coordinator={coordinator} must be HOST:PORT, such as node1:1234")
    if bind is not None:
        return f"[{bind}]:{port}" if ":" in bind and not bind.startswith("[") else f"{bind}:{port}"
    return coordinator if _is_loopback(host) else None


def _is_loopback(host: str) -> bool:
    """Whether a host's name or address is this machine for itself alone."""
    try:
        return host == "localhost" or ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:  # a name
        return False


def _join_cluster(started_by: str) -> None:
    """Joins the processes that a launcher started, as JAX finds them. Raises DistributedError where it does not."""
    try:
        jax.distributed.initialize(heartbeat_timeout_seconds=heartbeat())
    except ValueError as error:
        raise DistributedError(
            f"{started_by} started this process as one of several, but JAX does not find the others ({error}); "
            "say where they are by --coordinator=HOST:PORT --processes=N --process=0..N-1"
        ) from error
    if _has_the_whole_node(os.environ):  # JAX supposes a process a GPU, and would leave it the first one
        jax.config.update("jax_cuda_visible_devices", "all")
        jax.config.update("jax_rocm_visible_devices", "all")


def heartbeat() -> int:
    """Seconds after which a silent process counts as lost; FOREC_JAX_HEARTBEAT changes it."""
    return int(os.environ.get("FOREC_JAX_HEARTBEAT", HEARTBEAT))


def is_primary() -> bool:
    """Whether this process writes what only one may write: metrics, pictures, the config, the summary."""
    return jax.process_index() == 0


def barrier(name: str) -> None:
    """Waits until every process is here."""
    multihost_utils.sync_global_devices(name)


def agreed(decide: Callable[[], bool]) -> bool:
    """What process 0 decides; the others do not look for themselves."""
    if jax.process_count() == 1:
        return decide()
    return bool(multihost_utils.broadcast_one_to_all(np.asarray(is_primary() and decide())))


def summed(counts: np.ndarray) -> np.ndarray:
    """The sum of an i64 array over the processes."""
    if jax.process_count() == 1:
        return counts
    # Devices hold 32-bit integers: the halves travel apart.
    halves = np.stack([counts >> 31, counts & (2**31 - 1)]).astype(np.int32)
    everyones = np.asarray(multihost_utils.process_allgather(halves)).astype(np.int64)
    return ((everyones[:, 0] << 31) + everyones[:, 1]).sum(axis=0)


def largest(mesh: Mesh, number: int) -> Array:
    """i32[] on the devices: the largest of the processes' numbers. Dispatched like a step: only reading it waits."""
    rows = np.full(len(mesh.local_devices), number, np.int32)
    numbers = jax.make_array_from_process_local_data(batch_sharding(mesh), rows)
    return _maximum(mesh)(numbers)


@functools.cache
def _maximum(mesh: Mesh) -> Callable[[Array], Array]:
    return jax.jit(jnp.max, out_shardings=replicated(mesh))

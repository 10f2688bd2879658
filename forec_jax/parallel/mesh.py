"""The device mesh, and how arrays lie on it.

The axes' types are Auto: the compiler chooses the collectives, and batch-wide operations (rolls, sorts, percentiles) mean
the same on one device and on many.
"""

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from forec_jax.contracts import PyTree

BATCH_AXES = ("data", "fsdp")


def make_mesh(fsdp: int = 1, devices: list[jax.Device] | None = None) -> Mesh:
    """A ("data", "fsdp") mesh over the devices (all by default); `fsdp` must divide their number."""
    devices = jax.devices() if devices is None else devices
    if fsdp < 1 or len(devices) % fsdp:
        raise ValueError(f"mesh.fsdp={fsdp} must divide the number of devices, {len(devices)}")
    shape = (len(devices) // fsdp, fsdp)
    return jax.make_mesh(shape, BATCH_AXES, axis_types=(AxisType.Auto, AxisType.Auto), devices=devices)


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device holds the whole array."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The leading axis split over every device."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def shard_batch(mesh: Mesh, batch: PyTree) -> PyTree:
    """Puts this process's rows of a batch (a tree of NumPy arrays) on its devices, as one global array a leaf.

    The global number of rows must be a multiple of the number of devices.
    """
    sharding = batch_sharding(mesh)
    return jax.tree.map(lambda rows: jax.make_array_from_process_local_data(sharding, np.asarray(rows)), batch)


def global_batch(mesh: Mesh, rows: int, name: str) -> int:
    """Checks that a global batch of `rows` spreads evenly over the devices, and returns it."""
    if rows % mesh.size:
        raise ValueError(f"{name}={rows} must be a multiple of the number of devices, {mesh.size}")
    return rows

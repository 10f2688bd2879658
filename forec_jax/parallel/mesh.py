"""The device mesh, and how arrays lie on it.

The axes' types are Auto: the compiler chooses the collectives, and batch-wide operations (rolls, sorts, percentiles) mean
the same on one device and on many.
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from forec_jax.contracts import PyTree
from forec_jax.options import at_least, option

BATCH_AXES = ("data", "fsdp")
SHARDED_FROM = 1024  # elements; splitting a smaller array saves nothing and costs a collective


@dataclass(frozen=True)
class MeshOptions:
    """How the state lies on the devices."""

    fsdp: int = option(
        1, "devices that share weights, teacher and optimiser (docs/scaling.md); must divide their number", at_least(1)
    )


def make_mesh(fsdp: int = 1, devices: list[jax.Device] | None = None) -> Mesh:
    """A ("data", "fsdp") mesh over the devices (all by default); `fsdp` must divide their number.

    A process's devices follow one another, so that the rows of a batch that it holds are the block that it decodes:
    `jax.make_mesh` would lay a TPU slice out as a ring, for faster collectives, with a process's devices at both ends.
    """
    devices = jax.devices() if devices is None else devices
    if fsdp < 1 or len(devices) % fsdp:
        raise ValueError(f"mesh.fsdp={fsdp} must divide the number of devices, {len(devices)}")
    shape = (len(devices) // fsdp, fsdp)
    ordered = sorted(devices, key=lambda device: (device.process_index, device.id))
    return Mesh(np.asarray(ordered).reshape(shape), BATCH_AXES, axis_types=(AxisType.Auto, AxisType.Auto))


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device holds the whole array."""
    return NamedSharding(mesh, PartitionSpec())


def on_first_device(tree: PyTree) -> PyTree:
    """A tree of arrays, whole on this process's first device: what its own images are looked at with."""
    return jax.device_put(jax.device_get(tree), jax.local_devices()[0])


def shape_sharding(mesh: Mesh, shape: tuple[int, ...]) -> NamedSharding:
    """The largest axis that the mesh's fsdp axis divides is split over it (the last of equals); a small array is whole."""
    parts = mesh.shape["fsdp"]
    divisible = [axis for axis, size in enumerate(shape) if size and size % parts == 0]
    if parts == 1 or not divisible or math.prod(shape) < SHARDED_FROM:
        return replicated(mesh)
    return _split(mesh, shape, max(divisible, key=lambda axis: (shape[axis], axis)))


def vectors_sharding(mesh: Mesh, shape: tuple[int, ...]) -> NamedSharding:
    """The last axis is split over the mesh's fsdp axis, where that divides it; a small array is whole.

    So each device holds a part of every vector of a store: vectors are written and drawn without moving, and their products
    are sums over devices.
    """
    if mesh.shape["fsdp"] == 1 or math.prod(shape) < SHARDED_FROM or shape[-1] % mesh.shape["fsdp"]:
        return replicated(mesh)
    return _split(mesh, shape, len(shape) - 1)


def _split(mesh: Mesh, shape: tuple[int, ...], over: int) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec(*("fsdp" if axis == over else None for axis in range(len(shape)))))


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The leading axis split over every device."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def spread(mesh: Mesh, array: jax.Array, axis: int) -> jax.Array:
    """The array with an axis split over every device, inside a compiled function; whole where they do not divide it."""
    sharding = PartitionSpec(*([None] * axis), BATCH_AXES) if array.shape[axis] % mesh.size == 0 else PartitionSpec()
    return jax.lax.with_sharding_constraint(array, NamedSharding(mesh, sharding))


def shard_batch(mesh: Mesh, batch: PyTree) -> PyTree:
    """Puts this process's rows of a batch (a tree of NumPy arrays) on its devices, as one global array a leaf.

    The global number of rows must be a multiple of the number of devices.
    """
    sharding = batch_sharding(mesh)
    return jax.tree.map(lambda rows: jax.make_array_from_process_local_data(sharding, np.asarray(rows)), batch)


def local_mesh(mesh: Mesh) -> Mesh:
    """A mesh over this process's devices alone; the mesh itself where there is one process and no fsdp axis."""
    if jax.process_count() == 1 and mesh.shape["fsdp"] == 1:
        return mesh
    return make_mesh(devices=list(mesh.local_devices))


def on_local_devices(mesh: Mesh, tree: PyTree) -> PyTree:
    """A tree of global arrays, each whole on every device of `local_mesh`, for work that a process does by itself.

    Every process must call it: what is sharded over several is gathered.
    """
    own = local_mesh(mesh)
    if own is mesh:
        return tree
    whole = _gather(mesh)(tree)
    return jax.tree.map(lambda array: _shards_as_array(array, replicated(own)), whole)


@functools.cache
def _gather(mesh: Mesh) -> Callable[[PyTree], PyTree]:
    return jax.jit(lambda tree: tree, out_shardings=replicated(mesh))


def _shards_as_array(array: jax.Array, sharding: NamedSharding) -> jax.Array:
    shards = [shard.data for shard in array.addressable_shards]
    return jax.make_array_from_single_device_arrays(array.shape, sharding, shards)


def global_batch(mesh: Mesh, rows: int, name: str) -> int:
    """Checks that a global batch of `rows` spreads evenly over the devices, and returns it."""
    if rows % mesh.size:
        raise ValueError(f"{name}={rows} must be a multiple of the number of devices, {mesh.size}")
    return rows

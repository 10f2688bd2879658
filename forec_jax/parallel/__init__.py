"""Device meshes and shardings, and several processes as one run."""

from forec_jax.parallel.distributed import DistributedError, agreed, barrier, is_primary, join, largest, summed
from forec_jax.parallel.mesh import (
    batch_sharding,
    global_batch,
    local_mesh,
    make_mesh,
    on_first_device,
    on_local_devices,
    replicated,
    shape_sharding,
    shard_batch,
    spread,
    vectors_sharding,
)

__all__ = [
    "DistributedError",
    "agreed",
    "barrier",
    "batch_sharding",
    "global_batch",
    "is_primary",
    "join",
    "largest",
    "local_mesh",
    "make_mesh",
    "on_first_device",
    "on_local_devices",
    "replicated",
    "shape_sharding",
    "shard_batch",
    "spread",
    "summed",
    "vectors_sharding",
]

"""Device meshes and shardings."""

from forec_jax.parallel.mesh import (
    batch_sharding,
    global_batch,
    make_mesh,
    replicated,
    shard_batch,
)

__all__ = ["batch_sharding", "global_batch", "make_mesh", "replicated", "shard_batch"]

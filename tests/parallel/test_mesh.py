import jax
import numpy as np
import pytest

from forec_jax.parallel import global_batch, make_mesh, replicated, shard_batch


def test_the_mesh_has_two_axes_of_type_auto():
    mesh = make_mesh(fsdp=2)
    assert dict(mesh.shape) == {"data": 4, "fsdp": 2}
    assert all(kind == jax.sharding.AxisType.Auto for kind in mesh.axis_types)


@pytest.mark.parametrize("fsdp", [0, 3])
def test_fsdp_must_divide_the_devices(fsdp):
    with pytest.raises(ValueError, match=f"fsdp={fsdp} must divide the number of devices, 8"):
        make_mesh(fsdp=fsdp)


def test_rows_go_to_the_devices_in_order_over_both_axes():
    batch = shard_batch(make_mesh(fsdp=2), {"x": np.arange(16).reshape(16, 1)})
    shards = sorted(batch["x"].addressable_shards, key=lambda shard: shard.index[0].start)
    assert [shard.data.ravel().tolist() for shard in shards] == [[2 * i, 2 * i + 1] for i in range(8)]
    assert replicated(make_mesh()).is_fully_replicated


def test_a_batch_that_does_not_spread_evenly_is_an_error():
    assert global_batch(make_mesh(), 16, "batch.labelled") == 16
    with pytest.raises(ValueError, match=r"batch\.labelled=12 must be a multiple .* 8"):
        global_batch(make_mesh(), 12, "batch.labelled")

import dataclasses

import jax
import numpy as np
import pytest

from forec_jax.parallel import (
    global_batch,
    make_mesh,
    on_local_devices,
    replicated,
    shape_sharding,
    shard_batch,
    vectors_sharding,
)


def test_the_mesh_has_two_axes_of_type_auto():
    mesh = make_mesh(fsdp=2)
    assert dict(mesh.shape) == {"data": 4, "fsdp": 2}
    assert all(kind == jax.sharding.AxisType.Auto for kind in mesh.axis_types)


@dataclasses.dataclass(frozen=True)
class Device:
    """What a mesh looks at in a device."""

    process_index: int
    id: int


def test_the_devices_of_a_process_follow_one_another_whatever_order_they_are_given_in():
    """As its rows of a batch do. A TPU slice is a grid, in which JAX would rather go round."""
    ring = [Device(process, number) for number, process in enumerate((0, 0, 1, 1, 3, 3, 2, 2))]
    mesh = make_mesh(fsdp=2, devices=ring)
    assert [device.process_index for device in mesh.devices.flat] == [0, 0, 1, 1, 2, 2, 3, 3]
    assert [device.id for device in mesh.devices.flat] == [0, 1, 2, 3, 6, 7, 4, 5]


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


@pytest.mark.parametrize(
    ("shape", "spec"),
    [
        ((3, 3, 64, 128), (None, None, None, "fsdp")),  # the largest axis that 4 divides
        ((3, 3, 128, 21), (None, None, "fsdp", None)),
        ((64, 64), (None, "fsdp")),  # the last of equals
        ((1023, 3), ()),  # nothing that 4 divides
        ((512,), ()),  # too small to be worth it
        ((), ()),
    ],
)
def test_an_array_is_split_over_its_largest_divisible_axis(shape, spec):
    assert shape_sharding(make_mesh(fsdp=4), shape).spec == jax.sharding.PartitionSpec(*spec)


@pytest.mark.parametrize(
    ("shape", "spec"), [((3, 4096, 8), (None, None, "fsdp")), ((64, 4096, 6), ()), ((2, 2, 64), ()), ((), ())]
)
def test_a_store_is_split_over_its_vectors_parts(shape, spec):
    assert vectors_sharding(make_mesh(fsdp=4), shape).spec == jax.sharding.PartitionSpec(*spec)


def test_without_an_fsdp_axis_nothing_is_split():
    assert shape_sharding(make_mesh(), (64, 64)).is_fully_replicated
    assert vectors_sharding(make_mesh(), (64, 64)).is_fully_replicated


def test_what_is_split_comes_back_whole_on_local_devices():
    mesh = make_mesh(fsdp=4)
    values = np.arange(4096, dtype=np.float32).reshape(64, 64)
    split = jax.device_put(values, shape_sharding(mesh, values.shape))
    assert split.addressable_shards[0].data.shape == (64, 16)
    whole = on_local_devices(mesh, split)
    assert whole.sharding.is_fully_replicated
    np.testing.assert_array_equal(whole, values)

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from forec_jax.models.conv import conv2d
from forec_jax.models.encoders.inverted import corner_padding, scaled_channels
from forec_jax.models.encoders.mobilenet_v2 import ENTRY
from forec_jax.models.network import Form


def shapes(size, **options):
    module = ENTRY.build("mobilenet_v2", ENTRY.options(**options), Form()).module(False)
    return jax.eval_shape(
        lambda x: module.init_with_output(jax.random.key(0), x), jax.ShapeDtypeStruct((2, *size, 3), jnp.float32)
    )


def test_parameter_count_is_the_published_one():
    _, variables = shapes((64, 64))
    published = 3_504_872 - 1000 * 1281 - 1280 * (320 + 2)  # without the classifier and the last 1x1 layer
    assert sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) == published


@pytest.mark.parametrize("output_stride", [8, 16, 32])
@pytest.mark.parametrize("size", [(64, 96), (33, 57), (321, 513)])
def test_strides_and_channels(output_stride, size):
    (low, high), _ = shapes(size, output_stride=output_stride)
    assert low.shape == (2, *(-(-n // 4) for n in size), 24)
    assert high.shape == (2, *(-(-n // output_stride) for n in size), 320)


def test_width_rounds_to_multiples_of_eight():
    assert [scaled_channels(c, 0.5) for c in (16, 24, 32, 96, 320)] == [8, 16, 16, 48, 160]
    assert scaled_channels(24, 0.75) == 24  # 18 would be rounded down by more than a tenth


@pytest.mark.parametrize("size", [8, 9])
@pytest.mark.parametrize("kernel_size", [3, 5])
def test_stride_two_is_aligned_at_the_top_left(kernel_size, size):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(1, size, size, 1)), jnp.float32)
    before = (kernel_size - 3) // 2  # TensorFlow's 'SAME' pads 3x3 by (0, 1) at even sides, 5x5 by (1, 2)
    centre = jnp.zeros((kernel_size, kernel_size, 1, 1)).at[before, before].set(1.0)
    y = conv2d(x, centre, strides=2, padding=corner_padding(kernel_size, size, size))
    np.testing.assert_array_equal(y, x[:, ::2, ::2])


def test_margins_at_stride_two():
    assert corner_padding(3, 8, 9) == ((0, 1), (0, 2))
    assert corner_padding(5, 8, 9) == ((1, 2), (1, 3))

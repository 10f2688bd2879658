import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from forec_jax.models import conv2d

# (size, channels in, out, kernel, strides, padding, dilation, groups): what the encoders and the decoder use.
CASES = {
    "1x1": ((7, 8), 6, 10, 1, 1, ((0, 0), (0, 0)), 1, 1),
    "1x1 stride 2": ((7, 8), 6, 10, 1, 2, ((0, 0), (0, 0)), 1, 1),
    "1x1 one channel": ((5, 5), 1, 3, 1, 1, ((0, 0), (0, 0)), 1, 1),
    "3x3": ((7, 8), 8, 10, 3, 1, ((1, 1), (1, 1)), 1, 1),
    "3x3 stride 2": ((7, 8), 9, 10, 3, 2, ((1, 1), (1, 1)), 1, 1),
    "3x3 stride 2 of images": ((9, 8), 3, 10, 3, 2, ((0, 2), (0, 1)), 1, 1),
    "3x3 dilation 2": ((7, 8), 8, 10, 3, 1, ((2, 2), (2, 2)), 2, 1),
    "3x3 dilation 2 stride 2": ((9, 8), 8, 10, 3, 2, ((2, 2), (2, 2)), 2, 1),
    "3x3 dilation 6": ((8, 9), 8, 4, 3, 1, ((6, 6), (6, 6)), 6, 1),
    "3x3 dilation beyond the map": ((5, 8), 8, 4, 3, 1, ((12, 12), (12, 12)), 12, 1),
    "3x3 dilation, one channel": ((5, 8), 1, 4, 3, 1, ((2, 2), (2, 2)), 2, 1),
    "3x3 dilation, to one channel": ((5, 8), 4, 1, 3, 1, ((2, 2), (2, 2)), 2, 1),
    "7x7 stride 2": ((17, 16), 3, 8, 7, 2, ((3, 3), (3, 3)), 1, 1),
    "depthwise": ((7, 8), 6, 6, 3, 1, ((1, 1), (1, 1)), 1, 6),
    "depthwise stride 2, even": ((8, 8), 6, 6, 3, 2, ((0, 1), (0, 1)), 1, 6),
    "depthwise stride 2, odd": ((7, 9), 6, 6, 3, 2, ((0, 2), (0, 2)), 1, 6),
    "depthwise stride 2, mixed": ((9, 8), 6, 6, 3, 2, ((1, 1), (1, 1)), 1, 6),
    "depthwise dilation 2": ((7, 8), 6, 6, 3, 1, ((2, 2), (2, 2)), 2, 6),
    "depthwise dilation 4": ((3, 8), 6, 6, 3, 1, ((4, 4), (4, 4)), 4, 6),
    "grouped": ((7, 8), 6, 9, 3, 2, ((1, 1), (1, 1)), 1, 3),
    "valid window": ((7, 8), 5, 5, 3, 1, ((0, 0), (0, 0)), 1, 1),
}


def make(case, dtype=jnp.float32, batch=2):
    (h, w), c, d, size, strides, padding, dilation, groups = CASES[case]
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(batch, h, w, c)), dtype)
    kernel = jnp.asarray(rng.normal(size=(size, size, c // groups, d)), dtype)
    return x, kernel, {"strides": strides, "padding": padding, "dilation": dilation, "groups": groups}


def reference(x, kernel, *, strides, padding, dilation, groups):
    return lax.conv_general_dilated(
        x,
        kernel,
        (strides,) * 2,
        padding,
        rhs_dilation=(dilation,) * 2,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


def value_and_gradients(convolve, x, kernel, dy, options):
    y, pull = jax.vjp(lambda a, b: convolve(a, b, **options), x, kernel)
    return y, *pull(dy)


@pytest.mark.parametrize("case", CASES)
def test_equals_xla_forward_and_backward(case):
    x, kernel, options = make(case)
    y = reference(x, kernel, **options)
    dy = jnp.asarray(np.random.default_rng(1).normal(size=y.shape), jnp.float32)
    ours, theirs = (
        jax.jit(lambda *a, f=convolve: value_and_gradients(f, *a, options))(x, kernel, dy)
        for convolve in (conv2d, reference)
    )
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.shape == other.shape
        np.testing.assert_allclose(mine, other, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("case", ["1x1", "3x3", "3x3 dilation 2", "depthwise stride 2, odd"])
def test_bfloat16_sums_in_float32(case):
    x, kernel, options = make(case, jnp.bfloat16)
    y = conv2d(x, kernel, **options)
    dy = jnp.asarray(np.random.default_rng(1).normal(size=y.shape), jnp.bfloat16)
    ours = jax.jit(lambda *a: value_and_gradients(conv2d, *a, options))(x, kernel, dy)
    wide = [a.astype(jnp.float32) for a in (x, kernel, dy)]
    exact = jax.jit(lambda *a: value_and_gradients(reference, *a, options))(*wide)
    for mine, true in zip(ours, exact, strict=True):
        assert mine.dtype == jnp.bfloat16
        np.testing.assert_allclose(mine.astype(jnp.float32), true, rtol=0.01, atol=0.02)


@pytest.mark.parametrize(("platform", "convolutions"), [("cpu", 0), ("cuda", 1), ("tpu", 1)])
def test_lowers_to_what_suits_the_platform(platform, convolutions):
    x, kernel, options = make("depthwise")
    lowered = jax.jit(lambda a, b: conv2d(a, b, **options)).trace(x, kernel).lower(lowering_platforms=(platform,))
    assert lowered.as_text().count("stablehlo.convolution") == convolutions


@pytest.mark.parametrize("case", ["1x1 stride 2", "3x3", "3x3 dilation 2", "7x7 stride 2", "depthwise stride 2, odd"])
def test_a_batch_over_eight_devices_gives_the_same_numbers(case):
    x, kernel, options = make(case, batch=8)
    dy = jnp.asarray(np.random.default_rng(1).normal(size=reference(x, kernel, **options).shape), jnp.float32)
    mesh = Mesh(np.array(jax.devices()[:8]), ("data",))
    rows, everywhere = NamedSharding(mesh, PartitionSpec("data")), NamedSharding(mesh, PartitionSpec())
    spread = jax.device_put(x, rows), jax.device_put(kernel, everywhere), jax.device_put(dy, rows)
    step = jax.jit(lambda *a: value_and_gradients(conv2d, *a, options))
    ours, alone = step(*spread), step(x, kernel, dy)
    assert ours[0].sharding.is_equivalent_to(rows, 4)
    for mine, other in zip(ours, alone, strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-5, atol=2e-5)


def test_rejects_channels_that_do_not_fit():
    with pytest.raises(ValueError, match="channels do not fit"):
        conv2d(jnp.zeros((1, 4, 4, 3)), jnp.zeros((3, 3, 4, 8)))

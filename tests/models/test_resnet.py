import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from forec_jax.models.encoders.resnet import ResNet
from forec_jax.models.layers import BatchNorm, max_pool


def shapes(size, **options):
    module = ResNet(train=False, **options)
    return jax.eval_shape(
        lambda x: module.init_with_output(jax.random.key(0), x), jax.ShapeDtypeStruct((2, *size, 3), jnp.float32)
    )


def dilations(**options):
    """Dilation and stride of each 3x3 convolution inside the residual blocks, by name of the block."""
    seen = []

    def note(next_call, args, kwargs, context):
        module = context.module
        if (
            type(module).__name__ == "Conv"
            and context.method_name == "__call__"
            and module.size == 3
            and "layer" in "/".join(module.path)
        ):
            seen.append((module.path[0], module.strides, module.dilation))
        return next_call(*args, **kwargs)

    with nn.intercept_methods(note):
        shapes((64, 64), **options)
    return seen


@pytest.mark.parametrize(
    ("name", "count"),
    [("resnet18", 11_176_512), ("resnet34", 21_284_672), ("resnet50", 23_508_032), ("resnet101", 42_500_160)],
)
def test_parameter_count_is_the_published_one(name, count):
    _, variables = shapes((64, 64), name_of_variant=name)
    assert sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) == count


@pytest.mark.parametrize("stem", ["7x7", "deep"])
@pytest.mark.parametrize("output_stride", [8, 16, 32])
@pytest.mark.parametrize("size", [(64, 96), (33, 57), (321, 513)])
def test_strides_and_channels(stem, output_stride, size):
    (low, high), _ = shapes(size, name_of_variant="resnet50", stem=stem, output_stride=output_stride)
    assert low.shape == (2, *(-(-n // 4) for n in size), 256)
    assert high.shape == (2, *(-(-n // output_stride) for n in size), 2048)


def test_u2pl_dilations():
    seen = dilations(name_of_variant="resnet50", output_stride=8, multi_grid=(2, 2, 4))
    assert [d for name, _, d in seen if name.startswith("layer3")] == [1, 2, 2, 2, 2, 2]
    assert [d for name, _, d in seen if name.startswith("layer4")] == [4, 8, 16]
    assert {s for name, s, _ in seen if name.startswith(("layer3", "layer4"))} == {1}


def test_unimatch_dilations():
    seen = dilations(name_of_variant="resnet50", output_stride=16)
    assert [(s, d) for name, s, d in seen if name == "layer3_block0"] == [(2, 1)]
    assert [d for name, _, d in seen if name.startswith("layer4")] == [1, 2, 2]


def test_max_pool_equals_a_window_maximum():
    for size in ((8, 8), (7, 9)):
        x = jax.nn.relu(jnp.asarray(np.random.default_rng(0).normal(size=(2, *size, 3)), jnp.float32))
        expected = nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))
        np.testing.assert_array_equal(max_pool(x), expected)


def test_batch_norm_statistics():
    x = 1e3 + jnp.asarray(np.random.default_rng(0).normal(size=(4, 3, 2, 5)), jnp.float32)
    module = BatchNorm(train=True, momentum=0.75)
    variables = module.init(jax.random.key(0), x)
    variables["batch_stats"]["mean"] += 1e3  # as the running mean comes to be
    y, moved = module.apply(variables, x, mutable=["batch_stats"])
    wide = np.asarray(x, np.float64)
    mean, var = wide.mean((0, 1, 2)), wide.var((0, 1, 2))
    np.testing.assert_allclose(y, (wide - mean) / np.sqrt(var + 1e-5), atol=1e-3)
    np.testing.assert_allclose(moved["batch_stats"]["mean"], 750 + 0.25 * mean, rtol=1e-6)
    np.testing.assert_allclose(moved["batch_stats"]["var"], 0.75 + 0.25 * var * 24 / 23, rtol=1e-4)


def test_batch_norm_is_float32_inside():
    x = jnp.full((2, 4, 4, 3), 257.0, jnp.bfloat16)
    module = BatchNorm(train=False)
    y = module.apply(module.init(jax.random.key(0), x), x)
    assert y.dtype == jnp.bfloat16

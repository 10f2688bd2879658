import jax
import jax.numpy as jnp
import numpy as np
import pytest

from forec_jax.export import ExportError, Input, to_onnx
from forec_jax.models.conv import conv2d
from forec_jax.models.resize import resize

pytest.importorskip("onnx", reason="pip install 'forec-jax[export]'")
onnxruntime = pytest.importorskip("onnxruntime", reason="pip install 'forec-jax[export]'")

TABLE = np.random.default_rng(1).normal(size=(5, 7)).astype(np.float32)


def compare(function, *inputs, atol=1e-5):
    """Runs a function of arrays by JAX and as ONNX, with batches of 1 and of all rows."""
    described = [Input(f"in{number}", array.dtype, array.shape[1:]) for number, array in enumerate(inputs)]
    model = to_onnx(function, described, "out", "a test")
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    for rows in (1, len(inputs[0])):
        given = {one.name: array[:rows] for one, array in zip(described, inputs, strict=True)}
        (found,) = session.run(None, given)
        wanted = np.asarray(function(*(jnp.asarray(array) for array in given.values())))
        assert found.dtype == wanted.dtype
        np.testing.assert_allclose(found, wanted, atol=atol)
    return model


def numbers(*shape, low=-2.0, high=2.0):
    return np.random.default_rng(0).uniform(low, high, shape).astype(np.float32)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: jax.nn.softmax(x, axis=-1),
        lambda x: jax.nn.gelu(x, approximate=False),
        lambda x: jax.nn.silu(x) + jax.nn.relu6(x) - jnp.square(x) * x**3,
        lambda x: jax.lax.rsqrt(jnp.abs(x) + 1) + jnp.log1p(jnp.abs(x)) + jnp.sin(x),
        lambda x: (x - x.mean((1, 2), keepdims=True)) / jnp.maximum(x.std((1, 2), keepdims=True), 0.1),
        lambda x: jnp.where((x > 0) & ~(x > 1), x, jnp.clip(x, -1, 1)),
        lambda x: jnp.concatenate([x, jnp.broadcast_to(TABLE[0, :6], (*x.shape[:3], 6))], axis=-1),
        lambda x: jnp.pad(x, ((0, 0), (1, 2), (0, 0), (0, 0)), constant_values=3)[:, ::2, 1:-1],
        lambda x: x[:, ::2, ::3][:, 1, :1, 2:4] + x[:, 3:, 0][:, :1, -1:],
        lambda x: jnp.einsum("bhwc,bhvc->bwhv", x, x),
        lambda x: jnp.einsum("bhwc,bwk->bhkc", x, jnp.broadcast_to(TABLE[:4, :3], (x.shape[0], 4, 3))),
        lambda x: x.reshape(x.shape[0], -1, 6) @ TABLE[:4].T[:6],
        lambda x: jnp.split(x, 3, axis=-1)[1].transpose(0, 3, 1, 2),
        lambda x: jnp.argmax(x, axis=-1),
        lambda x: jnp.broadcast_to(jnp.arange(7.0), (x.shape[0], 7)),
        lambda x: jnp.all(x > -1, axis=(1, 2)) | jnp.any(x > 1.9, axis=(1, 2)),
    ],
)
def test_operators(function):
    compare(function, numbers(3, 5, 4, 6))


def test_whole_numbers_and_rows_of_a_table():
    extent = np.array([[3, 9], [1, 2], [4, 1]], np.int32)
    compare(lambda n: (-(-n * 7 // 2) % 5) // 2, extent)
    compare(lambda n: jnp.asarray(TABLE)[n[:, 0]], extent)


@pytest.mark.parametrize(
    ("strides", "padding", "dilation", "groups"),
    [
        (1, ((1, 1), (1, 1)), 1, 1),
        (2, ((0, 1), (1, 1)), 1, 1),
        (1, ((4, 4), (4, 4)), 4, 1),
        (2, ((1, 2), (1, 1)), 1, 6),
    ],
)
def test_convolutions_at_odd_sizes(strides, padding, dilation, groups):
    kernel = numbers(3, 3, 6 // groups, 6)
    model = compare(
        lambda x: conv2d(x, kernel, strides=strides, padding=padding, dilation=dilation, groups=groups),
        numbers(2, 9, 7, 6),
    )
    assert [node.op_type for node in model.graph.node].count("Conv") == 1  # not what is fastest on a CPU in JAX


def test_resizes_by_the_whole_and_by_each_image_s_own_extent():
    image, before = numbers(2, 5, 7, 3), np.array([[5, 7], [2, 4]], np.int32)
    compare(lambda x: resize(x, (9, 6), align_corners=False), image)
    compare(lambda x, n: resize(x, (9, 6), align_corners=True, extent_in=n, extent_out=n), image, before)


def test_what_is_known_is_computed_when_the_file_is_written():
    scale = numbers(6, low=1, high=2)
    model = compare(lambda x: x * jax.lax.rsqrt(scale + 1e-5)[None, None, None], numbers(2, 3, 3, 6))
    assert [node.op_type for node in model.graph.node] == ["Mul", "Identity"]


def test_an_operator_without_a_rule_is_named():
    with pytest.raises(ExportError, match="JAX's 'sort'"):
        to_onnx(lambda x: jnp.sort(x), [Input("in", np.float32, (4,))], "out", "a test")


def test_too_large_a_model_is_refused(monkeypatch):
    monkeypatch.setattr("forec_jax.export.graph.LARGEST", 10)
    with pytest.raises(ExportError, match=r"holds less than 2; take --format=safetensors"):
        to_onnx(lambda x: x @ TABLE, [Input("in", np.float32, (5,))], "out", "a test")

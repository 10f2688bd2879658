import jax
import jax.numpy as jnp
import numpy as np
import pytest

from forec_jax.contracts import HeadSpec
from forec_jax.models import U2PL, DeepLabOptions, count_parameters, deeplab_network
from forec_jax.models.decoders.deeplab import build
from forec_jax.models.layers import draw_variables
from forec_jax.models.network import Form

SMALL = DeepLabOptions(rates=(1, 2, 3), channels=8, low_level_channels=4)
SIZE = (32, 48)
MOVED = ["batch_stats"]


def maps():
    rng = np.random.default_rng(0)
    return (jnp.asarray(rng.normal(size=(2, *s)), jnp.float32) for s in ((8, 12, 6), (2, 3, 10)))


def run(options=SMALL, upsample=True, train=False, dtype=jnp.float32, seed=0):
    """A head's two halves on the maps: the output and the latent image."""
    decoder, x = build(options, Form(dtype=dtype)), tuple(m.astype(dtype) for m in maps())
    for module in (decoder.fuse(train), decoder.head(HeadSpec("segmentation", 5, upsample))(train)):
        variables = draw_variables(module, jax.random.key(0), *x, SIZE, None)
        x = module.apply(variables, *x, SIZE, None, mutable=MOVED, rngs={"dropout": jax.random.key(seed)})[0]
        x = x if isinstance(x, tuple) else (x,)
    return x


def test_output_at_the_image_and_latent_at_stride_four():
    output, latent = run()
    assert output.shape == (2, *SIZE, 5)
    assert latent.shape == (2, 8, 12, 8)
    assert output.dtype == jnp.float32


def test_without_upsampling_the_output_is_a_linear_map_of_the_latent_image():
    output, latent = run(upsample=False)
    assert output.shape == (2, 8, 12, 5)
    features = np.asarray(latent, np.float64).reshape(-1, 8)
    solution, *_ = np.linalg.lstsq(features, np.asarray(output).reshape(-1, 5), rcond=None)
    np.testing.assert_allclose(features @ solution, np.asarray(output).reshape(-1, 5), atol=1e-4)


def test_bfloat16_keeps_a_float32_output():
    output, latent = run(dtype=jnp.bfloat16)
    assert output.dtype == jnp.float32
    assert latent.dtype == jnp.bfloat16
    np.testing.assert_allclose(output, run()[0], atol=0.1)


def test_dropout_takes_whole_channels_in_train_mode_only():
    options = DeepLabOptions(rates=(1, 2, 3), channels=64, low_level_channels=4, dropout=0.5)
    _, latent = run(options, train=True)
    gone = np.asarray((latent == 0).all((1, 2)))
    assert 0.3 < gone.mean() < 0.7
    _, other = run(options, train=True, seed=1)
    assert (np.asarray((other == 0).all((1, 2))) != gone).any()
    inference = np.asarray((run(options)[1] == 0).all((1, 2)))
    assert inference.mean() < 0.2


@pytest.mark.parametrize(("share_aspp", "numbers"), [(False, (1, 2)), (True, (0, 1))])
def test_what_dropout_draws_in_the_second_half_is_as_if_the_head_were_one_module(share_aspp, numbers):
    """Stored runs go on with the draws that they had: Flax draws by a layer's name, which counts the head's dropouts."""
    head = build(DeepLabOptions(channels=8, share_aspp=share_aspp), Form()).head(HeadSpec("segmentation", 5))(True)

    def layers(x):
        variables = head.init(jax.random.key(0), x, SIZE, None)
        kinds = ["intermediates", *MOVED]
        rngs = {"dropout": jax.random.key(0)}
        return head.apply(variables, x, SIZE, None, capture_intermediates=True, mutable=kinds, rngs=rngs)[1]

    found = jax.eval_shape(layers, jax.ShapeDtypeStruct((1, 8, 12, 12), jnp.float32))["intermediates"]
    assert {name for name in found if name.startswith("Dropout")} == {f"Dropout_{number}" for number in numbers}


def test_last_layer_starts_small():
    output, _ = run(upsample=False)
    assert float(jnp.abs(output).max()) < 10.0


@pytest.mark.parametrize(
    ("options", "count"),
    [
        # branches, image pooling, projection, low level, two 3x3, BatchNorm pairs, last layer
        (DeepLabOptions(), 2048 * 256 * (2 + 27) + 1280 * 256 + 256 * 48 + (304 + 256) * 256 * 9 + 4192 + 5397),
        (U2PL, 2048 * 256 * (2 + 27) + 1280 * 256 * 9 + 256 * 256 + (512 + 256) * 256 * 9 + 4608 + 5397),
    ],
)
def test_parameter_counts_of_both_forms(options, count):
    assert parameters(options, (HeadSpec("segmentation", 21),))["segmentation"] == count


def test_a_head_that_reads_another_is_one_convolution_and_the_last_of_its_fused_map():
    """ReCo's representation head: 304 x 256 3x3 kernels, BatchNorm, and 256 x 256 + 256."""
    heads = (HeadSpec("segmentation", 21), HeadSpec("representation", 256, upsample=False, reads="segmentation"))
    assert parameters(DeepLabOptions(), heads)["representation"] == 766_720
    assert (
        parameters(DeepLabOptions(), heads)["segmentation"] == parameters(DeepLabOptions(), heads[:1])["segmentation"]
    )


def parameters(options, heads):
    """The number of parameters of each part with ResNet-101."""
    network = deeplab_network(encoder="resnet101", heads=heads, decoder=options)
    return count_parameters(jax.eval_shape(network.init, jax.random.key(0)).params)

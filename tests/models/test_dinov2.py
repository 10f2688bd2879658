"""DINOv2 and DPT: what is counted, how positions meet other sizes, padded images, other projects' names."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from forec_jax import cli
from forec_jax.contracts import HeadSpec
from forec_jax.models import WeightsError
from forec_jax.models.decoders import dpt
from forec_jax.models.dino_weights import _encoder_names, _head_names, _layout, load_dinov2
from forec_jax.models.encoders import dinov2
from forec_jax.models.encoders.dinov2 import DinoV2Options, position_weights
from forec_jax.models.network import Form, assemble, count_parameters
from forec_jax.models.pretrained import fitting_weights
from tests.torch_files import mapping, tensor, zip_file

TINY = DinoV2Options(width=1 / 6, depth=4)  # one head of 64 channels
HEADS = (HeadSpec("segmentation", 3),)


def network_of(o=TINY, variant="dinov2_small", decoder=None, heads=HEADS):
    decoder = decoder or dpt.DptOptions(4, (2, 2, 3, 3))
    return assemble(dinov2.build(variant, o, Form()), dpt.build(decoder, Form()), heads)


@pytest.mark.parametrize(
    ("variant", "decoder", "encoder", "head"),
    [  # Facebook's counts less the mask token, UniMatch V2's heads for 21 classes less the unused half of the last fusion
        ("dinov2_small", dpt.DptOptions(), 22_056_576 - 384, 2_739_061 - 73_856),
        ("dinov2_base", dpt.DptOptions(128, (96, 192, 384, 768)), 86_580_480 - 768, 10_948_309 - 295_168),
        pytest.param(
            "dinov2_large",
            dpt.DptOptions(256, (256, 512, 1024, 1024)),
            304_368_640 - 1024,
            31_210_517 - 1_180_160,
            marks=pytest.mark.slow,
        ),
        ("dinov2_giant", dpt.DptOptions(384, (1536,) * 4), 1_136_480_768 - 1536, 122_267_925 - 2 * (384**2 * 9 + 384)),
    ],
)
def test_the_published_networks_have_their_parameters(variant, decoder, encoder, head):
    network = network_of(DinoV2Options(), variant, decoder, (HeadSpec("segmentation", 21),))
    counted = count_parameters(jax.eval_shape(network.init, jax.random.key(0)).params)
    assert counted == {"encoder": encoder, "segmentation": head}


def test_registers_are_four_tokens():
    plain, more = (
        count_parameters(jax.eval_shape(network_of(o).init, jax.random.key(0)).params)["encoder"]
        for o in (TINY, DinoV2Options(width=1 / 6, depth=4, registers=True))
    )
    assert more - plain == 4 * 64


def keys_cubic(x, a):
    x = abs(x)
    if x <= 1:
        return (a + 2) * x**3 - (a + 3) * x**2 + 1
    return a * (x**3 - 5 * x**2 + 8 * x - 4) if x < 2 else 0.0


@pytest.mark.parametrize(("mode", "number"), [("offset", 16), ("offset", 57), ("size", 20), ("size", 37)])
def test_positions_are_bicubic_with_a_repeated_border(mode, number):
    scale = (number + (0.1 if mode == "offset" else 0.0)) / 37
    expected = np.zeros((number, 37))
    for row in range(number):
        at = (row + 0.5) / scale - 0.5
        for place in range(int(np.floor(at)) - 1, int(np.floor(at)) + 3):
            expected[row, min(max(place, 0), 36)] += keys_cubic(at - place, -0.75)
    np.testing.assert_allclose(position_weights(number, mode), expected, atol=1e-6)


@pytest.mark.parametrize("number", [16, 57])
def test_antialiased_positions_are_as_wide_as_the_table_is_finer(number):
    image = np.random.default_rng(0).random((37, 5)).astype(np.float32)
    expected = jax.image.resize(image, (number, 5), "cubic")
    np.testing.assert_allclose(position_weights(number, "antialias") @ image, expected, atol=1e-5)


def test_a_padded_image_gives_the_probabilities_of_the_image_alone():
    network = network_of()
    variables = network.init(jax.random.key(0))
    rng = np.random.default_rng(0)
    image = rng.random((2, 84, 84, 3), np.float32)
    sizes = ((56, 70), (84, 42))
    valid = np.zeros((2, 84, 84), bool)
    for row, (height, width) in enumerate(sizes):
        valid[row, :height, :width] = True

    @jax.jit
    def logits(image, valid=None):
        features, _ = network.encode(variables, image, valid=valid)
        return network.decode(variables, "segmentation", features)[0].output

    padded = logits(image, valid)
    for row, (height, width) in enumerate(sizes):
        alone = logits(image[row : row + 1, :height, :width])
        np.testing.assert_allclose(padded[row : row + 1, :height, :width], alone, atol=2e-5)
        assert not np.any(padded[row, height:])
        assert not np.any(padded[row, :, width:])


def test_an_image_of_another_size_is_seen_at_the_nearest_whole_patches():
    """60 x 66 pixels are 4 x 5 patches: what is beside them in the bucket changes nothing."""
    network = network_of()
    variables = network.init(jax.random.key(0))
    image = np.random.default_rng(0).random((1, 70, 70, 3), np.float32)
    valid = np.zeros((1, 70, 70), bool)
    valid[:, :60, :66] = True
    encode = jax.jit(lambda image: network.encode(variables, image, valid=valid)[0].maps[-1])
    seen = encode(image)
    other = encode(np.where(valid[..., None], image, 0.3))
    np.testing.assert_array_equal(seen[:, :4, :5], other[:, :4, :5])
    with pytest.raises(ValueError, match="patch of 14 pixels"):
        network.encode(variables, image[:, :60, :66])


def test_a_transposed_convolution_whose_kernel_is_its_stride_makes_pixels_of_pixels():
    rng = np.random.default_rng(0)
    x, kernel, bias = (rng.normal(size=shape).astype(np.float32) for shape in ((1, 2, 3, 2), (2, 2, 2, 2), (2,)))
    found = dpt._Enlarge(2, jnp.float32).apply({"params": {"kernel": kernel, "bias": bias}}, x)
    expected = np.zeros((1, 4, 6, 2), np.float32)
    for i, j, u, v in np.ndindex(2, 3, 2, 2):
        expected[0, 2 * i + u, 2 * j + v] = x[0, i, j] @ kernel[:, u, v] + bias
    np.testing.assert_allclose(found, expected, atol=1e-6)


def other_names(o, head):
    """Facebook's tensors of a tiny network, each filled with a number of its own, and that number by our path."""
    network = network_of(o)
    shapes = jax.eval_shape(network.init, jax.random.key(0)).params
    names = {**_encoder_names(_layout("dinov2_small", o)), **(_head_names() if head else {})}
    tensors, numbers = {}, {}
    for number, (ours, theirs) in enumerate(names.items()):
        leaf = shapes
        for step in ours.split("/"):
            leaf = leaf[step]
        shape = leaf.shape
        if ours.endswith("patch/kernel"):
            shape = (shape[1], 3, 14, 14)
        elif ours.endswith(("resize0/kernel", "resize1/kernel")):
            shape = (shape[0], shape[3], shape[1], shape[2])
        elif ours.endswith("kernel") and "positions" not in ours:
            shape = (shape[3], shape[2], *shape[:2]) if len(shape) == 4 else shape[::-1]
        tensors[theirs], numbers[ours] = np.full(shape, number, np.float32), number
    return network, tensors, numbers


@pytest.mark.parametrize("wrapped", ["", "module."])
def test_a_whole_model_of_unimatch_v2_fills_encoder_and_head(tmp_path, wrapped):
    network, tensors, numbers = other_names(TINY, head=True)
    unused = {"head.scratch.refinenet4.resConfUnit1.conv1.weight": np.zeros((4, 4, 3, 3), np.float32)}
    named = {
        (f"{wrapped}backbone.{n}" if "head." not in n else f"{wrapped}{n}"): t for n, t in (tensors | unused).items()
    }
    save_file(named, tmp_path / "a.safetensors")
    weights = load_dinov2(str(tmp_path / "a.safetensors"), "dinov2_small", TINY)
    layout = jax.eval_shape(network.init, jax.random.key(0))
    fitting = fitting_weights(weights, layout)
    assert jax.tree.map(np.shape, fitting.params) == jax.tree.map(lambda leaf: leaf.shape, layout.params)
    for ours, number in numbers.items():
        leaf = weights.params
        for step in ours.split("/"):
            leaf = leaf[step]
        assert np.all(leaf == number), ours


def test_a_checkpoint_of_unimatch_v2_converts(tmp_path, monkeypatch):
    """Of its two networks the teacher; what is written fits the network it is of, and is refused by others."""
    monkeypatch.setitem(dinov2.SIZES, "dinov2_small", dinov2.size_of("dinov2_small", TINY))
    _, tensors, numbers = other_names(TINY, head=True)
    stored = {f"module.{n}" if "head." in n else f"module.backbone.{n}": t for n, t in tensors.items()}
    body, arrays = {}, {}
    for key, sign in (("model", -1), ("model_ema", 1)):
        body[key], own = nested_tensors({name: sign * value for name, value in stored.items()}, len(arrays))
        arrays |= own
    source, out = tmp_path / "best.pth", tmp_path / "small.safetensors"
    source.write_bytes(zip_file(mapping(body), arrays))
    command = ["convert", "--from=unimatch_v2", f"--weights={source}", f"--out={out}"]
    assert cli.run([*command, "--arch=dinov2_small"]) == 0
    weights = load_dinov2(str(out), "dinov2_small", DinoV2Options())
    for ours, number in numbers.items():
        leaf = weights.params
        for step in ours.split("/"):
            leaf = leaf[step]
        assert np.all(leaf == number), ours
    with pytest.raises(WeightsError, match=r"^set model\.encoder=dinov2_small"):
        load_dinov2(str(out), "dinov2_base", DinoV2Options())
    with pytest.raises(WeightsError, match=r"^set model\.dinov2\.registers=False"):
        load_dinov2(str(out), "dinov2_small", DinoV2Options(registers=True))
    assert cli.run([*command, "--arch=resnet50"]) != 0


def nested_tensors(tensors, first):
    """A dict of tensors as it is pickled, and its storages, numbered from `first` on."""
    keys = {name: str(first + place) for place, name in enumerate(tensors)}
    body = {}
    for name, value in tensors.items():
        strides = [stride // value.itemsize for stride in value.strides]
        body[name] = tensor(keys[name], value.shape, strides, size=value.size)
    return mapping(body), {keys[name]: value for name, value in tensors.items()}


def test_a_patch_keeps_its_rows_columns_and_colours(tmp_path):
    _, tensors, _ = other_names(TINY, head=False)
    kernel = np.random.default_rng(0).normal(size=(64, 3, 14, 14)).astype(np.float32)
    tensors["patch_embed.proj.weight"] = kernel
    save_file(tensors, tmp_path / "a.safetensors")
    found = load_dinov2(str(tmp_path / "a.safetensors"), "dinov2_small", TINY).params["encoder"]["patch"]["kernel"]
    image = np.random.default_rng(1).random((14, 14, 3)).astype(np.float32)
    np.testing.assert_allclose(image.reshape(-1) @ found, np.einsum("ocyx,yxc->o", kernel, image), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t | {"register_tokens": np.zeros((1, 4, 64), np.float32)}, r"model\.dinov2\.registers=True"),
        (lambda t: t | {"blocks.4.norm1.weight": np.zeros(64, np.float32)}, "more blocks"),
        (lambda t: {n: v for n, v in t.items() if n != "norm.bias"}, r"missing: norm\.bias"),
        (lambda t: {n: v for n, v in t.items() if n != "pos_embed"}, "no table of positions"),
        (lambda t: t | {"patch_embed.proj.weight": np.zeros(3, np.float32)}, "take other weights\n.* another shape"),
        (lambda t: {"conv1.weight": np.zeros(1, np.float32)}, "no DINO is found"),
    ],
)
def test_weights_of_another_network_are_refused(tmp_path, change, message):
    _, tensors, _ = other_names(TINY, head=False)
    save_file(change(tensors), tmp_path / "a.safetensors")
    with pytest.raises(WeightsError, match=message) as caught:
        load_dinov2(str(tmp_path / "a.safetensors"), "dinov2_small", TINY)
    assert str(tmp_path / "a.safetensors") in str(caught.value)

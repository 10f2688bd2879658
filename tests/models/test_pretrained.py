import functools
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from forec_jax.contracts import HeadSpec
from forec_jax.models import (
    DeepLabOptions,
    WeightsError,
    deeplab_network,
    filled,
    fitting_weights,
    load_weights,
    mobilenet_v2_from_slim,
)
from forec_jax.models.convert import leaves
from forec_jax.models.encoders.mobilenet_v2 import STAGES, MobileNetV2, scaled_channels
from forec_jax.models.weightfile import Origin, write_variables

SHARED = Path(os.environ.get("FOREC_SHARED", Path(__file__).parents[3] / "shared"))
PUBLISHED = SHARED / "data/weights/mobilenetv2_1.0_224_imagenet_nologits.npz"


def made_up(width):
    """Random tensors under TF-slim's names, and the classifier's, which must be passed over."""
    rng = np.random.default_rng(0)
    tensors = {"Conv_1_weights": np.zeros((1, 1, 320, 1280)), "Logits_Conv2d_1c_1x1_biases": np.zeros(1001)}

    def add(name, shape, kernel="weights"):
        channels = shape[2] if "depthwise" in kernel else shape[3]
        tensors[f"{name}_{kernel}"] = rng.normal(size=shape) * (2 / np.prod(shape[:2]) / shape[2]) ** 0.5
        tensors[f"{name}_BatchNorm_gamma"] = rng.uniform(0.5, 1.5, channels)
        tensors[f"{name}_BatchNorm_beta"] = rng.normal(size=channels)
        tensors[f"{name}_BatchNorm_moving_mean"] = rng.normal(size=channels)
        tensors[f"{name}_BatchNorm_moving_variance"] = rng.uniform(0.5, 1.5, channels)

    before, index = scaled_channels(32, width), 0
    add("Conv", (3, 3, 3, before))
    for expansion, features, depth, _ in STAGES:
        for _ in range(depth):
            name = f"expanded_conv_{index}" if index else "expanded_conv"
            hidden, after = before * expansion, scaled_channels(features, width)
            if index:
                add(f"{name}_expand", (1, 1, before, hidden))
            add(f"{name}_depthwise", (3, 3, hidden, 1), "depthwise_weights")
            add(f"{name}_project", (1, 1, hidden, after))
            before, index = after, index + 1
    return {name: value.astype(np.float32) for name, value in tensors.items()}


def normalised(x, tensors, name, activation=True):
    t = {key: tensors[f"{name}_BatchNorm_{key}"] for key in ("gamma", "beta", "moving_mean", "moving_variance")}
    y = (x - t["moving_mean"]) / np.sqrt(t["moving_variance"] + 1e-3) * t["gamma"] + t["beta"]
    return np.clip(y, 0, 6) if activation else y


def low_level_oracle(image, tensors):
    """The stem and the first three blocks of one image with even sides, in NumPy; TensorFlow's 'SAME' padding."""

    def windows(x, strides):
        high, wide = -(-x.shape[0] // strides), -(-x.shape[1] // strides)
        low = 1 if strides == 1 else 0
        padded = np.pad(x, ((low, 1), (low, 1), (0, 0)))
        reach = strides * (high - 1) + 1, strides * (wide - 1) + 1
        return [[padded[i : i + reach[0] : strides, j : j + reach[1] : strides] for j in range(3)] for i in range(3)]

    kernel = tensors["Conv_weights"]
    seen = windows(image, 2)
    x = normalised(sum(seen[i][j] @ kernel[i, j] for i in range(3) for j in range(3)), tensors, "Conv")
    for name, strides in (("expanded_conv", 1), ("expanded_conv_1", 2), ("expanded_conv_2", 1)):
        y = x
        if name != "expanded_conv":
            y = normalised(y @ tensors[f"{name}_expand_weights"][0, 0], tensors, f"{name}_expand")
        kernel = tensors[f"{name}_depthwise_depthwise_weights"][..., 0]
        seen = windows(y, strides)
        y = sum(seen[i][j] * kernel[i, j] for i in range(3) for j in range(3))
        y = normalised(y, tensors, f"{name}_depthwise")
        y = normalised(y @ tensors[f"{name}_project_weights"][0, 0], tensors, f"{name}_project", activation=False)
        x = x + y if name == "expanded_conv_2" else y
    return x


def test_first_layers_equal_a_numpy_oracle():
    tensors = made_up(0.35)
    weights = mobilenet_v2_from_slim(tensors, width=0.35)
    image = np.random.default_rng(1).uniform(-1, 1, size=(36, 40, 3)).astype(np.float32)
    module = MobileNetV2(train=False, width=0.35)
    low, _ = jax.jit(module.apply)({"params": weights.params, "batch_stats": weights.batch_stats}, image[None])
    np.testing.assert_allclose(low[0], low_level_oracle(image.astype(np.float64), tensors), rtol=1e-3, atol=1e-3)


def test_reads_a_file_into_the_networks_layout(tmp_path):
    np.savez(tmp_path / "weights.npz", **made_up(1.0))
    weights = load_weights(tmp_path / "weights.npz", "mobilenet_v2")
    head = HeadSpec("segmentation", 3)
    network = deeplab_network(encoder="mobilenet_v2", heads=(head,), decoder=DeepLabOptions(channels=8))
    expected = jax.eval_shape(network.init, jax.random.key(0))
    for mine, other in zip(weights, expected, strict=True):
        assert jax.tree.map(jnp.shape, mine["encoder"]) == jax.tree.map(jnp.shape, other["encoder"])


def test_every_misfit_is_named():
    tensors = made_up(0.35)
    tensors["expanded_conv_3_expand_weights"] = np.zeros((1, 1, 2, 2), np.float32)
    tensors["surprise"] = np.zeros(3, np.float32)
    del tensors["Conv_BatchNorm_beta"]
    with pytest.raises(ValueError, match="Conv_BatchNorm_beta is missing") as error:
        mobilenet_v2_from_slim(tensors, width=0.35)
    assert "surprise is unknown" in str(error.value)
    assert "expanded_conv_3_expand_weights has shape (1, 1, 2, 2)" in str(error.value)


RESNET = {"encoder": "resnet18", "width": 1 / 16, "stem": "deep"}


@functools.cache
def layout(classes=3, channels=8, **options):
    head = HeadSpec("segmentation", classes)
    network = deeplab_network(heads=(head,), decoder=DeepLabOptions(channels=channels), **{**RESNET, **options})
    return jax.eval_shape(network.init, jax.random.key(0))


def made_up_variables(seed, **options):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), layout(**options))


def stored(path, **options):
    """A file of this library's with a full model; and its variables."""
    variables = made_up_variables(5, **options)
    write_variables(path, variables, Origin("resnet18", "deep", "unimatch", "0" * 64))
    return variables


def same(a, b):
    return jax.tree.all(jax.tree.map(np.array_equal, a, b))


def test_a_full_model_fills_encoder_and_head(tmp_path):
    variables = stored(tmp_path / "a.safetensors")
    weights = load_weights(tmp_path / "a.safetensors", **RESNET)
    first = made_up_variables(0)
    assert same(filled(first, fitting_weights(weights, first)), variables)


def test_a_head_for_other_classes_gives_all_but_its_last_layer(tmp_path, caplog):
    variables = stored(tmp_path / "a.safetensors", classes=21)
    first = made_up_variables(0)
    result = filled(first, fitting_weights(load_weights(tmp_path / "a.safetensors", **RESNET), first))
    head, old = result.params["segmentation"], variables.params["segmentation"]
    assert same(head["fuse2"], old["fuse2"])
    assert same(head["last"], first.params["segmentation"]["last"])
    assert same(result.batch_stats, variables.batch_stats)
    assert "params/segmentation/last/kernel is (1, 1, 8, 21), the network wants (1, 1, 8, 3)" in caplog.text


def test_a_head_of_another_form_is_left_out(tmp_path, caplog):
    variables = stored(tmp_path / "a.safetensors", channels=4)
    first = made_up_variables(0)
    result = filled(first, fitting_weights(load_weights(tmp_path / "a.safetensors", **RESNET), first))
    assert same(result.params["encoder"], variables.params["encoder"])
    assert same(result.params["segmentation"], first.params["segmentation"])
    assert "its form is another" in caplog.text


def test_an_encoder_that_does_not_fit_is_an_error(tmp_path):
    stored(tmp_path / "a.safetensors", width=1 / 8)
    weights = load_weights(tmp_path / "a.safetensors", **RESNET)
    with pytest.raises(
        WeightsError, match=r"encoder/layer1_block0/conv1/norm/mean is \(8,\), the network wants \(4,\)"
    ):
        fitting_weights(weights, layout())


def test_another_stem_says_what_to_set(tmp_path):
    stored(tmp_path / "a.safetensors")
    with pytest.raises(WeightsError, match=r"model\.encoder=resnet18 and model\.resnet\.stem=deep"):
        load_weights(tmp_path / "a.safetensors", "resnet50")


def test_a_file_of_ours_that_lacks_something_is_named(tmp_path):
    of_ours = {"format": "forec_jax", "version": "1"}
    path, kernel = tmp_path / "a.safetensors", np.zeros((1, 1, 1, 1), np.float32)
    save_file({"params/encoder/kernel": kernel}, path, metadata=of_ours)
    with pytest.raises(WeightsError, match=r"a\.safetensors does not say its arch, stem, source, sha256"):
        load_weights(path, **RESNET)
    origin = Origin(RESNET["encoder"], RESNET["stem"], "unimatch", "0" * 64)
    save_file({"params/encoder/kernel": kernel}, path, metadata=of_ours | origin._asdict())
    with pytest.raises(WeightsError, match=r"a\.safetensors holds no batch_stats"):
        load_weights(path, **RESNET)


def test_tensors_in_torchvisions_names_are_read_directly(tmp_path):
    """The encoder of a network, renamed and turned by hand."""
    variables = made_up_variables(1, stem="7x7")
    tensors = {}
    names = {"scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
    for collection in variables:
        for (_, layer, *inner), leaf in leaves({"encoder": collection["encoder"]}):
            block, conv = layer.replace("_block", "."), inner[0]
            place = {"stem": ("conv1", "bn1")}.get(layer) or {
                "downsample": (f"{block}.downsample.0", f"{block}.downsample.1"),
                "conv1": (f"{block}.conv1", f"{block}.bn1"),
                "conv2": (f"{block}.conv2", f"{block}.bn2"),
            }[conv]
            if inner[-1] == "kernel":
                tensors[f"{place[0]}.weight"] = np.ascontiguousarray(np.asarray(leaf).transpose(3, 2, 0, 1))
            else:
                tensors[f"{place[1]}.{names[inner[-1]]}"] = np.asarray(leaf)
    save_file(tensors, tmp_path / "model.safetensors")
    weights = load_weights(tmp_path / "model.safetensors", "resnet18", stem="7x7", width=1 / 16)
    assert same(weights.params["encoder"], variables.params["encoder"])
    with pytest.raises(WeightsError, match=r"model\.resnet\.stem=7x7"):
        load_weights(tmp_path / "model.safetensors", **RESNET)


def test_a_name_on_the_hub_is_fetched(tmp_path, monkeypatch):
    stored(tmp_path / "a.safetensors")
    monkeypatch.setattr("forec_jax.models.hub.fetch", {"hf:owner/name": tmp_path / "a.safetensors"}.__getitem__)
    assert set(load_weights("hf:owner/name", **RESNET).params) == {"encoder", "segmentation"}


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(WeightsError, match=r"no weights at .*none\.safetensors"):
        load_weights(tmp_path / "none.safetensors", "resnet50")


@pytest.mark.skipif(not PUBLISHED.exists(), reason=f"the published weights are not at {PUBLISHED} (FOREC_SHARED)")
def test_published_weights_fit():
    weights = load_weights(PUBLISHED, "mobilenet_v2")
    assert weights.params["encoder"]["block3"]["depthwise"]["conv"]["kernel"].shape == (3, 3, 1, 144)

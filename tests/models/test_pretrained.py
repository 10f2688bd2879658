import functools
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from forec_jax.contracts import HeadSpec, Variables
from forec_jax.models import (
    DeepLabOptions,
    WeightsError,
    convert,
    deeplab_network,
    filled,
    fitting_weights,
    load_weights,
)
from forec_jax.models.convert import leaves
from forec_jax.models.encoders import ENCODERS
from forec_jax.models.encoders.inverted import scaled_channels
from forec_jax.models.encoders.mobilenet_v2 import STAGES
from forec_jax.models.network import Form
from forec_jax.models.pretrained import convert_file
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
    for expansion, _, _, features, depth in STAGES:
        for _ in range(depth):
            name = f"expanded_conv_{index}" if index else "expanded_conv"
            hidden, after = before * expansion, scaled_channels(features, width)
            if index:
                add(f"{name}_expand", (1, 1, before, hidden))
            add(f"{name}_depthwise", (3, 3, hidden, 1), "depthwise_weights")
            add(f"{name}_project", (1, 1, hidden, after))
            before, index = after, index + 1
    return {name: value.astype(np.float32) for name, value in tensors.items()}


def normalised(x, tensors, name, epsilon, activation=True):
    t = {key: tensors[f"{name}_BatchNorm_{key}"] for key in ("gamma", "beta", "moving_mean", "moving_variance")}
    y = (x - t["moving_mean"]) / np.sqrt(t["moving_variance"] + epsilon) * t["gamma"] + t["beta"]
    return np.clip(y, 0, 6) if activation else y


def low_level_oracle(image, tensors, before, epsilon):
    """The stem and the first three blocks of one image with even sides, in NumPy.

    `before` is the margin above and to the left at stride 2: TensorFlow's 'SAME' has none at even sizes, PyTorch has 1.
    """

    def windows(x, strides):
        high, wide = -(-x.shape[0] // strides), -(-x.shape[1] // strides)
        low = 1 if strides == 1 else before
        padded = np.pad(x, ((low, 1), (low, 1), (0, 0)))
        reach = strides * (high - 1) + 1, strides * (wide - 1) + 1
        return [[padded[i : i + reach[0] : strides, j : j + reach[1] : strides] for j in range(3)] for i in range(3)]

    kernel = tensors["Conv_weights"]
    seen = windows(image, 2)
    x = normalised(sum(seen[i][j] @ kernel[i, j] for i in range(3) for j in range(3)), tensors, "Conv", epsilon)
    for name, strides in (("expanded_conv", 1), ("expanded_conv_1", 2), ("expanded_conv_2", 1)):
        y = x
        if name != "expanded_conv":
            y = normalised(y @ tensors[f"{name}_expand_weights"][0, 0], tensors, f"{name}_expand", epsilon)
        kernel = tensors[f"{name}_depthwise_depthwise_weights"][..., 0]
        seen = windows(y, strides)
        y = sum(seen[i][j] * kernel[i, j] for i in range(3) for j in range(3))
        y = normalised(y, tensors, f"{name}_depthwise", epsilon)
        y = normalised(
            y @ tensors[f"{name}_project_weights"][0, 0], tensors, f"{name}_project", epsilon, activation=False
        )
        x = x + y if name == "expanded_conv_2" else y
    return x


@pytest.mark.parametrize(("form", "before", "epsilon"), [("slim", 0, 1e-3), ("torch", 1, 1e-5)])
def test_first_layers_equal_a_numpy_oracle(form, before, epsilon):
    tensors = made_up(0.35)
    for name, value in tensors.items():
        if name.endswith("moving_variance"):
            value /= 50  # so small that the epsilons differ by a tenth
    weights = convert(tensors, "slim", "mobilenet_v2", width=0.35).variables
    image = np.random.default_rng(1).uniform(-1, 1, size=(36, 40, 3)).astype(np.float32)
    entry = ENCODERS["mobilenet_v2"]
    module = entry.build("mobilenet_v2", entry.options(width=0.35, form=form), Form()).module(False)
    low, _ = jax.jit(module.apply)({name: tree["encoder"] for name, tree in weights._asdict().items()}, image[None])
    oracle = low_level_oracle(image.astype(np.float64), tensors, before, epsilon)
    np.testing.assert_allclose(low[0], oracle, rtol=1e-3, atol=1e-3)


SUFFIXES = {"gamma": "weight", "beta": "bias", "moving_mean": "running_mean", "moving_variance": "running_var"}


def renamed(tensors, names):
    """PyTorch's tensors of TF-slim's, each layer under the name that `names` gives it, as (convolution, norm)."""
    found = {}
    for slim, (conv, norm) in names.items():
        depthwise = slim.endswith("depthwise")
        kernel = tensors[f"{slim}_{'depthwise_' if depthwise else ''}weights"]
        found[f"{conv}.weight"] = np.ascontiguousarray(kernel.transpose((2, 3, 0, 1) if depthwise else (3, 2, 0, 1)))
        found |= {f"{norm}.{theirs}": tensors[f"{slim}_BatchNorm_{ours}"] for ours, theirs in SUFFIXES.items()}
    return found


def pytorchs_names(source):
    """The names of the 51 layers in torchvision, timm and transformers, listed from their models' state dicts."""
    stems = {
        "torchvision": ("features.0.0", "features.0.1", "features.1.conv.{}.0", "features.1.conv.{}.1"),
        "timm": ("conv_stem", "bn1", "blocks.0.0.conv_dw", "blocks.0.0.bn1"),
        "transformers": (
            "conv_stem.first_conv.convolution",
            "conv_stem.first_conv.normalization",
            "conv_stem.conv_3x3.convolution",
            "conv_stem.conv_3x3.normalization",
        ),
    }
    conv, norm, first, first_norm = stems[source]
    names = {"Conv": (conv, norm), "expanded_conv_depthwise": (first.format(0), first_norm.format(0))}
    names["expanded_conv_project"] = {
        "torchvision": ("features.1.conv.1", "features.1.conv.2"),
        "timm": ("blocks.0.0.conv_pw", "blocks.0.0.bn2"),
        "transformers": ("conv_stem.reduce_1x1.convolution", "conv_stem.reduce_1x1.normalization"),
    }[source]
    places = [(stage, block) for stage, depth in enumerate((1, 2, 3, 4, 3, 3, 1)) for block in range(depth)]
    for index in range(1, 17):
        at, (stage, block) = f"features.{index + 1}.conv", places[index]
        of = {
            "torchvision": [(f"{at}.0.0", f"{at}.0.1"), (f"{at}.1.0", f"{at}.1.1"), (f"{at}.2", f"{at}.3")],
            "timm": [
                (f"blocks.{stage}.{block}.{name}", f"blocks.{stage}.{block}.bn{number}")
                for number, name in enumerate(("conv_pw", "conv_dw", "conv_pwl"), start=1)
            ],
            "transformers": [
                (f"layer.{index - 1}.{name}.convolution", f"layer.{index - 1}.{name}.normalization")
                for name in ("expand_1x1", "conv_3x3", "reduce_1x1")
            ],
        }[source]
        parts = ("expand", "depthwise", "project")
        names |= {f"expanded_conv_{index}_{part}": pair for part, pair in zip(parts, of, strict=True)}
    return names


@pytest.mark.parametrize(
    "source",
    [pytest.param("torchvision", marks=pytest.mark.slow), pytest.param("timm", marks=pytest.mark.slow), "transformers"],
)
def test_a_mobilenet_v2_under_pytorchs_names_equals_tf_slims(source):
    tensors = made_up(0.35)
    theirs = renamed(tensors, pytorchs_names(source)) | {"classifier.1.weight": np.zeros((1000, 8), np.float32)}
    wrapped = {f"backbone.{name}": value for name, value in theirs.items()}
    converted = convert(wrapped, source, "mobilenet_v2", width=0.35)
    assert converted.stem == ("slim" if source == "transformers" else "torch")
    assert same(converted.variables, convert(tensors, "slim", "mobilenet_v2", width=0.35).variables)


def test_a_mobilenet_v2_is_refused_by_a_network_of_the_other_form(tmp_path):
    theirs = renamed(made_up(1.0), pytorchs_names("torchvision"))
    save_file(theirs, tmp_path / "model.safetensors")
    assert load_weights(tmp_path / "model.safetensors", "mobilenet_v2", form="torch").params.keys() == {"encoder"}
    with pytest.raises(
        WeightsError, match=r"^.*: set model\.encoder=mobilenet_v2 and model\.mobilenet_v2\.form=torch, or"
    ):
        load_weights(tmp_path / "model.safetensors", "mobilenet_v2")
    with pytest.raises(WeightsError, match=r"set --arch=mobilenet_v2 \(model\.encoder=mobilenet_v2 in a training\)"):
        load_weights(tmp_path / "model.safetensors", "resnet50")


def test_what_convert_wrote_of_a_mobilenet_v2_knows_its_form(tmp_path):
    np.savez(tmp_path / "theirs.npz", **renamed(made_up(1.0), pytorchs_names("timm")))
    _, origin = convert_file(tmp_path / "theirs.npz", tmp_path / "ours.safetensors", "timm", "mobilenet_v2", None)
    assert (origin.arch, origin.stem) == ("mobilenet_v2", "torch")
    weights = load_weights(tmp_path / "ours.safetensors", "mobilenet_v2", form="torch")
    assert same(weights, convert(made_up(1.0), "slim", "mobilenet_v2").variables)
    with pytest.raises(WeightsError, match=r"model\.mobilenet_v2\.form=torch"):
        load_weights(tmp_path / "ours.safetensors", "mobilenet_v2")


def test_reads_a_file_into_the_networks_layout(tmp_path):
    np.savez(tmp_path / "weights.npz", **made_up(1.0))
    weights = load_weights(tmp_path / "weights.npz", "mobilenet_v2")
    head = HeadSpec("segmentation", 3)
    network = deeplab_network(encoder="mobilenet_v2", heads=(head,), decoder=DeepLabOptions(channels=8))
    expected = jax.eval_shape(network.init, jax.random.key(0))
    for mine, other in zip(weights, expected, strict=True):
        assert jax.tree.map(jnp.shape, mine["encoder"]) == jax.tree.map(jnp.shape, other["encoder"])


def test_misfits_are_named_in_three_lines_behind_the_remedy():
    tensors = made_up(0.35)
    tensors["expanded_conv_3_expand_weights"] = np.zeros((1, 1, 2, 2), np.float32)
    tensors["surprise"] = np.zeros(3, np.float32)
    del tensors["Conv_BatchNorm_beta"]
    with pytest.raises(WeightsError) as error:
        convert(tensors, "slim", "mobilenet_v2", width=0.35)
    remedy, problems = str(error.value).splitlines()
    assert remedy == "take weights of a plain mobilenet_v2 of width 0.35, as model.mobilenet_v2.width says"
    assert "Conv_BatchNorm_beta is missing; expanded_conv_3_expand_weights has shape (1, 1, 2, 2)" in problems
    assert problems.endswith("surprise is unknown")


@pytest.mark.parametrize("source", ["slim", "timm"])
def test_a_mobilenet_v2_of_another_width_says_which(source):
    tensors = made_up(0.35)
    tensors = tensors if source == "slim" else renamed(tensors, pytorchs_names(source))
    with pytest.raises(
        WeightsError, match=r"^set model\.mobilenet_v2\.width=0\.35 and model\.weights to this"
    ) as error:
        convert(tensors, source, "mobilenet_v2")
    assert len(str(error.value)) < 600


def test_the_deep_stem_says_whose_weights_have_it(tmp_path):
    write_variables(
        tmp_path / "a.safetensors", made_up_variables(0), Origin("resnet101", "7x7", "torchvision", "0" * 64)
    )
    with pytest.raises(WeightsError, match=r"resnet\.stem=7x7, or for the deep stem .*=hf:timm/resnet101s\.gluon_in1k"):
        load_weights(tmp_path / "a.safetensors", "resnet101", stem="deep")


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


def test_other_parts_are_taken_where_they_have_the_same_form():
    """A task's head of one form and one of another, in a run's student; no part that the network has not."""
    encoder = {"encoder": {"kernel": np.zeros((2, 2))}}
    heads = {name: {"last": {"kernel": np.ones((2, size))}} for name, size in (("same", 3), ("other", 4), ("gone", 3))}
    wanted = {name: {"last": {"kernel": np.zeros((2, 3))}} for name in ("same", "other")}
    weights = Variables({**encoder, **heads}, {"encoder": {}})
    taken = fitting_weights(weights, Variables({**encoder, **wanted}, {"encoder": {}}))
    assert (taken.params.keys(), taken.batch_stats.keys()) == ({"encoder", "same"}, {"encoder"})
    assert same(filled(Variables({**encoder, **wanted}, {"encoder": {}}), taken).params["same"], heads["same"])


def test_an_encoder_that_does_not_fit_is_an_error(tmp_path):
    stored(tmp_path / "a.safetensors", width=1 / 8)
    weights = load_weights(tmp_path / "a.safetensors", **RESNET)
    with pytest.raises(
        WeightsError, match=r"encoder/layer1_block0/conv1/norm/mean is \(8,\), the network wants \(4,\)"
    ):
        fitting_weights(weights, layout())


def test_another_stem_says_what_to_set(tmp_path):
    stored(tmp_path / "a.safetensors")
    with pytest.raises(WeightsError, match=r"set model\.encoder=resnet18 and model\.resnet\.stem=deep"):
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

import hashlib
import logging

import jax
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file
from torch_files import mapping, saved

from forec_jax import cli
from forec_jax.models import WeightsError, convert
from forec_jax.models.encoders.resnet import BLOCKS
from forec_jax.models.naming import Place, choose_network, locate
from forec_jax.models.weightfile import read_tensors

WIDTH = 1 / 16
NORM = ("weight", "bias", "running_mean", "running_var")


BASIC, BOTTLENECK = ((3, 1), (3, 1)), ((1, 1), (3, 1), (1, 4))  # a block's kernels, and their channels in widths
DEPTHS = {
    "resnet18": (BASIC, (2, 2, 2, 2)),
    "resnet34": (BASIC, (3, 4, 6, 3)),
    "resnet50": (BOTTLENECK, (3, 4, 6, 3)),
    "resnet101": (BOTTLENECK, (3, 4, 23, 3)),
    "resnet14": (BOTTLENECK, (1, 1, 1, 1)),
    "resnet26": (BOTTLENECK, (2, 2, 2, 2)),
    "resnet152": (BOTTLENECK, (3, 8, 36, 3)),
    "resnet200": (BOTTLENECK, (3, 24, 36, 3)),
}


def resnet(arch, width=WIDTH):
    """Random tensors under torchvision's names, listed here by hand, with the classifier and the counters."""
    rng = np.random.default_rng(0)
    tensors = {"fc.weight": np.zeros((1000, 8)), "fc.bias": np.zeros(1000)}

    def add(conv, norm, after, before, size):
        tensors[f"{conv}.weight"] = rng.normal(size=(after, before, size, size))
        tensors.update({f"{norm}.{name}": rng.uniform(0.5, 1.5, after) for name in NORM})
        tensors[f"{norm}.num_batches_tracked"] = np.zeros((), np.int64)

    convs, depths = DEPTHS[arch]
    before = int(64 * width)
    add("conv1", "bn1", before, 3, 7)
    for layer, depth in enumerate(depths, start=1):
        inner = int(64 * width) * 2 ** (layer - 1)
        for block in range(depth):
            entering = before
            for number, (size, factor) in enumerate(convs, start=1):
                add(
                    f"layer{layer}.{block}.conv{number}",
                    f"layer{layer}.{block}.bn{number}",
                    factor * inner,
                    before,
                    size,
                )
                before = factor * inner
            if entering != before:
                add(f"layer{layer}.0.downsample.0", f"layer{layer}.0.downsample.1", before, entering, 1)
    return {name: value if value.dtype == np.int64 else value.astype(np.float32) for name, value in tensors.items()}


def resnet18():
    return resnet("resnet18")


@pytest.mark.parametrize(
    "arch",
    [
        pytest.param(arch, marks=[pytest.mark.slow] if arch in ("resnet101", "resnet152", "resnet200") else [])
        for arch in BLOCKS
    ],
)
def test_every_depth_uses_every_tensor_once(arch):
    tensors = resnet(arch)
    used = convert(tensors, "torchvision", arch, width=WIDTH).variables
    sums = sorted(float(np.sum(leaf, dtype=np.float64)) for leaf in jax.tree.leaves(used))
    dropped = ("fc.", "num_batches_tracked")
    kept = [value for name, value in tensors.items() if not any(part in name for part in dropped)]
    np.testing.assert_allclose(sums, sorted(float(np.sum(value, dtype=np.float64)) for value in kept), rtol=1e-9)


def test_every_tensor_finds_its_place(caplog):
    tensors = resnet18()
    with caplog.at_level(logging.INFO, "forec_jax"):
        variables, stem = convert(tensors, "torchvision", "resnet18", width=WIDTH)
    assert stem == "7x7"
    assert set(variables.params) == {"encoder"}
    layer = variables.params["encoder"]["layer3_block0"]["downsample"]
    assert layer["conv"]["kernel"].shape == (1, 1, 8, 16)
    assert layer["conv"]["kernel"][0, 0, 5, 3] == tensors["layer3.0.downsample.0.weight"][3, 5, 0, 0]
    kernel = variables.params["encoder"]["stem"]["conv"]["kernel"]
    assert kernel[6, 2, 1, 3] == tensors["conv1.weight"][3, 1, 6, 2]
    stats = variables.batch_stats["encoder"]["layer1_block1"]["conv2"]["norm"]
    np.testing.assert_array_equal(stats["var"], tensors["layer1.1.bn2.running_var"])
    assert "fc.weight" in caplog.text
    assert "20 num_batches_tracked" in caplog.text


def test_a_bias_before_batch_norm_goes_into_the_running_mean():
    tensors = resnet18()
    tensors["layer2.0.conv1.bias"] = np.arange(8, dtype=np.float32)
    stats = convert(tensors, "timm", "resnet18", width=WIDTH).variables.batch_stats["encoder"]
    mean = tensors["layer2.0.bn1.running_mean"] - np.arange(8)
    np.testing.assert_allclose(stats["layer2_block0"]["conv1"]["norm"]["mean"], mean, rtol=1e-6)


def test_misfits_are_named_in_three_lines_behind_the_remedy():
    tensors = resnet18()
    tensors["layer1.0.conv1.weight"] = np.zeros((4, 4, 1, 1), np.float32)
    tensors["layer1.0.conv9.weight"] = np.zeros(3, np.float32)
    tensors["layer1.0.conv2.bias"] = np.zeros(3, np.float32)
    del tensors["layer4.1.bn2.running_var"]
    del tensors["layer1.0.bn1.weight"]
    with pytest.raises(WeightsError) as error:
        convert(tensors, "torchvision", "resnet18", width=WIDTH)
    remedy, problems = str(error.value).splitlines()
    assert remedy.startswith("take weights of")
    assert "layer1.0.bn1.weight is missing; layer1.0.conv1.weight has shape (4, 4, 1, 1)" in problems
    assert "layer1.0.conv2.bias has shape (3,), the network wants (4,)" in problems
    assert problems.endswith(", and 2 more")


def test_another_naming_is_refused_by_whose_it_is():
    deep = {name.replace("conv1.weight", "conv1.0.weight"): value for name, value in resnet18().items()}
    with pytest.raises(WeightsError, match="--from=torchvision is right"):
        convert(deep, "transformers", "resnet18", width=WIDTH)


@pytest.mark.parametrize(
    ("holds", "asked", "message"),
    [
        ("resnet18", "resnet34", r"^set --arch=resnet18 \(model\.encoder=resnet18"),
        ("resnet50", "resnet18", "^set --arch=resnet50"),
        ("resnet26", "resnet50", "^set --arch=resnet26"),
        ("resnet200", "resnet101", "^take weights of resnet18, resnet26, resnet34, .*: the tensors are a resnet200's"),
        ("resnet14", "resnet18", "a resnet14's, which is not among the encoders here"),
        ("resnet14", "resnet14", "^resnet14 of torchvision: there are resnet18, resnet26, .*, mobilenet_v2, .* of"),
        ("resnet18", "mobilenet_v2", r"^set --arch=resnet18 \(model.encoder=resnet18 in a training\)"),
    ],
)
def test_another_depth_is_named(holds, asked, message):
    with pytest.raises(WeightsError, match=message):
        convert(resnet(holds), "torchvision", asked, width=WIDTH)


def under(prefix, tensors):
    return {prefix + name: value for name, value in tensors.items()}


WRAPPED = {
    "a state_dict": lambda t: {"state_dict": t, "epoch": 3, "arch": "resnet18"},
    "a model beside an optimizer": lambda t: {"model": t, "optimizer": {"state": {0: {"exp_avg": np.zeros(1)}}}},
    "a model in a state_dict": lambda t: {"state_dict": {"model": t}},
    "a network by a name of its own": lambda t: {"net": {"trunk": t}},
    "backbone.": lambda t: under("backbone.", t),
    "encoder.": lambda t: under("encoder.", t),
    "model.": lambda t: under("model.", t),
    "module.": lambda t: under("module.", t),
    "module.model.backbone.": lambda t: {"state_dict": under("module.model.backbone.", t)},
    "a compiled module": lambda t: under("_orig_mod.module.", t),
    "torchvision's deeplabv3": lambda t: (
        under("backbone.", t) | under("classifier.", {"4.weight": np.zeros(3)}) | under("aux_classifier.", t_head())
    ),
    "segmentation_models.pytorch": lambda t: (
        under("encoder.", t)
        | under("decoder.blocks.0.", t_head())
        | under("segmentation_head.0.", {"weight": np.zeros(3)})
    ),
    "segmentation_models.pytorch's DeepLabV3+, whose decoder has an ASPP as U2PL's": lambda t: (
        under("encoder.", t) | under("decoder.aspp.0.convs.", t_head()) | under("segmentation_head.0.", t_head())
    ),
    "a head with norms, as UniMatch's has branches": lambda t: under("backbone.", t) | under("head.bn.", t_head()),
    "MoCo": lambda t: {
        "state_dict": under("module.encoder_q.", t)
        | under("module.encoder_k.", {name: 0 * value for name, value in t.items()})
        | {"module.queue": np.zeros((2, 2))}
    },
}


def t_head():
    return {"conv1.0.weight": np.zeros(3), "conv1.0.bias": np.zeros(3)}


@pytest.mark.parametrize("how", list(WRAPPED))
@pytest.mark.parametrize("source", ["torchvision", None])
def test_an_encoder_is_found_in_what_people_wrap_it_in(how, source):
    tensors = resnet18()
    found = choose_network(WRAPPED[how](tensors), None)
    converted = convert(found, source or locate(found).source, "resnet18", width=WIDTH)
    kernel = converted.variables.params["encoder"]["stem"]["conv"]["kernel"]
    np.testing.assert_array_equal(kernel, tensors["conv1.weight"].transpose(2, 3, 1, 0))


def test_of_two_encoders_neither_is_guessed():
    tensors = under("left.", resnet18()) | under("right.", resnet18())
    with pytest.raises(
        WeightsError, match=r"^save one network's state_dict alone\nthe file holds 2, at left\., right\."
    ):
        convert(tensors, "torchvision", "resnet18", width=WIDTH)


def test_a_checkpoints_network_is_chosen():
    student, teacher = {"module.conv1.weight": np.zeros(1)}, {"module.conv1.weight": np.ones(1)}
    both = {"epoch": 3, "model_state": student, "teacher_state": teacher}
    assert choose_network(both, None)["conv1.weight"] == 1
    assert choose_network(both, "student")["conv1.weight"] == 0
    assert choose_network({"model": student, "epoch": 3}, None)["conv1.weight"] == 0
    assert choose_network(teacher, None)["conv1.weight"] == 1
    with pytest.raises(WeightsError, match=r"no teacher; it holds student \(model\)"):
        choose_network({"model": student}, "teacher")
    with pytest.raises(WeightsError, match="not marked"):
        choose_network(student, "teacher")


BLOCK = "layer1.0.conv1.weight"
U2PL = ("encoder.conv1.0.weight", f"encoder.{BLOCK}", "decoder.aspp.conv2.0.weight")
UNIMATCH = ("backbone.conv1.0.weight", f"backbone.{BLOCK}", "head.b0.0.weight")
TRANSFORMERS = ("embedder.embedder.convolution.weight", "encoder.stages.0.layers.0.layer.0.convolution.weight")


def named(*names, root=""):
    return {root + name: np.zeros(1) for name in (*names, "other")}


@pytest.mark.parametrize(
    ("tensors", "place"),
    [
        (named("conv1.weight", BLOCK), Place("torchvision", "")),
        (named("conv1.0.weight", BLOCK), Place("torchvision", "")),
        (named(*TRANSFORMERS, root="resnet."), Place("transformers", "resnet.")),
        (named(*U2PL), Place("u2pl", "")),
        (named(*U2PL, root="module."), Place("u2pl", "module.")),
        (named(*UNIMATCH), Place("unimatch", "")),
        (named(*U2PL[:2]), Place("torchvision", "encoder.")),
    ],
)
def test_source_and_place_show_in_the_names(tensors, place):
    assert locate(tensors) == place


@pytest.mark.parametrize("names", [("stem.weight",), ("conv1.weight",), ()])
def test_names_of_no_resnet_are_refused(names):
    with pytest.raises(WeightsError, match=r"^save an encoder under torchvision's names .*\n.*cannot be told"):
        locate(dict.fromkeys(names))


@pytest.mark.parametrize(
    ("names", "said", "right"),
    [
        (U2PL, "unimatch", "u2pl"),
        (UNIMATCH, "u2pl", "unimatch"),
        (U2PL, "torchvision", "u2pl"),
        (TRANSFORMERS, "u2pl", "transformers"),
        (("conv1.weight", BLOCK), "transformers", "torchvision"),
    ],
)
def test_a_file_of_another_project_is_called_by_its_name(names, said, right):
    with pytest.raises(WeightsError, match=f"^--from={right} is right: these are {right}'s names, not {said}'s"):
        convert(named(*names), said, "resnet50")


@pytest.mark.parametrize("said", ["torchvision", "timm", "u2pl", "unimatch"])
def test_an_encoder_in_torchvisions_names_is_of_all_who_start_from_one(said):
    assert locate(named("conv1.weight", BLOCK), said) == Place("torchvision", "")


def test_the_command_writes_this_librarys_file(tmp_path, capsys):
    tensors = resnet("resnet18", width=1.0)
    del tensors["fc.weight"], tensors["fc.bias"]
    source, out = tmp_path / "source.npz", tmp_path / "out.safetensors"
    np.savez(source, **tensors)
    command = ["convert", "--from=torchvision", "--arch=resnet18", f"--weights={source}", f"--out={out}"]
    assert cli.run(command) == 0
    assert "resnet18" in capsys.readouterr().out
    with safe_open(out, framework="np") as file:
        metadata = file.metadata()
        kernel = file.get_tensor("params/encoder/layer2_block1/conv1/conv/kernel")
    np.testing.assert_array_equal(kernel, tensors["layer2.1.conv1.weight"].transpose(2, 3, 1, 0))
    assert metadata == {
        "format": "forec_jax",
        "version": "1",
        "arch": "resnet18",
        "stem": "7x7",
        "source": "torchvision",
        "sha256": hashlib.sha256(source.read_bytes()).hexdigest(),
    }
    assert cli.run([*command[:3], "--weights=none.pth", command[4]]) == 2
    assert "no weights at none.pth" in capsys.readouterr().err


@pytest.mark.parametrize("suffix", [".safetensors", ".npz", ".bin"])
def test_an_unreadable_file_is_named(tmp_path, suffix):
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(b"no tensors")
    with pytest.raises(WeightsError, match=f"weights{suffix}"):
        read_tensors(path)


@pytest.mark.parametrize("old", [True, False])
def test_a_checkpoint_of_pytorchs_gives_its_network(tmp_path, old):
    path, tensors = tmp_path / "checkpoint.pth", resnet18()
    path.write_bytes(saved(tensors, old=old, args=mapping({})))
    variables = convert(choose_network(read_tensors(path), None), "torchvision", "resnet18", width=WIDTH).variables
    kernel = variables.params["encoder"]["stem"]["conv"]["kernel"]
    np.testing.assert_array_equal(kernel, tensors["conv1.weight"].transpose(2, 3, 1, 0))


@pytest.mark.parametrize("old", [True, False])
def test_a_file_that_pytorch_wrote_is_read_as_pytorch_reads_it(tmp_path, old):
    torch = pytest.importorskip("torch", reason="pip install 'forec-jax[parity]'")
    base, layer = torch.arange(24.0).reshape(4, 6), torch.nn.Conv2d(2, 3, 3)
    tensors = {
        "turned": base.t()[1:],
        "part": base[1:3, 2:4],
        "parameter": layer.weight,
        "halves": torch.randn(4).bfloat16(),
        "counter": torch.tensor(3),
        "empty": torch.zeros(0, 3),
    }
    optimizer = torch.optim.Adam(layer.parameters())
    layer(torch.randn(1, 2, 4, 4)).sum().backward()
    optimizer.step()
    checkpoint = {"model": tensors, "optimizer": optimizer.state_dict(), "best": np.float64(0.5), "lr": 1e-3}
    path = tmp_path / "a.pth"
    torch.save(checkpoint, path, _use_new_zipfile_serialization=not old)
    read = read_tensors(path)
    for name, tensor in tensors.items():
        expected = tensor.detach().float() if tensor.is_floating_point() else tensor
        np.testing.assert_array_equal(read["model"][name], expected.numpy())
    moment = optimizer.state_dict()["state"][0]["exp_avg"].numpy()
    np.testing.assert_array_equal(read["optimizer"]["state"][0]["exp_avg"], moment)
    assert read["lr"] == 1e-3


def test_raw_safetensors_equal_npz(tmp_path):
    tensors = resnet18()
    save_file(tensors, tmp_path / "a.safetensors")
    np.savez(tmp_path / "a.npz", **tensors)
    a, b = read_tensors(tmp_path / "a.safetensors"), read_tensors(tmp_path / "a.npz")
    assert set(a) == set(b) == set(tensors)
    assert all(np.array_equal(a[name], b[name]) for name in tensors)

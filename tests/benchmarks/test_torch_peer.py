"""The PyTorch counterpart is the library's network and step, so that their times may be compared."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from forec_jax.augment import adjust_hue, gaussian_blur
from forec_jax.contracts import HeadSpec, Variables
from forec_jax.experiment import build
from forec_jax.experiment.plan import counted_flops
from forec_jax.models import DeepLabOptions, convert, count_parameters, deeplab_network
from forec_jax.models.convert import leaves, nested
from forec_jax.models.dino_weights import load_dinov2
from forec_jax.models.encoders.dinov2 import DinoV2Options

torch = pytest.importorskip("torch", reason="pip install 'forec-jax[bench]'")
import operators  # noqa: E402
import torch_networks  # noqa: E402
import torch_peer  # noqa: E402
import torch_views  # noqa: E402
from torch.utils.flop_counter import FlopCounterMode  # noqa: E402
from train_step import peer_network  # noqa: E402
from workload import LABELS, Workload, random_batch  # noqa: E402

HEADS = {"segmentation": 5, "reconstruction": 3}
SPECS = tuple(HeadSpec(name, channels) for name, channels in HEADS.items())
SMALL = DeepLabOptions(rates=(1, 2, 3), channels=16, low_level_channels=8)
WIDTH = 0.125


def small_peer(encoder, width=1.0, output_stride=16):
    """With running statistics away from 0 and 1."""
    torch.manual_seed(0)
    shape = {"channels": SMALL.channels, "low_channels": SMALL.low_level_channels, "rates": SMALL.rates}
    peer = torch_networks.deeplab_peer(encoder, HEADS, output_stride=output_stride, width=width, **shape)
    for name, buffer in peer.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            buffer.uniform_(0.5, 1.5)
    return peer.eval()


def of_head(tensors, head):
    """The tensors of a model whose only decoder is this head."""
    prefix = f"heads.{head}."
    own = {name: value for name, value in tensors.items() if name.startswith("backbone.")}
    return own | {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def images(size):
    return np.random.default_rng(0).uniform(size=(2, size, size, 3)).astype(np.float32)


def run_peer(module, image):
    with torch.no_grad():
        return module(torch.from_numpy(image).permute(0, 3, 1, 2))


def assert_images_equal(ours, theirs, tolerance=1e-4):
    np.testing.assert_allclose(ours, theirs.permute(0, 2, 3, 1).numpy(), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("encoder", ["mobilenet_v2", "resnet50", "resnet101"])
def test_every_part_has_as_many_parameters(encoder):
    with torch.device("meta"):
        peer = torch_networks.deeplab_peer(encoder, HEADS)
    variables = jax.eval_shape(deeplab_network(encoder=encoder, heads=SPECS).init, jax.random.key(0))
    theirs = {name: torch_networks.parameter_count(head) for name, head in peer.heads.items()}
    assert count_parameters(variables.params) == {"encoder": torch_networks.parameter_count(peer.backbone), **theirs}


def transformer(encoder, crop, method="unimatch_v2", **more):
    """A workload of 2 + 2 images, its config and the library's network."""
    workload = Workload(method, encoder, 16, 4, crop, "float32", **more)
    c = workload.config()
    return workload, c, build.build_method(c, LABELS).networks["student"]


@pytest.mark.parametrize("encoder", ["dinov2_small", "dinov2_base"])
def test_a_transformer_has_as_many_parameters_and_does_as_much_work(encoder):
    """Of a forward pass, within 3 % for what is no product, and without the library's resizes, which are products."""
    _, c, network = transformer(encoder, 518)
    with torch.device("meta"):
        peer, image = peer_network(c), torch.empty(1, 3, 518, 518)
    theirs = {"encoder": peer.backbone, **peer.heads}
    variables = jax.eval_shape(network.init, jax.random.key(0))
    sizes = {name: torch_networks.parameter_count(part) for name, part in theirs.items()}
    assert count_parameters(variables.params) == sizes

    def forward(variables, image):
        return network.decode(variables, "segmentation", network.encode(variables, image)[0])[0].output

    ours = counted_flops(jax.jit(forward).trace(variables, jax.ShapeDtypeStruct((1, 518, 518, 3), jnp.float32)))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        peer(image)
    assert ours - resizing(c) == pytest.approx(counter.get_total_flops(), rel=0.03)


def resizing(c):
    """FLOP of a head's resizes of a 518 x 518 image, first along the columns."""
    sizes = [(19, 37), (37, 74), (74, 148), (148, 296)]
    resizes = [(c.model.dpt.channels, *pair) for pair in sizes] + [(len(LABELS.classes), 296, 518)]
    return sum(2 * channels * old * new * (old + new) for channels, old, new in resizes)


def test_a_transformer_says_the_same(tmp_path):
    """Its tensors have the names of UniMatch V2's checkpoints; the image has other numbers of patches than the table."""
    torch.manual_seed(0)
    _, c, network = transformer("vit_tiny", 42)
    peer, image = peer_network(c).eval(), images(42)
    for name, parameter in peer.named_parameters():
        if name.endswith("gamma"):
            parameter.data.uniform_(0.5, 1.5)
    tensors = peer.state_dict()
    torch.save(
        {name.replace("heads.segmentation.", "head."): value for name, value in tensors.items()}, tmp_path / "v.pth"
    )
    o = DinoV2Options(width=c.model.dinov2.width, depth=c.model.dinov2.depth)
    variables = load_dinov2(str(tmp_path / "v.pth"), c.model.encoder, o)
    features, _ = network.encode(variables, jnp.asarray(image))
    ours, _ = network.decode(variables, "segmentation", features)
    assert_images_equal(ours.output, run_peer(peer, image)["segmentation"])


@pytest.mark.parametrize("output_stride", [8, 16])
def test_both_heads_of_a_resnet_say_the_same(output_stride):
    peer, image = small_peer("resnet50", WIDTH, output_stride), images(65)
    tensors = {name: value.numpy() for name, value in peer.state_dict().items()}
    expected = run_peer(peer, image)
    for head in SPECS:
        # The converter knows one decoder, the segmentation's: each head takes its turn as that.
        variables = convert(of_head(tensors, head.name), "unimatch", "resnet50", width=WIDTH, decoder=SMALL).variables
        single = deeplab_network(
            encoder="resnet50",
            heads=(HeadSpec("segmentation", head.channels),),
            width=WIDTH,
            output_stride=output_stride,
            decoder=SMALL,
        )
        features, _ = single.encode(variables, jnp.asarray(image))
        output, _ = single.decode(variables, "segmentation", features)
        assert_images_equal(output.output, expected[head.name])


def test_mobilenet_v2_sees_the_same():
    """Its tensors have the library's own names; the decoder is the ResNets'."""
    peer, image = small_peer("mobilenet_v2"), images(64)
    names = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
    network = deeplab_network(encoder="mobilenet_v2", heads=())
    layout = jax.eval_shape(network.init, jax.random.key(0))
    tensors = peer.backbone.state_dict()
    filled = {}
    for path, leaf in leaves(layout._asdict()):
        value = tensors[".".join((*path[2:-1], names[path[-1]]))].numpy()
        filled[path] = jnp.asarray(value.transpose(2, 3, 1, 0) if value.ndim == 4 else value)
        assert filled[path].shape == leaf.shape
    features, _ = network.encode(Variables(**nested(filled)), jnp.asarray(image))
    low, high = run_peer(peer.backbone, 2 * image - 1)
    assert_images_equal(features.maps[0], low)
    assert_images_equal(features.high, high, 1e-3)


def test_hue_and_blur_are_the_librarys():
    image, amount = images(21), np.array([0.2, -0.15], np.float32)
    theirs = torch.from_numpy(image).permute(0, 3, 1, 2)
    assert_images_equal(adjust_hue(image, amount), torch_views.adjust_hue(theirs, torch.from_numpy(amount)))
    sigma = np.array([0.7, 2.0], np.float32)
    assert_images_equal(gaussian_blur(image, sigma), torch_views.gaussian_blur(theirs, torch.from_numpy(sigma)))


@pytest.mark.parametrize(("method", "dtype"), [("supervised", "float32"), ("forec", "bfloat16")])
def test_a_step_moves_student_and_teacher(method, dtype):
    peer = small_peer("resnet50", WIDTH)
    batch = random_batch(Workload(method, "resnet50", 16, 4, 33, dtype).config())
    batch = batch._replace(labelled=batch.labelled._replace(label=batch.labelled.label % HEADS["segmentation"]))
    step = torch_peer.TorchStep(peer, method, batch, dtype, compiled=False)
    before = [value.clone() for value in step.pairs[0]]
    losses = [float(step.step()[0]) for _ in range(2)]
    assert np.isfinite(losses).all()
    assert any(not torch.equal(a, b) for a, b in zip(before, step.pairs[0], strict=True))
    assert list(step.teacher.heads) == ["segmentation"]


@pytest.mark.parametrize(("encoder", "crop"), [("vit_tiny", 28), ("mobilenet_v2", 33)])
@pytest.mark.parametrize("freeze", [False, True])
def test_a_step_of_unimatch_v2_moves_what_is_trained(encoder, crop, freeze):
    workload, c, _ = transformer(encoder, crop, freeze=freeze)
    network = peer_network(c)
    step = torch_peer.STEPS[workload.method](
        network, workload.method, random_batch(c), "bfloat16", compiled=False, frozen=freeze
    )
    before = {name: value.clone() for name, value in step.student.state_dict().items()}
    losses = [float(step.step()[0]) for _ in range(2)]
    assert np.isfinite(losses).all()
    assert step.flops() > 0  # which runs the networks in inference, and must leave them as they are
    after = step.student.state_dict()
    moved = {name for name, value in before.items() if not torch.equal(value, after[name])}
    assert {name.split(".")[0] for name in moved} == ({"heads"} if freeze else {"heads", "backbone"})
    assert freeze == all(weight.grad is None for weight in step.student.backbone.parameters())


def test_each_view_keeps_the_channels_that_the_other_drops():
    torch.manual_seed(0)
    maps = torch_views.complementary_dropout((torch.ones(8, 16, 2, 2), torch.ones(8, 16, 1, 1)))
    assert torch.equal(maps[0][..., :1, :1], maps[1])
    pairs = torch.stack(maps[1].squeeze().chunk(2))
    assert torch.equal(pairs.sum(0), torch.full((4, 16), 2.0))
    assert sorted(set(pairs[:, (pairs[0] != 1).any(1)].flatten().tolist())) == [0.0, 2.0]
    assert int((pairs[0] == 1).all(1).sum()) == 2


def test_every_convolution_of_a_step_is_timed_once():
    workload = Workload("forec", "resnet50", 16, 4, 33, "float32", decoder_channels=8)
    network = build.build_method(workload.config(), LABELS).networks["student"]
    kernels = [
        path for path, _ in leaves(jax.eval_shape(network.init, jax.random.key(0)).params) if path[-1] == "kernel"
    ]
    found = operators.convolutions(workload)
    assert sum(found.values()) == len(kernels)
    assert {shape.x[0] for shape in found} == {4}


def test_a_convolution_of_both_frameworks_is_the_same():
    shape = operators.Convolution((2, 9, 9, 4), (3, 3, 4, 6), 2, ((1, 1), (1, 1)), 1, 1)
    ours, theirs = operators.jax_calls(shape), operators.torch_calls(shape)
    assert shape.passes == list(operators.PASSES)
    np.testing.assert_allclose(ours["forward"](), theirs["forward"]().permute(0, 2, 3, 1), atol=1e-5)
    np.testing.assert_allclose(ours["input"]()[0], theirs["input"]()[0].permute(0, 2, 3, 1), atol=1e-4)
    np.testing.assert_allclose(ours["kernel"]()[0], theirs["kernel"]()[1].permute(2, 3, 1, 0), atol=1e-4)

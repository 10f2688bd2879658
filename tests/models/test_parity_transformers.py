"""Vision transformers and their decoders against the library transformers, with random weights."""

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from forec_jax.contracts import HeadSpec
from forec_jax.models.decoders import dpt, segformer
from forec_jax.models.decoders.dpt import DptOptions
from forec_jax.models.decoders.segformer import SegFormerOptions
from forec_jax.models.dino_weights import load_dinov2, load_dinov3
from forec_jax.models.encoders import dinov2, dinov3, mit
from forec_jax.models.encoders.dinov2 import DinoV2Options
from forec_jax.models.encoders.dinov3 import DinoV3Options
from forec_jax.models.encoders.mit import MitOptions
from forec_jax.models.mit_weights import load_mit
from forec_jax.models.network import Form, assemble

torch = pytest.importorskip("torch", reason="pip install 'forec-jax[parity]'")
transformers = pytest.importorskip("transformers", reason="pip install 'forec-jax[parity]'")


def randomised(module):
    """In inference mode; weights and statistics away from their first values, which would hide an exchange of two."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
        for name, buffer in module.named_buffers():
            if name.endswith(("running_mean", "running_var")):
                buffer.add_(0.5 * torch.rand(buffer.shape, generator=generator))
    return module.eval()


def save(tensors, path):
    save_file({name: tensor.detach().numpy().copy() for name, tensor in tensors.items()}, path)
    return str(path)


def image_batch(size, rows=1):
    return np.random.default_rng(0).normal(size=(rows, *size, 3)).astype(np.float32)


def to_torch(x):
    return torch.from_numpy(np.ascontiguousarray(x.transpose(0, 3, 1, 2)))


def nhwc(x):
    return x.detach().numpy().transpose(0, 2, 3, 1)


@pytest.mark.parametrize(("registers", "swiglu"), [(False, False), (True, False), (False, True)])
def test_dinov2_equals_transformers(tmp_path, registers, swiglu):
    name = "Dinov2WithRegisters" if registers else "Dinov2"
    config = getattr(transformers, f"{name}Config")(
        hidden_size=128,
        num_hidden_layers=4,
        num_attention_heads=2,
        image_size=518,
        patch_size=14,
        use_swiglu_ffn=swiglu,
    )
    reference = randomised(getattr(transformers, f"{name}Model")(config))
    variant, heads = ("dinov2_giant", 24) if swiglu else ("dinov2_small", 6)
    options = DinoV2Options(
        registers=registers, positions="antialias" if registers else "size", depth=4, width=2 / heads
    )
    variables = load_dinov2(save(reference.state_dict(), tmp_path / "a.safetensors"), variant, options)
    module = dinov2.build(variant, options, Form()).module(False)
    for size in ((112, 154), (532, 518), (518, 518)):
        image = image_batch(size)
        with torch.no_grad():
            expected = reference(to_torch(image)).last_hidden_state[:, 5 if registers else 1 :]
        found = module.apply({"params": variables.params["encoder"]}, image, None)[-1]
        np.testing.assert_allclose(found.reshape(expected.shape), expected, atol=1e-4)


@pytest.mark.parametrize("swiglu", [False, True])
def test_dinov3_equals_transformers(tmp_path, swiglu):
    config = transformers.DINOv3ViTConfig(
        hidden_size=128,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=2,
        patch_size=16,
        num_register_tokens=4,
        use_gated_mlp=swiglu,
        hidden_act="silu" if swiglu else "gelu",
    )
    reference = randomised(transformers.DINOv3ViTModel(config))
    variant = "dinov3_small_plus" if swiglu else "dinov3_small"
    options = DinoV3Options(depth=4, width=1 / 3, licence_accepted=True)
    variables = load_dinov3(save(reference.state_dict(), tmp_path / "a.safetensors"), variant, options)
    module = dinov3.build(variant, options, Form()).module(False)
    for size in ((112, 160), (224, 224)):
        image = image_batch(size)
        with torch.no_grad():
            expected = reference(to_torch(image)).last_hidden_state[:, 5:]
        found = module.apply({"params": variables.params["encoder"]}, image, None)[-1]
        np.testing.assert_allclose(found.reshape(expected.shape), expected, atol=1e-4)


def segformer_of(**more):
    """A narrow SegFormer for 5 classes, of 8, 16, 40 and 64 channels and two blocks a stage."""
    config = transformers.SegformerConfig(
        hidden_sizes=[8, 16, 40, 64],
        depths=[2, 2, 2, 2],
        decoder_hidden_size=12,
        num_labels=5,
        classifier_dropout_prob=0.0,
        drop_path_rate=0.0,
        **more,
    )
    model = randomised(transformers.SegformerForSemanticSegmentation(config))
    with torch.no_grad():  # features that a BatchNorm does not swallow
        for parameter in model.decode_head.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, parameter[0].numel() ** -0.5, generator=torch.Generator().manual_seed(1))
    return model


MIT = MitOptions(width=1 / 4, epsilon=1e-5, drop_path=0.0)
HEAD = HeadSpec("segmentation", 5, upsample=False)


def our_segformer():
    form = Form()
    decoder = segformer.build(SegFormerOptions(12, dropout=0.0), form)
    return assemble(mit.build("mit_b0", MIT, form)._replace(mean=(0, 0, 0), std=(1, 1, 1)), decoder, (HEAD,))


@pytest.mark.parametrize("size", [(64, 96), (75, 101), (97, 65)])
def test_segformer_equals_transformers(tmp_path, size):
    reference, network = segformer_of(), our_segformer()
    reference.save_pretrained(tmp_path)  # under other names than those in memory
    variables = load_mit(str(tmp_path / "model.safetensors"), "mit_b0", MIT)
    image = image_batch(size, rows=2)
    with torch.no_grad():
        result = reference(to_torch(image), output_hidden_states=True)
    features = jax.jit(lambda v, x: network.encode(v, x)[0])(variables, image)
    for mine, expected in zip(features.maps, result.hidden_states, strict=True):
        np.testing.assert_allclose(mine, nhwc(expected), atol=1e-4)
    found = jax.jit(lambda v, f: network.decode(v, "segmentation", f)[0].output)(variables, features)
    assert np.std(nhwc(result.logits), axis=(1, 2)).max() > 0.1
    np.testing.assert_allclose(found, nhwc(result.logits), atol=1e-4)


def test_segformers_gradients_equal_transformers(tmp_path):
    """Of a training step: BatchNorm by the batch's own statistics. Gradients are read as weights are."""
    reference, network = segformer_of().train(), our_segformer()
    variables = load_mit(save(reference.state_dict(), tmp_path / "a.safetensors"), "mit_b0", MIT)
    image = image_batch((64, 96), rows=2)
    reference(to_torch(image)).logits.square().mean().backward()
    named = {name: parameter.grad for name, parameter in reference.named_parameters()}
    expected = load_mit(save(named, tmp_path / "b.safetensors"), "mit_b0", MIT).params

    def loss(params):
        key = jax.random.key(0)
        moving = variables._replace(params=params)
        features, stats = network.encode(moving, image, train=True, rng=key)
        output, _ = network.decode(moving._replace(batch_stats=stats), "segmentation", features, train=True, rng=key)
        return (output.output**2).mean()

    found = jax.jit(jax.grad(loss))(variables.params)
    for (path, mine), theirs in zip(jax.tree.leaves_with_path(found), jax.tree.leaves(expected), strict=True):
        scale = max(float(np.linalg.norm(theirs)), 1e-4)
        assert np.linalg.norm(mine - theirs) / scale < 2e-3, jax.tree_util.keystr(path)


def test_dpt_joins_maps_as_depth_anything_does(tmp_path):
    """Its neck, which UniMatch V2's decoder is as well; what comes after differs."""
    neck_module = pytest.importorskip("transformers.models.depth_anything.modeling_depth_anything")
    projections = [6, 8, 10, 12]
    config = transformers.DepthAnythingConfig(
        backbone_config=transformers.Dinov2Config(hidden_size=64, num_hidden_layers=4, num_attention_heads=1),
        reassemble_hidden_size=64,
        neck_hidden_sizes=projections,
        fusion_hidden_size=7,
        patch_size=14,
    )
    reference = randomised(neck_module.DepthAnythingNeck(config))
    maps = [np.random.default_rng(i).normal(size=(2, 5, 4, 64)).astype(np.float32) for i in range(4)]
    tokens = [torch.from_numpy(np.pad(x.reshape(2, 20, 64), ((0, 0), (1, 0), (0, 0)))) for x in maps]
    with torch.no_grad():
        expected = nhwc(reference(tokens, 5, 4)[-1])
    backbone = transformers.Dinov2Model(config.backbone_config).state_dict()
    named = {f"backbone.{name}": value for name, value in backbone.items()}
    named |= {as_unimatch_v2(name): value for name, value in reference.state_dict().items()}
    last = {"0.weight": (7, 7, 3, 3), "0.bias": (7,), "2.weight": (3, 7, 1, 1), "2.bias": (3,)}
    named |= {f"head.scratch.output_conv.{name}": torch.zeros(shape) for name, shape in last.items()}
    o = DinoV2Options(width=1 / 6, depth=4)
    head = load_dinov2(save(named, tmp_path / "a.safetensors"), "dinov2_small", o).params["segmentation"]
    module = dpt.build(DptOptions(7, tuple(projections)), Form()).fuse(False)
    mine = {name: value for name, value in head.items() if name not in ("fuse", "last")}
    found = module.apply({"params": mine}, *maps, (70, 56), None)
    np.testing.assert_allclose(found, expected, atol=1e-4)


def as_unimatch_v2(name):
    """The name that a tensor of transformers' neck has in UniMatch V2's head."""
    place, _, ending = name.rpartition(".")
    parts = place.split(".")
    if parts[0] == "reassemble_stage":
        kind = "projects" if parts[3] == "projection" else "resize_layers"
        return f"head.{kind}.{parts[2]}.{ending}"
    if parts[0] == "convs":
        return f"head.scratch.layer{int(parts[1]) + 1}_rn.{ending}"
    fusion = f"head.scratch.refinenet{4 - int(parts[2])}"  # transformers begins with the deepest
    if parts[3] == "projection":
        return f"{fusion}.out_conv.{ending}"
    return f"{fusion}.resConfUnit{parts[3][-1]}.conv{parts[4][-1]}.{ending}"

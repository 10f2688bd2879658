"""DINOv3: what is counted, how tokens are turned, padded images, other projects' names, and its licence."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from forec_jax.contracts import HeadSpec
from forec_jax.models import WeightsError
from forec_jax.models.decoders import dpt
from forec_jax.models.dino_weights import load_dinov2, load_dinov3
from forec_jax.models.encoders import dinov3
from forec_jax.models.encoders.dinov2 import DinoV2Options
from forec_jax.models.encoders.dinov3 import DinoV3Options
from forec_jax.models.network import Form, assemble, count_parameters
from forec_jax.models.pretrained import fitting_weights

TINY = DinoV3Options(width=1 / 6, depth=2, licence_accepted=True)  # one head of 64 channels
WIDTH = 64


def network_of(o=TINY, variant="dinov3_small", form=None):
    form = form or Form()
    decoder = dpt.build(dpt.DptOptions(4, (2, 2, 3, 3)), form)
    return assemble(dinov3.build(variant, o, form), decoder, (HeadSpec("segmentation", 3),))


@pytest.mark.parametrize(
    ("variant", "number"),
    [  # Meta's counts less the mask token: S exactly, the others in millions
        ("dinov3_small", 21_596_544 - 384),
        ("dinov3_small_plus", 21_596_544 - 384 + 12 * 591_360),  # a second matrix into a perceptron, with its bias
        ("dinov3_base", 86e6),
        pytest.param("dinov3_large", 303e6, marks=pytest.mark.slow),
    ],
)
def test_the_published_networks_have_their_parameters(variant, number):
    network = network_of(DinoV3Options(), variant)
    counted = count_parameters(jax.eval_shape(network.init, jax.random.key(0)).params)["encoder"]
    assert counted == number if number % 1e6 else round(counted / 1e6) == number / 1e6


def test_a_token_is_turned_by_its_row_and_column():
    """Channel i with channel i + 32: 16 angles of the row, then 16 of the column; what stands before them is not turned."""
    x = np.random.default_rng(0).normal(size=(1, 1 + 6, 1, 64)).astype(np.float32)
    found = np.asarray(dinov3.rotation_of((2, 3), None, 1).turned(jnp.asarray(x)))
    np.testing.assert_array_equal(found[0, 0], x[0, 0])
    for row, column in np.ndindex(2, 3):
        places = (2 * (row + 0.5) / 2 - 1, 2 * (column + 0.5) / 3 - 1)
        angles = [2 * np.pi * place / 100 ** (j / 16) for place in places for j in range(16)]
        token = 1 + 3 * row + column
        a, b = x[0, token, 0, :32], x[0, token, 0, 32:]
        expected = [*(a * np.cos(angles) - b * np.sin(angles)), *(b * np.cos(angles) + a * np.sin(angles))]
        np.testing.assert_allclose(found[0, token, 0], expected, atol=1e-5)


@pytest.mark.slow
def test_a_padded_image_gives_the_probabilities_of_the_image_alone():
    network = network_of()
    variables = network.init(jax.random.key(0))
    image = np.random.default_rng(0).random((1, 64, 64, 3), np.float32)
    valid = np.zeros((1, 64, 64), bool)
    valid[:, :48, :32] = True

    @jax.jit
    def logits(image, valid=None):
        features, _ = network.encode(variables, image, valid=valid)
        return network.decode(variables, "segmentation", features)[0].output

    padded, alone = logits(image, valid), logits(image[:, :48, :32])
    np.testing.assert_allclose(padded[:, :48, :32], alone, atol=2e-5)
    assert not np.any(padded[:, 48:])
    assert not np.any(padded[:, :, 32:])


def made_up(swiglu):
    """Random tensors under Facebook's names."""
    rng, tensors = np.random.default_rng(0), {}

    def add(name, *shape):
        tensors[name] = rng.normal(size=shape).astype(np.float32)

    def layer(name, after, before):
        add(f"{name}.weight", after, before)
        add(f"{name}.bias", after)

    def norm(name):
        add(f"{name}.weight", WIDTH)
        add(f"{name}.bias", WIDTH)

    add("cls_token", 1, 1, WIDTH)
    add("storage_tokens", 1, 4, WIDTH)
    add("mask_token", 1, WIDTH)
    add("patch_embed.proj.weight", WIDTH, 3, 16, 16)
    add("patch_embed.proj.bias", WIDTH)
    add("rope_embed.periods", 16)
    norm("norm")
    for index in range(2):
        block = f"blocks.{index}"
        norm(f"{block}.norm1")
        norm(f"{block}.norm2")
        layer(f"{block}.attn.qkv", 3 * WIDTH, WIDTH)
        tensors[f"{block}.attn.qkv.bias_mask"] = np.repeat(np.float32([1, 0, 1]), WIDTH)
        tensors[f"{block}.attn.qkv.bias"][WIDTH : 2 * WIDTH] = np.nan  # a fresh module's
        layer(f"{block}.attn.proj", WIDTH, WIDTH)
        for number in (1, 2):
            add(f"{block}.ls{number}.gamma", WIDTH)
        for name, after, before in _perceptron(swiglu):
            layer(f"{block}.mlp.{name}", after, before)
    return tensors


def _perceptron(swiglu):
    wide = 4 * WIDTH
    if swiglu:
        return ("w1", wide, WIDTH), ("w2", wide, WIDTH), ("w3", WIDTH, wide)
    return ("fc1", wide, WIDTH), ("fc2", WIDTH, wide)


def under_transformers_names(tensors, layer):
    """The same tensors as transformers calls them, with `layer` before the number of a block."""
    found = {}
    plain = {
        "cls_token": "embeddings.cls_token",
        "storage_tokens": "embeddings.register_tokens",
        "mask_token": "embeddings.mask_token",
        "patch_embed.proj.weight": "embeddings.patch_embeddings.weight",
        "patch_embed.proj.bias": "embeddings.patch_embeddings.bias",
        "norm.weight": "norm.weight",
        "norm.bias": "norm.bias",
    }
    parts = {"attn.proj": "attention.o_proj", "mlp.fc1": "mlp.up_proj", "mlp.fc2": "mlp.down_proj"}
    parts |= {"mlp.w1": "mlp.gate_proj", "mlp.w2": "mlp.up_proj", "mlp.w3": "mlp.down_proj"}
    for name, value in tensors.items():
        if name in plain:
            found[plain[name]] = value
        elif name.startswith("blocks."):
            _, index, inner = name.split(".", 2)
            place, (part, _, ending) = f"{layer}.{index}", inner.rpartition(".")
            if part == "attn.qkv" and ending != "bias_mask":
                for letter, third in zip("qkv", np.split(value, 3), strict=True):
                    if (letter, ending) != ("k", "bias"):
                        found[f"{place}.attention.{letter}_proj.{ending}"] = third
            elif part.startswith("ls"):
                found[f"{place}.layer_scale{part[2]}.lambda1"] = value
            elif ending != "bias_mask":
                found[f"{place}.{parts.get(part, part)}.{ending}"] = value
    return found


@pytest.mark.parametrize("swiglu", [False, True])
def test_all_names_fill_the_same_network(tmp_path, swiglu):
    variant = "dinov3_small_plus" if swiglu else "dinov3_small"
    tensors = made_up(swiglu)
    save_file(tensors, tmp_path / "facebook.safetensors")
    weights = load_dinov3(str(tmp_path / "facebook.safetensors"), variant, TINY)
    layout = jax.eval_shape(network_of(TINY, variant).init, jax.random.key(0))
    assert fitting_weights(weights, layout).params.keys() == {"encoder"}
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(weights.params))
    block, theirs = weights.params["encoder"]["block1"], "blocks.1."
    np.testing.assert_array_equal(block["query_value_bias"][1], tensors[f"{theirs}attn.qkv.bias"][2 * WIDTH :])
    gate = block["hidden"]["kernel"][:, : 4 * WIDTH]
    np.testing.assert_array_equal(gate, tensors[f"{theirs}mlp.{'w1' if swiglu else 'fc1'}.weight"].T)
    for layer in ("layer", "model.layer"):
        save_file(under_transformers_names(tensors, layer), tmp_path / "other.safetensors")
        other = load_dinov3(str(tmp_path / "other.safetensors"), variant, TINY)
        assert jax.tree.all(jax.tree.map(np.array_equal, other.params, weights.params))


def test_weights_want_the_licence_accepted_and_their_own_family(tmp_path):
    save_file(made_up(swiglu=False), tmp_path / "a.safetensors")
    with pytest.raises(WeightsError, match=r"^set model\.dinov3\.licence_accepted=True .*Meta's"):
        load_dinov3(str(tmp_path / "a.safetensors"), "dinov3_small", DinoV3Options(width=1 / 6, depth=2))
    with pytest.raises(WeightsError, match=r"^set model\.encoder to a dinov3_"):
        load_dinov2(str(tmp_path / "a.safetensors"), "dinov2_small", DinoV2Options(width=1 / 6, depth=2))
    with pytest.raises(WeightsError, match=r"^set model\.encoder .*\n.*a\.safetensors.*missing: blocks\.2"):
        load_dinov3(str(tmp_path / "a.safetensors"), "dinov3_small", DinoV3Options(depth=3, licence_accepted=True))


def test_activations_are_bfloat16_where_asked_and_scores_float32():
    network = network_of(form=Form(dtype=jnp.bfloat16))
    variables = jax.eval_shape(network.init, jax.random.key(0))
    features = jax.eval_shape(lambda v, x: network.encode(v, x)[0], variables, jnp.zeros((1, 64, 64, 3)))
    assert {x.dtype for x in features.maps} == {jnp.dtype(jnp.bfloat16)}
    scores = jax.eval_shape(lambda v, f: network.decode(v, "segmentation", f)[0], variables, features)
    assert (scores.output.dtype, scores.latent.dtype) == (jnp.float32, jnp.bfloat16)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype(jnp.float32)}

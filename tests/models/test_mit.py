"""MiT and SegFormer's head: what is counted, padded images, sizes that no cell divides, other projects' names."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from forec_jax.contracts import HeadSpec
from forec_jax.models import WeightsError
from forec_jax.models.decoders import segformer
from forec_jax.models.decoders.segformer import SegFormerOptions
from forec_jax.models.encoders import mit
from forec_jax.models.encoders.mit import MitOptions
from forec_jax.models.mit_weights import load_mit
from forec_jax.models.network import Form, assemble, count_parameters
from forec_jax.models.pretrained import fitting_weights

TINY = MitOptions(width=1 / 8, depth=1)  # 4, 8, 20, 32 channels
WIDTHS, SHRINKING = (4, 8, 20, 32), (8, 4, 2, 1)
HEADS = (HeadSpec("segmentation", 5),)


def network_of(o=TINY, variant="mit_b0", channels=6, heads=HEADS, form=None):
    form = form or Form()
    return assemble(mit.build(variant, o, form), segformer.build(SegFormerOptions(channels), form), heads)


@pytest.mark.parametrize(
    ("variant", "channels", "encoder", "head"),
    [
        ("mit_b0", 256, 3_319_392, 433_302),
        ("mit_b1", 256, 13_151_424, 564_374),
        pytest.param("mit_b2", 768, 24_196_288, 3_265_686, marks=pytest.mark.slow),
        pytest.param("mit_b3", 768, 44_072_128, 3_265_686, marks=pytest.mark.slow),
        pytest.param("mit_b4", 768, 60_842_688, 3_265_686, marks=pytest.mark.slow),
        pytest.param("mit_b5", 768, 81_443_008, 3_265_686, marks=pytest.mark.slow),
    ],
)
def test_the_published_networks_have_their_parameters(variant, channels, encoder, head):
    network = network_of(MitOptions(), variant, channels, (HeadSpec("segmentation", 150),))
    counted = count_parameters(jax.eval_shape(network.init, jax.random.key(0)).params)
    assert counted == {"encoder": encoder, "segmentation": head}


def unsettled(variables):
    """Biases and statistics away from where they start, so that a border of zeros is not a neutral one."""
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: leaf + jnp.asarray(rng.uniform(0.1, 0.5, leaf.shape), leaf.dtype), variables)


def predict(network, variables, image, valid=None):
    features, _ = network.encode(variables, image, valid=valid)
    return network.decode(variables, "segmentation", features)[0].output


def test_a_padded_image_gives_the_scores_of_the_image_alone():
    """27 x 101 pixels are 7 x 26 at stride 4: less than a cell of 8, and three cells whose rest no token sees."""
    network = network_of()
    variables = unsettled(network.init(jax.random.key(0)))
    alone = np.random.default_rng(0).random((1, 27, 101, 3), np.float32)
    padded, valid = np.full((1, 64, 128, 3), 0.7, np.float32), np.zeros((1, 64, 128), bool)
    padded[:, :27, :101], valid[:, :27, :101] = alone, True
    run = jax.jit(lambda *a: predict(network, variables, *a))
    expected, found = run(alone), run(padded, valid)
    np.testing.assert_allclose(found[:, :27, :101], expected, atol=1e-4 * float(abs(expected).max()))
    assert not found[:, 27:].any()
    assert not found[:, :, 101:].any()


def test_a_block_leaves_its_branches_out_for_some_images_and_doubles_them_for_the_others():
    """With a share of a half, an image keeps neither branch, one, or both."""
    block = mit._Block(mit.STAGES[3], 1e-6, 0.5, jnp.float32)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(48, 2, 3, 16)), jnp.float32)
    params = unsettled(block.init({"params": jax.random.key(0), "dropout": jax.random.key(1)}, x, None, None))
    found = block.apply(params, x, None, None, rngs={"dropout": jax.random.key(2)})

    def branch(name, x):
        """What the block adds where its other branch adds nothing."""
        muted = {k: jax.tree.map(jnp.zeros_like, v) if k == name else v for k, v in params["params"].items()}
        return mit._Block(mit.STAGES[3], 1e-6, 0.0, jnp.float32).apply({"params": muted}, x, None, None) - x

    seen = []
    for attention in (0.0, 2.0):
        middle = x + attention * branch("output", x)
        for perceptron in (0.0, 2.0):
            expected = middle + perceptron * branch("attended", middle)
            seen.append(np.isclose(found, expected, atol=1e-4).all((1, 2, 3)))
    counts = np.sum(seen, axis=1)
    assert counts.sum() == len(x)
    assert counts.min() >= 4


def test_blocks_are_left_out_more_often_the_later_they_come_and_never_out_of_training():
    dropped = MitOptions(width=1 / 8, depth=1, drop_path=0.6)
    network = network_of(dropped)
    variables = unsettled(network.init(jax.random.key(0)))
    image = np.random.default_rng(0).random((6, 32, 32, 3), np.float32)

    @functools.partial(jax.jit, static_argnums=0)
    def encode(train, seed):
        return network.encode(variables, image, train=train, rng=jax.random.key(seed))[0].maps

    (first, *_, last), (other_first, *_, other_last) = encode(True, 0), encode(True, 1)
    np.testing.assert_array_equal(first, other_first)  # the first block has the share 0
    assert not np.allclose(last, other_last)
    jax.tree.map(np.testing.assert_array_equal, encode(False, 0), encode(False, 1))


def test_stages_are_joined_at_stride_4():
    network = network_of()
    variables = jax.eval_shape(network.init, jax.random.key(0))
    image = jnp.zeros((2, 65, 33, 3))
    features = jax.eval_shape(lambda v, x: network.encode(v, x)[0], variables, image)
    shapes = [(2, -(-65 // s), -(-33 // s), w) for s, w in zip((4, 8, 16, 32), WIDTHS, strict=True)]
    assert [x.shape for x in features.maps] == shapes
    output = jax.eval_shape(lambda v, f: network.decode(v, "segmentation", f)[0], variables, features)
    assert (output.output.shape, output.latent.shape) == ((2, 65, 33, 5), (2, 17, 9, 6))


def made_up():
    """Random tensors of a tiny MiT with a head under transformers' names, those of its models in memory, and NVIDIA's."""
    rng = np.random.default_rng(0)
    files, memory, nvidia = {}, {}, {}

    def add(value, *names):
        for tree, name in zip((files, memory, nvidia), names, strict=True):
            tree[name] = value

    def layer(shape, *names):
        for ending, size in (("weight", shape), ("bias", shape[:1])):
            add(rng.normal(size=size).astype(np.float32), *(f"{name}.{ending}" for name in names))

    before = 3
    for s, (width, cell) in enumerate(zip(WIDTHS, SHRINKING, strict=True)):
        size = 3 if s else 7
        layer(
            (width, before, size, size),
            f"segformer.encoder.patch_embeddings.{s}.proj",
            f"stages.{s}.patch_embeddings.proj",
            f"backbone.patch_embed{s + 1}.proj",
        )
        layer(
            (width,),
            f"segformer.encoder.patch_embeddings.{s}.layer_norm",
            f"stages.{s}.patch_embeddings.layer_norm",
            f"backbone.patch_embed{s + 1}.norm",
        )
        layer((width,), f"segformer.encoder.layer_norm.{s}", f"stages.{s}.layer_norm", f"backbone.norm{s + 1}")
        block = f"segformer.encoder.block.{s}.0", f"stages.{s}.blocks.0", f"backbone.block{s + 1}.0"
        inner = [  # shape, then a name of each kind
            ((width,), "layer_norm_1", "layernorm_before", "norm1"),
            ((width,), "layer_norm_2", "layernorm_after", "norm2"),
            ((width, width), "attention.self.query", "attention.q_proj", "attn.q"),
            ((width, width), "attention.output.dense", "attention.o_proj", "attn.proj"),
            ((4 * width, width), "mlp.dense1", "mlp.fc1", "mlp.fc1"),
            ((4 * width, 1, 3, 3), *["mlp.dwconv.dwconv"] * 3),
            ((width, 4 * width), "mlp.dense2", "mlp.fc2", "mlp.fc2"),
        ]
        if cell > 1:
            reduction = "attention.sequence_reduction"
            inner += [
                ((width, width, cell, cell), "attention.self.sr", f"{reduction}.sequence_reduction", "attn.sr"),
                ((width,), "attention.self.layer_norm", f"{reduction}.layer_norm", "attn.norm"),
            ]
        for shape, *names in inner:
            layer(shape, *(f"{place}.{name}" for place, name in zip(block, names, strict=True)))
        for ending, shape in (("weight", (width, width)), ("bias", (width,))):
            key, value = rng.normal(size=(2, *shape)).astype(np.float32)
            for name, part in (("key", key), ("value", value)):
                files[f"{block[0]}.attention.self.{name}.{ending}"] = part
                memory[f"{block[1]}.attention.{name[0]}_proj.{ending}"] = part
            nvidia[f"{block[2]}.attn.kv.{ending}"] = np.concatenate([key, value])
        before = width
    for s, width in enumerate(WIDTHS):
        for ending, shape in (("weight", (6, width)), ("bias", (6,))):
            part = rng.normal(size=shape).astype(np.float32)
            files[f"decode_head.linear_c.{s}.proj.{ending}"] = nvidia[f"decode_head.linear_c{s + 1}.proj.{ending}"] = (
                part
            )
    rest = {"linear_fuse": ("linear_fuse.conv", (6, 24, 1, 1)), "classifier": ("linear_pred", (5, 6, 1, 1))}
    for name, (theirs, shape) in rest.items():
        part = rng.normal(size=shape).astype(np.float32)
        files[f"decode_head.{name}.weight"] = nvidia[f"decode_head.{theirs}.weight"] = part
    bias = rng.normal(size=5).astype(np.float32)
    files["decode_head.classifier.bias"] = nvidia["decode_head.linear_pred.bias"] = bias
    for ending in ("weight", "bias", "running_mean", "running_var"):
        part = rng.uniform(0.5, 1.5, 6).astype(np.float32)
        files[f"decode_head.batch_norm.{ending}"] = nvidia[f"decode_head.linear_fuse.bn.{ending}"] = part
    return files, memory, nvidia


def same(a, b):
    return jax.tree.all(jax.tree.map(np.array_equal, a, b))


def test_all_names_fill_the_same_network(tmp_path, caplog):
    files, memory, nvidia = made_up()
    loaded = []
    for index, tensors in enumerate((files, memory, nvidia)):
        path = tmp_path / f"{index}.safetensors"
        save_file(tensors | {"classifier.weight": np.zeros((2, 2), np.float32)}, path)
        loaded.append(load_mit(str(path), "mit_b0", TINY))
    assert "non-commercial" in caplog.text
    layout = jax.eval_shape(network_of().init, jax.random.key(0))
    shapes = jax.tree.map(np.shape, fitting_weights(loaded[0], layout))
    assert shapes == jax.tree.map(lambda leaf: leaf.shape, layout)
    assert same(loaded[2], loaded[0])
    assert loaded[1].params.keys() == {"encoder"}
    assert same(loaded[1].params["encoder"], loaded[0].params["encoder"])


def test_joining_by_stages_is_the_published_convolution_of_all_the_deepest_first(tmp_path):
    files, *_ = made_up()
    save_file(files, tmp_path / "a.safetensors")
    head = load_mit(str(tmp_path / "a.safetensors"), "mit_b0", TINY).params["segmentation"]
    maps = [np.random.default_rng(s).normal(size=width).astype(np.float32) for s, width in enumerate(WIDTHS)]
    linear = [
        files[f"decode_head.linear_c.{s}.proj.weight"] @ x + files[f"decode_head.linear_c.{s}.proj.bias"]
        for s, x in enumerate(maps)
    ]
    expected = files["decode_head.linear_fuse.weight"][:, :, 0, 0] @ np.concatenate(linear[::-1])
    ours = [x @ head[f"linear{s}"]["kernel"][0, 0] + head[f"linear{s}"]["bias"] for s, x in enumerate(maps)]
    found = sum(x @ head[f"join{s}"]["kernel"][0, 0] for s, x in enumerate(ours))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_a_cell_keeps_its_rows_columns_and_channels(tmp_path):
    files, *_ = made_up()
    save_file(files, tmp_path / "a.safetensors")
    block = load_mit(str(tmp_path / "a.safetensors"), "mit_b0", TINY).params["encoder"]["stage1_block0"]
    cell = np.random.default_rng(1).normal(size=(4, 4, 8)).astype(np.float32)
    expected = np.einsum("ocyx,yxc->o", files["segformer.encoder.block.1.0.attention.self.sr.weight"], cell)
    np.testing.assert_allclose(cell.reshape(-1) @ block["shrink"]["kernel"], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("o", "change", "message"),
    [
        (
            MitOptions(),
            lambda t: t,
            r"^set model\.mit as the weights .*or take weights of mit_b0\n.*1\+1\+1\+1 blocks and 4",
        ),
        (TINY, lambda t: t | {"decode_head.classifier.weight": np.zeros(3, np.float32)}, "another shape"),
        (TINY, lambda t: {"conv1.weight": np.zeros(1, np.float32)}, "one MiT is sought .* none is there"),
        (TINY, lambda t: t | {f"b.{n}": v for n, v in t.items()}, "several are there"),
    ],
)
def test_weights_of_another_network_are_refused(tmp_path, o, change, message):
    save_file(change(made_up()[0]), tmp_path / "a.safetensors")
    with pytest.raises(WeightsError, match=message) as caught:
        load_mit(str(tmp_path / "a.safetensors"), "mit_b0", o)
    assert str(tmp_path / "a.safetensors") in str(caught.value)


def test_a_missing_tensor_is_named(tmp_path):
    files = {
        name: value for name, value in made_up()[0].items() if not name.endswith("block.2.0.attention.self.value.bias")
    }
    save_file(files, tmp_path / "a.safetensors")
    layout = jax.eval_shape(network_of().init, jax.random.key(0))
    with pytest.raises(WeightsError, match=r"stage2_block0/key_value/bias is \(20,\), the network wants \(40,\)"):
        fitting_weights(load_mit(str(tmp_path / "a.safetensors"), "mit_b0", TINY), layout)


def test_activations_are_bfloat16_where_asked_and_scores_float32():
    network = network_of(form=Form(dtype=jnp.bfloat16))
    variables = jax.eval_shape(network.init, jax.random.key(0))
    features = jax.eval_shape(lambda v, x: network.encode(v, x)[0], variables, jnp.zeros((1, 64, 64, 3)))
    assert {x.dtype for x in features.maps} == {jnp.dtype(jnp.bfloat16)}
    scores = jax.eval_shape(lambda v, f: network.decode(v, "segmentation", f)[0], variables, features)
    assert (scores.output.dtype, scores.latent.dtype) == (jnp.float32, jnp.bfloat16)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype(jnp.float32)}

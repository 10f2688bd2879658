import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from forec_jax.contracts import HeadSpec, Variables
from forec_jax.experiment.plan import keep_remat
from forec_jax.models import DeepLabOptions, count_parameters, deeplab_network
from forec_jax.models.network import with_frozen_encoder

SEGMENTATION, RECONSTRUCTION = HeadSpec("segmentation", 5), HeadSpec("reconstruction", 3, upsample=False)
SMALL = DeepLabOptions(rates=(1, 2, 3), channels=8, low_level_channels=4)


def small(encoder="resnet18", heads=(SEGMENTATION,), decoder=SMALL, output_stride=16, **options):
    width = 0.125 if encoder.startswith("resnet") else 0.25
    return deeplab_network(
        encoder=encoder, heads=heads, decoder=decoder, output_stride=output_stride, width=width, **options
    )


def images(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).uniform(size=(*shape, 3)), jnp.float32)


def unsettled(variables):
    """Running statistics away from 0 and 1, so that a border of zeros is not a neutral one."""
    rng = np.random.default_rng(0)
    stats = jax.tree.map(lambda s: s + jnp.asarray(rng.uniform(0.1, 0.5, s.shape), s.dtype), variables.batch_stats)
    return variables._replace(batch_stats=stats)


def predict(network, variables, image, valid=None, head="segmentation"):
    features, _ = network.encode(variables, image, valid=valid, train=False, rng=None)
    return network.decode(variables, head, features, train=False, rng=None)[0]


@pytest.mark.parametrize(
    ("encoder", "form", "output_stride"),
    [
        ("resnet18", "deep", 8),
        pytest.param("mobilenet_v2", "slim", 16, marks=pytest.mark.slow),
        pytest.param("efficientnet_lite0", "", 16, marks=pytest.mark.slow),
        pytest.param("resnet18", "d", 8, marks=pytest.mark.slow),  # both ways of averaging in the shortcuts
        pytest.param("mobilenet_v2", "torch", 16, marks=pytest.mark.slow),
        pytest.param("resnet18", "7x7", 16, marks=pytest.mark.slow),
        pytest.param("resnet18", "7x7", 8, marks=pytest.mark.slow),
        pytest.param("resnet18", "deep", 16, marks=pytest.mark.slow),
        pytest.param("mobilenet_v2", "slim", 8, marks=pytest.mark.slow),
        pytest.param("efficientnet_lite1", "", 8, marks=pytest.mark.slow),
    ],
)
def test_padding_changes_nothing(encoder, form, output_stride):
    key = {"resnet18": "stem", "mobilenet_v2": "form"}.get(encoder)
    network = small(encoder, output_stride=output_stride, **({key: form} if key else {}))
    variables = unsettled(network.init(jax.random.key(0)))
    alone = images(1, 75, 101)
    padded = jnp.full((2, 96, 128, 3), 0.7).at[:, :75, :101].set(alone)
    valid = jnp.zeros((2, 96, 128), bool).at[:, :75, :101].set(True).at[1, 70:].set(False)
    run = jax.jit(lambda *a: predict(network, *a))
    expected, ours = run(variables, alone), run(variables, padded, valid)
    scale = float(jnp.abs(expected.output).max())
    np.testing.assert_allclose(ours.output[:1, :75, :101], expected.output, atol=1e-4 * max(scale, 1.0))
    assert not ours.output[1, 70:].any()


def test_valid_wants_multiples_of_32():
    network = small()
    variables = jax.eval_shape(network.init, jax.random.key(0))
    with pytest.raises(ValueError, match="multiples of 32"):
        jax.eval_shape(
            lambda v, x, m: network.encode(v, x, valid=m), variables, jnp.zeros((1, 40, 64, 3)), jnp.ones((1, 40, 64))
        )


@functools.cache
def laid_out(encoder):
    """A network of two heads, and its variables' shapes."""
    network = small(encoder, heads=(SEGMENTATION, RECONSTRUCTION))
    return network, jax.eval_shape(network.init, jax.random.key(0))


@pytest.mark.parametrize(
    "encoder",
    ["resnet18", *(pytest.param(name, marks=pytest.mark.slow) for name in ("mobilenet_v2", "efficientnet_lite0"))],
)
@pytest.mark.parametrize("size", [(33, 33), (75, 321), (513, 64)])
def test_any_crop_works(encoder, size):
    network, variables = laid_out(encoder)

    def both(variables, image):
        features, _ = network.encode(variables, image, train=False, rng=None)
        return [network.decode(variables, head.name, features, train=False, rng=None)[0] for head in network.heads]

    output, small_output = jax.eval_shape(both, variables, jax.ShapeDtypeStruct((2, *size, 3), jnp.float32))
    assert output.output.shape == (2, *size, 5)
    assert small_output.output.shape == (2, *(-(-n // 4) for n in size), 3)
    assert small_output.latent.shape == (2, *(-(-n // 4) for n in size), 8)


def test_a_head_more_or_less_changes_nothing_else():
    both, one = small(heads=(RECONSTRUCTION, SEGMENTATION)), small()
    variables, fewer = both.init(jax.random.key(3)), one.init(jax.random.key(3))
    for part in ("encoder", "segmentation"):
        assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), variables.params[part], fewer.params[part]))
    assert set(variables.params) - set(fewer.params) == {"reconstruction"}


def test_values_do_not_repeat_between_parts_and_keys():
    network = small(heads=(SEGMENTATION, HeadSpec("other", 5)))
    first, second = network.init(jax.random.key(0)), network.init(jax.random.key(1))
    kernel = lambda v, part: v.params[part]["fuse1"]["conv"]["kernel"]  # noqa: E731
    assert not (kernel(first, "segmentation") == kernel(first, "other")).any()
    assert not (kernel(first, "other") == kernel(second, "other")).any()


def test_runs_without_the_heads_that_are_not_asked_for():
    network = small(heads=(SEGMENTATION, RECONSTRUCTION))
    variables = jax.eval_shape(network.init, jax.random.key(0))
    keep = ("encoder", "segmentation")
    restricted = type(variables)(*({k: tree[k] for k in keep} for tree in variables))
    image = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    jax.eval_shape(lambda v, x: predict(network, v, x), restricted, image)
    with pytest.raises(KeyError, match="reconstruction"):
        jax.eval_shape(lambda v, x: predict(network, v, x, head="reconstruction"), restricted, image)


def loss_and_stats(network, params, stats, image, key):
    variables = type(jax.eval_shape(network.init, key))(params, stats)
    features, stats = network.encode(variables, image, train=True)
    total = 0.0
    for index, head in enumerate(network.heads):
        output, stats = network.decode(
            variables._replace(batch_stats=stats), head.name, features, train=True, rng=jax.random.fold_in(key, index)
        )
        total += (output.output**2).mean()
    return total, stats


@pytest.mark.slow
@pytest.mark.parametrize(
    ("encoder", "dtype"),
    [
        ("resnet18", jnp.float32),
        ("resnet18", jnp.bfloat16),
        ("mobilenet_v2", jnp.float32),
        ("mobilenet_v2", jnp.bfloat16),
        ("efficientnet_lite0", jnp.float32),
    ],
)
def test_training_step_is_finite_and_moves_all_statistics(encoder, dtype):
    options = DeepLabOptions(rates=(1, 2, 3), channels=8, low_level_channels=4, dropout=0.1)
    network = small(encoder, heads=(SEGMENTATION, RECONSTRUCTION), decoder=options, compute_dtype=dtype)
    params, stats = network.init(jax.random.key(0))
    step = jax.jit(jax.value_and_grad(lambda p, *a: loss_and_stats(network, p, *a), has_aux=True))
    (_, moved), gradient = step(params, stats, images(4, 49, 64), jax.random.key(1))
    assert jax.tree.structure(moved) == jax.tree.structure(stats)
    assert all(bool((a != b).any()) for a, b in zip(jax.tree.leaves(moved), jax.tree.leaves(stats), strict=True))
    for leaf in jax.tree.leaves(gradient):
        assert leaf.dtype == jnp.float32
        assert bool(jnp.isfinite(leaf).all())
    assert float(jnp.abs(gradient["encoder"]["stem"]["conv"]["kernel"]).max()) > 0


def test_inference_leaves_the_statistics_alone():
    network = small()
    variables = network.init(jax.random.key(0))
    features, stats = jax.jit(lambda v, x: network.encode(v, x))(variables, images(1, 64, 64))
    assert features.size.height == 64
    assert jax.tree.structure(stats) == jax.tree.structure(variables.batch_stats)
    same = jax.tree.map(lambda a, b: bool((a == b).all()), stats, variables.batch_stats)
    assert jax.tree.all(same)


@pytest.mark.slow
@pytest.mark.parametrize("encoder", ["resnet18", "mobilenet_v2"])
def test_a_sharded_batch_gives_the_same_numbers(encoder):
    network = small(encoder)
    params, stats = network.init(jax.random.key(0))
    step = jax.jit(jax.value_and_grad(lambda p, *a: loss_and_stats(network, p, *a), has_aux=True))
    mesh = Mesh(np.array(jax.devices()[:8]), ("data",))
    everywhere, rows = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec("data"))
    image, key = images(8, 64, 64), jax.random.key(1)
    spread = jax.device_put((params, stats), everywhere)
    (one, one_stats), one_gradient = step(params, stats, image, key)
    (many, stats), gradient = step(*spread, jax.device_put(image, rows), jax.device_put(key, everywhere))
    np.testing.assert_allclose(many, one, rtol=1e-5)
    for a, b in zip(jax.tree.leaves(one_stats), jax.tree.leaves(stats), strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-4, atol=1e-6)
    # Biases before another BatchNorm have a gradient of zero plus rounding, so the whole gradient is compared. Its bound
    # is wide because the network amplifies float32 rounding: reversing or rolling the batch on one device moves it by
    # 4e-5 to 2e-3, and sharding by 1e-3 to 4e-3. In float64 all of them agree to 1e-13, so nothing but rounding differs.
    ours, theirs = (
        np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)]) for tree in (gradient, one_gradient)
    )
    assert np.linalg.norm(ours - theirs) < 1e-2 * np.linalg.norm(theirs)


@pytest.mark.parametrize(
    ("encoder", "millions"), [("resnet50", 40.5), pytest.param("resnet101", 59.5, marks=pytest.mark.slow)]
)
def test_totals_are_unimatchs(encoder, millions):
    network = deeplab_network(encoder=encoder, heads=(HeadSpec("segmentation", 21),), stem="deep")
    total = sum(count_parameters(jax.eval_shape(network.init, jax.random.key(0)).params).values())
    assert round(total / 1e6, 1) == millions


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"encoder": "vgg"}, "unknown encoder"),
        ({"output_stride": 4}, "output_stride"),
        ({"stem": "5x5"}, "stem"),
        ({"heads": (HeadSpec("encoder", 3),)}, "names of their own"),
        (
            {"heads": (SEGMENTATION, HeadSpec("a", 3, reads="b"))},
            r"'a' cannot read 'b': choose one of \['segmentation'\]",
        ),
        ({"heads": (HeadSpec("a", 3, reads="a"),)}, "'a' cannot read 'a'"),
        ({"heads": (HeadSpec("a", 3, linear=True), HeadSpec("b", 3, reads="a"))}, "'b' cannot read 'a'"),
    ],
)
def test_rejects_what_it_does_not_know(change, message):
    with pytest.raises(ValueError, match=message):
        deeplab_network(**{"encoder": "resnet18", "heads": (SEGMENTATION,), "output_stride": 16, **change})


READER = HeadSpec("reader", 4, upsample=False, reads="segmentation")


def test_a_head_that_reads_another_changes_none_of_its_values():
    both, alone = small(heads=(READER, SEGMENTATION)), small()
    variables, fewer = both.init(jax.random.key(3)), alone.init(jax.random.key(3))
    jax.tree.map(np.testing.assert_array_equal, variables.params["segmentation"], fewer.params["segmentation"])
    assert sorted(variables.params["reader"]) == ["fuse1", "last"]


@pytest.mark.slow
def test_a_head_that_reads_another_moves_what_the_other_fuses_with_and_nothing_of_its_classifier():
    network = small(heads=(SEGMENTATION, READER))
    params, stats = network.init(jax.random.key(0))

    def total(params):
        variables = Variables(params, stats)
        features, _ = network.encode(variables, images(2, 33, 33), train=True)
        output, moved = network.decode(variables, "reader", features, train=True)
        return (output.output**2).sum(), moved

    gradient, moved = jax.jit(jax.grad(total, has_aux=True))(params)
    largest = {
        name: max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(layer))
        for name, layer in gradient["segmentation"].items()
    }
    reached = {name for name, value in largest.items() if value > 0}
    assert reached == set(params["segmentation"]) - {"fuse1", "fuse2", "last"}
    changed = jax.tree.map(lambda a, b: bool((a != b).any()), moved["segmentation"], stats["segmentation"])
    assert {name for name, layer in changed.items() if any(jax.tree.leaves(layer))} == reached
    assert all(jax.tree.leaves(jax.tree.map(lambda a, b: bool((a != b).any()), moved["reader"], stats["reader"])))


@pytest.mark.slow
def test_a_head_that_reads_another_has_the_others_fused_features_dropout_and_all():
    options = DeepLabOptions(rates=(1,), channels=8, low_level_channels=4, dropout=0.5)
    network = small(heads=(SEGMENTATION, READER), decoder=options)
    variables, key = network.init(jax.random.key(0)), jax.random.key(1)
    shapes = jax.eval_shape(lambda v, x: network.encode(v, x)[0], variables, jnp.zeros((1, 32, 32, 3)))
    features = shapes._replace(maps=tuple(jax.random.normal(key, m.shape) for m in shapes.maps))
    own, reads = (
        network.fuse(variables, head, features, train=True, rng=key)[0] for head in ("segmentation", "reader")
    )
    np.testing.assert_array_equal(own.maps[0], reads.maps[0])
    assert (own.maps[0][..., :8] == 0).all((0, 1, 2)).any()  # dropped channels


def test_fused_features_are_one_map_at_the_low_levels_stride_and_of_a_linear_head_the_encoders():
    network = small(heads=(SEGMENTATION, HeadSpec("tags", 2, linear=True)))
    variables = jax.eval_shape(network.init, jax.random.key(0))

    def fused(variables, image, head):
        features, _ = network.encode(variables, image)
        found, stats = network.fuse(variables, head, features)
        return features.maps, found.maps, stats

    image = jax.ShapeDtypeStruct((2, 64, 96, 3), jnp.float32)
    _, (one,), stats = jax.eval_shape(lambda v, x: fused(v, x, "segmentation"), variables, image)
    assert one.shape == (2, 16, 24, 8 + 4)
    assert jax.tree.structure(stats) == jax.tree.structure(variables.batch_stats)
    maps, same, _ = jax.eval_shape(lambda v, x: fused(v, x, "tags"), variables, image)
    assert [m.shape for m in maps] == [m.shape for m in same]


def as_one(shared):
    """The variables of a network whose segmentation head has the shared ASPP as its own."""
    joined = ({**tree, "segmentation": {**tree["pyramid"], **tree["segmentation"]}} for tree in shared)
    return Variables(*({part: tree[part] for part in ("encoder", "segmentation")} for tree in joined))


@pytest.mark.slow
def test_a_shared_aspp_says_what_the_same_one_of_a_heads_own_says():
    network, alone = small(heads=(SEGMENTATION, RECONSTRUCTION), share_aspp=True), small()
    variables = unsettled(network.init(jax.random.key(0)))
    assert sorted(variables.params) == ["encoder", "pyramid", "reconstruction", "segmentation"]
    image, valid = images(1, 64, 96), jnp.zeros((1, 64, 96), bool).at[:, :50, :70].set(True)
    run = predict(network, variables, image, valid), predict(alone, as_one(variables), image, valid)
    np.testing.assert_allclose(run[0].output, run[1].output, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_every_head_moves_the_shared_aspp():
    dropout = DeepLabOptions(rates=(1, 2, 3), channels=8, low_level_channels=4, dropout=0.1)
    network = small(heads=(SEGMENTATION, RECONSTRUCTION), share_aspp=True, decoder=dropout)
    variables, image = network.init(jax.random.key(0)), images(2, 33, 33)

    def total(params, head):
        state = variables._replace(params=params)
        features, stats = network.encode(state, image, train=True, rng=jax.random.key(1))
        state = state._replace(batch_stats=stats)
        output, stats = network.decode(state, head, features, train=True, rng=jax.random.key(2))
        return (output.output**2).sum(), stats

    for head in ("segmentation", "reconstruction"):
        gradients, stats = jax.jit(jax.grad(total, has_aux=True), static_argnums=1)(variables.params, head)
        assert all(float(jnp.abs(leaf).max()) > 0 for leaf in jax.tree.leaves(gradients["pyramid"]["projection"]))
        moved = stats["pyramid"]["point"]["norm"]["mean"]
        assert not np.array_equal(moved, variables.batch_stats["pyramid"]["point"]["norm"]["mean"])


@pytest.mark.slow
@pytest.mark.parametrize("encoder", ["resnet18", "mobilenet_v2"])
def test_remat_computes_the_same_and_keeps_less(encoder):
    kept, recomputed = (small(encoder=encoder, remat=remat) for remat in (False, True))
    variables, image = kept.init(jax.random.key(0)), images(2, 65, 65)
    jax.tree.map(np.testing.assert_array_equal, variables, recomputed.init(jax.random.key(0)))

    def compiled(network):
        def loss(params):
            features, stats = network.encode(variables._replace(params=params), image, train=True)
            return jnp.mean(features.high**2), stats

        lowered = jax.jit(jax.value_and_grad(loss, has_aux=True)).lower(variables.params)
        return lowered.compile(compiler_options=keep_remat())

    one, other = compiled(kept), compiled(recomputed)
    for a, b in zip(*map(jax.tree.leaves, (one(variables.params), other(variables.params))), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-7 + 1e-3 * float(jnp.abs(a).max()))
    more, less = (program.memory_analysis().temp_size_in_bytes for program in (one, other))
    assert less < 0.8 * more


def test_no_gradient_of_a_frozen_encoder_is_computed_and_the_images_goes_through_it(make_toy_network):
    plain, image = make_toy_network(normalise=False), images(2, 4, 4)
    frozen, variables = with_frozen_encoder(plain), plain.init(jax.random.key(0))

    def loss(params, image, network):
        return predict(network, variables._replace(params=params), image).output.sum()

    def products(network):
        gradient = jax.make_jaxpr(jax.grad(functools.partial(loss, image=image, network=network)))
        return str(gradient(variables.params)).count("= dot_general[")

    # Two forward; of the head's matrix, of its input, of the encoder's matrix.
    assert (products(plain), products(frozen)) == (5, 3)
    (of_params, of_image), (expected, of_image_before) = (
        jax.grad(lambda p, x, n=network: loss(p, x, n), argnums=(0, 1))(variables.params, image)
        for network in (frozen, plain)
    )
    assert not of_params["encoder"]["w"].any()
    np.testing.assert_array_equal(of_params["segmentation"]["w"], expected["segmentation"]["w"])
    assert of_image.any()
    np.testing.assert_array_equal(of_image, of_image_before)
    assert (plain.frozen, frozen.frozen) == ((), ("encoder",))

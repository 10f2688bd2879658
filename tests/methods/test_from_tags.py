"""The methods that see image-level tags, on networks of a few matrices."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from forec_jax.contracts import Batch, Tagged, TrainState
from forec_jax.methods import TagClassifier, WsssRec
from forec_jax.methods.parts.tags import pooled, tags_head
from forec_jax.methods.wsss_rec import decomposition, wsss_heads
from forec_jax.models import deeplab_network, unet_network
from forec_jax.parallel import make_mesh, replicated, shard_batch
from forec_jax.training import compile_step, create_state

CLASSES, FOREGROUND = 3, (1, 2)
SIZE = 4


def same(key, image, valid):
    return image


def tagged_batch(rows=8):
    """Random colours; tags in turn: class 1, class 2, both, none. A column of padding in the last row."""
    rng = np.random.default_rng(0)
    tags = np.tile(np.array([[1, 1, 0], [1, 0, 1], [1, 1, 1], [1, 0, 0]], np.float32), (rows // 4, 1))
    valid = np.ones((rows, SIZE, SIZE), bool)
    valid[-1, :, -1] = False
    image = rng.integers(0, 256, (rows, SIZE, SIZE, 3), dtype=np.uint8)
    return Batch(tagged=Tagged(image, valid, tags, np.zeros(rows, np.int32)))


@pytest.fixture
def classifier(make_toy_network):
    return TagClassifier(make_toy_network((tags_head(FOREGROUND),)), same, FOREGROUND, 0)


@pytest.fixture
def make_wsss(make_toy_network, classifier):
    def make(**options):
        network = make_toy_network(wsss_heads(CLASSES))
        return WsssRec(network, classifier.network, FOREGROUND, 0, **options)

    return make


def state_of(method):
    return TrainState(
        jnp.zeros((), jnp.int32), *method.init(jax.random.key(0))[:3], None, method.init(jax.random.key(0))[3]
    )


def loss_of(method, state, batch, key):
    return method.loss(state.params, state, jax.tree.map(jnp.asarray, batch), key)


def bce(logits, target):
    p = 1 / (1 + np.exp(-np.asarray(logits, np.float64)))
    return -(target * np.log(p) + (1 - target) * np.log(1 - p))


def toy_scores(variables, head, image, train):
    """NumPy's reading of the toy network; `image` f64[B,H,W,3] in [0,1]."""
    features = image @ np.asarray(variables.params["encoder"]["w"])
    mean = features.mean((0, 1, 2)) if train else np.asarray(variables.batch_stats["encoder"]["mean"])
    return np.tanh(features - mean) @ np.asarray(variables.params[head]["w"])


def mean_over(valid, maps):
    return (maps * valid[..., None]).sum((1, 2)) / valid.sum((1, 2))[:, None]


def test_pooling_is_over_valid_pixels_at_any_stride():
    valid = jnp.zeros((1, 33, 33), bool).at[0, :20, :33].set(True)
    scores = jnp.arange(9.0).reshape(1, 3, 3, 1)  # stride 16: rows at pixels 0, 16 and 32, the last in the padding
    assert float(pooled(scores, valid)[0, 0]) == np.arange(6).mean()


def test_the_classifiers_loss_by_hand(classifier):
    state, batch = state_of(classifier), tagged_batch()
    terms, aux = loss_of(classifier, state, batch, jax.random.key(1))
    variables = classifier.network.init(jax.random.key(0))
    logits = mean_over(batch.tagged.valid, toy_scores(variables, "tags", batch.tagged.image / 255.0, train=True))
    target = batch.tagged.tags[:, 1:]
    np.testing.assert_allclose(terms["tags_loss"].mean.value(), bce(logits, target).mean(), rtol=1e-5)
    np.testing.assert_allclose(aux.metrics["tags_right"].value(), ((logits > 0) == (target > 0)).mean())


def test_activation_maps_by_hand(classifier):
    """Shares of the image's largest value, of the classes that are found or given."""
    state, batch = state_of(classifier), tagged_batch()
    variables = {"student": classifier.network.init(jax.random.key(0))}
    image = jnp.asarray(batch.tagged.image / 255.0, jnp.float32)
    maps = toy_scores(variables["student"], "tags", np.asarray(image, np.float64), train=False)
    share = np.maximum(maps, 0) / np.maximum(np.maximum(maps, 0).max((1, 2), keepdims=True), 1e-6)
    found = maps.mean((1, 2)) > 0
    assert found.any()
    assert not found.all()
    scores = np.asarray(classifier.scores(variables, image, None))
    np.testing.assert_allclose(scores[..., 1:], share * found[:, None, None], atol=1e-5)
    np.testing.assert_array_equal(scores[..., 0], 1)
    given = np.asarray(classifier.scores(variables, image, None, jnp.asarray(batch.tagged.tags)))
    np.testing.assert_allclose(given[..., 1:], share * batch.tagged.tags[:, None, None, 1:], atol=1e-5)
    winner = np.asarray(classifier.at_threshold(jnp.asarray(scores), 0.4)).argmax(-1)
    foreground = scores[..., 1:].max(-1) > 0.4
    np.testing.assert_array_equal(winner, np.where(foreground, 1 + scores[..., 1:].argmax(-1), 0))
    assert state.teacher == {}


def test_a_decomposition_adds_up():
    rng = np.random.default_rng(0)
    logits, colours = rng.normal(size=(2, 4, 4, 3)), rng.normal(size=(2, 4, 4, 9))
    found = decomposition(jnp.asarray(logits), jnp.asarray(colours))
    masks = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    images = 1 / (1 + np.exp(-colours))
    expected = sum(masks[..., k, None] * images[..., 3 * k : 3 * k + 3] for k in range(3))
    np.testing.assert_allclose(found.reconstruction(), expected, rtol=1e-5)


@pytest.mark.parametrize("mask_loss", ["area", "size_penalty"])
def test_the_losses_by_hand(make_wsss, mask_loss):
    """The published reductions change the area's loss by the number of classes, L_cls by that of the parts, two."""
    method = make_wsss(mask_loss=mask_loss, reconstruction_weight=2.0, mask_weight=0.5, class_weight=0.25)
    state, batch = state_of(method), tagged_batch()
    terms, aux = loss_of(method, state, batch, jax.random.key(1))
    image, valid, tags = batch.tagged.image / 255.0, batch.tagged.valid, batch.tagged.tags
    student, g = method.network.init(jax.random.key(0)), method.classifier.init(jax.random.key(0))

    logits = toy_scores(student, "segmentation", image, train=True)
    masks = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    images = 1 / (1 + np.exp(-toy_scores(student, "image_lets", image, train=True))).reshape(8, 4, 4, 3, 3)
    parts = masks[..., None] * images
    error = ((parts.sum(3) - image) ** 2)[valid].mean()
    np.testing.assert_allclose(terms["reconstruction_loss"].mean.value(), error, rtol=1e-4)

    area = mean_over(valid, masks)
    if mask_loss == "area":  # of all classes; the background is in every image
        np.testing.assert_allclose(
            terms["mask_loss"].mean.value(), bce(np.log(area / (1 - area)), tags).mean(), rtol=1e-4
        )
    else:  # of the foreground classes
        weighted = (masks * logits * valid[..., None]).sum((1, 2)) / (1 + (masks * valid[..., None]).sum((1, 2)))
        scores = weighted + (1 - area) ** 3 * np.log(0.01 + area)
        np.testing.assert_allclose(terms["mask_loss"].mean.value(), bce(scores, tags)[:, 1:].mean(), rtol=1e-4)

    background = mean_over(valid, toy_scores(g, "tags", parts[..., 0, :], train=False))
    np.testing.assert_allclose(terms["class_background_loss"].mean.value(), bce(background, 0).mean(), rtol=1e-4)
    np.testing.assert_allclose(aux.metrics["foreground"].value(), 1 - area[:, 0].mean(), rtol=1e-4)
    assert [term.weight for term in terms.values()] == [2.0, 0.5, 0.25, 0.25]
    as_published = dataclasses.replace(method, area_of_classes="sum", class_of_parts="mean")
    published, _ = loss_of(as_published, state, batch, jax.random.key(1))
    assert [term.weight for term in published.values()] == [2.0, 0.5, 0.125, 0.125]
    times = {"mask_loss": CLASSES if mask_loss == "area" else 1}
    for name, term in terms.items():
        expected = times.get(name, 1) * float(term.mean.value())
        assert float(published[name].mean.value()) == pytest.approx(expected, rel=1e-6), name


def test_the_foreground_shows_its_tag_and_nothing_else(make_toy_network, classifier):
    """One class, as in the paper: no draw. Rows with the tag should show it, rows without should show nothing."""
    g = make_toy_network((tags_head((1,)),))
    method = WsssRec(make_toy_network(wsss_heads(2)), g, (1,), 0)
    batch = tagged_batch()
    tags = batch.tagged.tags[:, :2]
    state = state_of(method)
    terms, _ = loss_of(method, state, Batch(tagged=batch.tagged._replace(tags=tags)), jax.random.key(1))
    student, variables = method.network.init(jax.random.key(0)), g.init(jax.random.key(0))
    image = batch.tagged.image / 255.0
    logits = toy_scores(student, "segmentation", image, train=True)
    mask = 1 / (1 + np.exp(logits[..., :1] - logits[..., 1:]))
    colours = 1 / (1 + np.exp(-toy_scores(student, "image_lets", image, train=True)))[..., 3:]
    shown = mean_over(batch.tagged.valid, toy_scores(variables, "tags", mask * colours, train=False))
    expected = bce(shown, tags[:, 1:]).mean()
    np.testing.assert_allclose(terms["class_foreground_loss"].mean.value(), expected, rtol=1e-4)


def test_nothing_painted_into_the_padding_reaches_the_classifier(make_wsss):
    """A classifier that sees the whole image at every pixel, as a deep one nearly does, finds the image's own padding."""
    method = make_wsss()

    def encode(variables, image, **options):
        everywhere = jnp.broadcast_to(jnp.mean(image, axis=(1, 2), keepdims=True), image.shape)
        return method.classifier.encode(variables, everywhere, **options)

    state, batch = state_of(method), tagged_batch()
    far_seeing = dataclasses.replace(method, classifier=method.classifier._replace(encode=encode))
    terms, _ = loss_of(far_seeing, state, batch, jax.random.key(1))
    student, g = method.network.init(jax.random.key(0)), method.classifier.init(jax.random.key(0))
    image, valid = batch.tagged.image / 255.0, batch.tagged.valid
    assert not valid.all()
    logits = toy_scores(student, "segmentation", image, train=True)
    mask = (np.exp(logits) / np.exp(logits).sum(-1, keepdims=True))[..., :1]
    colours = 1 / (1 + np.exp(-toy_scores(student, "image_lets", image, train=True)))[..., :3]
    seen = np.where(valid[..., None], mask * colours, image).mean((1, 2), keepdims=True)
    scores = toy_scores(g, "tags", np.broadcast_to(seen, image.shape), train=False)[:, 0, 0]
    np.testing.assert_allclose(terms["class_background_loss"].mean.value(), bce(scores, 0).mean(), rtol=1e-4)


def test_the_drawn_class_is_one_of_the_tags(make_wsss):
    """Over many draws the foreground's part is that of a tagged class; where there is none, of any."""
    method = make_wsss()
    state, batch = state_of(method), tagged_batch(4)
    g, student = method.classifier.init(jax.random.key(0)), method.network.init(jax.random.key(0))
    image, valid = batch.tagged.image / 255.0, batch.tagged.valid
    logits = toy_scores(student, "segmentation", image, train=True)
    masks = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    images = 1 / (1 + np.exp(-toy_scores(student, "image_lets", image, train=True))).reshape(4, 4, 4, 3, 3)
    errors = []  # by drawn class, by row
    for k in FOREGROUND:
        shown = mean_over(valid, toy_scores(g, "tags", masks[..., k, None] * images[..., k, :], train=False))
        target = batch.tagged.tags[:, 1:] * (np.arange(1, 3) == k)
        errors.append(bce(shown, target).sum(-1))
    one, two = errors
    # Row 0 has class 1 alone, row 1 class 2; rows 2 and 3 may draw either.
    possible = [(one[0] + two[1] + a + b) / 8 for a in (one[2], two[2]) for b in (one[3], two[3])]
    loss = jax.jit(lambda key: loss_of(method, state, batch, key)[0]["class_foreground_loss"].mean.value())
    drawn = np.array([loss(jax.random.key(i)) for i in range(40)])
    nearest = np.abs(drawn[:, None] - np.array(possible)).argmin(1)
    np.testing.assert_allclose(drawn, np.array(possible)[nearest], rtol=1e-4)
    assert set(nearest) == {0, 1, 2, 3}


def train(method, steps, devices=1, accumulate=1):
    mesh = make_mesh(devices=jax.devices()[:devices])
    tx = optax.adam(0.05)
    state = create_state(method, tx, 0, replicated(mesh))
    first = jax.device_get(state)
    step = compile_step(method, tx, seed=0, accumulate=accumulate, mesh=mesh)
    history = []
    for _ in range(steps):
        state, metrics = step(state, shard_batch(mesh, tagged_batch()))
        history.append(jax.device_get(metrics))
    return first, jax.device_get(state), history


def test_the_classifier_never_changes_while_the_student_learns(make_wsss):
    first, last, history = train(make_wsss(mask_weight=0.1, class_weight=0.1), 30)
    jax.tree.map(np.testing.assert_array_equal, first.memory, last.memory)
    assert jax.tree.leaves(first.memory)
    assert history[-1]["loss"] < 0.8 * history[0]["loss"]
    assert history[-1]["reconstruction_loss"] < history[0]["reconstruction_loss"]
    changed = jax.tree.map(
        lambda a, b: not np.array_equal(a, b), first.teacher["student"].params, last.teacher["student"].params
    )
    assert all(jax.tree.leaves(changed))
    assert set(last.teacher["student"].params) == {"encoder", "segmentation"}


@pytest.mark.slow
def test_a_step_on_the_papers_u_net_reaches_every_part_of_it(classifier):
    method = WsssRec(unet_network(heads=wsss_heads(CLASSES), width=0.0625), classifier.network, FOREGROUND, 0)
    large = tagged_batch()
    part = large.tagged._replace(image=large.tagged.image.repeat(8, 1).repeat(8, 2), valid=np.ones((8, 32, 32), bool))
    state = state_of(method)

    def loss(params):
        terms, _ = loss_of(method, state._replace(params=params), Batch(tagged=part), jax.random.key(0))
        return sum(term.weight * term.mean.value() for term in terms.values())

    gradient = jax.jit(jax.grad(loss))(state.params)["student"]
    assert set(gradient) == {"encoder", "segmentation", "image_lets"}
    assert all(np.asarray(leaf).any() and np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


def test_the_background_is_in_every_image_whatever_its_tag_says(make_wsss):
    method, batch = make_wsss(), tagged_batch()
    silent = batch.tagged._replace(tags=batch.tagged.tags * np.array([0, 1, 1], np.float32))
    state = state_of(method)
    said, unsaid = (loss_of(method, state, b, jax.random.key(1))[0] for b in (batch, Batch(tagged=silent)))
    jax.tree.map(np.testing.assert_array_equal, said, unsaid)


def test_padding_changes_no_activation_map():
    """A third of the image is padding: its classes, their largest values and the maps are those of the image alone."""
    network = deeplab_network(encoder="resnet18", heads=(tags_head(FOREGROUND),), width=0.25)
    method = TagClassifier(network, same, FOREGROUND, 0)
    variables = {"student": network.init(jax.random.key(0))}
    image = jax.random.uniform(jax.random.key(1), (2, 64, 96, 3))
    valid = jnp.ones((2, 64, 64), bool)
    padded = jnp.pad(image[:, :, :64], ((0, 0), (0, 0), (0, 32), (0, 0)), constant_values=0.5)
    scores = jax.jit(method.scores)
    alone = scores(variables, image[:, :, :64], valid)
    beside = scores(variables, padded, jnp.pad(valid, ((0, 0), (0, 0), (0, 32))))
    assert float(alone[..., 1:].max()) == 1
    np.testing.assert_allclose(beside[:, :, :64], alone, atol=1e-4)
    np.testing.assert_array_equal(beside[:, :, 64:, 1:], 0)


def test_a_term_of_weight_zero_is_left_out(make_wsss):
    """Without L_recon nothing but the classifier and the sizes say what an image-let is."""
    method = make_wsss(reconstruction_weight=0.0, class_weight=0.0)
    state, batch = state_of(method), tagged_batch()

    def loss(params):
        terms, _ = loss_of(method, state._replace(params=params), batch, jax.random.key(0))
        return sum(term.weight * term.mean.value() for term in terms.values())

    gradient = jax.grad(loss)(state.params)["student"]
    assert not np.asarray(gradient["image_lets"]["w"]).any()
    assert np.asarray(gradient["segmentation"]["w"]).any()


def test_one_and_four_devices_agree(make_wsss):
    one, four = (train(make_wsss(mask_weight=0.1, class_weight=0.1), 3, devices)[1] for devices in (1, 4))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), one.params, four.params)


def test_masks_at_a_threshold(make_wsss):
    method = make_wsss()
    scores = jnp.array([[[[0.5, 0.3, 0.2], [0.3, 0.3, 0.4], [0.9, 0.1, 0.0]]]])
    for threshold, winner in ((0.5, [0, 2, 0]), (0.3, [1, 2, 0]), (0.05, [1, 2, 1]), (0.7, [0, 0, 0])):
        found = method.at_threshold(scores, threshold)
        assert np.asarray(found).argmax(-1)[0, 0].tolist() == winner
        np.testing.assert_allclose(np.asarray(found).sum(-1), 1, rtol=1e-6)
    np.testing.assert_allclose(method.at_threshold(scores, 0.5), scores, rtol=1e-6)


def test_given_tags_take_other_masks_out(make_wsss):
    method = make_wsss()
    variables = {"student": method.network.init(jax.random.key(0))}
    image = jnp.asarray(tagged_batch(4).tagged.image / 255.0, jnp.float32)
    free = np.asarray(method.scores(variables, image, None))
    given = np.asarray(method.scores(variables, image, None, jnp.asarray(tagged_batch(4).tagged.tags)))
    np.testing.assert_allclose(given[2], free[2], rtol=1e-5)
    np.testing.assert_array_equal(given[0, ..., 2], 0)
    np.testing.assert_allclose(given[0, ..., 1], free[0, ..., 1] / free[0, ..., :2].sum(-1), rtol=1e-5)


def test_tagged_rows_are_asked_for(make_wsss, classifier):
    for method in (make_wsss(), classifier):
        with pytest.raises(ValueError, match=r"set batch\.tagged above 0"):
            loss_of(method, state_of(method), Batch(), jax.random.key(0))

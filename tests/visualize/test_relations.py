"""Class relations of features that are known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from forec_jax.contracts import HeadOutput, HeadSpec, Network, Variables
from forec_jax.data import Example
from forec_jax.models import unet_network
from forec_jax.models.network import Features, ImageSize
from forec_jax.visualize.relations import Relations, relate, relation_picture, relations

STRIDE = 8


def network(heads=("segmentation", "representation")):
    """Its features are every eighth pixel; the representation turns them: colours (r, g, b) become (b, b, r)."""

    def encode(variables, image, *, valid, train, rng):
        small = image[:, STRIDE // 2 :: STRIDE, STRIDE // 2 :: STRIDE]
        return Features((small, small), ImageSize(*image.shape[1:3]), valid), {}

    def classify(variables, head, features, *, train, rng):
        assert head == "representation"
        return HeadOutput(features.high[..., jnp.array([2, 2, 0])], features.high), {}

    return Network(None, encode, classify, tuple(HeadSpec(name, 3) for name in heads))


def example(label, colours):
    label = np.kron(np.array(label, np.uint8), np.ones((STRIDE, STRIDE), np.uint8))
    return Example("one", np.array(colours, np.uint8)[np.minimum(label, len(colours) - 1)], label)


def test_similarity_is_the_cosine_of_mean_features_over_all_examples():
    """Class 0 is red and, in the second image, green; class 2 is blue; class 1 never occurs; void has no say."""
    first = example([[0, 0, 255], [2, 2, 255]], [(200, 0, 0), (0, 0, 0), (0, 0, 100)])
    second = example([[0, 0]], [(0, 200, 0)])
    found = relations(network(), Variables({}, {}), [first, second, first._replace(label=None)], 3, 32)
    assert found.keys() == {"encoder", "representation"}
    encoder, representation = found["encoder"], found["representation"]
    assert (encoder.classes, encoder.pixels) == ((0, 2), (4, 2))
    np.testing.assert_allclose(encoder.similarity, [[1, 0], [0, 1]], atol=1e-7)
    # Class 0 is (100, 100, 0) in the mean, which turns into (0, 0, 100); class 2, (0, 0, 100), into (100, 100, 0).
    np.testing.assert_allclose(representation.similarity, [[1, 0], [0, 1]], atol=1e-7)
    np.testing.assert_allclose(encoder.merges, [[0, 1, 1, 2]], atol=1e-7)
    assert relations(network(("segmentation",)), Variables({}, {}), [first], 3, 32).keys() == {"encoder"}


def test_relations_by_hand():
    """Three directions in a plane: 0 and 60 degrees meet at 1 - 1/2, and 180 degrees at the mean of 2 and 3/2."""
    total = np.array([[4.0, 0.0], [0.0, 0.0], [1.0, 3**0.5], [-7.0, 0.0]])
    found = relate(total, np.array([2.0, 0.0, 1.0, 9.0]))
    assert (found.classes, found.pixels) == ((0, 2, 3), (2, 1, 9))
    np.testing.assert_allclose(found.similarity, [[1, 0.5, -1], [0.5, 1, -0.5], [-1, -0.5, 1]], atol=1e-12)
    np.testing.assert_allclose(found.merges, [[0, 1, 0.5, 2], [2, 3, 1.75, 3]], atol=1e-12)
    assert found.mean_similarity() == pytest.approx((0.5 - 1 - 0.5) / 3)


def test_the_encoder_of_a_unet_has_relations_too():
    unet = unet_network(heads=(HeadSpec("segmentation", 3),), width=0.0625)
    shown = example([[0, 0, 2, 2]] * 4, [(200, 0, 0), (0, 0, 0), (0, 0, 100)])
    found = relations(unet, unet.init(jax.random.key(0)), [shown], 3, 32)["encoder"]
    assert (found.classes, found.pixels) == ((0, 2), (2, 2))  # of a grid of 2 x 2


@pytest.mark.parametrize("present", [0, 1])
def test_without_two_classes_there_is_nothing_to_merge(present):
    found = relate(np.eye(2), np.array([float(present), 0.0]))
    assert found.classes == (0,)[:present]
    assert found.merges.shape == (0, 4)
    assert found.mean_similarity() is None
    relation_picture(found, ["a", "b"])


def test_the_picture_is_ordered_by_the_dendrogram():
    """Classes a and c are alike: their cells, off the diagonal, are lighter than those of b with either."""
    directions = np.array([[1.0, 0.0], [0.0, 1.0], [0.9, 0.1]])
    found = relate(directions, np.ones(3))
    picture = relation_picture(found, ["a", "b", "c"])
    cells = picture[6 + 11 :: 22, 110 + 11 :: 22].astype(int).sum(-1)[:3, :3]
    assert np.diag(cells).min() == cells.max()
    lightness = np.sort(np.unique(cells))
    alike = sorted(cells[0, 1:].tolist() + cells[1, 2:].tolist())
    assert alike[2] > 2 * alike[1]
    assert lightness[0] == alike[0]
    assert cells[0, 1] == alike[2] or cells[1, 2] == alike[2]  # a and c are neighbours
    tree = picture[6 + 66 + 6 :, 110:]
    assert (tree == 0).all(-1).sum() > 100  # lines


def test_a_picture_of_one_leaf_order_keeps_the_values():
    found = Relations((3, 5), (1, 1), np.array([[1.0, 0.2], [0.2, 1.0]]), np.array([[0, 1, 0.8, 2]]))
    assert relation_picture(found, list("abcdef")).shape == (44 + 90 + 18, 110 + 44 + 6, 3)

"""Hidden patches: how many, where, and what is in their place."""

import jax
import jax.numpy as jnp
import numpy as np

from forec_jax.augment import hide_patches
from forec_jax.contracts import IMAGENET_MEAN


def test_a_share_of_whole_patches_stays_as_it_is_and_the_rest_is_the_mean_colour():
    """9 x 10 pixels in patches of 4: 3 x 3 of them, of which 30 % are 3; those at the ends are cut."""
    image = jax.random.uniform(jax.random.key(1), (400, 9, 10, 3), minval=0.6)
    found = np.asarray(hide_patches(jax.random.key(0), image, 4, 0.3))
    shown = (found == np.asarray(image)).all(-1)
    np.testing.assert_array_equal(found[~shown], np.broadcast_to(np.float32(IMAGENET_MEAN), found[~shown].shape))
    patches = shown[:, ::4, ::4]
    np.testing.assert_array_equal(shown, patches.repeat(4, 1).repeat(4, 2)[:, :9, :10])
    np.testing.assert_array_equal(patches.sum((1, 2)), 3)
    np.testing.assert_allclose(patches.mean(0), 1 / 3, atol=0.1)  # each as often


def test_one_patch_stays_at_least_and_all_where_all_are_visible():
    image = jnp.full((3, 8, 8, 3), 0.9)
    shown = np.asarray(hide_patches(jax.random.key(0), image, 4, 0.01) == image).all(-1)
    np.testing.assert_array_equal(shown.sum((1, 2)), 16)
    np.testing.assert_array_equal(hide_patches(jax.random.key(0), image, 4, 1.0), image)

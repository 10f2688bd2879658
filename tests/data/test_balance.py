import hashlib
import logging

import numpy as np
import pytest

from forec_jax.data import DataError, classes_in_images, resolve_split, select, shapes_dataset
from forec_jax.data.balance import balanced_draw

IDS = tuple(f"{i:03d}" for i in range(200))


def long_tailed(seed=0):
    """Class 0 in every image, classes 1 to 5 in about 50, 25, 12, 6 and 6 % of them."""
    rng = np.random.default_rng(seed)
    return [frozenset([0, *(np.flatnonzero(rng.random(5) < [0.5, 0.25, 0.12, 0.06, 0.06]) + 1).tolist()]) for _ in IDS]


def test_a_draw_by_hand():
    """Ranks by the SHA-256: with seed 0 class 0 comes first, then whatever is least seen."""
    ids = ("a", "b", "c", "d")
    rank = sorted(range(4), key=lambda i: hashlib.sha256(f"0:{ids[i]}".encode()).digest())
    classes = [frozenset({0})] * 4
    classes[rank[2]] = frozenset({0, 1})
    assert balanced_draw(ids, classes, count=1, seed=0) == (ids[rank[0]],)
    assert set(balanced_draw(ids, classes, count=2, seed=0)) == {ids[rank[0]], ids[rank[2]]}
    assert set(balanced_draw(ids, classes, count=3, seed=0)) == {ids[rank[i]] for i in (0, 1, 2)}


def test_the_rarest_class_is_in_far_more_images_than_a_plain_draw_has():
    classes = long_tailed()
    shown = dict(zip(IDS, classes, strict=True))
    names = balanced_draw(IDS, classes, count=30, seed=1)
    seen = [sum(k in shown[name] for name in names) for k in range(6)]
    assert min(seen) >= 5  # a plain draw of 30 shows the rarest class about twice
    assert list(names) == sorted(names)
    assert len(set(names)) == 30


def test_draws_of_a_seed_are_nested_and_differ_between_seeds():
    classes = long_tailed()
    small, large = (set(balanced_draw(IDS, classes, count=count, seed=0)) for count in (10, 40))
    assert small < large
    assert small != set(balanced_draw(IDS, classes, count=10, seed=1))


def test_images_of_many_classes_go_first():
    classes = long_tailed()
    shown = dict(zip(IDS, classes, strict=True))
    assert all(len(shown[name]) >= 3 for name in balanced_draw(IDS, classes, count=15, seed=0, at_least=3))
    assert len(balanced_draw(IDS, classes, count=200, seed=0, at_least=3)) == 200


@pytest.mark.parametrize("count", [0, 201])
def test_impossible_counts(count):
    with pytest.raises(DataError, match=rf"balanced:{count}:0 cannot be drawn from a pool of 200"):
        balanced_draw(IDS, long_tailed(), count=count, seed=0)


def test_an_option_reads_the_masks_of_the_pool_and_says_what_it_drew(caplog):
    caplog.set_level(logging.INFO)
    data = shapes_dataset(size=33)
    pool = data.source("train")
    asked = []

    def classes_of(ids):
        asked.extend(ids)
        return classes_in_images(select(pool, ids), len(data.classes))

    ids = pool.ids[:20]
    split = resolve_split(pool_ids=ids, maskless=ids[:1], labelled="balanced:5:0:2", classes_of=classes_of)
    classes = [frozenset(np.unique(pool[i].label)) - {255} for i in range(1, 20)]
    assert split.labelled == balanced_draw(ids[1:], classes, count=5, seed=0, at_least=2)
    assert (split.name, len(split.unlabelled), asked) == ("balanced:5:0:2", 15, list(ids[1:]))
    least = min(
        sum(k in shown for name, shown in zip(ids[1:], classes, strict=True) if name in split.labelled)
        for k in set().union(*classes)
    )
    assert f"balanced:5:0:2: every class is in at least {least} images" in caplog.text

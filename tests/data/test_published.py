import logging
import os
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from forec_jax.config import defaults, load_config
from forec_jax.data import DataError
from forec_jax.data.published import LISTS, POOLS, Pool, PublishedList, check_protocol, protocol_names, published_name
from forec_jax.data.splits import Split, list_sha256, read_list, resolve_split
from forec_jax.experiment import sources
from forec_jax.options import OptionError

SHARED = Path(os.environ.get("FOREC_SHARED", Path(__file__).resolve().parents[3] / "shared"))
PUBLISHED = SHARED / "data" / "published_splits"
needs_lists = pytest.mark.skipif(not PUBLISHED.is_dir(), reason="no published lists here; set FOREC_SHARED")

FILES = {
    **{
        f"voc/classic/{n}": (
            f"U2PL/pascal/{n}/labeled.txt",
            f"UniMatch/pascal/{n}/labeled.txt",
            f"PS-MT/{n}_train_supervised.txt",
        )
        for n in (92, 183, 366, 1464)
    },
    **{
        f"voc/priority/{n}": (f"U2PL/pascal/{n}/labeled.txt", f"PS-MT/{n}0_train_supervised.txt")
        for n in (662, 1323, 2646, 5291)
    },
    **{
        f"voc/blended/{n}": (f"PS-MT/{n}_train_supervised.txt", f"TorchSemiSeg/train_aug_labeled_1-{part}.txt")
        for n, part in ((662, 16), (1323, 8), (2646, 4), (5291, 2))
    },
    "voc/classic_u2pl/732": ("U2PL/pascal/732/labeled.txt", "UniMatch/pascal/732/labeled.txt"),
    "voc/classic_cps/732": ("PS-MT/732_train_supervised.txt", "TorchSemiSeg/pseudoseg_labeled_1-2.txt"),
    **{f"cityscapes/u2pl/{n}": (f"U2PL/cityscapes/{n}/labeled.txt",) for n in (186, 372, 744, 1488)},
    **{
        f"cityscapes/cps/{n}": (f"UniMatch/cityscapes/1_{part}/labeled.txt",)
        for n, part in ((186, 16), (372, 8), (744, 4), (1488, 2))
    },
    "cityscapes/unimatch/100": ("UniMatch/cityscapes/1_30/labeled.txt",),
}

TOY_POOL = tuple(f"i{k}" for k in range(10))


def test_names_and_sums_are_unique():
    assert len(set(protocol_names())) == len(LISTS)
    assert len({known.sha256 for known in LISTS}) == len(LISTS)
    assert all(len(known.sha256) == 64 and known.dataset in POOLS for known in LISTS)
    assert published_name("0" * 64) == ""


@needs_lists
def test_every_known_list_has_the_sum_of_its_files():
    assert set(FILES) == set(protocol_names())
    counts = {known.name: known.images for known in LISTS}
    for name, files in FILES.items():
        for file in files:
            ids = read_list(PUBLISHED / file, ())
            assert (published_name(list_sha256(ids)), len(ids)) == (name, counts[name]), file


@needs_lists
def test_every_published_labelled_list_is_known():
    files = [file for file in PUBLISHED.rglob("*.txt") if file.name not in ("val.txt", "train_aug.txt")]
    assert len(files) > 40
    for file in files:
        assert published_name(list_sha256(read_list(file, ()))), file


@needs_lists
def test_a_published_split_of_the_whole_pool_holds_its_claim():
    pool = read_list(PUBLISHED / "UniMatch" / "pascal" / "train_aug.txt", ())
    labelled = str(PUBLISHED / "TorchSemiSeg" / "pseudoseg_labeled_1-8.txt")
    split = resolve_split(pool_ids=pool, labelled=labelled)
    check_protocol("voc/classic/183", split)
    short = resolve_split(pool_ids=pool[:-1] if pool[-1] not in split.labelled else pool[1:], labelled=labelled)
    with pytest.raises(DataError, match=r"together are 10581 images .* the published pool, train_aug, has 10582"):
        check_protocol("voc/classic/183", short)


@pytest.fixture
def toy_list(monkeypatch):
    """A data set of ten images in which three are a published list, and two another."""
    known = PublishedList("toy/three/3", "Toys", 3, list_sha256(TOY_POOL[:3]))
    other = PublishedList("toy/two/2", "Toys", 2, list_sha256(TOY_POOL[:2]))
    monkeypatch.setattr("forec_jax.data.published.LISTS", (known, other))
    monkeypatch.setattr("forec_jax.data.published.POOLS", {"toy": Pool("train", 10, list_sha256(TOY_POOL))})
    return known


def split_of(labelled, unlabelled):
    return Split("mine", labelled, unlabelled, list_sha256(labelled))


def test_a_claim_that_holds(toy_list):
    check_protocol(toy_list.name, split_of(TOY_POOL[:3], TOY_POOL[3:]))
    check_protocol(toy_list.name, split_of(TOY_POOL[2::-1], ()))  # neither the order nor, supervised, the pool matters


def test_another_labelled_list_is_named_with_both_counts_and_sums(toy_list):
    with pytest.raises(DataError, match="the labelled part mine is another list") as caught:
        check_protocol(toy_list.name, split_of(TOY_POOL[4:8], TOY_POOL[8:]))
    for part in ("4 images", list_sha256(TOY_POOL[4:8]), "3 images", toy_list.sha256, "published with Toys"):
        assert part in str(caught.value)
    with pytest.raises(DataError, match=r"mine is toy/two/2 .* or data\.protocol to 'toy/two/2'"):
        check_protocol(toy_list.name, split_of(TOY_POOL[:2], ()))


def test_another_pool_is_an_error(toy_list):
    with pytest.raises(DataError, match=r"together are 9 images .* has 10 images and SHA-256 .*set data\.pool=train"):
        check_protocol(toy_list.name, split_of(TOY_POOL[:3], TOY_POOL[3:9]))
    with pytest.raises(DataError, match="together are 10 images"):
        check_protocol(toy_list.name, split_of(TOY_POOL[:3], (*TOY_POOL[3:9], "foreign")))


def claiming(protocol, labelled):
    return ConfigDict({"data": {"protocol": protocol, "labelled": str(labelled)}})


def test_a_list_file_is_told_what_it_is(toy_list, tmp_path, caplog):
    file = tmp_path / "list.txt"
    file.touch()
    with caplog.at_level(logging.INFO, "forec_jax"):
        sources.claim_protocol(claiming("", file), split_of(TOY_POOL[:3], ()))
        sources.claim_protocol(claiming("", file), split_of(TOY_POOL[:4], ()))
        sources.claim_protocol(claiming("", "4:0"), split_of(TOY_POOL[:4], ()))
    known, unknown = caplog.messages
    assert known == f"{file}: 3 images, SHA-256 {toy_list.sha256}, the published list toy/three/3 ({toy_list.origins})"
    assert unknown.endswith("no published list that the library knows")


@pytest.mark.parametrize("option", [{"data.partial": "1px"}, {"batch.tagged": 8}])
def test_a_claim_is_of_whole_masks(option):
    c = load_config("configs/shapes.py:mean_teacher", {"data.protocol": "voc/classic/92", **option})
    with pytest.raises(OptionError, match=r"data\.protocol='voc/classic/92' claims the whole masks"):
        sources.build_training_data(c)


def test_an_unknown_protocol_names_the_known_ones(toy_list):
    with pytest.raises(OptionError, match=r"data\.protocol='toy/four': choose one of .*'toy/three/3'"):
        sources.claim_protocol(claiming("toy/four", "all"), split_of(TOY_POOL, ()))


def test_a_broken_claim_stops_the_building_of_the_data():
    c = defaults()
    c.data.update({"name": "shapes", "labelled": "4:0", "protocol": "voc/classic/92"})
    with pytest.raises(DataError, match="labelled part 4:0 is another list"):
        sources.build_training_data(c)

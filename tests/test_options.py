"""Options whose values make no sense are refused by name."""

import dataclasses
import math
from pathlib import Path
from typing import Literal

import pytest

from forec_jax.config import apply_variant, check_options, defaults, every_block, load_config, options_in
from forec_jax.options import SHARE, OptionError, from_config, one_of, option, options_of, taken, to_config
from forec_jax.variants import SUMS, variants

CONFIGS = Path(__file__).parents[1] / "configs"
EVERY_TASK = "reco+forec+foreground_segmentation"


def shapes(variant):
    c = defaults()
    c.data.name = "shapes"
    return apply_variant(c, variant)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("method.threshold", 95.0, "between 0 and 1"),
        ("method.threshold", math.nan, "between 0 and 1"),
        ("auxiliary.reconstruction.threshold", -0.1, "between 0 and 1"),
        ("auxiliary.reco.query_threshold", 97.0, "between 0 and 1"),
        ("auxiliary.foreground_segmentation.unlabelled_weight", -1.0, "at least 0"),
        ("auxiliary.reco.weight", math.inf, "at least 0"),
        ("optim.lr", -1.0, "at least 0"),
        ("optim.momentum", 1.0, "at least 0 and below 1"),
        ("ema.decay", 2.0, "between 0 and 1"),
        ("augment.blur_probability", 5.0, "between 0 and 1"),
        ("augment.hue", 3.0, "between 0 and 0.5"),
        ("data.scale", (2.0, 0.5), "two numbers above 0, the smaller one first"),
        ("data.scale", (0.5,), "two numbers above 0, the smaller one first"),
        ("augment.blur_sigma", (1.0,), "two numbers above 0, the smaller one first"),
        ("model.resnet.multi_grid", (2,), "three whole numbers"),
        ("model.resnet.width", 0.0, "above 0"),
        ("batch.labelled", -1, "at least 0"),
        ("accumulate", 0, "at least 1"),
        ("eval.stride_fraction", 0.0, "above 0 and at most 1"),
        ("data.pad_label", 300, "between 0 and 255"),
    ],
)
def test_a_value_that_makes_no_sense_is_refused(key, value, words):
    c = shapes(EVERY_TASK)
    c.update_from_flattened_dict({key: value})
    with pytest.raises(OptionError) as refused:
        check_options(c)
    assert f"{key}={value} must be {words}" in str(refused.value)


@pytest.mark.parametrize("variant", sorted({**variants(), **SUMS}))
def test_the_variants_are_allowed(variant):
    check_options(shapes(variant))


@pytest.mark.parametrize("file", sorted(path.name for path in CONFIGS.glob("*.py")))
def test_the_configs_are_allowed(file):
    check_options(load_config(f"configs/{file}", {}))


def test_every_option_says_what_it_means_once():
    """The dataclasses are the reference of the options: what is printed and documented comes from them."""
    keys = [key for key, _ in options_in(every_block())]
    assert len(set(keys)) == len(keys) > 100
    for key, found in options_in(every_block()):
        assert len(found.meaning) > 5, key
        assert found.rule is None or found.rule.allows(found.default), key


@dataclasses.dataclass(frozen=True, kw_only=True)
class Share:
    part: float = option(0.5, "of the whole", SHARE)


@dataclasses.dataclass(frozen=True)
class Toy(Share):
    network: object = None  # no option
    kind: Literal["round", "square"] = option("round", "its form")
    sides: tuple[int, ...] = option((1, 2), "in pixels")


def test_options_are_fields_and_other_fields_are_none():
    assert [found.name for found in options_of(Toy)] == ["part", "kind", "sides"]
    assert to_config(Toy).to_dict() == {"part": 0.5, "kind": "round", "sides": (1, 2)}


def test_a_block_is_read_back_checked():
    c = to_config(Toy)
    c.part, c.sides = 0.25, (3, 4)
    assert from_config(Toy, c, "toy") == Toy(part=0.25, sides=(3, 4))
    c.kind = "oval"
    with pytest.raises(OptionError, match=r"^toy\.kind='oval': choose one of 'round', 'square'$"):
        from_config(Toy, c, "toy")
    c.kind, c.part = "square", 1.5
    with pytest.raises(OptionError, match=r"^part=1\.5 must be between 0 and 1$"):
        from_config(Toy, c, "")


def test_the_options_of_a_class_are_taken_from_the_first_that_has_them():
    assert taken(Share, Toy(part=0.1)) == {"part": 0.1}
    assert taken(Toy, Share(part=0.2), Toy(part=0.1, kind="square")) == {"part": 0.2, "kind": "square", "sides": (1, 2)}


def test_a_choice_allows_its_choices_alone():
    assert one_of(4, 1).allows(4)
    assert not one_of(4, 1).allows(2)

"""Options whose values make no sense are refused by name."""

import fnmatch
import math
from pathlib import Path

import pytest

from forec_jax.config import VARIANTS, apply_variant, defaults, flat, load_config
from forec_jax.ranges import RULES, RangeError, check_ranges

CONFIGS = Path(__file__).parents[1] / "configs"
EVERY_TASK = "reco+forec+foreground_segmentation"


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
        ("model.multi_grid", (2,), "three whole numbers"),
        ("model.width", 0.0, "above 0"),
        ("batch.labelled", -1, "at least 0"),
        ("accumulate", 0, "at least 1"),
        ("eval.stride_fraction", 0.0, "above 0 and at most 1"),
        ("data.pad_label", 300, "between 0 and 255"),
    ],
)
def test_a_value_that_makes_no_sense_is_refused(key, value, words):
    c = apply_variant(defaults(), EVERY_TASK)
    c.update_from_flattened_dict({key: value})
    with pytest.raises(RangeError) as refused:
        check_ranges(flat(c.to_dict()))
    assert f"{key}={value} must be {words}" in str(refused.value)


@pytest.mark.parametrize("variant", sorted(VARIANTS))
def test_the_variants_are_allowed(variant):
    check_ranges(flat(apply_variant(defaults(), variant).to_dict()))


@pytest.mark.parametrize("file", sorted(path.name for path in CONFIGS.glob("*.py")))
def test_the_configs_are_allowed(file):
    check_ranges(flat(load_config(f"configs/{file}", {}).to_dict()))


def test_every_rule_is_about_an_option():
    keys = flat(apply_variant(defaults(), EVERY_TASK).to_dict())
    for pattern in RULES:
        assert fnmatch.filter(keys, pattern), pattern

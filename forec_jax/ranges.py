"""What values an option may have, where its type allows values that make no sense: a threshold of 95, say."""

import fnmatch
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple


class RangeError(ValueError):
    """A value that an option cannot have; the message names the option and what it may be."""


class Rule(NamedTuple):
    """Whether a value is allowed, and the allowed ones in words."""

    allows: Callable[[Any], bool]
    words: str


def from_to(low: float, high: float) -> Rule:
    """Both ends are allowed; NaN never is."""
    return Rule(lambda value: low <= value <= high, f"between {low} and {high}")


def at_least(low: float) -> Rule:
    """Finite numbers from `low` on."""
    return Rule(lambda value: low <= value < math.inf, f"at least {low}")


SHARE = from_to(0, 1)
BELOW_1 = Rule(lambda value: 0 <= value < 1, "at least 0 and below 1")
ASCENDING = Rule(
    lambda pair: len(pair) == 2 and 0 < pair[0] <= pair[1],
    "two numbers above 0, the smaller one first, such as (0.5, 2.0)",
)

RULES: Mapping[str, Rule] = {
    "seed": from_to(0, 2**32 - 1),
    "steps": at_least(1),
    "accumulate": at_least(1),
    "batch.*": at_least(0),
    "data.longest_side": at_least(0),
    "data.scale": ASCENDING,
    "data.pad_label": from_to(0, 255),
    "data.workers": at_least(0),
    "model.width": Rule(lambda value: 0 < value < math.inf, "above 0"),
    "model.bn_momentum": SHARE,
    "model.multi_grid": Rule(
        lambda rates: len(rates) == 3 and min(rates) >= 1, "three whole numbers, such as (1, 2, 4)"
    ),
    "model.decoder.rates": Rule(
        lambda rates: len(rates) > 0 and min(rates) >= 1, "whole numbers from 1 on, such as (6, 12, 18)"
    ),
    "model.decoder.*channels": at_least(1),
    "model.decoder.dropout": BELOW_1,
    "augment.*_probability": SHARE,
    "augment.hue": from_to(0, 0.5),
    "augment.brightness": at_least(0),
    "augment.contrast": at_least(0),
    "augment.saturation": at_least(0),
    "augment.blur_sigma": ASCENDING,
    "method.ohem_min_kept": at_least(0),
    "method.s4gan.lr": at_least(0),
    "method.s4gan.channels": at_least(1),
    "ema.decay": SHARE,
    "optim.momentum": BELOW_1,
    "optim.lr": at_least(0),
    "optim.head_lr_multiplier": at_least(0),
    "optim.weight_decay": at_least(0),
    "optim.poly_power": at_least(0),
    "optim.warmup": at_least(0),
    "optim.clip_norm": at_least(0),
    "mesh.fsdp": at_least(1),
    "eval.batch": at_least(1),
    "eval.crop": at_least(1),
    "eval.pictures": at_least(0),
    "eval.stride_fraction": Rule(lambda value: 0 < value <= 1, "above 0 and at most 1"),
    "*threshold": SHARE,
    "*_weight": at_least(0),
    "auxiliary.*.weight": at_least(0),
}
"""By the pattern of an option's dotted key; the first that fits counts. What has no rule is checked where it is used."""


def check_ranges(options: Mapping[str, Any]) -> None:
    """Raises RangeError for the first option, by dotted key, whose value makes no sense."""
    for key, value in options.items():
        rule = next((rule for pattern, rule in RULES.items() if fnmatch.fnmatchcase(key, pattern)), None)
        if rule is not None and not rule.allows(value):
            raise RangeError(f"{key}={value} must be {rule.words}")

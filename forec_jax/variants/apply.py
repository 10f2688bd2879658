"""A variant's name ("small+ps_mt+forec") applied to a config."""

import fnmatch
from collections.abc import Callable, Mapping

from ml_collections import ConfigDict

from forec_jax.keys import flat
from forec_jax.methods import METHODS
from forec_jax.methods.tasks import TASKS
from forec_jax.options import to_config
from forec_jax.variants.chains import CHAINS_ALONE
from forec_jax.variants.others import OTHERS
from forec_jax.variants.part import Variant

Change = Callable[[ConfigDict], None]

SUMS = {"ps_mt_forec": "ps_mt+forec", "s4gan_forec": "s4gan+forec", "reco_forec": "reco+forec"}
"""Names that stand for a sum."""


def variants() -> dict[str, Variant]:
    """Every part that all data sets share: the methods as published, the tasks, and the others."""
    methods = {
        name: Variant({"method.name": name, **entry.published}, meaning=f"the method {name}, as published")
        for name, entry in METHODS.items()
    }
    tasks = {
        part: Variant(
            {f"auxiliary.{name}.{key}": value for key, value in sets.items()}, (name,), meaning=f"the task {name}"
        )
        for name, entry in TASKS.items()
        for part, sets in entry.variants.items()
    }
    return {**methods, **tasks, **OTHERS}


def apply_variant(c: ConfigDict, variant: str, more: Mapping[str, Variant | Change] | None = None) -> ConfigDict:
    """Applies "part+part+..." to a config; `more` holds a data set's own parts. The method is mean_teacher unless named.

    The method comes first and then the tasks, wherever they stand; the other parts from left to right, the later one
    winning: so `auxiliary.*` in one of them means every task that is named. Raises ValueError for an unknown part and
    for two methods.
    """
    known: dict[str, Variant | Change] = {**variants(), **(more or {})}
    for part in variant.split("+"):
        if part in CHAINS_ALONE:
            raise ValueError(f"{part} is several trainings in a row: forec-jax chain --config=FILE:{variant}")
        if part not in known and part not in SUMS:
            names = ", ".join(sorted(known.keys() | SUMS))
            raise ValueError(f"unknown variant {part!r} in {variant!r}; the parts are: {names}")
    parts = parts_of(variant)
    if len(methods := [part for part in parts if _method_of(known[part], part)]) > 1:
        raise ValueError(f"variant {variant!r} names {len(methods)} methods, {' and '.join(methods)}; choose one")
    tasks = {part for entry in TASKS.values() for part in entry.variants}
    for part in sorted(parts, key=lambda part: 0 if part in methods else 1 if part in tasks else 2):
        _apply(c, known[part], known)
    return c


def parts_of(variant: str) -> list[str]:
    """The parts of a variant's name, those of sums one by one."""
    return [part for name in variant.split("+") for part in SUMS.get(name, name).split("+")]


def method_of(name: str) -> str:
    """The method that a part chooses which all data sets share: it is one, or starts with one; "" where it chooses none."""
    return _method_of(variants().get(name, Variant()), name)


def _method_of(part: Variant | Change, name: str) -> str:
    if name in METHODS:
        return name
    return next((other for other in part.of if other in METHODS), "") if isinstance(part, Variant) else ""


def _apply(c: ConfigDict, part: Variant | Change, known: Mapping[str, Variant | Change]) -> None:
    if not isinstance(part, Variant):
        part(c)
        return
    for other in part.of:
        _apply(c, known[other], known)
    for task in part.tasks:
        c.auxiliary[task] = to_config(TASKS[task].options)
    for pattern, value in part.sets.items():
        keys = fnmatch.filter(flat(c.to_dict()), pattern) if "*" in pattern else [pattern]
        c.update_from_flattened_dict({key: value(c) if callable(value) else value for key in keys})

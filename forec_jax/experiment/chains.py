"""The chains of trainings that a variant names, and what each of their trainings is.

A chain's name stands in a variant in the place of a method: "small+st_plus_plus+forec". Other parts go to all of its
trainings; a method beside it is that of the first ones, which learn from no stored masks.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from forec_jax.config import check_options
from forec_jax.experiment import build
from forec_jax.experiment.hand_over import HandOver
from forec_jax.experiment.mutual_training import Mutual, dmt
from forec_jax.experiment.run import check_rows
from forec_jax.experiment.self_training import ReliableFirst, st, st_plus_plus
from forec_jax.experiment.stages import Stage, begin
from forec_jax.methods import METHODS
from forec_jax.variants import method_of, parts_of

FIRST = "supervised"
"""What the first trainings of a chain are unless a method is named beside it."""


class Chain(NamedTuple):
    """A chain of trainings and labellings."""

    trainings: Mapping[str, str]  # the kinds of its trainings, and the part of a variant in the chain's place for each
    options: type[HandOver]
    stages: Callable[[Mapping[str, ConfigDict], Path, Any], list[Stage]]  # configs by kind, work directory, options
    groups: Mapping[str, tuple[str, ...]] = {}  # names for several kinds together


_DMT_GROUPS = {
    "first": ("first_a", "first_b"),
    "rounds": ("rounds_a", "rounds_b"),
    "a": ("first_a", "rounds_a"),
    "b": ("first_b", "rounds_b"),
}


def _dmt(first: str, rounds: str) -> Chain:
    """DMT with these parts of a variant."""
    kinds = {"first_a": first, "first_b": first, "rounds_a": rounds, "rounds_b": rounds}
    return Chain(kinds, Mutual, dmt, _DMT_GROUPS)


CHAINS: Mapping[str, Chain] = {
    "st": Chain({"first": FIRST, "second": "st"}, HandOver, st),
    "st_plus_plus": Chain({"first": FIRST, "second": "st", "third": "st"}, ReliableFirst, st_plus_plus),
    "dmt": _dmt(FIRST, "dmt"),
    "st_paper": Chain({"first": "st_first_paper", "second": "st_paper"}, HandOver, st),
    "st_plus_plus_paper": Chain(
        {"first": "st_first_paper", "second": "st_half_paper", "third": "st_paper"}, ReliableFirst, st_plus_plus
    ),
    "dmt_paper": _dmt("dmt_first_paper", "dmt_paper"),
}


def chain_of(variant: str) -> str:
    """The chain that a variant names, or "". Raises ValueError for two."""
    found = [part for part in variant.split("+") if part in CHAINS]
    if len(found) > 1:
        raise ValueError(f"variant {variant!r} names {len(found)} chains, {' and '.join(found)}; choose one")
    return found[0] if found else ""


def training_variants(variant: str) -> dict[str, str]:
    """The variant of each kind of training of the chain that `variant` names.

    Raises ValueError for a method beside the chain that its first trainings cannot be of.
    """
    name = chain_of(variant)
    methods = [part for part in parts_of(variant) if part != name and method_of(part)]
    if methods:
        _check_first(name, methods)

    def of(part: str) -> str:
        stands = (methods or [FIRST])[0] if part == FIRST else part
        kept = (stands if other == name else other for other in parts_of(variant) if other not in methods)
        return "+".join(kept)

    return {kind: of(part) for kind, part in CHAINS[name].trainings.items()}


def _check_first(chain: str, methods: list[str]) -> None:
    """Raises ValueError where these methods cannot be that of a chain's first trainings."""
    parts = CHAINS[chain].trainings.values()
    if FIRST not in parts:
        raise ValueError(f"{chain}+{methods[0]}: {chain} says what each training is, as published; take it alone")
    later = next(part for part in parts if part != FIRST)
    said = f"{chain}+{methods[0]}: the method beside a chain is that of its first training, the others are of {later}"
    if len(methods) > 1:
        raise ValueError(f"{said}; choose one of {' and '.join(methods)}")
    needs = METHODS[method_of(methods[0])].needs
    if "pseudo" in needs:
        raise ValueError(f"{said}; {methods[0]} learns from stored masks, which are not there yet")
    if "tagged" in needs:
        raise ValueError(f"{said}; {methods[0]} learns from image tags: see configs/tags.py")


def begin_chain(name: str, configs: Mapping[str, ConfigDict], workdir: Path, how: HandOver) -> list[Stage]:
    """The stages of a chain in its work directory, where it is begun, or gone on with.

    Args:
      name: of CHAINS.
      configs: by the kinds of its trainings; what a stage takes from another is filled in here and by `run_stages`.
      workdir: holds a folder for each training, and those of masks.
      how: what one training hands over to the next.

    Raises, before the first stage, OptionError for what could not be trained, and WorkdirError where `workdir` was begun
    otherwise.
    """
    for c in configs.values():
        check_options(c)
        check_rows(c)
        build.build_mesh(c)
    options = {key: list(value) if isinstance(value, tuple) else value for key, value in vars(how).items()}
    begin(workdir.absolute(), {"chain": name, **options})
    return CHAINS[name].stages(configs, workdir.absolute(), how)

"""The config of a run: all its options by dotted key, each from where it is used, and how a config is loaded.

A file of configs/ starts from `defaults()`, sets what its data set needs, and applies the variant that the command line
names. Keys cannot be added from the command line: an unknown key is an error.
"""

import runpy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ml_collections import ConfigDict

from forec_jax.augment import ColourOptions, MixingOptions, Photometric, StudentOptions
from forec_jax.data.datasets import DATASETS
from forec_jax.data.partial import PartialOptions
from forec_jax.data.pipeline import BatchOptions, ReadingOptions
from forec_jax.data.pseudo import PseudoOptions
from forec_jax.data.source import DatasetOptions
from forec_jax.data.splits import SplitOptions
from forec_jax.data.tags import TagOptions
from forec_jax.data.transforms import Geometry
from forec_jax.evaluation import EvaluationOptions
from forec_jax.keys import flat, with_new_keys
from forec_jax.methods import METHODS
from forec_jax.methods.entry import MethodEntry
from forec_jax.methods.parts.teacher import EmaOptions
from forec_jax.methods.tasks import TASKS
from forec_jax.models.decoders import DECODERS
from forec_jax.models.encoders import ENCODERS
from forec_jax.models.network import DecoderEntry, EncoderEntry, ModelOptions
from forec_jax.options import (
    Option,
    OptionError,
    at_least,
    check,
    choose,
    dotted,
    from_to,
    option,
    options_of,
    to_config,
)
from forec_jax.parallel.mesh import MeshOptions
from forec_jax.plugins import use_plugin
from forec_jax.training import OptimizerOptions, Schedule
from forec_jax.variants import Variant, apply_variant

__all__ = ["Variant", "apply_variant", "defaults", "load_config"]

Blocks = dict[str, tuple[type, ...]]
"""Dataclasses of options by the prefix that they lie under."""


@dataclass(frozen=True)
class RunOptions:
    """What belongs to no single part of a run."""

    plugin: str = option("", "a Python file with methods, tasks, data sets or encoders of your own (docs/extend.md)")
    seed: int = option(0, "of the initial weights, the order of the data, every random draw", from_to(0, 2**32 - 1))
    compute_dtype: Literal["float32", "bfloat16"] = option(
        "float32", 'or "bfloat16": activations of the student; weights, teacher and losses stay float32'
    )
    on_nan: Literal["stop", "skip"] = option(
        "stop", 'a loss, gradient or metric that is not finite: "stop", or "skip" the update, warn and count'
    )
    accumulate: int = option(
        1, "parts into which a batch is taken, for less memory; must divide the rows of each device", at_least(1)
    )


@dataclass(frozen=True)
class _MethodOptions:
    """Which method."""

    name: str = option("mean_teacher", "the way to train; its own options are method.NAME.*")


FIXED: Blocks = {
    "": (RunOptions, Schedule),
    "batch": (BatchOptions,),
    "data": (
        DatasetOptions,
        SplitOptions,
        PartialOptions,
        PseudoOptions,
        TagOptions,
        Geometry,
        ReadingOptions,
    ),
    "model": (ModelOptions,),
    "augment": (Photometric, ColourOptions, MixingOptions, StudentOptions),
    "ema": (EmaOptions,),
    "optim": (OptimizerOptions,),
    "mesh": (MeshOptions,),
    "eval": (EvaluationOptions,),
}
"""The blocks of every run."""


def every_block() -> Blocks:
    """All blocks that a config may have."""
    shared = dict.fromkeys(kind for entry in METHODS.values() for kind in entry.shared)
    networks: list[EncoderEntry | DecoderEntry] = [*ENCODERS.values(), *DECODERS.values()]
    return (
        FIXED
        | {"method": (_MethodOptions, *shared)}
        | {f"method.{name}": (entry.options,) for name, entry in METHODS.items()}
        | {f"data.{name}": (entry.options,) for name, entry in DATASETS.items()}
        | {f"model.{part.name}": (part.options,) for part in networks}
        | {f"auxiliary.{name}": (entry.options,) for name, entry in TASKS.items()}
    )


def blocks_of(c: ConfigDict) -> Blocks:
    """The blocks that apply to a config: what it does not choose has no options."""
    method, encoder = method_entry(c), ENCODERS[choose("model.encoder", c.model.encoder, tuple(ENCODERS))]
    data, decoder = choose("data.name", c.data.name, tuple(DATASETS)), decoder_name(c)
    return (
        FIXED
        | {"method": (_MethodOptions, *method.shared), f"method.{method.name}": (method.options,)}
        | {f"data.{data}": (DATASETS[data].options,)}
        | {f"model.{encoder.name}": (encoder.options,), f"model.{decoder}": (DECODERS[decoder].options,)}
        | {
            f"auxiliary.{name}": (TASKS[choose("auxiliary", name, tuple(TASKS))].options,)
            for name in sorted(c.auxiliary)
        }
    )


def method_entry(c: ConfigDict) -> MethodEntry:
    """The entry of the config's method. Raises OptionError for an unknown one."""
    return METHODS[choose("method.name", c.method.name, tuple(METHODS))]


def labels_in_both(c: ConfigDict) -> bool:
    """Whether unlabelled rows know what partial labels show of them (ReCo's two streams).

    With partial labels and no overlap a teacher completes the labelled rows instead, and other rows may be wanting.
    """
    return bool(c.data.partial) and bool(c.data.overlap)


def decoder_name(c: ConfigDict) -> str:
    """The decoder that the config names, or its encoder's own."""
    name = c.model.decoder or ENCODERS[choose("model.encoder", c.model.encoder, tuple(ENCODERS))].decoder
    chosen: str = choose("model.decoder", name, tuple(DECODERS))
    return chosen


def options_in(blocks: Blocks) -> Iterator[tuple[str, Option]]:
    """Every option by its dotted key."""
    for prefix, kinds in blocks.items():
        for kind in kinds:
            yield from ((dotted(prefix, found.name), found) for found in options_of(kind))


def node(c: ConfigDict, prefix: str) -> ConfigDict:
    """What lies under a prefix."""
    for part in prefix.split(".") if prefix else ():
        c = c[part]
    return c


def defaults() -> ConfigDict:
    """The options that a run may have, with their defaults; those of auxiliary tasks come with the tasks."""
    c = ConfigDict()
    for prefix, kinds in every_block().items():
        if prefix.startswith("auxiliary."):
            continue
        *parents, name = prefix.split(".")
        parent = node(c, ".".join(parents))
        block = ConfigDict({key: value for kind in kinds for key, value in to_config(kind).items()})
        if prefix:
            parent[name] = block
        else:
            c.update(block)
    c.auxiliary = ConfigDict()
    return c


def check_options(c: ConfigDict) -> None:
    """Raises OptionError for the first option that applies and whose value makes no sense, by itself or beside another."""
    values = flat(c.to_dict())
    for key, found in options_in(blocks_of(c)):
        check(key, values[key], found.rule)
    if c.model.encoder_statistics == "weights" and not c.model.weights:
        raise OptionError('model.encoder_statistics="weights" needs model.weights: name them, or set it to "batch"')


def chosen(c: ConfigDict) -> ConfigDict:
    """The config with the options that apply, and no others."""
    tree, blocks = ConfigDict({"auxiliary": {}}), blocks_of(c)
    for prefix in sorted(blocks):  # a block comes after the one that it lies in
        place = tree
        for part in prefix.split(".") if prefix else ():
            place[part] = place[part] if part in place else ConfigDict()
            place = place[part]
        place.update({found.name: node(c, prefix)[found.name] for kind in blocks[prefix] for found in options_of(kind)})
    return tree


def config_path(value: str) -> str:
    """FILE[:VARIANT] with FILE looked up here, then among the configs that come with the library."""
    file, colon, variant = value.partition(":")
    if (found := find_config(file)) is None:
        raise ValueError(f"--config={value}: no file {file}; for example --config=configs/shapes.py:forec")
    return f"{found}{colon}{variant}"


def find_config(file: str) -> Path | None:
    """A file of configs/, looked up here, then among those that come with the library; None where there is none."""
    package = Path(__file__).parent
    candidates = (Path(file).expanduser(), package / file, package.parent / file)
    return next((candidate for candidate in candidates if candidate.is_file()), None)


def load_config(value: str, options: Mapping[str, Any]) -> ConfigDict:
    """The config FILE[:VARIANT] with `options` by dotted key: in Python what --config and --config.key=value are.

    Raises ValueError for an unknown file or variant, KeyError for an unknown key, TypeError for a value of another type.
    """
    use_plugin(options.get("plugin", ""))
    file, _, variant = config_path(value).partition(":")
    get_config = runpy.run_path(file)["get_config"]
    c: ConfigDict = get_config(variant) if variant else get_config()
    c.lock()
    c.update_from_flattened_dict(with_new_keys(options, c.model.encoder))
    return c

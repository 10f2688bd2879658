"""What the commands share: flags, and the config with its overrides."""

import glob
import logging
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from absl import flags
from ml_collections import ConfigDict, config_flags

from forec_jax.commands.process import tell
from forec_jax.config import config_path, load_config
from forec_jax.keys import new_key
from forec_jax.options import SCALES, OptionError, options_of
from forec_jax.overrides import check_keys
from forec_jax.plugins import use_plugin

log = logging.getLogger(__name__)
T = TypeVar("T")

CHOOSERS = ("model.encoder", "model.decoder", "method.name", "data.name")
"""Options that say which others there are."""


def parse(argv: Sequence[str], define: Callable[[flags.FlagValues], None], about: str | None) -> flags.FlagValues:
    """The flags of a subcommand; --help prints `about` and the flags."""
    values = flags.FlagValues()
    define(values)
    flags.DEFINE_bool("help", False, "shows this help", short_name="h", flag_values=values)
    if "config" not in values:
        refuse_config(argv, "data_root" in values)
    rest = values([f"forec-jax {argv[0]}", *argv[1:]])[1:]
    if rest:
        raise flags.Error(f"unexpected argument {rest[0]!r}; flags are written --flag=value")
    if values.help:
        print(f"forec-jax {argv[0]}: {about}\n{values.main_module_help() or values.get_help()}")
        raise SystemExit(0)
    return values


def refuse_config(argv: Sequence[str], may_move: bool) -> None:
    """Raises where a command that takes a stored run is given options of a config; `may_move`: it has --data_root."""
    for key in overridden(argv, "config"):
        instead = "use --data_root" if key == "data.root" and may_move else f"see forec-jax {argv[0]} --help"
        raise flags.Error(f"--config.{key}: {argv[0]} takes the config that its run has stored; {instead}")


def required(values: flags.FlagValues, *names: str) -> None:
    """Raises where a flag that has no default was not given."""
    for name in names:
        if not values[name].value:
            raise flags.Error(f"--{name} is missing")


def folders(names: Sequence[str]) -> list[Path]:
    """Folders that a flag names; `*` and `?` stand for parts of names, as in a shell, which looks into no flag."""
    found: list[Path] = []
    for name in names:
        path = Path(name).expanduser()
        if path.exists() or not any(letter in name for letter in "*?["):
            found.append(path)
            continue
        matches = [Path(match) for match in sorted(glob.glob(str(path))) if Path(match).is_dir()]
        if not matches:
            raise flags.Error(f"{name}: there is no such folder")
        found += matches
    return found


def checkpoint_flags(values: flags.FlagValues) -> None:
    """The flags that choose a stored model."""
    flags.DEFINE_string("workdir", None, "work directory of a training run", flag_values=values)
    model_flags(values)


def model_flags(values: flags.FlagValues) -> None:
    """The flags that choose one of a run's models."""
    flags.DEFINE_enum("network", "teacher", ["teacher", "student"], "which network", flag_values=values)
    flags.DEFINE_enum("checkpoint", "last", ["last", "best"], "which checkpoint", flag_values=values)


def option_flags(values: flags.FlagValues, block: type) -> None:
    """A flag for each option of a dataclass: text, a switch, a number, or a list of numbers."""
    kinds = typing.get_type_hints(block)
    for name, default, meaning, _ in options_of(block):
        match default:
            case bool():
                flags.DEFINE_bool(name, default, meaning, flag_values=values)
            case float():
                flags.DEFINE_float(name, default, meaning, flag_values=values)
            case tuple():
                flags.DEFINE_list(name, [f"{number:g}" for number in default], meaning, flag_values=values)
            case _:
                flags.DEFINE_enum(name, default, typing.get_args(kinds[name]), meaning, flag_values=values)


def given_options(values: flags.FlagValues, block: type[T]) -> T:
    """The dataclass with what `option_flags` were given. Raises OptionError for what an option's rule does not allow."""
    given: dict[str, Any] = {}
    for name, default, _, rule in options_of(block):
        said: Any = values[name].value
        given[name] = _numbers(said) if isinstance(default, tuple) else said
        if rule is not None and not rule.allows(given[name]):
            raise OptionError(f"--{name}={','.join(said) if isinstance(default, tuple) else said}{rule.words}")
    return block(**given)


def _numbers(texts: Sequence[str]) -> tuple[float, ...]:
    """The numbers of a list; none where one of them is no number."""
    try:
        return tuple(map(float, texts))
    except ValueError:
        return ()


def seen_flags(values: flags.FlagValues, *modes: str) -> None:
    """The flags that say how images are shown to a stored model."""
    how = "how images are seen, where not as in training (eval.mode)"
    flags.DEFINE_enum("mode", None, list(modes), how, flag_values=values)
    window = "side of the windows (or of the central crop) in pixels; by default the run's eval.crop"
    flags.DEFINE_integer("window", None, window, lower_bound=1, flag_values=values)
    stride = "from one window to the next in pixels; by default the run's eval.stride_fraction of the window"
    flags.DEFINE_integer("stride", None, stride, lower_bound=1, flag_values=values)
    scale_flag(values, ())
    flip = "see the mirrored image as well, and take the mean; by default the run's eval.flip"
    flags.DEFINE_bool("flip", None, flip, flag_values=values)


def scale_flag(values: flags.FlagValues, scales: Sequence[float]) -> None:
    """The flag --scales, with its default; with none the run's own are meant."""
    about = "of the image, at which it is predicted; the mean counts" + (
        "" if scales else "; by default the run's eval.scales"
    )
    flags.DEFINE_list("scales", [str(scale) for scale in scales] or None, about, flag_values=values)


def scales_of(values: flags.FlagValues) -> tuple[float, ...]:
    """What --scales says. Raises OptionError for what is no list of numbers above 0."""
    try:
        scales = tuple(map(float, values.scales))
    except ValueError:
        scales = ()
    if not SCALES.allows(scales):
        raise OptionError(f"--scales={','.join(values.scales)} must be numbers above 0, such as 0.5,1,2")
    return scales


def root_flag(values: flags.FlagValues) -> None:
    """The flag of the commands that read a stored model's data set."""
    moved = "where the data set lies now, if it was moved (data.root)"
    flags.DEFINE_string("data_root", None, moved, flag_values=values)


def exit_code(stopped_by: int | None) -> int:
    """A training's, with a word where a signal ended it."""
    if stopped_by is None:
        return 0
    tell(f"stopped by signal {stopped_by}; the same command goes on from here")
    return 128 + stopped_by


def config_flag(values: flags.FlagValues, argv: Sequence[str]) -> None:
    """The flag --config=FILE[:VARIANT], with its overrides among `argv`."""
    # ml_collections reads the overrides from the process's arguments unless it is told otherwise.
    config_flags.DEFINE_config_file("config", None, "FILE[:VARIANT]", flag_values=values, sys_argv=list(argv))


def resolve_config(argv: Sequence[str]) -> list[str]:
    """The arguments with --config's file found and every option under its name of today.

    Raises ValueError for an unknown file, variant or key, by name.
    """
    given = overridden(argv, "config")
    use_plugin(given.get("plugin", ""))
    path = next((a.removeprefix("--config=") for a in argv if a.startswith("--config=")), "")
    if not path:
        return list(argv)
    c = with_choices(load_config(config_path(path), {}), given)
    resolved = [renamed(argument, "config", c) for argument in argv]
    check_keys(c, overridden(resolved, "config"))
    return [f"--config={config_path(path)}" if a.startswith("--config=") else a for a in resolved]


def overridden(argv: Sequence[str], flag: str) -> dict[str, str]:
    """What --FLAG.key=value gives, by key; of --FLAG.key[0]=value as well."""
    options = (argument.removeprefix(f"--{flag}.") for argument in argv if argument.startswith(f"--{flag}."))
    pairs = (option.partition("=") for option in options)
    return {key.partition("[")[0]: value for key, _, value in pairs}


def with_choices(c: ConfigDict, given: dict[str, str]) -> ConfigDict:
    """The config with what was given for the options that say which others there are."""
    c.update_from_flattened_dict({key: given[key] for key in CHOOSERS if key in given})
    return c


def renamed(argument: str, flag: str, c: ConfigDict) -> str:
    """--FLAG.key=value with the key's name of today."""
    if not argument.startswith(f"--{flag}."):
        return argument
    key, equals, value = argument.removeprefix(f"--{flag}.").partition("=")
    name, bracket, index = key.partition("[")
    today = new_key(name, c.model.encoder)
    if today != name:
        log.warning("%s is now called %s; the old name goes with the next release", name, today)
    return f"--{flag}.{today}{bracket}{index}{equals}{value}"

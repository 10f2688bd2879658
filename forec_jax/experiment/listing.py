"""The options in words: what `forec-jax options` prints, and the tables of the docs."""

from ml_collections import ConfigDict

from forec_jax.config import blocks_of, every_block, options_in
from forec_jax.keys import flat
from forec_jax.options import Option, OptionError


def options_table(prefix: str, c: ConfigDict | None) -> str:
    """The options under a prefix ("" for all), one a line: of a config those that apply, with its values.

    Raises OptionError where there is none.
    """
    known = dict(options_in(every_block() if c is None else blocks_of(c)))
    shown = {
        key: found for key, found in known.items() if key == prefix or key.startswith(f"{prefix}." if prefix else "")
    }
    if not shown:
        raise OptionError(f"no option begins with {prefix!r}; without it, forec-jax options lists all")
    values = {} if c is None else flat(c.to_dict())
    said = {key: repr(values.get(key, found.default)) for key, found in shown.items()}
    widths = max(map(len, said)), max(map(len, said.values()))
    return "\n".join(f"{key:<{widths[0]}}  {said[key]:<{widths[1]}}  {in_words(found)}" for key, found in shown.items())


def in_words(found: Option) -> str:
    """An option's meaning and what it may be."""
    return found.meaning + (f" ({found.rule.words.removeprefix(':').strip()})" if found.rule else "")


def options_markdown(prefix: str) -> str:
    """The options of a block as a table of the docs."""
    known = {key: found for key, found in options_in(every_block()) if key.startswith(f"{prefix}.")}
    rows = (f"| `{key}` | `{found.default!r}` | {in_words(found)} |" for key, found in known.items())
    return "\n".join(("| option | default | meaning |", "|---|---|---|", *rows))

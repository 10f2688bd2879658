"""Some classes of a data set alone: all others are background."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from forec_jax.data.source import Dataset, Example, OneByOne


@dataclass(frozen=True)
class _Renumbered(OneByOne):
    """A source whose masks show the classes under other indices; void and what has no label stay."""

    new: tuple[int, ...]  # of each class

    def __getitem__(self, index: int) -> Example:
        example = self.source[index]
        if example.label is None:
            return example
        table = np.arange(256, dtype=np.uint8)
        table[: len(self.new)] = self.new
        return example._replace(label=table[example.label])


def chosen_classes(dataset: Dataset, names: Sequence[str]) -> Dataset:
    """The data set with background, which is everything else, and the classes `names`, in the data set's own order."""
    chosen = [k for k, name in enumerate(dataset.classes) if name in names]
    new = tuple(chosen.index(k) + 1 if k in chosen else 0 for k in range(len(dataset.classes)))
    colours = (dataset.palette[k] if any(dataset.palette[k]) else (255, 255, 255) for k in chosen)
    return replace(
        dataset,
        classes=("background", *(dataset.classes[k] for k in chosen)),
        palette=((0, 0, 0), *colours),
        sources={split: _Renumbered(source, new) for split, source in dataset.sources.items()},
        background_classes=(0,),
    )


def one_against_rest(dataset: Dataset, class_name: str) -> Dataset:
    """The data set with two classes: `class_name`, and background, which is everything else."""
    return chosen_classes(dataset, (class_name,))

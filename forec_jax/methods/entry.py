"""What the library must know of a method and of an auxiliary task, and all that either is built from."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar

import optax
from jax.sharding import Mesh

from forec_jax.augment import ClassMix, Mixing, NoMixing, StudentOptions, with_geometry
from forec_jax.contracts import AuxiliaryTask, HeadSpec, Method, Network, Variables
from forec_jax.data.source import Labels
from forec_jax.methods.parts.ema import SemiSupervised
from forec_jax.methods.parts.heads import SEGMENTATION, Auxiliary
from forec_jax.methods.parts.teacher import EmaOptions
from forec_jax.methods.parts.terms import PseudoLabelOptions, SupervisedLoss, SupervisedOptions, supervised_loss
from forec_jax.methods.parts.views import Colour
from forec_jax.options import OptionError, at_least, option, taken

M = TypeVar("M", bound=SemiSupervised)


class Guide(NamedTuple):
    """A trained run that a method learns from."""

    workdir: str
    name: str  # of its method
    method: Method
    labels: Labels
    variables: Variables | None  # the student's; None where the checkpoint of the run that learns holds them


@dataclasses.dataclass(frozen=True)
class Parts:
    """All that a method may be built from."""

    labels: Labels
    network: Callable[[tuple[HeadSpec, ...]], Network]  # heads -> the network that model.* describes
    auxiliary: tuple[Auxiliary, ...]
    colour: Colour
    colour_labelled: bool  # whether labelled rows change theirs as well
    mixing: Mixing
    mix_labelled: bool  # whether labelled rows are mixed as well
    student: StudentOptions  # the student's own geometry
    ema: EmaOptions
    steps: int  # of the whole training
    partial: bool  # whether labelled rows have UNLABELLED pixels
    compute_dtype: Any
    shared: Callable[[type[Any]], Any]  # a block of options under "method"
    guide: Callable[[str], Guide | None]  # the run of a role of `MethodEntry.guides`; None where none is named
    frequency_weights: tuple[float, ...] | None  # of the classes, by the labelled masks; None where nothing is trained

    @property
    def unlabelled_changes(self) -> Mixing:
        """What happens to unlabelled rows once their colours have changed: the mixing, and the student's geometry."""
        return with_geometry(self.mixing, self.student)

    def labelled_changes(self, completed: bool) -> Mixing:
        """The same of labelled rows. Those that a teacher has `completed` (partial labels) change as unlabelled ones."""
        mixing = self.mixing if self.mix_labelled or completed else NoMixing()
        return with_geometry(mixing, self.student) if self.student.student_labelled or completed else mixing

    @property
    def heads(self) -> tuple[HeadSpec, ...]:
        """The student's: segmentation and one for each auxiliary task. Raises OptionError for two of one name."""
        heads = (HeadSpec(SEGMENTATION, len(self.labels.classes)), *(task.head for _, task in self.auxiliary))
        if len({head.name for head in heads}) < len(heads):
            raise OptionError(f"two auxiliary tasks want the same head: {', '.join(head.name for head in heads)}")
        return heads

    @property
    def supervised_loss(self) -> SupervisedLoss:
        """L_s. Raises OptionError for class weights that make no sense."""
        return supervised_loss(self.shared(SupervisedOptions), self.labels.classes, self.frequency_weights)

    def in_steps(self, length: float) -> int:
        """A length given in steps, or below 1 as a fraction of all steps (the rule STEPS)."""
        return round(length * self.steps) if length < 1 else int(length)


def semi_supervised(kind: type[M], p: Parts, own: Any, heads: tuple[HeadSpec, ...] = (), **more: Any) -> M:
    """A method with pseudo-labels from its parts and its `own` options.

    `heads` are those that its network has beside the segmentation's and the tasks', `more` are fields that no option gives.

    Raises OptionError for passes that the method cannot take apart, or partial labels that it does not complete.
    """
    pseudo, supervised = p.shared(PseudoLabelOptions), p.shared(SupervisedOptions)
    if kind.own_passes and pseudo.separate_passes:
        raise OptionError(f"method.separate_passes=True: {kind.__name__} has passes of its own; leave it False")
    if p.partial and not kind.completes_labels:
        raise OptionError(
            f"{kind.__name__} {kind.why_not_partial}; with partial labels (data.partial) take fixmatch or mean_teacher"
        )
    pseudo = dataclasses.replace(pseudo, start=p.in_steps(pseudo.start), ramp=p.in_steps(pseudo.ramp))
    blocks = own, pseudo, supervised, p.ema
    given = {
        "colour_labelled": p.colour_labelled or p.partial,  # a teacher completes partial labels: changed as the others
        "labelled_mixing": p.labelled_changes(p.partial),
        "partial_labels": p.partial,
        **taken(kind, *blocks),
        **more,
    }
    return kind(p.network((*p.heads, *heads)), p.colour, p.unlabelled_changes, p.auxiliary, p.supervised_loss, **given)


def refuse_classmix(method: str, p: Parts) -> None:
    """Raises OptionError for ClassMix, where a method labels unlabelled rows after they are mixed."""
    if isinstance(p.mixing, ClassMix):
        raise OptionError(
            f"augment.mixing='classmix' pastes the classes of pseudo-labels, and {method} has none before an image is "
            "mixed: choose 'none', or a mixing by boxes"
        )


def nothing(*_: Any) -> dict[str, Any]:
    """No entries."""
    return {}


class Epoch(NamedTuple):
    """How many steps show each image of a list once; 0 where there is no such list."""

    steps: int  # of the unlabelled images; with partial labels alone, of the labelled ones
    labelled: int  # of the labelled images


class MethodEntry(NamedTuple):
    """All that the library must know of a method."""

    name: str  # of the variant, and of its options, method.NAME
    options: type  # frozen dataclass of `option` fields, its own
    shared: tuple[type, ...]  # the blocks under "method" that it takes as well
    build: Callable[[Any, Parts], Method]
    published: Mapping[str, Any] = {}  # dotted key -> value: what its variant sets beside method.name
    needs: frozenset[str] = frozenset({"labelled", "unlabelled"})  # parts of the batch
    optimizers: Callable[[Any, Callable[[float], optax.Schedule]], Mapping[str, optax.GradientTransformation]] = nothing
    """Of the options and (peak rate -> schedule): the optimisers of networks that have their own, by name."""
    of_epoch: Callable[[Any, Epoch], Mapping[str, Any]] = nothing
    """Of the options and an epoch: values of the config's options that follow from it, by dotted key."""
    guides: Callable[[Any], Mapping[str, str]] = nothing
    """Of the options: the work directories of runs that it learns from, by role."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaskOptions:
    """What every auxiliary task has."""

    weight: float = option(1.0, "of the whole task in the loss", at_least(0))


class TaskParts(NamedTuple):
    """All that an auxiliary task may be built from."""

    labels: Labels
    mesh: Mesh | None  # of a training

    def background(self, task: str) -> tuple[int, ...]:
        """The background classes; raises OptionError where the data set names none."""
        if not self.labels.background_classes:
            raise OptionError(
                f"{task} tells foreground from background, and no class is called background: put background = "
                f'"NAME" into classes.toml or set data.background, NAME one of {", ".join(self.labels.classes)}'
            )
        return self.labels.background_classes


class TaskEntry(NamedTuple):
    """All that the library must know of an auxiliary task."""

    name: str  # of its options, auxiliary.NAME
    options: type  # made of TaskOptions and its own
    build: Callable[[Any, TaskParts], AuxiliaryTask]
    variants: Mapping[str, Mapping[str, Any]]  # names of its variants, and which of its options each sets

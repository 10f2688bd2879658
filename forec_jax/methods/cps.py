"""CPS: two students learn from each other's hard labels (Chen et al., "Cross Pseudo Supervision", CVPR 2021)."""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp

from forec_jax.augment import ClassMix, NoMixing
from forec_jax.contracts import (
    IGNORE,
    Array,
    Aux,
    Batch,
    HeadOutput,
    Labelled,
    Metrics,
    PyTree,
    Terms,
    TrainState,
    Unlabelled,
    Variables,
    Views,
)
from forec_jax.methods.entry import MethodEntry, Parts, semi_supervised
from forec_jax.methods.parts.heads import SEGMENTATION, run_heads
from forec_jax.methods.parts.students import STUDENTS, StudentsOptions, TwoStudents, of_student
from forec_jax.methods.parts.teacher import TEACHER_HEADS, teacher_statistics
from forec_jax.methods.parts.terms import PseudoLabelOptions, SupervisedOptions, supervised_terms
from forec_jax.methods.parts.views import PaddingOptions, labelled_and_others, self_labelled
from forec_jax.options import OptionError, option


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(StudentsOptions, PaddingOptions):
    """Who labels what."""

    cross: Literal["unlabelled", "all"] = option(
        "unlabelled",
        'rows of the cross loss: "unlabelled", as published with CutMix; "all": labelled rows too, as published without',
    )
    label_mode: Literal["inference", "train"] = option(
        "inference",
        'of a student that labels images before they are mixed: "inference", or "train": BatchNorm of the batch, published',
    )


@dataclasses.dataclass(frozen=True)
class Cps(TwoStudents, Options):
    """The sum over both students of supervised_weight * L_s + unsupervised_weight * ramp * L_x + auxiliary terms.

    L_x is the cross-entropy of a student against the other's argmax, which is a constant. With a mixing the other labels
    the weak view before it is mixed; label and image are mixed with the same boxes for both students. Without one the
    labels are those of the pass that is learned from. What a student's auxiliary tasks take for the teacher's word is the
    other student's. With partial labels the other labels the pixels that nobody did.
    The EMAs are there to score, and teach nothing.
    """

    def loss(self, params: dict[str, PyTree], state: TrainState, batch: Batch, key: Array) -> tuple[Terms, Aux]:
        """The loss terms; see the class."""
        labelled, unlabelled = labelled_and_others(batch, "cps", self.partial_labels)
        unlabelled = self.with_gaps(unlabelled)
        view_key, task_key, *own_keys = jax.random.split(key, 2 + len(STUDENTS))
        keys = dict(zip(STUDENTS, own_keys, strict=True))
        students = {name: Variables(params[name], state.batch_stats[name]) for name in STUDENTS}
        image, views, students = self.views(students, labelled, unlabelled, view_key, keys)

        outputs: dict[str, dict[str, HeadOutput]] = {}
        stats, teacher_stats = {}, {}
        for name, student in students.items():
            outputs[name], stats[name] = self.run_student(student, image, labelled, keys[name])
            teacher = state.teacher[name]
            teacher_stats[name] = teacher_statistics(self.network, teacher, image, keys[name], self.bn_mode)
        terms: Terms = {}
        metrics: Metrics = {}
        for name, other in crossed():
            others = jax.nn.softmax(outputs[other][SEGMENTATION].output, axis=-1)
            views[name] = self_labelled(views[name], others)
            found, seen = self.own_terms(outputs[name], views[name], others, state.step)
            terms |= of_student(name, found)
            metrics |= of_student(name, seen)
        task_terms, task_metrics, memory = self.both_task_terms(outputs, views, state, task_key)
        return terms | task_terms, Aux(stats, teacher_stats, memory, metrics | task_metrics)

    def views(
        self,
        students: dict[str, Variables],
        labelled: Labelled,
        unlabelled: Unlabelled | Labelled | None,
        key: Array,
        keys: dict[str, Array],
    ) -> tuple[Array, dict[str, Views], dict[str, Variables]]:
        """The students' images, what each should say about them, and the students as labelling leaves them.

        The same key for both draws the same colours and boxes: their views differ in labels and confidences alone.
        """
        if isinstance(self.mixing, NoMixing):
            image, unsaid = self.untaught(labelled, unlabelled, key)
            return image, dict.fromkeys(STUDENTS, unsaid), students
        views, after = {}, {}
        for name, other in crossed():
            pass_key = jax.random.fold_in(keys[other], 1)
            image, views[name], after[other] = self.taught_by(students[other], labelled, unlabelled, key, pass_key)
        return image, views, after

    def taught_by(
        self,
        student: Variables,
        labelled: Labelled,
        unlabelled: Unlabelled | Labelled | None,
        key: Array,
        pass_key: Array,
    ) -> tuple[Array, Views, Variables]:
        """The images, what a student says of them before they are mixed, and the student with the statistics after that."""
        stats = student.batch_stats

        def teach(image: Array) -> Array:
            nonlocal stats
            now = jax.lax.stop_gradient(student._replace(batch_stats=stats))
            train = self.label_mode == "train"
            outputs, stats = run_heads(self.network, now, image, TEACHER_HEADS, train=train, rng=pass_key)
            return jax.nn.softmax(outputs[SEGMENTATION].output, axis=-1)

        image, views = self.taught(teach, labelled, unlabelled, key)
        return image, views, student._replace(batch_stats=stats)

    def own_terms(
        self, outputs: dict[str, HeadOutput], views: Views, others: Array, step: Array
    ) -> tuple[Terms, Metrics]:
        """A student's L_s and L_x, by the other's probabilities f32[B,H,W,K] of the same images."""
        logits = outputs[SEGMENTATION].output
        terms = supervised_terms(logits, views, loss=self.supervised_loss, weight=self.supervised_weight)
        asked = cross_views(views, others, self.gaps == "hidden") if self.cross == "all" else views
        unsupervised, metrics = self.unsupervised(logits, asked, step)
        return terms | unsupervised, metrics


def crossed() -> tuple[tuple[str, str], ...]:
    """Each student's name, and the other's."""
    first, second = STUDENTS
    return (first, second), (second, first)


def cross_views(views: Views, others: Array, hide_gaps: bool) -> Views:
    """The views as if there were no ground truth: its pixels have the other's word f32[B,H,W,K].

    If gaps are hidden, void and padding have none.
    """
    void = views.is_ground_truth & (views.label == IGNORE)
    hidden = views._replace(
        label=jnp.where(views.is_ground_truth, IGNORE, views.label),
        is_ground_truth=jnp.zeros_like(views.is_ground_truth),
        valid=views.valid & ~void | (not hide_gaps),
    )
    return self_labelled(hidden, others)


def build(o: Options, p: Parts) -> Cps:
    """The method from its parts. Raises OptionError for ClassMix, whose masks would differ between the students."""
    if isinstance(p.mixing, ClassMix):
        raise OptionError(
            "augment.mixing='classmix' pastes the classes of one labeller, and cps has two, who would paste different "
            "pixels into one image: choose a mixing by boxes (cutmix, cutmix_toggled), or 'none'"
        )
    return semi_supervised(Cps, p, o)


ENTRY = MethodEntry(
    "cps",
    Options,
    (SupervisedOptions, PseudoLabelOptions),
    build,
    published={  # with CutMix
        "method.threshold": 0.0,
        "augment.mixing": "cutmix_toggled",
        "augment.mixing_probability": 1.0,
        "augment.mix_labelled": False,
    },
)

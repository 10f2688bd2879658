"""VAT: a prediction that holds under the worst small change (Miyato et al., TPAMI 2018; French et al., BMVC 2020)."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp

from forec_jax.contracts import Array, Aux, Batch, HeadOutput, Labelled, PyTree, Terms, TrainState, Variables, Views
from forec_jax.losses import weighted_divergence
from forec_jax.methods.entry import MethodEntry, Parts, refuse_classmix, semi_supervised
from forec_jax.methods.parts.ema import SemiSupervised
from forec_jax.methods.parts.heads import SEGMENTATION, STUDENT, class_probabilities, head_names
from forec_jax.methods.parts.teacher import teacher_statistics
from forec_jax.methods.parts.terms import PseudoLabelOptions, SupervisedOptions, supervised_terms
from forec_jax.methods.parts.vat import (
    Place,
    adaptive_length,
    adversarial_perturbation,
    fixed_length,
    logits_from,
    run_changed,
)
from forec_jax.methods.parts.views import labelled_and_others, self_labelled
from forec_jax.models.layers import channelwise
from forec_jax.options import at_least, option


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """The perturbation."""

    perturbed: Place = option(
        "image", 'the "image", the "encoder"\'s maps, or the "fused" map that the decoder classifies'
    )
    radius: float = option(1.0, "R: the perturbation's length is a multiple of it; 0: none", at_least(0))
    adaptive: bool = option(
        True,
        "the length is R/2 times the root of the squared differences between each value's neighbours; False: R times the "
        "root of the number of values",
    )
    direction: Literal["teacher", "student"] = option("teacher", "whose prediction it changes most")


@dataclasses.dataclass(frozen=True)
class Vat(SemiSupervised, Options):
    """L = supervised_weight * L_s + unsupervised_weight * ramp * L_c + auxiliary terms.

    The teacher, an EMA of the student, says in inference mode what the clean image shows. L_c is the divergence
    KL(teacher || student), where the student sees the strong image moved by the perturbation that changes the teacher's
    (or its own) prediction of it most; or where its features are moved so. Pixels with a truth are no aim of the
    perturbation, so that labelled rows stay as they are, unless labels are partial. Auxiliary heads see the moved image, or
    the features as they are.
    """

    def loss(self, params: dict[str, PyTree], state: TrainState, batch: Batch, key: Array) -> tuple[Terms, Aux]:
        """The loss terms; see the class."""
        labelled, unlabelled = labelled_and_others(batch, "vat", self.partial_labels)
        view_key, dropout_key, vat_key, task_key = jax.random.split(key, 4)
        image, views = self.untaught(labelled, unlabelled, view_key)
        teacher = jax.lax.stop_gradient(state.teacher[STUDENT])
        said = functools.partial(class_probabilities, self.network, teacher)
        target = self.of_unlabelled(said, views.image, labelled)
        views = self_labelled(views, target)

        student = Variables(params[STUDENT], state.batch_stats[STUDENT])
        judge = teacher if self.direction == "teacher" else jax.lax.stop_gradient(student)
        outputs, stats = self.perturbed_student(student, judge, (image, views), labelled, (dropout_key, vat_key))
        logits = outputs[SEGMENTATION].output
        terms = supervised_terms(logits, views, loss=self.supervised_loss, weight=self.supervised_weight)
        consistency, metrics = self.unsupervised(
            logits,
            views,
            state.step,
            error=lambda logits, _, weight: weighted_divergence(logits, target, weight),
            name="consistency_loss",
        )
        task_terms, task_metrics, memory = self.task_terms(outputs, views, state, task_key)
        teacher_stats = teacher_statistics(self.network, state.teacher[STUDENT], image, dropout_key, self.bn_mode)
        aux = Aux({STUDENT: stats}, {STUDENT: teacher_stats}, memory, metrics | task_metrics)
        return terms | consistency | task_terms, aux

    def perturbed_student(
        self,
        student: Variables,
        judge: Variables,
        rows: tuple[Array, Views],
        labelled: Labelled,
        keys: tuple[Array, Array],
    ) -> tuple[dict[str, HeadOutput], PyTree]:
        """Every head's output for the images and their views, and the new batch_stats; the segmentation is perturbed."""
        (image, _), (dropout_key, vat_key) = rows, keys
        if not self.radius:
            return self.run_student(student, image, labelled, dropout_key)
        if self.perturbed == "image":
            found = self.of_unlabelled(lambda seen: self.of_image(judge, seen[0], seen[1], vat_key), rows, labelled)
            return self.run_student(student, image + found, labelled, dropout_key)
        forward = functools.partial(self.changed_pass, student, judge)
        return self.in_passes(forward, student.batch_stats, rows, labelled, keys)

    def changed_pass(
        self, student: Variables, judge: Variables, stats: PyTree, rows: tuple[Array, Views], keys: tuple[Array, Array]
    ) -> tuple[dict[str, HeadOutput], PyTree]:
        """A pass of the student, its segmentation from perturbed features."""
        (image, views), (dropout_key, vat_key) = rows, keys

        def change(features: PyTree) -> PyTree:
            return jax.tree.map(jnp.add, features, self.of_features(judge, features, views, vat_key))

        student, heads = student._replace(batch_stats=stats), head_names(self.auxiliary)
        return run_changed(self.network, student, image, heads, change, self.perturbed, rng=dropout_key)

    def of_image(self, judge: Variables, image: Array, views: Views, key: Array) -> Array:
        """The perturbation of images f32[b,H,W,3]; its length is in units of the channels' deviations."""
        std = channelwise(jnp.asarray(self.network.std))
        behind = logits_from(self.network, judge, "image")
        return std * self.perturbation(lambda seen: behind(std * seen), image / std, views, key)

    def of_features(self, judge: Variables, features: PyTree, views: Views, key: Array) -> PyTree:
        """The perturbation of features."""
        return self.perturbation(logits_from(self.network, judge, self.perturbed), features, views, key)

    def perturbation(self, decode: Callable[[PyTree], Array], tree: PyTree, views: Views, key: Array) -> PyTree:
        """What changes most the prediction that `decode` makes of a tree [b,h,w,C], among the changes of its length."""
        length = adaptive_length if self.adaptive else fixed_length
        epsilon = self.radius * length(jax.lax.stop_gradient(tree), views.valid)
        aims = views.valid & ~views.is_ground_truth
        return adversarial_perturbation(decode, tree, aims, epsilon, key)


def build(o: Options, p: Parts) -> Vat:
    """The method from its parts. Raises OptionError for ClassMix, which needs labels before there are any."""
    refuse_classmix("vat", p)
    return semi_supervised(Vat, p, o)


ENTRY = MethodEntry(
    "vat",
    Options,
    (SupervisedOptions, PseudoLabelOptions),
    build,
    published={
        "method.threshold": 0.97,
        "method.unsupervised_weight": 0.1,
        "method.normaliser": "batch",
        "augment.mixing": "none",
        "augment.colour_labelled": False,
    },
)

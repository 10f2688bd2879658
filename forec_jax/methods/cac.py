"""CAC: two overlapping crops say the same of a place (Lai et al., "Directional Context-aware Consistency", CVPR 2021)."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from forec_jax.augment import Rows
from forec_jax.contracts import (
    Array,
    Aux,
    Batch,
    FirstState,
    HeadSpec,
    Labelled,
    Mean,
    Metrics,
    PyTree,
    Term,
    Terms,
    TrainState,
    Unlabelled,
    Variables,
)
from forec_jax.methods.entry import MethodEntry, Parts, refuse_classmix, semi_supervised
from forec_jax.methods.parts.cells import Cells, cells_of, followed, less_sure, with_class
from forec_jax.methods.parts.double_crop import Crop, Grid, cropped, draw_crop, grid_of, partners
from forec_jax.methods.parts.ema import SemiSupervised
from forec_jax.methods.parts.heads import SEGMENTATION, STUDENT, head_names, run_heads
from forec_jax.methods.parts.ring import Ring, empty_ring, filled, push
from forec_jax.methods.parts.teacher import teacher_statistics
from forec_jax.methods.parts.terms import PseudoLabelOptions, SupervisedOptions, supervised_terms
from forec_jax.methods.parts.views import (
    apart,
    both_parts,
    interleave,
    labelled_rows,
    self_labelled,
    student_input,
    unchanged,
    unlabelled_rows,
    unlabelled_views,
)
from forec_jax.options import ABOVE_0, at_least, must_be, one_of, option

PROJECTION = "projection"
"""The head whose vectors are contrasted, and what is stored of them."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Contrast:
    """The crops, and who is contrasted with whom."""

    size: float = option(
        2 / 3, "side of a crop, as a share of data.crop", must_be("above 0 and at most 1", lambda value: 0 < value <= 1)
    )
    cell: int = option(8, "side in pixels of the cells that are compared", at_least(1))
    channels: int = option(128, "of their vectors", at_least(1))
    temperature: float = option(0.1, "tau of L_1 and L_2", ABOVE_0)
    queue: int = option(4096, "negatives stored; published: 51,200 (VOC), 129,600 (Cityscapes)", at_least(1))
    pushed: int = option(2048, "of them that a step renews at most; published: 25,600 and all", at_least(1))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(Contrast):
    """The contrast, and where it takes place."""

    stride: int = option(
        4, "resolution of the vectors before cells are made: 4, a quarter of the image's, or 1", one_of(4, 1)
    )


@dataclasses.dataclass(frozen=True)
class Cac(SemiSupervised, Contrast):
    """L = supervised_weight * L_s + unsupervised_weight * ramp * (L_1 + L_2) + auxiliary terms.

    Two crops of each unlabelled row, in colours of their own, overlap. In L_1 the cells of the first crop follow those of
    the second that show the same, where the second is surer and above the threshold; in L_2 the other way round. A cell is
    drawn to the other's vector and away from stored ones of other classes. Labelled rows are seen whole, in a pass before.
    The teacher is the student's EMA, to score beside it, and teaches nothing.
    """

    own_passes: ClassVar[bool] = True
    completes_labels: ClassVar[bool] = False

    def init(self, key: Array) -> FirstState:
        """The first params, batch_stats, teacher and memory: the tasks', and an empty store of vectors with their class."""
        params, batch_stats, teacher, memory = super().init(key)
        return params, batch_stats, teacher, memory | {PROJECTION: empty_ring(1, self.queue, self.channels + 1)}

    def loss(self, params: dict[str, PyTree], state: TrainState, batch: Batch, key: Array) -> tuple[Terms, Aux]:
        """The loss terms; see the class."""
        labelled, unlabelled = both_parts(batch, "cac")
        label_key, crop_key, pass_key, second_key, push_key, task_key = jax.random.split(key, 6)
        rows = self.labelled(labelled, label_key)
        image, views = student_input(rows, None)
        crops, (one, other), grid = self.crops(unlabelled, crop_key)

        student, heads = Variables(params[STUDENT], state.batch_stats[STUDENT]), head_names(self.auxiliary)
        outputs, stats = run_heads(self.network, student, image, heads, train=True, rng=pass_key)
        after = student._replace(batch_stats=stats)
        of_crops, stats = run_heads(self.network, after, crops.strong, (*heads, PROJECTION), train=True, rng=second_key)
        logits = outputs[SEGMENTATION].output
        terms = supervised_terms(logits, views, loss=self.supervised_loss, weight=self.supervised_weight)
        cells = cells_of(of_crops[SEGMENTATION], of_crops[PROJECTION], crops.valid, grid)
        ring = self.stored(state.memory[PROJECTION], cells, push_key, state.step)
        contrast, metrics = self.contrast(cells, partners(one, other, grid), ring, state.step)

        said = jax.nn.softmax(of_crops[SEGMENTATION].output, axis=-1)
        crop_views = self_labelled(unlabelled_views(crops), said)
        first_key, last_key = jax.random.split(task_key)
        first, first_metrics, memory = self.task_terms(outputs, views, state, first_key)
        last, last_metrics, memory = self.task_terms(of_crops, crop_views, state._replace(memory=memory), last_key)
        tasks = {
            name: Term(jax.tree.map(jnp.add, first[name].mean, term.mean), term.weight) for name, term in last.items()
        }
        metrics |= jax.tree.map(jnp.add, first_metrics, last_metrics)

        teacher_stats = self.teacher_after(state.teacher[STUDENT], (image, crops.strong), pass_key)
        aux = Aux({STUDENT: stats}, {STUDENT: teacher_stats}, memory | {PROJECTION: ring}, metrics)
        return terms | contrast | tasks, aux

    def labelled(self, part: Labelled, key: Array) -> Rows:
        """The labelled rows as the student sees them."""
        colour_key, mixing_key = jax.random.split(key)
        return self.labelled_mixing(mixing_key, labelled_rows(colour_key, part, self.labelled_colour))

    def crops(self, part: Unlabelled | Labelled, key: Array) -> tuple[Rows, tuple[Crop, Crop], Grid]:
        """Two crops of every row as 2b rows, those of a row side by side; where they lie; and their grid."""
        mixing_key, *keys = jax.random.split(key, 3)
        rows = self.mixing(mixing_key, unlabelled_rows(key, part, unchanged))
        size = rows.label.shape[1], rows.label.shape[2]
        grid = grid_of(size, self.size, self.cell)

        def crop_in_colour(crop_key: Array) -> tuple[Rows, Crop]:
            place_key, colour_key = jax.random.split(crop_key)
            crop = draw_crop(place_key, len(rows.label), size, grid)
            seen: Rows = cropped(rows, crop, grid)
            return seen._replace(strong=self.colour(colour_key, seen.strong, seen.valid)), crop

        (one, first), (other, second) = (crop_in_colour(crop_key) for crop_key in keys)
        return jax.tree.map(interleave, one, other), (first, second), grid

    def stored(self, ring: Ring, cells: Cells, key: Array, step: Array) -> Ring:
        """The store after this step's vectors of both crops went in, each with its class behind it; from `start` on."""
        eligible = cells.valid.reshape(-1, 1) & (jnp.asarray(self.started(step)) > 0)
        return push(ring, key, with_class(cells), eligible, self.pushed)

    def contrast(self, cells: Cells, pairs: tuple[Array, Array], ring: Ring, step: Array) -> tuple[Terms, Metrics]:
        """L_1 and L_2 of 2b crops, by the store after this step's vectors went in.

        `pairs` are the second crop's partner i32[b,N] of each cell of the first, and whether there is one, bool[b,N].
        """
        index, inside = pairs
        one, other = (jax.tree.map(lambda leaf, n=n: apart(leaf, len(leaf) // 2)[n], cells) for n in (0, 1))
        other = jax.vmap(lambda cells, places: jax.tree.map(lambda leaf: leaf[places], cells))(other, index)
        paired = inside & one.valid & other.valid
        weight = self.weight_of_unsupervised(step)
        terms: Terms = {}
        followers = jnp.zeros(())
        for number, (who, whom) in enumerate(((one, other), (other, one)), start=1):
            follows = paired & (whom.confidence > self.threshold) & less_sure(who, whom)
            mean = followed(who, whom, follows, ring, self.temperature)
            terms[f"contrast{number}_loss"] = Term(mean, weight)
            followers += mean.number
        pairs_seen = jnp.sum(paired, dtype=jnp.float32)
        overlap = Mean(pairs_seen, jnp.float32(paired.size))
        return terms, {"kept": Mean(followers, pairs_seen), "overlap": overlap, "negatives_stored": filled(ring)}

    def teacher_after(self, teacher: Variables, images: tuple[Array, Array], key: Array) -> PyTree:
        """The teacher's statistics after both passes; see `teacher_statistics`."""
        for image in images:
            stats = teacher_statistics(self.network, teacher, image, key, self.bn_mode)
            teacher = teacher._replace(batch_stats=stats)
        return teacher.batch_stats


def build(o: Options, p: Parts) -> Cac:
    """The method with the head of its vectors. Raises OptionError for ClassMix."""
    refuse_classmix("cac", p)
    head = HeadSpec(PROJECTION, o.channels, upsample=o.stride == 1, reads=SEGMENTATION)
    return semi_supervised(Cac, p, o, (head,))


ENTRY = MethodEntry(
    "cac",
    Options,
    (SupervisedOptions, PseudoLabelOptions),
    build,
    published={
        "method.threshold": 0.75,
        "method.unsupervised_weight": 0.1,
        "method.start": 0.0625,
        "augment.mixing": "none",
        "augment.colour_labelled": False,
    },
)

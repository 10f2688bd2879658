"""Class relations: how alike the features of two classes are, as a matrix and a dendrogram (ReCo, section 5, Figure 8)."""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image, ImageDraw, ImageFont
from scipy.cluster.hierarchy import dendrogram, linkage
from scipy.spatial.distance import squareform

from forec_jax.contracts import IGNORE, Array, Method, Network, Variables
from forec_jax.data import Example
from forec_jax.evaluation import Buckets
from forec_jax.methods.parts.heads import SEGMENTATION
from forec_jax.methods.tasks.reco import REPRESENTATION
from forec_jax.visualize.latents import of_image, sample_label
from forec_jax.visualize.sheets import heatmap

ENCODER = "encoder"
"""Name of the features Z that every head reads."""

_NAMES, _TREE, _CELL, _MARGIN = 110, 90, 22, 6  # pixels of the picture's parts


class Relations(NamedTuple):
    """How alike the features of the classes are that occur."""

    classes: tuple[int, ...]
    pixels: tuple[int, ...]  # of the features' grid, that each class's mean was taken over
    similarity: np.ndarray  # f64[n,n] in [-1, 1]: the cosine of two classes' mean features
    merges: np.ndarray  # f64[n-1,4]: SciPy's linkage of indices into `classes`

    def mean_similarity(self) -> float | None:
        """Over the pairs of different classes; None with fewer than two."""
        n = len(self.classes)
        return float((self.similarity.sum() - np.trace(self.similarity)) / (n * (n - 1))) if n > 1 else None


def segmenting_network(method: Method) -> tuple[str, Network] | None:
    """The name and the network with the segmentation head; None where no network has one."""
    for name, network in method.networks.items():
        if any(head.name == SEGMENTATION for head in network.heads):
            return name, network
    return None


def relations(
    network: Network, variables: Variables, examples: Iterable[Example], classes: int, bucket: int
) -> dict[str, Relations]:
    """The relations of the classes over examples with masks, by the encoder's features and by each other embedding.

    The features are "encoder", Z (the last that all heads share), and "representation", R, where the network has ReCo's
    head. A class's feature is the mean over all of its pixels in all examples (Eq. 2), labels read at the centres of the
    grid's cells, void left out. Classes are grouped by average linkage of 1 - cosine; the paper names no linkage.
    """
    buckets, embed = Buckets(bucket, batch=1), _embedding(network)
    total: dict[str, np.ndarray] = {}
    count: dict[str, np.ndarray] = {}
    for example in examples:
        if example.label is None:
            continue
        _, padded = next(buckets.batches([example]))
        for name, rows in embed(variables, padded.image, padded.valid).items():
            grid = of_image(np.asarray(rows)[0], example.label.shape, padded.image.shape[1])
            label = sample_label(example.label, *grid.shape[:2])
            member = (np.arange(classes)[:, None] == label[label != IGNORE]).astype(np.float64)
            total[name] = total.get(name, 0.0) + member @ grid[label != IGNORE].astype(np.float64)
            count[name] = count.get(name, 0.0) + member.sum(axis=1)
    return {name: relate(total[name], count[name]) for name in total}


def relate(total: np.ndarray, count: np.ndarray) -> Relations:
    """The relations by the sums f64[K,D] of the classes' features over `count` f64[K] pixels each.

    Classes that do not occur are left out, and so are those whose features add up to nothing.
    """
    present = np.flatnonzero((count > 0) & (np.linalg.norm(total, axis=1) > 0))
    direction = total[present] / np.linalg.norm(total[present], axis=1, keepdims=True)
    similarity = np.clip(direction @ direction.T, -1.0, 1.0)
    distance = squareform(1.0 - similarity, checks=False)  # of pairs; SciPy wants at least one
    merges = linkage(distance, "average") if len(present) > 1 else np.zeros((0, 4))
    return Relations(tuple(present.tolist()), tuple(count[present].astype(int).tolist()), similarity, merges)


def relation_picture(found: Relations, names: Sequence[str]) -> np.ndarray:
    """u8[h,w,3]: the matrix, lighter where two classes are more alike (0 and less is darkest), over the dendrogram.

    The dendrogram's leaves are the matrix's columns; the further down two branches meet, the less alike they are, from 0
    to the largest distance, which is written beside it.
    """
    side = _CELL * len(found.classes)
    picture = Image.new("RGB", (_NAMES + side + _MARGIN, side + _TREE + 3 * _MARGIN), "white")
    tree = _tree(found)
    cells = np.kron(found.similarity[np.ix_(tree.leaves, tree.leaves)], np.ones((_CELL, _CELL)))
    picture.paste(Image.fromarray(heatmap(cells)), (_NAMES, _MARGIN))
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(11)
    for row, leaf in enumerate(tree.leaves):
        middle = _MARGIN + _CELL * row + _CELL // 2
        draw.text((_NAMES - 4, middle), names[found.classes[leaf]][:18], fill="black", font=font, anchor="rm")
    top, depth = side + 2 * _MARGIN, max((y for branch in tree.branches for _, y in branch), default=0.0)
    for branch in tree.branches:
        corners = [(_NAMES + x * _CELL, top + y / (depth or 1.0) * _TREE) for x, y in branch]
        draw.line(corners, fill="black", width=1)
    draw.text((_NAMES - 4, top + _TREE), f"1 - cos = {depth:.2f}", fill="black", font=font, anchor="rs")
    return np.asarray(picture)


class _Tree(NamedTuple):
    """A dendrogram to draw: leaf i's column is from x = i to i + 1."""

    leaves: list[int]
    branches: list[list[tuple[float, float]]]  # the corners (x, distance) of each merge


def _tree(found: Relations) -> _Tree:
    if not len(found.merges):
        return _Tree(list(range(len(found.classes))), [])
    tree = dendrogram(found.merges, no_plot=True)
    # SciPy's leaves are 10 apart and start at 5.
    branches = [
        [(x / 10, y) for x, y in zip(across, down, strict=True)]
        for across, down in zip(tree["icoord"], tree["dcoord"], strict=True)
    ]
    return _Tree(tree["leaves"], branches)


def _embedding(network: Network) -> Callable[[Variables, np.ndarray, np.ndarray], dict[str, Array]]:
    """The compiled features of images u8[1,H,W,3]: f32[1,h,w,D] by name."""
    represents = any(head.name == REPRESENTATION for head in network.heads)

    def embed(variables: Variables, image: Array, valid: Array) -> dict[str, Array]:
        features, _ = network.encode(variables, image.astype(jnp.float32) / 255.0, valid=valid, train=False, rng=None)
        found = {ENCODER: features.high.astype(jnp.float32)}
        if represents:
            head, _ = network.decode(variables, REPRESENTATION, features, train=False, rng=None)
            found[REPRESENTATION] = head.output
        return found

    return jax.jit(embed)

import jax
import numpy as np

from forec_jax.data import shapes_dataset
from forec_jax.methods import WsssRec
from forec_jax.methods.parts.tags import tags_head
from forec_jax.methods.wsss_rec import wsss_heads
from forec_jax.visualize import decompositions
from forec_jax.visualize.sheets import CELL_SIDE


def test_a_row_for_the_background_and_each_class_that_is_there(make_toy_network):
    method = WsssRec(
        make_toy_network(wsss_heads(7)), make_toy_network((tags_head(range(1, 7)),)), tuple(range(1, 7)), 0
    )
    variables = {"student": method.network.init(jax.random.key(0))}
    dataset = shapes_dataset(size=48, counts={"tune": 2})
    source = dataset.source("tune")
    examples = [source[0], source[1]._replace(label=None)]
    known, unknown = (picture for _, picture in decompositions(method, variables, examples, dataset.classes, 64))
    row = CELL_SIDE + 18 + 4  # a captioned square and its margin, below a line of titles
    present = len(np.unique(source[0].label))
    assert known.shape == (18 + present * row, 4 + 5 * (CELL_SIDE + 4), 3)
    winners = np.asarray(method.decompose(variables, source[1].image[None] / np.float32(255), None).masks).argmax(-1)
    assert unknown.shape[0] == 18 + len({0, *np.unique(winners)}) * row
    # The last cell is the sum of all products, the fourth one product: the sum is at least as bright everywhere.
    cells = [known[18 : 18 + CELL_SIDE, 4 + i * (CELL_SIDE + 4) :][:, :CELL_SIDE].astype(int) for i in range(5)]
    assert (cells[4] >= cells[3] - 1).all()
    assert (cells[4] > cells[3]).any()

"""An ONNX graph while it is written: its values, constants and nodes."""

import hashlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

Dim = int | str
"""A size, or the name of one that is known when the graph runs."""

OPSET, IR = 18, 8
"""Versions of the operators and of the file, which onnxruntime reads from 1.14 on."""

LARGEST = 2**31 - 2**20
"""Bytes of constants: a file of the format holds less than 2 GiB."""


class ExportError(ValueError):
    """What cannot be exported; the message says why and what to do."""


class Value(NamedTuple):
    """What a variable of a traced program is: an array that is known now, or a tensor of the graph, by its name.

    Its shape may have 1 where the variable's has more: ONNX's operators broadcast, so that it is enlarged only where one
    needs it whole.
    """

    held: np.ndarray | str
    shape: tuple[Dim, ...]

    @property
    def known(self) -> bool:
        """Whether it is an array."""
        return isinstance(self.held, np.ndarray)


def known(array: Any) -> Value:
    """An array as a value."""
    held = np.asarray(array)
    return Value(held, held.shape)


def joined(shapes: Sequence[tuple[Dim, ...]]) -> tuple[Dim, ...]:
    """The shape that some broadcast to."""
    rank = max(map(len, shapes))
    aligned = [(1,) * (rank - len(shape)) + shape for shape in shapes]
    return tuple(next((dim for dim in dims if dim != 1), 1) for dims in zip(*aligned, strict=True))


class Graph:
    """Nodes and constants, in the order in which they are added."""

    def __init__(self, batch: str, of: str) -> None:
        """`batch`: the name of the size that is known when the graph runs: the first of the tensor `of`."""
        self.nodes: list[Any] = []
        self.constants: dict[tuple[str, tuple[int, ...], bytes], tuple[str, np.ndarray]] = {}  # by what they hold
        self._batch, self._of, self._count = batch, of, 0
        self._batch_size = ""

    def name(self, value: Value) -> str:
        """The tensor's name; an array becomes a constant."""
        if isinstance(value.held, str):
            return value.held
        array = np.ascontiguousarray(value.held)
        key = (str(array.dtype), array.shape, hashlib.sha256(array.data).digest())
        if key not in self.constants:
            self.constants[key] = (f"c{len(self.constants)}", array)
        return self.constants[key][0]

    def node(self, operator: str, inputs: Sequence[Value], shape: Sequence[Dim], **attributes: Any) -> Value:
        """The result of an operator."""
        return self.nodes_of(operator, inputs, [shape], **attributes)[0]

    def nodes_of(
        self, operator: str, inputs: Sequence[Value], shapes: Sequence[Sequence[Dim]], **attributes: Any
    ) -> list[Value]:
        """The results of an operator that has several."""
        from onnx import helper

        names = []
        for _ in shapes:
            names.append(f"v{self._count}")
            self._count += 1
        self.nodes.append(helper.make_node(operator, [self.name(value) for value in inputs], names, **attributes))
        return [Value(name, tuple(shape)) for name, shape in zip(names, shapes, strict=True)]

    def full(self, value: Value, shape: tuple[Dim, ...]) -> Value:
        """The value enlarged to a shape."""
        if value.shape == shape:
            return value
        if isinstance(value.held, np.ndarray) and all(isinstance(dim, int) for dim in shape):
            return known(np.broadcast_to(value.held, shape))  # type: ignore[arg-type]
        sizes = [1 if old == new else new for old, new in zip(value.shape, shape, strict=True)]
        return self.node("Expand", [value, self._sizes(sizes)], shape)

    def reshaped(self, value: Value, shape: Sequence[Dim]) -> Value:
        """The value in another shape, of which one size at most may have a name."""
        sizes = [-1 if isinstance(dim, str) else dim for dim in shape]
        if sizes.count(-1) > 1:
            raise ExportError(f"ONNX cannot reshape to {tuple(shape)}")
        if value.shape == tuple(shape):
            return value
        if isinstance(value.held, np.ndarray):
            return known(value.held.reshape(sizes))
        return self.node("Reshape", [value, known(np.array(sizes, np.int64))], shape)

    def _sizes(self, sizes: Sequence[Dim]) -> Value:
        """The shape as a tensor i64[rank]."""
        if all(isinstance(size, int) for size in sizes):
            return known(np.array(sizes, np.int64))
        parts = [self._batch_value(size) if isinstance(size, str) else known(np.array([size])) for size in sizes]
        return self.node("Concat", parts, (len(sizes),), axis=0)

    def _batch_value(self, name: str) -> Value:
        """The batch's size as a tensor i64[1]."""
        if name != self._batch:
            raise ExportError(f"ONNX cannot enlarge an array to {name}")
        if not self._batch_size:
            size = self.node("Shape", [Value(self._of, ())], (1,), start=0, end=1)
            self._batch_size = self.name(size)
        return Value(self._batch_size, (1,))

    def model(self, inputs: Sequence[Any], output: Any, result: Value, about: str) -> Any:
        """The ONNX model; `inputs` and `output` are `onnx.ValueInfoProto`."""
        from onnx import helper, numpy_helper

        named = helper.make_node("Identity", [self.name(result)], [output.name])
        arrays = list(self.constants.values())
        if (size := sum(array.nbytes for _, array in arrays)) > LARGEST:
            raise ExportError(
                f"the model has {size / 2**30:.1f} GiB of weights, and an ONNX file holds less than 2; take "
                "--format=safetensors"
            )
        initializers = [numpy_helper.from_array(array, name) for name, array in arrays]
        graph = helper.make_graph([*self.nodes, named], "forec_jax", list(inputs), [output], initializers)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], doc_string=about)
        model.ir_version, model.producer_name = IR, "forec_jax"
        return model

"""JAX's operators in ONNX's: those that the networks and the methods' predictions are made of."""

import string
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from forec_jax.export.graph import Dim, ExportError, Graph, Value, joined, known

Rule = Callable[[Graph, Any, list[Value]], list[Value]]

_NAMES = {
    "abs": "Abs",
    "add": "Add",
    "add_any": "Add",
    "ceil": "Ceil",
    "cos": "Cos",
    "div": "Div",
    "eq": "Equal",
    "erf": "Erf",
    "exp": "Exp",
    "floor": "Floor",
    "ge": "GreaterOrEqual",
    "gt": "Greater",
    "le": "LessOrEqual",
    "log": "Log",
    "logistic": "Sigmoid",
    "lt": "Less",
    "max": "Max",
    "min": "Min",
    "mul": "Mul",
    "neg": "Neg",
    "pow": "Pow",
    "sign": "Sign",
    "sin": "Sin",
    "sqrt": "Sqrt",
    "sub": "Sub",
    "tanh": "Tanh",
}
"""Operators that are one of ONNX's, value by value."""

_LOGICAL = {"and": "And", "or": "Or", "not": "Not", "xor": "Xor"}


def dims(shape: Sequence[Any]) -> tuple[Dim, ...]:
    """The shape of a traced array: numbers, and the names of sizes that are not known yet."""
    return tuple(dim if isinstance(dim, int) else str(dim) for dim in shape)


def operator(graph: Graph, eqn: Any, values: list[Value]) -> list[Value]:
    """The results of an equation of a traced program. Raises ExportError where ONNX has no such operator."""
    name = eqn.primitive.name
    if name in ELEMENTWISE:
        return [ELEMENTWISE[name](graph, eqn, values)]
    if name not in _RULES:
        raise ExportError(
            f"this model cannot be written as ONNX: it uses JAX's {name!r}, for which there is no rule; take "
            "--format=stablehlo or safetensors"
        )
    if name not in ("broadcast_in_dim", "transpose", "dot_general"):
        values = [graph.full(value, dims(v.aval.shape)) for value, v in zip(values, eqn.invars, strict=True)]
    return _RULES[name](graph, eqn, values)


# Value by value: shapes broadcast.


def _one(name: str) -> Callable[[Graph, Any, list[Value]], Value]:
    return lambda graph, eqn, values: graph.node(name, values, joined([value.shape for value in values]))


def _logical(name: str) -> Callable[[Graph, Any, list[Value]], Value]:
    def rule(graph: Graph, eqn: Any, values: list[Value]) -> Value:
        if eqn.outvars[0].aval.dtype != bool:
            raise ExportError(f"ONNX's {name} takes truth values alone")
        return _one(name)(graph, eqn, values)

    return rule


def _convert(graph: Graph, eqn: Any, values: list[Value]) -> Value:
    return _cast(graph, values[0], eqn.params["new_dtype"])


def _cast(graph: Graph, value: Value, dtype: Any) -> Value:
    from onnx import helper

    return graph.node("Cast", [value], value.shape, to=helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))


def _different(graph: Graph, eqn: Any, values: list[Value]) -> Value:
    same = _one("Equal")(graph, eqn, values)
    return graph.node("Not", [same], same.shape)


def _select(graph: Graph, eqn: Any, values: list[Value]) -> Value:
    which, *cases = values
    if len(cases) != 2 or eqn.invars[0].aval.dtype != bool:
        raise ExportError("ONNX selects between two arrays by truth values")
    return graph.node("Where", [which, cases[1], cases[0]], joined([value.shape for value in values]))


def _clamp(graph: Graph, eqn: Any, values: list[Value]) -> Value:
    low, x, high = values
    shape = joined([value.shape for value in values])
    return graph.node("Min", [graph.node("Max", [x, low], shape), high], shape)


def _remainder(graph: Graph, eqn: Any, values: list[Value]) -> Value:
    return graph.node("Mod", values, joined([value.shape for value in values]), fmod=1)


def _power(graph: Graph, eqn: Any, values: list[Value]) -> Value:
    exponent = np.asarray(eqn.params["y"], eqn.invars[0].aval.dtype)
    return graph.node("Pow", [values[0], known(exponent)], values[0].shape)


def _square(graph: Graph, eqn: Any, values: list[Value]) -> Value:
    return graph.node("Mul", [values[0], values[0]], values[0].shape)


def _inverse_root(graph: Graph, eqn: Any, values: list[Value]) -> Value:
    return graph.node("Reciprocal", [graph.node("Sqrt", values, values[0].shape)], values[0].shape)


def _erfc(graph: Graph, eqn: Any, values: list[Value]) -> Value:
    one = known(np.ones((), eqn.invars[0].aval.dtype))
    return graph.node("Sub", [one, graph.node("Erf", values, values[0].shape)], values[0].shape)


def _log1p(graph: Graph, eqn: Any, values: list[Value]) -> Value:
    one = known(np.ones((), eqn.invars[0].aval.dtype))
    return graph.node("Log", [graph.node("Add", [one, values[0]], values[0].shape)], values[0].shape)


ELEMENTWISE: dict[str, Callable[[Graph, Any, list[Value]], Value]] = {
    **{name: _one(theirs) for name, theirs in _NAMES.items()},
    **{name: _logical(theirs) for name, theirs in _LOGICAL.items()},
    "clamp": _clamp,
    "convert_element_type": _convert,
    "erfc": _erfc,
    "integer_pow": _power,
    "log1p": _log1p,
    "ne": _different,
    "rem": _remainder,
    "rsqrt": _inverse_root,
    "select_n": _select,
    "square": _square,
}


# Of shapes.


def broadcast(graph: Graph, eqn: Any, values: list[Value]) -> list[Value]:
    """`broadcast_in_dim`, with 1 where the array would only be repeated."""
    shape: list[Dim] = [1] * len(eqn.params["shape"])
    for size, axis in zip(values[0].shape, eqn.params["broadcast_dimensions"], strict=True):
        shape[axis] = size
    return [values[0] if values[0].shape == tuple(shape) else graph.reshaped(values[0], shape)]


def _reshape(graph: Graph, eqn: Any, values: list[Value]) -> list[Value]:
    return [graph.reshaped(values[0], dims(eqn.outvars[0].aval.shape))]


def _transpose(graph: Graph, eqn: Any, values: list[Value]) -> list[Value]:
    return [_transposed(graph, values[0], eqn.params["permutation"])]


def _transposed(graph: Graph, value: Value, axes: Sequence[int]) -> Value:
    if tuple(axes) == tuple(range(len(axes))):
        return value
    if isinstance(value.held, np.ndarray):
        return known(value.held.transpose(axes))
    return graph.node("Transpose", [value], [value.shape[axis] for axis in axes], perm=list(axes))


def _concatenate(graph: Graph, eqn: Any, values: list[Value]) -> list[Value]:
    shape = dims(eqn.outvars[0].aval.shape)
    return [graph.node("Concat", values, shape, axis=eqn.params["dimension"])]


def _stack(graph: Graph, eqn: Any, values: list[Value]) -> list[Value]:
    axis, shape = eqn.params["axis"], dims(eqn.outvars[0].aval.shape)
    parts = [graph.reshaped(value, [*shape[:axis], 1, *shape[axis + 1 :]]) for value in values]
    return [graph.node("Concat", parts, shape, axis=axis)]


def _split(graph: Graph, eqn: Any, values: list[Value]) -> list[Value]:
    sizes = known(np.array(eqn.params["sizes"], np.int64))
    shapes = [dims(v.aval.shape) for v in eqn.outvars]
    return graph.nodes_of("Split", [values[0], sizes], shapes, axis=eqn.params["axis"])


def _slice(graph: Graph, eqn: Any, values: list[Value]) -> list[Value]:
    before, after = dims(eqn.invars[0].aval.shape), dims(eqn.outvars[0].aval.shape)
    starts, ends = eqn.params["start_indices"], eqn.params["limit_indices"]
    strides = eqn.params["strides"] or (1,) * len(before)
    axes = [axis for axis in range(len(before)) if before[axis] != after[axis]]
    if not axes:
        return values
    chosen = [known(np.array([part[axis] for axis in axes], np.int64)) for part in (starts, ends, range(99), strides)]
    return [graph.node("Slice", [values[0], *chosen], after)]


def _pad(graph: Graph, eqn: Any, values: list[Value]) -> list[Value]:
    low, high, between = zip(*eqn.params["padding_config"], strict=True)
    if any(between):
        raise ExportError("ONNX puts no padding between values")
    margins = known(np.array([*low, *high], np.int64))
    return [graph.node("Pad", [values[0], margins, values[1]], dims(eqn.outvars[0].aval.shape), mode="constant")]


def _gather(graph: Graph, eqn: Any, values: list[Value]) -> list[Value]:
    """Rows of a table by their numbers, or what JAX reads at places that are known now: slices, where a size is not."""
    table, numbers = values
    if isinstance(numbers.held, np.ndarray):
        return [_read(graph, eqn, table, numbers.held)]
    how, sizes = eqn.params["dimension_numbers"], eqn.params["slice_sizes"]
    shape, rank = table.shape, len(numbers.shape) - 1
    rows_alone = tuple(how.collapsed_slice_dims) == tuple(how.start_index_map) == (0,) and sizes == (1, *shape[1:])
    behind = tuple(how.offset_dims) == tuple(range(rank, rank + len(shape) - 1))
    if not (rows_alone and behind):
        raise ExportError("this model cannot be written as ONNX: it gathers more than whole rows")
    dtype = eqn.invars[1].aval.dtype
    above = graph.node("Max", [numbers, known(np.zeros((), dtype))], numbers.shape)
    inside = graph.node("Min", [above, known(np.asarray(int(shape[0]) - 1, dtype))], numbers.shape)
    flat = graph.reshaped(inside, numbers.shape[:-1])
    return [graph.node("Gather", [table, flat], dims(eqn.outvars[0].aval.shape), axis=0)]


def _read(graph: Graph, eqn: Any, table: Value, places: np.ndarray) -> Value:
    """What lies at places i32[...,d]: an axis is read at one start, or at starts that one axis of the places lists."""
    how, sizes = eqn.params["dimension_numbers"], eqn.params["slice_sizes"]
    listed: dict[int, int] = {}  # an axis of the places -> the axis of the table that it lists
    for axis, starts in zip(how.start_index_map, np.moveaxis(places, -1, 0), strict=True):
        shape = list(table.shape)
        if (starts == starts.flat[0]).all():
            shape[axis] = sizes[axis]
            first = int(starts.flat[0])
            window = [known(np.array([at], np.int64)) for at in (first, first + sizes[axis], axis)]
            table = graph.node("Slice", [table, *window], shape)
            continue
        along = _varies_along(starts)
        listed[along], vector = axis, np.moveaxis(starts, along, 0).reshape(starts.shape[along], -1)[:, 0]
        shape[axis] = len(vector)
        table = graph.node("Gather", [table, known(vector.astype(np.int64))], shape, axis=axis)
    if any(size > 1 and along not in listed for along, size in enumerate(places.shape[:-1])):
        raise ExportError("this model cannot be written as ONNX: it gathers the same place again and again")
    after = dims(eqn.outvars[0].aval.shape)
    lists = [at for at in range(len(after)) if at not in how.offset_dims]
    inside = [axis for axis in range(len(table.shape)) if axis not in how.collapsed_slice_dims]
    kept = sorted([*inside, *listed.values()])
    by_place = {
        **dict(zip(how.offset_dims, inside, strict=True)),
        **{lists[along]: axis for along, axis in listed.items()},
    }
    small = graph.reshaped(table, [table.shape[axis] for axis in kept])
    return graph.reshaped(_transposed(graph, small, [kept.index(by_place[at]) for at in sorted(by_place)]), after)


def _varies_along(starts: np.ndarray) -> int:
    """The only axis along which places differ. Raises ExportError where there are several."""
    differing = [axis for axis in range(starts.ndim) if (starts != np.take(starts, [0], axis)).any()]
    if len(differing) == 1:
        return differing[0]
    raise ExportError("this model cannot be written as ONNX: it gathers at places without an order")


# Sums and products.


def _reduction(name: str) -> Rule:
    def rule(graph: Graph, eqn: Any, values: list[Value]) -> list[Value]:
        axes = known(np.array(eqn.params["axes"], np.int64))
        return [graph.node(name, [values[0], axes], dims(eqn.outvars[0].aval.shape), keepdims=0)]

    return rule


def _all_or_any(name: str) -> Rule:
    def rule(graph: Graph, eqn: Any, values: list[Value]) -> list[Value]:
        (found,) = _reduction(name)(graph, eqn, [_cast(graph, values[0], np.int32)])
        return [_cast(graph, found, bool)]

    return rule


def _largest(graph: Graph, eqn: Any, values: list[Value]) -> list[Value]:
    (axis,) = eqn.params["axes"]
    found = graph.node("ArgMax", values, dims(eqn.outvars[0].aval.shape), axis=axis, keepdims=0)
    return [_cast(graph, found, eqn.params["index_dtype"])]


def _product(graph: Graph, eqn: Any, values: list[Value]) -> list[Value]:
    """`dot_general`: a matrix product where it is one, otherwise an Einsum.

    An array that is the same for the whole batch stays without that axis.
    """
    (sums, batches) = eqn.params["dimension_numbers"]
    ranks = [len(v.aval.shape) for v in eqn.invars]
    letters = iter(string.ascii_lowercase)
    names: list[list[str]] = [[""] * ranks[0], [""] * ranks[1]]
    for pairs in (batches, sums):
        for axes in zip(*pairs, strict=True):
            letter = next(letters)
            for side, axis in enumerate(axes):
                names[side][axis] = letter
    names = [[name or next(letters) for name in own] for own in names]
    summed = {names[0][axis] for axis in sums[0]}
    batch = [names[0][axis] for axis in batches[0]]
    result = batch + [name for side in names for name in side if name not in summed and name not in batch]
    shape = dims(eqn.outvars[0].aval.shape)
    values = list(values)
    for side, v in enumerate(eqn.invars):
        values[side], names[side] = _without_repeated(graph, values[side], names[side], batch, dims(v.aval.shape))
    left, right = names
    plain = len(right) == 2 and left[-1] == right[0] and right[0] in summed and result == [*left[:-1], right[1]]
    lead = len(left) - 2 if len(left) == len(right) else -1
    batched = lead > 0 and left[:lead] == right[:lead] == batch and left[-1] == right[-2] and left[-1] in summed
    under = len(left) == 2 and len(right) == 3 and left[1] == right[1] and left[1] in summed
    if plain or batched or (under and result == [right[0], left[0], right[2]]):
        return [graph.node("MatMul", values, shape)]
    equation = f"{''.join(left)},{''.join(right)}->{''.join(result)}"
    return [graph.node("Einsum", values, shape, equation=equation)]


def _without_repeated(
    graph: Graph, value: Value, names: list[str], batch: list[str], shape: tuple[Dim, ...]
) -> tuple[Value, list[str]]:
    """An array and its axes' names, without those of the batch that it does not depend on."""
    if not isinstance(value.held, np.ndarray):
        return graph.full(value, shape), names
    same = tuple(axis for axis, size in enumerate(value.shape) if size == 1 != shape[axis] and names[axis] in batch)
    kept = [axis for axis in range(len(names)) if axis not in same]
    array = np.broadcast_to(
        value.held.squeeze(same),
        [shape[axis] if axis in kept else 1 for axis in kept],  # type: ignore[misc]
    )
    return known(array), [names[axis] for axis in kept]


def _convolution(graph: Graph, eqn: Any, values: list[Value]) -> list[Value]:
    x, kernel = values
    p, how = eqn.params, eqn.params["dimension_numbers"]
    if p["batch_group_count"] != 1 or any(step != 1 for step in p["lhs_dilation"]):
        raise ExportError("ONNX's convolution puts nothing between the pixels of its input")
    shape = dims(eqn.outvars[0].aval.shape)
    window = eqn.invars[1].aval.shape
    made = graph.node(
        "Conv",
        [_transposed(graph, x, how.lhs_spec), _transposed(graph, kernel, how.rhs_spec)],
        [shape[axis] for axis in how.out_spec],
        kernel_shape=[window[axis] for axis in how.rhs_spec[2:]],
        strides=list(p["window_strides"]),
        pads=[*(low for low, _ in p["padding"]), *(high for _, high in p["padding"])],
        dilations=list(p["rhs_dilation"]),
        group=p["feature_group_count"],
    )
    return [_transposed(graph, made, [int(axis) for axis in np.argsort(how.out_spec)])]


_RULES: dict[str, Rule] = {
    "argmax": _largest,
    "broadcast_in_dim": broadcast,
    "concatenate": _concatenate,
    "conv_general_dilated": _convolution,
    "copy": lambda graph, eqn, values: values,
    "dot_general": _product,
    "gather": _gather,
    "pad": _pad,
    "reduce_and": _all_or_any("ReduceMin"),
    "reduce_max": _reduction("ReduceMax"),
    "reduce_min": _reduction("ReduceMin"),
    "reduce_or": _all_or_any("ReduceMax"),
    "reduce_sum": _reduction("ReduceSum"),
    "reshape": _reshape,
    "slice": _slice,
    "split": _split,
    "squeeze": _reshape,
    "stack": _stack,
    "stop_gradient": lambda graph, eqn, values: values,
    "transpose": _transpose,
}

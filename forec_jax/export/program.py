"""A JAX function as an ONNX model: it is traced, what can be known is computed, and the rest becomes ONNX's operators.

jax2onnx does this for any function. Its releases for JAX of today pin an older orbax-checkpoint than this library
needs, and it has no rule for some of what the networks do (a size by which an image's extent is divided); the operators
that they need are few.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import export as jax_export

from forec_jax.export.graph import ExportError, Graph, Value, known
from forec_jax.export.operators import ELEMENTWISE, broadcast, dims, operator

BATCH = "batch"
"""The name of the first size of every input and of the output, which is known when the model runs."""

_INLINED = (
    "jit",
    "pjit",
    "closed_call",
    "core_call",
    "custom_jvp_call",
    "custom_vjp_call",
    "custom_vjp_call_jaxpr",
    "remat2",
    "checkpoint",
)


class Input(NamedTuple):
    """An input of a model."""

    name: str
    dtype: Any
    shape: tuple[int, ...]  # without the batch


def symbolic(inputs: Sequence[Input]) -> tuple[jax.ShapeDtypeStruct, ...]:
    """The inputs as JAX traces them, with a batch of any size."""
    (batch,) = jax_export.symbolic_shape(BATCH)
    return tuple(jax.ShapeDtypeStruct((batch, *one.shape), one.dtype) for one in inputs)


def to_onnx(function: Callable[..., Any], inputs: Sequence[Input], output: str, about: str) -> Any:
    """An `onnx.ModelProto` of a function of arrays with one result, rows of the batch alike.

    Args:
      function: takes the inputs in their order; arrays that it closes over become constants.
      inputs: their first size, the batch, is left open.
      output: the result's name.
      about: what is said of the model in the file.

    Raises:
      ExportError: it does what ONNX cannot, or has too large constants.
    """
    from onnx import helper

    traced = jax.make_jaxpr(function)(*symbolic(inputs))
    graph = Graph(BATCH, inputs[0].name)
    values = [Value(one.name, (BATCH, *one.shape)) for one in inputs]
    (result,) = _run(graph, traced.jaxpr, traced.consts, values)
    (aval,) = traced.out_avals
    result = graph.full(result, dims(aval.shape))

    def described(name: str, dtype: Any, shape: Sequence[Any]) -> Any:
        return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), list(shape))

    given = [described(one.name, one.dtype, (BATCH, *one.shape)) for one in inputs]
    return graph.model(given, described(output, aval.dtype, dims(aval.shape)), result, about)


def _run(graph: Graph, jaxpr: Any, consts: Sequence[Any], arguments: Sequence[Value]) -> list[Value]:
    """The results of a traced program, equation by equation."""
    held = dict(zip(jaxpr.constvars, map(known, consts), strict=True))
    held |= dict(zip(jaxpr.invars, arguments, strict=True))

    def read(variable: Any) -> Value:
        return known(np.asarray(variable.val, variable.aval.dtype)) if hasattr(variable, "val") else held[variable]

    for eqn in jaxpr.eqns:
        results = _equation(graph, eqn, [read(variable) for variable in eqn.invars])
        held |= dict(zip(eqn.outvars, results, strict=True))
    return [read(variable) for variable in jaxpr.outvars]


def _equation(graph: Graph, eqn: Any, values: list[Value]) -> list[Value]:
    name = eqn.primitive.name
    if name == "platform_index":  # what the model runs on is not known: the way of all platforms
        return [known(np.int32(eqn.params["platforms"].index(None)))]
    if name == "cond":
        which, *rest = values
        if not isinstance(which.held, np.ndarray):
            raise ExportError("this model cannot be written as ONNX: it decides by its input; take --format=stablehlo")
        branch = eqn.params["branches"][int(which.held)]
        return _run(graph, branch.jaxpr, branch.consts, rest)
    if name in _INLINED:
        inner = eqn.params.get("call_jaxpr", eqn.params.get("jaxpr"))
        return _run(graph, getattr(inner, "jaxpr", inner), getattr(inner, "consts", ()), values)
    if all(value.known for value in values):
        return _known_results(graph, eqn, values)
    return operator(graph, eqn, values)


def _known_results(graph: Graph, eqn: Any, values: list[Value]) -> list[Value]:
    """The results of an equation of arrays: computed now, unless they depend on the batch's size."""
    name, arrays = eqn.primitive.name, [np.asarray(value.held) for value in values]
    if name == "broadcast_in_dim":
        return broadcast(graph, eqn, values)
    if name in ELEMENTWISE:
        arrays = list(np.broadcast_arrays(*arrays))
    else:
        shapes = [dims(v.aval.shape) for v in (*eqn.invars, *eqn.outvars)]
        if any(isinstance(dim, str) for shape in shapes for dim in shape):
            return operator(graph, eqn, values)
        arrays = [np.broadcast_to(array, v.aval.shape) for array, v in zip(arrays, eqn.invars, strict=True)]
    results = eqn.primitive.bind(*arrays, **eqn.params)
    return [known(result) for result in (results if eqn.primitive.multiple_results else [results])]

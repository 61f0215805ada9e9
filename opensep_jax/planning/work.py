"""What a function asks for, whatever compiler and chip: products counted in its jaxpr."""

import dataclasses
from collections.abc import Iterator

import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, jaxprs_in_params


@dataclasses.dataclass(frozen=True)
class Product:
    """One convolution or matrix product.

    Attributes:
        flops: two for each multiplication and addition; of a convolution on padded or spread-out
            arrays those with the padding too, but not those with the zeros between elements.
        bytes: of both operands and the result.
    """

    flops: float
    bytes: float


def products(closed: ClosedJaxpr) -> Iterator[Product]:
    """Convolutions and matrix products of a traced function, a loop's as often as it runs."""
    yield from _products(closed.jaxpr)


def _products(jaxpr: Jaxpr) -> Iterator[Product]:
    for equation in jaxpr.eqns:
        name, times = equation.primitive.name, equation.params.get("length", 1)
        if name in ("dot_general", "conv_general_dilated"):
            arrays = (*(v.aval for v in equation.invars), equation.outvars[0].aval)
            count = _dot if name == "dot_general" else _convolution
            moved = sum(array.size * array.dtype.itemsize for array in arrays)
            yield Product(count(equation.params, *(array.shape for array in arrays)), moved)
        for inner in jaxprs_in_params(_of_default_platform(equation.params)):
            yield from times * list(_products(inner))


def _of_default_platform(params: dict) -> dict:
    """Parameters of an equation; of branches by platform only that of those not named.

    Others are for CPUs: what is planned for is none.
    """
    platforms = params.get("branches_platforms") or ()
    if None not in platforms:
        return params
    return {"branches": (params["branches"][platforms.index(None)],)}


def _dot(params: dict, left: tuple, right: tuple, result: tuple) -> float:
    (contracted, _), _ = params["dimension_numbers"]
    return 2.0 * _size(result) * _size(left[axis] for axis in contracted)


def _convolution(params: dict, image: tuple, kernel: tuple, result: tuple) -> float:
    outputs = kernel[params["dimension_numbers"].rhs_spec[0]]
    spread = _size(params["lhs_dilation"])
    return 2.0 * _size(result) * _size(kernel) / outputs / spread


def _size(axes: object) -> float:
    return float(np.prod(tuple(axes), dtype=float))

"""Mesh, size rule and batch sharding; no network knows of them."""

import math
from collections.abc import Mapping, Sequence

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

AXES = ("data", "fsdp", "tensor")


def make_mesh(
    *, data: int, fsdp: int, tensor: int, devices: Sequence[jax.Device] | None = None
) -> Mesh:
    """Mesh over devices; one axis may be -1, which takes the devices that are left.

    Axes are `AxisType.Auto`: with explicit axes a Linen convolution with sharded kernels raises.
    Where the devices are several TPU slices, or GPU machines, see `device_grid`.

    Args:
        data: parts of the batch.
        fsdp: parts of the batch, of the parameters and of what belongs to them.
        tensor: parts of single matrices.
        devices: all of every process by default.

    Raises:
        ValueError: if the sizes do not multiply to the number of devices.
    """
    sizes, count = [data, fsdp, tensor], len(devices or jax.devices())
    if sizes.count(-1) > 1 or any(size < 1 and size != -1 for size in sizes):
        raise ValueError(f"mesh sizes must be positive, one at most -1; got {_named(sizes)}")
    if -1 in sizes:
        sizes[sizes.index(-1)] = count // int(np.prod([size for size in sizes if size != -1]))
    if int(np.prod(sizes)) != count:
        raise ValueError(f"mesh {_named((data, fsdp, tensor))} does not fit {count} devices")
    grid = device_grid(sizes, devices or jax.devices())
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * 3)


def device_grid(sizes: Sequence[int], devices: Sequence[jax.Device]) -> np.ndarray:
    """Devices by their place on the mesh; neighbours on later axes are joined by faster links.

    The network between slices carries the data axis, as far as that has parts for them: its one
    all-reduce of gradients in a step. The fsdp axis moves every parameter several times; it takes
    the slices that are left over.

    Args:
        sizes: of the axes, positive; their product is the number of devices.
        devices: those with equal `slice_index` are joined by fast links (without it: all).

    Raises:
        ValueError: if the axes do not share out the slices.
    """
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    if slices == 1:
        return mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)
    data, fsdp, tensor = sizes
    across = math.gcd(data, slices)
    if fsdp % (slices // across):
        raise ValueError(
            f"mesh {_named(sizes)} does not fit {slices} slices of {len(devices) // slices} "
            "devices: mesh.data should be a multiple of the slices"
        )
    left = slices // across
    return mesh_utils.create_hybrid_device_mesh(
        (data // across, fsdp // left, tensor), (across, left, 1), devices,
        allow_split_physical_axes=True,
    )  # fmt: skip


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows of a batch over the data and fsdp axes."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def replicated(mesh: Mesh) -> NamedSharding:
    """A whole copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def param_sharding(tree: object, mesh: Mesh, min_size: int) -> object:
    """FSDP by size: the largest dimension that the fsdp axis divides, of arrays large enough.

    Args:
        tree: arrays or shapes (`jax.eval_shape`), such as parameters or optimiser state.
        mesh: the mesh.
        min_size: elements below which an array is replicated.

    Returns:
        NamedSharding for each leaf. Source: big_vision's `sharding.py:fsdp`.
    """
    parts = mesh.shape["fsdp"]

    def one(leaf: jax.Array) -> NamedSharding:
        if parts > 1 and leaf.size >= min_size:
            for axis in np.argsort(leaf.shape)[::-1]:
                if leaf.shape[axis] % parts == 0:
                    spec = [None] * leaf.ndim
                    spec[axis] = "fsdp"
                    return NamedSharding(mesh, PartitionSpec(*spec))
        return replicated(mesh)

    return jax.tree.map(one, tree)


def tensor_sharding(tree: object, mesh: Mesh, axes: Mapping[str, int]) -> object:
    """Splits named parameters over the tensor axis; the others are replicated.

    Args:
        tree: nested dict of arrays or shapes.
        mesh: the mesh.
        axes: end of a parameter's path, joined by `/`, to the axis that may be split, counted from
            the end. An axis that the mesh does not divide is replicated.

    Returns:
        NamedSharding for each leaf.
    """
    parts = mesh.shape["tensor"]

    def one(path: tuple, leaf: jax.Array) -> NamedSharding:
        name = "/".join(str(key.key) for key in path)
        axis = next((axis for end, axis in axes.items() if name.endswith(end)), None)
        if axis is None or leaf.shape[axis] % parts:
            return replicated(mesh)
        spec = [None] * leaf.ndim
        spec[axis] = "tensor"
        return NamedSharding(mesh, PartitionSpec(*spec))

    return jax.tree_util.tree_map_with_path(one, tree)


def check_batch(mesh: Mesh, global_batch: int, accumulation: int = 1) -> None:
    """Raises if the batch is not whole rows for every device in every part of accumulation."""
    parts = batch_parts(mesh)
    if global_batch % (parts * accumulation):
        raise ValueError(
            f"train.batch={global_batch} is not divisible by {parts} devices (mesh.data="
            f"{mesh.shape['data']} x mesh.fsdp={mesh.shape['fsdp']}) times "
            f"train.accumulation={accumulation}"
        )


def batch_parts(mesh: Mesh) -> int:
    """Devices that share the rows of a batch."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def rounded_batch(batch: int, mesh: Mesh) -> int:
    """So many rows, or the next number of them that the devices share evenly."""
    parts = batch_parts(mesh)
    return -(-batch // parts) * parts


def shard_batch(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Global arrays out of this process's rows of every array."""
    sharding = batch_sharding(mesh)
    return {k: jax.make_array_from_process_local_data(sharding, v) for k, v in batch.items()}


def place(tree: object, layout: object) -> object:
    """Global arrays out of arrays that every process holds whole.

    Args:
        tree: arrays on the host.
        layout: a sharding for all of them, or a tree of shardings.
    """
    if isinstance(layout, NamedSharding):
        layout = jax.tree.map(lambda _: layout, tree)
    return jax.tree.map(
        lambda x, s: jax.make_array_from_callback(x.shape, s, x.__getitem__), tree, layout
    )


def shapes(tree: object, layout: object) -> object:
    """Shapes that carry shardings, for what is lowered or restored without its arrays.

    Args:
        tree: arrays or shapes.
        layout: a sharding for all of them, or a tree of shardings.
    """
    if isinstance(layout, NamedSharding):
        layout = jax.tree.map(lambda _: layout, tree)
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, layout
    )


def gather(tree: object, layout: object) -> object:
    """Within jit: whole copies of parameters that are split over the fsdp axis, all at once.

    Without it the compiler splits activations by channel wherever it meets a split kernel, and
    moves more data. The gradient of a gathered parameter is split like the parameter.

    Args:
        tree: parameters.
        layout: their shardings, as of `param_sharding`.
    """
    whole = jax.tree.map(lambda sharding: replicated(sharding.mesh), layout)

    @jax.custom_vjp
    def gathered(split: object) -> object:
        return jax.lax.with_sharding_constraint(split, whole)

    def backward(_: None, gradient: object) -> tuple[object]:
        return (jax.lax.with_sharding_constraint(gradient, layout),)

    gathered.defvjp(lambda split: (gathered(split), None), backward)
    return gathered(tree)


def _named(sizes: Sequence[int]) -> str:
    return ", ".join(f"{axis}={size}" for axis, size in zip(AXES, sizes, strict=True))

"""Mesh, size rule and batches over eight devices."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

from opensep_jax import sharding


@pytest.mark.parametrize(
    "sizes, shape",
    [
        ((-1, 1, 1), (8, 1, 1)),
        ((-1, 2, 1), (4, 2, 1)),
        ((2, -1, 2), (2, 2, 2)),
        ((1, 1, 8), (1, 1, 8)),
    ],
)
def test_mesh(sizes: tuple[int, ...], shape: tuple[int, ...]):
    mesh = sharding.make_mesh(data=sizes[0], fsdp=sizes[1], tensor=sizes[2])
    assert tuple(mesh.shape[axis] for axis in sharding.AXES) == shape
    assert mesh.axis_types == (AxisType.Auto,) * 3


def test_mesh_of_some_devices():
    devices = jax.devices()[3:5]
    mesh = sharding.make_mesh(data=-1, fsdp=1, tensor=1, devices=devices)
    assert mesh.shape["data"] == 2 and set(mesh.devices.flat) == set(devices)


@pytest.mark.parametrize(
    "sizes, message",
    [
        ((3, 1, 1), "data=3, fsdp=1, tensor=1 does not fit 8 devices"),
        ((-1, 3, 1), "data=-1, fsdp=3, tensor=1 does not fit 8 devices"),
        ((16, 1, 1), "does not fit 8 devices"),
        ((-1, -1, 1), "one at most -1"),
        ((0, 1, 1), "must be positive"),
    ],
)
def test_mesh_that_does_not_fit(sizes: tuple[int, ...], message: str):
    with pytest.raises(ValueError, match=message):
        sharding.make_mesh(data=sizes[0], fsdp=sizes[1], tensor=sizes[2])


@dataclasses.dataclass(frozen=True)
class _Chip:
    """What a grid asks of a device."""

    id: int
    slice_index: int
    platform: str = "none"
    device_kind: str = "none"
    process_index: int = 0


def _chips(slices: int, each: int) -> list[_Chip]:
    """Chips of all slices, in turns."""
    return [_Chip(i, i % slices) for i in range(slices * each)]


@pytest.mark.parametrize(
    "sizes, slices, crossed",
    [
        ((8, 1, 1), 2, "data"),
        ((2, 4, 1), 2, "data"),
        ((4, 2, 1), 4, "data"),
        ((2, 4, 1), 4, "data fsdp"),  # two of the four slices on each axis
        ((1, 8, 1), 4, "fsdp"),
        ((2, 2, 2), 2, "data"),
    ],
)
def test_slices_lie_along_the_data_axis(sizes: tuple[int, ...], slices: int, crossed: str):
    grid = sharding.device_grid(sizes, _chips(slices, 8 // slices))
    assert grid.shape == sizes and len(set(grid.flat)) == 8
    slice_of = np.vectorize(lambda chip: chip.slice_index)(grid)
    several = [
        name
        for axis, name in enumerate(sharding.AXES)
        if (slice_of != np.take(slice_of, [0], axis)).any()
    ]
    assert several == crossed.split()


def test_slices_that_the_axes_do_not_share_out():
    with pytest.raises(ValueError, match="fsdp=3, tensor=2 does not fit 4 slices of 3 devices"):
        sharding.device_grid((2, 3, 2), _chips(4, 3))


def test_parameters_are_split_along_their_largest_divisible_axis():
    mesh = sharding.make_mesh(data=2, fsdp=4, tensor=1)
    shapes = {"wide": (3, 8, 64), "tall": (64, 6), "odd": (63, 65), "small": (4, 4), "one": ()}
    tree = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in shapes.items()}
    specs = {k: v.spec for k, v in sharding.param_sharding(tree, mesh, min_size=17).items()}
    assert specs == {
        "wide": PartitionSpec(None, None, "fsdp"),
        "tall": PartitionSpec("fsdp", None),
        "odd": PartitionSpec(),  # four does not divide it
        "small": PartitionSpec(),  # below the size
        "one": PartitionSpec(),
    }


def test_nothing_is_split_without_fsdp():
    mesh = sharding.make_mesh(data=8, fsdp=1, tensor=1)
    layout = sharding.param_sharding({"a": np.zeros((8, 8))}, mesh, min_size=1)
    assert layout["a"].is_fully_replicated


def test_gather_gives_split_gradients():
    mesh = sharding.make_mesh(data=2, fsdp=4, tensor=1)
    kernel = np.arange(32, dtype=np.float32).reshape(8, 4)
    layout = sharding.param_sharding(kernel, mesh, min_size=1)

    def loss(kernel: jax.Array, x: jax.Array) -> jax.Array:
        return jnp.sum((x @ sharding.gather(kernel, layout)) ** 2)

    x = np.ones((8, 8), np.float32)
    gradient = jax.jit(jax.grad(loss), in_shardings=(layout, sharding.batch_sharding(mesh)))(
        kernel, x
    )
    assert gradient.addressable_shards[0].data.shape == (2, 4)
    np.testing.assert_allclose(gradient, 2 * x.T @ (x @ kernel), rtol=1e-6)


def test_batches_over_devices():
    mesh = sharding.make_mesh(data=4, fsdp=2, tensor=1)
    batch = {"a": np.arange(48, dtype=np.int16).reshape(16, 3), "b": np.arange(16)}
    whole = sharding.place(batch, sharding.batch_sharding(mesh))
    for placed in (sharding.shard_batch(batch, mesh), whole):
        for name, value in batch.items():
            np.testing.assert_array_equal(placed[name], value)
            assert {s.data.shape[0] for s in placed[name].addressable_shards} == {2}


def test_place_by_a_tree_of_shardings():
    mesh = sharding.make_mesh(data=1, fsdp=8, tensor=1)
    tree = {"a": np.arange(64.0).reshape(16, 4), "b": np.arange(3)}
    layout = sharding.param_sharding(tree, mesh, min_size=8)
    placed = sharding.place(tree, layout)
    jax.tree.map(np.testing.assert_array_equal, placed, tree)
    assert placed["a"].sharding == layout["a"]
    assert placed["a"].addressable_shards[0].data.shape == (2, 4)
    assert placed["b"].is_fully_replicated


def test_a_batch_is_rounded_to_whole_rows_of_the_devices():
    mesh = sharding.make_mesh(data=2, fsdp=2, tensor=2)
    assert [sharding.rounded_batch(rows, mesh) for rows in (1, 4, 5)] == [4, 4, 8]


def test_batch_that_devices_do_not_divide():
    mesh = sharding.make_mesh(data=4, fsdp=2, tensor=1)
    sharding.check_batch(mesh, 16)
    sharding.check_batch(mesh, 16, accumulation=2)
    with pytest.raises(
        ValueError, match=r"train.batch=12 .* 8 devices \(mesh.data=4 x mesh.fsdp=2"
    ):
        sharding.check_batch(mesh, 12)
    with pytest.raises(ValueError, match="train.batch=16 .* train.accumulation=4"):
        sharding.check_batch(mesh, 16, accumulation=4)

"""FLOPs of compiled steps, and shares of what a device could do."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from opensep_jax import sharding
from opensep_jax.training.hardware import memory, step_flops, utilisation
from opensep_jax.training.step import mean_gradient

ROWS, WIDTH = 512, 32


def _flops(devices: int, accumulation: int) -> float:
    """Of the gradient of a matrix product over some devices."""

    def loss(kernel: jax.Array, batch: dict, *_: object) -> tuple:
        return jnp.mean((batch["x"] @ kernel) ** 2), {}

    def gradient(kernel: jax.Array, batch: dict) -> jax.Array:
        key = jax.random.key(0)
        return mean_gradient(loss, kernel, batch, {}, key, accumulation)[2]

    mesh = sharding.make_mesh(data=-1, fsdp=1, tensor=1, devices=jax.devices()[:devices])
    whole, split = sharding.replicated(mesh), sharding.batch_sharding(mesh)
    jitted = jax.jit(gradient, in_shardings=(whole, split), out_shardings=whole)
    kernel, batch = np.ones((WIDTH, WIDTH), np.float32), {"x": np.ones((ROWS, WIDTH), np.float32)}
    return step_flops(jitted.lower(kernel, batch).compile(), accumulation)


@pytest.mark.parametrize("devices, accumulation", [(1, 1), (4, 1), (1, 4), (4, 4)])
def test_flops_are_of_one_device_and_the_whole_batch(devices: int, accumulation: int):
    products = 2 * 2 * ROWS * WIDTH**2  # forward, and the kernel's gradient
    assert _flops(devices, accumulation) == pytest.approx(products / devices, rel=0.1)


def test_utilisation():
    assert utilisation(19.7e12, 2.0, "TPU v5 lite") == {"speed/mfu": pytest.approx(0.2)}
    assert utilisation(1e12, 2.0, "cpu") == {}
    assert utilisation(None, 2.0, "TPU v4") == {}


def test_memory_of_the_fullest_device():
    class Device:
        def __init__(self, stats: dict | None):
            self.memory_stats = lambda: stats

    def device(in_use: float, peak: float) -> Device:
        return Device({"bytes_in_use": in_use * 2**30, "peak_bytes_in_use": peak * 2**30})

    assert memory([device(1, 5), device(2, 3)]) == {"memory/in_use_gib": 2, "memory/peak_gib": 5}
    assert memory([Device(None)]) == {}
    assert memory([Device({"bytes_in_use": 2**30})]) == {"memory/in_use_gib": 1}

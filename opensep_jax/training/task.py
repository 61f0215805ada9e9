"""What a task is to the step, the loop and the checkpoints, which know of none in particular."""

from collections.abc import Callable, Iterator
from typing import Protocol

import jax
import numpy as np

from opensep_jax.data.records import PreparedDataset, RecordError
from opensep_jax.training.panels import Exhibit
from opensep_jax.training.step import Metrics


class Task(Protocol):
    """Initial parameters, batches, loss and validation.

    Attributes:
        best: the score that the best checkpoint is kept by.
    """

    best: str

    @property
    def clips_per_example(self) -> float:
        """Clips of a mixture, on average."""

    def init(self, key: jax.Array) -> dict:
        """Parameters before the first step."""

    def constants(self) -> dict[str, np.ndarray]:
        """What is kept on the devices and no step changes."""

    def batches(
        self, *, steps: int, global_batch: int, **settings: int
    ) -> Iterator[dict[str, np.ndarray]]:
        """This process's rows of the batches of steps `first_step` to `steps`.

        Args:
            steps: of the whole run.
            global_batch: rows of a step over all processes.
            settings: the other arguments of `pipeline.batches`, `first_step` among them.
        """

    def loss(
        self, params: dict, batch: dict, constants: dict, key: jax.Array
    ) -> tuple[jax.Array, Metrics]:
        """What the step minimises, see `step.LossFn`."""

    def validate(
        self, params: dict, mesh: jax.sharding.Mesh, check: Callable[[], None]
    ) -> tuple[dict[str, float], Exhibit]:
        """Scores on fixed mixtures, and the first few of them to hear and see.

        Args:
            params: of the network, whole on every device of `mesh`.
            mesh: its devices share the mixtures.
            check: called before every batch; may raise.
        """

    def describe(self) -> dict:
        """What its checkpoints have to say that the config does not, JSON types."""


def check_rates(sample_rate_hz: int, *datasets: PreparedDataset) -> None:
    """Raises if records have another rate than the config says."""
    for dataset in datasets:
        if dataset.sample_rate_hz != sample_rate_hz:
            raise RecordError(
                f"{dataset.folder}: records at {dataset.sample_rate_hz} Hz, but "
                f"sample_rate_hz={sample_rate_hz} in the config"
            )

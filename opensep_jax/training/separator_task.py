"""The separator as a task: recover the parts of a mixture from text."""

import dataclasses
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from opensep_jax.data import mix
from opensep_jax.data.lists import ListedMixture, list_mixtures, text_ids
from opensep_jax.data.pipeline import MixtureExamples, MixtureRule, batches
from opensep_jax.data.records import PreparedDataset
from opensep_jax.data.union import open_prepared
from opensep_jax.separator import SeparatorNet, init_params, training_masks
from opensep_jax.sharding import batch_sharding, place, rounded_batch
from opensep_jax.signal.stft import stft
from opensep_jax.training.losses import LOSSES
from opensep_jax.training.panels import Exhibit
from opensep_jax.training.step import MEASURED, Metrics
from opensep_jax.training.task import check_rates
from opensep_jax.training.validation import RULES, jitted_scores, mean_score, mixture_batches

logger = logging.getLogger("opensep_jax")


@dataclasses.dataclass(frozen=True)
class SeparatorTask:
    """Multi-level mix-and-separate: recover single clips and two-clip mixtures from text.

    Attributes:
        net: network and spectrogram.
        train: prepared clips to learn from.
        val: prepared clips that are never learned from.
        rule: how an example is drawn.
        augment: random changes of clips.
        samples: length of a training mixture.
        pairs: which two-clip mixtures are targets, see `mix.candidate_targets`.
        targets: targets of a mixture in one step; 0 takes all.
        loss_weights: weight of each loss of `training.losses.LOSSES`.
        text_tokens: longest prompt in training, tokens; longer ones are cut.
        validation: settings of the fixed validation mixtures: `mixtures` of each number of
            `sources`, `seconds`, `level_db`, `wording`, `batch`, `seed`, and `panels`, how many
            of each are shown.
    """

    net: SeparatorNet
    train: PreparedDataset
    val: PreparedDataset
    rule: MixtureRule
    augment: mix.Augment
    samples: int
    pairs: str
    targets: int
    loss_weights: Mapping[str, float]
    text_tokens: int
    validation: Mapping[str, object]

    best = "val/si_sdri"  # the score that the best checkpoint is kept by

    def __post_init__(self):
        check_rates(self.net.sample_rate_hz, self.train, self.val)

    @property
    def members_QS(self) -> np.ndarray:
        """Candidate targets, bool [Q, S]."""
        return mix.candidate_targets(self.rule.slots, self.pairs)

    def init(self, key: jax.Array) -> dict:
        """Parameters of the network."""
        return init_params(self.net, key, self.train.info["text"]["width"])

    @property
    def clips_per_example(self) -> float:
        """Clips of a mixture, on average."""
        return self.rule.mean_clips

    def constants(self) -> dict[str, np.ndarray]:
        """The text table, kept on the devices."""
        return {"tokens": self.train.text.tokens_MC, "start": self.train.text.start_V}

    def batches(
        self, *, steps: int, global_batch: int, **settings: int
    ) -> Iterator[dict[str, np.ndarray]]:
        """This process's rows of batches, see `Task`."""
        examples = MixtureExamples(self.train, self.rule, steps * global_batch)
        return batches(examples, global_batch=global_batch, **settings)

    def loss(
        self, params: dict, batch: dict, constants: dict, key: jax.Array
    ) -> tuple[jax.Array, Metrics]:
        """Weighted loss, a mean over mixtures of the mean over their targets; and its parts.

        Every mixture has a possible target and counts alike, so the loss of a batch is the mean
        of the losses of its parts.
        """
        targets = make_targets(self, batch, key)
        text_BPLC, text_mask_BPL = mix.gather_text(
            constants["tokens"], constants["start"], targets["text_id"], self.text_tokens
        )
        mix_BFN = targets["mix"]
        mask_BPFN, statistics = training_masks(
            self.net, params, jnp.abs(mix_BFN) ** 2, text_BPLC, text_mask_BPL
        )
        weight_BP = targets["possible"].astype(jnp.float32)
        share_BP = weight_BP / weight_BP.sum(-1, keepdims=True)
        levels = {"single": ~targets["is_pair"], "pair": targets["is_pair"]}
        total = 0.0
        metrics = {f"{MEASURED}{path}": (x, jnp.ones(())) for path, x in statistics.items()}
        for name, weight in self.loss_weights.items():
            if not weight:
                continue
            loss_BP = LOSSES[name](targets["target"], mask_BPFN, mix_BFN[:, None])
            total += weight * jnp.mean(jnp.sum(loss_BP * share_BP, axis=-1))
            for level, here_BP in levels.items():
                here_BP = weight_BP * here_BP
                metrics[f"loss/{name}/{level}"] = (jnp.sum(loss_BP * here_BP), jnp.sum(here_BP))
        return total, metrics

    def validate(
        self, params: dict, mesh: jax.sharding.Mesh, check: Callable[[], None] = lambda: None
    ) -> tuple[dict[str, float], Exhibit]:
        """Scores on the fixed mixtures, and the first few of them to hear and see.

        Args:
            params: of the network, whole on every device of `mesh`.
            mesh: its devices share the mixtures.
            check: called before every batch; may raise.

        Returns:
            Mean SI-SDR improvement (dB) by number of sources and mask rule, `val/si_sdri` over all
            (rule `limit`), and sounds and pictures.
        """
        settings, scores, main = dict(self.validation), {}, []
        counts, number, seed, shown = (
            settings.pop(k) for k in ("sources", "mixtures", "seed", "panels")
        )
        settings["batch"] = rounded_batch(settings["batch"], mesh)
        shown = min(shown, number, settings["batch"])
        score = self.scorer(mesh, shown)
        exhibit = Exhibit(self.net.sample_rate_hz)
        for sources in counts:
            mixtures = list_mixtures(self.val, number, sources, seed)
            results = []
            for batch in mixture_batches(self.val, mixtures, **settings):
                check()
                result = jax.device_get(score(params, place(batch, batch_sharding(mesh))))
                if not results:
                    self._show(exhibit, mixtures, batch["sources"], result, range(shown))
                results.append({k: v for k, v in result.items() if k not in ("stems", "masks")})
            for rule in RULES:
                values = np.concatenate([result[f"si_sdri_{rule}"] for result in results])[:number]
                scores[f"val/si_sdri_{rule}/{sources}_sources"] = mean_score(values)
            main.append(scores[f"val/si_sdri_limit/{sources}_sources"])
        return scores | {"val/si_sdri": float(np.mean(main))}, exhibit

    def describe(self) -> dict:
        """Records, and the encoder of their prompts."""
        return {
            "records": self.train.info["splits"],
            "text_encoder": self.train.info["text_encoder"],
        }

    def scorer(self, mesh: jax.sharding.Mesh, shown: int) -> jax.stages.Wrapped:
        """Scores of a validation batch, of which the first `shown` mixtures come with stems."""
        return jitted_scores(self.net, mesh, shown)

    def _show(
        self,
        exhibit: Exhibit,
        mixtures: Sequence[ListedMixture],
        sources_BST: np.ndarray,
        result: dict[str, np.ndarray],
        rows: Iterable[int],
    ) -> None:
        """Adds separated validation mixtures to an exhibit."""
        for row in rows:
            ids = text_ids(self.val, mixtures[row], self.validation["wording"])
            exhibit.add_separation(
                f"{sources_BST.shape[1]}_sources/{row}",
                [self.val.text.prompts[i] for i in ids],
                sources_BST[row],
                result["stems"][row],
                result["masks"][row],
                self.net.stft,
            )


def make_targets(task: SeparatorTask, batch: dict, key: jax.Array) -> dict[str, jax.Array]:
    """Mixtures and targets of a batch, as spectra; mixtures have about the network's RMS.

    Args:
        task: its rules.
        batch: `clips` int16 [B, S, T'], `text_id` [B, S, K], `count` [B], `example` [B].
        key: of the step.

    Returns:
        `mix` complex [B, F, N], `target` complex [B, P, F, N], `text_id` [B, P, M * K],
        `possible` and `is_pair` bool [B, P].
    """
    members_QS, slots = task.members_QS, task.rule.slots
    keys_B = mix.example_keys(key, batch["example"])
    sources_BST = mix.draw_sources(
        batch["clips"], batch["count"], keys_B, task.augment, task.samples
    )
    spectra_BSFN = task.net.training_rms * stft(sources_BST, task.net.stft)
    if task.augment.eq_db:
        eq = mix.random_eq(keys_B, slots, task.net.stft.bins, task.augment.eq_db)
        spectra_BSFN = spectra_BSFN * eq
    index_BP, possible_BP = mix.choose_targets(members_QS, batch["count"], keys_B, task.targets)
    members_BPS = jnp.asarray(members_QS, jnp.float32)[index_BP]
    return {
        "mix": spectra_BSFN.sum(1),
        "target": jnp.einsum(
            "bps,bsfn->bpfn", members_BPS, spectra_BSFN, precision=jax.lax.Precision.HIGHEST
        ),
        "text_id": mix.target_text_ids(members_QS, index_BP, batch["text_id"]),
        "possible": possible_BP,
        "is_pair": members_BPS.sum(-1) > 1,
    }


def whole_frames(net: SeparatorNet, crop_s: float) -> int:
    """Samples of a training mixture of about `crop_s` seconds: a whole number of frames.

    Raises:
        ValueError: nothing is left of it.
    """
    hop = net.stft.hop_samples
    samples = round(crop_s * net.sample_rate_hz / hop) * hop - hop
    if samples < 1:
        raise ValueError(
            f"data.crop_s={crop_s} is too short: two hops are needed (stft.hop_samples={hop}, "
            f"sample_rate_hz={net.sample_rate_hz})"
        )
    return samples


def build_separator_task(
    net: SeparatorNet,
    *,
    folder: str,
    train_split: str,
    val_split: str,
    rule: MixtureRule,
    augment: mix.Augment,
    samples: int,
    pairs: str,
    targets: int,
    loss_weights: Mapping[str, float],
    text_tokens: int,
    validation: Mapping[str, object],
) -> SeparatorTask:
    """Reads the records and puts a task together; the arguments are keys of the config."""
    train = open_prepared(folder, train_split)
    val = open_prepared(folder, val_split, train.text)
    cut = int(np.sum(np.diff(train.text.start_V) > text_tokens))
    if cut:
        logger.warning("%d prompts exceed data.text_tokens=%d and are cut", cut, text_tokens)
    MixtureExamples(train, rule, 1)  # enough names for a mixture? Validation is asked likewise:
    for sources in validation["sources"]:
        for mixture in list_mixtures(val, validation["mixtures"], sources, validation["seed"]):
            text_ids(val, mixture, validation["wording"])
    return SeparatorTask(
        net=net, train=train, val=val, rule=rule, augment=augment, samples=samples,
        pairs=pairs, targets=targets, loss_weights=loss_weights,
        text_tokens=min(text_tokens, 8 * -(-train.text.longest // 8)), validation=validation,
    )  # fmt: skip

"""The captioner as a task: name every source of a mixture, in a caption and by tags."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping

import jax
import jax.numpy as jnp
import numpy as np
import optax

from opensep_jax.data import mix
from opensep_jax.data.lists import list_mixtures
from opensep_jax.data.mel_augment import MelAugment, random_holes, random_microphone, random_room
from opensep_jax.data.pipeline import MixtureExamples, MixtureRule, batches
from opensep_jax.data.records import PreparedDataset
from opensep_jax.data.union import open_prepared
from opensep_jax.sharding import rounded_batch
from opensep_jax.signal.mel import mel_power
from opensep_jax.text.compose import clause, compose
from opensep_jax.text.listener import Listener, build_listener, init_params, network_level, unit_rms
from opensep_jax.training.caption_scores import (
    caption_mixtures,
    mixture_wave,
    name_scores,
    names_said,
    true_names,
)
from opensep_jax.training.panels import Exhibit
from opensep_jax.training.step import Metrics
from opensep_jax.training.task import check_rates


@dataclasses.dataclass(frozen=True)
class CaptionerTask:
    """Captions of mixtures, composed of what is said of their clips, and tags.

    Attributes:
        listener: network, spectrogram and words.
        train: prepared clips to learn from.
        val: prepared clips that are never learned from.
        rule: how an example is drawn; its prompts are labels.
        augment: random changes of clips.
        mel_augment: random changes of what is heard.
        samples: length of a training mixture.
        tag_weight: weight of the tags' loss; that of the caption's is one.
        validation: settings of the fixed validation mixtures: `mixtures` of each number of
            `sources`, `seconds`, `level_db`, `batch`, `seed`, and `panels`, how many of each are
            shown.
    """

    listener: Listener
    train: PreparedDataset
    val: PreparedDataset
    rule: MixtureRule
    augment: mix.Augment
    mel_augment: MelAugment
    samples: int
    tag_weight: float
    validation: Mapping[str, object]

    best = "val/f1"  # the score that the best checkpoint is kept by

    def __post_init__(self):
        check_rates(self.listener.mel.sample_rate_hz, self.train, self.val)

    @property
    def clips_per_example(self) -> float:
        """Clips of a mixture, on average."""
        return self.rule.mean_clips

    def init(self, key: jax.Array) -> dict:
        """Parameters of the network, which hears windows as long as a training mixture."""
        return init_params(self.listener, key, self.samples)

    def constants(self) -> dict[str, np.ndarray]:
        """Nothing is kept on the devices."""
        return {}

    def batches(
        self, *, steps: int, global_batch: int, **settings: int
    ) -> Iterator[dict[str, np.ndarray]]:
        """This process's rows of batches, see `Task`."""
        examples = MixtureExamples(self.train, self.rule, steps * global_batch)
        tag_of_text = self._tags_of_texts()
        for batch in batches(examples, global_batch=global_batch, **settings):
            tags = [{tag_of_text[i] for i in row.flat if i >= 0} for row in batch.pop("text_id")]
            yield batch | self._described(tags)

    def _tags_of_texts(self) -> dict[int, int]:
        """Number of the tag by text id of its label."""
        number = {name: i for i, (name, _) in enumerate(self.listener.clauses)}
        return {
            self.train.text.ids[key]: number[source.name]
            for clip in self.train.clips
            for source in clip.sources
            for key in source.prompts["label"]
        }

    def _described(self, tags: list[set[int]]) -> dict[str, np.ndarray]:
        """`words` int32 [B, L] of the captions of sets of tags, and `tags` bool [B, K]."""
        clauses, vocabulary = self.listener.clauses, self.listener.vocabulary
        tags_BK = np.zeros((len(tags), len(clauses)), bool)
        words = []
        for row, numbers in enumerate(tags):
            tags_BK[row, list(numbers)] = True
            said = [clauses[number][1] for number in numbers]
            words.append(vocabulary.encode(said, self.listener.caption_words))
        return {"words": np.stack(words), "tags": tags_BK}

    def loss(
        self, params: dict, batch: dict, constants: dict, key: jax.Array
    ) -> tuple[jax.Array, Metrics]:
        """Cross-entropy of words plus the weighted one of tags; and its parts.

        Words of all captions count alike. Their sum is divided by the length of a caption that is
        to be expected, not by that of the batch, so the loss of a batch is the mean of the losses
        of its parts.
        """
        keys_B = mix.example_keys(key, batch["example"])
        level_BNM = self.heard(batch, keys_B)
        words_BL, tags_BK = batch["words"], batch["tags"].astype(jnp.float32)

        def predict(level_NM, words_L, key):
            tag_1K, logits_1LV = self.listener.model.apply(
                {"params": params}, level_NM[None], words_L[None, :-1], deterministic=False,
                rngs={"dropout": jax.random.fold_in(key, mix.DROPOUT)},
            )  # fmt: skip
            return tag_1K[0], logits_1LV[0]

        tag_BK, logits_BLV = jax.vmap(predict)(level_BNM, words_BL, keys_B)
        real_BL = words_BL != self.listener.vocabulary.PAD
        nats_BL = optax.softmax_cross_entropy_with_integer_labels(logits_BLV, words_BL) * real_BL
        tag_nats_BK = optax.sigmoid_binary_cross_entropy(tag_BK, tags_BK)
        right_BL = (jnp.argmax(logits_BLV, -1) == words_BL) & real_BL
        total = jnp.mean(nats_BL.sum(-1)) / self._expected_words
        total += self.tag_weight * jnp.mean(tag_nats_BK)
        words = real_BL.sum().astype(jnp.float32)
        return total, {
            "loss/caption": (nats_BL.sum(), words),
            "loss/tags": (tag_nats_BK.sum(), jnp.float32(tag_nats_BK.size)),
            "accuracy/words": (right_BL.sum().astype(jnp.float32), words),
        }

    @functools.cached_property
    def _expected_words(self) -> float:
        """Words of a caption on average, when names are drawn evenly."""
        lengths = [len(said.split()) + 1 for _, said in self.listener.clauses]
        return self.clips_per_example * float(np.mean(lengths))

    def heard(self, batch: dict, keys_B: jax.Array) -> jax.Array:
        """Mixtures of a batch, changed at random, as the network sees them, [B, N, M].

        Args:
            batch: `clips` int16 [B, S, T'], `count` [B].
            keys_B: a key for each example.
        """
        mel = self.listener.mel
        sources_BST = mix.draw_sources(
            batch["clips"], batch["count"], keys_B, self.augment, self.samples
        )
        sources_BST = random_room(sources_BST, keys_B, self.mel_augment, mel.sample_rate_hz)
        power_BNM = mel_power(unit_rms(sources_BST.sum(1)), mel)
        power_BNM = random_microphone(power_BNM, self.listener.white_M, keys_B, self.mel_augment)
        return random_holes(network_level(power_BNM), keys_B, self.mel_augment)

    def validate(
        self, params: dict, mesh: jax.sharding.Mesh, check: Callable[[], None] = lambda: None
    ) -> tuple[dict[str, float], Exhibit]:
        """Scores of names on the fixed mixtures, and the first few of them to hear and read.

        Args:
            params: of the network, whole on every device of `mesh`.
            mesh: its devices share the mixtures.
            check: called before every batch; may raise.

        Returns:
            Precision, recall, F1 and count error of the captions by number of sources, F1 of the
            tags above 0.5, `val/f1`, the mean over the numbers of sources; and sounds and texts.
        """
        settings, scores, f1 = dict(self.validation), {}, []
        counts, number, seed, shown = (
            settings.pop(k) for k in ("sources", "mixtures", "seed", "panels")
        )
        settings["batch"] = rounded_batch(settings["batch"], mesh)
        exhibit, clauses = Exhibit(self.val.sample_rate_hz), dict(self.listener.clauses)
        names = list(clauses)
        for sources in counts:
            mixtures = list_mixtures(self.val, number, sources, seed)
            captions, tag_MK = caption_mixtures(
                self.listener, params, self.val, mixtures, mesh=mesh, check=check, **settings
            )
            true = [true_names(self.val, mixture) for mixture in mixtures]
            found = name_scores([names_said(caption, clauses) for caption in captions], true)
            tags = [{names[k] for k in np.flatnonzero(tag_K > 0)} for tag_K in tag_MK]
            found["tag_f1"] = name_scores(tags, true)["f1"]
            scores |= {f"val/{name}/{sources}_sources": value for name, value in found.items()}
            f1.append(found["f1"])
            for row in range(min(shown, number)):
                wave_T = mixture_wave(
                    self.val, mixtures[row], settings["seconds"], settings["level_db"]
                )
                # A name that training does not know has no clause.
                there = compose(clauses.get(name, name) for name in true[row])
                said = f"said: {captions[row]}\n\ntrue: {there}"
                exhibit.add_caption(f"{sources}_sources/{row}", wave_T, said)
        return scores | {"val/f1": float(np.mean(f1))}, exhibit

    def describe(self) -> dict:
        """Records, what can be said, and how much of it at once."""
        return {
            "records": self.train.info["splits"],
            "clauses": dict(self.listener.clauses),
            "max_sources": self.listener.sources,
        }


def build_captioner_task(
    *,
    size: str,
    sample_rate_hz: int,
    n_fft_samples: int,
    hop_samples: int,
    low_hz: float,
    high_hz: float,
    folder: str,
    train_split: str,
    val_split: str,
    rule: MixtureRule,
    augment: mix.Augment,
    samples: int,
    crop_s: float,
    window_s: float,
    mel_augment: MelAugment,
    tag_weight: float,
    validation: Mapping[str, object],
) -> CaptionerTask:
    """Reads the records and puts a task together; the arguments are keys of the config."""
    if not crop_s == validation["seconds"] == window_s:
        raise ValueError(
            f"data.crop_s={crop_s}, eval.seconds={validation['seconds']} and window_s={window_s} "
            "must be equal: a captioner hears windows of one length"
        )
    train = open_prepared(folder, train_split)
    val = open_prepared(folder, val_split, train.text)
    listener = build_listener(
        size=size, sample_rate_hz=sample_rate_hz, n_fft_samples=n_fft_samples,
        hop_samples=hop_samples, low_hz=low_hz, high_hz=high_hz, clauses=clauses_of(train),
        max_sources=rule.slots * rule.max_names,
    )  # fmt: skip
    return CaptionerTask(
        listener=listener, train=train, val=val, rule=rule, augment=augment,
        mel_augment=mel_augment, samples=samples, tag_weight=tag_weight, validation=validation,
    )  # fmt: skip


def clauses_of(dataset: PreparedDataset) -> dict[str, str]:
    """What is said of every name, after the caption of the first clip of it."""
    clauses: dict[str, str] = {}
    for clip in dataset.clips:
        for source in clip.sources:
            if source.name not in clauses:
                caption = dataset.text.prompts[dataset.text.ids[source.prompts["caption"][0]]]
                clauses[source.name] = clause(source.name, caption)
    return clauses

"""Mixing on the device: augmentation, levels, mixtures, and the targets of multi-level training.

Everything here is a pure function of arrays and of one key per example, folded by the example's
id and never by its row, so the result does not depend on how a batch is laid over processes.
"""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np


@dataclasses.dataclass(frozen=True)
class Augment:
    """Ranges of the random changes made to every clip before it is mixed.

    Attributes:
        level_db: level of a clip around equal loudness (RMS), uniform in +- this many dB.
        speed: playback speed, log-uniform within a factor of 1 + this (0: off).
        eq_db: standard deviation in dB of a smooth random frequency response (0: off).
    """

    level_db: float
    speed: float
    eq_db: float

    def raw_samples(self, samples: int) -> int:
        """Samples a clip must have for `samples` to remain at the highest speed."""
        return int(np.ceil(samples * (1 + self.speed))) + 1 if self.speed else samples


# What an example's key is folded with: two uses must never share a key, and `jax.random.split`
# would not help, since it equals folding with 0, 1, 2, ...
_SPEED, _LEVEL, _SIGN, _EQ, _TARGETS, ROOM, NOISE, MASK, DROPOUT = range(9)


def example_keys(key: jax.Array, example_B: jax.Array) -> jax.Array:
    """One key per example id."""
    return jax.vmap(lambda i: jax.random.fold_in(key, i))(example_B)


def draw_sources(
    clips_BST: jax.Array, count_B: jax.Array, keys_B: jax.Array, augment: Augment, samples: int
) -> jax.Array:
    """Changes speed, polarity and level of raw clips.

    Args:
        clips_BST: int16 or float32 clips, [B, S, augment.raw_samples(samples)].
        count_B: how many of the S clips of an example are mixed; the others become silence.
        keys_B: one key per example.
        augment: ranges.
        samples: T of the result.

    Returns:
        float32 [B, S, T]; a mixture of them has an RMS of about one.
    """
    if clips_BST.dtype == jnp.int16:
        clips_BST = clips_BST.astype(jnp.float32) / 32768.0
    slots = clips_BST.shape[1]

    def one(clips_ST, count, key):
        if augment.speed:
            log_range = float(np.log1p(augment.speed))
            log_speed_S = jax.random.uniform(
                jax.random.fold_in(key, _SPEED), (slots,), minval=-log_range, maxval=log_range
            )
            clips_ST = jax.vmap(_change_speed, (0, 0, None))(
                clips_ST, jnp.exp(log_speed_S), samples
            )
        clips_ST = clips_ST[:, :samples]
        rms_S = jnp.sqrt(jnp.mean(clips_ST**2, axis=-1))
        level_key = jax.random.fold_in(key, _LEVEL)
        db_S = augment.level_db * jax.random.uniform(level_key, (slots,), minval=-1.0)
        sign_S = jax.random.rademacher(jax.random.fold_in(key, _SIGN), (slots,), jnp.float32)
        gain_S = sign_S * 10 ** (db_S / 20) / jnp.maximum(rms_S, 1e-4)
        gain_S = gain_S * (jnp.arange(slots) < count) / jnp.sqrt(count)
        return clips_ST * gain_S[:, None]

    return jax.vmap(one)(clips_BST, count_B, keys_B)


def random_eq(keys_B: jax.Array, slots: int, bins: int, eq_db: float) -> jax.Array:
    """Smooth random magnitude responses, float32 [B, S, F, 1], to multiply spectra of clips with.

    A sum of six cosines over the square root of frequency, `eq_db` dB of standard deviation.
    """
    order = np.arange(6)
    axis_F = np.sqrt(np.linspace(0, 1, bins))
    basis_KF = np.cos(np.pi * order[:, None] * axis_F) / np.sqrt(len(order) / 2)

    def one(key):
        weight_SK = jax.random.normal(jax.random.fold_in(key, _EQ), (slots, len(order)))
        return 10 ** (eq_db / 20 * (weight_SK @ basis_KF.astype(np.float32)))

    return jax.vmap(one)(keys_B)[..., None]


def candidate_targets(slots: int, pairs: str) -> np.ndarray:
    """Every target that a mixture of `slots` clips may have, as membership.

    Args:
        slots: S, clips at most.
        pairs: `none`, `complementary` ((0,1), (2,3), ...: with four clips the two pairs sum to
            the mixture, and which clips meet is random since their order is), or `all`.

    Returns:
        bool [Q, S]: the S single clips first, then the two-clip mixtures. Source: OpenSep's
        multi-level targets (four singles and their two-source mixtures).
    """
    chosen = {
        "none": [],
        "complementary": [(i, i + 1) for i in range(0, slots - 1, 2)],
        "all": list(itertools.combinations(range(slots), 2)),
    }
    if pairs not in chosen:
        raise ValueError(f"mix.pairs={pairs!r} is not known; known are {', '.join(chosen)}")
    members_QS = np.zeros((slots + len(chosen[pairs]), slots), bool)
    members_QS[np.arange(slots), np.arange(slots)] = True
    for row, pair in enumerate(chosen[pairs], slots):
        members_QS[row, list(pair)] = True
    return members_QS


def choose_targets(
    members_QS: np.ndarray, count_B: jax.Array, keys_B: jax.Array, targets: int
) -> tuple[jax.Array, jax.Array]:
    """Which candidates each mixture is trained on in this step.

    A candidate is possible when all its clips are in the mixture and it is not the mixture itself.

    Args:
        members_QS: candidates of `candidate_targets`.
        count_B: clips in each mixture.
        keys_B: one key per example.
        targets: how many of the candidates, drawn without replacement; 0 takes all of them.

    Returns:
        index int32 [B, P] into the candidates, and possible bool [B, P] (False: give no weight).

    Raises:
        ValueError: if there are fewer candidates than targets.
    """
    slots = members_QS.shape[1]
    if targets > len(members_QS):
        raise ValueError(
            f"mix.targets={targets}, but {slots} clips and mix.pairs give {len(members_QS)} targets"
        )
    absent_BS = np.arange(slots)[None] >= count_B[:, None]
    outside_BQ = (members_QS[None] & absent_BS[:, None]).any(-1)
    possible_BQ = ~outside_BQ & (members_QS.sum(-1)[None] < count_B[:, None])
    if not targets:
        index_BQ = jnp.broadcast_to(jnp.arange(len(members_QS)), possible_BQ.shape)
        return index_BQ, possible_BQ

    def noise(key):
        return jax.random.uniform(jax.random.fold_in(key, _TARGETS), (len(members_QS),))

    score_BQ = jax.vmap(noise)(keys_B) + possible_BQ
    _, index_BP = jax.lax.top_k(score_BQ, targets)
    return index_BP, jnp.take_along_axis(possible_BQ, index_BP, axis=1)


def target_text_ids(
    members_QS: np.ndarray, index_BP: jax.Array, text_id_BSK: jax.Array
) -> jax.Array:
    """Text ids of each target: those of its clips, side by side; -1 where there is none.

    Args:
        members_QS: candidates of `candidate_targets`.
        index_BP: chosen candidates.
        text_id_BSK: ids of each clip's (one or more) named sources, -1 for none.

    Returns:
        int32 [B, P, M * K] with M the largest number of clips in a candidate.
    """
    most = int(members_QS.sum(-1).max())
    slot_QM = np.full((len(members_QS), most), -1, np.int32)
    for row, members_S in enumerate(members_QS):
        slots = np.flatnonzero(members_S)
        slot_QM[row, : len(slots)] = slots
    slot_BPM = jnp.asarray(slot_QM)[index_BP]
    ids_BPMK = jax.vmap(lambda ids_SK, slot_PM: ids_SK[slot_PM])(text_id_BSK, slot_BPM)
    ids_BPMK = jnp.where(slot_BPM[..., None] >= 0, ids_BPMK, -1)
    return ids_BPMK.reshape(*index_BP.shape, -1)


def gather_text(
    tokens_MC: jax.Array, start_V: jax.Array, ids: jax.Array, length: int
) -> tuple[jax.Array, jax.Array]:
    """Token states of texts out of the unpadded table, those of several ids concatenated.

    Args:
        tokens_MC: states of all texts, one after the other.
        start_V: int32 [V + 1], where each text begins.
        ids: int32 [..., K]; -1 gives padding only.
        length: L of one text (longer texts are cut).

    Returns:
        states [..., K * L, C] and mask bool [..., K * L].
    """
    start = start_V[ids]
    lengths = jnp.where(ids >= 0, start_V[ids + 1] - start, 0)
    offset_L = np.arange(length).reshape((1,) * ids.ndim + (length,))
    mask = offset_L < lengths[..., None]
    position = jnp.where(mask, start[..., None] + offset_L, 0)
    states = tokens_MC[position]
    lead = ids.shape[:-1]
    return states.reshape(*lead, -1, tokens_MC.shape[-1]), mask.reshape(*lead, -1)


def _change_speed(clip_T: jax.Array, speed: jax.Array, samples: int) -> jax.Array:
    """Reads a clip at another speed by linear interpolation, [samples]."""
    position_T = jnp.arange(samples, dtype=jnp.float32) * speed
    below_T = position_T.astype(jnp.int32)
    fraction_T = position_T - below_T
    return clip_T[below_T] * (1 - fraction_T) + clip_T[below_T + 1] * fraction_T

"""The one signal path: `analyse` mixtures, `predict_masks`, `reconcile` them, `synthesise` stems.

Validation, evaluation and inference run these four. A training step ends with `training_masks`,
whose masks the loss judges one by one.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import traverse_util

from opensep_jax.models.paper import PAPER_SIZES, PaperUNet
from opensep_jax.models.unet import SIZES, UNet
from opensep_jax.signal.stft import Stft, istft, stft


@dataclasses.dataclass(frozen=True)
class SeparatorNet:
    """A network and the spectrogram that it looks at; static under jit.

    Attributes:
        model: the U-Net; it returns mask logits.
        stft: analysis and synthesis settings.
        sample_rate_hz: rate of the waveforms that it was trained on.
        level: from the power of mixtures to what the network sees.
        training_rms: of the mixtures that it learns from.
        hears_loudness: whether the gain of a mixture changes its masks.
    """

    model: UNet | PaperUNet
    stft: Stft
    sample_rate_hz: int
    level: Callable[[jax.Array], jax.Array]
    training_rms: float
    hears_loudness: bool


def build_separator(
    *, size: str, dtype: str, remat: bool, n_fft_samples: int, hop_samples: int, sample_rate_hz: int
) -> SeparatorNet:
    """Network by the name of its size (`SIZES`, `PAPER_SIZES`) and its spectrogram."""
    if size not in {**SIZES, **PAPER_SIZES}:
        known = ", ".join((*SIZES, *PAPER_SIZES))
        raise ValueError(f"model.size={size!r} is not known; known are {known}")
    try:
        dtype = jnp.dtype(dtype)
    except TypeError as error:
        raise ValueError(f"model.dtype={dtype!r} is not known, unlike float32, bfloat16") from error
    spec = Stft(n_fft_samples, hop_samples)
    if size in PAPER_SIZES:
        paper = PaperUNet(**PAPER_SIZES[size], remat=remat, dtype=dtype)
        return SeparatorNet(paper, spec, sample_rate_hz, log_magnitude, 0.1, hears_loudness=True)
    model = UNet(**SIZES[size], remat=remat, dtype=dtype)
    return SeparatorNet(model, spec, sample_rate_hz, network_level, 1.0, hears_loudness=False)


def net_of(config: dict) -> SeparatorNet:
    """Network and spectrogram of a checkpoint, by its config."""
    model = config["model"]
    return build_separator(
        size=model["size"], dtype=model["dtype"], remat=False, **config["stft"],
        sample_rate_hz=config["sample_rate_hz"],
    )  # fmt: skip


def network_level(power_BFN: jax.Array) -> jax.Array:
    """Log power of a mixture relative to its mean: what our networks see.

    Dividing by the mean makes separation invariant to gain; the floor of -56 dB (of the mean)
    keeps digital silence finite. Source: ours, constants of the project's study.

    Args:
        power_BFN: squared magnitude, float32 >= 0.

    Returns:
        float32 [B, F, N], roughly within [-2, 4].
    """
    mean_B = jnp.mean(power_BFN, axis=(-2, -1), keepdims=True)
    return 1.5 + 0.25 * jnp.log(power_BFN / jnp.maximum(mean_B, 1e-12) + 2.5e-6)


def log_magnitude(power_BFN: jax.Array) -> jax.Array:
    """log1p of the magnitude, as the predecessor's network sees it: louder mixtures look different.

    Source: microsoft/BiModalAudioSeparation, main.py.
    """
    return jnp.log1p(jnp.sqrt(power_BFN))


def analyse(net: SeparatorNet, wave_BCT: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Spectra of mixtures, and the energy that their masks are drawn from.

    Args:
        net: network and spectrogram.
        wave_BCT: mixtures, float32, any gain, at `net.sample_rate_hz`.

    Returns:
        complex64 [B, C, F, N], and their squared magnitude summed over the channels, float32
        [B, F, N]: silent channels change nothing, and parts of a mixture's channels add up. Divided
        by the number of channels it is the power of the mixture.
    """
    spectrum_BCFN = stft(wave_BCT, net.stft)
    return spectrum_BCFN, jnp.sum(jnp.abs(spectrum_BCFN) ** 2, axis=1)


def predict_masks(
    net: SeparatorNet,
    params: dict,
    power_BFN: jax.Array,
    text_BPLC: jax.Array,
    text_mask_BPL: jax.Array,
) -> jax.Array:
    """Masks in [0, 1], float32 [B, P, F, N], of P prompts over mixtures given by their power."""
    logits_BPFN, _ = net.model.apply(
        {"params": params}, net.level(power_BFN), text_BPLC, text_mask_BPL
    )
    return jax.nn.sigmoid(logits_BPFN)


def training_masks(
    net: SeparatorNet,
    params: dict,
    power_BFN: jax.Array,
    text_BPLC: jax.Array,
    text_mask_BPL: jax.Array,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """`predict_masks` where batch normalisation goes by this batch.

    Returns:
        Masks, and what batch normalisation measured, by the path of the parameter whose next value
        it is; nothing for networks without.
    """
    (logits_BPFN, _), measured = net.model.apply(
        {"params": params}, net.level(power_BFN), text_BPLC, text_mask_BPL, mutable=["statistics"]
    )
    statistics = traverse_util.flatten_dict(measured.get("statistics", {}), sep="/")
    return jax.nn.sigmoid(logits_BPFN), statistics


def limit_masks(mask_BPFN: jax.Array) -> jax.Array:
    """Scales masks >= 0 down where together they exceed the mixture; the rest is the residual."""
    return mask_BPFN / jnp.maximum(mask_BPFN.sum(1, keepdims=True), 1.0)


def normalise_masks(mask_BPFN: jax.Array) -> jax.Array:
    """Divides masks by their sum: right only when the prompts name every source (no residual)."""
    return mask_BPFN / jnp.maximum(mask_BPFN.sum(1, keepdims=True), 1e-8)


MASK_RULES = {"limit": limit_masks, "normalise": normalise_masks}


def reconcile(mask_BPFN: jax.Array, real_BP: jax.Array, rule: str) -> jax.Array:
    """Settles what the masks of several prompts claim of the same mixture.

    Args:
        mask_BPFN: masks >= 0 of all sources that were asked for.
        real_BP: bool, False for prompts that only pad the batch: they take nothing and get nothing.
        rule: a name in `MASK_RULES`, under which the masks sum to at most one; or `none`, which
            leaves them as they are.
    """
    mask_BPFN = mask_BPFN * real_BP[..., None, None]
    return mask_BPFN if rule == "none" else MASK_RULES[rule](mask_BPFN)


def synthesise(
    net: SeparatorNet, spectrum_BCFN: jax.Array, mask_BPFN: jax.Array, samples: int
) -> jax.Array:
    """Stems, float32 [B, P, C, T], of mixtures whose channels share a mask.

    They have the mixture's phase: a stem is a filtered mixture.
    """
    return istft(mask_BPFN[:, :, None] * spectrum_BCFN[:, None], net.stft, samples)


def magnitude_products(mask_BPFN: jax.Array, power_BFN: jax.Array) -> jax.Array:
    """Inner products of the stems' magnitude spectrograms: how much they share time and frequency.

    Args:
        mask_BPFN: masks of the stems.
        power_BFN: squared magnitude of the mixture.

    Returns:
        float32 [B, P, P]; the diagonal holds the stems' energies.
    """
    stems_BPX = (mask_BPFN * power_BFN[:, None]).reshape(*mask_BPFN.shape[:2], -1)
    return jnp.einsum("bpx,bqx->bpq", stems_BPX, mask_BPFN.reshape(stems_BPX.shape))


def init_params(net: SeparatorNet, key: jax.Array, text_width: int) -> dict:
    """Random parameters of `net` for token states of `text_width` channels.

    How long mixtures and prompts are, and how many there are of them, does not matter.
    """
    level_BFN, text_BPLC = jnp.zeros((1, net.stft.bins, 1)), jnp.zeros((1, 1, 1, text_width))
    return net.model.init(key, level_BFN, text_BPLC, jnp.ones((1, 1, 1), bool))["params"]


def abstract_params(net: SeparatorNet, text_width: int) -> dict:
    """Shapes of what `init_params` returns."""
    return jax.eval_shape(lambda key: init_params(net, key, text_width), jax.random.key(0))

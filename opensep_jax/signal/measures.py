"""The separation measures by the names that tables use: four things that papers call SDR.

| name | figures | ignores | source |
|---|---|---|---|
| `si_sdr` | `si_sdr` | gain, offset | Le Roux et al., ICASSP 2019 |
| `snr` | `snr` | nothing | the same, the SNR it is contrasted with |
| `bss_sources_512` | `_sdr`, `_sir`, `_sar` | gain, filters of 512 taps | Vincent et al., 2006 |
| `bss_images_512` | `_sdr`, `_isr`, `_sir`, `_sar` | nothing in `_sdr` | Vincent et al., 2007 |
| `spectral_overlap` | `spectral_overlap` | gain | ours, see `stems.spectral_overlap` |

The SDR of images of one channel is the SNR. `improvement` names what a figure becomes when that of
the unprocessed mixture is subtracted.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from opensep_jax.signal.bss_eval import bss_eval_images, bss_eval_sources
from opensep_jax.signal.metrics import si_sdr, snr
from opensep_jax.signal.stems import spectral_overlap
from opensep_jax.signal.stft import Stft

MEASURES = ("si_sdr", "snr", "bss_sources_512", "bss_images_512", "spectral_overlap")
OVERLAP_STFT = Stft(1024, 256)


def measure(
    estimates_ST: jax.Array, references_ST: jax.Array, names: Sequence[str]
) -> dict[str, jax.Array]:
    """Figures of measures, each estimate against its reference.

    Args:
        estimates_ST: separated waveforms, float [..., S, T], on the references' scale.
        references_ST: all the sources of the mixture, float [..., S, T].
        names: of `MEASURES`.

    Returns:
        float32 [..., S] by figure: dB (limits and silence as in `metrics` and `bss_eval`), and
        the mean overlap of a stem with each of the others, in [0, 1].
    """
    found = {}
    for name in names:
        if name == "si_sdr":
            found[name] = si_sdr(estimates_ST, references_ST)
        elif name == "snr":
            found[name] = snr(estimates_ST, references_ST)
        elif name == "bss_sources_512":
            scores = bss_eval_sources(estimates_ST, references_ST)
            found |= {f"{name}_{k}": value for k, value in scores._asdict().items()}
        elif name == "bss_images_512":
            estimates_S1T, references_S1T = (
                jnp.expand_dims(x, -2) for x in (estimates_ST, references_ST)
            )
            scores = bss_eval_images(estimates_S1T, references_S1T)
            found |= {f"{name}_{k}": value for k, value in scores._asdict().items()}
        elif name == "spectral_overlap":
            overlap_SS = spectral_overlap(estimates_ST, OVERLAP_STFT)
            others = overlap_SS.shape[-1] - 1
            found[name] = (overlap_SS.sum(-1) - 1) / others
        else:
            raise ValueError(f"measure {name!r} is not known; known are {', '.join(MEASURES)}")
    return found


def improvement(figure: str) -> str | None:
    """Name of a figure's improvement over the mixture; None where there is none."""
    return f"{figure}i" if figure.endswith("_sdr") or figure in ("si_sdr", "snr") else None

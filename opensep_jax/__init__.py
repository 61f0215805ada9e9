"""opensep_jax: open-world audio separation in JAX.

Axis letters used in names throughout the package (`mix_BT`, `mask_BPFN`, ...):

    B  mixtures of a batch       S  sources (clips) of a mixture
    P  prompts (targets)         T  samples
    F  frequency bins            N  frames
    L  text tokens               C  channels, or width of an embedding
    K  text ids of one target    H  heads

Scalars carry units: `_hz`, `_s`, `_samples`, `_db`.
"""

__version__ = "0.1.0"
__all__ = ["Separation", "Separator", "__version__"]


def __getattr__(name: str) -> object:
    """Import the Python interface only when asked for: the doors start faster."""
    if name in ("Separation", "Separator"):
        from opensep_jax import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

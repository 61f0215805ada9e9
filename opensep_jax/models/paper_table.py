"""Where the tensors of the predecessor's `model_weights.pth.tar` go, by name; see `convert.py`.

The file holds its separator, the whole of LAION-CLAP beside it, and the kernels of an STFT. Of CLAP
the separator uses the text encoder (`PAPER_TEXT_PREFIX`, for `tables.ROBERTA_TABLE`) and its
pooler and projection, which are part of our network.
"""

from opensep_jax.models.convert import Rule, WeightTable, conv, layer_norm, linear
from opensep_jax.models.paper import SHARED

_ANY = r"(?:module\.)?"  # saved from within DistributedDataParallel, or not
_CLAP = _ANY + r"net_clap\.model\.model\."
_LEVELS = 7  # as published; a smaller network fills fewer

PAPER_TEXT_PREFIX = _CLAP + r"text_branch\."  # pattern of what its text encoder's names begin with


def _batch_norm(pattern: str, path: str) -> tuple[Rule, ...]:
    """Rules for a torch batch norm with its running statistics."""
    parts = {"weight": "scale", "bias": "bias", "running_mean": "mean", "running_var": "var"}
    return tuple(Rule(rf"{pattern}\.{name}", f"{path}/{ours}") for name, ours in parts.items())


def _level(level: int) -> tuple[Rule, ...]:
    """Rules for one level: it lies within those above it."""
    here = _ANY + r"net_sound\.unet_block\." + r"submodule\." * level
    down, text, skip = f"down{level}", f"text{level}", f"skip{level}"
    up = f"decoder/up{level}" if level < SHARED else f"up{level}"
    block = here + r"ca_blocks\.0\."
    return (
        *conv(here + "downconv", f"{down}/conv"),
        *_batch_norm(here + "downnorm", f"{down}/norm"),
        *conv(here + r"downresblock\.res_layers\.0\.0", f"{down}/res_conv"),
        *_batch_norm(here + r"downresblock\.res_layers\.0\.1", f"{down}/res_norm"),
        *(
            rule
            for theirs, ours in (("sa", "self"), ("ca", "cross"))
            for rule in (
                *layer_norm(rf"{block}{theirs}_block\.norm1", f"{text}/{ours}_norm"),
                *linear(rf"{block}{theirs}_block\.attn\.(qkv|q|kv)", rf"{text}/{ours}_\1"),
                *linear(rf"{block}{theirs}_block\.attn\.proj", f"{text}/{ours}_out"),
                *layer_norm(rf"{block}{theirs}_block\.norm2", f"{text}/{ours}_mlp_norm"),
                *linear(rf"{block}{theirs}_block\.mlp\.fc1", f"{text}/{ours}_mlp0"),
                *linear(rf"{block}{theirs}_block\.mlp\.fc2", f"{text}/{ours}_mlp1"),
            )
        ),
        *conv(here + r"upresblock\.res_layers\.0\.0", skip),
        *_batch_norm(here + r"upresblock\.res_layers\.0\.1", f"{up}/res_norm"),
        *conv(here + "upconv", up if level else "decoder/head"),
        *_batch_norm(here + "upnorm", f"{up}/norm"),
    )


PAPER_TABLE = WeightTable(
    name="the predecessor's separator",
    rules=(
        *_batch_norm(_ANY + r"net_sound\.bn0", "input_norm"),
        *(rule for level in range(_LEVELS) for rule in _level(level)),
        *linear(PAPER_TEXT_PREFIX + r"pooler\.dense", "pooler"),
        *linear(_CLAP + r"text_projection\.0", "projection0"),
        *linear(_CLAP + r"text_projection\.2", "projection1"),
        *linear(_ANY + r"net_clap\.fc", "fc"),
        Rule(_ANY + r"net_synthesizer\.scale", "decoder/head/scale"),
        Rule(_ANY + r"net_synthesizer\.bias", "decoder/head/offset"),
    ),
    skipped=(
        r".*\.num_batches_tracked",
        _ANY + r"net_sound\..*\.ca_blocks\.0\.norm1\.(?:weight|bias)",  # made and never used
        PAPER_TEXT_PREFIX + r"(?:embeddings|encoder)\..*",
        _CLAP + r"(?:audio_branch|audio_transform|audio_projection|text_transform)\..*",
        _CLAP + r"logit_scale_[at]",
        _ANY + r"i?stft\..*",
    ),
)

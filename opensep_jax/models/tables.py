"""Where the tensors of each published checkpoint go, by name; see `convert.py`."""

import re

from opensep_jax.models.convert import Rule, WeightTable, conv2d, layer_norm, linear

_BERT = r"(?:roberta\.|bert\.)?"
_BERT_EMBED = _BERT + r"embeddings\."
_BERT_LAYER = _BERT + r"encoder\.layer\.(\d+)\."

ROBERTA_TABLE = WeightTable(
    name="RoBERTa/BERT encoder",
    rules=(
        Rule(_BERT_EMBED + r"word_embeddings\.weight", "token/embedding"),
        Rule(_BERT_EMBED + r"position_embeddings\.weight", "position/embedding"),
        Rule(_BERT_EMBED + r"token_type_embeddings\.weight", "type/embedding"),
        *layer_norm(_BERT_EMBED + "LayerNorm", "embedding_norm"),
        *linear(_BERT_LAYER + r"attention\.self\.(query|key|value)", r"layer_\1/\2"),
        *linear(_BERT_LAYER + r"attention\.output\.dense", r"layer_\1/attention_out"),
        *layer_norm(_BERT_LAYER + r"attention\.output\.LayerNorm", r"layer_\1/attention_norm"),
        *linear(_BERT_LAYER + r"intermediate\.dense", r"layer_\1/mlp_up"),
        *linear(_BERT_LAYER + r"output\.dense", r"layer_\1/mlp_down"),
        *layer_norm(_BERT_LAYER + r"output\.LayerNorm", r"layer_\1/mlp_norm"),
    ),
    skipped=(
        _BERT_EMBED + r"(?:position_ids|token_type_ids)",
        _BERT + r"pooler\.dense\.(?:weight|bias)",
        r"lm_head\.(?:bias|(?:dense|layer_norm|decoder)\.(?:weight|bias))",
        r"cls\.seq_relationship\.(?:weight|bias)",
        r"cls\.predictions\.(?:bias|decoder\.(?:weight|bias))",
        r"cls\.predictions\.transform\.(?:dense|LayerNorm)\.(?:weight|bias|gamma|beta)",
    ),
)


def gpt2_rules(pattern: str, path: str) -> tuple[Rule, ...]:
    """Rules of GPT-2, whose kernels are [in, out]; `pattern` and `path` begin every name."""
    block, to = pattern + r"h\.(\d+)\.", path + r"layer_\1/"
    kernels = {
        r"attn\.c_attn": "attention_in",
        r"attn\.c_proj": "attention_out",
        r"mlp\.c_fc": "mlp_up",
        r"mlp\.c_proj": "mlp_down",
    }
    return (
        Rule(pattern + r"wte\.weight", path + "token/embedding"),
        Rule(pattern + r"wpe\.weight", path + "position/embedding"),
        *layer_norm(pattern + "ln_f", path + "norm"),
        *layer_norm(block + "ln_1", to + "attention_norm"),
        *layer_norm(block + "ln_2", to + "mlp_norm"),
        *(Rule(rf"{block}{name}\.weight", f"{to}{ours}/kernel") for name, ours in kernels.items()),
        *(Rule(rf"{block}{name}\.bias", f"{to}{ours}/bias") for name, ours in kernels.items()),
    )


_HTSAT = r"clap\.base\.htsat\."
_HTSAT_BLOCK = _HTSAT + r"layers\.(\d+)\.blocks\.(\d+)\."
_HTSAT_MERGE = _HTSAT + r"layers\.(\d+)\.downsample\."
_MAPPER_LAYER = r"clap_project\.transformer\.layers\.(\d+)\."

# Names of published tensors that take part beside the network, or are compared at loading.
CLAPCAP_MEL_FILTERS = "clap.base.htsat.logmel_extractor.melW"
CLAPCAP_WORDS = "gpt.transformer.wte.weight"
CLAPCAP_HEAD = "gpt.lm_head.weight"

CLAPCAP_TABLE = WeightTable(
    name="ms-CLAP captioner",
    rules=(
        *(
            Rule(rf"{_HTSAT}bn0\.{theirs}", f"{path}/encoder/band_norm/{ours}")
            for theirs, path, ours in (
                ("weight", "params", "scale"),
                ("bias", "params", "bias"),
                ("running_mean", "batch_stats", "mean"),
                ("running_var", "batch_stats", "var"),
            )
        ),
        *conv2d(_HTSAT + r"patch_embed\.proj", "params/encoder/patch"),
        *layer_norm(_HTSAT + r"patch_embed\.norm", "params/encoder/patch_norm"),
        *(
            rule
            for theirs, ours, kind in (
                ("norm1", "attention_norm", layer_norm),
                (r"attn\.qkv", "attention_in", linear),
                (r"attn\.proj", "attention_out", linear),
                ("norm2", "mlp_norm", layer_norm),
                (r"mlp\.fc1", "mlp_up", linear),
                (r"mlp\.fc2", "mlp_down", linear),
            )
            for rule in kind(_HTSAT_BLOCK + theirs, rf"params/encoder/stage_\1_block_\2/{ours}")
        ),
        Rule(
            _HTSAT_BLOCK + r"attn\.relative_position_bias_table",
            r"params/encoder/stage_\1_block_\2/position_bias",
        ),
        *layer_norm(_HTSAT_MERGE + "norm", r"params/encoder/stage_\1_merge/norm"),
        *linear(_HTSAT_MERGE + "reduction", r"params/encoder/stage_\1_merge/reduce"),
        *layer_norm(_HTSAT + "norm", "params/encoder/norm"),
        *linear(r"clap\.projection\.linear1", "params/projection/first"),
        *linear(r"clap\.projection\.linear2", "params/projection/second"),
        *layer_norm(r"clap\.projection\.layer_norm", "params/projection/norm"),
        *linear(r"clap_project\.linear", "params/mapper/draw"),
        Rule(r"clap_project\.prefix_const", "params/mapper/learned"),
        *(
            rule
            for theirs, ours, kind in (
                ("norm1", "attention_norm", layer_norm),
                (r"attn\.to_queries", "query", linear),
                (r"attn\.to_keys_values", "key_value", linear),
                (r"attn\.project", "attention_out", linear),
                ("norm2", "mlp_norm", layer_norm),
                (r"mlp\.fc1", "mlp_up", linear),
                (r"mlp\.fc2", "mlp_down", linear),
            )
            for rule in kind(_MAPPER_LAYER + theirs, rf"params/mapper/layer_\1/{ours}")
        ),
        *gpt2_rules(r"gpt\.transformer\.", "params/decoder/"),
    ),
    skipped=(
        re.escape(CLAPCAP_MEL_FILTERS),
        re.escape(CLAPCAP_HEAD),
        _HTSAT + r"spectrogram_extractor\.stft\.conv_(?:real|imag)\.weight",
        _HTSAT + r"(?:tscam_conv|head)\.(?:weight|bias)",  # classes of AudioSet
        _HTSAT + r"bn0\.num_batches_tracked",
        _HTSAT + r"layers\.\d+\.blocks\.\d+\.(?:attn_mask|attn\.relative_position_index)",
        r"gpt\.transformer\.h\.\d+\.attn\.(?:bias|masked_bias)",  # buffers of older versions
        r"clap\.caption_encoder\..*",
    ),
)

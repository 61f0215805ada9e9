"""Where the tensors of each published checkpoint go, by name; see `convert.py`."""

import re

import numpy as np

from opensep_jax.models.convert import (
    Rule,
    Transform,
    WeightTable,
    conv,
    in_out,
    layer_norm,
    linear,
)

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
        *conv(_HTSAT + r"patch_embed\.proj", "params/encoder/patch"),
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

_WHISPER = r"(?:model\.)?"
_WHISPER_LAYER = _WHISPER + r"(encoder|decoder)\.layers\.(\d+)\."

WHISPER_TABLE = WeightTable(
    name="Whisper",
    rules=(
        *conv(_WHISPER + r"encoder\.conv([12])", r"encoder/conv\1"),
        Rule(_WHISPER + r"encoder\.embed_positions\.weight", "encoder/position"),
        Rule(_WHISPER + r"decoder\.embed_tokens\.weight", "decoder/token/embedding"),
        Rule(_WHISPER + r"decoder\.embed_positions\.weight", "decoder/position/embedding"),
        *linear(_WHISPER_LAYER + r"self_attn\.([qkv])_proj", r"\1/layer_\2/attention/\3"),
        *linear(_WHISPER_LAYER + r"self_attn\.out_proj", r"\1/layer_\2/attention/out"),
        *layer_norm(_WHISPER_LAYER + r"self_attn_layer_norm", r"\1/layer_\2/attention_norm"),
        *linear(_WHISPER_LAYER + r"encoder_attn\.([qkv])_proj", r"\1/layer_\2/cross/\3"),
        *linear(_WHISPER_LAYER + r"encoder_attn\.out_proj", r"\1/layer_\2/cross/out"),
        *layer_norm(_WHISPER_LAYER + r"encoder_attn_layer_norm", r"\1/layer_\2/cross_norm"),
        *linear(_WHISPER_LAYER + r"fc1", r"\1/layer_\2/mlp/up"),
        *linear(_WHISPER_LAYER + r"fc2", r"\1/layer_\2/mlp/down"),
        *layer_norm(_WHISPER_LAYER + r"final_layer_norm", r"\1/layer_\2/mlp/norm"),
        *layer_norm(_WHISPER + r"(encoder|decoder)\.layer_norm", r"\1/norm"),
    ),
    skipped=(r"proj_out\.weight",),  # the token table again
)

_ACT_ENCODER = r"encoder\.blocks\.layers\.(\d+)\."
_ACT_DECODER = r"transformer_decoder\.layers\.(\d+)\."


def _act_attention(pattern: str, path: str) -> tuple[Rule, ...]:
    """Rules for torch's `MultiheadAttention`, whose projections are rows of one matrix."""
    return (
        Rule(rf"{pattern}\.in_proj_weight", f"{path}/fused/kernel", in_out),
        Rule(rf"{pattern}\.in_proj_bias", f"{path}/fused/bias"),
        *linear(rf"{pattern}\.out_proj", f"{path}/out"),
    )


ACT_TABLE = WeightTable(
    name="ACT",
    rules=(
        Rule(r"encoder\.bn0\.weight", "params/encoder/band_norm/scale"),
        Rule(r"encoder\.bn0\.bias", "params/encoder/band_norm/bias"),
        Rule(r"encoder\.bn0\.running_(mean|var)", r"batch_stats/encoder/band_norm/\1"),
        Rule(r"encoder\.cls_token", "params/encoder/class_token", lambda array: array[0, 0]),
        Rule(r"encoder\.pos_embedding", "params/encoder/position", lambda array: array[0]),
        *linear(r"encoder\.patch_embed\.proj", "params/encoder/patch"),
        *layer_norm(_ACT_ENCODER + r"0\.norm", r"params/encoder/layer_\1/attention_norm"),
        *linear(_ACT_ENCODER + r"0\.fn\.qkv", r"params/encoder/layer_\1/attention/fused"),
        *linear(_ACT_ENCODER + r"0\.fn\.proj\.0", r"params/encoder/layer_\1/attention/out"),
        *layer_norm(_ACT_ENCODER + r"1\.norm", r"params/encoder/layer_\1/mlp_norm"),
        *linear(_ACT_ENCODER + r"1\.fn\.mlp\.fc1", r"params/encoder/layer_\1/mlp_up"),
        *linear(_ACT_ENCODER + r"1\.fn\.mlp\.fc2", r"params/encoder/layer_\1/mlp_down"),
        *layer_norm(r"encoder\.mlp_head\.0", "params/encoder/norm"),
        *linear(r"encoder\.mlp_head\.1", "params/encoder/head"),
        *linear("encoder_linear", "params/bridge"),
        Rule(r"pos_encoder\.pe", "params/position/embedding", lambda array: array[:, 0]),
        Rule(r"word_emb\.weight", "params/token/embedding"),
        *_act_attention(_ACT_DECODER + "self_attn", r"params/layer_\1/attention"),
        *_act_attention(_ACT_DECODER + "multihead_attn", r"params/layer_\1/cross"),
        *linear(_ACT_DECODER + "linear1", r"params/layer_\1/mlp_up"),
        *linear(_ACT_DECODER + "linear2", r"params/layer_\1/mlp_down"),
        *layer_norm(_ACT_DECODER + "norm1", r"params/layer_\1/attention_norm"),
        *layer_norm(_ACT_DECODER + "norm2", r"params/layer_\1/cross_norm"),
        *layer_norm(_ACT_DECODER + "norm3", r"params/layer_\1/mlp_norm"),
        *linear("dec_fc", "params/head"),
    ),
    skipped=(r"encoder\.bn0\.num_batches_tracked",),
)

_LLAMA_LAYER = r"model\.layers\.(\d+)\."


def _stacked(pattern: str, path: str, transform: Transform = np.asarray) -> Rule:
    return Rule(pattern, f"blocks/{path}", transform, stacked=True)


LLAMA_TABLE = WeightTable(
    name="LLaMA decoder",
    rules=(
        Rule(r"model\.embed_tokens\.weight", "token/embedding"),
        Rule(r"model\.norm\.weight", "norm/scale"),
        Rule(r"lm_head\.weight", "head/embedding"),
        _stacked(_LLAMA_LAYER + r"input_layernorm\.weight", "attention_norm/scale"),
        _stacked(_LLAMA_LAYER + r"self_attn\.q_proj\.weight", "query/kernel", in_out),
        _stacked(_LLAMA_LAYER + r"self_attn\.k_proj\.weight", "key/kernel", in_out),
        _stacked(_LLAMA_LAYER + r"self_attn\.v_proj\.weight", "value/kernel", in_out),
        _stacked(_LLAMA_LAYER + r"self_attn\.o_proj\.weight", "attention_out/kernel", in_out),
        _stacked(_LLAMA_LAYER + r"post_attention_layernorm\.weight", "mlp_norm/scale"),
        _stacked(_LLAMA_LAYER + r"mlp\.(gate|up|down)_proj\.weight", r"mlp_\2/kernel", in_out),
    ),
    skipped=(_LLAMA_LAYER + r"self_attn\.rotary_emb\.inv_freq",),
)


def llama_gguf_table(heads: int, kv_heads: int) -> WeightTable:
    """Names of a GGUF file of architecture `llama`, whose rotary channels lie interleaved."""
    layer = r"blk\.(\d+)\."

    def halves(count: int) -> Transform:
        """Brings channels 2j and 2j + 1 of each head to j and j + half, as our rotation pairs."""

        def apply(weight_oi: np.ndarray) -> np.ndarray:
            split = weight_oi.reshape(count, -1, 2, weight_oi.shape[1])
            return in_out(split.swapaxes(1, 2).reshape(weight_oi.shape))

        return apply

    return WeightTable(
        name="LLaMA decoder (GGUF)",
        rules=(
            Rule(r"token_embd\.weight", "token/embedding"),
            Rule(r"output_norm\.weight", "norm/scale"),
            Rule(r"output\.weight", "head/embedding"),
            _stacked(layer + r"attn_norm\.weight", "attention_norm/scale"),
            _stacked(layer + r"attn_q\.weight", "query/kernel", halves(heads)),
            _stacked(layer + r"attn_k\.weight", "key/kernel", halves(kv_heads)),
            _stacked(layer + r"attn_v\.weight", "value/kernel", in_out),
            _stacked(layer + r"attn_output\.weight", "attention_out/kernel", in_out),
            _stacked(layer + r"ffn_norm\.weight", "mlp_norm/scale"),
            _stacked(layer + r"ffn_(gate|up|down)\.weight", r"mlp_\2/kernel", in_out),
        ),
        skipped=(r"rope_freqs\.weight",),  # part of the configuration
    )

"""Where the tensors of each published checkpoint go, by name; see `convert.py`."""

import numpy as np

from opensep_jax.models.convert import Rule, Transform, WeightTable, in_out, layer_norm, linear

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

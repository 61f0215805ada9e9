"""Where the tensors of each published checkpoint go, by name; see `convert.py`."""

from opensep_jax.models.convert import Rule, WeightTable, layer_norm, linear

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

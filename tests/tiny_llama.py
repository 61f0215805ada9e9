"""A language model small enough for offline tests: a LLaMA folder of random weights."""

import json
from pathlib import Path

import ml_dtypes
import numpy as np
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors

SPECIAL = ("<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>", "<|start_header_id|>")
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}\n\n{{ m.content }}"
    "<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant\n\n{% endif %}"
)


def tiny_config() -> dict:
    """A published `config.json` with eight key-value heads and the rotary rule of LLaMA 3.1."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "attention_bias": False,
        "bos_token_id": 256,
        "eos_token_id": [257, 258],
        "head_dim": 8,
        "hidden_act": "silu",
        "hidden_size": 64,
        "intermediate_size": 96,
        "max_position_embeddings": 512,
        "mlp_bias": False,
        "num_attention_heads": 16,
        "num_hidden_layers": 2,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-5,
        "rope_scaling": {
            "factor": 8.0,
            "high_freq_factor": 4.0,
            "low_freq_factor": 1.0,
            "original_max_position_embeddings": 64,
            "rope_type": "llama3",
        },
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "vocab_size": 264,
    }


def tiny_tensors() -> dict[str, np.ndarray]:
    """Random weights under their published names, bfloat16; large enough for varied answers."""
    c, rng = tiny_config(), np.random.default_rng(0)
    width, hidden, head = c["hidden_size"], c["intermediate_size"], c["head_dim"]
    shapes = {"model.embed_tokens": (c["vocab_size"], width), "lm_head": (c["vocab_size"], width)}
    norms = ["model.norm"]
    for i in range(c["num_hidden_layers"]):
        layer = f"model.layers.{i}"
        for name, heads in (("q", c["num_attention_heads"]), ("k", 8), ("v", 8)):
            shapes[f"{layer}.self_attn.{name}_proj"] = (heads * head, width)
        shapes[f"{layer}.self_attn.o_proj"] = (width, c["num_attention_heads"] * head)
        shapes[f"{layer}.mlp.gate_proj"] = shapes[f"{layer}.mlp.up_proj"] = (hidden, width)
        shapes[f"{layer}.mlp.down_proj"] = (width, hidden)
        norms += [f"{layer}.input_layernorm", f"{layer}.post_attention_layernorm"]
    tensors = {name: 0.3 * rng.standard_normal(shape) for name, shape in shapes.items()}
    tensors |= {name: 1 + 0.2 * rng.standard_normal(width) for name in norms}
    return {f"{name}.weight": array.astype(ml_dtypes.bfloat16) for name, array in tensors.items()}


def tiny_tokenizer() -> tokenizers.Tokenizer:
    """One token per byte, then the special ones; puts the first of these in front."""
    vocab = {byte: i for i, byte in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(SPECIAL))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|begin_of_text|> $A", special_tokens=[("<|begin_of_text|>", 256)]
    )
    return tokenizer


def write_tiny_llama(folder: Path) -> Path:
    """Writes config, two shards of weights with their index, tokenizer and chat template."""
    from safetensors.flax import save_file

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(tiny_config()))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": 257}))
    tensors = tiny_tensors()
    names = sorted(tensors)
    shards = {"model-00001-of-00002.safetensors": names[:7]}
    shards["model-00002-of-00002.safetensors"] = names[7:]
    for file, held in shards.items():
        save_file({name: tensors[name] for name in held}, folder / file)
    weight_map = {name: file for file, held in shards.items() for name in held}
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    tiny_tokenizer().save(str(folder / "tokenizer.json"))
    settings = {"bos_token": {"content": "<|begin_of_text|>"}, "chat_template": TEMPLATE}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder

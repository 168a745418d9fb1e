"""Writes tests/data/models/<name>/ (tiny random models) and tests/data/expected/logits_<name>.safetensors."""

import json
import shutil
import zlib

import torch

from common import EXPECTED, MODELS, load_model, logits_of, save_json, save_tensors

LLAMA = dict(
    architectures=["LlamaForCausalLM"],
    model_type="llama",
    hidden_act="silu",
    hidden_size=32,
    intermediate_size=53,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    vocab_size=61,
    max_position_embeddings=128,
    rms_norm_eps=1e-5,
    rope_theta=10000.0,
    rope_scaling=None,
    tie_word_embeddings=False,
    bos_token_id=1,
    eos_token_id=2,
    torch_dtype="float32",
)
QWEN2 = dict(
    architectures=["Qwen2ForCausalLM"],
    model_type="qwen2",
    hidden_act="silu",
    hidden_size=40,
    intermediate_size=45,
    num_hidden_layers=2,
    num_attention_heads=5,
    num_key_value_heads=1,
    vocab_size=71,
    max_position_embeddings=96,
    rms_norm_eps=1e-6,
    rope_theta=1000000.0,
    torch_dtype="float32",
)
MISTRAL = dict(LLAMA, architectures=["MistralForCausalLM"], model_type="mistral", vocab_size=67)
# Wavelengths of theta 5e5 and head_dim 16 are 6.3, 32, 167...: kept, blended and divided for 64 positions.
LLAMA3_ROPE = dict(
    rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=64
)


def without(config, *keys):
    return {k: v for k, v in config.items() if k not in keys}


def new_spelling(config, **rope):
    """Hugging Face transformers 5: `dtype` and `rope_parameters`, no `rope_theta`, no `rope_scaling`."""
    kept = without(config, "torch_dtype", "rope_theta", "rope_scaling")
    return dict(kept, dtype="float32", rope_parameters=rope, transformers_version="5.0.0")


CONFIGS = {
    "llama2": without(dict(LLAMA, num_attention_heads=4), "num_key_value_heads"),
    "llama3": dict(
        LLAMA,
        hidden_size=48,
        num_attention_heads=3,
        num_key_value_heads=1,
        intermediate_size=29,
        vocab_size=67,
        rope_theta=500000.0,
        rope_scaling=LLAMA3_ROPE,
        eos_token_id=[57, 59],
    ),
    "llama32": dict(
        LLAMA,
        num_attention_heads=2,
        num_key_value_heads=2,
        intermediate_size=41,
        vocab_size=97,
        rope_theta=500000.0,
        rope_scaling=dict(LLAMA3_ROPE, factor=32.0),
        tie_word_embeddings=True,
    ),
    "llama_headdim": dict(LLAMA, hidden_size=36, num_attention_heads=3, num_key_value_heads=1, head_dim=20, rms_norm_eps=0.01),
    "llama_bias": dict(LLAMA, attention_bias=True, mlp_bias=True),
    "llama_linear": dict(LLAMA, rope_scaling={"type": "linear", "factor": 2.5}),
    "llama_dynamic": dict(LLAMA, max_position_embeddings=24, rope_scaling={"type": "dynamic", "factor": 3.0}),
    "llama_yarn": dict(
        LLAMA,
        hidden_size=32,
        num_attention_heads=2,
        num_key_value_heads=1,
        rope_theta=500.0,
        rope_scaling=dict(
            rope_type="yarn", factor=4.0, original_max_position_embeddings=64, beta_fast=2.0, beta_slow=0.5
        ),
    ),
    "qwen2": dict(QWEN2, use_sliding_window=False, sliding_window=5, max_window_layers=0),
    "qwen2_sliding": dict(QWEN2, use_sliding_window=True, sliding_window=5, max_window_layers=1),
    "qwen2_yarn": dict(
        QWEN2,
        hidden_size=32,
        num_attention_heads=1,
        rope_theta=100.0,
        use_sliding_window=False,
        rope_scaling={"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 24},
    ),
    "mistral": dict(without(MISTRAL, "rope_scaling"), sliding_window=7),
    "mistral_nemo": new_spelling(
        dict(MISTRAL, head_dim=10, sliding_window=None), rope_theta=1000000.0, rope_type="default"
    ),
    "mqa": dict(LLAMA, num_attention_heads=4, num_key_value_heads=1),
    "bf16": dict(LLAMA, torch_dtype="bfloat16"),
    "f16": dict(LLAMA, torch_dtype="float16"),
    "sharded": dict(LLAMA, intermediate_size=59),
    "new_spelling": new_spelling(LLAMA, rope_theta=500000.0, rope_type="default"),
}
LONG = {"llama3": 100, "llama32": 100, "llama_linear": 60, "llama_dynamic": 57, "llama_yarn": 80, "qwen2_yarn": 60}
STORED = {"bf16": torch.bfloat16, "f16": torch.float16}


def layer_shapes(config, prefix):
    hidden, inter = config["hidden_size"], config["intermediate_size"]
    heads = config["num_attention_heads"]
    kv_heads = config.get("num_key_value_heads", heads)
    head_dim = config.get("head_dim", hidden // heads)
    qkv_bias = config.get("attention_bias", config["model_type"] == "qwen2")
    linears = {
        "self_attn.q_proj": (heads * head_dim, hidden, qkv_bias),
        "self_attn.k_proj": (kv_heads * head_dim, hidden, qkv_bias),
        "self_attn.v_proj": (kv_heads * head_dim, hidden, qkv_bias),
        "self_attn.o_proj": (hidden, heads * head_dim, config.get("attention_bias", False)),
        "mlp.gate_proj": (inter, hidden, config.get("mlp_bias", False)),
        "mlp.up_proj": (inter, hidden, config.get("mlp_bias", False)),
        "mlp.down_proj": (hidden, inter, config.get("mlp_bias", False)),
    }
    shapes = {f"{prefix}input_layernorm.weight": (hidden,), f"{prefix}post_attention_layernorm.weight": (hidden,)}
    for name, (rows, cols, bias) in linears.items():
        shapes[f"{prefix}{name}.weight"] = (rows, cols)
        if bias:
            shapes[f"{prefix}{name}.bias"] = (rows,)
    return shapes


def shapes_of(config):
    shapes = {"model.embed_tokens.weight": (config["vocab_size"], config["hidden_size"])}
    for i in range(config["num_hidden_layers"]):
        shapes.update(layer_shapes(config, f"model.layers.{i}."))
    shapes["model.norm.weight"] = (config["hidden_size"],)
    if not config.get("tie_word_embeddings", False):
        shapes["lm_head.weight"] = (config["vocab_size"], config["hidden_size"])
    return shapes


def random_weights(name, config):
    """Standard deviation 0.3 makes attention far from uniform; norms are near, not at, one."""
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    weights = {}
    for key, shape in shapes_of(config).items():
        value = torch.randn(shape, generator=generator)
        scaled = 1.0 + 0.2 * value if "norm" in key else (1.0 if "embed" in key else 0.3) * value
        weights[key] = scaled.to(STORED.get(name, torch.float32))
    return weights


def random_ids(name, batch, length, vocab):
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()) + length)
    return torch.randint(0, vocab, (batch, length), generator=generator, dtype=torch.int32)


def write_sharded(folder, weights, count=3):
    names = sorted(weights)
    index = {"metadata": {"total_size": sum(w.nbytes for w in weights.values())}, "weight_map": {}}
    for shard in range(count):
        file = f"model-{shard + 1:05d}-of-{count:05d}.safetensors"
        part = {n: weights[n] for n in names[shard::count]}
        save_tensors(folder / file, part)
        index["weight_map"].update({n: file for n in part})
    index["weight_map"] = dict(sorted(index["weight_map"].items()))
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")


def write_model(name, config):
    folder = MODELS / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    weights = random_weights(name, config)
    if name == "sharded":
        write_sharded(folder, weights)
    else:
        save_tensors(folder / "model.safetensors", weights)
    return folder


def write_logits(name, folder, ids, suffix=""):
    logits = logits_of(load_model(folder), ids)
    exact = logits_of(load_model(folder, torch.float64), ids)
    error = ((logits - exact).abs().max() / (exact.max() - exact.min())).item()
    if error > 2e-5:
        raise ValueError(f"{name}: f32 and f64 differ by {error:g} of the range: too chaotic to be a reference")
    print(f"{name}{suffix}: range {exact.max() - exact.min():.3f}, f32 against f64 {error:.2g} of the range")
    save_tensors(EXPECTED / f"logits_{name}{suffix}.safetensors", {"ids": ids, "logits": logits}, __file__)


def main():
    save_json(MODELS / "provenance.json", {"models": sorted(CONFIGS)}, __file__)
    for name, config in CONFIGS.items():
        folder = write_model(name, config)
        write_logits(name, folder, random_ids(name, 2, 19, config["vocab_size"]))
        if name in LONG:
            write_logits(name, folder, random_ids(name, 1, LONG[name], config["vocab_size"]), "_long")


if __name__ == "__main__":
    main()

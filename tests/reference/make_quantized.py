"""Writes OUT/<name>: folders as bitsandbytes and compressed-tensors quantize the trained model of ../shared, for `ridge` to read.

  make_quantized.py OUT
  make_quantized.py            writes tests/data/models/quantized/<name> and tests/data/expected/quantized/<name>.safetensors, of
                               a tiny random model
Needs bitsandbytes and compressed-tensors beside what README.md lists. The feed-forward width is padded with zeros from 172 to 192,
which changes no output, so that groups of 32 and 64 divide it. OUT/dense is that model in f32, OUT/dense_bf16 in bf16. Logits of the
ids in OUT/ids.json are in OUT/<name>.safetensors: transformers' own, of weights that those libraries have dequantized to f32 (as they
are, bitsandbytes multiplies in bf16 on a CPU, and LLM.int8() quantizes activations too).
"""

import json
import pathlib
import sys
import tempfile
from importlib.metadata import version

import torch
import transformers
from compressed_tensors.compressors import ModelCompressor
from compressed_tensors.quantization import QuantizationConfig, apply_quantization_config
from compressed_tensors.quantization.utils import calculate_qparams

from common import EXPECTED, MODELS, STORIES, load_model, logits_of, save_json, save_tensors
from make_models import LLAMA, random_ids, shapes_of

bitsandbytes_version, compressed_version = version("bitsandbytes"), version("compressed-tensors")
WIDTH = 192
BLOCK = 128
IDS = torch.randint(0, 512, (2, 40), generator=torch.Generator().manual_seed(5), dtype=torch.int32)


def dense(out, name, dtype):
    model = load_model(STORIES)
    model.config.intermediate_size = WIDTH
    for layer in model.model.layers:
        for key, pad in (("gate_proj", (0, 0, 0, WIDTH - 172)), ("up_proj", (0, 0, 0, WIDTH - 172)), ("down_proj", (0, WIDTH - 172))):
            linear = getattr(layer.mlp, key)
            linear.weight = torch.nn.Parameter(torch.nn.functional.pad(linear.weight, pad))
            linear.out_features, linear.in_features = linear.weight.shape
    model.to(dtype).save_pretrained(out / name)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (out / name / file).write_bytes((STORIES / file).read_bytes())


BITSANDBYTES = {
    "nf4": dict(load_in_4bit=True, bnb_4bit_quant_type="nf4"),
    "nf4-dq": dict(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True),
    "fp4": dict(load_in_4bit=True, bnb_4bit_quant_type="fp4"),
    "fp4-dq": dict(load_in_4bit=True, bnb_4bit_quant_type="fp4", bnb_4bit_use_double_quant=True),
    "nf4-as-bf16": dict(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_quant_storage=torch.bfloat16),
    "nf4-as-f32": dict(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_quant_storage=torch.float32),
    "llm-int8": dict(load_in_8bit=True),
}


def bitsandbytes(folder, options, base):
    config = transformers.BitsAndBytesConfig(**options)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        base, dtype=torch.float32, quantization_config=config, device_map="cpu", attn_implementation="eager"
    )
    model.save_pretrained(folder)


def weights(bits, strategy, group=None, symmetric=True, kind="int", block=None):
    return {
        "num_bits": bits,
        "type": kind,
        "symmetric": symmetric,
        "strategy": strategy,
        "group_size": group,
        "block_structure": block,
    }


COMPRESSED = {
    "int4-g32": ("pack-quantized", weights(4, "group", 32)),
    "int4-g64": ("pack-quantized", weights(4, "group", 64)),
    "int4-g32-zp": ("pack-quantized", weights(4, "group", 32, symmetric=False)),
    "int4-g64-zp": ("pack-quantized", weights(4, "group", 64, symmetric=False)),
    "int4-channel": ("pack-quantized", weights(4, "channel")),
    "int4-channel-zp": ("pack-quantized", weights(4, "channel", symmetric=False)),
    "int8-packed": ("pack-quantized", weights(8, "channel")),
    "int8": ("int-quantized", weights(8, "channel")),
    "int8-tensor": ("int-quantized", weights(8, "tensor")),
    "fp8": ("float-quantized", weights(8, "channel", kind="float")),
    "fp8-tensor": ("float-quantized", weights(8, "tensor", kind="float")),
    "fp8-block": ("float-quantized", weights(8, "block", kind="float", block=[BLOCK, BLOCK])),
}


def extremes(w, args):
    """Least and greatest of what shares a scale, in the shape of the scales."""
    if args.strategy == "tensor":
        return w.min().reshape(1), w.max().reshape(1)
    if args.strategy == "block":
        rows, cols = -(-w.shape[0] // BLOCK), -(-w.shape[1] // BLOCK)
        padded = torch.nn.functional.pad(w, (0, cols * BLOCK - w.shape[1], 0, rows * BLOCK - w.shape[0]))
        tiles = padded.reshape(rows, BLOCK, cols, BLOCK)
        return tiles.amin((1, 3)), tiles.amax((1, 3))
    groups = w.unflatten(1, (-1, args.group_size if args.strategy == "group" else w.shape[1]))
    return groups.amin(-1), groups.amax(-1)


def compressed_tensors(folder, form, args, base):
    model = load_model(base)
    config = QuantizationConfig(
        config_groups={"group_0": {"targets": ["Linear"], "weights": args}},
        ignore=["lm_head"],
        format=form,
        quantization_status="initialized",
    )
    apply_quantization_config(model, config)
    for module in model.modules():
        scheme = getattr(module, "quantization_scheme", None)
        if scheme is None or scheme.weights is None:
            continue
        scale, zero = calculate_qparams(*extremes(module.weight.data, scheme.weights), scheme.weights)
        module.weight_scale.data.copy_(scale.reshape(module.weight_scale.shape))
        if hasattr(module, "weight_zero_point"):
            module.weight_zero_point.data.copy_(zero.reshape(module.weight_zero_point.shape))
    compressor = ModelCompressor.from_pretrained_model(model, quantization_format=form)
    compressor.compress_model(model)
    model.save_pretrained(folder)
    compressor.update_config(folder)


def logits_of_folder(folder, ids=IDS):
    """transformers 5.23 cannot load packed zero points of compressed-tensors 0.20, unless it dequantizes them at once."""
    config = json.loads((folder / "config.json").read_text()).get("quantization_config", {})
    if config.get("quant_method") != "compressed-tensors":
        model = load_model(folder)
        return logits_of(model.dequantize().float().eval() if config else model, ids)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=torch.float32,
        attn_implementation="eager",
        quantization_config=transformers.CompressedTensorsConfig(dequantize=True),
    )
    return logits_of(model.eval(), ids)


TINY = dict(LLAMA, hidden_size=64, intermediate_size=192, num_hidden_layers=1)  # on a CPU bitsandbytes 0.50.2 is wrong where 64 does not divide a row
TESTED = ("nf4-dq", "fp4", "llm-int8", "int4-g32-zp", "int4-channel", "int8", "fp8-block")


def write_tests():
    with tempfile.TemporaryDirectory() as base:
        base = pathlib.Path(base)
        generator = torch.Generator().manual_seed(11)
        tensors = {k: (torch.randn(s, generator=generator) * (0.2 if len(s) == 2 else 0.1) + (len(s) == 1)) for k, s in shapes_of(TINY).items()}
        save_tensors(base / "model.safetensors", tensors)
        (base / "config.json").write_text(json.dumps(TINY, indent=2) + "\n")
        ids = random_ids("quantized", 2, 19, TINY["vocab_size"])
        for name in TESTED:
            folder = MODELS / "quantized" / name
            write_folder(folder, name, base)
            save_tensors(EXPECTED / "quantized" / f"{name}.safetensors", {"ids": ids, "logits": logits_of_folder(folder, ids)}, __file__)
            for file in folder.iterdir():
                if file.name not in ("config.json", "model.safetensors"):
                    file.unlink()
                else:
                    file.chmod(0o644)
    save_json(MODELS / "quantized" / "provenance.json", {"bitsandbytes": bitsandbytes_version, "compressed_tensors": compressed_version}, __file__)


def write_folder(folder, name, base):
    if name in BITSANDBYTES:
        bitsandbytes(folder, BITSANDBYTES[name], base)
    else:
        compressed_tensors(folder, *COMPRESSED[name], base)


def main():
    if len(sys.argv) == 1:
        write_tests()
        return
    out = pathlib.Path(sys.argv[1])
    out.mkdir(parents=True, exist_ok=True)
    dense(out, "dense", torch.float32)
    dense(out, "dense_bf16", torch.bfloat16)
    (out / "ids.json").write_text(json.dumps(IDS.tolist()))
    for name in (*BITSANDBYTES, *COMPRESSED):
        write_folder(out / name, name, out / "dense")
    for name in ("dense", *BITSANDBYTES, *COMPRESSED):
        save_tensors(out / f"{name}.safetensors", {"logits": logits_of_folder(out / name)}, __file__)


if __name__ == "__main__":
    main()

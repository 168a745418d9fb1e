"""Loads what ridge wrote in transformers and peft, and compares logits with `ridge logits`, in f32.

Prints the greatest difference as a share of the logits' range; fails above 1e-4.
"""
import argparse
import json
import subprocess
import tempfile
from pathlib import Path

import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer


def ridge_logits(args, ids, adapter):
    with tempfile.TemporaryDirectory() as folder:
        ids_file, out = Path(folder) / "ids.json", Path(folder) / "logits.safetensors"
        ids_file.write_text(json.dumps(ids))
        command = [args.ridge, "logits", "--model", args.model, "--ids", str(ids_file), "--out", str(out),
                   "--device", args.device]
        subprocess.run(command + (["--adapter", adapter] if adapter else []), check=True)
        return load_file(out)["logits"]


def compare(name, model, args, ids, adapter):
    with torch.no_grad():
        want = model(torch.tensor(ids)).logits.float()
    got = ridge_logits(args, ids, adapter)
    share = ((got - want).abs().max() / (want.max() - want.min())).item()
    print(f"{name}: greatest difference of {tuple(want.shape)} logits: {share:.2e} of their range")
    return share


def main():
    parser = argparse.ArgumentParser()
    for name in ("ridge", "model", "adapter", "text"):
        parser.add_argument("--" + name, required=True)
    parser.add_argument("--device", default="cpu", help="of ridge; PyTorch runs on the CPU")
    args = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    tokens = tokenizer(Path(args.text).read_text()[:8000], add_special_tokens=False)["input_ids"]
    ids = [tokens[:256], tokens[256:512]]
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32).eval()
    shares = [compare("transformers", model, args, ids, None)]
    shares.append(compare("peft", PeftModel.from_pretrained(model, args.adapter).eval(), args, ids, args.adapter))
    if not max(shares) < 1e-4:
        raise SystemExit("logits differ by more than 1e-4 of their range")


if __name__ == "__main__":
    main()

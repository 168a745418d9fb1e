"""Writes PEFT adapters (models/adapters/<name>/ on llama3, models/stories260k_adapter/) and their expected logits."""

import json
import shutil
import zlib

import peft
import torch

from common import EXPECTED, MODELS, STORIES, load_model, logits_of, save_json, save_tensors
from make_models import random_ids
from make_stories import encode

BASE = MODELS / "llama3"
STORIES_ADAPTER = MODELS / "stories260k_adapter"
LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
ADAPTERS = {
    "plain": dict(r=4, lora_alpha=6, target_modules=["q_proj", "v_proj"]),
    "rslora": dict(r=6, lora_alpha=5, use_rslora=True, target_modules=["k_proj", "o_proj", "down_proj"]),
    "patterns": dict(
        r=3,
        lora_alpha=4,
        target_modules=LINEARS,
        rank_pattern={"q_proj": 5, "layers.1.mlp.down_proj": 7},
        alpha_pattern={"v_proj": 9, r"layers\.\d+\.mlp\.(gate|up)_proj": 2},
    ),
    "regex": dict(r=2, lora_alpha=8, target_modules=r".*\.layers\.1\.(self_attn\.(q|o)_proj|mlp\.up_proj)"),
    "all_linear": dict(r=4, lora_alpha=8, target_modules="all-linear"),
    "layers": dict(r=3, lora_alpha=3, target_modules=LINEARS, layers_to_transform=[1], exclude_modules=["up_proj"]),
}


def add_adapter(base, name, std, **settings):
    """A LoRA whose B is random too, so that the adapter changes the logits."""
    torch.manual_seed(zlib.crc32(name.encode()))
    model = peft.get_peft_model(base, peft.LoraConfig(lora_dropout=0.0, task_type="CAUSAL_LM", **settings))
    for key, parameter in model.named_parameters():
        if "lora_B" in key:
            torch.nn.init.normal_(parameter, std=std)
    return model.eval()


def save_adapter(model, folder, base_name, targets):
    """Saved by peft; targets are then put in the order, or the spelling, that was asked for."""
    shutil.rmtree(folder, ignore_errors=True)
    model.peft_config["default"].base_model_name_or_path = base_name
    model.save_pretrained(str(folder))
    (folder / "README.md").unlink(missing_ok=True)
    (folder / "adapter_model.safetensors").chmod(0o644)
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text())
    config["target_modules"] = targets
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def write_logits(base, folder, ids, file):
    """What peft computes from the saved folder, with the adapter apart and merged."""
    before = logits_of(load_model(base), ids)
    model = peft.PeftModel.from_pretrained(load_model(base), folder).eval()
    logits = logits_of(model, ids)
    merged = logits_of(model.merge_and_unload(), ids)
    print(f"{file}: moved {(logits - before).abs().max():.3f}, merged differs {(logits - merged).abs().max():.2g}")
    save_tensors(EXPECTED / file, {"ids": ids.int(), "logits": logits, "logits_merged": merged}, __file__)


def main():
    shutil.rmtree(MODELS / "adapters", ignore_errors=True)
    ids = random_ids("adapters", 2, 19, 67)
    for name, settings in ADAPTERS.items():
        model = add_adapter(load_model(BASE), name, 0.2, **settings)
        folder = MODELS / "adapters" / name
        save_adapter(model, folder, "llama3", settings["target_modules"])
        write_logits(BASE, folder, ids, f"logits_adapter_{name}.safetensors")
    save_json(MODELS / "adapters" / "provenance.json", {"adapters": sorted(ADAPTERS), "base": "llama3"}, __file__)

    model = add_adapter(load_model(STORIES), "stories260k", 0.05, r=8, lora_alpha=16, target_modules=LINEARS)
    save_adapter(model, STORIES_ADAPTER, "stories260k", LINEARS)
    ids = torch.tensor([encode("Once upon a time there was a boy.", True)])
    write_logits(STORIES, STORIES_ADAPTER, ids, "logits_adapter_stories260k.safetensors")


if __name__ == "__main__":
    main()

"""What the reference scripts share: paths, provenance, loading and running models in f32 on a CPU."""

import datetime
import json
import os
import pathlib
import platform
import re

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # read when transformers is imported

import peft
import safetensors.torch
import tokenizers
import torch
import transformers

ROOT = pathlib.Path(__file__).resolve().parents[2]
MODELS = ROOT / "tests" / "data" / "models"
EXPECTED = ROOT / "tests" / "data" / "expected"
SHARED = ROOT.parent / "shared"
STORIES = SHARED / "models" / "stories260k"
WIKITEXT = SHARED / "data" / "wikitext-2"

torch.set_num_threads(2)
torch.use_deterministic_algorithms(True)
transformers.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()


def provenance(script):
    """Who made a file: script, library versions, date. RIDGE_REFERENCE_DATE pins the date."""
    return {
        "script": f"tests/reference/{pathlib.Path(script).name}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "peft": peft.__version__,
        "tokenizers": tokenizers.__version__,
        "date": os.environ.get("RIDGE_REFERENCE_DATE", datetime.date.today().isoformat()),
        "precision": "f32, CPU, eager attention",
    }


def save_tensors(path, tensors, script=None):
    """One metadata key, since safetensors writes several in a random order; None: a model's own file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    metadata = {"provenance": json.dumps(provenance(script))} if script else {"format": "pt"}
    safetensors.torch.save_file({k: v.contiguous() for k, v in tensors.items()}, str(path), metadata=metadata)
    path.chmod(0o644)


def save_json(path, value, script):
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"provenance": provenance(script), **value}, indent=1)
    flat = re.sub(r"\[[-+.\deE,\s]*\]", lambda m: re.sub(r"\s+", " ", m.group()), text)  # a list of numbers a line
    path.write_text(flat + "\n")


def load_model(folder, dtype=torch.float32):
    """A Hugging Face folder as a model in `dtype`; raises where a tensor is missing or left over."""
    model, info = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype, attn_implementation="eager", output_loading_info=True
    )
    wrong = {k: v for k, v in info.items() if v}
    if wrong:
        raise ValueError(f"{folder}: {wrong}")
    return model.eval()


def logits_of(model, ids):
    """f32 [B, T, V] for ids [B, T], no cache."""
    with torch.no_grad():
        return model(input_ids=ids.long(), use_cache=False).logits.float()

"""Writes expected/recipe.json: what the quickstart's LoRA fine-tune reaches in PyTorch (minutes on 2 cores)."""

import time

import peft
import torch

from common import EXPECTED, STORIES, WIKITEXT, load_model, save_json
from make_adapters import LINEARS
from make_stories import encode, perplexity_windows
from training import train, valid_ids

COSINE = {"name": "cosine", "warmup_steps": 10}
OPTIM = {"name": "adamw", "lr": 1e-2, "betas": [0.9, 0.95], "eps": 1e-8, "weight_decay": 0.0, "clip_norm": 1.0}
RUN = {"sequence_length": 128, "global_batch": 8, "micro_batch": 8, "steps": 200, "optim": dict(OPTIM, schedule=COSINE)}
RUNS = {
    "quickstart": {"order": "shuffled", **RUN},
    "quickstart_sequential": {"order": "sequential", **RUN},
    "longer_sequences": {"order": "shuffled", **RUN, "sequence_length": 256},
}


def execute(run, stream, test, seed):
    torch.manual_seed(seed)
    config = peft.LoraConfig(r=8, lora_alpha=16, lora_dropout=0.0, target_modules=LINEARS, task_type="CAUSAL_LM")
    model = peft.get_peft_model(load_model(STORIES), config)
    model.set_attn_implementation("sdpa")
    batch, count = run["global_batch"], (len(stream) - 1) // run["sequence_length"]
    order = torch.randperm(count).tolist() if run["order"] == "shuffled" else list(range(count))
    start = time.perf_counter()
    out, _ = train(model, stream, run, lambda step: [order[(step * batch + i) % count] for i in range(batch)])
    seconds = time.perf_counter() - start
    result = perplexity_windows(model, test, 512)
    print(run["order"], run["sequence_length"], result, f"{seconds:.1f} s", flush=True)
    return {"seed": seed, "losses_every_20": out["losses"][::20], "last_loss": out["losses"][-1], **result}


def main():
    torch.use_deterministic_algorithms(False)
    stream = valid_ids()
    test = encode((WIKITEXT / "test.txt").read_bytes().decode(), False)[:65536]
    value = {
        "note": "LoRA rank 8, alpha 16, all seven linears, WikiText-2 valid; windows protocol, window 512, 65536 ids of test; sdpa attention",
        "base": perplexity_windows(load_model(STORIES), test, 512),
        "runs": {n: {**run, "results": [execute(run, stream, test, s) for s in (0, 1)]} for n, run in RUNS.items()},
    }
    save_json(EXPECTED / "recipe.json", value, __file__)


if __name__ == "__main__":
    main()

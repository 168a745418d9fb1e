"""A plain PyTorch training loop with the conventions of the run config, for reference values."""

import peft
import torch
import transformers

from common import WIKITEXT, load_model
from make_stories import encode

ADAMW = {"name": "adamw", "lr": 1e-3, "betas": [0.9, 0.95], "eps": 1e-8, "weight_decay": 0.01, "decay": "matrices"}


def valid_ids():
    return encode((WIKITEXT / "valid.txt").read_bytes().decode(), False)


def short_name(name):
    """Parameter names as the files have them: PEFT's adapter name is left out."""
    return name.replace(".default", "")


def trained(model):
    return {short_name(n): p for n, p in model.named_parameters() if p.requires_grad}


def groups(params, optim):
    """Decay on parameters of two or more dims only."""
    matrices = [p for p in params.values() if p.ndim >= 2]
    others = [p for p in params.values() if p.ndim < 2]
    return [{"params": matrices, "weight_decay": optim["weight_decay"]}, {"params": others, "weight_decay": 0.0}]


def make_optimizer(params, optim):
    if optim["name"] == "sgd":
        return torch.optim.SGD(groups(params, optim), lr=optim["lr"], momentum=optim["momentum"])
    return torch.optim.AdamW(groups(params, optim), lr=optim["lr"], betas=optim["betas"], eps=optim["eps"])


def make_schedule(optimizer, schedule, steps):
    specific = {"num_decay_steps": schedule["decay_steps"]} if "decay_steps" in schedule else {}
    return transformers.get_scheduler(
        schedule["name"], optimizer, schedule.get("warmup_steps", 0), steps, scheduler_specific_kwargs=specific
    )


def sample(stream, k, length):
    """Sample k: [length + 1] ids, inputs the first `length`, targets the last."""
    return torch.tensor(stream[k * length : (k + 1) * length + 1])


def sum_loss(model, rows):
    """Sum over all targets, not the mean; rows [B, T + 1]."""
    logits = model(input_ids=rows[:, :-1], use_cache=False).logits
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten(), reduction="sum")


def accumulate(model, rows, micro_batch):
    """Leaves gradients of the mean over all targets of the global batch; returns that mean."""
    targets, total = rows[:, 1:].numel(), 0.0
    for part in rows.split(micro_batch):
        loss = sum_loss(model, part) / targets
        loss.backward()
        total += loss.item()
    return total


def train(model, stream, run, sample_of_step=None):
    """Runs `run["steps"]` steps; returns losses, norms before clipping, lr used, and norms of step 0's gradients."""
    model.train()
    params, batch, length = trained(model), run["global_batch"], run["sequence_length"]
    optimizer = make_optimizer(params, run["optim"])
    schedule = make_schedule(optimizer, run["optim"]["schedule"], run["steps"])
    out = {"losses": [], "grad_norms": [], "lr": []}
    for step in range(run["steps"]):
        picks = sample_of_step(step) if sample_of_step else range(step * batch, (step + 1) * batch)
        rows = torch.stack([sample(stream, k, length) for k in picks])
        optimizer.zero_grad()
        out["losses"].append(accumulate(model, rows, run["micro_batch"]))
        if step == 0:
            first = {n: p.grad.clone() for n, p in params.items()}
        out["lr"].append(schedule.get_last_lr()[0])
        out["grad_norms"].append(
            torch.nn.utils.clip_grad_norm_(params.values(), run["optim"]["clip_norm"], error_if_nonfinite=True).item()
        )
        optimizer.step()
        schedule.step()
    model.eval()
    return out, first


def norms(tensors):
    return {n: t.detach().double().norm().item() for n, t in tensors.items()}


def difference(a, b):
    """Largest relative difference of two lists."""
    return max(abs(x - y) / max(abs(y), 1e-300) for x, y in zip(a, b, strict=True))


def with_adapter(base, folder):
    return peft.PeftModel.from_pretrained(load_model(base), folder, is_trainable=True)



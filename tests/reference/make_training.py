"""Writes expected/training.json and expected/grads_*.safetensors; make_adapters.py must have run."""

import copy

import torch
import transformers

from common import EXPECTED, MODELS, STORIES, WIKITEXT, load_model, save_json, save_tensors
from make_adapters import BASE, STORIES_ADAPTER
from make_stories import describe_ids, encode, perplexity_windows
from training import ADAMW, difference, make_schedule, norms, train, trained, valid_ids, with_adapter

LENGTH, BATCH, STEPS = 17, 4, 20  # of the tiny models' runs
NOTES = {
    "data": "sample k of the stream is ids [kT, kT+T]; step s takes samples sB .. sB+B-1; loss is the mean over all targets",
    "valid": "wikitext-2/valid.txt encoded in one go without special ids",
    "clip": "torch.nn.utils.clip_grad_norm_: g *= min(1, clip_norm / (norm + 1e-6)); grad_norms are before clipping",
    "adamw": "torch.optim.AdamW: p -= lr*wd*p; then p -= lr/(1-b1^t) * m / (sqrt(v)/sqrt(1-b2^t) + eps)",
    "sgd": "torch.optim.SGD: g += wd*p (coupled, after clipping); m = momentum*m + g (m = g at first); p -= lr*m",
    "decay": "weight_decay on parameters with ndim >= 2 (embedding and LoRA matrices too), 0 on the others",
    "lr": "step s (from 0) uses lr[s]: warm-up is lr*s/warmup_steps, so step 0 has lr 0",
    "f64_difference": "largest relative difference of this run's losses and grad_norms to the same run in f64",
    "names": "gradients and final weights are L2 norms by parameter name; LoRA names as in adapter_model.safetensors",
}


def optim(schedule=None, **changes):
    return dict(ADAMW, clip_norm=1.0, schedule=schedule or {"name": "constant", "warmup_steps": 0}, **changes)


def sgd(weight_decay):
    changed = dict(optim(), name="sgd", lr=0.05, momentum=0.9, weight_decay=weight_decay)
    return {k: v for k, v in changed.items() if k not in ("betas", "eps")}


def execute(name, make_model, stream, run):
    """One run in f32, checked against f64; returns its JSON and step 0's gradients."""
    model = make_model()
    out, first = train(model, stream, run)
    exact, _ = train(make_model().double(), stream, run)
    error = {k: difference(out[k], exact[k]) for k in ("losses", "grad_norms")}
    print(f"{name}: {out['losses'][0]:.6f} .. {out['losses'][-1]:.6f}, f32 against f64 {error}", flush=True)
    if error["losses"] > 2e-5 or error["grad_norms"] > 1e-4:
        print(f"WARNING {name}: f32 and f64 differ too much for a reference")
    final = norms(trained(model))
    return {**run, **out, "f64_difference": error, "first_grads": norms(first), "final_weights": final}, first


def stories_runs(stream):
    base = {"model": "stories260k", "trains": "full", "stream": "valid", "sequence_length": 128, "global_batch": 4}
    base.update(micro_batch=4, steps=20, optim=optim())
    linear = optim({"name": "linear", "warmup_steps": 5})
    runs = {
        "full": base,
        "full_accumulated": {**base, "micro_batch": 2},
        "full_no_decay": {**base, "steps": 5, "optim": optim(weight_decay=0.0)},
        "full_linear_warmup": {**base, "steps": 10, "optim": linear},
        "full_sgd": {**base, "steps": 5, "optim": sgd(0.0)},
        "full_sgd_decay": {**base, "steps": 5, "optim": sgd(0.01)},
        "lora": {**base, "trains": "lora", "adapter": "tests/data/models/stories260k_adapter"},
    }
    runs["lora_accumulated"] = {**runs["lora"], "micro_batch": 1}
    result = {}
    for name, run in runs.items():
        make = (lambda: with_adapter(STORIES, STORIES_ADAPTER)) if run["trains"] == "lora" else (lambda: load_model(STORIES))
        result[name], _ = execute(name, make, stream, run)
    for name in ("full", "lora"):
        same = difference(result[f"{name}_accumulated"]["losses"], result[name]["losses"])
        assert same < 1e-6, same
    return result


def tiny_runs(name, stream, adapter=None):
    """Every gradient of step 0 is kept in a file of its own."""
    run = {"model": f"tests/data/models/{name}", "trains": "full", "stream": f"synthetic_{name}"}
    run.update(sequence_length=LENGTH, global_batch=BATCH, micro_batch=BATCH, steps=STEPS, optim=optim())
    make, label = lambda: load_model(MODELS / name), name
    if adapter:
        run.update(trains="lora", adapter=f"tests/data/models/adapters/{adapter}")
        make, label = lambda: with_adapter(BASE, MODELS / "adapters" / adapter), f"{name}_{adapter}"
    result, first = execute(label, make, stream, run)
    save_tensors(EXPECTED / f"grads_{label}.safetensors", first, __file__)
    return {label: result}


def synthetic(name):
    vocab = load_model(MODELS / name).config.vocab_size
    generator = torch.Generator().manual_seed(len(name))
    return torch.randint(0, vocab, (STEPS * BATCH * LENGTH + 1,), generator=generator).tolist()


def schedules():
    """The lr of 25 steps of 20, lr 1e-3, as transformers.get_scheduler gives it; 5 beyond the end are kept on purpose."""
    settings = {
        "constant": {"name": "constant"},
        "constant_warmup": {"name": "constant_with_warmup", "warmup_steps": 5},
        "linear": {"name": "linear", "warmup_steps": 5},
        "cosine": {"name": "cosine", "warmup_steps": 5},
        "cosine_no_warmup": {"name": "cosine", "warmup_steps": 0},
    }
    result = {}
    for name, setting in settings.items():
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1e-3)
        result[name] = {**setting, "steps": 20, "base_lr": 1e-3, "lr": schedule_lr(optimizer, setting)}
    for decay in ("linear", "cosine"):
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1e-3)
        scheduler = transformers.get_wsd_schedule(optimizer, 5, 6, num_stable_steps=9, decay_type=decay)
        setting = {"name": "wsd", "decay_type": decay, "warmup_steps": 5, "stable_steps": 9, "decay_steps": 6}
        result[f"wsd_{decay}"] = {**setting, "steps": 20, "base_lr": 1e-3, "lr": walk(optimizer, scheduler)}
    result["formula"] = {
        "warmup": "s < w: s / w",
        "linear": "max(0, (n - s) / (n - w))",
        "cosine": "max(0, 0.5 * (1 + cos(pi * (s - w) / (n - w)))); beyond n it rises again",
        "wsd": "1 for w <= s < n - d; then with p = (s - (n - d)) / d: 1 - p (linear) or 0.5 * (1 + cos(pi * p)); 0 from n",
    }
    return result


def schedule_lr(optimizer, setting):
    return walk(optimizer, make_schedule(optimizer, copy.deepcopy(setting), 20))


def walk(optimizer, scheduler, count=25):
    rates = []
    for _ in range(count):
        rates.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    return rates


def main():
    stream = valid_ids()
    runs = stories_runs(stream)
    streams = {f"synthetic_{name}": synthetic(name) for name in ("llama3", "qwen2")}
    for name, adapter in (("llama3", None), ("qwen2", None), ("llama3", "all_linear"), ("llama3", "rslora")):
        runs.update(tiny_runs(name, streams[f"synthetic_{name}"], adapter))
    test = encode((WIKITEXT / "test.txt").read_bytes().decode(), False)[:8192]
    value = {
        "notes": NOTES,
        "valid_ids": describe_ids(stream),
        "adapter_perplexity": {
            "protocol": "windows",
            "window": 512,
            "max_tokens": 8192,
            **perplexity_windows(with_adapter(STORIES, STORIES_ADAPTER).eval(), test, 512),
        },
        "runs": runs,
        "streams": streams,
        "schedules": schedules(),
    }
    save_json(EXPECTED / "training.json", value, __file__)


if __name__ == "__main__":
    main()

"""Steps of training in PyTorch on random tokens; prints one JSON line. Started by `run` beside this file, or alone:

  python3 torch_train.py --model configs/llama-1b --batch 4 --sequence-length 4096
  python3 torch_train.py --model configs/llama-8b --mode lora --batch 4 --sequence-length 2048
  torchrun --nproc-per-node 4 torch_train.py --model configs/llama-8b --batch 2 --sequence-length 4096

full: FSDP2 (on one GPU too), torch.compile of each block and of the loss, fused AdamW, gradients clipped to norm 1.
lora: transformers and PEFT as they come, adapters on all linear layers of the blocks; nothing is compiled unless asked.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import time
from contextlib import nullcontext

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.nn.attention import SDPBackend, sdpa_kernel

from torch_llama import Config, Llama

PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
FALLBACKS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
START = time.perf_counter()


def parse_options():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--model", required=True, help="folder with config.json; weights are random")
    p.add_argument("--mode", choices=["full", "lora"], default="full")
    p.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    p.add_argument("--batch", type=int, default=4, help="sequences of a micro-batch")
    p.add_argument("--sequence-length", type=int, default=512)
    p.add_argument("--accumulate", type=int, default=1, help="micro-batches of a step")
    p.add_argument("--steps", type=int, default=10, help="timed steps")
    p.add_argument("--warmup", type=int, default=3, help="steps before them")
    p.add_argument("--state", choices=["f32", "bf16"], default="f32",
                   help="parameters, gradients and moments as kept; f32 computes in bf16 copies (full)")
    p.add_argument("--recompute", default="none", help="none, blocks, or of how many blocks; lora: none or blocks")
    p.add_argument("--compile", choices=["yes", "no"], help="default: yes for full, no for lora")
    p.add_argument("--attention", choices=["cudnn", "flash", "default"],
                   help="preferred backend; default: cudnn for full, PyTorch's own choice for lora")
    p.add_argument("--loss-chunks", type=int, default=1, help="1: one compiled cross-entropy; else chunk by chunk")
    p.add_argument("--reshard", choices=["auto", "yes", "no"], default="auto",
                   help="free bf16 copies of a block after its forward pass; auto: on several ranks")
    p.add_argument("--lora-rank", type=int, default=16)
    p.add_argument("--adapters", choices=["f32", "autocast", "bf16"], default="f32",
                   help="f32: PEFT's own choice, products in f32; autocast: f32 kept, products in bf16")
    for name in ("layers", "hidden", "vocab"):
        p.add_argument(f"--{name}", type=int, help="instead of the model's, to try the program out")
    o = p.parse_args()
    o.compile = (o.compile or ("yes" if o.mode == "full" else "no")) == "yes"
    o.attention = o.attention or ("cudnn" if o.mode == "full" else "default")
    return o


def log(rank, text):
    if rank == 0:
        print(f"[torch {time.perf_counter() - START:6.1f} s] {text}", file=sys.stderr, flush=True)


def start_ranks(o):
    """Rank, ranks and device. FSDP wants a process group on one rank too."""
    rank, ranks = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    device = torch.device(o.device, int(os.environ.get("LOCAL_RANK", 0)) if o.device == "cuda" else None)
    if o.device == "cuda":
        torch.cuda.set_device(device)
    if ranks > 1 or (o.mode == "full" and o.state == "f32"):
        alone = {}
        if "RANK" not in os.environ:
            alone = {"store": dist.TCPStore("127.0.0.1", 0, 1, is_master=True), "rank": 0, "world_size": 1}
        bound = {"device_id": device} if o.device == "cuda" else {}
        dist.init_process_group("nccl" if o.device == "cuda" else "gloo", **alone, **bound)
    return rank, ranks, device


def smaller(o, **named):
    """The sizes that --layers, --hidden and --vocab ask for, under the names of a config."""
    sizes = {"layers": o.layers, "vocab": o.vocab}
    if o.hidden:
        sizes |= {"hidden": o.hidden, "intermediate": 3 * o.hidden, "heads": 4, "kv_heads": 2, "head_dim": o.hidden // 4}
    return {named[key]: value for key, value in sizes.items() if value}


def shard(model, o, ranks):
    mesh = init_device_mesh(o.device, (ranks,))
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    reshard = ranks > 1 if o.reshard == "auto" else o.reshard == "yes"
    tied = model.head.lm_head.weight is model.embed_tokens.weight
    for block in model.layers:
        fully_shard(block, mesh=mesh, mp_policy=policy, reshard_after_forward=reshard)
    if not tied:  # parameters that two modules share belong to the root
        fully_shard(model.embed_tokens, mesh=mesh, mp_policy=policy, reshard_after_forward=reshard)
        fully_shard(model.head, mesh=mesh, mp_policy=policy, reshard_after_forward=False)
    fully_shard(model, mesh=mesh, mp_policy=policy)
    return reshard


def attention_backend(c, o, device):
    if o.device == "cpu":
        return "default"
    q, k = (torch.empty(o.batch, o.sequence_length, heads, c.head_dim, device=device, dtype=torch.bfloat16,
                        requires_grad=True).transpose(1, 2) for heads in (c.heads, c.kv_heads))
    return SDPBackend(torch._fused_sdp_choice(q, k, k, is_causal=True, enable_gqa=c.heads != c.kv_heads)).name.lower()


def full_training(o, rank, ranks, device, ids, targets):
    """A function that trains one step, and what is to be said of it."""
    c = Config.load(o.model)
    for key, value in smaller(o, **{f: f for f in Config.__dataclass_fields__}).items():
        setattr(c, key, value)
    blocks = {"none": 0, "blocks": c.layers}.get(o.recompute)
    blocks = int(o.recompute) if blocks is None else blocks
    torch.set_default_dtype(torch.float32 if o.state == "f32" else torch.bfloat16)
    with device:
        model = Llama(c, o.sequence_length, o.compile, blocks, o.loss_chunks)
    torch.set_default_dtype(torch.float32)
    torch.manual_seed(0)
    model.to(device).initialize()
    parameters = sum(p.numel() for p in model.parameters())
    multiplied = parameters - (0 if c.tied else model.embed_tokens.weight.numel())
    reshard = shard(model, o, ranks) if o.state == "f32" or ranks > 1 else None
    weights = list(model.parameters())
    optimizer = torch.optim.AdamW(weights, lr=1e-4, betas=(0.9, 0.95), weight_decay=0.01, fused=True)

    def step():
        for i in range(o.accumulate):
            if isinstance(model, FSDPModule):
                last = i + 1 == o.accumulate
                model.set_requires_gradient_sync(last)
                model.set_is_last_backward(last)
                model.set_reshard_after_backward(last or reshard)
            loss = model(ids, targets)
            (loss / o.accumulate).backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    keeps = {"f32": "parameters, gradients and moments in f32; computes with copies in bf16",
             "bf16": "parameters, gradients and moments in bf16, rounded to nearest; nothing in f32"}[o.state]
    flops = 6 * multiplied + 6 * c.layers * c.heads * c.head_dim * o.sequence_length
    return step, {"parameters": parameters, "flops_per_token": flops, "keeps": keeps,
                  "attention": attention_backend(c, o, device), "recomputed_blocks": blocks,
                  "loss_chunks": o.loss_chunks, "fsdp": isinstance(model, FSDPModule), "reshard": reshard}


def adapted_model(o, device):
    import peft
    import transformers

    config = transformers.AutoConfig.from_pretrained(o.model)
    sizes = smaller(o, layers="num_hidden_layers", vocab="vocab_size", hidden="hidden_size", head_dim="head_dim",
                    intermediate="intermediate_size", heads="num_attention_heads", kv_heads="num_key_value_heads")
    for key, value in sizes.items():
        setattr(config, key, value)
    config.use_cache = False
    with device:
        base = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16, attn_implementation="sdpa")
    base.to(device)
    if o.compile:
        for layer in base.model.layers:
            layer.compile()
    if o.recompute == "blocks":
        base.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    adapter = peft.LoraConfig(r=o.lora_rank, lora_alpha=2 * o.lora_rank, lora_dropout=0.0, target_modules=PROJECTIONS,
                              task_type="CAUSAL_LM")
    model = peft.get_peft_model(base, adapter, autocast_adapter_dtype=o.adapters != "bf16")
    return model.train(), {"transformers": transformers.__version__, "peft": peft.__version__}


def lora_training(o, rank, ranks, device, ids, targets):
    if o.recompute not in ("none", "blocks"):
        raise SystemExit(f"--recompute is {o.recompute}: with --mode lora none or blocks")
    model, versions = adapted_model(o, device)
    weights = [p for p in model.parameters() if p.requires_grad]
    parameters = sum(p.numel() for p in model.parameters())
    if ranks > 1:
        model = torch.nn.parallel.DistributedDataParallel(model, device_ids=[device] if o.device == "cuda" else None)
    optimizer = torch.optim.AdamW(weights, lr=1e-4, betas=(0.9, 0.95), weight_decay=0.01, fused=True)
    cast = torch.autocast(o.device, torch.bfloat16) if o.adapters == "autocast" else nullcontext()

    def step():
        for i in range(o.accumulate):
            waits = ranks > 1 and i + 1 < o.accumulate
            with model.no_sync() if waits else nullcontext(), cast:
                loss = model(input_ids=ids, labels=targets).loss
                (loss / o.accumulate).backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    return step, {"parameters": parameters, "trained": sum(p.numel() for p in weights), "adapters": o.adapters,
                  "keeps": f"frozen weights in bf16, adapters and moments in {'bf16' if o.adapters == 'bf16' else 'f32'}",
                  "attention": "sdpa of transformers", "recompute": o.recompute, **versions}


def time_steps(o, rank, step):
    """Seconds of each timed step, and the first and the last loss."""
    wait = torch.cuda.synchronize if o.device == "cuda" else lambda: None
    seconds, losses = [], []
    for i in range(-o.warmup, o.steps):
        wait()
        begin = time.perf_counter()
        loss = step()
        wait()
        took = time.perf_counter() - begin
        losses.append(loss.item())
        if i >= 0:
            seconds.append(took)
        log(rank, f"{'warm-up' if i < 0 else f'step {i + 1}/{o.steps}'}: {took * 1e3:.1f} ms, loss {losses[-1]:.3f}")
    return seconds, losses[0], losses[-1]


def memory(o):
    if o.device == "cpu":
        return {"peak_gib": None, "allocated_gib": None, "resident_gib": None}
    free, total = torch.cuda.mem_get_info()
    sizes = {"peak_gib": torch.cuda.max_memory_reserved(), "allocated_gib": torch.cuda.max_memory_allocated(),
             "resident_gib": total - free}
    return {key: round(size / 2**30, 2) for key, size in sizes.items()}


def main():
    o = parse_options()
    rank, ranks, device = start_ranks(o)
    generator = torch.Generator(device).manual_seed(rank)
    vocab = o.vocab or Config.load(o.model).vocab
    ids, targets = (torch.randint(vocab, (o.batch, o.sequence_length), device=device, generator=generator)
                    for _ in range(2))
    preferred = {"cudnn": [SDPBackend.CUDNN_ATTENTION, *FALLBACKS], "flash": FALLBACKS}.get(o.attention)
    with sdpa_kernel(preferred, set_priority=True) if preferred else nullcontext():
        training = full_training if o.mode == "full" else lora_training
        step, said = training(o, rank, ranks, device, ids, targets)
        log(rank, f"{o.mode} training of {o.model}: {said['parameters']:,} parameters, {said['keeps']}")
        seconds, first, last = time_steps(o, rank, step)
    median = statistics.median(seconds)
    rate = o.batch * o.sequence_length * o.accumulate / median
    flops = said.get("flops_per_token")
    result = {"tokens_per_s": round(rate, 1), "step_ms": round(median * 1e3, 3),
              "step_ms_least": round(min(seconds) * 1e3, 3), "step_ms_most": round(max(seconds) * 1e3, 3),
              "tflops_per_s": round(rate * flops / 1e12, 2) if flops else None, **memory(o), "ranks": ranks,
              "mode": o.mode, "batch": o.batch, "sequence_length": o.sequence_length, "accumulate": o.accumulate,
              "steps": o.steps, "compiled": o.compile, **said, "loss_first": first, "loss_last": last,
              "gpu": torch.cuda.get_device_name() if o.device == "cuda" else None, "torch": torch.__version__,
              "cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version(), "python": platform.python_version()}
    if rank == 0:
        print(json.dumps(result, separators=(",", ":")), flush=True)
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    main()

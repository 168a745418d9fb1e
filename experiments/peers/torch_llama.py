"""Llama and Qwen2 in plain PyTorch modules, built from a Hugging Face config.json; the forward pass returns the loss.

Shapes: B sequences, T tokens of one, N = B T, C channels, H heads, D channels of a head, V vocabulary.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint


@dataclass
class Config:
    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    eps: float
    theta: float
    scaling: dict | None
    tied: bool
    qkv_bias: bool

    @staticmethod
    def load(folder):
        c = json.loads((Path(folder) / "config.json").read_text())
        if c["model_type"] not in ("llama", "qwen2") or c.get("hidden_act", "silu") != "silu":
            raise SystemExit(f"{folder}: only llama and qwen2 with silu are written here")
        scaling = c.get("rope_scaling")
        if scaling is not None and scaling["rope_type"] != "llama3":
            raise SystemExit(f"{folder}: rope_type {scaling['rope_type']} is not written here")
        heads = c["num_attention_heads"]
        return Config(hidden=c["hidden_size"], intermediate=c["intermediate_size"], layers=c["num_hidden_layers"],
                      heads=heads, kv_heads=c["num_key_value_heads"],
                      head_dim=c.get("head_dim") or c["hidden_size"] // heads, vocab=c["vocab_size"],
                      eps=c["rms_norm_eps"], theta=c["rope_theta"], scaling=scaling,
                      tied=c["tie_word_embeddings"], qkv_bias=c["model_type"] == "qwen2")


def rotary_table(config, length, dtype):
    """Cosines and sines [T, D], each half of D alike, as transformers has them."""
    frequency = config.theta ** (-torch.arange(0, config.head_dim, 2, dtype=torch.float32) / config.head_dim)
    if s := config.scaling:
        turns = s["original_max_position_embeddings"] * frequency / (2 * math.pi)
        low, high = s["low_freq_factor"], s["high_freq_factor"]
        kept = ((turns - low) / (high - low)).clamp(0, 1)
        frequency = frequency * ((1 - kept) / s["factor"] + kept)
    angle = torch.outer(torch.arange(length, dtype=torch.float32), frequency).repeat(1, 2)
    return angle.cos().to(dtype), angle.sin().to(dtype)


def rotate(x_BHTD, cos_TD, sin_TD):
    first, second = x_BHTD.chunk(2, dim=-1)
    return x_BHTD * cos_TD + torch.cat((-second, first), dim=-1) * sin_TD


class Attention(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.head_dim = c.head_dim
        self.grouped = c.heads != c.kv_heads
        self.q_proj = nn.Linear(c.hidden, c.heads * c.head_dim, bias=c.qkv_bias)
        self.k_proj = nn.Linear(c.hidden, c.kv_heads * c.head_dim, bias=c.qkv_bias)
        self.v_proj = nn.Linear(c.hidden, c.kv_heads * c.head_dim, bias=c.qkv_bias)
        self.o_proj = nn.Linear(c.heads * c.head_dim, c.hidden, bias=False)

    def forward(self, x_BTC, cos_TD, sin_TD):
        B, T, _ = x_BTC.shape
        q, k, v = (linear(x_BTC).view(B, T, -1, self.head_dim).transpose(1, 2)
                   for linear in (self.q_proj, self.k_proj, self.v_proj))
        y = F.scaled_dot_product_attention(rotate(q, cos_TD, sin_TD), rotate(k, cos_TD, sin_TD), v,
                                           is_causal=True, enable_gqa=self.grouped)
        return self.o_proj(y.transpose(1, 2).reshape(B, T, -1))


class Mlp(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.gate_proj = nn.Linear(c.hidden, c.intermediate, bias=False)
        self.up_proj = nn.Linear(c.hidden, c.intermediate, bias=False)
        self.down_proj = nn.Linear(c.intermediate, c.hidden, bias=False)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    """`run` is the body, compiled or not: hooks of FSDP on the module stay outside of it."""

    def __init__(self, c, compiled, recompute):
        super().__init__()
        self.input_layernorm = nn.RMSNorm(c.hidden, eps=c.eps)
        self.self_attn = Attention(c)
        self.post_attention_layernorm = nn.RMSNorm(c.hidden, eps=c.eps)
        self.mlp = Mlp(c)
        body = self.recomputed if recompute else self.body
        self.run = torch.compile(body, fullgraph=True) if compiled else body

    def body(self, x_BTC, cos_TD, sin_TD):
        x_BTC = x_BTC + self.self_attn(self.input_layernorm(x_BTC), cos_TD, sin_TD)
        return x_BTC + self.mlp(self.post_attention_layernorm(x_BTC))

    def recomputed(self, x_BTC, cos_TD, sin_TD):
        return checkpoint(self.body, x_BTC, cos_TD, sin_TD, use_reentrant=False, preserve_rng_state=False)

    def forward(self, x_BTC, cos_TD, sin_TD):
        return self.run(x_BTC, cos_TD, sin_TD)


def loss_and_gradient(logits_NV, targets_N, scale):
    """`scale` times the summed cross-entropy, and its gradient: two passes over the logits once compiled."""
    x_NV = logits_NV.float()
    lse_N1 = x_NV.logsumexp(-1, keepdim=True)
    hit_NV = torch.arange(x_NV.shape[1], device=x_NV.device) == targets_N[:, None]
    loss = (lse_N1 - x_NV.gather(1, targets_N[:, None])).sum() * scale
    return loss, (((x_NV - lse_N1).exp() - hit_NV.float()) * scale).to(logits_NV.dtype)


class ChunkedLoss(torch.autograd.Function):
    """Gradients are made in the forward pass, a chunk of tokens at a time, so no logits are kept or made twice."""

    @staticmethod
    def forward(ctx, x_NC, weight_VC, targets_N, chunks, chunk_loss):
        dx_NC = torch.empty_like(x_NC)
        dw_VC, loss = None, 0.0
        for x, targets, dx in zip(x_NC.chunk(chunks), targets_N.chunk(chunks), dx_NC.chunk(chunks)):
            part, dlogits = chunk_loss(x @ weight_VC.t(), targets, 1 / len(targets_N))
            loss = loss + part
            torch.mm(dlogits, weight_VC, out=dx)
            dw_VC = dlogits.t() @ x if dw_VC is None else dw_VC.addmm_(dlogits.t(), x)
        ctx.save_for_backward(dx_NC, dw_VC)
        return loss

    @staticmethod
    def backward(ctx, grad):
        dx_NC, dw_VC = ctx.saved_tensors
        return dx_NC * grad, dw_VC * grad, None, None, None


class Head(nn.Module):
    """Final norm, output layer and mean cross-entropy: over all tokens at once, or chunk by chunk."""

    def __init__(self, c, compiled, chunks):
        super().__init__()
        self.norm = nn.RMSNorm(c.hidden, eps=c.eps)
        self.lm_head = nn.Linear(c.hidden, c.vocab, bias=False)
        self.chunks = chunks
        self.whole = torch.compile(self.whole_loss, fullgraph=True) if compiled else self.whole_loss
        self.chunk_loss = torch.compile(loss_and_gradient, fullgraph=True) if compiled else loss_and_gradient

    def whole_loss(self, x_BTC, targets_N):
        return F.cross_entropy(self.lm_head(self.norm(x_BTC)).flatten(0, 1).float(), targets_N)

    def forward(self, x_BTC, targets_BT):
        if self.chunks == 1:
            return self.whole(x_BTC, targets_BT.flatten())
        return ChunkedLoss.apply(self.norm(x_BTC).flatten(0, 1), self.lm_head.weight, targets_BT.flatten(),
                                 self.chunks, self.chunk_loss)


class Llama(nn.Module):
    """`recompute`: of how many blocks, from the first, only the input is kept."""

    def __init__(self, c, length, compiled=True, recompute=0, chunks=1):
        super().__init__()
        self.embed_tokens = nn.Embedding(c.vocab, c.hidden)
        self.layers = nn.ModuleList(Block(c, compiled, i < recompute) for i in range(c.layers))
        self.head = Head(c, compiled, chunks)
        if c.tied:
            self.head.lm_head.weight = self.embed_tokens.weight
        cos_TD, sin_TD = rotary_table(c, length, torch.bfloat16)
        self.register_buffer("cos_TD", cos_TD, persistent=False)
        self.register_buffer("sin_TD", sin_TD, persistent=False)

    @torch.no_grad()
    def initialize(self):
        for name, p in self.named_parameters():
            p.zero_() if name.endswith("bias") else p.fill_(1) if p.ndim == 1 else p.normal_(0, 0.02)

    def forward(self, ids_BT, targets_BT):
        x_BTC = self.embed_tokens(ids_BT)
        for block in self.layers:
            x_BTC = block(x_BTC, self.cos_TD, self.sin_TD)
        return self.head(x_BTC, targets_BT)

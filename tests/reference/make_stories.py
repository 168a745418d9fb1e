"""Writes expected/stories260k.json and expected/logits_stories260k.safetensors: logits, perplexity, greedy text."""

import hashlib
import math

import numpy
import tokenizers
import torch

from common import EXPECTED, STORIES, WIKITEXT, load_model, logits_of, save_json, save_tensors

BOS = 1
PROMPTS = ["Once upon a time", "Lily and Ben went to the park.", "The dog"]


def encode(text, special):
    return tokenizers.Tokenizer.from_file(str(STORIES / "tokenizer.json")).encode(text, add_special_tokens=special).ids


def describe_ids(ids):
    """Enough to tell whether another encoder gave the same ids."""
    digest = hashlib.sha256(numpy.asarray(ids, dtype="<i4").tobytes()).hexdigest()
    return {"count": len(ids), "sum": sum(ids), "first": ids[:16], "last": ids[-16:], "sha256_of_i32_le": digest}


def window_nlls(model, ids):
    """f64 [len(ids) - 1]: nll of ids[1:], each from what precedes it in this window."""
    logits = logits_of(model, torch.tensor([ids]))[0, :-1].double()
    return torch.nn.functional.cross_entropy(logits, torch.tensor(ids[1:]), reduction="none")


def summary(total, count):
    return {"nll": total / count, "tokens": count, "perplexity": math.exp(total / count)}


def perplexity_windows(model, ids, window):
    parts = [window_nlls(model, ids[i : i + window]) for i in range(0, len(ids) - 1, window)]
    return summary(sum(p.sum().item() for p in parts), sum(len(p) for p in parts))


def perplexity_strided(model, ids, window, stride):
    """Every id but the first is scored once, in the first window that holds it."""
    total, count, end_before = 0.0, 0, 0
    for begin in range(0, len(ids), stride):
        end = min(begin + window, len(ids))
        scored = window_nlls(model, ids[begin:end])[-(end - end_before) :]
        total, count, end_before = total + scored.sum().item(), count + len(scored), end
        if end == len(ids):
            return summary(total, count)


def perplexity_gptq(model, ids, window):
    return perplexity_windows(model, ids[: len(ids) // window * window], window)


def perplexity_llama_cpp(model, ids, window):
    """Each chunk's first id becomes BOS; only its second half is scored."""
    total, count = 0.0, 0
    for begin in range(0, len(ids) - window + 1, window):
        scored = window_nlls(model, [BOS] + ids[begin + 1 : begin + window])[window // 2 :]
        total, count = total + scored.sum().item(), count + len(scored)
    return summary(total, count)


def perplexities(model, plain, with_bos):
    window, stride = 512, 256
    entries = []

    def add(protocol, value, **settings):
        entries.append({"protocol": protocol, "window": window, **settings, **value})
        print(entries[-1])

    for limit in (65536, 8192, 8000, 7681):
        add("windows", perplexity_windows(model, plain[:limit], window), max_tokens=limit, bos=False)
    for limit in (8192, 8000):
        for bos, ids in ((True, with_bos[:limit]), (False, plain[:limit])):
            settings = {"max_tokens": limit, "bos": bos}
            add("strided", perplexity_strided(model, ids, window, stride), stride=stride, **settings)
            add("gptq", perplexity_gptq(model, ids, window), **settings)
        add("llama.cpp", perplexity_llama_cpp(model, with_bos[:limit], window), max_tokens=limit, bos=True)
    return entries


def greedy(model, prompt, count):
    """`count` new ids without a cache; `min_margin` is the least gap between the best two logits."""
    ids, margins = encode(prompt, True), []
    prompt_ids = list(ids)
    for _ in range(count):
        best = logits_of(model, torch.tensor([ids]))[0, -1].topk(2)
        margins.append((best.values[0] - best.values[1]).item())
        ids.append(best.indices[0].item())
    model.generation_config.eos_token_id = None
    check = model.generate(input_ids=torch.tensor([prompt_ids]), do_sample=False, max_new_tokens=count)
    if check[0].tolist() != ids:
        raise ValueError(f"{prompt!r}: generate() and the loop differ")
    new_ids = ids[len(prompt_ids) :]
    text = tokenizers.Tokenizer.from_file(str(STORIES / "tokenizer.json")).decode(new_ids)
    return {"prompt": prompt, "prompt_ids": prompt_ids, "ids": new_ids, "text": text, "min_margin": min(margins)}


def main():
    model = load_model(STORIES)
    text = (WIKITEXT / "test.txt").read_bytes().decode()
    plain, with_bos = encode(text, False), encode(text, True)
    assert with_bos == [BOS] + plain

    ids = torch.tensor([with_bos[:33]], dtype=torch.int32)
    logits = logits_of(model, ids)
    save_tensors(EXPECTED / "logits_stories260k.safetensors", {"ids": ids, "logits": logits}, __file__)

    value = {
        "model": "stories260k",
        "text": "wikitext-2/test.txt",
        "text_ids": describe_ids(plain),
        "ids": ids[0].tolist(),
        "logit_rows": {str(r): logits[0, r].tolist() for r in (0, 32)},
        "perplexity_note": "max_tokens counts ids after BOS was added; nll is a mean over `tokens`, summed in f64",
        "perplexity": perplexities(model, plain, with_bos),
        "perplexity_f64_model": perplexity_windows(load_model(STORIES, torch.float64), plain[:65536], 512),
        "greedy_note": "100 new ids after BOS and the prompt, EOS ignored; text is the decoding of the new ids alone",
        "greedy": [greedy(model, p, 100) for p in PROMPTS],
    }
    for g in value["greedy"]:
        print(g["min_margin"], g["prompt"] + g["text"])
    save_json(EXPECTED / "stories260k.json", value, __file__)


if __name__ == "__main__":
    main()

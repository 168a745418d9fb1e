"""Reads what Ridgeline wrote with the libraries that others use; prints one JSON object, exit code 1 where they refuse.

  check_outputs.py hf DIR --ids F.json [--out F.safetensors]
  check_outputs.py peft BASE ADAPTER --ids F.json [--out F.safetensors]
  check_outputs.py quantized DIR --ids F.json [--out F.safetensors]
  check_outputs.py tensorboard DIR
F.json holds [[...], ...] as for `ridge logits`; the output has `logits`, f32 [B, T, V], in the same form.
"""

import argparse
import json
import pathlib
import sys


def write_logits(model, args):
    from common import logits_of

    return keep_logits(logits_of(model, read_ids(args)), args)


def read_ids(args):
    import torch

    return torch.tensor(json.loads(args.ids.read_text()))


def keep_logits(logits, args):
    import safetensors.torch

    if args.out:
        safetensors.torch.save_file({"logits": logits.contiguous()}, str(args.out))
    return {"shape": list(logits.shape), "min": logits.min().item(), "max": logits.max().item()}


def check_hf(args):
    from common import load_model

    model = load_model(args.folder)
    result = {"architecture": type(model).__name__, "parameters": sum(p.numel() for p in model.parameters())}
    return {**result, "logits": write_logits(model, args)}


def check_quantized(args):
    """Of weights that bitsandbytes or compressed-tensors has dequantized."""
    from make_quantized import logits_of_folder

    return {"logits": keep_logits(logits_of_folder(args.folder, read_ids(args)), args)}


def check_peft(args):
    """peft only warns about keys that do not fit, so they are compared here."""
    import peft
    from safetensors import safe_open

    from common import load_model

    model = peft.PeftModel.from_pretrained(load_model(args.base), args.adapter).eval()
    wanted = set(peft.get_peft_model_state_dict(model))
    with safe_open(str(args.adapter / "adapter_model.safetensors"), framework="pt") as file:
        found = set(file.keys())
    if wanted != found:
        raise ValueError(f"missing {sorted(wanted - found)}, left over {sorted(found - wanted)}")
    return {"tensors": len(found), "logits": write_logits(model, args)}


def check_tensorboard(args):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(args.folder), size_guidance={"scalars": 0, "tensors": 0})
    events.Reload()
    tags = events.Tags()
    if not tags["scalars"] and not tags["tensors"]:
        raise ValueError(f"{args.folder}: no scalars")
    scalars = {t: [[e.step, e.value] for e in events.Scalars(t)] for t in tags["scalars"]}
    return {"scalars": scalars, "tensors": {t: tensor_scalars(events, t) for t in tags["tensors"]}}


def tensor_scalars(events, tag):
    from tensorboard.util import tensor_util

    return [[e.step, float(tensor_util.make_ndarray(e.tensor_proto))] for e in events.Tensors(tag)]


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, paths, function in (
        ("hf", ["folder"], check_hf),
        ("quantized", ["folder"], check_quantized),
        ("peft", ["base", "adapter"], check_peft),
        ("tensorboard", ["folder"], check_tensorboard),
    ):
        command = commands.add_parser(name)
        command.set_defaults(function=function)
        for path in paths:
            command.add_argument(path, type=pathlib.Path)
        if name != "tensorboard":
            command.add_argument("--ids", type=pathlib.Path, required=True)
            command.add_argument("--out", type=pathlib.Path)
    return parser.parse_args()


def main():
    args = parse()
    try:
        print(json.dumps(args.function(args)))
    except Exception as error:  # whatever the library refuses is the finding
        print(f"{args.command}: {type(error).__name__}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

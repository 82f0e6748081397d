#!/usr/bin/env python3
"""Compares per-subject gradient norms and the clipped sum without noise with torch.func's.

    python3 testnet/interop/per_subject.py [--work DIR] [--python VENV/bin/python] [--models DIR]

Ends with 1 when a norm or an element of the sum differs by more than 1e-5, with 2 when something could not be had.
"""

from __future__ import annotations

import argparse
import pathlib
import subprocess
import sys

import torch_env
from place import HERE, ROOT, Unavailable, cargo_target, say, work_dir

FAMILIES = ["llama", "gpt2", "gemma3", "apertus", "qwen3"]


def compare(model: str, start: str, out: str) -> None:
    """Runs inside the environment that has torch."""
    import json

    import torch
    from peft import PeftModel
    from safetensors.torch import load_file
    from torch.func import functional_call, grad
    from transformers import AutoModelForCausalLM

    told = json.loads((pathlib.Path(out) / "subjects.json").read_text())
    base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32, attn_implementation="eager")
    tuned = PeftModel.from_pretrained(base, start, is_trainable=True).eval()
    trained = {name: p.detach() for name, p in tuned.named_parameters() if p.requires_grad}
    frozen = {name: p.detach() for name, p in tuned.named_parameters() if not p.requires_grad}

    def loss(parameters: dict, rows: list[dict]) -> torch.Tensor:
        """The mean cross entropy over all labels of a subject's rows."""
        total, count = 0.0, 0
        for row in rows:
            ids = torch.tensor([row["ids"]])
            mask = torch.tensor(row["labels"])
            logits = functional_call(tuned, {**frozen, **parameters}, kwargs={"input_ids": ids, "use_cache": False}).logits
            labels = torch.where(mask, ids[0], -100)[1:]
            total = total + torch.nn.functional.cross_entropy(logits[0, :-1], labels, ignore_index=-100, reduction="sum")
            count += int((labels != -100).sum())
        return total / count

    total = {name: torch.zeros_like(p) for name, p in trained.items()}
    worst = 0.0
    for rows, norm in zip(told["rows"], told["norms"], strict=True):
        found = grad(loss)(trained, rows)
        theirs = torch.sqrt(sum((g.double() ** 2).sum() for g in found.values())).item()
        worst = max(worst, abs(theirs - norm))
        factor = min(1.0, told["clip_norm"] / theirs)
        for name, g in found.items():
            total[name] += factor * g
    ours = load_file(pathlib.Path(out) / "sum.safetensors")
    theirs = {name.replace(".default", ""): value for name, value in total.items()}
    assert set(ours) == set(theirs), "other tensors"
    apart = max((ours[name] - value).abs().max().item() for name, value in theirs.items())
    clipped = sum(norm > told["clip_norm"] for norm in told["norms"])
    print(f"{len(told['norms'])} subjects, {clipped} clipped: norms differ by {worst:.2e}, the sum by {apart:.2e}")
    sys.exit(0 if worst <= 1e-5 and apart <= 1e-5 and clipped > 0 else 1)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--work", help="directory to work in; by default under cargo's target")
    parser.add_argument("--python", help="an interpreter that has torch, PEFT and transformers already")
    parser.add_argument("--models", type=pathlib.Path, default=ROOT / "node/engine/tests/fixtures")
    parser.add_argument("--compare", nargs=3, metavar=("MODEL", "START", "OUT"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.compare:
        compare(*options.compare)
    try:
        work = work_dir(options.work)
        interpreter = torch_env.python(work, options.python)
        say("building the engine's exporter …")
        command = ["cargo", "build", "--quiet", "--workspace", "--example", "train_export"]
        if subprocess.run(command, cwd=ROOT).returncode != 0:
            raise Unavailable("the engine's exporter does not build")
    except Unavailable as problem:
        print(f"error: {problem}", file=sys.stderr)
        return 2
    good = True
    for family in FAMILIES:
        model, out = options.models / family, work / "subjects" / family
        start = model / "lora" / "start"
        program = cargo_target() / "debug" / "examples" / "train_export"
        made = subprocess.run([str(program), "subjects", str(model), str(out), "--start", str(start)])
        command = [str(interpreter), str(HERE / "per_subject.py"), "--compare", str(model), str(start), str(out)]
        told = subprocess.run(command, capture_output=True, text=True) if made.returncode == 0 else made
        text = (told.stdout or "").strip() or (told.stderr or "").strip()[-400:]
        print(f"{family}: {'ok' if told.returncode == 0 else 'FAILED'} {text}")
        good &= told.returncode == 0
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())

#!/usr/bin/env python3
"""Loads adapters that the engine trained in PEFT and compares logits with the engine's.

    python3 testnet/interop/peft_load.py [--work DIR] [--python VENV/bin/python] [--models DIR]

For each reference family with another layout of its modules (one by one, fused and transposed, fused by head, fused pairs): a few
steps by `train_export`, then the same rows through transformers + PEFT. Prints a line per family; ends with 1 when a logit
differs by more than 1e-4 or PEFT ignores a tensor, with 2 when something could not be had.
"""

from __future__ import annotations

import argparse
import pathlib
import shutil
import subprocess
import sys

import torch_env
from place import HERE, ROOT, Unavailable, cargo_target, say, work_dir

FAMILIES = {
    "llama": "q_proj,k_proj,v_proj,o_proj,gate_proj,up_proj,down_proj",
    "gpt2": "c_attn,c_proj,c_fc",
    "bloom": "query_key_value,dense",
    "glm4": "q_proj,v_proj,gate_up_proj",
    "gemma3": "q_proj,v_proj,down_proj",
    "apertus": "q_proj,up_proj,down_proj",
    "qwen3": "q_proj,k_proj",
    "olmo2": "q_proj,k_proj,v_proj",
    "gptj": "q_proj,fc_in",
}


def compare(model: str, adapter: str) -> None:
    """Runs inside the environment that has torch."""
    import json

    import torch
    from peft import PeftModel
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32, attn_implementation="eager").eval()
    tuned = PeftModel.from_pretrained(base, adapter).eval()
    ours = load_file(pathlib.Path(adapter) / "adapter_model.safetensors")
    loaded = {name.replace(".default", ""): value for name, value in tuned.state_dict().items() if "lora_" in name}
    assert set(loaded) == set(ours), f"PEFT has other tensors: {set(loaded) ^ set(ours)}"
    assert all(torch.equal(loaded[name], value) for name, value in ours.items()), "PEFT changed a tensor"
    told = json.loads((pathlib.Path(adapter) / "logits.json").read_text())
    with torch.no_grad():
        theirs = tuned(input_ids=torch.tensor([told["ids"]])).logits[0]
        with tuned.disable_adapter():
            plain = tuned(input_ids=torch.tensor([told["ids"]])).logits[0]
    expected = torch.tensor(told["logits"])
    worst, changed = (theirs - expected).abs().max().item(), (theirs - plain).abs().max().item()
    print(f"{len(ours)} tensors, logits differ by {worst:.2e}, the adapter changes them by {changed:.2e}")
    sys.exit(0 if worst <= 1e-4 and changed > 1e-3 else 1)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--work", help="directory to work in; by default under cargo's target")
    parser.add_argument("--python", help="an interpreter that has torch, PEFT and transformers already")
    parser.add_argument("--models", type=pathlib.Path, default=ROOT / "node/engine/tests/fixtures")
    parser.add_argument("--compare", nargs=2, metavar=("MODEL", "ADAPTER"), help=argparse.SUPPRESS)
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
    for family, targets in FAMILIES.items():
        model, out = options.models / family, work / "peft" / family
        shutil.rmtree(out, ignore_errors=True)
        program = cargo_target() / "debug" / "examples" / "train_export"
        made = subprocess.run([str(program), "adapter", str(model), str(out), "--targets", targets])
        command = [str(interpreter), str(HERE / "peft_load.py"), "--compare", str(model), str(out)]
        told = subprocess.run(command, capture_output=True, text=True) if made.returncode == 0 else made
        text = (told.stdout or "").strip() or (told.stderr or "").strip()[-400:]
        print(f"{family}: {'ok' if told.returncode == 0 else 'FAILED'} {text}")
        good &= told.returncode == 0
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())

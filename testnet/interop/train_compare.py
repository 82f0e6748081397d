#!/usr/bin/env python3
"""Measures fine-tuning here against torch + PEFT: the same model, rows and settings, in turns.

    python3 testnet/interop/train_compare.py [--work DIR] [--model FILE.gguf] [--python VENV/bin/python] [--rounds N]

SmolLM2-135M (GGUF; torch gets its expansion to F32), batch 4 x 128, r = 8 on q_proj and v_proj, AdamW, two threads on two
processors, every figure from a process of its own. Prints a table of medians and ratios (ours over torch's: less is
better) and writes a JSON report. Memory is the most that was resident; "own" leaves out what Python and its
libraries take when they have been imported. Ends with 1 when the floor is missed (torch's F32 time at 0.6 of its memory) or
first losses differ, with 2 when something could not be had.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import statistics
import subprocess
import sys

import models
import torch_env
from place import HERE, ROOT, Unavailable, cargo_target, json_of, say, work_dir

OURS = {"ours": [], "ours, recomputing": ["--recompute"], "ours bf16": ["--bf16"]}
THEIRS = {"torch f32": "f32", "torch f32, checkpointed": "f32-checkpointed", "torch bf16": "bf16"}


def bench() -> pathlib.Path:
    """Builds our bench and returns the program."""
    say("building the engine's bench …")
    command = ["cargo", "build", "--release", "--quiet", "--workspace", "--example", "train_bench"]
    if subprocess.run(command, cwd=ROOT).returncode != 0:
        raise Unavailable("the engine's bench does not build")
    return cargo_target() / "release" / "examples" / "train_bench"


def model_file(work: pathlib.Path, given: str | None) -> pathlib.Path:
    """The Q4_1 file that compare.py measures too."""
    if given:
        return pathlib.Path(given).resolve()
    return models.path(work, "smollm2-Q4_1")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--work", help="directory to work in; by default under cargo's target")
    parser.add_argument("--model", help="a GGUF file in a directory that may be written to; else the one of models.py")
    parser.add_argument("--python", help="an interpreter that has torch, PEFT and transformers already")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--json", type=pathlib.Path, help="where the report goes; by default in the work directory")
    options = parser.parse_args()
    rounds: dict[str, list[dict]] = {name: [] for name in [*OURS, *THEIRS]}
    try:
        work = work_dir(options.work)
        interpreter = torch_env.python(work, options.python)
        model, program = model_file(work, options.model), bench()
        if not model.exists():
            raise Unavailable(f"{model} is not there: make it with models.py --only smollm2-Q4_1")
        steps = ["--steps", str(options.steps)]
        two = {"RAYON_NUM_THREADS": "2", "OMP_NUM_THREADS": "2"}
        for number in range(options.rounds):
            for name, flags in OURS.items():
                say(f"round {number + 1} of {options.rounds}: {name} …")
                rounds[name].append(json_of([str(program), str(model), *steps, *flags], two, cpus=2))
            for name, mode in THEIRS.items():
                say(f"round {number + 1} of {options.rounds}: {name} …")
                command = [str(interpreter), str(HERE / "train_torch.py"), str(model), *steps, "--mode", mode]
                rounds[name].append(json_of(command, two, cpus=2))
    except (Unavailable, RuntimeError) as problem:
        print(f"error: {problem}", file=sys.stderr)
        return 2

    def median(name: str, figure: str) -> float:
        return statistics.median(told[figure] for told in rounds[name])

    time, memory = median("torch f32", "seconds_per_step"), median("torch f32", "peak_mib")
    own = memory - median("torch f32", "imported_mib")
    print(f"{'':26} {'s/step':>7} {'ratio':>6} {'MiB':>7} {'ratio':>6} {'own':>6}")
    for name, told in rounds.items():
        seconds, peak = median(name, "seconds_per_step"), median(name, "peak_mib")
        alone = peak - statistics.median(one.get("imported_mib", 0.0) for one in told)
        print(f"{name:26} {seconds:7.3f} {seconds / time:6.2f} {peak:7.0f} {peak / memory:6.2f} {alone / own:6.2f}")
    ours, first = rounds["ours"][0]["losses"][0], rounds["torch f32"][0]["losses"][0]
    report = {"versions": torch_env.versions(interpreter), "rounds": rounds}
    to = options.json or work / "report-train.json"
    to.write_text(json.dumps(report, indent=1))
    say(f"report: {to}")
    failures = []
    if abs(ours - first) > 1e-3 * abs(first):
        failures.append(f"first losses differ: {ours} and {first}")
    if median("ours", "seconds_per_step") > time or median("ours", "peak_mib") > 0.6 * memory:
        failures.append("the floor is missed: torch's F32 time at 0.6 of its memory")
    for failure in failures:
        print(f"error: {failure}", file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())

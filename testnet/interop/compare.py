#!/usr/bin/env python3
"""Measures our engine against llama.cpp on this machine: the same files, the same token ids, the same counts.

    python3 testnet/interop/compare.py [--avx2] [--quick] [--floors testnet/interop/floors.json]

Builds what is missing (see llama_build.py and models.py; half an hour the first time), then runs rounds of ours,
theirs, ours, theirs …, every figure in a process of its own pinned to two processors. Prints a table of median
ratios and writes a JSON report. Ends with 1 when a floor is missed, with 2 when something could not be had
or did not run. --avx2 compares both without AVX-512. README.md says what each figure is.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import platform
import subprocess
import sys
import time

import llama_build
import models
import ratios
from place import HERE, ROOT, Unavailable, cargo_target, json_of, say, warm, work_dir

PROMPT_TOKENS, ANSWER_TOKENS = 512, 128
BATCHES, BATCH_TOKENS = [4, 16, 32], 64


def engine_bench() -> pathlib.Path:
    """Builds our bench and returns the program."""
    say("building the engine's bench …")
    command = ["cargo", "build", "--release", "--quiet", "--workspace", "--example", "bench"]
    if subprocess.run(command, cwd=ROOT).returncode != 0:
        raise Unavailable("the engine's bench does not build")
    return cargo_target() / "release" / "examples" / "bench"


class Comparison:
    """Who is measured, and how."""

    def __init__(self, options: argparse.Namespace, work: pathlib.Path, bench: pathlib.Path) -> None:
        self.options, self.work = options, work
        self.flavour = "avx2" if options.avx2 else "native"
        self.ours = [str(bench)]
        self.theirs = [str(llama_build.python(work, self.flavour)), str(HERE / "llama_run.py")]
        self.ours_only = ["--isa", "avx2"] if options.avx2 else []
        self.theirs_only = ["--flash", options.flash, "--kv", options.kv]
        self.theirs_only += ["--unified"] if options.unified else []

    def run(self, side: str, model: str, task: list[str], prompt: int, answer: int) -> dict:
        """One process of one side."""
        program = self.ours if side == "ours" else self.theirs
        command = [*program, str(models.path(self.work, model)), *task]
        command += ["--prompts", str(self.work / "prompts.json"), "--threads", str(self.options.threads)]
        command += ["--prompt-tokens", str(prompt), "--answer-tokens", str(answer)]
        command += ["--runs", str(self.options.runs)]
        command += self.ours_only if side == "ours" else self.theirs_only
        # Systems drop file pages that nobody has read for a while, and whoever comes first would read them from the disk.
        warm(models.path(self.work, model))
        return json_of(command, cpus=self.options.threads)

    def round(self, model: str, batches: list[int]) -> tuple[ratios.Round, ratios.Round, list[int]]:
        """Every figure once, ours and theirs in turn; and how many tokens of the answers agreed."""
        got: dict[str, ratios.Round] = {"ours": {}, "theirs": {}}
        answers = {}
        for side, figures in got.items():
            told = self.run(side, model, ["--task", "single"], PROMPT_TOKENS, ANSWER_TOKENS)
            figures["prefill"] = told["prefill_tokens_per_s"]
            figures["decode"] = told["decode_tokens_per_s"]
            figures["first_token"] = told["first_token_ms"]
            figures["load"] = told["load_ms"]
            # What the Python interpreter takes is not llama.cpp's.
            figures["memory"] = told["peak_mib"] - told.get("interpreter_mib", 0.0)
            answers[side] = told["answers"]
            if told.get("answers_ended_early"):
                say(f"{model}: some of our answers ended early; the rate is over the tokens that came")
        for batch in batches:
            for side, figures in got.items():
                task = ["--task", "batch", "--batch", str(batch)]
                told = self.run(side, model, task, BATCH_TOKENS, BATCH_TOKENS)
                figures[f"batch_{batch}"] = told["decode_tokens_per_s"]
        return got["ours"], got["theirs"], ratios.same_tokens(answers["ours"], answers["theirs"])


def processor() -> str:
    """The processor's name, where the operating system says."""
    cpuinfo = pathlib.Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0]} × {len(names)}" if names else platform.machine()


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--work", help="directory to work in; by default under cargo's target")
    parser.add_argument("--models", nargs="+", choices=models.NAMES, metavar="NAME", help=", ".join(models.NAMES))
    parser.add_argument("--avx2", action="store_true", help="AVX-512 switched off in both engines")
    parser.add_argument("--quick", action="store_true", help="one round of one run, the small model as Q4_1 and Q8_0")
    parser.add_argument("--rounds", type=int, help="3, with --quick 1")
    parser.add_argument("--runs", type=int, help="per process, after one that does not count; 2, with --quick 1")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batches", type=int, nargs="+", default=BATCHES)
    parser.add_argument("--flash", choices=["auto", "on", "off"], default="auto", help="llama.cpp's flash attention")
    parser.add_argument("--kv", choices=["f16", "f32"], default="f16", help="type of llama.cpp's cache")
    parser.add_argument("--unified", action="store_true", help="llama.cpp: one cache for all sequences")
    parser.add_argument("--floors", type=pathlib.Path, help="file of aims and floors; missing a floor is an error")
    parser.add_argument("--json", type=pathlib.Path, help="where the report goes; by default in the work directory")
    options = parser.parse_args()
    options.rounds = options.rounds or (1 if options.quick else 3)
    options.runs = options.runs or (1 if options.quick else 2)
    few = ["smollm2-Q4_1"] if options.avx2 else ["smollm2-Q4_1", "smollm2-Q8_0"]
    options.models = options.models or (few if options.quick or options.avx2 else models.NAMES)
    return options


def main() -> int:
    options = arguments()
    try:
        work = work_dir(options.work)
        flavour = "avx2" if options.avx2 else "native"
        # Model files are made by the native build whichever is compared.
        info = {name: llama_build.build(work, name) for name in sorted({"native", flavour})}[flavour]
        maker = [str(llama_build.python(work, "native")), str(HERE / "models.py"), "--work", str(work)]
        if subprocess.run([*maker, "--only", *options.models]).returncode != 0:
            raise Unavailable("the model files could not be made")
        comparison = Comparison(options, work, engine_bench())
        rounds: dict[str, list] = {model: [] for model in options.models}
        agreed: dict[str, list[int]] = {}
        for number in range(options.rounds):
            for model in options.models:
                say(f"round {number + 1} of {options.rounds}: {model} …")
                ours, theirs, agreed[model] = comparison.round(model, options.batches)
                rounds[model].append((ours, theirs))
    except (Unavailable, RuntimeError) as problem:
        print(f"error: {problem}", file=sys.stderr)
        return 2
    summaries = {model: ratios.summary(pairs) for model, pairs in rounds.items()}
    floors = json.loads(options.floors.read_text())[flavour] if options.floors else {}
    verdict = ratios.verdicts(summaries, floors)
    report = {
        "made": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "machine": processor(),
        "load_average": os.getloadavg(),
        "threads": options.threads,
        "rounds_of": options.rounds,
        "llama_cpp": {
            "package": llama_build.PACKAGE, "build": flavour, "system_info": info,
            "flash_attention": options.flash, "kv": options.kv, "unified": options.unified,
        },
        "summary": summaries,
        "verdict": verdict,
        "same_tokens_before_first_difference": agreed,
        "rounds": rounds,
    }
    to = options.json or work / f"report-{flavour}.json"
    to.write_text(json.dumps(report, indent=1))
    print(ratios.table(summaries, verdict))
    say(f"report: {to}")
    missed = [line for line in verdict if line["met"] == "missed"]
    for line in missed:
        print(f"error: {line['model']} {line['figure']}: {line['ratio']} is below {line['floor']}", file=sys.stderr)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())

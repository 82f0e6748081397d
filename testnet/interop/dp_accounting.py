#!/usr/bin/env python3
"""Compares our privacy accountant with Google's dp-accounting, to 1e-8.

    python3 testnet/interop/dp_accounting.py [--work DIR]

Installs the package `dp-accounting` with pip into an environment of its own below the work directory, and asks both
for epsilon on a grid of sampling rates, noise multipliers, steps and deltas, at the same orders, with runs
composed. Ends with 1 when they differ, with 2 when the package cannot be had here.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import pathlib
import subprocess
import sys

import place

PACKAGE = "dp-accounting==0.6.0"
TOLERANCE = 1e-8

RATES = ["0.0001", "0.001", "0.015625", "0.02", "0.1", "0.5", "1"]
NOISES = ["0.4", "0.8", "1.0", "1.1", "2.0", "4.0", "20.0"]
STEPS = ["1", "37", "1000", "20000"]
DELTAS = ["1e-5", "1e-6", "1e-9"]

# What runs inside the environment: reads lines as our own example does, prints an epsilon for each.
THEIRS = """
import json, sys
import dp_accounting
from dp_accounting import rdp

ORDERS = [*range(2, 65), 128, 256, 512, 1024]
found = []
for delta, runs in json.load(sys.stdin):
    accountant = rdp.RdpAccountant(ORDERS, dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE)
    for rate, noise, steps in runs:
        event = dp_accounting.PoissonSampledDpEvent(float(rate), dp_accounting.GaussianDpEvent(float(noise)))
        accountant.compose(event, int(steps))
    found.append(accountant.get_epsilon(float(delta)))
print(json.dumps(found))
"""


def grid() -> list[tuple[str, list[tuple[str, str, str]]]]:
    """Single runs, and some composed of two."""
    single = [
        (delta, [(rate, noise, steps)])
        for rate, noise, steps, delta in itertools.product(RATES, NOISES, STEPS, DELTAS)
    ]
    pairs = itertools.pairwise(itertools.product(RATES[1:], NOISES[1:], STEPS[1:3]))
    return single + [("1e-5", list(pair)) for pair in pairs]


def environment(work: pathlib.Path) -> pathlib.Path:
    """Python with dp-accounting, made if it is not there."""
    venv = work / "venv-dp-accounting"
    python, done = venv / "bin" / "python", venv / ".installed"
    if done.is_file() and done.read_text() == PACKAGE:
        return python
    place.say(f"installing {PACKAGE} (a minute)")
    place.logged([sys.executable, "-m", "venv", "--clear", str(venv)], work / "venv.log")
    place.logged([str(python), "-m", "pip", "install", PACKAGE], work / "pip-dp-accounting.log")
    done.write_text(PACKAGE)
    return python


def ours(cases) -> list[float]:
    """What our accountant says."""
    lines = "".join(
        f"{delta}: {' '.join(' '.join(run) for run in runs)}\n" for delta, runs in cases
    )
    command = ["cargo", "run", "-q", "-p", "allmend-scheduler", "--example", "accountant", "--", "-"]
    told = subprocess.run(command, cwd=place.ROOT, input=lines, capture_output=True, text=True)
    if told.returncode != 0:
        raise RuntimeError(f"our accountant failed:\n{told.stderr}")
    return [float(line.split()[0]) for line in told.stdout.splitlines()]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", help="where things are kept; default: <cargo target>/interop")
    work = place.work_dir(parser.parse_args().work)
    try:
        python = environment(work)
        cases = grid()
        told = subprocess.run(
            [str(python), "-I", "-c", THEIRS], input=json.dumps(cases), capture_output=True, text=True, env={**os.environ}
        )
        if told.returncode != 0:
            raise place.Unavailable(f"dp-accounting does not run here:\n{told.stderr}")
    except place.Unavailable as error:
        place.say(f"NOT COMPARED with dp-accounting: {error}")
        return 2
    theirs, mine = json.loads(told.stdout.splitlines()[-1]), ours(cases)
    if len(mine) != len(cases) or len(theirs) != len(cases):
        raise RuntimeError(f"{len(cases)} cases, {len(mine)} answers of ours, {len(theirs)} of theirs")
    wrong, worst, zeros = [], 0.0, 0
    for case, one, other in zip(cases, mine, theirs):
        # Theirs calls what is revealed nothing where it is far below delta. The formula does not, and so ours
        # says more there, never less.
        if other == 0.0 and one >= 0.0:
            zeros += 1
            continue
        # A large epsilon is a sum of many floats in both, so its digits are counted.
        difference = abs(one - other) / max(1.0, abs(other))
        worst = max(worst, difference)
        if difference > TOLERANCE:
            wrong.append((case, one, other))
    for (delta, runs), one, other in wrong[:20]:
        print(f"delta {delta}, runs {runs}: ours {one:.12f}, dp-accounting {other:.12f}")
    print(
        f"{len(cases)} cases, {zeros} where theirs is 0; of the others {len(wrong)} differ by more than "
        f"{TOLERANCE}, the largest difference is {worst:.1e}"
    )
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())

"""Where the comparison keeps its things, and how it starts other programs.

Everything lies in one directory, by default ``<cargo target>/interop``: virtual environments, model files,
prompts, reports. Nothing is written elsewhere, and removing the directory undoes everything.
"""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
HERE = pathlib.Path(__file__).resolve().parent


class Unavailable(Exception):
    """Something that the comparison needs cannot be had here; the text says what and why."""


def say(text: str) -> None:
    """Tells the person who waits what is going on; results go to standard output, this does not."""
    print(f"interop: {text}", file=sys.stderr, flush=True)


def cargo_target() -> pathlib.Path:
    """Cargo's target directory, as cargo itself sees it."""
    command = ["cargo", "metadata", "--no-deps", "--offline", "--format-version", "1"]
    try:
        told = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise Unavailable(f"cargo does not say where it builds: {error}") from error
    return pathlib.Path(json.loads(told.stdout)["target_directory"])


def work_dir(given: str | None) -> pathlib.Path:
    """The directory of the comparison, made if it is not there."""
    work = pathlib.Path(given).resolve() if given else cargo_target() / "interop"
    work.mkdir(parents=True, exist_ok=True)
    return work


def logged(command: list[str], log: pathlib.Path, env: dict[str, str] | None = None) -> None:
    """Runs a program whose output only matters when it fails.

    Raises ``Unavailable`` with the end of the log when it does.
    """
    with log.open("wb") as out:
        try:
            status = subprocess.run(
                command, stdout=out, stderr=subprocess.STDOUT, env={**os.environ, **(env or {})}
            ).returncode
        except OSError as error:
            raise Unavailable(f"{command[0]} cannot be started: {error}") from error
    if status != 0:
        tail = log.read_text(errors="replace").splitlines()[-15:]
        raise Unavailable(f"{' '.join(command[:6])} failed, see {log}:\n" + "\n".join(tail))


def json_of(command: list[str], env: dict[str, str] | None = None, cpus: int | None = None) -> dict:
    """Runs a program pinned to the first ``cpus`` processors allowed and returns the last line that it
    prints, which is JSON. Raises ``RuntimeError`` with its error output when it fails."""
    allowed = sorted(os.sched_getaffinity(0))
    pin = (lambda: os.sched_setaffinity(0, allowed[:cpus])) if cpus else None
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, **(env or {})}, preexec_fn=pin
    )
    if done.returncode != 0:
        tail = "\n".join(done.stderr.splitlines()[-15:])
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}:\n{tail}")
    return json.loads(done.stdout.splitlines()[-1])


def warm(path: pathlib.Path) -> None:
    """Reads a file so that the system has it in memory."""
    with path.open("rb", buffering=0) as file:
        buffer = bytearray(4 << 20)
        while file.readinto(buffer):
            pass


def sha256(path: pathlib.Path) -> str:
    """Hexadecimal digest of a file, read in parts."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

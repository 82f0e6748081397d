"""Whether MLCommons' own reader takes what we say about datasets (specs/dataset.md §6).

Reads the description in ``specs/vectors/dataset.json``, or the files given, with ``mlcroissant`` from PyPI in
a virtual environment of its own. Ends with 0 if it is taken and says what was meant, with 1 if not, and with 2,
saying why, if ``mlcroissant`` cannot be had here: that is no pass.

    python3 testnet/interop/croissant.py [--work DIR] [FILE.json ...]
"""

from __future__ import annotations

import argparse
import json
import pathlib
import subprocess
import sys

import place

#: The release that was tried. Another may read another version of Croissant.
PACKAGE = "mlcroissant==1.1.1"

#: Runs inside the virtual environment: prints what mlcroissant understood, as one line of JSON.
READER = """
import json, sys
import mlcroissant as mlc
from mlcroissant._src.core.context import CroissantVersion
dataset = mlc.Dataset(sys.argv[1])
meta = dataset.metadata
json.dump({
    "errors": sorted(meta.ctx.issues.errors),
    "warnings": sorted(meta.ctx.issues.warnings),
    "version_of_format": str(meta.ctx.conforms_to),
    "name": meta.name,
    "license": [str(licence) for licence in meta.license or []],
    "languages": meta.in_language,
    "purposes": meta.data_use_cases,
    "sensitive": meta.personal_sensitive_information,
    "version": meta.version,
    "files": {file.id: file.sha256 for file in meta.file_objects},
    "record_sets": {s.id: [field.id for field in s.fields] for s in meta.record_sets},
}, sys.stdout)
"""


def reader(work: pathlib.Path) -> pathlib.Path:
    """A Python that has mlcroissant, installed if it is not there yet."""
    env = work / "croissant-venv"
    python = env / "bin" / "python"
    stamp = env / PACKAGE
    if not stamp.exists():
        place.say(f"installing {PACKAGE}")
        log = work / "croissant-install.log"
        place.logged([sys.executable, "-m", "venv", str(env)], log)
        place.logged([str(python), "-m", "pip", "install", "--quiet", PACKAGE], log)
        stamp.touch()
    return python


def understood(python: pathlib.Path, path: pathlib.Path) -> dict:
    """What mlcroissant understood of a description. Raises ``RuntimeError`` if it refuses it."""
    done = subprocess.run([str(python), "-c", READER, str(path)], capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError("\n".join(done.stderr.splitlines()[-15:]))
    return json.loads(done.stdout.splitlines()[-1])


def differences(said: dict, read: dict) -> list[str]:
    """Where what was read is not what was said."""
    expected = {
        "errors": [],
        "name": said["name"],
        "license": [said["license"]],
        "languages": said["inLanguage"],
        "purposes": said["rai:dataUseCases"],
        "sensitive": said["rai:personalSensitiveInformation"],
        "version": said["version"],
        "files": {file["@id"]: file["sha256"] for file in said["distribution"]},
        "record_sets": {s["@id"]: [field["@id"] for field in s["field"]] for s in said["recordSet"]},
    }
    return [
        f"{what}: said {meant!r}, understood {read.get(what)!r}"
        for what, meant in expected.items()
        if read.get(what) != meant
    ]


def main() -> int:
    """Checks every description."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", help="where the virtual environment lies")
    parser.add_argument("files", nargs="*", type=pathlib.Path)
    args = parser.parse_args()
    try:
        work = place.work_dir(args.work)
        python = reader(work)
    except place.Unavailable as error:
        print(f"NOT CHECKED: {error}", file=sys.stderr)
        return 2
    files = args.files
    if not files:
        vectors = json.loads((place.ROOT / "specs" / "vectors" / "dataset.json").read_text())
        ours = work / "croissant.json"
        ours.write_text(json.dumps(vectors["croissant"], ensure_ascii=False, indent=1))
        files = [ours]
    wrong = 0
    for path in files:
        try:
            read = understood(python, path)
        except RuntimeError as error:
            print(f"{path}: refused by {PACKAGE}:\n{error}")
            wrong += 1
            continue
        found = differences(json.loads(path.read_text()), read)
        for warning in read["warnings"]:
            print(f"{path}: warning: {warning}")
        for difference in found:
            print(f"{path}: {difference}")
        print(f"{path}: {'differs' if found else 'taken'}, as {read['version_of_format']}")
        wrong += bool(found)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())

#!/usr/bin/env python3
"""Builds llama.cpp from source, the one that this machine's processor likes best and, with --avx2, one
without AVX-512, each in a virtual environment of its own.

    python3 testnet/interop/llama_build.py [--avx2] [--work DIR]

It is the release that the package llama-cpp-python carries. What came out is asked of the library itself:
a build whose instruction sets are not the wanted ones is refused. About ten minutes each on two cores; what is
there already is kept.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import re
import subprocess
import sys

from place import Unavailable, logged, say, work_dir

PACKAGE = "llama-cpp-python==0.3.36"
# NumPy finds the largest logit, gguf writes model files.
ALSO = ["numpy", "gguf"]

COMMON = "-DLLAVA_BUILD=OFF -DGGML_CCACHE=OFF -DCMAKE_BUILD_TYPE=Release"
FLAVOURS = {
    "native": f"{COMMON} -DGGML_NATIVE=ON",
    # With GGML_NATIVE off every instruction set is named by hand.
    "avx2": f"{COMMON} -DGGML_NATIVE=OFF -DGGML_SSE42=ON -DGGML_AVX=ON -DGGML_AVX2=ON -DGGML_FMA=ON"
    " -DGGML_F16C=ON -DGGML_BMI2=ON -DGGML_AVX_VNNI=OFF -DGGML_AVX512=OFF -DGGML_AVX512_VBMI=OFF"
    " -DGGML_AVX512_VNNI=OFF -DGGML_AVX512_BF16=OFF",
}


def python(work: pathlib.Path, flavour: str) -> pathlib.Path:
    """The interpreter that has this build of llama.cpp."""
    return work / f"venv-{flavour}" / "bin" / "python"


def build(work: pathlib.Path, flavour: str) -> str:
    """Makes sure that a build is there and is what it claims to be; returns what it says of itself.

    Raises ``Unavailable`` when the package cannot be had, does not build, or came out different.
    """
    interpreter = python(work, flavour)
    if not works(interpreter):
        venv = interpreter.parents[1]
        say(f"building {PACKAGE} ({flavour}), about ten minutes …")
        logged([sys.executable, "-m", "venv", "--clear", str(venv)], work / f"venv-{flavour}.log")
        install = [str(interpreter), "-m", "pip", "install", "--verbose"]
        # Without the cache: pip would hand out the other flavour's build under the same name.
        install += ["--no-cache-dir", "--no-binary", "llama-cpp-python", PACKAGE, *ALSO]
        jobs = str(min(2, os.cpu_count() or 1))
        env = {"CMAKE_ARGS": FLAVOURS[flavour], "CMAKE_BUILD_PARALLEL_LEVEL": jobs}
        logged(["nice", "-n", "10", *install], work / f"build-{flavour}.log", env)
    info = system_info(interpreter)
    check(flavour, info)
    return info


def works(interpreter: pathlib.Path) -> bool:
    """Whether an earlier build can be used."""
    command = [str(interpreter), "-c", "import gguf, llama_cpp, numpy; print(llama_cpp.__version__)"]
    try:
        told = subprocess.run(command, capture_output=True, text=True)
    except OSError:
        return False
    return told.returncode == 0 and told.stdout.strip() == PACKAGE.partition("==")[2]


def system_info(interpreter: pathlib.Path) -> str:
    """Instruction sets and options, in llama.cpp's own words."""
    code = "import llama_cpp; print(llama_cpp.llama_print_system_info().decode())"
    told = subprocess.run([str(interpreter), "-c", code], capture_output=True, text=True)
    if told.returncode != 0:
        raise Unavailable(f"the built llama.cpp does not run: {told.stderr.strip()[-400:]}")
    return told.stdout.strip().splitlines()[-1]


def features(info: str) -> set[str]:
    """Names of what is switched on."""
    return set(re.findall(r"(\w+) = 1", info))


def check(flavour: str, info: str) -> None:
    """Refuses a build with other instruction sets than the flavour's name says."""
    on = features(info)
    processor = pathlib.Path("/proc/cpuinfo")
    flags = processor.read_text() if processor.exists() else ""
    if flavour == "native":
        wanted = {"AVX512": "avx512f", "AVX512_VNNI": "avx512_vnni", "AVX2": "avx2"}
        missing = [name for name, flag in wanted.items() if f" {flag}" in flags and name not in on]
    else:
        missing = [name for name in ("AVX2", "FMA", "F16C") if name not in on]
        missing += [f"no {name}" for name in sorted(on) if name.startswith(("AVX512", "AVX_VNNI"))]
    if missing:
        raise Unavailable(f"the {flavour} build lacks {', '.join(missing)}; it says: {info}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--avx2", action="store_true", help="also the build without AVX-512")
    parser.add_argument("--work", help="directory to work in; by default under cargo's target")
    options = parser.parse_args()
    try:
        work = work_dir(options.work)
        for flavour in ["native", "avx2"] if options.avx2 else ["native"]:
            print(f"{flavour}: {build(work, flavour)}")
    except Unavailable as problem:
        print(f"error: {problem}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())

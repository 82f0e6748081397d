"""torch + PEFT's side of train_compare.py: the same steps as the engine's `train_bench`; prints a line of JSON.

    train_torch.py MODEL.gguf --mode f32|f32-checkpointed|bf16 [--batch N] [--tokens N] [--rank N] [--steps N]
"""

import argparse
import json
import pathlib
import resource
import statistics
import subprocess
import sys
import time

parser = argparse.ArgumentParser()
parser.add_argument("model", type=pathlib.Path)
parser.add_argument("--mode", choices=["f32", "f32-checkpointed", "bf16"], default="f32")
parser.add_argument("--batch", type=int, default=4)
parser.add_argument("--tokens", type=int, default=128)
parser.add_argument("--rank", type=int, default=8)
parser.add_argument("--steps", type=int, default=5)
parser.add_argument("--threads", type=int, default=2)
options = parser.parse_args()

import torch  # noqa: E402
from peft import LoraConfig, get_peft_model  # noqa: E402
from transformers import AutoModelForCausalLM  # noqa: E402

torch.set_num_threads(options.threads)


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def row(step: int, number: int) -> list[int]:
    """The same ids as `train_bench`'s."""
    place = (step * 1_000 + number) * 7_919
    return [100 + (place + at * 104_729) % 40_009 for at in range(options.tokens)]


EXPAND = """
import sys, torch, transformers
model = transformers.AutoModelForCausalLM.from_pretrained(sys.argv[1], gguf_file=sys.argv[2], dtype=torch.float32)
# It is expanded already; what is left of the quantiser would only refuse to be written.
model.hf_quantizer = None
model.config.__dict__.pop("quantization_config", None)
model.save_pretrained(sys.argv[3])
"""

# The model is expanded once and saved as safetensors, in a process of its own: what that takes, and reading GGUF,
# must not be in this one's peak, which survives an exec.
expanded = options.model.with_suffix(".torch")
if not (expanded / "config.json").exists():
    subprocess.run([sys.executable, "-c", EXPAND, options.model.parent, options.model.name, expanded], check=True)

imported = peak_mib()
model = AutoModelForCausalLM.from_pretrained(expanded, dtype=torch.float32)
model.config.use_cache = False
config = LoraConfig(r=options.rank, lora_alpha=2 * options.rank, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
model = get_peft_model(model, config)
if options.mode == "f32-checkpointed":
    model.enable_input_require_grads()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
model.train()
trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
optimiser = torch.optim.AdamW(trained, lr=1e-3, weight_decay=0.0)
times, losses = [], []
for step in range(options.steps + 1):
    ids = torch.tensor([row(step, number) for number in range(options.batch)])
    start = time.perf_counter()
    with torch.autocast("cpu", torch.bfloat16, enabled=options.mode == "bf16"):
        loss = model(input_ids=ids, labels=ids).loss
    loss.backward()
    torch.nn.utils.clip_grad_norm_(trained, 1.0)
    optimiser.step()
    optimiser.zero_grad()
    times.append(time.perf_counter() - start)
    losses.append(loss.item())
print(json.dumps({
    "seconds_per_step": statistics.median(times[1:]),
    "seconds": sorted(times[1:]),
    "peak_mib": peak_mib(),
    "imported_mib": imported,
    "losses": losses,
    "parameters": sum(parameter.numel() for parameter in trained),
}))

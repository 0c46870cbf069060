"""Models made from a seed: real in form (safetensors shards, index, config), random in content."""

import hashlib
import json
import random
import struct
from pathlib import Path


def write_model(directory, seed, shards=2, shard_bytes=8 << 20, small_files=4):
    """Writes a model and returns {path: size}. Equal arguments give equal bytes.

    Shards hold one tensor for each started MiB; `small_files` further files are of a few KiB, one of them empty and one
    in a folder, as real repositories have them.
    """
    directory, rng = Path(directory), random.Random(seed)
    directory.mkdir(parents=True, exist_ok=True)
    index = {}
    for shard in range(shards):
        name = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
        index |= _write_shard(directory / name, rng, shard, shard_bytes)
    texts = {
        "config.json": {"architectures": ["RigForCausalLM"], "hidden_size": 1024, "seed": seed},
        "model.safetensors.index.json": {"metadata": {"total_size": shards * shard_bytes}, "weight_map": index},
        "tokenizer.json": {"version": "1.0", "model": {"type": "BPE", "vocab": {}, "merges": []}},
    }
    for name, value in texts.items():
        (directory / name).write_text(json.dumps(value, indent=1, sort_keys=True))
    for number in range(small_files):
        path = directory / ("1_Pooling/config.json" if number == 1 else f"vocab-{number}.txt")
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"" if number == 0 else rng.randbytes(rng.randrange(1, 8192)))
    return {str(path.relative_to(directory)): path.stat().st_size for path in sorted(directory.rglob("*")) if path.is_file()}


def _write_shard(path, rng, shard, size):
    tensors, header, at = max(1, size >> 20), {}, 0
    for number in range(tensors):
        end = size * (number + 1) // tensors // 2 * 2
        header[f"model.layers.{shard}.{number}.weight"] = {"dtype": "F16", "shape": [(end - at) // 2], "data_offsets": [at, end]}
        at = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        while at > 0:
            file.write(rng.randbytes(min(at, 4 << 20)))
            at -= min(at, 4 << 20)
    return dict.fromkeys(header, path.name)


def digests(directory):
    """{relative path: sha256} of every file below a directory, symbolic links not followed: two trees are equal when these are."""
    found = {}
    for path in sorted(Path(directory).rglob("*")):
        if path.is_file() and not path.is_symlink():
            with open(path, "rb") as file:
                found[str(path.relative_to(directory))] = hashlib.file_digest(file, "sha256").hexdigest()
    return found

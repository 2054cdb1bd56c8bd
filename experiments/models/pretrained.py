"""Initial weights from a local file: torchvision's or timm's residual networks, or our models."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import msgpack
import numpy as np
from flax import serialization, traverse_util
from numpy.typing import NDArray

from experiments.host.errors import DataError, RunError
from experiments.host.inputs import ascii_safe, read_bytes, said_by
from experiments.models import create_model

_FLOATS: dict[str, Any] = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": jnp.bfloat16,
}

# Our names of modules and leaves to torchvision's, where they differ; blocks come on top.
_TORCH_NAMES = {
    "stem": "conv1",
    "stem_norm": "bn1",
    "norm1": "bn1",
    "norm2": "bn2",
    "norm3": "bn3",
    "conv_shortcut": "downsample.0",
    "norm_shortcut": "downsample.1",
    "head": "fc",
    "kernel": "weight",
    "scale": "weight",
    "mean": "running_mean",
    "var": "running_var",
}


def save_weights(path: str | os.PathLike[str], variables: Mapping[str, Any]) -> None:
    """Write a model's variables as .msgpack (flax.serialization), for `load_weights`."""
    path = Path(path)
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(serialization.to_bytes(jax.device_get(variables)))
    os.replace(partial, path)


def load_weights(
    path: str | os.PathLike[str], variables: Mapping[str, Any], model_name: str
) -> tuple[dict[str, Any], str]:
    """Put the weights of a file in the place of the initial ones.

    The classifier stays the initial one where the file's has another number of classes or is of
    another kind. Every other tensor of the model must be in the file, with the model's shape, and
    the file may hold no further one.

    Args:
      path: what `save_weights` wrote (.msgpack), or a residual network under torchvision's names
        (.safetensors; timm's names are the same): conv1.weight, bn1.weight, bn1.running_mean,
        layer1.0.conv1.weight, layer1.0.downsample.0.weight, fc.weight and so on, with kernels
        [out, in / groups, H, W]. float16, bfloat16 and float64 become float32.
      variables: what the model's `init` returned.
      model_name: its name, a key of MODELS.

    Returns:
      The new variables, float32, and a note on them for the report. It names the file with the
      first eight digits of its SHA-256, which torchvision has in its file names, and says whether
      the classifier is the file's.

    Raises:
      RunError: the file cannot be read, is of another type, names a tensor twice, holds numbers
        that are not finite or variances below 0, or does not fit the model.
    """
    path = Path(path)
    name_of: Callable[[tuple[str, ...]], str]
    if path.suffix == ".msgpack":
        decode, name_of, prefix = _decode_msgpack, "/".join, "params/head/"
        needed, optional = [prefix + "kernel"], [prefix + "bias", prefix + "scales"]
    elif path.suffix == ".safetensors":
        decode, name_of, prefix = _decode_safetensors, _torch_names(model_name), "fc."
        needed, optional = [prefix + "weight", prefix + "bias"], []
    else:
        raise RunError(f"{path} is neither a .safetensors nor a .msgpack file")
    try:
        data = read_bytes(path)
    except DataError as error:
        raise RunError(str(error)) from error
    found = {ascii_safe(name): leaf for name, leaf in decode(data, path).items()}
    check_numbers(found, path)

    flat = traverse_util.flatten_dict(dict(variables))
    ours = {name_of(key): leaf for key, leaf in flat.items()}
    head = {name for name in ours if name.startswith(prefix)}
    needed += [name for name in ours if name not in head]
    problems = [f"{name} is missing" for name in needed if name not in found]
    known = {*needed, *optional}
    problems += [f"{name} is not in the model" for name in found if name not in known]
    for name in [name for name in found if name in ours]:
        is_shape, shape = found[name].shape, ours[name].shape
        # The last axis of whatever a classifier holds is the number of classes.
        end = -1 if name in head else None
        if is_shape[:end] != shape[:end]:
            problems.append(f"{name} is {list(is_shape)}, in the model {list(shape)}")
    if problems:
        more = f"; and {len(problems) - 4} more" if len(problems) > 4 else ""
        raise RunError(f"{path} does not fit {model_name}: {'; '.join(problems[:4])}{more}")

    given = {name: x.shape for name, x in found.items() if name.startswith(prefix)}
    note = f"{path.name} (SHA-256 {hashlib.sha256(data).hexdigest()[:8]}), "
    if fresh := given != {name: ours[name].shape for name in head}:
        *_, classes = given[needed[0]]
        *_, wanted = variables["params"]["head"]["kernel"].shape
        why = f"for {classes} classes, not {wanted}" if classes != wanted else "of another kind"
        note += f"but a fresh classifier: the file's is {why}"
    else:
        note += "classifier included"
    for key in flat:
        name = name_of(key)
        if not (fresh and name in head):
            flat[key] = jnp.asarray(found[name])
    return traverse_util.unflatten_dict(flat), note


def check_numbers(found: dict[str, NDArray[Any]], path: Path) -> None:
    """RunError for numbers that are not finite, and variances below 0."""
    for name, leaf in found.items():
        bad = leaf.size - int(np.isfinite(leaf).sum())
        if bad:
            raise RunError(
                f"{path}: {name} holds numbers that are not finite in float32 ({bad} of "
                f"{leaf.size}): take weights from before they diverged"
            )
        if name.endswith(("running_var", "/var")) and (leaf < 0).any():
            raise RunError(f"{path}: {name} holds variances below 0")


def _once(pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
    """The object of these pairs; ValueError where a key stands twice, and one would be lost."""
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"{twice!r} stands in it more than once")
    return found


def _decode_msgpack(data: bytes, path: Path) -> dict[str, NDArray[Any]]:
    try:
        msgpack.unpackb(data, object_pairs_hook=_once)
        flat = traverse_util.flatten_dict(serialization.msgpack_restore(data))
        named = [("/".join(map(str, key)), np.asarray(leaf)) for key, leaf in flat.items()]
        leaves = _once(named)
    except Exception as error:  # whatever damaged bytes make msgpack and its callers raise
        raise RunError(f"{path} is no msgpack file of weights: {said_by(error)}") from error
    for name, leaf in leaves.items():
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise RunError(f"{path}: {ascii_safe(name)} is {leaf.dtype}, not floating point")
    with np.errstate(over="ignore"):
        return {name: leaf.astype(np.float32) for name, leaf in leaves.items()}


def _decode_safetensors(data: bytes, path: Path) -> dict[str, NDArray[Any]]:
    """Torch's tensors by name, with the axes in our order: [H, W, in, out] and [in, out]."""
    found = tensors(data, path, lambda name: name.endswith("num_batches_tracked"))
    axes = {4: (2, 3, 1, 0), 2: (1, 0)}
    return {name: x.transpose(axes.get(x.ndim, range(x.ndim))) for name, x in found.items()}


def tensors(data: bytes, path: Path, spare: Callable[[str], bool]) -> dict[str, NDArray[Any]]:
    """The tensors of a .safetensors file by name, float32; those that are to spare left out."""
    try:
        import safetensors
    except ImportError as error:
        raise RunError(f"{path} needs the package safetensors: pip install safetensors") from error
    try:
        read = safetensors.deserialize(data)
        # Of a name that stands twice it keeps one tensor, and says nothing.
        length = int.from_bytes(data[:8], "little")
        json.loads(data[8 : 8 + length], object_pairs_hook=_once)
    except Exception as error:  # its own, and json's
        raise RunError(f"{path} is no safetensors file: {said_by(error)}") from error
    found = {}
    for name, tensor in read:
        if spare(name):
            continue
        if tensor["dtype"] not in _FLOATS:
            raise RunError(
                f"{path}: {ascii_safe(name)} is {tensor['dtype']}, not one of {', '.join(_FLOATS)}"
            )
        x = np.frombuffer(tensor["data"], _FLOATS[tensor["dtype"]]).reshape(tensor["shape"])
        with np.errstate(over="ignore"):
            found[name] = x.astype(np.float32)
    return found


def _torch_names(model_name: str) -> Callable[[tuple[str, ...]], str]:
    """The map from our path of a leaf, collection first, to torchvision's name."""
    sizes = getattr(create_model(model_name, 1), "stage_sizes", None)
    if sizes is None:
        raise RunError(f"torch weights are for residual networks, and {model_name} is none")
    places = [(s, b) for s, size in enumerate(sizes, start=1) for b in range(size)]
    names = _TORCH_NAMES | {f"blocks_{k}": f"layer{s}.{b}" for k, (s, b) in enumerate(places)}
    return lambda key: ".".join(names.get(part, part) for part in key[1:])

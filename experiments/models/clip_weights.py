"""CLIP's and ViT's weights from a local .safetensors file, under the names in use.

    OpenAI's and open_clip's     visual.conv1.weight, visual.transformer.resblocks.0.ln_1.weight
    Hugging Face's CLIPModel     vision_model.embeddings.patch_embedding.weight
    timm's ViT                   patch_embed.proj.weight, blocks.0.norm1.weight
    Hugging Face's ViTModel      encoder.layer.0.layernorm_before.weight, or layers.0 of version 5

Every tensor of a file is used, or left out by a name that is known (a classifier of other classes,
a pooler, buffers) and said so, or refused.
"""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from numpy.typing import NDArray

from experiments.host.errors import DataError, RunError
from experiments.host.inputs import ascii_safe, read_bytes
from experiments.models.clip import ImageTower, Size, TextTower
from experiments.models.pretrained import check_numbers, tensors

Flat = dict[str, NDArray[Any]]


class Weights(NamedTuple):
    """What a file holds, in our names and shapes; the text's parts are None of a ViT.

    Attributes:
      image: parameters of an ImageTower without head and adapters.
      text: parameters of a TextTower.
      projection: float32[width, joint], of the image's features.
      note: the file, with the first eight digits of its SHA-256, and what was left out of it.
    """

    image: dict[str, Any]
    text: dict[str, Any] | None
    projection: NDArray[Any] | None
    note: str


class _Names(NamedTuple):
    """Their name of each of our modules and leaves; `fused` where query, key, value are one."""

    outer: Mapping[str, str]
    block: str
    inner: Mapping[str, str]
    fused: str | None = None


_OPENAI_BLOCK = {
    "norm1": "ln_1", "norm2": "ln_2", "attention/out": "attn.out_proj", "hidden": "mlp.c_fc",
    "out": "mlp.c_proj",
}  # fmt: skip
_HF_BLOCK = {
    "norm1": "layer_norm1", "norm2": "layer_norm2", "hidden": "mlp.fc1", "out": "mlp.fc2",
    "attention/query": "self_attn.q_proj", "attention/key": "self_attn.k_proj",
    "attention/value": "self_attn.v_proj", "attention/out": "self_attn.out_proj",
}  # fmt: skip
_OPENAI_IMAGE = _Names(
    {
        "tokens/projection": "visual.conv1", "tokens/class_token": "visual.class_embedding",
        "tokens/positions": "visual.positional_embedding", "norm_pre": "visual.ln_pre",
        "norm": "visual.ln_post",
    },
    "visual.transformer.resblocks.", _OPENAI_BLOCK, "attn.in_proj_",
)  # fmt: skip
_OPENAI_TEXT = _Names(
    {
        "embedding": "token_embedding.weight", "positions": "positional_embedding",
        "norm": "ln_final", "projection/kernel": "text_projection",
    },
    "transformer.resblocks.", _OPENAI_BLOCK, "attn.in_proj_",
)  # fmt: skip
_HF_IMAGE = _Names(
    {
        "tokens/projection": "vision_model.embeddings.patch_embedding",
        "tokens/class_token": "vision_model.embeddings.class_embedding",
        "tokens/positions": "vision_model.embeddings.position_embedding.weight",
        "norm_pre": "vision_model.pre_layrnorm", "norm": "vision_model.post_layernorm",
    },
    "vision_model.encoder.layers.", _HF_BLOCK,
)  # fmt: skip
_HF_TEXT = _Names(
    {
        "embedding": "text_model.embeddings.token_embedding.weight",
        "positions": "text_model.embeddings.position_embedding.weight",
        "norm": "text_model.final_layer_norm", "projection": "text_projection",
    },
    "text_model.encoder.layers.", _HF_BLOCK,
)  # fmt: skip
_TIMM = _Names(
    {
        "tokens/projection": "patch_embed.proj", "tokens/class_token": "cls_token",
        "tokens/positions": "pos_embed", "norm": "norm",
    },
    "blocks.",
    {
        "norm1": "norm1", "norm2": "norm2", "attention/out": "attn.proj", "hidden": "mlp.fc1",
        "out": "mlp.fc2",
    },
    "attn.qkv.",
)  # fmt: skip
_HF_VIT_OUTER = {
    "tokens/projection": "embeddings.patch_embeddings.projection",
    "tokens/class_token": "embeddings.cls_token",
    "tokens/positions": "embeddings.position_embeddings", "norm": "layernorm",
}  # fmt: skip
_HF_VIT = _Names(
    _HF_VIT_OUTER,
    "encoder.layer.",
    {
        "norm1": "layernorm_before", "norm2": "layernorm_after", "hidden": "intermediate.dense",
        "out": "output.dense", "attention/query": "attention.attention.query",
        "attention/key": "attention.attention.key", "attention/value": "attention.attention.value",
        "attention/out": "attention.output.dense",
    },
)  # fmt: skip
_HF_VIT_5 = _Names(
    _HF_VIT_OUTER,
    "layers.",
    {
        "norm1": "layernorm_before", "norm2": "layernorm_after", "hidden": "mlp.fc1",
        "out": "mlp.fc2", "attention/query": "attention.q_proj",
        "attention/key": "attention.k_proj",
        "attention/value": "attention.v_proj", "attention/out": "attention.o_proj",
    },
)  # fmt: skip


class _Naming(NamedTuple):
    """How a kind of file names things.

    Attributes:
      known_by: a tensor that no other kind has.
      prefix: which its names may begin with, all or none.
      image, text: the towers.
      projection: of the image's features; whether it is stored [joint, width].
      spare: beginnings of names that may be there and are left out.
    """

    known_by: str
    prefix: str
    image: _Names
    text: _Names | None = None
    projection: tuple[str, bool] = ("", False)
    spare: tuple[str, ...] = ()


_NAMINGS = (
    _Naming(
        "visual.conv1.weight", "module.", _OPENAI_IMAGE, _OPENAI_TEXT, ("visual.proj", False),
        ("logit_scale", "logit_bias", "attn_mask"),
    ),
    _Naming(
        "vision_model.embeddings.patch_embedding.weight", "", _HF_IMAGE, _HF_TEXT,
        ("visual_projection.weight", True),
        ("logit_scale",),
    ),
    _Naming("patch_embed.proj.weight", "", _TIMM, spare=("head.", "pre_logits.", "fc_norm.")),
    *(
        _Naming(f"{names.block}0.layernorm_before.weight", "vit.", names,
                spare=("classifier.", "pooler."))
        for names in (_HF_VIT, _HF_VIT_5)
    ),
)  # fmt: skip
_LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias"}
_FUSED = ("attention/query", "attention/key", "attention/value")


def load_clip(path: str | os.PathLike[str], size: Size, image_side: int) -> Weights:
    """The towers of a file, for images of that side.

    Args:
      path: a .safetensors file of a model of this size; float16, bfloat16 and float64 become
        float32.
      size: of the model.
      image_side: of the images that it is to see, in pixels; where the file was made for others,
        its vectors of places are interpolated, bicubically, as a square.

    Raises:
      RunError: the file cannot be read, its names are none of the above, a tensor is missing, of
        another shape, not finite, or nothing that is known.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise RunError(f"{path} is no .safetensors file, and weights of CLIP and ViT come from one")
    try:
        data = read_bytes(path)
    except DataError as error:
        raise RunError(str(error)) from error
    read = tensors(data, path, spare=_is_buffer)
    naming, found = _named({ascii_safe(name): x for name, x in read.items()}, path)
    check_numbers(found, path)
    problems: list[str] = []
    if (naming.text is None) != (size.text is None):
        what = "CLIP's" if naming.text else "a ViT's without a text tower"
        raise RunError(f"{path} has names of {what} weights, and the model is another kind")
    image = _tower(naming.image, found, _image_shapes(size), problems, image_side // size.patch)
    text, projection = None, None
    if size.text is not None and naming.text is not None:
        text = _tower(naming.text, found, _text_shapes(size), problems)
        name, transposed = naming.projection
        projection = _take(found, name, (size.width, size.text.joint), problems, transposed)
    left = [name for name in found if not name.startswith(naming.spare)]
    problems += [f"{name} is not in the model" for name in left]
    if problems:
        more = f"; and {len(problems) - 4} more" if len(problems) > 4 else ""
        raise RunError(f"{path} does not fit the model: {'; '.join(problems[:4])}{more}")
    note = f"{path.name} (SHA-256 {hashlib.sha256(data).hexdigest()[:8]})"
    spare = sorted({name.split(".")[0] for name in found})
    if spare:
        note += f", without its {', '.join(spare)}"
    return Weights(
        traverse_util.unflatten_dict(image, sep="/"),
        None if text is None else traverse_util.unflatten_dict(text, sep="/"),
        projection,
        note,
    )


def _is_buffer(name: str) -> bool:
    """Tensors of whole numbers that say nothing of the weights."""
    return name.endswith(
        ("position_ids", "input_resolution", "context_length", "vocab_size", "num_batches_tracked")
    )


def _named(found: Flat, path: Path) -> tuple[_Naming, Flat]:
    """(the naming, the tensors without its prefix)."""
    for naming in _NAMINGS:
        for prefix in ("", naming.prefix):
            if prefix + naming.known_by in found:
                return naming, {name.removeprefix(prefix): x for name, x in found.items()}
    some = ", ".join(list(found)[:3])
    kinds = " or ".join(naming.known_by for naming in _NAMINGS)
    raise RunError(f"{path} has none of the known names ({kinds}); it has {some} and so on")


def _tower(
    names: _Names, found: Flat, shapes: Mapping[str, tuple[int, ...]], problems: list[str],
    grid: int = 0,
) -> Flat:  # fmt: skip
    """Our leaves of these shapes, taken out of `found`."""
    taken: Flat = {}
    whole: Flat = {}  # fused ones, cut below
    for ours, shape in shapes.items():
        block, _, rest = ours.partition("/") if ours.startswith("blocks_") else ("", "", ours)
        begin = f"{names.block}{block.removeprefix('blocks_')}." if block else ""
        table = names.inner if block else names.outer
        module, _, leaf = rest.rpartition("/")
        if names.fused and module in _FUSED:
            name = f"{begin}{names.fused}{_LEAVES[leaf]}"
            if name not in whole:
                of_three = (3 * shape[-1], *shape[:-1])
                whole[name] = _take(found, name, of_three, problems)
            part = np.split(whole[name], 3)[_FUSED.index(module)]
            taken[ours] = part.T if leaf == "kernel" else part
        elif rest in table:  # a leaf by itself
            if rest == "tokens/positions":
                taken[ours] = _positions(found, table[rest], shape, grid, problems)
            else:
                taken[ours] = _take(found, table[rest], shape, problems)
        else:
            name = f"{begin}{table[module]}.{_LEAVES[leaf]}"
            taken[ours] = _take(found, name, shape, problems, transposed=leaf == "kernel")
    return taken


def _take(
    found: Flat, name: str, shape: tuple[int, ...], problems: list[str], transposed: bool = False
) -> NDArray[Any]:
    """The tensor of that name, in our order of axes; a problem, and any, where it is not so."""
    if name not in found:
        problems.append(f"{name} is missing")
        return np.empty(shape, np.float32)
    x = found.pop(name)
    theirs = shape
    if transposed:
        theirs = (shape[3], shape[2], *shape[:2]) if len(shape) == 4 else shape[::-1]
    if x.size == np.prod(theirs) and x.ndim > len(theirs):  # leading axes of one
        x = x.reshape(x.shape[-len(theirs) :])
    if x.shape != theirs:
        problems.append(f"{name} is {list(x.shape)}, in the model {list(theirs)}")
        return np.empty(shape, np.float32)
    if not transposed:
        return x
    return x.transpose(2, 3, 1, 0) if x.ndim == 4 else x.T


def _positions(
    found: Flat, name: str, shape: tuple[int, ...], grid: int, problems: list[str]
) -> NDArray[Any]:
    """float32[1 + grid^2, width], of the file's own grid."""
    x = found.get(name)
    if x is None or x.shape[-1:] != shape[-1:]:
        return _take(found, name, shape, problems)
    del found[name]
    x = x.reshape(-1, shape[-1])
    patches = max(len(x) - 1, 0)
    side = round(patches**0.5)
    if not patches or side * side != patches:
        problems.append(f"{name} is of {patches} patches, which are no square")
        return x
    if side == grid:
        return x
    square = x[1:].reshape(side, side, -1)
    resized = jax.image.resize(square, (grid, grid, shape[-1]), "cubic", antialias=False)
    return np.concatenate([x[:1], np.asarray(resized).reshape(grid * grid, -1)])


def _image_shapes(size: Size) -> dict[str, tuple[int, ...]]:
    init = functools.partial(ImageTower(1, size, "linear").init, train=False)
    found = _shapes(init, (1, size.image, size.image, 3), jnp.float32)
    return {name: shape for name, shape in found.items() if not name.startswith("head/")}


def _text_shapes(size: Size) -> dict[str, tuple[int, ...]]:
    return _shapes(TextTower(size).init, (1, 2), jnp.int32)


def _shapes(init: Any, shape: tuple[int, ...], dtype: Any) -> dict[str, tuple[int, ...]]:
    """Of the parameters that `init` draws for an input of that shape."""
    found = jax.eval_shape(init, jax.random.key(0), jax.ShapeDtypeStruct(shape, dtype))
    flat = traverse_util.flatten_dict(found["params"], sep="/")
    return {name: x.shape for name, x in flat.items()}


def classifier_start(
    size: Size, text: Any, projection: Any, tokens: NDArray[Any], batch: int = 256
) -> NDArray[Any]:
    """A classifier's kernel of texts, one a class: `normalised(P normalised(t))`.

    Args:
      size: of the model.
      text: parameters of its TextTower.
      projection: P, float32[width, joint].
      tokens: int[C, T], a text of each class.
      batch: texts of a call.

    Returns:
      float32[width, C] of columns of length 1.

    Source: LIFT (Shi et al., ICML 2024), text features taken back before the projection.
    """
    call = jax.jit(TextTower(size).apply)
    rows = [
        np.asarray(call({"params": text}, jnp.asarray(tokens[first : first + batch])))
        for first in range(0, len(tokens), batch)
    ]
    features = _of_length_1(np.concatenate(rows))
    return _of_length_1(features @ np.asarray(projection).T).T


def _of_length_1(rows: NDArray[Any]) -> NDArray[Any]:
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(norms == 0, 1, norms)

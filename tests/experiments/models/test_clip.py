"""CLIP and ViT: features as PyTorch computes them under every naming, files refused by name."""

import functools
import math
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import traverse_util
from safetensors.numpy import save_file

from experiments.host.errors import RunError
from experiments.models import create_model
from experiments.models.clip import SIZES, ImageTower, Size, Text, TextTower
from experiments.models.clip_weights import classifier_start, load_clip

# The first three features of two images and two texts, in float64 by transformers 5.24.0 (torch
# 2.14.1): CLIPModel and ViTModel of these sizes, `_formula` for every tensor of more than one
# number, `_images` and `_TOKENS` (get_image_features, get_text_features, the class token).
_CLIP = Size(24, 3, 2, 8, 16, Text(40, 7, 16, 2, 2, 12))
_VIT = Size(24, 3, 2, 8, 16, None, quick=False)
_IMAGES_RECORDED = [
    [-0.14919144, 1.09215688, 0.8266481],
    [0.29935251, 1.01051393, -0.23978546],
]
_TEXTS_RECORDED = [
    [-0.82937703, -0.47752557, 0.88633033],
    [-0.74061856, -0.20854217, 0.73755075],
]
_VIT_RECORDED = [
    [-0.29545036, -0.27097267, 0.26745722],
    [-0.69731101, -0.71269379, -0.7710982],
]
_TOKENS = np.array([[38, 5, 9, 39, 0, 0, 0], [38, 3, 3, 20, 11, 7, 39]], np.int32)


def _images():
    return np.random.RandomState(0).normal(size=(2, 16, 16, 3)).astype(np.float32)


def _formula(name, shape):
    """Values of a tensor from its name alone."""
    x = np.random.RandomState(zlib.crc32(name.encode())).uniform(-1, 1, shape)
    if len(shape) == 1:
        x = 1 + x / 2 if name.endswith("weight") else x / 5
    else:
        x = x * math.sqrt(3 / math.prod(shape[1:]))
    return x.astype(np.float32)


def _block(names, width):
    """The shapes of a block by the eight names of its modules, q, k, v, out, mlp, mlp, norms."""
    shapes = {}
    sizes = [(width, width)] * 4 + [(4 * width, width), (width, 4 * width), (width,), (width,)]
    for name, shape in zip(names, sizes, strict=True):
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    return shapes


@functools.cache
def _hugging_face():
    """The state of CLIPModel."""
    attention = [f"self_attn.{x}_proj" for x in ("q", "k", "v", "out")]
    names = [*attention, "mlp.fc1", "mlp.fc2", "layer_norm1", "layer_norm2"]
    shapes = {
        "text_model.embeddings.token_embedding.weight": (40, 16),
        "text_model.embeddings.position_embedding.weight": (7, 16),
        "text_model.final_layer_norm.weight": (16,), "text_model.final_layer_norm.bias": (16,),
        "text_projection.weight": (12, 16), "visual_projection.weight": (12, 24),
        "vision_model.embeddings.class_embedding": (24,),
        "vision_model.embeddings.patch_embedding.weight": (24, 3, 8, 8),
        "vision_model.embeddings.position_embedding.weight": (5, 24),
        **{f"vision_model.{x}.{y}": (24,) for x in ("pre_layrnorm", "post_layernorm")
           for y in ("weight", "bias")},
    }  # fmt: skip
    for tower, width in (("text_model", 16), ("vision_model", 24)):
        for k in range(2):
            shapes |= {
                f"{tower}.encoder.layers.{k}.{name}": shape
                for name, shape in _block(names, width).items()
            }
    return {
        **{name: _formula(name, shape) for name, shape in shapes.items()},
        "logit_scale": np.array(2.6592, np.float32),
    }


def _openai():
    """The same weights as OpenAI and open_clip name them."""
    found = dict(_hugging_face())
    names = {
        "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
        "text_model.embeddings.position_embedding.weight": "positional_embedding",
        "text_model.final_layer_norm.": "ln_final.",
        "vision_model.embeddings.class_embedding": "visual.class_embedding",
        "vision_model.embeddings.patch_embedding.weight": "visual.conv1.weight",
        "vision_model.embeddings.position_embedding.weight": "visual.positional_embedding",
        "vision_model.pre_layrnorm.": "visual.ln_pre.",
        "vision_model.post_layernorm.": "visual.ln_post.",
        "text_model.encoder.layers.": "transformer.resblocks.",
        "vision_model.encoder.layers.": "visual.transformer.resblocks.",
        "self_attn.out_proj": "attn.out_proj", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj",
        "layer_norm1": "ln_1", "layer_norm2": "ln_2",
    }  # fmt: skip
    renamed = {
        "visual.proj": found.pop("visual_projection.weight").T.copy(),
        "text_projection": found.pop("text_projection.weight").T.copy(),
    }
    for name in [x for x in found if ".q_proj." in x]:
        parts = [found.pop(name.replace(".q_proj.", f".{x}_proj.")) for x in "qkv"]
        found[name.replace("self_attn.q_proj.", "attn.in_proj_")] = np.concatenate(parts)
    for name, x in found.items():
        for theirs, ours in names.items():
            name = name.replace(theirs, ours)
        renamed[name] = x
    return renamed


def _vit(naming):
    """The state of ViTModel, as transformers 5 has it; as files have it; as timm's."""
    attention = [f"attention.{x}_proj" for x in "qkvo"]
    names = [*attention, "mlp.fc1", "mlp.fc2", "layernorm_before", "layernorm_after"]
    shapes = {
        "embeddings.cls_token": (1, 1, 24), "embeddings.position_embeddings": (1, 5, 24),
        "embeddings.patch_embeddings.projection.weight": (24, 3, 8, 8),
        "embeddings.patch_embeddings.projection.bias": (24,),
        "layernorm.weight": (24,), "layernorm.bias": (24,),
    }  # fmt: skip
    for k in range(2):
        shapes |= {f"layers.{k}.{name}": shape for name, shape in _block(names, 24).items()}
    found = {name: _formula(name, shape) for name, shape in shapes.items()}
    if naming == "version 5":
        return {**found, "pooler.dense.weight": np.zeros((24, 24), np.float32)}
    if naming == "Hugging Face":
        changed = {
            "layers.": "encoder.layer.", "mlp.fc1": "intermediate.dense", "mlp.fc2": "output.dense",
            "attention.q_proj": "attention.attention.query",
            "attention.k_proj": "attention.attention.key",
            "attention.v_proj": "attention.attention.value",
            "attention.o_proj": "attention.output.dense",
        }  # fmt: skip
    else:
        for name in [x for x in found if ".q_proj." in x]:
            parts = [found.pop(name.replace(".q_proj.", f".{x}_proj.")) for x in "qkv"]
            found[name.replace("attention.q_proj", "attn.qkv")] = np.concatenate(parts)
        changed = {
            "layernorm_before": "norm1", "layernorm_after": "norm2", "layernorm.": "norm.",
            "layers.": "blocks.", "attention.o_proj": "attn.proj",
            "embeddings.cls_token": "cls_token", "embeddings.position_embeddings": "pos_embed",
            "embeddings.patch_embeddings.projection": "patch_embed.proj",
        }  # fmt: skip
    renamed = {}
    for name, x in found.items():
        for before, after in changed.items():
            name = name.replace(before, after)
        renamed[name if naming == "timm" else f"vit.{name}"] = x
    head = "head.weight" if naming == "timm" else "classifier.weight"
    return {**renamed, head: np.zeros((9, 24), np.float32)}


def _features(weights, size, dtype=jnp.float32):
    tower = ImageTower(3, size, "linear", dtype=dtype)
    images = jnp.asarray(_images())
    return jax.jit(lambda p: tower.apply({"params": p}, images, train=False, method="embed"))(
        weights.image
    )


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    """Hugging Face's file, read."""
    path = tmp_path_factory.mktemp("clip") / "model.safetensors"
    save_file(_hugging_face(), path)
    return load_clip(path, _CLIP, 16)


def test_features_of_clip(loaded):
    image = _features(loaded, _CLIP) @ loaded.projection
    np.testing.assert_allclose(image[:, :3], _IMAGES_RECORDED, atol=1e-5)
    text = jax.jit(TextTower(_CLIP).apply)({"params": loaded.text}, _TOKENS)
    np.testing.assert_allclose(text[:, :3], _TEXTS_RECORDED, atol=1e-5)
    assert loaded.note.startswith("model.safetensors (SHA-256 ")
    assert loaded.note.endswith("without its logit_scale")


def test_every_naming_holds_the_same(loaded, tmp_path):
    path = tmp_path / "model.safetensors"
    for change in ({}, {"input_resolution": np.array(224), "attn_mask": np.zeros((7, 7), "f")}):
        save_file({**_openai(), **change}, path)
        found = load_clip(path, _CLIP, 16)
        jax.tree.map(np.testing.assert_array_equal, found[:3], loaded[:3])
        assert found.note.endswith(
            "out its attn_mask, logit_scale" if change else "its logit_scale"
        )
    save_file({f"module.{name}": x for name, x in _openai().items()}, path)
    jax.tree.map(np.testing.assert_array_equal, load_clip(path, _CLIP, 16)[:3], loaded[:3])


def test_features_of_vit_under_its_namings(tmp_path):
    path, found = tmp_path / "vit.safetensors", []
    for naming, left in (("Hugging Face", "classifier"), ("version 5", "pooler"), ("timm", "head")):
        save_file(_vit(naming), path)
        found.append(load_clip(path, _VIT, 16))
        assert found[-1].note.endswith(f"without its {left}")
        assert found[-1].text is None and found[-1].projection is None
    jax.tree.map(np.testing.assert_array_equal, found[0].image, found[1].image)
    jax.tree.map(np.testing.assert_array_equal, found[0].image, found[2].image)
    np.testing.assert_allclose(_features(found[0], _VIT)[:, :3], _VIT_RECORDED, atol=1e-5)


def test_a_classifier_from_texts(loaded):
    """Column by column, in NumPy: back through the projection, each of length 1."""
    kernel = classifier_start(_CLIP, loaded.text, loaded.projection, _TOKENS, batch=1)
    text = np.asarray(jax.jit(TextTower(_CLIP).apply)({"params": loaded.text}, _TOKENS))
    for row, column in zip(text, kernel.T, strict=True):
        back = loaded.projection @ (row / np.linalg.norm(row))
        np.testing.assert_allclose(column, back / np.linalg.norm(back), atol=1e-6)


def test_a_classifier_is_the_same_in_calls_of_any_size(loaded):
    """Of 256 texts unless told; a text without a direction has a column of zeros."""
    tokens = np.resize(_TOKENS, (4, 7))
    whole = classifier_start(_CLIP, loaded.text, loaded.projection, tokens)
    assert whole.shape == (24, 4)
    np.testing.assert_allclose(np.linalg.norm(whole, axis=0), 1, rtol=1e-5)
    part = classifier_start(_CLIP, loaded.text, loaded.projection, tokens, 2)
    np.testing.assert_allclose(part, whole, atol=1e-6)
    nothing = classifier_start(_CLIP, loaded.text, loaded.projection * 0, tokens)
    np.testing.assert_array_equal(nothing, np.zeros((24, 4)))


def test_places_of_other_image_sizes(tmp_path):
    """A file for 16 pixels, seen at 32: what is linear in the grid's place stays linear inside."""
    state = dict(_hugging_face())
    name = "vision_model.embeddings.position_embedding.weight"
    down, across = np.meshgrid(np.arange(4), np.arange(4), indexing="ij")
    grid = (2 * down + across).reshape(-1, 1) + np.arange(24)
    state[name] = np.concatenate([state[name][:1], grid.astype(np.float32)])
    path = tmp_path / "wide.safetensors"
    save_file(state, path)
    same = load_clip(path, _CLIP, 32).image["tokens"]["positions"]
    np.testing.assert_array_equal(same, state[name])
    more = load_clip(path, _CLIP, 64).image["tokens"]["positions"]
    np.testing.assert_array_equal(more[0], state[name][0])
    inside = more[1:].reshape(8, 8, 24)[3:5, 3:5]  # no tap of the kernel outside
    place = (np.arange(3, 5) + 0.5) / 2 - 0.5
    wanted = 2 * place[:, None, None] + place[None, :, None] + np.arange(24)[None, None]
    np.testing.assert_allclose(inside, wanted, atol=1e-5)
    # Of fewer places each is between two, and no more of them count.
    down, across = np.meshgrid(np.arange(8), np.arange(8), indexing="ij")
    grid = ((2 * down + across) ** 2).reshape(-1, 1) + np.zeros(24)
    save_file({**state, name: np.concatenate([state[name][:1], grid.astype(np.float32)])}, path)
    fewer = load_clip(path, _CLIP, 32).image["tokens"]["positions"][1:].reshape(4, 4, 24)
    taps = np.array([-1, 9, 9, -1]) / 16  # Keys' cubic, half way
    around = grid[:, 0].reshape(8, 8)[1:5, 1:5]
    np.testing.assert_allclose(fewer[1, 1], taps @ around @ taps, rtol=1e-5)
    save_file({**state, name: state[name][:16]}, path)
    with pytest.raises(RunError, match="15 patches, which are no square"):
        load_clip(path, _CLIP, 16)


def _changed(**changes):
    state = {name.replace("/", "."): x for name, x in _openai().items()}
    for name, x in changes.items():
        name = name.replace("__", ".")
        state.pop(name) if x is None else state.update({name: x})
    return state


def _wide(*shape):
    return np.zeros(shape, np.float32)


@pytest.mark.parametrize(
    ("state", "said"),
    [
        ({"a": np.zeros(2, np.float32)}, r"none of the known names .*; it has a and so on"),
        (_changed(visual__proj=None), r"visual.proj is missing"),
        (_changed(visual__extra=_wide(2)), r"visual.extra is not in the model"),
        (_changed(ln_final__bias=_wide(17)), r"ln_final.bias is \[17\], in the model \[16\]"),
        (_changed(visual__proj=_wide(12, 24)), r"proj is \[12, 24\], in the model \[24, 12\]"),
        (_changed(ln_final__bias=_wide(2, 16)), r"ln_final.bias is \[2, 16\], in the model \[16\]"),
        *(
            (_changed(visual__positional_embedding=_wide(*shape)), said)
            for shape, said in (
                ((1, 24), "is of 0 patches, which are no square"),
                ((0, 24), "is of 0 patches, which are no square"),
                ((), r"embedding is \[\], in the model \[5, 24\]"),
            )
        ),
        (_changed(ln_final__bias=np.full(16, np.nan, np.float32)), "ln_final.bias holds numbers"),
        (_vit("timm"), "names of a ViT's without a text tower weights, and the model is another"),
        (
            {k: v for k, v in _openai().items() if not k.startswith("visual.ln_")},
            r"ln_post.bias is missing; .*ln_pre.weight is missing$",
        ),
        (
            {k: v for k, v in _openai().items() if "visual.ln_" not in k and "final.b" not in k},
            "; and 1 more$",
        ),
        ({f"t{k}": np.zeros(2, np.float32) for k in range(5)}, "it has t., t., t. and so on$"),
        (
            {k: v for k, v in _openai().items() if ".0." not in k},
            r"\.0\.attn.in_proj_weight is missing.*; and 20 more",
        ),
    ],
)  # fmt: skip
def test_files_that_do_not_fit_are_refused_by_name(state, said, tmp_path):
    path = tmp_path / "model.safetensors"
    save_file(state, path)
    with pytest.raises(RunError, match=said):
        load_clip(path, _CLIP, 16)


def test_half_precision_and_other_files(loaded, tmp_path):
    path = tmp_path / "half.safetensors"
    save_file({name: x.astype(np.float16) for name, x in _hugging_face().items()}, path)
    half = load_clip(path, _CLIP, 16)
    for ours, theirs in zip(
        jax.tree.leaves(half.image), jax.tree.leaves(loaded.image), strict=True
    ):
        assert ours.dtype == np.float32
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-3)
    with pytest.raises(RunError, match="names of CLIP's weights, and the model is another kind"):
        load_clip(path, _VIT, 16)
    with pytest.raises(RunError, match=r"no .safetensors file"):
        load_clip(tmp_path / "model.bin", _CLIP, 16)
    with pytest.raises(RunError, match="does not exist"):
        load_clip(tmp_path / "none.safetensors", _CLIP, 16)


def test_published_sizes():
    """Parameters of OpenAI's models: 151,277,313 with B/32, 427,616,513 with L/14.

    Counted of towers of one block and of two: each block more has as many as the second.
    """

    def numbers(model, *args):
        params = jax.eval_shape(lambda k: model.init(k, *args), jax.random.key(0))
        return sum(math.prod(x.shape) for x in jax.tree.leaves({**params["params"], "head": None}))

    def of_depth(size, n):
        size = size._replace(depth=n, text=size.text._replace(depth=n))
        images, tokens = np.zeros((1, 224, 224, 3), np.float32), np.zeros((1, 77), np.int32)
        return numbers(ImageTower(1, size, "linear"), images, False), numbers(
            TextTower(size), tokens
        )

    for name, published in (
        ("clip_vit_b32", 151_277_313), ("clip_vit_l14", 427_616_513),
    ):  # fmt: skip
        size = SIZES[name]
        (image, text), (image_2, text_2) = (of_depth(size, n) for n in (1, 2))
        image += (size.depth - 1) * (image_2 - image)
        text += (size.text.depth - 1) * (text_2 - text)
        assert image + text + size.width * size.text.joint + 1 == published  # a scale of the logits


def test_sizes_are_those_of_the_papers():
    """Width, heads, blocks, patch and image of Radford et al., Table 20, and of ViT-B/16; texts.

    The tiny ones are of no paper: B's in the small, two blocks of two heads, for 32 pixels. Heads
    change no count of parameters.
    """
    text = Text(49408, 77, 512, 8, 12, 512)
    published = {
        "clip_vit_b16": Size(768, 12, 12, 16, 224, text),
        "clip_vit_b32": Size(768, 12, 12, 32, 224, text),
        "clip_vit_l14": Size(1024, 16, 24, 14, 224, text._replace(width=768, heads=12, joint=768)),
        "vit_b16": Size(768, 12, 12, 16, 224, None, quick=False),
    }
    for name, size in published.items():
        assert SIZES[name] == size, name
        if size.text:
            assert SIZES[f"{name}_gelu"] == size._replace(quick=False)
    tiny = Size(64, 2, 2, 8, 32, Text(49408, 77, 32, 2, 2, 32))
    assert SIZES["clip_vit_tiny"] == tiny
    assert SIZES["vit_tiny"] == tiny._replace(text=None, quick=False)
    assert [size.epsilon for size in (_CLIP, _VIT)] == [1e-5, 1e-6]


def _of(call, module, *args):
    """(parameters, epsilon of every LayerNorm) of a module, drawn by jit or as shapes."""
    epsilons = {}

    def note(method, args, kwargs, context):
        if isinstance(context.module, nn.LayerNorm):
            epsilons["/".join(context.module.path)] = context.module.epsilon
        return method(*args, **kwargs)

    with nn.intercept_methods(note):
        params = call(lambda key: module.init(key, *args))(jax.random.key(0, impl="rbg"))["params"]
    return traverse_util.flatten_dict(params, sep="/"), epsilons


def test_towers_start_as_clips_do():
    """Normal of deviation 0.02, and 0.01 for the places of a text; biases 0, norms 1."""
    size = Size(96, 2, 1, 8, 32, Text(96, 77, 32, 2, 1, 96))
    images = np.zeros((1, 32, 32, 3), np.float32)
    image, epsilons = _of(jax.jit, ImageTower(50, size, "linear"), images, False)
    text, norms = _of(jax.jit, TextTower(size), np.zeros((1, 2), np.int32))
    assert list(epsilons.values()) == [1e-5] * 4 and list(norms.values()) == [1e-5] * 3
    vit = ImageTower(50, size._replace(text=None), "linear")
    shapes = lambda f: functools.partial(jax.eval_shape, f)  # noqa: E731
    assert list(_of(shapes, vit, images, False)[1].values()) == [1e-6] * 3
    assert np.std(text.pop("positions")) == pytest.approx(0.01, rel=0.1)
    drawn = {**image, **{f"text/{name}": x for name, x in text.items()}}
    assert sum(name.endswith("kernel") for name in drawn) == 15
    for name, x in drawn.items():
        if name.endswith(("bias", "scale")):
            assert (np.asarray(x) == name.endswith("scale")).all(), name
        else:
            assert np.std(x) == pytest.approx(0.02, rel=0.3), name


def test_an_adapter_is_as_wide_as_lift_has_it_where_nothing_is_said():
    """2^floor(log2(100 / (2 * 2))) channels of a tower of two blocks."""
    tower = ImageTower(100, SIZES["vit_tiny"], "adaptformer")
    images = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    found = jax.eval_shape(functools.partial(tower.init, train=False), jax.random.key(0), images)
    assert found["params"]["blocks_0"]["adapter"]["down"]["kernel"].shape == (64, 16)


def test_features_pass_through_to_the_classifier():
    """An image of one pixel's height is features: of its first pixel, mirrored of its second."""
    model = create_model("vit_tiny", 5)
    features = np.arange(2 * 2 * 64, dtype=np.float32).reshape(2, 1, 2, 64)

    @jax.jit
    def drawn(key):
        params = model.init(key, features, train=False)["params"]
        return params, model.apply({"params": params}, features, train=False)

    params, logits = jax.device_get(drawn(jax.random.key(0)))
    assert set(params) == {"head"}
    whole = features[:, 0, 0] @ params["head"]["kernel"] + params["head"]["bias"][None]
    np.testing.assert_allclose(logits, whole, rtol=1e-5)


@pytest.mark.slow
def test_equal_to_transformers(tmp_path):
    """The recorded case drawn anew, where torch and transformers are installed."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    config = transformers.CLIPConfig(
        text_config={"vocab_size": 40, "hidden_size": 16, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 7, "eos_token_id": 2},  # noqa: E501
        vision_config={"hidden_size": 24, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 3, "image_size": 16, "patch_size": 8},  # noqa: E501
        projection_dim=12,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.CLIPModel(config).eval()
    state = {name: x.numpy() for name, x in model.state_dict().items()}
    path = tmp_path / "model.safetensors"
    save_file({name: np.ascontiguousarray(x) for name, x in state.items()}, path)
    found = load_clip(path, _CLIP, 16)
    pixels, tokens = torch.from_numpy(_images().transpose(0, 3, 1, 2)), torch.from_numpy(_TOKENS)
    with torch.no_grad():
        image = model.get_image_features(pixel_values=pixels)
        text = model.get_text_features(input_ids=tokens.long())
    image, text = (getattr(x, "pooler_output", x).numpy() for x in (image, text))
    np.testing.assert_allclose(_features(found, _CLIP) @ found.projection, image, atol=1e-5)
    ours = TextTower(_CLIP).apply({"params": found.text}, _TOKENS)
    np.testing.assert_allclose(ours, text, atol=1e-5)

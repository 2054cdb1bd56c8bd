"""Weights from files: torchvision's logits from its names, and whatever does not fit is named."""

import functools
import json
import math
import os
import sys
import zlib
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import serialization
from safetensors.numpy import save_file

from experiments.host.errors import RunError
from experiments.models import MODELS, create_model
from experiments.models.bottleneck import BottleneckResNet
from experiments.models.pretrained import load_weights, save_weights

# The first two logits of both images and the last of the second one, computed in float64 by
# torchvision 0.28.0 (torch 2.13.0): resnet.ResNet(resnet.Bottleneck, [1, 2, 1, 1], num_classes=10,
# groups=32, width_per_group=4), resnet50 and resnext50_32x4d with num_classes=10, `_formula` for
# every tensor of their state_dict, `_images` in NCHW, eval().
_RECORDED = {
    "resnext20_32x4d": (1.100263, 1.785061, 1.274150, 2.109517, 1.363146),
    "resnet50": (2.487491, 9.362606, 1.855309, 9.681846, 0.346176),
    "resnext50_32x4d": (2.009536, 9.253344, 2.114836, 9.817888, 8.081257),
}


def _images() -> np.ndarray:
    return np.random.RandomState(0).normal(size=(2, 64, 64, 3)).astype(np.float32)


def _formula(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Values of a tensor of torchvision's, from its name alone."""
    x = np.random.RandomState(zlib.crc32(name.encode())).uniform(-1, 1, shape)
    if name.endswith("running_var") or (len(shape) == 1 and name.endswith("weight")):
        x = 1 + x / 2
    elif len(shape) == 1:
        x = x / 5
    else:
        x = x * math.sqrt(3 / math.prod(shape[1:]))
    return x.astype(np.float32)


def _torchvision(
    sizes: tuple[int, ...],
    groups: int = 1,
    classes: int = 10,
    widths: tuple[int, ...] = (256, 512, 1024, 2048),
    inner: tuple[int, ...] = (64, 128, 256, 512),
    stem: int = 64,
) -> dict[str, np.ndarray]:
    """A state_dict of torchvision's bottleneck networks, without num_batches_tracked."""
    shapes: dict[str, tuple[int, ...]] = {}

    def conv(name: str, norm: str, *shape: int) -> None:
        shapes[name + ".weight"] = shape
        for leaf in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"{norm}.{leaf}"] = shape[:1]

    conv("conv1", "bn1", stem, 3, 7, 7)
    before = stem
    for stage, (size, out, mid) in enumerate(zip(sizes, widths, inner, strict=True), start=1):
        for block in range(size):
            here = f"layer{stage}.{block}."
            conv(here + "conv1", here + "bn1", mid, before, 1, 1)
            conv(here + "conv2", here + "bn2", mid, mid // groups, 3, 3)
            conv(here + "conv3", here + "bn3", out, mid, 1, 1)
            if block == 0:
                conv(here + "downsample.0", here + "downsample.1", out, before, 1, 1)
            before = out
    shapes |= {"fc.weight": (classes, before), "fc.bias": (classes,)}
    return {name: _formula(name, shape) for name, shape in shapes.items()}


def _small(classes: int = 10) -> dict[str, np.ndarray]:
    """What fits resnet14_bottleneck."""
    return _torchvision((1, 1, 1, 1), 1, classes, (32, 64, 128, 256), (8, 16, 32, 64), 8)


def _shapes(model: Any) -> Any:
    init = functools.partial(model.init, train=False)
    return jax.eval_shape(init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))


@functools.cache
def _variables(name: str, classes: int = 10, classifier: str = "linear") -> Any:
    """Every number is 0.5: what stays in place of a file's values shows, and nothing compiles."""
    return jax.tree.map(
        lambda x: np.full(x.shape, 0.5, x.dtype),
        _shapes(create_model(name, classes, classifier=classifier)),
    )


def _load(path: Path, tensors: dict[str, np.ndarray], **options: Any) -> Any:
    save_file({name: np.ascontiguousarray(x) for name, x in tensors.items()}, path)
    return load_weights(path, _variables("resnet14_bottleneck", **options), "resnet14_bottleneck")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "net.safetensors"


@pytest.mark.parametrize(
    "name",
    [
        "resnext20_32x4d",
        pytest.param("resnet50", marks=pytest.mark.slow),
        pytest.param("resnext50_32x4d", marks=pytest.mark.slow),
    ],
)
def test_logits_are_those_of_torchvision(
    name: str, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def resnext20(num_classes: int, **options: Any) -> BottleneckResNet:
        large = MODELS["resnext50_32x4d"](num_classes, **options)
        return large.clone(stage_sizes=(1, 2, 1, 1))

    monkeypatch.setitem(MODELS, "resnext20_32x4d", resnext20)
    model: Any = create_model(name, 10)
    groups, inner = (1, (64, 128, 256, 512)) if name == "resnet50" else (32, (128, 256, 512, 1024))
    save_file(_torchvision(model.stage_sizes, groups, inner=inner), path)
    variables, note = load_weights(path, _shapes(model), name)
    logits = jax.jit(functools.partial(model.apply, train=False))(variables, _images())
    got = [*logits[0, :2], *logits[1, :2], logits[1, -1]]
    np.testing.assert_allclose(got, _RECORDED[name], rtol=1e-4)
    assert note.startswith("net.safetensors (SHA-256 ") and note.endswith("classifier included")


def test_kernels_and_statistics_lie_where_they_belong(path: Path) -> None:
    tensors = _small() | {"bn1.num_batches_tracked": np.array(7)}
    variables, _ = _load(path, tensors)
    params, statistics = variables["params"], variables["batch_stats"]
    expected = tensors["layer2.0.conv2.weight"]
    got = params["blocks_1"]["conv2"]["kernel"]
    assert got[2, 0, 5, 3] == expected[3, 5, 2, 0]
    np.testing.assert_array_equal(params["head"]["kernel"], tensors["fc.weight"].T)
    np.testing.assert_array_equal(params["stem_norm"]["scale"], tensors["bn1.weight"])
    np.testing.assert_array_equal(
        statistics["blocks_3"]["norm_shortcut"]["var"], tensors["layer4.0.downsample.1.running_var"]
    )
    given = _variables("resnet14_bottleneck")
    assert jax.tree.map(lambda x: (x.shape, x.dtype), variables) == jax.tree.map(
        lambda x: (x.shape, x.dtype), given
    )


def test_half_precision_becomes_float32(path: Path) -> None:
    tensors = _small()
    half = {name: x.astype(jnp.bfloat16) for name, x in tensors.items()}
    half |= {name: tensors[name].astype(np.float16) for name in ("fc.weight", "fc.bias")}
    variables, _ = _load(path, half)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    stem = variables["params"]["stem"]["kernel"]
    np.testing.assert_array_equal(
        stem, half["conv1.weight"].astype(np.float32).transpose(2, 3, 1, 0)
    )
    np.testing.assert_allclose(variables["params"]["head"]["bias"], tensors["fc.bias"], rtol=1e-3)


@pytest.mark.parametrize(
    ("classes", "classifier", "why"),
    [(10, "linear", "for 12 classes, not 10"), (12, "normalised", "of another kind")],
)
def test_another_classifier_stays_fresh(
    classes: int, classifier: str, why: str, path: Path
) -> None:
    variables, note = _load(path, _small(12), classes=classes, classifier=classifier)
    fresh = _variables("resnet14_bottleneck", classes, classifier)["params"]["head"]
    jax.tree.map(np.testing.assert_array_equal, variables["params"]["head"], fresh)
    assert note.endswith(f"but a fresh classifier: the file's is {why}")
    stem = variables["params"]["stem"]["kernel"]
    assert stem[1, 2, 0, 3] == _small()["conv1.weight"][3, 0, 1, 2]


def test_what_does_not_fit_is_named(path: Path) -> None:
    whole = _small()

    def message(**changes: Any) -> str:
        tensors = {**whole, **{name.replace("__", "."): x for name, x in changes.items()}}
        with pytest.raises(RunError) as error:
            _load(path, {name: x for name, x in tensors.items() if x is not None})
        return str(error.value)

    absent = message(layer3__0__bn2__running_mean=None)
    assert absent.endswith("does not fit resnet14_bottleneck: layer3.0.bn2.running_mean is missing")
    assert message(fc__bias=None).endswith(": fc.bias is missing")
    surplus = message(layer1__1__conv1__weight=whole["layer1.0.conv1.weight"])
    assert surplus.endswith(": layer1.1.conv1.weight is not in the model")
    shape = message(layer1__0__conv2__weight=np.zeros((8, 4, 3, 3), np.float32))
    assert shape.endswith(": layer1.0.conv2.weight is [3, 3, 4, 8], in the model [3, 3, 8, 8]")
    # Only the number of classes may differ, not the features.
    assert "fc.weight is [128, 10]" in message(fc__weight=np.zeros((10, 128), np.float32))
    assert "bn1.bias is I32, not one of" in message(bn1__bias=np.zeros(8, np.int32))
    for missing in (4, 5):
        names = [f"layer1.0.bn{k}.{leaf}" for k in (1, 2, 3) for leaf in ("weight", "bias")][
            :missing
        ]
        said = message(**{name.replace(".", "__"): None for name in names})
        assert said.count(" is missing") == 4 and said.endswith("; and 1 more") == (missing == 5)
    with pytest.raises(RunError, match=r": fc\.bias is missing; layer1.*; and \d+ more$"):
        _load(path, {"fc.weight": whole["fc.weight"]})


def test_unreadable_files(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    variables = _variables("resnet14_bottleneck")
    for wrong, expected in (
        (path, r"net\.safetensors does not exist"),
        (path.with_suffix(".pth"), r"neither a \.safetensors nor a \.msgpack"),
    ):
        with pytest.raises(RunError, match=expected):
            load_weights(wrong, variables, "resnet14_bottleneck")
    _load(path, _small())
    for part in (path.read_bytes()[:-100], path.read_bytes()[:40], b""):
        path.write_bytes(part)
        with pytest.raises(RunError, match="is no safetensors file"):
            load_weights(path, variables, "resnet14_bottleneck")
    with pytest.raises(RunError, match="residual networks, and mlp is none"):
        load_weights(path, variables, "mlp")
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(RunError, match="pip install safetensors"):
        load_weights(path, variables, "resnet14_bottleneck")


@pytest.mark.parametrize("name", ["resnet14_bottleneck", "mlp"])
def test_own_weights_come_back(name: str, tmp_path: Path) -> None:
    path = tmp_path / "best.msgpack"
    given = _variables(name)
    trained = jax.tree.map(lambda x: x + 1, jax.device_get(given))
    save_weights(path, trained)
    assert [file.name for file in tmp_path.iterdir()] == ["best.msgpack"]
    got, note = load_weights(path, given, name)
    jax.tree.map(np.testing.assert_array_equal, got, trained)
    assert note.endswith("classifier included")
    got, note = load_weights(path, _variables(name, 12), name)
    jax.tree.map(
        np.testing.assert_array_equal,
        got["params"],
        trained["params"] | {"head": _variables(name, 12)["params"]["head"]},
    )
    assert note.endswith("the file's is for 10 classes, not 12")


def test_own_weights_that_do_not_fit(tmp_path: Path) -> None:
    path = tmp_path / "best.msgpack"
    given = _variables("mlp")
    head = given["params"]["head"]
    for tree, expected in (
        ({"params": {"head": head}}, "params/hidden_0/bias is missing; .*hidden_1/kernel is miss"),
        ({**given, "step": np.float32(3)}, "step is not in the model"),
        ({"params": {**given["params"], "head": {}}}, "params/head/kernel is missing"),
        ({**given, "step": 3}, "step is int64, not floating"),
        ([1.0], "no msgpack file of weights"),
    ):
        path.write_bytes(serialization.msgpack_serialize(jax.device_get(tree)))
        with pytest.raises(RunError, match=expected):
            load_weights(path, given, "mlp")
    save_weights(path, given)
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(RunError, match="no msgpack file of weights"):
        load_weights(path, given, "mlp")


# --- damaged ---------------------------------------------------------------------------------


def _header(data: bytes) -> dict[str, Any]:
    return json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])


def _with_header(data: bytes, header: str | bytes, tensors: bytes | None = None) -> bytes:
    """The .safetensors file with another header, and with other tensors where they are given."""
    if tensors is None:
        tensors = data[8 + int.from_bytes(data[:8], "little") :]
    header = header.encode() if isinstance(header, str) else header
    return len(header).to_bytes(8, "little") + header + tensors


def _refused(path: Path, data: bytes, *said: str, name: str = "resnet14_bottleneck") -> None:
    path.write_bytes(data)
    with pytest.raises(RunError) as error:
        load_weights(path, _variables(name), name)
    message = str(error.value)
    assert str(path) in message and message.isprintable() and len(message) < 1000
    assert all(part in message for part in said), message


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e300])
def test_numbers_that_are_not_finite(value: float, path: Path) -> None:
    for name in ("conv1.weight", "bn1.running_mean", "layer2.0.bn1.running_var", "fc.bias"):
        for dtype in (np.float64, *((np.float16,) if value != 1e300 else ())):
            tensors = _small()
            tensors[name] = tensors[name].astype(dtype)
            tensors[name].flat[3] = value
            with pytest.raises(RunError, match=f"{name} holds numbers that are not finite .*1 of"):
                _load(path, tensors)


def test_variances_below_zero(path: Path, tmp_path: Path) -> None:
    tensors = _small()
    tensors["bn1.running_var"][2] = 0  # of a channel that never differs
    _load(path, tensors)
    tensors["bn1.running_var"][2] = -1e-3
    with pytest.raises(RunError, match=r"bn1\.running_var holds variances below 0"):
        _load(path, tensors)
    given = jax.tree.map(np.array, _variables("resnet14_bottleneck"))
    given["batch_stats"]["stem_norm"]["var"][2] = -1
    save_weights(tmp_path / "w.msgpack", given)
    with pytest.raises(RunError, match="batch_stats/stem_norm/var holds variances below 0"):
        load_weights(tmp_path / "w.msgpack", given, "resnet14_bottleneck")


def test_damaged_safetensors(path: Path) -> None:
    save_file(_small(), path)
    whole = path.read_bytes()
    header = _header(whole)
    text = json.dumps(header)
    first, second = sorted(header, key=lambda name: header[name]["data_offsets"])[:2]
    said = "is no safetensors file"
    # A tensor's name twice: safetensors keeps one of them.
    twice = "{" + json.dumps(first) + ": " + json.dumps(header[first]) + ", " + text[1:]
    _refused(path, _with_header(whole, twice), said, first, "more than once")
    last = text[:-1] + ", " + json.dumps(second) + ": " + json.dumps(header[second]) + "}"
    _refused(path, _with_header(whole, last), said, f"'{second}' stands in it more than once")
    for data in (
        b"", b"\0" * 8, b"\xff" * 8, whole[:7], whole[:99], whole[:-1], whole + b"\0",
        (2**63).to_bytes(8, "little") + whole[8:], (10**9).to_bytes(8, "little") + whole[8:],
        (0).to_bytes(8, "little"), whole[8:], *map(functools.partial(_with_header, whole), (
            "", "{", "[]", "3", "null", "not JSON", text[:-1], b"\xff\xfe{}", "[" * 9999,
            text.replace('"F32"', '"F33"'), text.replace('"F32"', "null"),
        )),
    ):  # fmt: skip
        _refused(path, data)
    for change in (
        {"data_offsets": header[second]["data_offsets"]},
        {"data_offsets": [0, 10**15]}, {"data_offsets": [8, 0]}, {"data_offsets": [-4, 0]},
        {"data_offsets": [0]}, {"data_offsets": None}, {"data_offsets": "x"},
        {"shape": [10**18]}, {"shape": [2**32, 2**32]}, {"shape": [-1]}, {"shape": 3},
        {"shape": []}, {"shape": None}, {"dtype": "F16"}, {"dtype": "F64"}, {"dtype": 3},
    ):  # fmt: skip
        changed = json.dumps({**header, first: {**header[first], **change}})
        _refused(path, _with_header(whole, changed), said)
    for dtype in ("I32", "U32"):
        changed = json.dumps({**header, first: {**header[first], "dtype": dtype}})
        _refused(path, _with_header(whole, changed), f"{first} is {dtype}, not one of")
    renamed = json.dumps({("a\nb" if k == first else k): v for k, v in header.items()})
    _refused(path, _with_header(whole, renamed), f"{first} is missing; 'a\\nb' is not in the model")


def test_damaged_msgpack(tmp_path: Path) -> None:
    path = tmp_path / "w.msgpack"
    given = jax.device_get(_variables("mlp"))
    whole = serialization.msgpack_serialize(given)
    said = "no msgpack file of weights"
    for data in (
        b"", b"\xc1", b"\xff" * 9, b"junk", whole[:-1], whole[: len(whole) // 2], whole + b"\0",
        whole[1:], b"\xdf\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff", b"\x91" * 9999, b"\xc0",
        b"\x90", b"\x82" + whole[1:] + whole[1:],
    ):  # fmt: skip
        _refused(path, data, said, name="mlp")
    # A map with a key twice, of which msgpack keeps the last.
    params = serialization.msgpack_serialize(given["params"])
    key = b"\xa6params"
    _refused(path, b"\x82" + key + params + key + params, said, "more than once", name="mlp")
    both = {"params/head": given["params"]["head"], **given}
    _refused(path, serialization.msgpack_serialize(both), said, "more than once", name="mlp")
    for value, told in (
        (np.full(10, np.nan, np.float32), "head/bias holds numbers that are not finite"),
        (np.full(10, 1e300), "head/bias holds numbers that are not finite"),
        (np.zeros(10, np.int32), "head/bias is int32, not floating point"),
        (np.zeros(10, complex), "head/bias is complex128, not floating point"),
        ("x", "head/bias is <U1, not floating point"),
        (np.zeros(10, bool), "head/bias is bool, not floating point"),
    ):
        head = {**given["params"]["head"], "bias": value}
        tree = {"params": {**given["params"], "head": head}}
        _refused(path, serialization.msgpack_serialize(tree), told, name="mlp")


@pytest.mark.parametrize("suffix", [".safetensors", ".msgpack"])
def test_weights_that_are_no_file(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"w{suffix}"
    for make, said in ((os.mkfifo, "is a pipe"), (os.mkdir, "is a folder")):
        make(path)
        with pytest.raises(RunError, match=f"{path.name} {said}, not a file to read"):
            load_weights(path, _variables("resnet14_bottleneck"), "resnet14_bottleneck")
        (os.unlink if make is os.mkfifo else os.rmdir)(path)


@pytest.mark.parametrize("suffix", [".safetensors", ".msgpack"])
def test_bits_flipped_in_weights(suffix: str, tmp_path: Path) -> None:
    """Neither format has a checksum: a sentence, or finite weights of the right shapes."""
    path, given = tmp_path / f"w{suffix}", _variables("resnet14_bottleneck")
    if suffix == ".msgpack":
        save_weights(path, given)
    else:
        save_file(_small(), path)
    whole = path.read_bytes()
    for at in [*range(0, 3000, 37), *range(3000, len(whole), len(whole) // 20)]:
        data = bytearray(whole)
        data[at] ^= 0x41
        path.write_bytes(data)
        try:
            got, _ = load_weights(path, given, "resnet14_bottleneck")
        except RunError as error:
            assert str(error).isprintable()
        else:
            assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(got))
            assert jax.tree.map(np.shape, got) == jax.tree.map(np.shape, given)

"""Steps on the cores of a CPU: what is timed, and PyTorch's part by a stand-in for it."""

import contextlib
import json
import sys
from types import ModuleType, SimpleNamespace

import jax
import numpy as np
import pytest

from benchmarks import cpu_cores
from experiments.host import devices


def args_of(*flags):
    return cpu_cores.arguments().parse_args([*flags, "--out", "x"])


# ---- what is timed -------------------------------------------------------------------------------


def test_ways_are_timed_in_turn_without_the_first_round(monkeypatch):
    """In seconds 1, 2 and 4 on one device, on two 2, 1 and 2; PyTorch's of a model that it has."""
    seconds = {
        ("sgd", "1 device"): [9, 1, 2, 4], ("sgd", "2 devices, jit"): [9, 2, 1, 2],
        ("sgd", "PyTorch"): [9, 4, 4, 4],
    }  # fmt: skip
    taken = {key: iter(values) for key, values in seconds.items()}
    spent = []

    def step_of(key):
        return lambda: spent.append(next(taken[key]))

    monkeypatch.setattr(
        cpu_cores, "our_steps",
        lambda model, args: {key: step_of(key) for key in list(seconds)[:2]},
    )  # fmt: skip
    asked = []

    def torch_steps(blocks, batch):
        asked.append((blocks, batch))
        return {"sgd": step_of(("sgd", "PyTorch"))}

    monkeypatch.setattr(cpu_cores, "torch_steps", torch_steps)
    clock = SimpleNamespace(perf_counter=lambda: 50.0 + sum(spent))
    monkeypatch.setattr(cpu_cores, "time", clock)
    args = args_of("--rounds", "3", "--batch-size", "8", "--torch")
    one, two, torch = cpu_cores.measure("resnet20", args)
    assert asked == [(3, 8)] and {row["rounds"] for row in (one, two, torch)} == {3}
    assert {**one} == {
        "model": "resnet20", "rule": "sgd", "way": "1 device", "batch_size": 8, "rounds": 3,
        "step_ms": 2000, "over_one_device": 1, "quartiles": [1, 1],
    }  # fmt: skip
    assert (two["way"], two["step_ms"]) == ("2 devices, jit", 2000)
    assert (two["over_one_device"], two["quartiles"]) == (0.5, [0.5, 1.25])  # of 2, 0.5 and 0.5
    assert (torch["way"], torch["over_one_device"]) == ("PyTorch", 2)  # of 4, 2 and 1
    for model, flags in (("vit_ti4", ["--torch"]), ("resnet20", [])):
        taken.update({key: iter(values) for key, values in seconds.items()})
        rows = cpu_cores.measure(model, args_of("--rounds", "3", *flags))
        assert [row["way"] for row in rows] == ["1 device", "2 devices, jit"]


def test_steps_on_one_and_on_several_devices(monkeypatch):
    """Every number of devices once, in order, one among them; of CIFAR100-LT's counts."""
    from experiments.run import parts

    made, called = [], []

    class RunOn:
        def put_inputs(self, inputs):
            return inputs.labels

        def put_state(self, state):
            return state

        def place(self, rows):
            return rows + 1

        def compile_steps(self, rule, state, inputs, rows):
            made[-1][2].append((rule, rows.shape))

            def call(state, inputs, rows):
                called.append((state, len(inputs), rows.min()))
                return state + 1, 0.0

            return call

    def of(dataset, model, loss, settings):
        made.append((settings, dataset.class_counts(), []))
        order = SimpleNamespace(of_step=lambda k: np.arange(k, 3))
        return SimpleNamespace(run_on=RunOn(), initial=7, order=order)

    monkeypatch.setattr(parts, "Parts", of)
    args = args_of("--devices", "8", "2", "--parallel", "jit", "pmap", "--batch-size", "16")
    found = cpu_cores.our_steps("mlp", args)
    ways = ["1 device", "2 devices, jit", "2 devices, pmap", "8 devices, jit", "8 devices, pmap"]
    assert list(found) == [(rule, way) for way in ways for rule in ("sgd", "imbsam")]
    assert [(one.devices, one.parallel, one.batch_size) for one, _, _ in made] == [
        (1, "jit", 16), (2, "jit", 16), (2, "pmap", 16), (8, "jit", 16), (8, "pmap", 16)
    ]  # fmt: skip
    (_, counts, given), *_ = made
    assert (len(counts), counts[0], counts[-1]) == (100, 500, 5)
    sgd, imbsam = (rule(0) for rule, _ in given)
    assert sgd.groups.shape == (0, 100) and [shape for _, shape in given] == [(1, 3)] * 2
    np.testing.assert_array_equal(imbsam.groups[0] > 0, counts <= 100)
    awaited = []
    monkeypatch.setattr(jax, "block_until_ready", awaited.append)
    step = found["imbsam", "2 devices, jit"]
    step()
    step()
    assert called == [(7, counts.sum(), 1), (8, counts.sum(), 1)]  # each goes on from the last
    assert awaited == [(8, 0.0), (9, 0.0)]  # and is over when what it gives is there


def test_what_is_measured_is_written(tmp_path, monkeypatch, capsys):
    used = []
    row = {"model": "mlp", "rule": "sgd", "way": "1 device", "step_ms": 12.34,
           "over_one_device": 1.0, "quartiles": [0.5, 2.0]}  # fmt: skip
    monkeypatch.setattr(devices, "use_devices", used.append)
    monkeypatch.setattr(devices, "cores", lambda: 6)
    monkeypatch.setattr(cpu_cores.cli, "use_compilation_cache", lambda: used.append("cache"))
    monkeypatch.setattr(cpu_cores, "measure", lambda model, args: [{**row, "model": model}])
    torch = ModuleType("torch")
    torch.__version__ = "9.9"
    monkeypatch.setitem(sys.modules, "torch", torch)
    for flags, version in (([], None), (["--torch"], "9.9")):
        given = [*flags, "--model", "mlp", "resnet8", "--devices", "2", "4", "1"]
        cpu_cores.main(cpu_cores.arguments().parse_args([*given, "--out", str(tmp_path)]))
        found = json.loads((tmp_path / "cpu_cores.json").read_text())
        assert found.get("torch") == version and found["cores"] == 6 and "device" in found
        assert [one["model"] for one in found["rows"]] == ["mlp", "resnet8"]
    assert used == [4, "cache"] * 2
    assert capsys.readouterr().out.splitlines()[0] == (
        "mlp       sgd     1 device            12.3 ms  1.00 of one device's (0.50 to 2.00)"
    )


# ---- PyTorch's part ------------------------------------------------------------------------------


class Tensor:
    """A parameter, or a gradient by it."""

    def __init__(self, value):
        self.value, self.grad = np.asarray(value, float), None

    def add_(self, other):
        self.value = self.value + other.value

    def sum(self):
        return self.value.sum()

    def __add__(self, other):
        return Tensor(self.value + other.value)

    def __rmul__(self, factor):
        return Tensor(factor * self.value)

    def __pow__(self, power):
        return Tensor(self.value**power)


class Losses:
    """|p - x_i|^2 / 2 of each row, by their weights in a sum."""

    def __init__(self, at, weights):
        self.at, self.weights = at, weights

    def __getitem__(self, rows):
        return Losses(self.at, self.weights * rows)

    def mean(self):
        return self / len(self.weights)

    def sum(self):
        return self

    def __truediv__(self, number):
        return Losses(self.at, self.weights / number)


X = np.arange(16.0) ** 2
TAIL = np.arange(16) >= 13  # 0.19 of 16 rows


@pytest.fixture
def torch(monkeypatch):
    """What is asked of PyTorch; its network is one number, or as many as it is said to be."""
    asked = {"layers": [], "steps": [], "graph": []}
    param = asked["param"] = Tensor(2.0)

    def layer(kind):
        def make(*given, **more):
            asked["layers"].append((kind, *given, more) if more else (kind, *given))
            return lambda x: x

        return make

    class Module:
        def __init__(self):
            asked["layers"].append(("block",))

    class Sequential:
        def __init__(self, *layers):
            asked["net"] = layers

        def parameters(self):
            return iter([param])

        def __call__(self, x):
            return ("logits", x)

    def grad(loss, params, retain_graph):
        asked["graph"].append(retain_graph)
        return [Tensor((loss.weights * (loss.at - X)).sum())]

    def cross_entropy(logits, labels, reduction):
        assert logits[0] == "logits" and reduction == "none"
        asked["data"] = logits[1], labels
        return Losses(float(param.value), np.ones(16))

    def sgd(params, **options):
        asked["optimizer"] = options
        return SimpleNamespace(step=lambda: asked["steps"].append(float(params[0].grad.value)))

    names = ("Conv2d", "BatchNorm2d", "ReLU", "AdaptiveAvgPool2d", "Flatten", "Linear")
    functional = SimpleNamespace(
        cross_entropy=cross_entropy, relu=lambda x: np.maximum(x, 0),
        # Of the last dimension first.
        pad=lambda x, by: np.pad(x, [(0, 0), *((by[k], by[k + 1]) for k in (4, 2, 0))]),
    )  # fmt: skip
    nn = ModuleType("torch.nn")
    nn.Module, nn.Sequential, nn.functional = Module, Sequential, functional
    for name in names:
        setattr(nn, name, layer(name))
    made = ModuleType("torch")
    made.nn, made.autograd = nn, SimpleNamespace(grad=grad)
    made.optim, made.no_grad = SimpleNamespace(SGD=sgd), contextlib.nullcontext
    made.arange, made.sqrt = np.arange, np.sqrt
    made.randn = lambda *shape: ("images", shape)
    made.randint = lambda *given: ("labels", given)
    made.set_num_threads = lambda number: asked.update(threads=number)
    for name, module in (("torch", made), ("torch.nn", nn), ("torch.nn.functional", functional)):
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(devices, "cores", lambda: 6)
    return asked


def test_pytorch_has_the_network_of_the_papers(torch):
    """He et al. (2016), 4.2: 3x3 convolutions without biases, 16, 32 and 64 filters in 2 n layers
    each, subsampled by a stride of 2; identity shortcuts, padded; SGD as in the other benchmarks.
    """
    cpu_cores.torch_steps(2, 16)
    plain = {"bias": False}

    def block(before, width, stride):
        return [
            ("block",), ("Conv2d", before, width, 3, stride, 1, plain),
            ("Conv2d", width, width, 3, 1, 1, plain), *[("BatchNorm2d", width)] * 2,
        ]  # fmt: skip

    assert torch["layers"] == [
        ("Conv2d", 3, 16, 3, 1, 1, plain), ("BatchNorm2d", 16), ("ReLU",),
        *block(16, 16, 1), *block(16, 16, 1), *block(16, 32, 2), *block(32, 32, 1),
        *block(32, 64, 2), *block(64, 64, 1),
        ("AdaptiveAvgPool2d", 1), ("Flatten",), ("Linear", 64, 100),
    ]  # fmt: skip
    assert len(torch["net"]) == 3 + 6 + 3 and torch["threads"] == 6
    assert torch["optimizer"] == {"lr": 0.01, "momentum": 0.9, "weight_decay": 5e-3}
    # 6 n + 2 layers.
    assert {name: 6 * blocks + 2 for name, blocks in cpu_cores.BLOCKS.items()} == {
        "resnet8": 8, "resnet20": 20, "resnet32": 32
    }  # fmt: skip


def test_a_shortcut_is_padded_on_both_sides(torch):
    """Layers are as if they were not there: relu(2 x) of a block that keeps its width."""
    cpu_cores.torch_steps(2, 16)
    same, wider = torch["net"][4], torch["net"][5]
    x = np.arange(-8.0, 24.0).reshape(1, 2, 4, 4)
    np.testing.assert_array_equal(same.forward(x), 2 * np.maximum(x, 0))
    wider.missing, wider.conv1 = 5, lambda x: np.full((1, 7, 2, 2), -7.0)
    found = wider.forward(x)
    assert found.shape == (1, 7, 2, 2)
    np.testing.assert_array_equal(found[:, 2:4], np.maximum(x[:, :, ::2, ::2], 0))
    assert not found[:, [0, 1, 4, 5, 6]].any()


def test_pytorch_takes_the_steps_of_the_rules(torch):
    """SGD: p less the mean. ImbSAM: of the tail at p + e, e of length rho along its gradient."""
    steps = cpu_cores.torch_steps(1, 16, rho=0.5)
    steps["sgd"]()
    p, share = 2.0, TAIL.sum() / 16
    assert torch["steps"] == pytest.approx([p - X.mean()]) and torch["graph"] == [False]
    assert torch["data"] == (("images", (16, 3, 32, 32)), ("labels", (0, 100, (16,))))
    torch["graph"].clear()
    steps["imbsam"]()
    d = share * p - X[TAIL].sum() / 16
    head = (1 - share) * p - X[~TAIL].sum() / 16
    moved = share * (p + 0.5 * np.sign(d)) - X[TAIL].sum() / 16
    assert torch["steps"][1] == pytest.approx(head + moved)
    assert torch["param"].value == pytest.approx(p)  # back from where it looked
    assert torch["graph"] == [True, False, False]  # the first pass is gone back through twice
    torch["steps"].clear()
    cpu_cores.torch_steps(1, 16)["imbsam"]()  # rho 0.05, the release's
    moved = share * (p + 0.05 * np.sign(d)) - X[TAIL].sum() / 16
    assert torch["steps"] == pytest.approx([head + moved])

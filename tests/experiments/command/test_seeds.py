"""Which seeds are asked for, in which order those together were begun, and devices of lone runs."""

import argparse
import json

import jax
import pytest

from experiments.command import seeds
from experiments.host.errors import RunError


def args_of(**given):
    return argparse.Namespace(**{"seeds": None, "num_seeds": None, "devices": None, **given})


@pytest.mark.parametrize(
    ("given", "found"),
    [({"seed": 7}, [7]), ({}, []), ({"seed": 7, "seeds": [3, 1]}, [3, 1]),
     ({"seed": 7, "num_seeds": 3}, [0, 1, 2]), ({"seeds": [2**32 - 1]}, [2**32 - 1])],
)  # fmt: skip
def test_the_seeds_that_are_asked_for(given, found):
    assert seeds.seeds_of(args_of(**given)) == found


def test_seeds_that_are_none():
    for given, said in (
        ({"seed": -1}, "a seed must be from 0"), ({"seeds": [0, 2**32]}, "a seed must be from 0"),
        ({"seeds": [3, 1, 3]}, r"--seeds must be different numbers; got \[3, 1, 3\]"),
    ):  # fmt: skip
        with pytest.raises(RunError, match=said):
            seeds.seeds_of(args_of(**given))


@pytest.mark.parametrize("held", [[5], [0, 5], [3, 0, 5]])
def test_seeds_together_stay_in_the_order_that_they_were_begun_in(tmp_path, held):
    """Of a run that was killed as it began one folder may be all that is there."""
    for seed in held:
        (tmp_path / f"seed_{seed}").mkdir()
        config = {"together": [3, 0, 5], "devices": 3}
        (tmp_path / f"seed_{seed}" / "config.json").write_text(json.dumps(config))
    args = args_of(out=str(tmp_path), resume=True, together=True)
    assert seeds.groups(args, [5, 3, 0]) == [([3, 0, 5], 3, True)]
    assert seeds.groups(args, [5, 3, 0, 1])[0].seeds == [5, 3, 0, 1]
    args.devices = 1
    assert seeds.groups(args, [0, 5, 3]) == [([3, 0, 5], 1, True)]
    # Not resumed, they are begun anew.
    args.resume = False
    assert seeds.groups(args, [0, 5, 3]) == [([0, 5, 3], 1, True)]


def test_what_was_begun_without_a_word_on_devices_had_one(tmp_path):
    (tmp_path / "seed_3").mkdir()
    (tmp_path / "seed_3" / "config.json").write_text(json.dumps({"together": [3, 4]}))
    args = args_of(out=str(tmp_path), resume=True, together=None, devices_by_default=2)
    vars(args).update(parallel="jit", examples="dependent")
    assert seeds.groups(args, [3, 4]) == [([3, 4], 1, True)]


@pytest.mark.parametrize(
    ("devices", "accumulate", "emulated", "asked"),
    [
        (None, 1, [], (9, "resnet32", 60, "dependent")),
        (None, 0, [], (9, "resnet32", 60, "dependent")),
        (None, 7, [], (9, "resnet32", 8, "dependent")), (0, 1, [0], None), (3, 1, [3], None),
    ],
)  # fmt: skip
def test_devices_are_settled_before_anything_starts_them(
    monkeypatch, devices, accumulate, emulated, asked
):
    """Those that are named; else what is best for the share of a batch that one step takes."""
    seen, by_default = [], []

    def best(*given):
        by_default.append(given)
        return 5

    monkeypatch.setattr(seeds, "emulate", seen.append)
    monkeypatch.setattr(seeds, "devices_by_default", best)
    args = args_of(
        devices=devices, batch_size=60, accumulate=accumulate, devices_by_default=9,
        model="resnet32", examples="dependent",
    )  # fmt: skip
    seeds.settle_devices(args)
    assert (seen, by_default) == (emulated, [] if asked is None else [asked])
    assert all(type(share) is int for *_, share, _ in by_default)
    assert seeds.devices_of(args) == (5 if devices is None else devices)


@pytest.mark.parametrize(
    ("backend", "joined", "cores", "batch", "found", "emulated"),
    [("cpu", False, 3, 12, 3, [3]), ("cpu", False, 4, 6, 3, [4]), ("cpu", False, 9, 72, 8, [8]),
     ("gpu", False, 3, 12, 7, [3]), ("cpu", True, 3, 12, 7, [])],
)  # fmt: skip
def test_how_many_devices_there_are_where_nobody_said(
    monkeypatch, backend, joined, cores, batch, found, emulated
):
    """Of a CPU a core each, eight at most, that share a batch evenly; else what the entry has."""
    seen = []
    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: joined)
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    monkeypatch.setattr(jax, "device_count", lambda: cores)
    monkeypatch.setattr(seeds, "cores", lambda: cores)
    monkeypatch.setattr(seeds, "emulate", seen.append)
    assert seeds.devices_by_default(7, "resnet32", batch, "dependent") == found
    assert seen == emulated


@pytest.mark.parametrize("quiet", [False, True])
def test_seeds_that_are_together_are_told(monkeypatch, capsys, tmp_path, quiet):
    monkeypatch.setattr(jax, "device_count", lambda: 2)
    args = args_of(
        out=str(tmp_path), resume=False, together=None, devices_by_default=1, parallel="jit",
        examples="dependent", quiet=quiet,
    )  # fmt: skip
    assert seeds.groups(args, [4, 2]) == [([4, 2], 2, True)]
    told = "2 seeds together on 2 devices (not: --no-together)\n"
    assert capsys.readouterr().out == told * (not quiet)
    for alone in ([4], [4, 2, 1]):
        assert seeds.groups(args, alone) == [([seed], 1, False) for seed in alone]
    assert capsys.readouterr().out == ""

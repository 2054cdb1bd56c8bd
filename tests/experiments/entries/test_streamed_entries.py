"""The commands of streamed images: what they hand on, by stand-ins for the parts of a run."""

from __future__ import annotations

from typing import Any

import pytest

from experiments import imagenet_lt, inaturalist
from experiments.data import encoded, image_sets

ENTRIES = {"imagenet_lt": imagenet_lt, "inaturalist": inaturalist}


@pytest.mark.parametrize("name", ENTRIES)
def test_a_run_begins_before_its_data_is_read(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    def loaded(*given: Any, **how: Any) -> str:
        seen.append((given, how))
        return "read"

    module: Any = ENTRIES[name]
    monkeypatch.setattr(module.launch, "begin", lambda args: seen.append("begun"))
    monkeypatch.setattr(module.launch, "run", lambda *given: seen.append(given[1:]))
    monkeypatch.setattr(image_sets, f"load_{name}", loaded)
    monkeypatch.setattr(encoded, "finished", lambda *given: given)
    flags = ["--data-dir", "d", "--image-dir", "i", "--train-list", "a", "--test-list", "b"]
    flags += ["--val-per-class", "3", "--allow-empty-classes", "--out", "x"]
    of_imagenet = name == "imagenet_lt"
    more = ["--dataset", "places365_small", "--val-list", "c"] if of_imagenet else []
    args = module.presets.parse(module.arguments(), [*flags, *more])
    assert args.experiment == name
    module.main(args)
    lists = {"train_list": "a", "test_list": "b"} | ({"val_list": "c"} if of_imagenet else {})
    made = {"image_size": 224, "resize": 256} | (
        {"data_of": "places365_small"} if of_imagenet else {}
    )
    given = ("places365_small", "d") if of_imagenet else ("d",)
    assert seen == [
        "begun", (given, {"image_dir": "i", "size": 224, "resize": 256, **lists}),
        (("read", 3, True), made),
    ]  # fmt: skip


@pytest.mark.parametrize("name", [*ENTRIES, "analyse"])
def test_as_a_command_it_knows_its_flags(name: str, refuse: Any) -> None:
    said = refuse(f"experiments.{name}", "run", "--out", "x", "--no-such-flag", code=2)
    assert "unrecognized arguments" in said

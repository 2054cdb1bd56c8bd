"""One process of a run for tests/experiments/run/test_cluster.py: `python cluster_run.py JSON`.

The same code is a process of several and the one process they are compared with.
"""

import dataclasses
import json
import os
import signal
import sys
from pathlib import Path

if __name__ == "__main__":
    asked = json.loads(sys.argv[1])
    sys.path[:0] = [
        str(Path(__file__).resolve().parent),
        str(Path(__file__).resolve().parent.parent),
    ]

    import jax

    from experiments.host import cli
    from experiments.host.devices import join_processes

    if asked["processes"] > 1:
        join_processes(asked["coordinator"], asked["processes"], asked["process"], 8, 60)
    else:
        jax.config.update("jax_num_cpu_devices", 8)

    from experiments.data.image_sets import load_inaturalist
    from experiments.models import MODELS
    from experiments.run.fit import fit
    from experiments.run.one import Run
    from experiments.run.settings import Settings
    from imbsam_jax import losses, rules
    from tiny import IN_FULL, TinyNet, tiny_dataset

    MODELS["tiny"] = TinyNet
    if asked.get("data"):
        dataset = load_inaturalist(asked["data"], size=16, resize=18)
    else:
        dataset = tiny_dataset()
    rule = {
        "sgd": lambda: rules.sgd(dataset.num_classes),
        "sam": lambda: rules.sam(dataset.num_classes, rho=0.1),
        "imbsam": lambda: rules.imbsam(dataset.class_counts(), rho=0.1, eta=10),
    }[asked["rule"]]()
    settings = dataclasses.replace(
        Settings(epochs=2, batch_size=16, lr=0.05, eval_batch=16, checkpoint_every=1, devices=8),
        **asked.get("settings", {}),
    )

    def kill_at(step: int) -> None:
        """This process sends itself a signal once it has begun that step."""
        plain = Run.see

        def see(self, first_step, *rest):
            if first_step == step:
                os.kill(os.getpid(), getattr(signal, asked["signal"]))
            return plain(self, first_step, *rest)

        Run.see = see

    if asked.get("kill_at") is not None:
        kill_at(asked["kill_at"])
    description = {"experiment": "test", "rule": asked["rule"], "rule_args": {}}

    def main(asked):
        report = fit(
            dataset, "tiny", rule, losses.cross_entropy, settings, asked["out"],
            description=description, resume=asked.get("resume", False), quiet=True,
            **({} if asked.get("lean") else IN_FULL),
        )  # fmt: skip
        found = {"process": jax.process_index(), "sha": report["params_sha256"]}
        print("REPORT" + json.dumps(found))

    cli.run(main, asked)

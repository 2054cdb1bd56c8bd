"""--devices of a plain run on a CPU: emulated, whatever has loaded or planned before."""

import pytest

from experiments.data import save_npz
from experiments.host.errors import RunError, check_seed
from tiny import tiny_dataset


def test_devices_are_emulated_without_a_flag_of_xla(tmp_path, run_python):
    """A run of --devices 2 through the command's own functions, up to a step and the report."""
    save_npz(tiny_dataset(), tmp_path / "tiny.npz")
    code = f"""
        import sys
        sys.path.insert(0, "tests")
        from experiments import cifar_lt
        from experiments.command import launch
        from experiments.host.devices import use_devices
        from experiments.host.errors import RunError
        launch.in_full = dict
        flags = ["--model", "mlp", "--batch-size", "78", "--epochs", "2", "--rule", "sgd"]
        flags += ["--quiet"]
        flags += ["--data", {str(tmp_path / "tiny.npz")!r}, "--out", {str(tmp_path / "run")!r}]
        args = cifar_lt.parse(cifar_lt.arguments(), [*flags, "--devices", "2"])
        launch.begin(args)
        dataset = cifar_lt.load(args)
        (report,) = launch.train(args, dataset, cifar_lt.make_plan(args, dataset))
        assert report["settings"]["devices"] == 2, report
        try:
            use_devices(65)
        except RunError as error:
            assert "JAX sees 2" in str(error)
        else:
            raise AssertionError
    """
    run_python(code, devices=None)


@pytest.mark.parametrize("seed", [-1, 2**32, 10**20, 1.0, "1", None, float("nan")])
def test_seeds_out_of_range_are_refused(seed):
    """JAX would take the key of a smaller one; by the functions that a command's flags reach."""
    from experiments.bench.training import Bench
    from experiments.data.digits import load_digits_lt
    from experiments.data.sampling import epoch_order
    from experiments.run.parts import Parts
    from experiments.run.settings import Settings
    from imbsam_jax.losses import cross_entropy

    dataset = tiny_dataset()
    for make in (
        lambda: check_seed(seed),
        lambda: Settings(seed=seed).check(),
        lambda: Parts(dataset, "mlp", cross_entropy, Settings(seed=seed)),
        lambda: Bench([dataset], [seed]),
        lambda: load_digits_lt(50, seed),
        lambda: epoch_order("balanced", dataset.train_labels, seed, 0),
    ):
        with pytest.raises(RunError, match=r"a seed must be from 0 to 2\*\*32 - 1, got "):
            make()


def test_the_largest_seeds_have_keys_of_their_own():
    import jax

    check_seed(0, 2**31, 2**32 - 1)
    keys = {
        tuple(jax.random.key_data(jax.random.key(s)).tolist()) for s in (0, 1, 2**31, 2**32 - 1)
    }
    assert len(keys) == 4

"""`python -m experiments.anomaly`: see command.py."""

from experiments.anomaly.command import arguments, main
from experiments.host import cli

if __name__ == "__main__":
    cli.run(main, arguments().parse_args())

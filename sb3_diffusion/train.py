"""``python -m sb3_diffusion.train``: rl-zoo3's train command, which also knows this library's algorithms and environments."""

import sys

from rl_zoo3.train import train

from sb3_diffusion.zoo import register, with_hyperparameter_file


def main() -> None:
    """Run rl-zoo3's train on ``sys.argv``."""
    register()
    sys.argv[1:] = with_hyperparameter_file(sys.argv[1:])
    train()


# The processes of --vec-env subproc import this module again and must not train.
if __name__ == "__main__":
    main()

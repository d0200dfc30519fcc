"""``python -m sb3_diffusion.enjoy``: rl-zoo3's enjoy command, which also knows this library's algorithms and environments."""

import argparse

from sb3_diffusion.command_line import missing
from sb3_diffusion.zoo import has_display, register


def main() -> None:
    """Run rl-zoo3's enjoy on ``sys.argv``."""
    try:
        from rl_zoo3.enjoy import enjoy
    except ModuleNotFoundError as error:
        raise SystemExit(missing("rl-zoo3's enjoy", error, "zoo")) from error
    register()
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--no-render", action="store_true")
    parser.add_argument("-h", "--help", action="store_true")
    given, _ = parser.parse_known_args()
    if not (given.no_render or given.help or has_display()):
        raise SystemExit("enjoy shows a window, and this machine has no display: add --no-render to print the returns alone")
    enjoy()


if __name__ == "__main__":
    main()

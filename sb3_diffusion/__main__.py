"""
The console command ``sb3-diffusion``, and ``python -m sb3_diffusion``.

    sb3-diffusion train --algo diffsac --env Pendulum-v1

``sb3-diffusion <command>`` is ``python -m sb3_diffusion.<command>``.
"""

import importlib
import sys

import sb3_diffusion

COMMANDS = {
    "train": "train a model with rl-zoo3's command and hyper-parameter files",
    "enjoy": "watch a model that train has made, or print its returns",
    "campaign": "train many variants on many environments with many seeds",
    "report": "compare the runs of campaigns and of train, as a table and pictures",
    "plot": "draw how a model's policy makes its actions, over its critic and along an episode",
    "export": "write a model's policy as a file that needs neither this library nor Stable-Baselines3",
}


def usage() -> str:
    """What ``--help`` prints."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {what}" for name, what in COMMANDS.items()]
    return "\n".join(
        ["usage: sb3-diffusion COMMAND [options]", "", *lines, "", "sb3-diffusion COMMAND --help lists its options."]
    )


def main() -> None:
    """Run the command that ``sys.argv`` names."""
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in ("-h", "--help"):
        print(usage())
        return
    if name == "--version":
        print(f"sb3-diffusion {sb3_diffusion.__version__}")
        return
    if name not in COMMANDS:
        print(f"sb3-diffusion: {name!r} is no command\n\n{usage()}", file=sys.stderr)
        sys.exit(2)
    # The command's own parser names the program after this.
    sys.argv = [f"sb3-diffusion {name}", *sys.argv[2:]]
    # Only the command's own: each needs packages that the others do not.
    module = "sb3_diffusion.export.__main__" if name == "export" else f"sb3_diffusion.{name}"
    importlib.import_module(module).main()


# The processes that commands start may import this module again.
if __name__ == "__main__":
    main()

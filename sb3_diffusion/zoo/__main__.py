"""
rl-zoo3's other commands, which also know this library's algorithms and environments.

    python -m sb3_diffusion.zoo record_video --algo diffsac --env Pendulum-v1 -f logs -n 200

``train`` and ``enjoy`` are commands of their own: ``python -m sb3_diffusion.train``, ``python -m sb3_diffusion.enjoy``.
"""

import importlib
import runpy
import sys

from sb3_diffusion.command_line import missing
from sb3_diffusion.zoo import register

COMMANDS = {
    "record_video": "rl_zoo3.record_video",
    "plot_train": "rl_zoo3.plots.plot_train",
    "all_plots": "rl_zoo3.plots.all_plots",
    "plot_from_file": "rl_zoo3.plots.plot_from_file",
    "load_from_hub": "rl_zoo3.load_from_hub",
    "push_to_hub": "rl_zoo3.push_to_hub",
}


def main() -> None:
    """Run the command that ``sys.argv`` names."""
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    usage = f"usage: python -m sb3_diffusion.zoo {{{','.join(COMMANDS)}}} [rl-zoo3's options]"
    if name in ("-h", "--help"):
        print(usage)
        return
    if name not in COMMANDS:
        sys.exit(f"{usage}\n{name!r} is none of them")
    register()
    sys.argv = [f"python -m sb3_diffusion.zoo {name}", *sys.argv[2:]]
    try:
        importlib.import_module(COMMANDS[name].rpartition(".")[0])
        sys.modules.pop(COMMANDS[name], None)  # rl_zoo3.plots has imported its commands, of which run_module would warn
        runpy.run_module(COMMANDS[name], run_name="__main__")
    except ModuleNotFoundError as error:
        sys.exit(missing(f"rl-zoo3's {name}", error, "zoo", "plots"))
    except ImportError as error:
        sys.exit(f"rl-zoo3's {name} does not fit the installed packages, whatever the algorithm: {error}")


if __name__ == "__main__":
    main()

"""``python -m sb3_diffusion.report``: what runs say about algorithms, as a table and pictures."""

import sys

from sb3_diffusion.command_line import missing


def main() -> None:
    """Run the report on ``sys.argv``."""
    try:
        from sb3_diffusion.experiments.reporting import report
    except ModuleNotFoundError as error:
        raise SystemExit(missing("a report", error, "experiments")) from error
    report(sys.argv[1:])


if __name__ == "__main__":
    main()

"""``python -m sb3_diffusion.report``: what runs say about algorithms, as a table and pictures."""

import sys


def main() -> None:
    """Run the report on ``sys.argv``."""
    try:
        from sb3_diffusion.experiments.reporting import report
    except ModuleNotFoundError as error:
        raise SystemExit(
            f"reports need the package {error.name}: install sb3_diffusion with its extra 'experiments'"
        ) from error
    report(sys.argv[1:])


if __name__ == "__main__":
    main()

"""``python -m sb3_diffusion.enjoy``: rl-zoo3's enjoy command, which also knows this library's algorithms and environments."""

from sb3_diffusion.zoo import register


def main() -> None:
    """Run rl-zoo3's enjoy on ``sys.argv``."""
    try:
        from rl_zoo3.enjoy import enjoy
    except ModuleNotFoundError as error:
        raise SystemExit(
            f"rl-zoo3's enjoy needs the package {error.name}: install sb3_diffusion with its extra 'zoo'"
        ) from error
    register()
    enjoy()


if __name__ == "__main__":
    main()

"""``python -m sb3_diffusion.campaign FILE.yml``: many runs of many variants, and one table of them (docs/campaigns.md)."""

from sb3_diffusion.command_line import missing


def main() -> None:
    """Run the campaign that ``sys.argv`` names."""
    try:
        from sb3_diffusion.experiments import command
    except ModuleNotFoundError as error:
        raise SystemExit(missing("a campaign", error, "experiments")) from error
    command.main()


# The processes of the runs may import this module again and must not start a campaign.
if __name__ == "__main__":
    main()

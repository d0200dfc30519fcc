"""``python -m sb3_diffusion.campaign FILE.yml``: many runs of many variants, and one table of them (docs/campaigns.md)."""

from sb3_diffusion.experiments.command import main

# The processes of the runs may import this module again and must not start a campaign.
if __name__ == "__main__":
    main()

"""`python -m lightning_estimators` is `lightning-estimators`."""

from lightning_estimators.commandline.surroundings import check_surroundings


def main() -> None:
    """Run the command line, unless already its imports would fail."""
    check_surroundings()
    from lightning_estimators.cli import main as run

    run()


if __name__ == "__main__":
    main()

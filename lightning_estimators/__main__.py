"""`python -m lightning_estimators` is `lightning-estimators`."""

import sys

from lightning_estimators.commandline.surroundings import check_surroundings


def main() -> None:
    """Run the command line, unless already its imports would fail."""
    try:
        check_surroundings()
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from error
    from lightning_estimators.cli import main as run

    run()


if __name__ == "__main__":
    main()

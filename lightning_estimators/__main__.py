"""`python -m lightning_estimators` is `lightning-estimators`."""

from lightning_estimators.cli import main

if __name__ == "__main__":
    main()

"""What `lightning_estimators.cli` is made of."""

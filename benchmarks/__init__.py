"""Measurements that are run from a checkout: the papers' experiments, and in `speed` what a step costs."""

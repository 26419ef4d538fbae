"""How long steps take: measurements that are run from a checkout, not part of the package."""

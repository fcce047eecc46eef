"""Everything around the algorithm: what observes it, evaluates it, shows it and saves it."""

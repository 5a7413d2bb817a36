"""The ground floor: keyed randomness, specs, state files, stores, registries, log and errors."""

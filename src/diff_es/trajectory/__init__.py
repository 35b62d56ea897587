"""The mathematics of a sampler's run: its stages, where steps stand, how they are corrected."""

"""Levels of a stage, from statistics to compensated weights, and what they cost."""

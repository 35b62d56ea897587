"""Helpers that know nothing of diffusion: errors, checked arguments, files, processes, progress, seeds."""

"""Weights of a stage put in place for a denoiser call, and taken out again; where they wait meanwhile."""

"""Weights of a stage put in place for a denoiser call, and taken out again; where they wait meanwhile."""

from .placements import Compact, Placement, Resident, Streamed
from .routing import routed

__all__ = ["Compact", "Placement", "Resident", "Streamed", "routed"]

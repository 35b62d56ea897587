"""Evaluations as files: what is sampled and judged, what it will take, and what came of it beside published figures."""

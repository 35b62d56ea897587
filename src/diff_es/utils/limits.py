"""The numbers that a user may say, in one table. The least is what makes sense; the most is far beyond what anybody
runs, so that a slip of the finger is refused before a model is loaded."""

from __future__ import annotations

from typing import Annotated, TypeAlias

from .arguments import number, whole

# of an image and how it is sampled
Steps: TypeAlias = Annotated[int, whole(1, 10_000)]  # of the sampler; also stages
Batch: TypeAlias = Annotated[int, whole(1, 65_536)]
Pixels: TypeAlias = Annotated[int, whole(1, 65_536)]  # height or width
Frames: TypeAlias = Annotated[int, whole(1, 100_000)]
Guidance: TypeAlias = Annotated[float, number(0, 1000)]
Time: TypeAlias = Annotated[float, number(0, 1e9)]  # that a denoiser receives, of a loop of the user's own
End: TypeAlias = Annotated[float, number(-1, 1e9)]  # that its last step leads to

# of a budget
Share: TypeAlias = Annotated[float, number(0, 1, above=True)]  # of the dense cost
Speedup: TypeAlias = Annotated[float, number(1, 1000)]
Gigabytes: TypeAlias = Annotated[float, number(0, 100_000, above=True)]

# of a search
Hours: TypeAlias = Annotated[float, number(0, 100_000, above=True)]
Count: TypeAlias = Annotated[int, whole(1, 1_000_000)]  # samples, noises, candidates, generations
Several: TypeAlias = Annotated[int, whole(2, 1_000_000)]
CountOrNone: TypeAlias = Annotated[int, whole(0, 1_000_000)]  # 0: none at all
Finer: TypeAlias = Annotated[int, whole(1, 100)]  # times the user's own steps
Directions: TypeAlias = Annotated[int, whole(0, 100)]  # of a step's correction
Chance: TypeAlias = Annotated[float, number(0, 1)]
Seed: TypeAlias = Annotated[int, whole(-(2**63), 2**63 - 1)]
Workers: TypeAlias = Annotated[int, whole(1, 1024)]

# of what is pruned
Levels: TypeAlias = Annotated[int, whole(2, 1024)]
Level: TypeAlias = Annotated[int, whole(0, 1024)]
Multiple: TypeAlias = Annotated[int, whole(1, 65_536)]  # of channels
Rounds: TypeAlias = Annotated[int, whole(1, 1_000_000)]
Damping: TypeAlias = Annotated[float, number(0, 1e6, above=True)]
Positive: TypeAlias = Annotated[float, number(0, 1e6, above=True)]
Tolerance: TypeAlias = Annotated[float, number(0, 1e6, above=True)]
Room: TypeAlias = Annotated[float, number(0, 1e15, above=True)]  # for weights, of the dense model's bytes

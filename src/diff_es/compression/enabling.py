"""For those who live in a pipeline: a result switched on and off by the pipeline alone."""

from __future__ import annotations

from pydantic import SkipValidation

from ..pipelines.sampling import AnyPipeline
from ..pipelines.supported import check_denoiser
from ..utils.arguments import Place, checked
from ..utils.errors import DiffESError
from ..utils.limits import Speedup
from .result import Compressed
from .routable import applied_to


@checked()
def enable(pipe: SkipValidation[AnyPipeline], folder: Place, point: Speedup | None = None) -> Compressed:
    """Run a pipeline with a saved result from now on, until :func:`disable`; gives the result.

    Args:
        folder: where it was saved, or a repository of the hub.
        point: of the results for several budgets the best that is so many times cheaper, such as 1.4.

    Raises:
        ArtefactError: no result, or one that was made for another model.
        DiffESError: one is enabled already, or the pipeline's scheduler takes no chosen timesteps.
    """
    check_denoiser(pipe)
    fast = Compressed.from_pretrained(folder, point)
    fast.apply(pipe)
    return fast


@checked()
def disable(pipe: SkipValidation[AnyPipeline]) -> None:
    """Make a pipeline dense again, to the bit.

    Raises:
        DiffESError: nothing is enabled.
    """
    routing = applied_to(pipe)
    if routing is None:
        remedy = "Call diff_es.enable(pipe, folder) first."
        raise DiffESError("pipe", expected="a pipeline with a result enabled", found="a dense one", remedy=remedy)
    routing.detach()

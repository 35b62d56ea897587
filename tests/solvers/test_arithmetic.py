"""Laws of corrections and schedulers: they run on the arithmetic that they were made for, to the bit, or not at all."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from types import MethodType
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    HeunDiscreteScheduler,
    UniPCMultistepScheduler,
)
from tests.helpers.pipelines import CASES, made
from tests.helpers.tiny import CALL, images, stages_of, tiny
from torch import Tensor

from diff_es import Compressed, DiffESError, load
from diff_es.layers import DENSE
from diff_es.layers.fingerprint import fingerprint
from diff_es.pipelines.loading import origin_of
from diff_es.pipelines.timestep_hook import on_timestep
from diff_es.solvers.arithmetic import PLACING
from diff_es.solvers.custom_timesteps import Stepping, check_corrected, stepped
from diff_es.solvers.samplers import STEPPABLE, is_flow, trajectory
from diff_es.trajectory.corrections import Corrections, fixed
from diff_es.trajectory.stages import Schedule
from diff_es.trajectory.timesteps import placed
from diff_es.utils.errors import ArtefactError

DPM, UNIPC, EULER, FLOW = (
    DPMSolverMultistepScheduler,
    UniPCMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
)
BETAS = np.linspace(1e-4, 0.01, 1000).tolist()
CURVED = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 3.0}
ASKED = 6

MADE: dict[str, tuple[type, dict[str, Any]]] = {
    "DDIM": (DDIMScheduler, {}),
    "DDIM thresholding": (DDIMScheduler, {"thresholding": True, "sample_max_value": 1.5}),
    "DPM": (DPM, {}),
    "DPM karras": (DPM, {"use_karras_sigmas": True}),
    "DPM flow": (DPM, CURVED),
    "Euler": (EULER, {}),
    "Euler karras": (EULER, {"use_karras_sigmas": True, "timestep_spacing": "leading"}),
    "Euler ancestral": (EulerAncestralDiscreteScheduler, {}),
    "Flow": (FLOW, {"shift": 3.0}),
    "Flow dynamic": (FLOW, {"use_dynamic_shifting": True}),
    "Heun": (HeunDiscreteScheduler, {}),
    "UniPC": (UNIPC, {}),
    "UniPC flow": (UNIPC, CURVED),
    "UniPC dynamic": (UNIPC, {**CURVED, "use_dynamic_shifting": True}),
}

OTHER: dict[str, tuple[Any, ...]] = {  # values that a setting may be changed to
    "num_train_timesteps": (1100,),
    "beta_start": (0.0002,),
    "beta_end": (0.03,),
    "beta_schedule": ("scaled_linear", "squaredcos_cap_v2"),
    "trained_betas": (BETAS,),
    "clip_sample": (True, False),
    "clip_sample_range": (2.0,),
    "set_alpha_to_one": (False,),
    "steps_offset": (1,),
    "prediction_type": ("sample", "v_prediction"),
    "thresholding": (True, False),
    "dynamic_thresholding_ratio": (0.9,),
    "sample_max_value": (2.0,),
    "timestep_spacing": ("leading", "trailing", "linspace"),
    "rescale_betas_zero_snr": (True,),
    "solver_order": (1, 3),
    "algorithm_type": ("dpmsolver", "sde-dpmsolver++"),
    "solver_type": ("heun", "bh1"),
    "lower_order_final": (False,),
    "euler_at_final": (True,),
    "use_karras_sigmas": (True, False),
    "use_exponential_sigmas": (True,),
    "use_beta_sigmas": (True,),
    "use_lu_lambdas": (True,),
    "use_flow_sigmas": (True, False),
    "flow_shift": (5.0,),
    "final_sigmas_type": ("sigma_min",),
    "lambda_min_clipped": (-5.1,),
    "variance_type": ("learned",),
    "use_dynamic_shifting": (True, False),
    "time_shift_type": ("linear",),
    "interpolation_type": ("log_linear",),
    "timestep_type": ("continuous",),
    "sigma_min": (0.05,),
    "sigma_max": (12.0,),
    "predict_x0": (False,),
    "disable_corrector": ([0, 2],),
    "solver_p": (),  # refused by `check_scheduler`
    "shift": (1.0, 5.0),
    "base_shift": (0.4,),
    "max_shift": (1.3,),
    "base_image_seq_len": (128,),
    "max_image_seq_len": (8192,),
    "invert_sigmas": (True,),
    "shift_terminal": (0.1,),
    "stochastic_sampling": (True,),
}


def begun(scheduler: Any) -> None:
    """As pipelines begin, which take the shift from the size of the image."""
    sized = scheduler.config.get("use_dynamic_shifting") and not isinstance(scheduler, DPM)
    scheduler.set_timesteps(ASKED, **{"mu": 0.8} if sized else {})


@dataclass(frozen=True)
class Held:
    """A pipeline with corrected steps, some of them its scheduler's own."""

    pipe: Any
    own: Any  # its scheduler
    made: dict[str, Any]  # what is saved of it
    timesteps: tuple[float, ...]
    corrections: Corrections

    def check(self, scheduler: Any, made: Any = None) -> None:
        check_corrected(scheduler, made or self.made, self.timesteps, ASKED)

    def stepped(self, scheduler: Any = None) -> AbstractContextManager[Any]:
        self.pipe.scheduler = scheduler or self.own
        return stepped(self.pipe, self.timesteps, ASKED, fixed(self.corrections))

    def runs_as_made(self, scheduler: Any, want: Tensor) -> bool:
        """Whether the scheduler is accepted; if so, the result is the same to the bit."""
        try:
            self.check(scheduler)
        except DiffESError:
            return False
        with self.stepped(scheduler):
            assert torch.equal(end(self.pipe.scheduler), want)
        return True

    def want(self) -> Tensor:
        with self.stepped():
            return end(self.pipe.scheduler)


def held(name: str) -> Held:
    kind, options = MADE[name]
    pipe, scheduler = tiny(layers=1), kind(**options)
    pipe.scheduler = scheduler
    begun(copy := deepcopy(scheduler))
    path = trajectory(scheduler, copy.timesteps.tolist())
    timesteps = placed(path, path.stages(3), [2, 3, 1])
    corrections = ((0.01, 0.02),) * len(timesteps) if scheduler.order == 1 else ()
    return Held(pipe, scheduler, json.loads(json.dumps(origin_of(pipe).scheduler)), timesteps, corrections)


def end(scheduler: Any) -> Tensor:
    """Of a run under an analytic denoiser, from noise of which some is larger than what clipping leaves."""
    torch.manual_seed(0)
    begun(scheduler)
    x = torch.randn(3, 4, 8, 8) * torch.tensor([0.2, 1.0, 3.0]).view(-1, 1, 1, 1)
    x = x if is_flow(scheduler) else x * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        given = x if is_flow(scheduler) else scheduler.scale_model_input(x, t)
        x = scheduler.step(torch.tanh(given * 2 + t / 1000).roll(1, -1), t, x).prev_sample
    return x


every_kind = pytest.mark.parametrize("name", MADE)


def test_every_sampler_and_every_setting_is_tried() -> None:
    assert {kind for kind, _ in MADE.values()} == set(STEPPABLE)
    for kind in STEPPABLE:
        assert set(inspect.signature(kind.__init__).parameters) - {"self"} <= OTHER.keys()  # a new one needs a value


@pytest.mark.filterwarnings("ignore:.*algorithm_types dpmsolver:FutureWarning")
@every_kind
def test_a_changed_setting_changes_nothing_or_is_refused(name: str) -> None:
    case, accepted = held(name), set[str]()
    own, want = case.own, case.want()
    for setting in set(inspect.signature(type(own).__init__).parameters) - {"self"}:
        for value in OTHER[setting]:
            try:
                changed = type(own).from_config(own.config, **{setting: value})
            except (ValueError, ImportError):  # not beside the others, or not without scipy
                continue
            if case.runs_as_made(changed, want) and own.config[setting] != value:
                accepted.add(setting)
    assert accepted <= PLACING | {"solver_type"}  # of which DPM-Solver and UniPC take each other's for their own
    assert accepted >= FREE.get(name, set())


FREE = {  # settings of which no value matters
    "DPM": {"timestep_spacing", "steps_offset", "lambda_min_clipped"},
    "DPM flow": {"timestep_spacing", "steps_offset"},
    "Flow": {"shift", "shift_terminal", "use_karras_sigmas"},
    "UniPC": {"timestep_spacing", "steps_offset"},
}


def altered(value: Any) -> Any:
    if isinstance(value, Tensor | np.ndarray):
        return value * 0.97
    return not value if isinstance(value, bool) else value + 1 if isinstance(value, int | float) else None


@every_kind
def test_a_changed_attribute_changes_nothing_or_is_refused(name: str) -> None:
    case = held(name)
    want, names = case.want(), [key for key, value in vars(case.own).items() if altered(value) is not None]
    assert names
    for key in [*names, "order"]:
        changed = deepcopy(case.own)
        setattr(changed, key, altered(getattr(changed, key)))
        case.runs_as_made(changed, want)


@pytest.mark.parametrize("name", ["DDIM", "DPM", "Euler", "Flow", "UniPC flow"])
def test_an_attribute_changed_while_steps_are_corrected_changes_nothing_or_is_refused(name: str) -> None:
    case = held(name)
    want, names = case.want(), [key for key, value in vars(case.own).items() if altered(value) is not None]
    refused = list[str]()
    for key in [*names, "order"]:
        with case.stepped():
            scheduler = case.pipe.scheduler
            setattr(scheduler, key, altered(getattr(scheduler, key)))
            try:
                assert torch.equal(end(scheduler), want)
            except DiffESError as error:
                refused.append(str(error))
    assert "order" in refused[-1]
    assert all(re.search(r"as when it was routed, found another .*remove\(pipe\)", message) for message in refused)
    assert torch.equal(case.want(), want)


FACES: dict[str, Callable[[Any], object]] = {  # diffusers' configurations can be changed in three ways
    "registered": lambda scheduler: scheduler.register_to_config(algorithm_type="sde-dpmsolver++"),
    "attribute": lambda scheduler: setattr(scheduler.config, "algorithm_type", "sde-dpmsolver++"),
    "item": lambda scheduler: scheduler.config.__setitem__("algorithm_type", "sde-dpmsolver++"),
    "replaced": lambda scheduler: setattr(
        scheduler, "_internal_dict", DPM(**{**scheduler.config, "algorithm_type": "sde-dpmsolver++"}).config
    ),
    "method": lambda scheduler: setattr(scheduler, "convert_model_output", lambda output, **_: output),
}


@pytest.mark.parametrize("change", FACES.values(), ids=FACES)
def test_the_algorithm_changed_under_the_same_class_is_refused(change: Callable[[Any], object]) -> None:
    case = held("DPM")
    changed = deepcopy(case.own)
    change(changed)
    message = r"one with (algorithm_type other than dpmsolver\+\+|another convert_model_output)"
    with pytest.raises(ArtefactError, match=message):
        case.check(changed)
    with case.stepped():
        want = images(case.pipe)
        change(case.pipe.scheduler)
        with pytest.raises(DiffESError, match="scheduler: expected one as when it was routed, found another"):
            images(case.pipe)
    with case.stepped():
        assert torch.equal(images(case.pipe), want)


def test_settings_of_other_classes_and_versions_are_no_difference() -> None:
    case = held("DPM")
    made, own = case.made, case.own
    older = {key: value for key, value in made.items() if key not in ("use_lu_lambdas", "time_shift_type")}
    newer = {**made, "_diffusers_version": "9.9", "a_setting_to_come": True, "clip_sample": False}
    for saved in (older, newer):
        case.check(own, saved)
    case.check(DPM.from_config({**own.config, "skip_prk_steps": True, "set_alpha_to_one": False}))
    used = deepcopy(own)
    end(used)
    case.check(used)
    without = {key: value for key, value in made.items() if key != "solver_order"}
    with pytest.raises(ArtefactError, match="solver_order other than 2"):
        case.check(DPM(solver_order=3), without)


@pytest.mark.parametrize(
    "garbage",
    [{"timestep_spacing": "x"}, {"steps_offset": "x", "timestep_spacing": "leading"}, {"lambda_min_clipped": []}],
)
def test_settings_that_no_scheduler_has_are_refused(garbage: dict[str, Any]) -> None:
    case = held("DPM")
    with pytest.raises(ArtefactError, match="for which steps are corrected"):
        case.check(case.own, {**case.made, **garbage})


def result(case: Held, corrections: Corrections) -> Compressed:
    """What a search that prunes nothing gives."""
    schedule, base = Schedule(stages_of(case.pipe, 3), ((0,),) * 3), fingerprint(case.pipe.transformer)
    origin = origin_of(case.pipe)
    return Compressed(schedule, (DENSE,) * 3, CALL, base, origin, timesteps=case.timesteps, corrections=corrections)


def test_the_remedy_gives_the_scheduler_back(tmp_path: Path) -> None:
    case = held("DPM")
    pipe, own = case.pipe, case.own
    result(case, case.corrections).save(tmp_path / "fast")
    fast = load(tmp_path / "fast")
    with fast.routed(pipe):
        want = images(pipe)
    for other in (DPM.from_config(own.config, algorithm_type="sde-dpmsolver++"), UNIPC.from_config(own.config)):
        pipe.scheduler = other
        message = r"scheduler: expected DPMSolverMultistepScheduler, for which steps are corrected"
        with pytest.raises(ArtefactError, match=message) as refused:
            fast.apply(pipe)
        code = re.search(r"pipe\.scheduler = DPMSolverMultistepScheduler\.from_config\((.*)\);", refused.value.remedy)
        assert code is not None
        pipe.scheduler = DPM.from_config(eval(code[1], {"fast": fast}))
        with fast.routed(pipe):
            assert torch.equal(images(pipe), want)


def test_timesteps_without_corrections_go_with_any_sampler() -> None:
    """They are run as they stand, by the sampler that the pipeline has."""
    case, given = held("DPM"), list[float]()
    pipe, fast = case.pipe, result(case, ())
    on_timestep(pipe.transformer, given.append)
    for other in (
        UNIPC(),
        DDIMScheduler(),
        EULER(),
        DPM.from_config(case.own.config, algorithm_type="sde-dpmsolver++"),
    ):
        pipe.scheduler = other
        with fast.routed(pipe):
            given.clear()
            images(pipe)
            assert tuple(given) == case.timesteps


ASKED_OF_STEPS: dict[str, tuple[dict[str, Any], ...]] = {  # beyond what every pipeline gives
    "DDIM": ({"eta": 1.0}, {"use_clipped_model_output": True}, {"variance_noise": torch.ones(1)}),
    "DPM": ({"variance_noise": torch.ones(1)},),
    "Euler": ({"s_churn": 0.5}, {"s_noise": 1.1}, {"s_tmin": 0.1}, {"s_tmax": 2.0}),
    "Flow": (
        {"per_token_timesteps": torch.ones(1, 3)},
        *({f"s_{name}": 0.5} for name in ("churn", "tmin", "tmax", "noise")),
    ),
    "UniPC": (),
}


@pytest.mark.parametrize("name", ASKED_OF_STEPS)
def test_what_a_step_is_told_otherwise_is_refused_where_it_is_corrected(name: str) -> None:
    case = held(name)
    usual: dict[str, Any] = {"return_dict": False}
    usual |= {"generator": None} if "generator" in step_of(case.own) else {}
    usual |= {"eta": 0.0, "use_clipped_model_output": None} if name == "DDIM" else {}  # as `DDIMPipeline` does
    assert {key for given in ASKED_OF_STEPS[name] for key in given} | usual.keys() == step_of(case.own)
    for given in ({}, *ASKED_OF_STEPS[name]):
        with case.stepped():
            begun(case.pipe.scheduler)
            x, t = torch.ones(1, 4, 8, 8), case.pipe.scheduler.timesteps[0]
            if not given:
                case.pipe.scheduler.step(x, t, x, **usual)
                continue
            with pytest.raises(DiffESError, match=rf"{next(iter(given))}: expected .*--corrections 0"):
                case.pipe.scheduler.step(x, t, x, **{**usual, **given})


def step_of(scheduler: Any) -> set[str]:
    return set(inspect.signature(type(scheduler).step).parameters) - {"self", "model_output", "timestep", "sample"}


def test_eta_goes_with_timesteps_that_are_not_corrected() -> None:
    """And is refused with corrections, through the pipeline's own call."""
    pipe = made(CASES["SD"].make)
    timesteps, call = (801.0, 401.0, 201.0), {"prompt": "a fox", "num_inference_steps": 5, "output_type": "pt"}

    def run(eta: float, corrections: Corrections) -> Tensor:
        with stepped(pipe, timesteps, 5, fixed(corrections)):
            return pipe(**call, eta=eta, generator=torch.Generator().manual_seed(0)).images

    assert not torch.equal(run(0.0, ()), run(1.0, ()))
    run(0.0, ((0.01,),) * 3)
    with pytest.raises(DiffESError, match=r"eta: expected 0\.0, for which steps are corrected, found 1\.0"):
        run(1.0, ((0.01,),) * 3)


def test_a_step_that_the_user_put_in_place_is_not_dropped_silently() -> None:
    pipe = tiny()
    pipe.scheduler.step = MethodType(DDIMScheduler.step, pipe.scheduler)
    with pytest.raises(DiffESError, match=r"DDIMScheduler: expected its own step, found one.*--levers prune"):
        Stepping(pipe, (999, 3), 6)

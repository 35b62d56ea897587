"""Laws of corrections and schedulers: they run on the arithmetic that they were made for, to the bit, or not at all."""

from __future__ import annotations

import inspect
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
from tests.tiny import tiny
from torch import Tensor

from diff_es import DiffESError
from diff_es.loading import origin_of
from diff_es.multistep import fixed
from diff_es.samplers import STEPPABLE, is_flow, trajectory
from diff_es.stepping import check_corrected, stepped
from diff_es.trajectory import placed

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


def path_of(scheduler: Any, asked: int = ASKED) -> Any:
    copy = type(scheduler).from_config(scheduler.config)
    begun(copy, asked)
    return trajectory(scheduler, copy.timesteps.tolist())


def begun(scheduler: Any, asked: int) -> None:
    mu = {"mu": 0.8} if scheduler.config.get("use_dynamic_shifting") and not isinstance(scheduler, DPM) else {}
    scheduler.set_timesteps(asked, **mu)


def run(pipe: Any, timesteps: tuple[float, ...], corrections: Any = ()) -> Tensor:
    """The end of a corrected run under an analytic denoiser, whose inputs are as large as a sample may be."""
    torch.manual_seed(0)
    with stepped(pipe, timesteps, ASKED, fixed(corrections)):
        scheduler = pipe.scheduler
        begun(scheduler, ASKED)
        x = torch.randn(3, 4, 8, 8) * torch.tensor([0.2, 1.0, 3.0]).view(-1, 1, 1, 1)
        x = x if is_flow(scheduler) else x * scheduler.init_noise_sigma
        for t in scheduler.timesteps:
            given = x if is_flow(scheduler) else scheduler.scale_model_input(x, t)
            x = scheduler.step(torch.tanh(given * 2 + t / 1000).roll(1, -1), t, x).prev_sample
    return x


def chosen_by(scheduler: Any, counts: list[int]) -> tuple[float, ...]:
    path = path_of(scheduler)
    return placed(path, path.stages(3), counts)

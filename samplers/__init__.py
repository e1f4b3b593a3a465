"""How noise becomes data: paths, dynamics, windows, and the scheduler stand-in that runs any diffusers pipeline.

Conventions, said once. A state on a path is x = alpha x0 + sigma eps. Rectified flows have alpha = 1 - t and sigma = t;
t = 1 is noise, t = 0 is data, and a step goes from t to s < t. The network's output is called v, whatever it predicts.
"""

from samplers.dynamics.base import take
from samplers.paths.grid import Grid
from samplers.paths.path import Path, Prediction, read_path
from samplers.paths.schedules import read_grid
from samplers.rollout import Call, RolloutPlan, Trajectory, observe_prefix, sample
from samplers.stand_in.by_row import by_row
from samplers.stand_in.conductor import (
    Act,
    Again,
    Conductor,
    Look,
    Native,
    Recorded,
    ReplayMismatch,
    Round,
    Skip,
    Solve,
    Visit,
)
from samplers.stand_in.loop_layout import LoopLayout
from samplers.stand_in.routing import Routes
from samplers.stand_in.scheduler import stand_in_for
from samplers.step import Step, rows_of

__all__ = [
    "Act",
    "Again",
    "Call",
    "Conductor",
    "Grid",
    "Look",
    "LoopLayout",
    "Native",
    "Path",
    "Prediction",
    "Recorded",
    "ReplayMismatch",
    "RolloutPlan",
    "Round",
    "Routes",
    "Skip",
    "Solve",
    "Step",
    "Trajectory",
    "Visit",
    "by_row",
    "observe_prefix",
    "read_grid",
    "read_path",
    "rows_of",
    "sample",
    "stand_in_for",
    "take",
]

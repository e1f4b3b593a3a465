"""What a run imports, and what loading a pipeline does: imported once by the process that others are forked from."""

import diffusers
import matplotlib.pyplot
import peft
import torch

import alignment.training.session
from tests.support import quick, runs, toy

IMPORTED = (diffusers.FluxPipeline, matplotlib.pyplot, peft, torch, alignment.training.session, runs, toy)
quick.install()

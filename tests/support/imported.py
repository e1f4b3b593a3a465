"""What a run imports, and what loading a pipeline does: imported once by the process that others are forked from."""

import diffusers
import matplotlib.pyplot
import peft
import torch

import alignment.training.session
import tests.support.runs

IMPORTED = (diffusers.FluxPipeline, matplotlib.pyplot, peft, torch, alignment.training.session, tests.support.runs)

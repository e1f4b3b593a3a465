"""What VBench's own code says of frames that are given; run with nothing of ours.

Usage: python vbench.py VBENCH JOBS.pt: {"features": [F, d] of each clip, "levels": [F, H, W, 3] of each}; prints
{"consistency": [score], "flicker": [score]}. Of `subject_consistency.py` and `temporal_flickering.py` the functions
that score are taken as they stand; in place of networks and files they get what is given.
"""

import ast
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch


def functions(path, names, wanted):
    """Return the functions of a file, with `names` for what they ask for."""
    source = path.read_text(encoding="utf-8")
    taken = [node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef) and node.name in wanted]
    exec(compile(ast.Module(taken, []), str(path), "exec"), names)
    return names


def consistency(folder, clips):
    """Return VBench's subject consistency of each clip, whose frames are their features."""
    names = {
        "torch": torch,
        "F": torch.nn.functional,
        "tqdm": lambda clips, **told: clips,
        "get_rank": lambda: 0,
        "load_video": lambda number: clips[number],
        "dino_transform": lambda side: lambda frames: frames,
    }
    score = functions(folder / "subject_consistency.py", names, {"subject_consistency"})["subject_consistency"]
    told = score(lambda frame: frame, [*range(len(clips)), 0], "cpu", False)[1]  # it divides by one clip less
    return [one["video_results"] for one in told[: len(clips)]]


def flicker(folder, clips):
    """Return VBench's temporal flickering of each clip."""
    names = {
        "np": np,
        "cv2": SimpleNamespace(absdiff=lambda a, b: np.abs(a - b)),
        "get_frames": lambda number: clips[number].numpy(),
    }
    score = functions(folder / "temporal_flickering.py", names, {"mae_seq", "calculate_mae", "cal_score"})["cal_score"]
    return [float(score(number)) for number in range(len(clips))]


def main():
    """Score every clip."""
    folder, jobs = Path(sys.argv[1]) / "vbench", torch.load(sys.argv[2], weights_only=True)
    said = {"consistency": consistency(folder, jobs["features"]), "flicker": flicker(folder, jobs["levels"])}
    sys.stdout.write(json.dumps(said))


main()

"""Verdicts of GenEval's own code on detections that are given; run with nothing of ours.

Usage: python geneval.py GENEVAL JOBS.json: a list of {"metadata", "boxes": {class: [[left, top, right, bottom, sure]]},
"colours": {class: [colour]}}, surest first; prints for each whether the picture is right. Of `evaluate_images.py` the
functions that judge are taken as they stand: the rest of it wants a detector and a GPU.
"""

import ast
import json
import sys
from pathlib import Path

import numpy as np

JUDGE = ("relative_position", "evaluate")
"""The functions that judge."""


def judging(folder):
    """Return GenEval's `evaluate`, which asks what is given as the picture for colours."""
    source = (Path(folder) / "evaluation" / "evaluate_images.py").read_text(encoding="utf-8")
    taken = [node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef) and node.name in JUDGE]
    assigned = [node for node in ast.parse(source).body if isinstance(node, ast.Assign)]
    colours = next(node for node in assigned if ast.unparse(node.targets[0]) == "COLORS")
    names = {
        "np": np,
        "POSITION_THRESHOLD": 0.1,  # the default of its command line
        "color_classification": lambda given, boxes, name: given[name][: len(boxes)],
    }
    exec(compile(ast.Module([colours, *taken], []), "evaluate_images.py", "exec"), names)
    return names["evaluate"]


def main():
    """Judge every job."""
    evaluate, found = judging(sys.argv[1]), []
    for job in json.loads(Path(sys.argv[2]).read_text(encoding="utf-8")):
        objects = {name: [(np.array(box), None) for box in boxes] for name, boxes in job["boxes"].items() if boxes}
        found.append(bool(evaluate(job["colours"], objects, job["metadata"])[0]))
    sys.stdout.write(json.dumps(found))


main()

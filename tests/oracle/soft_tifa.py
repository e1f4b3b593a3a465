"""What GenEval 2's own code says of pictures, with a model that is given; run with nothing of ours.

Usage: python soft_tifa.py GENEVAL2 MODEL JOBS.json: [[picture, [[question, answer], ...]], ...]; prints the list of
probabilities of each. Its model is loaded by name when its file is imported: the name is changed, and nothing else.
"""

import json
import sys
from pathlib import Path

folder, model, jobs = sys.argv[1:]
source = (Path(folder) / "evaluation.py").read_text(encoding="utf-8").replace("Qwen/Qwen3-VL-8B-Instruct", model)
source = source.replace("device_map='auto'", "").replace('device_map="auto"', "")  # which asks for accelerators
names = {"__name__": "evaluation"}
exec(compile(source, "evaluation.py", "exec"), names)
told = json.loads(Path(jobs).read_text(encoding="utf-8"))
said = [names["soft_tifa"](questions, picture)[1] for picture, questions in told]
sys.stdout.write("\n" + json.dumps(said))

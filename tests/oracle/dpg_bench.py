"""What DPG-Bench's own code says of answers that are given; run with nothing of ours.

Usage: python dpg_bench.py ELLA CSV JOBS.json: [{question: answer}, ...], a picture each; prints the score of each, by
the questions of the table's last prompt. Its code leaves out the first row of a table, and asks about a picture file.
"""

import json
import sys
import types
from pathlib import Path

from PIL import Image

folder, table, jobs = sys.argv[1:]
for absent in ("accelerate", "accelerate.utils"):  # which it imports, and needs for several processes alone
    sys.modules[absent] = types.ModuleType(absent)
sys.modules["accelerate"].Accelerator = sys.modules["accelerate.utils"].gather_object = None
names = {"__name__": "compute_dpg_bench"}
exec(compile((Path(folder) / "dpg_bench" / "compute_dpg_bench.py").read_text(encoding="utf-8"), "dpg", "exec"), names)
given = types.SimpleNamespace(csv=table, pic_num=1, res_path=str(Path(jobs).with_suffix(".txt")))
graphs = names["prepare_dpg_data"](given)
name = list(graphs)[-1]
picture = Path(jobs).parent / f"{name}.png"
Image.new("RGB", (4, 4)).save(picture)


class Answers:
    def __init__(self, told):
        self.told = told

    def vqa(self, image, question):
        return self.told[question]


told = json.loads(Path(jobs).read_text(encoding="utf-8"))
said = [names["compute_dpg_one_sample"](given, graphs, str(picture), Answers(one), 4)[0] for one in told]
sys.stdout.write("\n" + json.dumps(said))

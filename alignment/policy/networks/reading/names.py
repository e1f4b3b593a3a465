"""What programs call the tensors of an adapter."""

from __future__ import annotations

import re

from alignment.policy.networks.adapter_kinds import LOHA, LOKR

PARTS = {
    "lora_A": "A", "lora_down": "A", "lora.down": "A", "lora_linear_layer.down": "A",
    "lora_B": "B", "lora_up": "B", "lora.up": "B", "lora_linear_layer.up": "B",
    "lora_magnitude_vector": "magnitude", "dora_scale": "magnitude", "alpha": "alpha",
    **{name: name for name in (*LOHA, *LOKR)},
}  # fmt: skip
NAME = re.compile(
    rf"(?P<module>.+?)\.(?P<part>{'|'.join(map(re.escape, PARTS))})(?:(?:\.(?P<adapter>[^.]+))?\.weight)?"
)
"""A tensor's name; in files of PEFT's own state, the adapter has a name, too."""

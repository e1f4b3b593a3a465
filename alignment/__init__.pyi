"""What type checkers see of the lazy package: the names of `alignment.api`; types of a config are Any."""

from typing import Any

from alignment.api import BatchSettings as BatchSettings
from alignment.api import Data as Data
from alignment.api import Evaluation as Evaluation
from alignment.api import Lora as Lora
from alignment.api import Media as Media
from alignment.api import Optimizer as Optimizer
from alignment.api import Output as Output
from alignment.api import PolicySpec as PolicySpec
from alignment.api import Result as Result
from alignment.api import RewardError as RewardError
from alignment.api import RewardModel as RewardModel
from alignment.api import Rewards as Rewards
from alignment.api import Run as Run
from alignment.api import Snapshots as Snapshots
from alignment.api import VisalignError as VisalignError
from alignment.api import load_run as load_run
from alignment.api import train as train

__version__: str

def __getattr__(name: str) -> Any: ...  # pyright: ignore[reportIncompleteStub]  # types are found in folders

"""The victim and the house it is built from are plain modules that the runner uses, too."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "unit" / "manifests"))

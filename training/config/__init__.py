"""Settings of `gems train`: groups with the same names in YAML, flags, the run folder and the code that reads them.

`config` puts the `groups` together, `renamed` knows the names of older versions.
"""

from training.config.config import METHODS, RECIPES, SCRATCH, ConfigError, TrainConfig, recipe_names
from training.config.renamed import modern, new_flag

__all__ = [
    "METHODS",
    "RECIPES",
    "SCRATCH",
    "ConfigError",
    "TrainConfig",
    "modern",
    "new_flag",
    "recipe_names",
]

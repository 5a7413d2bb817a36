"""Published settings as functions that return a full run."""

from potstill.recipes import condensation as _condensation  # noqa: F401 - registers its recipes
from potstill.recipes import idc as _idc  # noqa: F401 - registers its recipes
from potstill.recipes import krr_st as _krr_st  # noqa: F401 - registers its recipes
from potstill.recipes import mkdt as _mkdt  # noqa: F401 - registers its recipes
from potstill.recipes import mtt as _mtt  # noqa: F401 - registers its recipes
from potstill.recipes import pdd as _pdd  # noqa: F401 - registers its recipes
from potstill.recipes import ratbptt as _ratbptt  # noqa: F401 - registers its recipes
from potstill.recipes import squeeze as _squeeze  # noqa: F401 - registers its recipes
from potstill.recipes.api import RECIPES, SCALES, Published, Recipe, from_recipe, scaled

__all__ = ["RECIPES", "SCALES", "Published", "Recipe", "from_recipe", "scaled"]

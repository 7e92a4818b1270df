# SPDX-License-Identifier: Apache-2.0
"""For a published release that is measured beside the series: what its EXAONE-4.5 imports.

vLLM 0.20.0 imports an image processor of EXAONE-4.5 that no release of transformers has, and so
its model cannot be loaded. Here transformers has one: that of Qwen2-VL, which the model calls for.
"""

import importlib.abc
import importlib.machinery
import importlib.util
import sys
from types import ModuleType
from typing import Any

MODULE, NAME = "transformers.models.exaone4_5", "Exaone4_5_ImageProcessor"


class Loader(importlib.abc.Loader):
    """Loads a module as it is, and gives it the name if it lacks it."""

    def __init__(self, loader: Any) -> None:
        self.loader = loader

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        module: ModuleType | None = self.loader.create_module(spec)
        return module

    def exec_module(self, module: ModuleType) -> None:
        self.loader.exec_module(module)
        # transformers puts another module in its place.
        made = sys.modules[module.__name__]
        if not hasattr(made, NAME):
            from transformers import Qwen2VLImageProcessor

            setattr(made, NAME, Qwen2VLImageProcessor)


class Finder(importlib.abc.MetaPathFinder):
    """Finds MODULE as the others do, and loads it with Loader."""

    def find_spec(
        self, fullname: str, path: Any, target: Any = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != MODULE:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path)
        if spec is not None and spec.loader is not None:
            spec.loader = Loader(spec.loader)
        return spec


sys.meta_path.insert(0, Finder())

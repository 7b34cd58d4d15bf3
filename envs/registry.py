"""Tables of things by name that modules elsewhere may add to: games, rewards, losses, engines, kinds of players."""

import importlib.util
import sys
from typing import TypeVar

from envs.options import nearest

T = TypeVar("T")


class Registry(dict[str, T]):
    """Things of one sort, in the order in which they were added: `REGISTRY["name"] = thing`."""

    def __init__(self, sort: str, **things: T) -> None:
        super().__init__(things)
        self.sort = sort

    def find(self, name: str) -> T:
        """The thing of that name; `module:name` first imports the module that adds it. Raises `ValueError`."""
        module, _, name = name.rpartition(":")
        try:
            if module and (name not in self or module not in sys.modules):
                importlib.import_module(module)
        except ModuleNotFoundError as error:
            if not f"{module}.".startswith(f"{error.name}."):
                raise  # something that the module itself imports
            raise ValueError(f"{module}:{name}: there is no module {module!r} on the Python path") from None
        if name not in self:
            raise ValueError(f"unknown {self.sort} {name!r}{nearest(name, self)}")
        return self[name]


def check_module(name: str) -> str:
    """The name, if it is no `module:name`, or Python can find the module. Raises `ValueError`."""
    module = name.rpartition(":")[0]
    if module and importlib.util.find_spec(module.partition(".")[0]) is None:
        raise ValueError(f"{name!r}: there is no module {module!r} on the Python path")
    return name

"""The arena: trained models behind Ray Serve, where people play with them; `app` makes it.

May import every wing below it, from `envs` to `report`.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ray.serve import Application


def app(args: dict[str, Any]) -> "Application":
    """The application, for `serve run g1_ray.serve:app MODEL=...` and deployment files: see `ServeConfig`."""
    from g1_ray.serve.app import app as made

    return made(args)

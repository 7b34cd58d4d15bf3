"""The pictures of states, as they leave the house: PNG files and data URIs."""

import base64
import io

from PIL import Image

from envs import State


def png_of(state: State) -> bytes:
    """The picture of a state as a PNG file."""
    png = io.BytesIO()
    Image.fromarray(state.draw()).save(png, "PNG")
    return png.getvalue()


def data_uri(png: bytes) -> str:
    """A PNG file in a data URI."""
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"

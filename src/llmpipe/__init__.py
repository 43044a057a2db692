"""llmpipe: a streaming reverse proxy in front of LLM inference servers."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("llmpipe")
except PackageNotFoundError:  # run from a source tree that was not installed
    __version__ = "0+unknown"

__all__ = ["__version__"]

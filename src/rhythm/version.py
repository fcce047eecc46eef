"""The version, as the package's metadata tells it."""

from importlib.metadata import version

VERSION = version("rhythm-rl")

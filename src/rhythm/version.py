"""The version; the package's metadata takes it from here, so that the source folder alone knows it too."""

VERSION = "0.1.0"

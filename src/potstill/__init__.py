"""potstill: distil an image data set into a few images that train a network almost as well."""

__version__ = "0.1.0"

"""What server and clients share, free of Flower: data, registry, configuration, backbones, recipes, codecs, packets."""

__version__ = "0.1.0"

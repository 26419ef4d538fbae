"""Gradients of expectations as plug-ins for PyTorch Lightning."""

__version__ = "0.1.0"

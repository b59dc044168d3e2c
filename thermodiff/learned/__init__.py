"""Learned path: networks that predict a score, and their training.  The only part that imports torch."""

from thermodiff.learned.checkpoint import load_weights, save_weights
from thermodiff.learned.losses import denoising_loss, squared_residual
from thermodiff.learned.model import LearnedDiffusion
from thermodiff.learned.networks import ControlMLP, EntropyMLP
from thermodiff.learned.predict import PREDICTS, dimensionless_score, target, tensor_row
from thermodiff.learned.threads import torch_threads
from thermodiff.learned.training import train

__all__ = [
    "PREDICTS",
    "ControlMLP",
    "EntropyMLP",
    "LearnedDiffusion",
    "denoising_loss",
    "dimensionless_score",
    "load_weights",
    "save_weights",
    "squared_residual",
    "target",
    "tensor_row",
    "torch_threads",
    "train",
]

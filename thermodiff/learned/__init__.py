"""Learned path: networks that predict a score, and their training.  The only part that imports torch."""

from thermodiff.learned.adapters import Adapted, adapt
from thermodiff.learned.bound import lower_bound
from thermodiff.learned.checkpoint import load_weights, save_weights
from thermodiff.learned.images import Images, read_images
from thermodiff.learned.information import mutual_information
from thermodiff.learned.likelihood import LogDensity, log_prob
from thermodiff.learned.losses import denoising_loss, squared_residual
from thermodiff.learned.measurement import Measurement, measure
from thermodiff.learned.model import LearnedDiffusion
from thermodiff.learned.networks import ControlMLP, EntropyMLP
from thermodiff.learned.preconditioned import Preconditioned
from thermodiff.learned.predict import PREDICTS, dimensionless_score, target, tensor_row
from thermodiff.learned.pretrained import Pretrained, from_diffusers
from thermodiff.learned.sampling import generation_ledger, sample
from thermodiff.learned.threads import torch_threads
from thermodiff.learned.training import train
from thermodiff.learned.unet import UNet

__all__ = [
    "PREDICTS",
    "Adapted",
    "ControlMLP",
    "EntropyMLP",
    "Images",
    "LearnedDiffusion",
    "LogDensity",
    "Measurement",
    "Preconditioned",
    "Pretrained",
    "UNet",
    "adapt",
    "denoising_loss",
    "dimensionless_score",
    "from_diffusers",
    "generation_ledger",
    "load_weights",
    "log_prob",
    "lower_bound",
    "measure",
    "mutual_information",
    "read_images",
    "sample",
    "save_weights",
    "squared_residual",
    "target",
    "tensor_row",
    "torch_threads",
    "train",
]

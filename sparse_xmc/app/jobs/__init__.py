"""The jobs behind the command line."""

from sparse_xmc.app.jobs.conversion import convert
from sparse_xmc.app.jobs.evaluation import evaluate
from sparse_xmc.app.jobs.inspection import inspect
from sparse_xmc.app.jobs.prediction import predict
from sparse_xmc.app.jobs.training import train
from sparse_xmc.app.jobs.warmup import warmup

__all__ = ["convert", "evaluate", "inspect", "predict", "train", "warmup"]

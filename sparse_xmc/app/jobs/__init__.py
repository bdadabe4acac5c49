"""The jobs behind the command line: train, evaluate, predict."""

from sparse_xmc.app.jobs.evaluation import evaluate
from sparse_xmc.app.jobs.prediction import predict
from sparse_xmc.app.jobs.training import train

__all__ = ["evaluate", "predict", "train"]

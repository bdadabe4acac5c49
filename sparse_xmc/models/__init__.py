"""Thin modules over the ops."""

from sparse_xmc.models import pickling, pretrained, replicas
from sparse_xmc.models.auxiliary import AuxiliaryObjective
from sparse_xmc.models.average import update_average_
from sparse_xmc.models.classifier import XMCClassifier
from sparse_xmc.models.encoders import BagOfWordsEncoder, PrecomputedEncoder, TransformerEncoder, intermediate_layer
from sparse_xmc.models.head_tail import DenseLinear, HeadTailLinear
from sparse_xmc.models.linear import FixedFanInLinear
from sparse_xmc.models.memory_report import HeadMemory, MemoryReport, memory_report
from sparse_xmc.models.quantized import QuantizedFixedFanInLinear
from sparse_xmc.models.sparse_input import SparseInputLinear
from sparse_xmc.models.sparsify import sparsify_

pickling.register()
pretrained.register()
replicas.register()

__all__ = [
    "AuxiliaryObjective",
    "BagOfWordsEncoder",
    "DenseLinear",
    "FixedFanInLinear",
    "HeadMemory",
    "HeadTailLinear",
    "MemoryReport",
    "PrecomputedEncoder",
    "QuantizedFixedFanInLinear",
    "SparseInputLinear",
    "TransformerEncoder",
    "XMCClassifier",
    "intermediate_layer",
    "memory_report",
    "sparsify_",
    "update_average_",
]

"""Distil any recommender, yours or one behind an API, into a small model that you own.

``SASRec``, ``BERT4Rec`` and ``GRU4Rec`` here are descriptions, such as ``SASRec(dim=32)``: the network itself is built
once the number of items is known.
"""

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from recdistill.api import distill as distill
    from recdistill.api import train as train
    from recdistill.data.dataset import Dataset as Dataset
    from recdistill.data.embedded import load_shop as load_shop
    from recdistill.data.interactions import Interactions as Interactions
    from recdistill.data.interactions import read_interactions as read_interactions
    from recdistill.data.splits import Split as Split
    from recdistill.data.splits import last_basket as last_basket
    from recdistill.data.splits import leave_one_out as leave_one_out
    from recdistill.data.splits import random_split as random_split
    from recdistill.data.splits import time_cut as time_cut
    from recdistill.errors import RecDistillError as RecDistillError
    from recdistill.evaluation.full_ranking import evaluate as evaluate
    from recdistill.evaluation.results import Evaluation as Evaluation
    from recdistill.methods.bahsd import BAHSD as BAHSD
    from recdistill.methods.cd import CD as CD
    from recdistill.methods.ce import CE as CE
    from recdistill.methods.ckd import CKD as CKD
    from recdistill.methods.cl4srec import CL4SRec as CL4SRec
    from recdistill.methods.dcd import DCD as DCD
    from recdistill.methods.de import DE as DE
    from recdistill.methods.duorec import DuoRec as DuoRec
    from recdistill.methods.extraction import Extraction as Extraction
    from recdistill.methods.hetcomp import HetComp as HetComp
    from recdistill.methods.htd import HTD as HTD
    from recdistill.methods.iclrec import ICLRec as ICLRec
    from recdistill.methods.kd import KD as KD
    from recdistill.methods.rcekd import RCEKD as RCEKD
    from recdistill.methods.rrd import RRD as RRD
    from recdistill.methods.s4rec import S4Rec as S4Rec
    from recdistill.methods.supervised import Supervised as Supervised
    from recdistill.methods.unkd import UnKD as UnKD
    from recdistill.models.bert4rec import BERT4RecConfig as BERT4Rec
    from recdistill.models.gru4rec import GRU4RecConfig as GRU4Rec
    from recdistill.models.hstu import HSTUConfig as HSTU  # noqa: N814 - the model's name
    from recdistill.models.lightgcn import LightGCNConfig as LightGCN
    from recdistill.models.mf import MFConfig as MF  # noqa: N814
    from recdistill.models.sasrec import SASRecConfig as SASRec
    from recdistill.serving.student import Student as Student
    from recdistill.teachers.callable import CallableTeacher as CallableTeacher
    from recdistill.teachers.ensemble import EnsembleTeacher as EnsembleTeacher
    from recdistill.teachers.http import HttpTeacher as HttpTeacher
    from recdistill.teachers.local import LocalTeacher as LocalTeacher
    from recdistill.teachers.matrix import MatrixTeacher as MatrixTeacher
    from recdistill.teachers.rules import RulesTeacher as RulesTeacher
    from recdistill.teachers.stored import StoredTeacher as StoredTeacher
    from recdistill.training.settings import TrainerSettings as TrainerSettings

__all__ = [
    "BAHSD",
    "CD",
    "CE",
    "CKD",
    "DCD",
    "DE",
    "HSTU",
    "HTD",
    "KD",
    "MF",
    "RCEKD",
    "RRD",
    "BERT4Rec",
    "CL4SRec",
    "CallableTeacher",
    "Dataset",
    "DuoRec",
    "EnsembleTeacher",
    "Evaluation",
    "Extraction",
    "GRU4Rec",
    "HetComp",
    "HttpTeacher",
    "ICLRec",
    "Interactions",
    "LightGCN",
    "LocalTeacher",
    "MatrixTeacher",
    "RecDistillError",
    "RulesTeacher",
    "S4Rec",
    "SASRec",
    "Split",
    "StoredTeacher",
    "Student",
    "Supervised",
    "TrainerSettings",
    "UnKD",
    "distill",
    "evaluate",
    "last_basket",
    "leave_one_out",
    "load_shop",
    "random_split",
    "read_interactions",
    "time_cut",
    "train",
]

# Where each name comes from. It is imported when it is first used, so that `import recdistill` takes no time.
_HOMES = {
    "BAHSD": "methods.bahsd:BAHSD",
    "BERT4Rec": "models.bert4rec:BERT4RecConfig",
    "CD": "methods.cd:CD",
    "CE": "methods.ce:CE",
    "CKD": "methods.ckd:CKD",
    "CL4SRec": "methods.cl4srec:CL4SRec",
    "CallableTeacher": "teachers.callable:CallableTeacher",
    "DCD": "methods.dcd:DCD",
    "DE": "methods.de:DE",
    "Dataset": "data.dataset:Dataset",
    "DuoRec": "methods.duorec:DuoRec",
    "EnsembleTeacher": "teachers.ensemble:EnsembleTeacher",
    "Evaluation": "evaluation.results:Evaluation",
    "Extraction": "methods.extraction:Extraction",
    "GRU4Rec": "models.gru4rec:GRU4RecConfig",
    "HSTU": "models.hstu:HSTUConfig",
    "HTD": "methods.htd:HTD",
    "HetComp": "methods.hetcomp:HetComp",
    "HttpTeacher": "teachers.http:HttpTeacher",
    "ICLRec": "methods.iclrec:ICLRec",
    "Interactions": "data.interactions:Interactions",
    "KD": "methods.kd:KD",
    "LightGCN": "models.lightgcn:LightGCNConfig",
    "LocalTeacher": "teachers.local:LocalTeacher",
    "MF": "models.mf:MFConfig",
    "MatrixTeacher": "teachers.matrix:MatrixTeacher",
    "RCEKD": "methods.rcekd:RCEKD",
    "RRD": "methods.rrd:RRD",
    "RecDistillError": "errors:RecDistillError",
    "RulesTeacher": "teachers.rules:RulesTeacher",
    "S4Rec": "methods.s4rec:S4Rec",
    "SASRec": "models.sasrec:SASRecConfig",
    "Split": "data.splits:Split",
    "StoredTeacher": "teachers.stored:StoredTeacher",
    "Student": "serving.student:Student",
    "Supervised": "methods.supervised:Supervised",
    "TrainerSettings": "training.settings:TrainerSettings",
    "UnKD": "methods.unkd:UnKD",
    "distill": "api:distill",
    "evaluate": "evaluation.full_ranking:evaluate",
    "last_basket": "data.splits:last_basket",
    "leave_one_out": "data.splits:leave_one_out",
    "load_shop": "data.embedded:load_shop",
    "random_split": "data.splits:random_split",
    "read_interactions": "data.interactions:read_interactions",
    "time_cut": "data.splits:time_cut",
    "train": "api:train",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, attribute = _HOMES[name].split(":")
    value = globals()[name] = getattr(import_module(f"{__name__}.{module}"), attribute)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})

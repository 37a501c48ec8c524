"""Everything a notebook needs: `from beit_lab.all import *`. Written by hand.

fastai's own star import comes first, so that its names mean what its users expect; ours are added and hide none of them.
"""
from fastai.vision.all import *

from .core import *
from .training import *
from .data.drawing import *
from .data.scenes import *
from .data.language import *
from .data.pictures import *
from .data.sources import *
from .data.text import *
from .data.loaders import *
from .data.reading import *
from .masking import *
from .masking_text import *
from .trunk.attention import *
from .trunk.blocks import *
from .trunk.embeddings import *
from .trunk.writing import *
from .trunk.multiway import *
from .trunk.maps import *
from .trunk.sizes import *
from .trunk.layouts import *
from .trunk.checkpoints import *
from .trunk.released import *
from .codebook.quantize import *
from .codebook.lookup_free import *
from .codebook.autoencode import *
from .codebook.health import *
from .codebook.cache import *
from .pretrain.objectives import *
from .pretrain.learner import *
from .pretrain.aggregate import *
from .pretrain.masked_data import *
from .pretrain.masked_learner import *
from .pretrain.looking import *
from .pretrain.evidence import *
from .pretrain.reader import *
from .pretrain.rivals import *
from .heads.probes import *
from .heads.classify import *
from .heads.finetune import *
from .heads.released import *
from .show.tokens import *
from .show.patch_grid import *
from .show.masks import *
from .show.codes import *
from .show.pair_maps import *
from .show.attention import *
from .show.charts import *
from .show.dashboard import *
from .show.report import *
from .show.pairs_report import *
from .main_job import *
from .pairs_job import *

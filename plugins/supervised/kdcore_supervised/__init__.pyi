# The public names and the modules that define them. Type checkers read this file, and so does lazy_loader at run time.

from .classification import ClassificationLoss as ClassificationLoss
from .data.glue import GlueData as GlueData
from .data.glue import GlueName as GlueName
from .data.labelled import LabelledData as LabelledData
from .data.labelled import LabelledTexts as LabelledTexts
from .data.labelled import read_labelled as read_labelled
from .data.labelled_tokens import TokenizedTexts as TokenizedTexts
from .data.labelled_tokens import tokenize as tokenize
from .metrics import CLASS_METRICS as CLASS_METRICS
from .metrics import NUMBER_METRICS as NUMBER_METRICS
from .metrics import Metric as Metric
from .metrics import majority_fraction as majority_fraction
from .metrics import metrics_of as metrics_of
from .metrics import require_libraries as require_libraries
from .sequence_classification import SequenceClassification as SequenceClassification

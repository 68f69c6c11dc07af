# The public names and the modules that define them. Type checkers read this file, and so does lazy_loader at run time.

from .classification import ClassificationLoss as ClassificationLoss
from .data.glue import GlueData as GlueData
from .data.glue import GlueName as GlueName
from .data.labelled import LabelledData as LabelledData
from .data.labelled import LabelledTexts as LabelledTexts
from .data.labelled import read_labelled as read_labelled
from .data.labelled_tokens import TokenizedTexts as TokenizedTexts
from .data.labelled_tokens import tokenize as tokenize
from .data.tagged import TaggedData as TaggedData
from .data.tagged import TaggedPart as TaggedPart
from .data.tagged import TaggedText as TaggedText
from .data.tagged import read_tagged as read_tagged
from .metrics import CLASS_METRICS as CLASS_METRICS
from .metrics import LABEL_SET_METRICS as LABEL_SET_METRICS
from .metrics import NUMBER_METRICS as NUMBER_METRICS
from .metrics import Metric as Metric
from .metrics import majority_fraction as majority_fraction
from .metrics import metrics_of as metrics_of
from .metrics import require_libraries as require_libraries
from .sequence_classification import SequenceClassification as SequenceClassification
from .span_metrics import SPAN_METRICS as SPAN_METRICS
from .span_metrics import SpanMetric as SpanMetric
from .span_metrics import SpanScores as SpanScores
from .tags import TaggedSpan as TaggedSpan
from .tags import spans_of as spans_of
from .token_classification import TokenClassification as TokenClassification

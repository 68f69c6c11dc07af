# The public names and the modules that define them. Type checkers read this file, and so does lazy_loader at run time.

from .command_checks import check_command as check_command
from .corpus_checks import check_corpus as check_corpus
from .loss_checks import check_loss as check_loss
from .loss_checks import compute_loss as compute_loss
from .model_checks import check_model as check_model
from .optimization_checks import check_optimizer as check_optimizer
from .optimization_checks import check_scheduler as check_scheduler
from .task_checks import check_task as check_task
from .tracker_checks import check_tracker as check_tracker
from .transform_checks import check_transform as check_transform

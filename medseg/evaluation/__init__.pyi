from .held_back import evaluate_test_cases as evaluate_test_cases
from .promotion import decide_retraining as decide_retraining
from .promotion import describe_promotion as describe_promotion
from .promotion import promote as promote
from .report import write_report as write_report
from .summary import evaluate as evaluate
from .summary import evaluate_folder as evaluate_folder
from .summary import flat_means as flat_means

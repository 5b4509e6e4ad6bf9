"""Values that stand where nobody says another: functions of Python and the command line read them here.

docs/defaults.md is the table of them. What a rule's options are stands in `zigzag.reference.RULES`.
"""

MAX_NEW_TOKENS = 128  # of each row
TEMPERATURE = 1.0  # where generation_config says neither a temperature nor do_sample=False
TOP_K = 0  # all tokens
TOP_P = 1.0
MIN_P = 0.0
SEED = 0
RULE = "residual"
NUM_DRAFT_TOKENS = 4  # of a drafter that is given by name or as a model
SPARE = 64  # slots of a streaming layer beyond its window, held and counted: the most drafts that can be taken back

"""What the process of a model's tokenizer and chat template may use."""

from __future__ import annotations

# Of processor time, for one rendering. The longest conversations that fit a context take a tenth of it.
TEMPLATE_SECONDS = 2.0
# Of processor time, for one prompt. A context of a million tokens takes two seconds.
TEXT_SECONDS = 10.0
# Of processor time. Some tokenizers are converted when they are loaded: most of a minute on a slow machine.
LOAD_SECONDS = 120.0
MEMORY = 3 << 30

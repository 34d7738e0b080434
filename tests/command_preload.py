"""What the server of `command` imports before it forks."""

import transformers.models.llama.modeling_llama  # noqa: F401

import bitlens.cli
import bitlens.hidden.harvest
import bitlens.show
import bitlens.training  # noqa: F401

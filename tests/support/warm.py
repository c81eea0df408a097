"""What ranks need, read once by the process that they are forked from: mappings, and classes of transformers."""

import contextlib

from crosswalk.jobs.formats import catalog

catalog().compiled("llama")
with contextlib.suppress(ImportError):
    import transformers.models.llama.modeling_llama  # noqa: F401

"""The mappings that ranks need, read once by the process that they are forked from."""

from crosswalk.jobs.formats import catalog

catalog().compiled("llama")

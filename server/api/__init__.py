"""The HTTP interface: requests, responses, errors, paths and the OpenAPI document.

This package holds types and constants only; nothing in it ranks. Import models from `requests` and `responses`, errors
from `errors`, and the stages of a ranking from `stages`.
"""

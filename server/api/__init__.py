"""What goes over the wire: requests, responses, errors, paths and the OpenAPI document.

Types and constants only; nothing here ranks. Import models from `requests` and `responses`, the error tree
from `errors`.
"""
